"""One forward pass in which chosen edges carry what their senders write in another run.

Each receiver reads the residual stream of this run, plus, for every edge into it that carries
another run, what the sender writes there minus what it writes here. Norms, projections and
everything behind them are computed anew from that; the stream itself goes on as it was.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import nnsight
import torch

from interventions.circuits.graph import PARTS
from interventions.circuits.layout import Entry, Layout
from interventions.circuits.nodes import (
    attention_writes,
    head_inputs,
    mlp_input,
    normed,
    scale_of,
)
from interventions.model.model import Model
from interventions.model.sites import rank_of
from interventions.prompt.positions import Positions, Readout, answered_at, write_at
from interventions.prompt.prompt import Prompt
from interventions.running.patches import Patch


@dataclass(frozen=True)
class Written:
    """What the senders of a run wrote, in the form in which it takes the least room.

    Attributes
    ----------
    added : dict of int to Tensor [row, position, d_model]
        What enters the stream before a block and is no block's: at the first the embeddings.
    heads : dict of int to Tensor [row, position, head * head_dim]
        Results of the heads, of blocks whose heads write.
    attention, mlp : dict of int to Tensor [row, position, d_model]
        What each of the two adds to the stream.
    """

    added: dict[int, torch.Tensor]
    heads: dict[int, torch.Tensor]
    attention: dict[int, torch.Tensor]
    mlp: dict[int, torch.Tensor]

    def moved(self, source: Positions, run: Positions) -> "Written":
        """The values at some tokens, laid where other tokens are in another prompt.

        What is at the others is 0 and is not to be looked at.
        """
        rows = torch.arange(run.n_rows)[:, None]

        def lay(value: torch.Tensor) -> torch.Tensor:
            mask = run.mask
            at = (rows.expand_as(mask)[mask], run.index[mask])
            laid = value.new_zeros(len(value), run.length, value.shape[-1])
            laid[at] = value[at[0], source.index[mask]]
            return laid

        parts = (self.added, self.heads, self.attention, self.mlp)
        return Written(*({layer: lay(part[layer]) for layer in part} for part in parts))

    def repeated(self, n_copies: int) -> "Written":
        """The values with all rows so many times behind one another."""
        parts = (self.added, self.heads, self.attention, self.mlp)
        return Written(
            *({k: value.repeat(n_copies, 1, 1) for k, value in part.items()} for part in parts)
        )


@dataclass(frozen=True)
class Carry:
    """Edges that carry another run.

    Attributes
    ----------
    edges : Tensor [copy, receiver, sender], bool
        For each of the copies of the rows that run together, one behind the other.
    written : Written
        Of the other run, at this prompt's tokens, for the rows of one copy.
    where : Tensor [row, position], bool
        At which tokens of a copy's rows they do.
    """

    edges: torch.Tensor
    written: Written
    where: torch.Tensor


class Difference:
    """What senders write in another run minus what they write here, as far as it is known."""

    def __init__(self, layout: Layout, carry: Carry, like: torch.Tensor) -> None:
        self.copies = len(carry.edges)
        self.edges = carry.edges.to(like.device)
        self.used = carry.edges.any(0).any(1).tolist()
        self.written = carry.written
        self.where = carry.where.to(like.device).repeat(self.copies, 1)[..., None]
        self.known = 1  # the input is the first
        self.values = like.new_zeros(len(layout.graph.senders), *like.shape)

    def _there(self, value: torch.Tensor) -> torch.Tensor:
        return value.to(self.values.device).repeat(self.copies, 1, 1)

    def _masked(self, value: torch.Tensor) -> torch.Tensor:
        return torch.where(self.where, value, 0)

    def add_input(self, layer: int, added: torch.Tensor | None) -> None:
        """Count what enters the stream before a block and is no block's."""
        there = self.written.added.get(layer)
        if added is None or there is None:
            return
        self._follow(added.device)
        self.values[0] += self._masked(self._there(there) - added)

    def add_attention(
        self, model: Model, entry: Entry, heads: torch.Tensor | None, here: torch.Tensor
    ) -> None:
        """Count ``here`` [sender, row, position, d_model], what is written in this run."""
        self._follow(here.device)
        layer = entry.layer
        results = None if heads is None else self.written.heads[layer].to(heads.device)
        total = self.written.attention[layer].to(here.device)
        there = attention_writes(model, entry, results, total).repeat(1, self.copies, 1, 1)
        self._append(there - here)

    def add_mlp(self, layer: int, here: torch.Tensor) -> None:
        """Count what an MLP adds in this run."""
        self._follow(here.device)
        self._append((self._there(self.written.mlp[layer]) - here)[None])

    def scale(self, factor: torch.Tensor) -> None:
        """Multiply all so far, as a block does with the stream."""
        self.values[: self.known] *= factor.to(self.values.device)

    def of(self, receivers: Sequence[int], like: torch.Tensor) -> torch.Tensor:
        """What changes for each of some receivers, [receiver, row, position, d_model]."""
        self._follow(like.device)
        weights = self.edges[:, list(receivers), : self.known].to(self.values.dtype)
        values = self.values[: self.known].unflatten(1, (self.copies, -1))
        return torch.einsum("krs,sknpd->rknpd", weights, values).flatten(1, 2)

    def _append(self, change: torch.Tensor) -> None:
        self.values[self.known : self.known + len(change)] = self._masked(change)
        self.known += len(change)

    def _follow(self, device: torch.device) -> None:
        """Go to the device of the block at hand, where blocks lie on several."""
        self.values, self.where = self.values.to(device), self.where.to(device)
        self.edges = self.edges.to(device)


@dataclass(frozen=True)
class Flow:
    """What one pass gave.

    Attributes
    ----------
    logits : Tensor [row, token, vocab]
        Behind them what the final norm is given, [.., vocab + d_model], for a ``Readout``.
    written : Written or None
    streams : list of Tensor [row, position, d_model]
        What each receiver reads where nothing is carried: of every block what enters it and what
        its MLP reads, then what the final norm reads. Where asked for.
    """

    logits: torch.Tensor
    written: Written | None
    streams: list[torch.Tensor]


def flow(
    model: Model,
    layout: Layout,
    prompt: Prompt,
    at: Positions,
    *,
    before: Sequence[Patch] = (),
    carries: Sequence[Carry] = (),
    keep: bool = False,
    streams: bool = False,
) -> Flow:
    """Run a prompt, with edges that carry other runs.

    Parameters
    ----------
    model : Model
    layout : Layout
    prompt : Prompt
        Of several copies, one behind the other, where carries have several.
    at : Positions
        Where logits are wanted.
    before : sequence of Patch
        Written into what enters the first block.
    carries : sequence of Carry
    keep, streams : bool
        Keep what senders write, and what receivers read.
    """
    kept = prompt.length - int(at.index[at.mask].min())
    passing = Passing(model, layout, carries, keep=keep, streams=streams)
    with (
        torch.no_grad(),
        model.trace(prompt, logits_to_keep=kept, use_cache=False),
    ):
        passing.go(before)
        written = nnsight.save(passing.written)
        read = nnsight.save(passing.read)
        model.head.input = model.head.input.contiguous()  # as in interventions.run
        logits = model.nn.output.logits
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        final = passing.final if isinstance(at, Readout) else None
        answered = nnsight.save(answered_at(logits, at, prompt.length - kept, final))
    parts: list[dict[int, Any]] = written
    return Flow(answered, Written(*parts) if keep else None, read)


class Passing:
    """A pass on its way up the blocks."""

    def __init__(
        self,
        model: Model,
        layout: Layout,
        carries: Sequence[Carry],
        *,
        keep: bool,
        streams: bool,
    ) -> None:
        self.model, self.layout, self.carries = model, layout, carries
        self.keep, self.streams = keep, streams
        self.written: list[dict[int, torch.Tensor]] = [{}, {}, {}, {}]
        self.read: list[torch.Tensor] = []
        self.differences: list[Difference] = []
        self.receiver = 0
        self.final = torch.empty(0)  # what the final norm is given

    def go(self, before: Sequence[Patch]) -> None:
        """Follow the forward pass that runs to the final norm."""
        model = self.model
        above: torch.Tensor | None = None
        for entry in self.layout.entries:
            block = model.blocks[entry.layer]
            hidden = block.input
            added: torch.Tensor | None = None
            if above is None:
                for patch in before:
                    hidden = write_at(hidden, patch.positions, patch.value)
                if before:
                    block.input = hidden
                added = hidden
                self.differences = [Difference(self.layout, c, hidden) for c in self.carries]
            elif model.anatomy.added_between and model.running_images:
                added = hidden - above.to(hidden.device)
            if added is not None:
                self._keep(0, entry.layer, added)
            for difference in self.differences:
                difference.add_input(entry.layer, added)
            above = self._block(entry, block, hidden)
        hidden = model.final_norm.input
        self._read(hidden)
        change = self._change([self.receiver], hidden)
        self.final = hidden if change is None else hidden + change[0]
        if change is not None:
            model.final_norm.input = self.final

    def _block(self, entry: Entry, block: Any, hidden: torch.Tensor) -> torch.Tensor | None:
        model, layer = self.model, entry.layer
        self._read(hidden)
        self._attend(entry, block, hidden)
        heads = model.head_out.live(layer) if entry.heads else None
        total = model.attn_out.live(layer)
        middle = hidden
        if not entry.parallel:
            reader = block.get(entry.mlp if entry.mlp_norm is None else entry.mlp_norm)
            middle = reader.input.reshape(hidden.shape)
        if entry.measured:
            total = middle - hidden.to(middle.device)
        if heads is not None:
            self._keep(1, layer, heads)
        self._keep(2, layer, total)
        if self.differences:
            here = attention_writes(model, entry, heads, total)
            for difference in self.differences:
                difference.add_attention(model, entry, heads, here)
        self._read(middle)
        change = self._change([self.receiver], middle)
        self.receiver += 1
        if change is not None:
            part = block.get(entry.mlp)
            new = mlp_input(model, entry, middle + change[0])
            part.input = new.reshape(part.input.shape)
        result = model.mlp_out.live(layer)
        above = None
        if entry.measured or (model.anatomy.added_between and model.running_images):
            above = block.output
            above = above[0] if isinstance(above, tuple) else above
        if entry.measured:
            assert above is not None
            result = above - middle.to(above.device)
        self._keep(3, layer, result)
        factor = scale_of(model, entry)
        for difference in self.differences:
            difference.add_mlp(layer, result)
            if factor is not None:
                difference.scale(factor)
        return above if above is not None else hidden

    def _attend(self, entry: Entry, block: Any, hidden: torch.Tensor) -> None:
        """Let attention, or each of its heads, read what it is carried."""
        model, layer = self.model, entry.layer
        if not entry.projections:
            change = self._change([self.receiver], hidden)
            self.receiver += 1
            if change is not None:
                block.get(entry.attention).input = normed(
                    model, entry, entry.attention_norm, hidden + change[0]
                )
            return
        first: dict[str, int] = {}
        for part in PARTS:
            first[part] = self.receiver
            self.receiver += entry.projections[part].heads
        for part in sorted(PARTS, key=lambda part: rank_of(model, part, layer)):  # pyright: ignore
            projection = entry.projections[part]
            used = [
                head
                for head in range(projection.heads)
                if any(difference.used[first[part] + head] for difference in self.differences)
            ]
            change = self._change([first[part] + head for head in used], hidden)
            if change is None:
                continue
            new = head_inputs(model, entry, projection, used, hidden + change)
            stream = getattr(model, part)
            value = stream.live(layer).unflatten(-1, (projection.heads, -1)).clone()
            value[:, :, used] = new.to(value.dtype)
            stream.replace(layer, value.flatten(2))

    def _change(self, receivers: list[int], like: torch.Tensor) -> torch.Tensor | None:
        """What is carried to some receivers; None if nothing is."""
        carried = [d for d in self.differences if any(d.used[r] for r in receivers)]
        if not receivers or not carried:
            return None
        change = carried[0].of(receivers, like)
        for difference in carried[1:]:
            change = change + difference.of(receivers, like)
        return change

    def _keep(self, part: int, layer: int, value: torch.Tensor) -> None:
        if self.keep:
            self.written[part][layer] = value.detach().clone()

    def _read(self, value: torch.Tensor) -> None:
        if self.streams:
            self.read.append(value.detach().clone())
