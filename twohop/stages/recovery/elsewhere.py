"""Arms that write at a place found on other entities, and the same at random places.

Ours: block outputs at the one token where exact patching raises the answer's probability most. The
paper's: MLP outputs into a span found by attribution, see :mod:`twohop.stages.recovery.spans`. Both
are found on one half of the entities and scored on the other, and the other way round, so that
every item is scored. What is chosen is chosen on lost items alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from interventions import Prompt
from interventions.prompt.positions import Positions, from_lists
from twohop.ask.halves import chosen_elsewhere
from twohop.ask.places import places
from twohop.ask.questions import Questions, Rows
from twohop.ask.study import Study
from twohop.stages.recovery.spans import Span, neighbours, place_scores, runs_of, starts_of
from twohop.stages.recovery.spots import Spot, SpotAnswers, answers_at_spots
from twohop.stages.recovery.transplants import Outcomes, Writing, free_outcomes


@dataclass(frozen=True)
class Chosen:
    """What was chosen for each half, on the other.

    Attributes
    ----------
    candidates : list of str
    scores : ndarray [candidate, item]
        Of the lost items, by which it was.
    names : list of str
        For each half; "none" where there was nothing to choose on.
    which : ndarray of int [half, ...]
        The candidate, or the first and the last of them; -1 for none.
    by : str
        How they were scored.
    """

    candidates: list[str]
    scores: np.ndarray
    names: list[str]
    which: np.ndarray
    by: str

    @classmethod
    def of_nothing(cls, study: Study, *, ends: bool = False) -> "Chosen":
        """Return what is chosen where there are no lost items."""
        candidates = [str(place) for place in places(study)]
        which = np.full((2, 2) if ends else 2, -1)
        return cls(candidates, np.zeros((len(candidates), 0)), ["none"] * 2, which, "none")


def place_arms(
    questions: Questions, values: torch.Tensor, half: np.ndarray, n_lost: int
) -> tuple[dict[str, Outcomes], Chosen]:
    """Block outputs at one token: the one chosen on the other half, and every one of them.

    Parameters
    ----------
    questions : Questions
        The first ``n_lost`` are about lost items, on which is chosen.
    values : Tensor [layer, item, d_model]
        Block outputs of the backbone.
    half : ndarray of int [item]
    n_lost : int

    Returns
    -------
    arms : dict of str to Outcomes
        ``place_resid``, and ``place_random``: the mean over all different tokens.
    chosen : Chosen
    """
    candidates = places(questions.study)
    spot_of = np.zeros((len(candidates), len(questions)), dtype=int)

    def spots_of(shown: Prompt, rows: Rows) -> list[list[Spot]]:
        index = torch.stack([place.positions(shown).index[:, 0] for place in candidates])
        spots = []
        for row, tokens in zip(rows, index.T.tolist(), strict=True):
            different = list(dict.fromkeys(tokens))
            spot_of[:, row] = [different.index(token) for token in tokens]
            spots.append([(token,) for token in different])
        return spots

    answered = answers_at_spots(
        questions,
        values,
        spots_of,
        candidates=candidates,
        component="resid_post",
        most=len(candidates),
    )
    logprob = [
        [of_item[spot] for spot in spots]
        for of_item, spots in zip(answered.logprob, spot_of.T, strict=True)
    ]
    gains = np.array(logprob[:n_lost]).reshape(n_lost, len(candidates)).T
    which = chosen_elsewhere(gains, half[:n_lost])
    own = [
        int(spot_of[which[part], item]) if which[part] >= 0 else -1
        for item, part in enumerate(half)
    ]
    arms = {"place_resid": Outcomes(*answered.at(own)), "place_random": _average(answered)}
    labels = [str(place) for place in candidates]
    names = [labels[place] if place >= 0 else "none" for place in which]
    return arms, Chosen(labels, gains, names, which, "patching")


def span_arms(
    questions: Questions, written: dict[str, torch.Tensor], half: np.ndarray, n_lost: int
) -> tuple[dict[str, Outcomes], Chosen]:
    """MLP outputs into the span chosen on the other half, its controls, and random spans.

    Parameters
    ----------
    questions : Questions
        The first ``n_lost`` are about lost items, on which is chosen.
    written : dict of str to Tensor [layer, item, d_model]
        What each arm writes there; ``span_mlp`` is the backbone's own MLP outputs.
    half : ndarray of int [item]
    n_lost : int

    Returns
    -------
    arms : dict of str to Outcomes
        Those of ``written``, and ``span_random``: the mean over runs of as many tokens from the
        first candidate's to the last one's, all if they are no more than the protocol's
        ``random_seeds``, else so many of them.
    chosen : Chosen
    """
    study, protocol = questions.study, questions.study.protocol
    candidates, lost = places(study), questions.only(range(n_lost))
    values = written["span_mlp"]
    told = place_scores(lost, values[:, :n_lost], candidates)
    spans = runs_of(neighbours(candidates, told.tokens), most=protocol.span_places)
    worth = np.array([told.score[places_of].sum(0) for places_of in spans])
    best = chosen_elsewhere(worth, half[:n_lost])
    ends = np.array([[spans[i][0], spans[i][-1]] if i >= 0 else [-1, -1] for i in best])
    chosen = [
        Span(candidates[first], candidates[last]) if first >= 0 else None for first, last in ends
    ]
    names = [str(span) if span else "none" for span in chosen]
    found_by = Chosen([str(place) for place in candidates], told.score, names, ends, told.by)

    def own_spot(shown: Prompt, rows: Rows) -> list[Spot]:
        by_half = [span.tokens(shown) if span else [()] * len(rows) for span in chosen]
        return [by_half[half[row]][which] for which, row in enumerate(rows)]

    own: list[int] = [-1] * len(questions)
    drawn: list[list[int]] = [[] for _ in questions.items]

    def spots_of(shown: Prompt, rows: Rows) -> list[list[Spot]]:
        mine = own_spot(shown, rows)
        starts = starts_of(candidates, shown, [len(spot) for spot in mine])
        spots = []
        for row, spot, every in zip(rows, mine, starts, strict=True):
            begin: Sequence[int] = every
            if len(every) > protocol.random_seeds:
                generator = np.random.default_rng([study.seed, row])
                begin = generator.choice(every, size=protocol.random_seeds, replace=False).tolist()
            drawn_here = [tuple(range(start, start + len(spot))) for start in begin]
            here = list(dict.fromkeys([*drawn_here, *([spot] if spot else [])]))
            own[row] = here.index(spot) if spot else -1
            drawn[row] = [here.index(window) for window in drawn_here]
            spots.append(here)
        return spots

    answered = answers_at_spots(
        questions,
        values,
        spots_of,
        candidates=candidates,
        component="mlp_out",
        most=protocol.random_seeds + 1,
    )

    def at(shown: Prompt, rows: Rows) -> Positions:
        spots = [[*spot] or [0] for spot in own_spot(shown, rows)]
        return from_lists(spots, length=shown.length, single=False, role="the span")

    controls = {
        arm: Writing("mlp_out", value, at) for arm, value in written.items() if arm != "span_mlp"
    }
    arms = {
        "span_mlp": Outcomes(*answered.at(own)),
        "span_random": _average(answered, drawn),
        **free_outcomes(questions, controls, candidates=candidates),
    }
    unwritten = np.array([spot < 0 for spot in own], dtype=bool)
    return {arm: outcome.without(unwritten) for arm, outcome in arms.items()}, found_by


def _average(answered: SpotAnswers, drawn: Sequence[Sequence[int]] | None = None) -> Outcomes:
    """Share of the spots at which each item is right, of those drawn or of all."""
    chosen = [range(len(spots)) for spots in answered.spots] if drawn is None else drawn
    shares = [
        float(np.mean([of_item[spot] for spot in spots])) if len(spots) else np.nan
        for of_item, spots in zip(answered.right, chosen, strict=True)
    ]
    return Outcomes(np.array(shares, dtype=float), [""] * len(shares))
