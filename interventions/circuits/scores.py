"""Scores of edges, circuits of the highest ones, and both on disk."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
import xarray as xr

from interventions.circuits.graph import BlockNodes, Graph
from interventions.errors import ResultsError, SiteError
from interventions.given import number, of_kind, whole
from interventions.storable import storable, write_atomically
from interventions.sweeping.cell_statistics import cell_statistics
from interventions.sweeping.clustered import Correction

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GRAPH = "graph"
KIND = "kind"


@dataclass(frozen=True)
class Stored:
    """A result that is one Dataset, and its file.

    Attributes
    ----------
    data : Dataset
    """

    data: xr.Dataset

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the result into one netCDF file; a reader sees all of it or none.

        Returns
        -------
        Path
        """
        buffer = io.BytesIO()
        data = self.data.assign_attrs({KIND: type(self).__name__})
        storable(data).to_netcdf(buffer, engine="h5netcdf")
        target = Path(path)
        write_atomically(target, buffer.getvalue())
        return target

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """Read what :meth:`save` wrote. Nothing is unpickled.

        Raises
        ------
        ResultsError
            If there is no such file, or it holds something else.
        """
        try:
            with xr.open_dataset(Path(path), engine="h5netcdf") as stored:
                data = stored.load()
        except (OSError, ValueError) as error:
            raise ResultsError(f"{path} cannot be read: {error}.") from error
        if data.attrs.get(KIND) != cls.__name__:
            raise ResultsError(
                f"{path} holds {data.attrs.get(KIND, 'something')!r}, not {cls.__name__}. Load it "
                "with the class that saved it."
            )
        return cls(data)

    @property
    def graph(self) -> Graph:
        """The senders, receivers and edges that the numbers are of."""
        return graph_of(self.data)


def graph_text(graph: Graph) -> str:
    """A graph as JSON."""
    blocks = [[b.layer, b.n_heads, b.n_kv, int(b.parallel)] for b in graph.blocks]
    return json.dumps({"depth": graph.depth, "blocks": blocks})


def graph_of(data: xr.Dataset) -> Graph:
    """Read the graph of a result."""
    told = json.loads(data.attrs[GRAPH])
    blocks = [
        BlockNodes(layer, heads, kv, bool(beside)) for layer, heads, kv, beside in told["blocks"]
    ]
    return Graph(blocks, told["depth"])


@dataclass(frozen=True)
class Circuit:
    """Some edges of a model.

    Attributes
    ----------
    graph : Graph
    edges : ndarray of int
        Their numbers, sorted.
    scores : ndarray [edge]
        Of these; NaN where the circuit was not made of scores.
    """

    graph: Graph
    edges: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.edges)

    def __repr__(self) -> str:
        return f"<Circuit: {len(self)} of {len(self.graph.edges)} edges>"

    @property
    def names(self) -> list[str]:
        """Names of the edges, such as ``"L3.H5->L7.H2.q"``."""
        return [self.graph.name(edge) for edge in self.edges]

    @property
    def nodes(self) -> list[str]:
        """Names of the senders that have an edge, from below."""
        senders = sorted({*self.graph.edges[self.edges, 0].tolist()})
        return [str(self.graph.senders[sender]) for sender in senders]

    def table(self) -> pd.DataFrame:
        """Edges by size of their score: ``sender``, ``receiver``, ``score``."""
        pairs = self.graph.edges[self.edges]
        table = pd.DataFrame(
            {
                "sender": [str(self.graph.senders[s]) for s in pairs[:, 0]],
                "receiver": [str(self.graph.receivers[r]) for r in pairs[:, 1]],
                "score": self.scores,
            },
            index=pd.Index(self.edges, name="edge"),
        )
        return table.iloc[np.argsort(-np.abs(np.nan_to_num(self.scores)), kind="stable")]

    def draw(self, *, title: str | None = None) -> "Figure":
        """Draw the circuit: layers upward, wider edges for larger scores."""
        from interventions.circuits.drawing import draw_circuit

        return draw_circuit(self.graph, self.edges, self.scores, title=title)


class EdgeScores(Stored):
    """What :func:`interventions.attribute_edges` gives.

    Attributes
    ----------
    data : Dataset
        ``score`` (item, edge), or (item, edge, role): estimated change of the metric when the
        edge carries the source, in the metric's unit. ``sender`` and ``receiver`` (edge): numbers
        of its ends in :attr:`graph`. ``run_metric``, ``source_metric`` (item). What
        :func:`interventions.verify_edges` adds.
    """

    @property
    def per_item(self) -> np.ndarray:
        """Scores of every item, summed over roles, [item, edge]."""
        score = self.data["score"]
        return (score.sum("role") if "role" in score.dims else score).values

    @property
    def mean(self) -> np.ndarray:
        """Mean over items, [edge]."""
        return self.per_item.mean(0, dtype=float)

    def circuit(
        self, n: int | None = None, *, threshold: float | None = None, prune: bool = True
    ) -> Circuit:
        """Return the edges of the largest scores, of either sign.

        Parameters
        ----------
        n : int, optional
            So many edges.
        threshold : float, optional
            Or those whose mean score is at least this far from 0, in the metric's unit.
        prune : bool
            Leave out edges that lie on no path from the input to the logits: they do nothing.

        Raises
        ------
        ResultsError
            If not exactly one of ``n`` and ``threshold`` is given.
        """
        if (n is None) == (threshold is None):
            raise ResultsError("give one of n= (so many edges) and threshold= (a score), not both.")
        size = np.abs(self.mean)
        if n is not None:
            n = whole(n, "n", least=0, error=ResultsError)
            chosen = np.sort(np.argsort(-size, kind="stable")[:n])
        else:
            least = number(threshold, "threshold", least=0.0, error=ResultsError)
            chosen = np.flatnonzero(size >= least)
        graph = self.graph
        if prune:
            chosen = graph.pruned(chosen)
        return Circuit(graph, chosen, self.mean[chosen])

    def table(self, n: int = 20) -> pd.DataFrame:
        """Return the edges of the largest scores: ``sender``, ``receiver``, ``score``."""
        return self.circuit(n, prune=False).table()

    def statistics(
        self, *, clusters: Sequence[Any] | None = None, correction: Correction = "max"
    ) -> pd.DataFrame:
        """What so many items can show of each edge, the clearest first.

        Parameters
        ----------
        clusters, correction
            As of :func:`interventions.cell_statistics`; corrected over all edges.

        Returns
        -------
        DataFrame
            By edge: ``sender``, ``receiver``, ``change`` (mean score) with its 95 % interval
            ``low`` and ``high``, ``p``, ``p_map``, ``clear`` and ``n``.

        Raises
        ------
        ResultsError
            If there are fewer than six clusters.
        """
        score = self.data.assign(score=(("item", "edge"), self.per_item))[["score"]]
        by_edge = cell_statistics(score, "score", clusters=clusters, correction=correction)
        graph = self.graph
        ends = {
            "sender": [str(graph.senders[s]) for s, _ in graph.edges],
            "receiver": [str(graph.receivers[r]) for _, r in graph.edges],
        }
        frame = by_edge.reset_coords(drop=True).to_dataframe()
        frame = pd.concat([pd.DataFrame(ends, index=frame.index), frame], axis=1)
        return frame.sort_values(["p_map", "p"], kind="stable")

    def to_dataframe(self) -> pd.DataFrame:
        """Return every item's score of every edge (and role), one a line."""
        frame = self.data["score"].to_dataframe().reset_index()
        graph = self.graph
        senders = np.array([str(node) for node in graph.senders], dtype=object)
        receivers = np.array([str(node) for node in graph.receivers], dtype=object)
        pairs = graph.edges[frame["edge"]]
        extra = ["role"] if "role" in frame else []
        frame = frame.assign(sender=senders[pairs[:, 0]], receiver=receivers[pairs[:, 1]])
        return frame.loc[:, ["item", "edge", "sender", "receiver", *extra, "score"]]


def numbers_in(graph: Graph, circuit: Any) -> np.ndarray:
    """The edges of a circuit of the same graph.

    Raises
    ------
    SiteError
        If it is one of another graph.
    """
    of_kind(circuit, Circuit, "a circuit", error=SiteError)
    if circuit.graph != graph:
        raise SiteError("the circuit is one of a model with other blocks or heads.")
    return circuit.edges
