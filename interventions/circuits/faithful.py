"""How much of a behaviour a circuit keeps when all other edges carry the corrupted run."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from interventions.attribution.sides import Given
from interventions.circuits.asked import as_asked, batches_of
from interventions.circuits.carried import Choice, carried
from interventions.circuits.scores import GRAPH, Circuit, EdgeScores, Stored, graph_text, numbers_in
from interventions.errors import ResultsError, SiteError
from interventions.given import MOST_CONTROLS, of_kind, seed_of, several, whole
from interventions.model.fingerprints import Unchanged
from interventions.model.model import Model
from interventions.results import provenance, read_provenance, with_provenance
from interventions.sweeping.metrics import Answers, Metric, unit_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESAMPLES = 1000
SIZES = (5, 10, 20, 50, 100, 200, 500)
INTERVAL = (0.025, 0.975)
NOTHING = 1e-6  # a share of what is added up: a sum of float32 that is less of it is rounding


class Faithfulness(Stored):
    """What :func:`interventions.faithfulness` gives.

    Attributes
    ----------
    data : Dataset
        ``value`` (circuit, item): the metric when all edges but the circuit's carry the source, in
        its unit; ``random`` (circuit, seed, item): the same of random circuits of as many edges.
        ``n_edges`` (circuit); ``run_metric``, ``source_metric`` (item): with all edges, and with
        none.
    """

    def curve(self, seed: int = 0) -> pd.DataFrame:
        """Share of the metric's change that each circuit keeps.

        ``(value - source) / (run - source)``, of sums over items: so it is of the mean change, and
        items between whose runs the metric rises take from those where it falls.

        Returns
        -------
        DataFrame
            A line per circuit: ``n_edges``; ``faithfulness`` with ``low`` and ``high``, its 95 %
            interval, bootstrap over items; ``random``, the mean over random circuits, with
            ``random_low`` and ``random_high``, between which 95 % of them are.

        Raises
        ------
        ResultsError
            If the metric does not change, or its changes add up to nothing over items.
        """
        data, rng = self.data, np.random.default_rng(seed_of(seed))
        run, source = (data[f"{side}_metric"].values for side in ("run", "source"))
        gain = data["value"].values - source
        _check_change(run - source)
        lines: dict[str, np.ndarray] = {"n_edges": data["n_edges"].values}
        lines["faithfulness"] = gain.sum(-1) / (run - source).sum()
        draws = rng.integers(len(run), size=(RESAMPLES, len(run)))
        draws = draws[(run - source)[draws].sum(-1) != 0]
        again = gain[:, draws].sum(-1) / (run - source)[draws].sum(-1)
        nowhere = np.full((2, len(gain)), np.nan)
        ends = np.quantile(again, INTERVAL, axis=-1) if len(draws) else nowhere
        lines["low"], lines["high"] = ends
        if data.sizes["seed"]:
            drawn = (data["random"].values - source).sum(-1) / (run - source).sum()
            lines["random"] = drawn.mean(-1)
            lines["random_low"], lines["random_high"] = np.quantile(drawn, INTERVAL, axis=-1)
        return pd.DataFrame(lines)

    def table(self) -> pd.DataFrame:
        """Return :meth:`curve`."""
        return self.curve()

    def to_dataframe(self) -> pd.DataFrame:
        """Return every item's metric under every circuit, one a line: ``seed`` -1 is the circuit's
        own, others are random circuits.
        """
        own = self.data["value"].to_dataframe().reset_index().assign(seed=-1)
        drawn = self.data["random"].to_dataframe().reset_index()
        drawn = drawn.rename(columns={"random": "value"})
        columns = ["circuit", "n_edges", "seed", "item", "value"]
        frame = pd.concat([own, drawn[drawn["seed"] >= 0]], ignore_index=True)
        sizes = self.data["n_edges"].values
        frame["n_edges"] = sizes[frame["circuit"]]
        return frame.loc[:, columns]

    def draw(self, *, title: str | None = None) -> "Figure":
        """Draw the curve with its interval, and the band of random circuits."""
        from interventions.circuits.drawing import draw_curve

        attrs = self.data.attrs
        return draw_curve(self.curve(), title or f"{attrs['metric']}, {attrs['method']}")


def _check_change(change: np.ndarray) -> None:
    """Refuse changes [item] of which no share can be taken."""
    total, parts = abs(change.sum()), np.abs(change).sum()
    if total > NOTHING * parts:
        return
    if not parts:
        raise ResultsError(
            "both runs give the same metric in every item, so there is nothing that a circuit "
            "could keep. Give prompts between which the metric differs."
        )
    up, down = int((change > 0).sum()), int((change < 0).sum())
    raise ResultsError(
        f"the metric is higher in the run than in the source for {up} items and lower for {down}, "
        "by as much in all: the mean change is 0, and no share of it can be taken. Give items in "
        "which it goes one way, with prompt and source (or answers and foils) swapped where it "
        "goes the other; or take each item's numbers from .to_dataframe()."
    )


def faithfulness(
    model: Model,
    scores: EdgeScores,
    prompt: Given,
    source: Given,
    *,
    answers: Answers | None = None,
    foils: Answers | None = None,
    metric: Metric | None = None,
    circuits: Sequence[int | Circuit] = SIZES,
    n_random: int = 10,
    seed: int = 0,
    budget: int | None = None,
) -> Faithfulness:
    """Run a model whose edges outside of a circuit carry the corrupted run.

    Each receiver reads, from senders inside of the circuit, what they write in this run, and from
    all others what they write in ``source``: queries, keys and values of every head, and every MLP,
    are computed anew from that, norms included. So a circuit of all edges gives the metric of
    ``prompt``, and one of none that of ``source``.

    Parameters
    ----------
    model : Model
        On a server, one request for all circuits and controls.
    scores : EdgeScores
    prompt, source, answers, foils
        What :func:`interventions.attribute_edges` was given.
    metric : callable, optional
        The same again, where it was a function or a direction: results hold its name and no code.
    circuits : sequence of int or Circuit
        Sizes, of which the edges of the largest scores are taken and pruned; or circuits. Sizes
        beyond the number of edges are taken for all of them.
    n_random : int
        Random circuits of as many edges as each, all on paths from the input to the logits; 0 for
        none.
    seed : int
        For these.
    budget : int, optional
        Bytes that may be used. Default: part of what is free. Circuits are rows of a pass.

    Returns
    -------
    Faithfulness
        With every item's metric; ``.curve()``, ``.draw()``, ``.save()``.

    Raises
    ------
    ResultsError
        If the scores are of other prompts, or of another model.
    SiteError
        If a circuit is of another graph.

    Notes
    -----
    Wang et al., ICLR 2023; Hanna, Pezzelle and Belinkov, COLM 2024.

    Examples
    --------
    >>> scores = iv.attribute_edges(llm, named, other, answers="Marlow", foils="Brenn")
    >>> kept = iv.faithfulness(
    ...     llm, scores, named, other, answers="Marlow", foils="Brenn", circuits=[20, 100],
    ...     n_random=2,
    ... )
    >>> kept.curve().shape
    (2, 7)
    """
    of_kind(scores, EdgeScores, "scores", error=ResultsError)
    seed = seed_of(seed)
    n_random = whole(n_random, "n_random", least=0, most=MOST_CONTROLS)
    budget = None if budget is None else whole(budget, "budget", least=1)
    contrast, asked = as_asked(
        model, scores.data, prompt, source, answers=answers, foils=foils, metric=metric
    )
    graph, chosen = scores.graph, _circuits(scores, circuits)
    rng = np.random.default_rng(seed)
    choices = [Choice(edges.tolist(), but=True) for edges in chosen]
    for edges in chosen:
        for _ in range(n_random):
            choices.append(Choice(graph.connected(len(edges), rng).tolist(), but=True))
    with Unchanged(model):
        parts = carried(model, batches_of(model, contrast, None), choices, budget)
    if parts[0].refused:
        raise SiteError(parts[0].refused)
    if parts[0].graph != graph:
        raise ResultsError(
            "the model's blocks and heads are not those that the edges were scored for. Score the "
            "edges again."
        )
    values = np.concatenate([part.values for part in parts], 1)
    drawn = values[len(chosen) :].reshape(len(chosen), n_random, values.shape[1])
    units: dict[str, Any] = {"units": unit_of(contrast.metrics[0])}
    data = xr.Dataset(
        {
            "value": (("circuit", "item"), values[: len(chosen)], units),
            "random": (("circuit", "seed", "item"), drawn, units),
            "n_edges": ("circuit", [len(edges) for edges in chosen]),
            "run_metric": ("item", np.concatenate([part.run for part in parts]), units),
            "source_metric": ("item", np.concatenate([part.source for part in parts]), units),
        },
        coords={
            "circuit": np.arange(len(chosen)),
            "seed": np.arange(n_random),
            "item": contrast.items,
        },
        attrs={
            GRAPH: graph_text(graph),
            "method": scores.data.attrs["method"],
            "metric": asked["metric"],
            "cost": f"{sum(part.token_blocks for part in parts)} tokens through blocks",
        },
    )
    about = read_provenance(scores.data)
    settings = {**about.get("settings", {}), "circuits": [edges.tolist() for edges in chosen]}
    settings |= {"n_random": n_random}
    return Faithfulness(
        with_provenance(data, provenance(model=model), settings=settings, seed=seed)
    )


def _circuits(scores: EdgeScores, given: Any) -> list[np.ndarray]:
    """Edges of every circuit asked for."""
    expected = "a list of numbers of edges, or of circuits"
    asked = several(given, "circuits", error=SiteError, expected=expected)
    if not asked:
        raise SiteError(f"circuits is empty. Expected {expected}.")
    graph = scores.graph
    chosen: list[np.ndarray] = []
    for circuit in asked:
        if isinstance(circuit, Circuit):
            chosen.append(numbers_in(graph, circuit))
            continue
        n = min(whole(circuit, "a size of a circuit", least=0, error=SiteError), len(graph.edges))
        edges = scores.circuit(n).edges
        if not any(len(edges) == len(other) and (edges == other).all() for other in chosen):
            chosen.append(edges)
    return chosen
