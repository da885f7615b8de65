"""Metrics of one's own: functions of logits, and directions that logits or states are projected on.

A function is given logits [row, vocab] at the token that predicts the answer, and returns a number
for each row. Rows come in batches, beside other rows and repeated for other cells: so each number
must hang on its own row alone, which is tried out before anything runs.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch

from interventions.digests import UnknownContent, digest_of, globals_of
from interventions.errors import PromptError
from interventions.given import one_of, shown, text_of
from interventions.given_arrays import tensor_of
from interventions.model.model import Model

Space = Literal["logits", "resid"]
OwnMetric = Callable[[torch.Tensor], torch.Tensor]
TRIED = 3  # rows of chance logits
CLOSE = 1e-4  # as a share of the largest value: the order of a sum's terms may change with rows
UNKNOWN = "unknown"
TAKEN = (
    *("item", "component", "layer", "head", "source_layer", "role", "position", "token", "cluster"),
    *("route", "head_set", "last_layer", "key_role", "query_role", "edges", "answer", "foil"),
    *("x0", "y0", "x1", "y1", "row", "col", "kind", "picture", "image", "view", "statistics"),
)
BESIDE = ("clean_", "source_", "change_", "low_", "high_", "p_", "run_")
"""What else a table of numbers has by name."""


@dataclass(frozen=True)
class Direction:
    """A target that is a direction: the metric is the projection onto it, at the answer's token.

    Attributes
    ----------
    vector : Tensor [d_model] or [vocab]
        As it is: its size counts. Of ``lm_head.weight[a] - lm_head.weight[b]``, say, or of
        :func:`interventions.contrast_vectors`.
    space : {"resid", "logits"}
        What is projected: the residual stream behind the last block (before the final norm)
        [d_model], or the logits [vocab].
    name : str
        Of the metric, in results.

    Examples
    --------
    >>> towards = iv.Direction(torch.eye(llm.d_model)[0], name="first")
    >>> swept = iv.sweep(llm, named, other, metrics=[towards], roles=["entity", "last"])
    >>> swept["first"].dims
    ('item', 'component', 'layer', 'role')
    """

    vector: torch.Tensor
    space: Space = "resid"
    name: str = "projection"

    def __post_init__(self) -> None:
        vector = tensor_of(self.vector, "the vector of a Direction").detach().cpu()
        vector = vector.to(torch.promote_types(vector.dtype, torch.float32))
        if vector.ndim != 1 or not bool(vector.isfinite().all()):
            raise PromptError(
                f"the vector of a Direction has shape {list(vector.shape)} and must be finite. "
                "Expected one vector, [d_model] or [vocab], without NaN."
            )
        object.__setattr__(self, "vector", vector)
        object.__setattr__(
            self, "space", one_of(self.space, "space", get_args(Space), error=PromptError)
        )
        object.__setattr__(self, "name", text_of(self.name, "the name of a Direction"))

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """Project logits or states [row, width]."""
        return values @ self.vector.to(values)


def is_own(metric: Any) -> bool:
    """Whether a metric is a function or a direction, and none that has a name here."""
    return callable(metric) and not isinstance(metric, type | str)


def needs_resid(metric: Any) -> bool:
    """Whether a metric is of the residual stream behind the last block."""
    return isinstance(metric, Direction) and metric.space == "resid"


def metric_name(metric: Any) -> str:
    """What a metric is called in results: its own name, ``__name__`` of a function.

    Examples
    --------
    >>> metric_name("kl"), metric_name(lambda logits: logits[:, 0])
    ('kl', 'lambda')
    """
    if isinstance(metric, str):
        return metric
    if isinstance(metric, Direction):
        return metric.name
    if isinstance(metric, partial):
        return metric_name(metric.func)
    name = getattr(metric, "__name__", type(metric).__name__)
    return "lambda" if name == "<lambda>" else name


def metric_digest(metric: Any) -> str:
    """Digest of what a metric computes: its code and what that uses; else "unknown".

    Examples
    --------
    >>> same = [metric_digest(lambda logits: logits[:, k]) for k in (1, 1, 2)]
    >>> same[0] == same[1], same[0] == same[2]
    (True, False)
    """
    if isinstance(metric, str):
        return metric
    try:
        _check_known(metric, [])
        return digest_of(metric)
    except (UnknownContent, ValueError):  # a cell that is empty still
        return UNKNOWN


def _check_known(value: Any, within: list[Any]) -> None:
    """Refuse a function that names, at any depth, what cannot be told from another."""
    while isinstance(value, partial) or inspect.ismethod(value):
        value = value.func if isinstance(value, partial) else value.__func__
    if not inspect.isfunction(value) or any(value is outer for outer in within):
        return
    within.append(value)
    cells = [cell.cell_contents for cell in value.__closure__ or ()]
    for named in (*globals_of(value).values(), *cells):
        if inspect.isfunction(named):
            _check_known(named, within)
        else:
            digest_of(named)


def check_own(model: Model, metric: Any, *, gradient: bool) -> None:
    """Refuse, before anything runs, a metric of one's own that gives no number for each row.

    Raises
    ------
    PromptError
        Says what it gave on chance logits, or raised.
    """
    name = metric_name(metric)
    if not name.isidentifier() or name in TAKEN or name.startswith(BESIDE):
        raise PromptError(
            f"a metric cannot be called {name!r}, as results have it as a variable. Give the "
            "function another __name__, a word that nothing else is called by."
        )
    width = model.d_model if needs_resid(metric) else model.anatomy.vocab
    if isinstance(metric, Direction) and len(metric.vector) != width:
        raise PromptError(
            f"the Direction {name!r} has {len(metric.vector)} numbers. Expected {width}: "
            f"{'d_model' if needs_resid(metric) else 'the vocabulary'} of {model.name} "
            f"(space={metric.space!r})."
        )
    drawn = torch.randn(TRIED, width, generator=torch.Generator().manual_seed(0))
    logits = drawn.to(model.device).requires_grad_(gradient)
    with torch.set_grad_enabled(gradient):
        values = own_values(metric, logits)
        alone = torch.cat([own_values(metric, row) for row in logits.flip(0).split(1)]).flip(0)
    scale = float(values.detach().abs().max().clamp(min=1.0))
    if float((values - alone).detach().abs().max()) > CLOSE * scale:
        raise PromptError(
            f"the metric {name!r} gives a row another number when it stands beside other rows. "
            "Rows run in batches, so each number may hang on its own row alone: leave out means "
            "over rows, and what counts on their order."
        )
    if gradient and not values.requires_grad:
        raise PromptError(
            f"the metric {name!r} has no gradient, so nothing can be attributed to it. Leave out "
            "argmax, comparisons, .item(), .detach() and numpy; or patch exactly (iv.sweep)."
        )


def own_values(metric: Any, logits: torch.Tensor) -> torch.Tensor:
    """Numbers [row] that a metric of one's own gives, checked.

    Raises
    ------
    PromptError
        If it raises, gives no tensor [row], or numbers that are not finite.
    """
    name, n_rows = metric_name(metric), len(logits)
    try:
        values = metric(logits.clone())  # of its own: others, and the clean run's, share these
    except Exception as error:
        raise PromptError(
            f"the metric {name!r} failed on logits {list(logits.shape)}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(values, torch.Tensor):
        raise PromptError(
            f"the metric {name!r} gave {shown(values)}. Expected a tensor with a number for each "
            f"of the {n_rows} rows of logits [row, vocab]."
        )
    if values.shape != (n_rows,) or values.is_complex():
        raise PromptError(
            f"the metric {name!r} gave a tensor {list(values.shape)} for logits "
            f"{list(logits.shape)}. Expected a number for each row, [{n_rows}]."
        )
    if rows := (~values.detach().isfinite()).nonzero().flatten().tolist():
        raise PromptError(
            f"the metric {name!r} is not finite in {len(rows)} of {n_rows} rows: "
            f"{values[rows[0]].item()}. Metrics must give finite numbers, such as log_softmax "
            "where a logarithm of a softmax would be -inf."
        )
    return values.to(torch.promote_types(values.dtype, torch.float32))
