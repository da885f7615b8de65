"""Where the values of a sweep come from, and reading them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from interventions.errors import PatchError, RoleError, SiteError
from interventions.given import index_of, number, of_kind, seed_of
from interventions.given_arrays import check_range, tensor_of
from interventions.model.model import Model
from interventions.model.pairing import ModelPair
from interventions.model.sites import (
    COMPONENTS,
    TOWER,
    Component,
    Layers,
    Site,
    check_component,
)
from interventions.model.vision_places import tower_of
from interventions.prompt.columns import Columns
from interventions.prompt.positions import Positions, Space
from interventions.prompt.prompt import Prompt
from interventions.running.run import run
from interventions.sweeping.metrics import Target


@dataclass(frozen=True)
class Noise:
    """The run's own values with Gaussian noise added (causal tracing's corruption).

    Attributes
    ----------
    scale : float
        In standard deviations of the values at that layer and token.
    seed : int
        The noise at a layer and token depends on it and on the row's number, not on how rows are
        batched or what else is patched.
    """

    scale: float = 3.0
    seed: int = 0

    def __post_init__(self) -> None:
        scale = number(self.scale, "scale of Noise", least=0, error=PatchError)
        object.__setattr__(self, "scale", scale)
        object.__setattr__(self, "seed", seed_of(self.seed, "seed of Noise", error=PatchError))


@dataclass(frozen=True)
class FromModel:
    """What the backbone computes on a prompt of its own, at the layers that correspond.

    Attributes
    ----------
    pair : ModelPair
        Of the model that is swept and its backbone.
    prompt : Prompt
        Of the backbone, row for row.
    """

    pair: ModelPair
    prompt: Prompt

    def __post_init__(self) -> None:
        of_kind(self.pair, ModelPair, "the pair of FromModel", error=PatchError)
        of_kind(self.prompt, Prompt, "the prompt of FromModel", error=PatchError)


@dataclass(frozen=True)
class FromLayers:
    """The run's own values at other layers: back-patching, or patching forward.

    Attributes
    ----------
    layers : int, slice or list of int, optional
        Each is read and written into each layer of the sweep; default all. Source: Biran et al.
        2024, "Hopping Too Late".
    """

    layers: Layers | None = None

    def __post_init__(self) -> None:
        if self.layers is not None:
            object.__setattr__(self, "layers", index_of(self.layers, "layer"))


Source = Prompt | FromModel | FromLayers | Noise | torch.Tensor | float
NOISED = (*COMPONENTS, *TOWER)
"""By their numbers here noise is drawn."""
NAMED = (Prompt, FromModel, FromLayers, Noise)
"""The sources that are no numbers."""


@dataclass(frozen=True)
class Values:
    """Values read for a batch of rows.

    Attributes
    ----------
    by_component : dict of str to Tensor [layer, row, token, ...]
        By component; the tokens of all columns behind one another.
    layers : list of int
        What the first axis stands for, in the numbers of the model that is swept.
    starts : list of int
        Where each column begins among the tokens.
    tokens : list of list of int
        Which token of its row each one is, [row][token], counted from the row's first.
    mask : Tensor [row, token], bool
        Where a row has one.
    logits : Tensor [row, token, vocab] or None
        Of the run they are from, where that was a prompt of the same model.
    """

    by_component: dict[str, torch.Tensor]
    layers: list[int]
    starts: list[int]
    tokens: list[list[int]]
    mask: torch.Tensor
    logits: torch.Tensor | None = None

    def at(self, component: str, layer: int, column: int, width: int) -> torch.Tensor:
        """Value [row, token, ...] of a column; one token is spread over the ``width`` wanted."""
        values = self.by_component[component][self.layers.index(layer)]
        value = values[:, self.starts[column] : self.starts[column + 1]]
        # Rows that were read with longer ones have more tokens than they use.
        return (
            value[:, :width]
            if value.shape[1] >= width
            else value.expand(-1, width, *value.shape[2:])
        )

    def rows(self, rows: Sequence[int]) -> "Values":
        """Return the values of some rows."""
        chosen = list(rows)
        by_component = {
            component: value[:, chosen] for component, value in self.by_component.items()
        }
        tokens = [self.tokens[row] for row in chosen]
        return replace(
            self, by_component=by_component, tokens=tokens, mask=self.mask[chosen], logits=None
        )

    def repeated(self, n: int) -> "Values":
        """Return the values of rows that are repeated, as a block, ``n`` times."""
        if n == 1:
            return self
        by_component = {
            component: torch.cat([value] * n, 1) for component, value in self.by_component.items()
        }
        return replace(self, by_component=by_component, mask=self.mask.repeat(n, 1))

    def check(self, dtype: torch.dtype) -> None:
        """Refuse values that cannot be written into a model of a number format.

        What is written from them is not looked at again.

        Raises
        ------
        PatchError
        """
        for component, value in self.by_component.items():
            own = value[:, self.mask.to(value.device)]
            check_range(own, dtype, f"{component} of the source")


def check_columns(run_at: Columns, read_at: Columns) -> None:
    """Refuse columns whose tokens do not correspond: as many in each row, or one.

    Raises
    ------
    RoleError
        With the row and what to do.
    """
    if len(run_at.names) != len(read_at.names):
        raise RoleError(
            f"{len(run_at.names)} tokens are written one by one, and {len(read_at.names)} are read."
            " Read as many, or leave each=True out: then one token's values go into all of a role."
        )
    named = zip(run_at.names, read_at.names, run_at.tokens, read_at.tokens, strict=True)
    for name, read_name, mine, theirs in named:
        counts = [(len(written), len(read)) for written, read in zip(mine, theirs, strict=True)]
        if all(n_read == 1 for _, n_read in counts) or all(
            n_written == n_read for n_written, n_read in counts
        ):
            continue
        row = next(i for i, (n_written, n_read) in enumerate(counts) if n_written != n_read)
        single = f"{read_name.partition('[')[0]}[-1]"
        raise RoleError(
            f"role {name!r} of row {row} has {counts[row][0]} tokens, and {counts[row][1]} where "
            f"its values are read. Name one token, such as {single}, here or in read_roles=."
        )


def _flat(columns: Columns, prompt: Prompt) -> tuple[Positions, list[int]]:
    """All columns behind one another, and where each begins."""
    parts = [columns.positions(which, prompt) for which in range(len(columns.names))]
    starts = [0]
    for part in parts:
        starts.append(starts[-1] + part.index.shape[1])
    index = torch.cat([part.index for part in parts], 1)
    used = torch.cat([part.mask for part in parts], 1)
    length = columns.length_in(prompt)
    return Positions(index, used, length, False, "columns", columns.of), starts


def read_values(
    model: Model,
    prompt: Prompt,
    columns: Columns,
    *,
    components: Sequence[Component],
    layers: Sequence[int],
    target: Target | None = None,
    names: Sequence[int] | None = None,
) -> Values:
    """Read columns of a prompt; with ``target``, also the logits that score it.

    ``names``: what the layers are called in :class:`Values`. Default: themselves.
    """
    if target is not None and model.anatomy.dependent_rows is not None:
        # What is behind the prompt, and the rows of foils, would change the values.
        values = read_values(
            model, prompt, columns, components=components, layers=layers, names=names
        )
        scored = target.scored(prompt)
        at = target.positions(scored)
        logits = [
            run(model, scored.select([row]), logits=at.rows([row])).logits
            for row in range(len(scored))
        ]
        return replace(
            values,
            logits=torch.cat([row_logits for row_logits in logits if row_logits is not None]),
        )
    scored = prompt if target is None else target.scored(prompt)
    at, starts = _flat(columns, prompt)
    repeats = len(scored) // len(prompt)
    where = replace(  # what a row lacks is read as well, and not used
        at,
        index=at.index.repeat(repeats, 1),
        mask=torch.ones(1, 1, dtype=torch.bool).expand(len(scored), at.index.shape[1]),
        length=columns.length_in(scored),
    )
    sites = [Site(component, list(layers), where) for component in components]
    wanted: Any = False if target is None else target.positions(scored)
    result = run(model, scored, reads=sites, logits=wanted)
    values = {
        component: value[:, : len(prompt)]
        for component, value in zip(components, result.reads, strict=True)
    }
    for component, value in values.items():
        if bool(torch.isnan(value[:, at.mask.to(value.device)]).any()):
            raise PatchError(
                f"{component} of the source holds NaN, which cannot be written. Check that {model} "
                "runs in its number format; bfloat16 overflows later than float16."
            )
    first = (prompt.length - prompt.lengths)[:, None] if columns.of == "text" else 0
    tokens = (at.index - first).tolist()
    return Values(values, list(names or layers), starts, tokens, at.mask, result.logits)


def noisy(values: Values, noise: Noise, items: Sequence[int]) -> Values:
    """Add noise to values; ``items`` are the numbers of their rows."""
    changed = {}
    for component, value in values.by_component.items():
        drawn = torch.zeros(value.shape)
        which = NOISED.index(check_component(component))
        for row, item in enumerate(items):
            for k, token in enumerate(values.tokens[row]):
                for i, layer in enumerate(values.layers):
                    if token >= 0:  # else there is none in this row
                        rng = np.random.default_rng([noise.seed, which, item, token, layer])
                        sample = rng.standard_normal(value.shape[3:], dtype=np.float32)
                        drawn[i, row, k] = torch.from_numpy(sample)
        spread = value.float().std(-1, keepdim=True)
        changed[component] = (value.float() + noise.scale * spread * drawn.to(value.device)).to(
            value.dtype
        )
    return replace(values, by_component=changed)


def mapped_layers(pair: ModelPair, layers: Sequence[int]) -> list[int]:
    """Layers of the backbone that correspond to layers of the VLM.

    Raises
    ------
    SiteError
        If one has none: a cross-attention block.
    """
    there = dict(zip(pair.layer_map, pair.backbone.anatomy.self_blocks, strict=True))
    if lost := [layer for layer in layers if layer not in there]:
        raise SiteError(
            f"layer(s) {lost[:8]} of {pair.vlm.name} correspond to no layer of "
            f"{pair.backbone.name}. Name others in layers=: {sorted(there)}."
        )
    return [there[layer] for layer in layers]


def checked_source(model: Model, source: Source, *, of: Space = "text") -> Source:
    """Return a source that is no number as it is, and a number or vector as a value.

    ``of``: whose states are written.

    Raises
    ------
    PatchError
        If it is of none of these kinds, is of another pair, or holds what the model's format
        cannot.
    """
    if isinstance(source, FromModel) and source.pair.vlm is not model:
        raise PatchError("FromModel(pair, ...) needs the pair whose VLM is swept.")
    if isinstance(source, NAMED):
        return source
    value = tensor_of(source, "the source").detach().cpu()
    value = value.to(torch.promote_types(model.dtype, torch.float32))
    width = model.d_model if of == "text" else tower_of(model).width
    if value.ndim > 1 or (value.ndim and len(value) != width):
        raise PatchError(
            f"a source of shape {tuple(value.shape)} is no value for every cell. Give a number, a "
            f"vector of {width}, a Prompt, Noise, FromModel or FromLayers."
        )
    check_range(value, model.dtype, "the source")
    return value
