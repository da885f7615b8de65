"""At which tokens edges carry another run, and which column of scores each token counts for."""

from dataclasses import dataclass

import torch

from interventions.attribution.sides import Scored, scored
from interventions.prompt.positions import Positions
from interventions.sweeping.contrast import Contrast, prompt_of

ANSWER = "answer"


@dataclass(frozen=True)
class Places:
    """Tokens that correspond, in both runs as they are run, rows repeated for foils.

    Attributes
    ----------
    run, source : Positions
    column : Tensor [row, n]
        Which column each is of.
    names : list of str
        Of the columns.
    """

    run: Positions
    source: Positions
    column: torch.Tensor
    names: list[str]


def places_of(contrast: Contrast, *, columns: bool) -> Places:
    """Return the tokens of all columns, and the answers' own where these are the whole prompt.

    An answer of several tokens is run behind the prompt. Its tokens see what edges carry to the
    prompt's, so edges among all tokens are edges at these as well: a column of their own.

    Parameters
    ----------
    contrast : Contrast
    columns : bool
        False: one column for all.
    """
    run, source = scored(contrast, "run"), scored(contrast, "source")
    column = contrast.columns.flat()[1].repeat(contrast.target.repeats, 1)
    names = [*contrast.columns.names]
    sides: tuple[Scored, Scored] = (run, source)
    places = [side.at for side in sides]
    whole = int(contrast.columns.flat()[2].sum()) == int(contrast.prompt.lengths.sum())
    other = contrast.source
    lengths = [contrast.prompt.length, prompt_of(other).length]  # pyright: ignore[reportArgumentType]
    behind = run.prompt.length - lengths[0]
    if whole and behind:
        mask = run.prompt.inputs["attention_mask"][:, -behind:].bool()
        places = [
            _with(at, torch.arange(length, length + behind), mask)
            for at, length in zip(places, lengths, strict=True)
        ]
        column = torch.cat([column, torch.full(mask.shape, len(names))], 1)
        names.append(ANSWER)
    if not columns:
        return Places(places[0], places[1], torch.zeros_like(column), [""])
    return Places(places[0], places[1], column, names)


def _with(at: Positions, tokens: torch.Tensor, mask: torch.Tensor) -> Positions:
    """Positions with more behind them, the same in every row."""
    index = torch.cat([at.index, tokens.expand(len(at.index), -1)], 1)
    return Positions(index, torch.cat([at.mask, mask], 1), at.length, False, at.role)
