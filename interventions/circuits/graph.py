"""Which parts of a model write to the residual stream, which read it, and the edges between them.

A *sender* writes: the input (what enters the first block), a head, an attention that has no heads
to be told apart, an MLP. A *receiver* reads: queries, keys or values of a head, a whole attention,
an MLP, the logits. An edge leads from a sender to every receiver that is computed after it. Where
attention and MLP of a block run side by side, no edge leads from one to the other.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from typing import Literal

import numpy as np

from interventions.errors import SiteError
from interventions.returnable import returnable

Kind = Literal["input", "head", "attn", "mlp", "logits"]
Part = Literal["q", "k", "v", ""]
ARROW = "->"
MOST_TRIES = 20
PARTS: tuple[Part, ...] = ("q", "k", "v")


@returnable
@dataclass(frozen=True)
class BlockNodes:
    """What one block has of senders and receivers.

    Attributes
    ----------
    layer : int
    n_heads : int
        Heads that write; 0: attention is one sender.
    n_kv : int
        Heads that have keys and values to be read into; 0: attention reads as one.
    parallel : bool
        Attention and MLP read the same residual stream.
    """

    layer: int
    n_heads: int
    n_kv: int
    parallel: bool


@dataclass(frozen=True)
class Node:
    """A sender or receiver: ``input``, ``L3.H5``, ``L3.attn``, ``L3.mlp``, ``L3.H5.q``, ``logits``.

    Attributes
    ----------
    kind : str
    layer : int
        -1 for the input; the number of blocks for the logits.
    head : int
        -1 where there is none; of keys and values, which of theirs.
    part : str
        ``"q"``, ``"k"``, ``"v"`` of a receiver that is part of a head.
    shared : bool
        Several heads have these keys or values: ``L3.KV1.k``.
    """

    kind: Kind
    layer: int
    head: int = -1
    part: Part = ""
    shared: bool = False

    def __str__(self) -> str:
        if self.kind in ("input", "logits"):
            return self.kind
        if self.kind != "head":
            return f"L{self.layer}.{self.kind}"
        group = "KV" if self.shared else "H"
        return f"L{self.layer}.{group}{self.head}" + (f".{self.part}" if self.part else "")


@returnable
@dataclass(frozen=True)
class Graph:
    """The senders, receivers and edges of a model.

    Attributes
    ----------
    blocks : list of BlockNodes
        From below; those that run.
    depth : int
        Number of blocks of the model.
    """

    blocks: list[BlockNodes]
    depth: int

    @cached_property
    def senders(self) -> list[Node]:
        """All that writes, from below."""
        nodes = [Node("input", -1)]
        for block in self.blocks:
            heads = [Node("head", block.layer, head) for head in range(block.n_heads)]
            nodes += heads or [Node("attn", block.layer)]
            nodes.append(Node("mlp", block.layer))
        return nodes

    @cached_property
    def receivers(self) -> list[Node]:
        """All that reads, from below; of a block queries, keys, values, then the MLP."""
        nodes = []
        for block in self.blocks:
            for part in PARTS if block.n_kv else ():
                heads = block.n_heads if part == "q" else block.n_kv
                shared = part != "q" and block.n_kv != block.n_heads
                nodes += [Node("head", block.layer, i, part, shared) for i in range(heads)]
            if not block.n_kv:
                nodes.append(Node("attn", block.layer))
            nodes.append(Node("mlp", block.layer))
        return [*nodes, Node("logits", self.depth)]

    @cached_property
    def n_before(self) -> np.ndarray:
        """How many of the senders are computed before each receiver, [receiver]."""
        before = []
        count = 1
        for block in self.blocks:
            below, heads = count, max(1, block.n_heads)
            reading = block.n_heads + 2 * block.n_kv if block.n_kv else 1
            before += [below] * reading + [below if block.parallel else below + heads]
            count = below + heads + 1
        return np.array([*before, count])

    @cached_property
    def edges(self) -> np.ndarray:
        """Every edge as (sender, receiver), by receiver, then sender, [edge, 2]."""
        return np.array(
            [(s, r) for r, before in enumerate(self.n_before) for s in range(before)], dtype=int
        )

    @cached_property
    def starts(self) -> np.ndarray:
        """Number of the first edge into each receiver, [receiver]."""
        return np.concatenate([[0], self.n_before.cumsum()[:-1]])

    @cached_property
    def feeds(self) -> list[list[int]]:
        """The senders that each receiver is part of, [receiver][n]; the logits are part of none."""
        place = {node: i for i, node in enumerate(self.senders)}
        blocks = {block.layer: block for block in self.blocks}
        fed = []
        for node in self.receivers:
            if node.kind == "logits":
                fed.append([])
                continue
            block = blocks[node.layer]
            heads: Iterable[int] = range(block.n_heads)
            if node.kind == "head":
                share = block.n_heads // block.n_kv if node.part != "q" else 1
                heads = range(node.head * share, (node.head + 1) * share)
            if node.kind == "mlp" or (node.kind == "attn" and not block.n_heads):
                fed.append([place[Node(node.kind, node.layer)]])
            else:
                fed.append([place[Node("head", node.layer, head)] for head in heads])
        return fed

    def name(self, edge: int) -> str:
        """Return the name of an edge, such as ``"L3.H5->L7.H2.q"``."""
        sender, receiver = self.edges[edge]
        return f"{self.senders[sender]}{ARROW}{self.receivers[receiver]}"

    def number(self, name: str) -> int:
        """Return which edge a name stands for.

        Raises
        ------
        SiteError
            If there is no such edge.
        """
        sent, arrow, read = name.partition(ARROW)
        senders = {str(node): i for i, node in enumerate(self.senders)}
        receivers = {str(node): i for i, node in enumerate(self.receivers)}
        if not arrow or sent not in senders or read not in receivers:
            wrong, known = (read, receivers) if sent in senders else (sent, senders)
            near = get_close_matches(wrong, known, n=4, cutoff=0.4) or [*known][:4]
            raise SiteError(
                f"there is no edge {name!r}. Expected SENDER{ARROW}RECEIVER, such as "
                f"'{self.name(len(self.edges) - 1)}'; near {wrong!r} are {', '.join(near)}."
            )
        if senders[sent] >= self.n_before[receivers[read]]:
            raise SiteError(
                f"no edge leads from {sent} to {read}, which is computed before it, or beside it. "
                "Name an edge that leads upward."
            )
        return int(self.starts[receivers[read]] + senders[sent])

    def matrix(self, edges: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return edges as a mask, [receiver, sender], bool."""
        mask = np.zeros((len(self.receivers), len(self.senders)), dtype=bool)
        chosen = self.edges[np.asarray(edges, dtype=int)]
        mask[chosen[:, 1], chosen[:, 0]] = True
        return mask

    def whole(self) -> np.ndarray:
        """All edges as a mask, [receiver, sender], bool."""
        return np.arange(len(self.senders))[None] < self.n_before[:, None]

    def pruned(self, edges: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the edges that lie on a path from the input to the logits, [edge].

        The others change nothing where all else carries another run: what they come from is
        then what it is in that run, or what they lead to is not read.
        """
        mask = self.matrix(edges)
        reached = np.zeros(len(self.senders), dtype=bool)
        reached[0] = True
        for r, fed in enumerate(self.feeds):  # from below, so that senders are known by then
            mask[r] &= reached
            if mask[r].any():
                reached[fed] = True
        leads = np.zeros(len(self.senders), dtype=bool)
        for r in reversed(range(len(self.receivers))):
            if self.feeds[r] and not leads[self.feeds[r]].any():
                mask[r] = False
            leads |= mask[r]
        return np.flatnonzero(mask[self.edges[:, 1], self.edges[:, 0]])

    def connected(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draw ``n`` edges at random that lie on paths from the input to the logits, [edge].

        Paths are drawn from the logits down until they have as many edges, and the rest among the
        nodes that are there.
        """
        n = min(n, len(self.edges))
        chosen: set[int] = set()
        for _ in range(MOST_TRIES):
            chosen = self._paths(n, rng)
            chosen |= {*self._among(chosen, n - len(chosen), rng)}
            if len(chosen) == n:
                break
        if left := n - len(chosen):
            others = np.setdiff1d(np.arange(len(self.edges)), [*chosen])
            chosen |= {*rng.choice(others, left, replace=False).tolist()}
        return np.array(sorted(chosen), dtype=int)

    @cached_property
    def _readers(self) -> dict[int, list[int]]:
        """The receivers that each sender has, by the sender's number."""
        readers: dict[int, list[int]] = {}
        for r, fed in enumerate(self.feeds):
            for s in fed:
                readers.setdefault(s, []).append(r)
        return readers

    def _paths(self, n: int, rng: np.random.Generator) -> set[int]:
        """Edges of random paths, as many as fit into ``n``."""
        chosen: set[int] = set()
        misses = 0
        while len(chosen) < n and misses < MOST_TRIES:
            path: list[int] = []
            receiver, sender = len(self.receivers) - 1, -1
            while sender != 0:
                sender = int(rng.integers(self.n_before[receiver]))
                path.append(int(self.starts[receiver] + sender))
                receiver = int(rng.choice(self._readers[sender])) if sender else receiver
            fits = len(chosen | {*path}) <= n
            misses += not fits
            if fits:
                chosen |= {*path}
        return chosen

    def _among(self, chosen: set[int], n: int, rng: np.random.Generator) -> list[int]:
        """Up to ``n`` more edges between nodes that chosen edges join."""
        if not chosen or not n:
            return []
        inside = self.edges[[*chosen]]
        there = np.isin(self.edges[:, 0], inside[:, 0]) & np.isin(self.edges[:, 1], inside[:, 1])
        more = np.setdiff1d(np.flatnonzero(there), [*chosen])
        return rng.choice(more, min(n, len(more)), replace=False).tolist()
