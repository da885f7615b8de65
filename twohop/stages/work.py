"""What a stage lets go through a model, counted before it is run: rows, tokens, forward passes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from interventions.running.budget import MOST_TOKENS
from interventions.sweeping.schedule import Path, parts_of
from interventions.sweeping.sizes import Sizes
from twohop.ask.room import Kind
from twohop.stages.patched import GROUP_ROWS

GRADIENT = 3
"""Forward passes that one with gradients costs as much as."""
Role = Literal["vlm", "backbone"]


@dataclass(frozen=True)
class Lengths:
    """Prompts that share what is ahead of them, by their tokens.

    Attributes
    ----------
    rows : tuple of int
        Tokens of each row behind what is shared, the shortest first.
    before : int
        Tokens that are shared, and run once.
    ahead : int
        Of a row's, before its entity: the name, or the picture.
    behind : int
        Of a row's, from the entity's last on.
    pictured : bool
    path : {"suffix", "rows", "plain"}
        How much of them runs again for a patch: :func:`interventions.sweeping.schedule.path_of`.
    sent : int
        Bytes of a row's tokens and picture.
    """

    rows: tuple[int, ...]
    before: int
    ahead: int
    behind: int
    pictured: bool = False
    path: Path = "suffix"
    sent: int = 0

    def sample(self, n: int) -> "Lengths":
        """Return ``n`` of the rows, as even as can be; each as often as it takes."""
        have = len(self.rows)
        if not have:
            return self
        return replace(self, rows=tuple(self.rows[i * have // n] for i in range(n)))

    def batches(self, most: int) -> list[tuple[int, int]]:
        """Rows of like length together: how many, and the tokens of the longest."""
        most = max(1, most)
        return [
            (len(part), part[-1])
            for part in (self.rows[i : i + most] for i in range(0, len(self.rows), most))
        ]


@dataclass(frozen=True)
class Work:
    """Forward passes of one model.

    Attributes
    ----------
    role : {"vlm", "backbone"}
    kind : str
        As in :func:`twohop.ask.room.row_needs`.
    tokens : int
        Tokens through blocks: those of a pass, times the blocks that it runs.
    passes : int
        Forward passes; one with gradients counts as three.
    more : int
        Tokens through blocks that gradients cost as much as, beside those.
    rows : int
        That run together, at most.
    width, before : int
        Tokens of the longest, and those that are shared ahead.
    pictures : int
        That go through the vision tower.
    sent : int
        Bytes of the prompts, which go to a server.
    """

    role: Role
    kind: Kind
    tokens: int
    passes: int
    rows: int
    width: int
    before: int
    pictures: int = 0
    more: int = 0
    sent: int = 0


@dataclass(frozen=True)
class Asked:
    """A model that is asked, and the tokens that one pass of it has room for.

    Attributes
    ----------
    role : {"vlm", "backbone"}
    sizes : Sizes
    device : str
        Its kind, such as ``"cuda"``.
    blocks : int
        Those that run without a picture: not those that only attend to one.
    vision : int
        Parameters of vision tower and projector.
    patches : int
        Tokens of a picture that go through them.
    """

    role: Role
    sizes: Sizes
    device: str
    blocks: int
    vision: int = 0
    patches: int = 0

    def layers(self, lengths: Lengths) -> int:
        """Blocks that run."""
        return self.sizes.n_layers if lengths.pictured else self.blocks

    def work(self, kind: Kind, lengths: Lengths, **counted: int) -> Work:
        """Return work on these prompts; ``counted`` as in :class:`Work`."""
        n = len(lengths.rows)
        return Work(
            self.role,
            kind,
            **{
                "tokens": 0,
                "passes": 0,
                "rows": n,
                "width": max(lengths.rows, default=0),
                "before": lengths.before,
                "pictures": n if lengths.pictured else 0,
                "sent": n * lengths.sent,
                **counted,
            },
        )

    def reading(self, lengths: Lengths, *, most: int | None = None, share: float = 1.0) -> Work:
        """States are read; ``share`` of the blocks is run."""
        batches = lengths.batches(most or len(lengths.rows))
        tokens = lengths.before + sum(n * width for n, width in batches)
        return self.work(
            "read",
            lengths,
            tokens=round(share * self.layers(lengths) * tokens),
            passes=1 + len(batches),
            rows=max((n for n, _ in batches), default=0),
        )

    def answering(
        self, lengths: Lengths, *, steps: int, most: int, beginnings: int = 0, tries: int = 1
    ) -> Work:
        """Rows are answered.

        Parameters
        ----------
        lengths : Lengths
        steps : int
            Tokens that are generated and fed again.
        most : int
            Rows that run together.
        beginnings : int
            Tokens of candidates that are fed to each row.
        tries : int
            Patched variants of each row.
        """
        batches = lengths.sample(tries * len(lengths.rows)).batches(most)
        tokens = lengths.before + sum(n * (width + steps + beginnings) for n, width in batches)
        n = sum(n for n, _ in batches)
        return self.work(
            "answers",
            lengths,
            tokens=self.layers(lengths) * tokens,
            passes=1 + len(batches) * (1 + steps + bool(beginnings)),
            rows=max((n for n, _ in batches), default=0),
            width=max(lengths.rows, default=0) + steps,
            pictures=n if lengths.pictured else 0,
        )

    def cells(
        self,
        lengths: Lengths,
        starts: Sequence[tuple[int, int]],
        *,
        answer: int = 1,
        bare: bool = True,
    ) -> Work:
        """Cells are run on every row.

        Parameters
        ----------
        lengths : Lengths
        starts : sequence of (int, int)
            Of each cell, the first block that it changes the input of, and how many tokens of a
            row it changes, counted from the end of the prompt.
        answer : int
            Tokens of the longest answer that is scored behind the prompt.
        bare : bool
            Whether rows are also run without a patch, apart from what cells start from.
        """
        n_layers, tokens, passes = self.layers(lengths), lengths.before * self.layers(lengths), 1
        room = MOST_TOKENS.get(self.device, MOST_TOKENS["cpu"])
        by_block: dict[int, list[int]] = {}
        for block, length in starts:
            by_block.setdefault(0 if lengths.path == "plain" else block, []).append(length)
        for n, longest in lengths.batches(GROUP_ROWS):
            width = longest + answer - 1
            clean = int(bare) + int(bool(starts) and lengths.path != "plain")
            tokens += clean * n * width * n_layers
            passes += clean
            for block, changed in by_block.items():
                if lengths.path == "suffix":
                    at = sorted(max(0, longest - length) for length in changed)
                    overhead = self.sizes.pass_tokens(self.device)
                    groups = [at[part] for part in parts_of(at, n, width, overhead)]
                else:
                    groups = [[0] * len(changed)]
                for group in groups:
                    through = len(group) * n * (width - group[0])
                    tokens += through * (n_layers - block)
                    passes += -(-through // room)
        width = max(lengths.rows, default=0) + answer - 1
        rows = min(GROUP_ROWS, len(lengths.rows))
        pictures = len(lengths.rows) * (1 + bool(starts)) if lengths.pictured else 0
        if lengths.path == "plain":
            pictures = len(lengths.rows) * (len(starts) + 1) if lengths.pictured else 0
        return self.work(
            "cells",
            lengths,
            tokens=tokens,
            passes=passes,
            rows=rows,
            width=width,
            pictures=pictures,
        )

    def gradients(self, lengths: Lengths, *, most: int, forward: int, backward: int) -> Work:
        """Rows run forward so many times, and so many times forward and back."""
        batches = lengths.batches(most)
        # What is shared is run again with every batch, and rows are as they come.
        n, longest = len(lengths.rows), max(lengths.rows, default=0)
        tokens = len(batches) * lengths.before + n * longest
        return self.work(
            "backward",
            lengths,
            tokens=self.layers(lengths) * (forward + backward) * tokens,
            more=self.layers(lengths) * (GRADIENT - 1) * backward * tokens,
            passes=len(batches) * (forward + GRADIENT * backward),
            rows=max((n for n, _ in batches), default=0),
            pictures=n * (forward + backward) if lengths.pictured else 0,
        )
