"""Spans of tokens: which places are neighbours, which spans are as long, what each is worth."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from interventions import Patch, Site, read
from twohop.ask.memory import MemoryTooSmall
from twohop.ask.on_server import no_tick
from twohop.ask.places import Place, places
from twohop.ask.questions import Questions
from twohop.ask.study import Study, first_tokens
from twohop.protocol import Protocol
from twohop.running.pair_run import Settings
from twohop.running.study import study_of
from twohop.stages.recovery.shared import shared_text
from twohop.stages.recovery.spans import (
    Span,
    estimated,
    neighbours,
    patched,
    runs_of,
    scores_of_cells,
    starts_of,
)

IMAGE = [Place("image", which, 3) for which in (2, 1, 0)]
ASKED = [Place("question", which, 3) for which in range(4)]


@pytest.fixture(scope="module")
def study() -> Study:
    protocol = replace(Protocol.preset("quick"), question_places=3)
    return study_of("micro-late", Settings(limit=4, protocol=protocol))


def test_neighbours_are_beside_each_other_in_every_prompt() -> None:
    behind = [[5], [4], [3], [8], [7], [6], [2]]  # the question's fourth is ahead of the image
    assert neighbours([*IMAGE, *ASKED], np.array(behind)) == [[6], [5, 4, 3], [2, 1, 0]]
    # In a second prompt all of the question is behind: what is apart in one is no neighbour.
    both = np.hstack([behind, [[5], [4], [3], [9], [8], [7], [6]]])
    assert [6, 5] not in runs_of(neighbours([*IMAGE, *ASKED], both), most=2)
    # Of an image with two tokens, two of three parts are the same.
    few = np.array([[5], [4], [4]])
    assert neighbours(IMAGE, few) == [[1, 0]]


def test_runs_are_all_there_are_up_to_a_length() -> None:
    assert runs_of([[3, 1, 2], [0]], most=2) == [[3], [1], [2], [0], [3, 1], [1, 2]]


def test_random_spans_have_as_many_tokens_and_stay_among_the_candidates(study: Study) -> None:
    questions = Questions(study, study.benchmark.items[:2])
    shown = questions.shown([0], marked=True, share_prefix=questions.template([0]).prefix)
    candidates = places(study)
    tokens = [int(place.positions(shown).index) for place in candidates]
    span = Span(candidates[0], candidates[1])
    [own] = span.tokens(shown)
    assert own == tuple(range(min(tokens[:2]), max(tokens[:2]) + 1))
    [starts] = starts_of(candidates, shown, [len(own)])
    assert own[0] in starts
    # From the first candidate's token to the last one's, and no further.
    assert (starts[0], starts[-1] + len(own) - 1) == (min(tokens), max(tokens))
    assert [*starts_of(candidates, shown, [0])[0]] == []


def test_what_is_ahead_of_every_candidate_is_shared(study: Study) -> None:
    questions = Questions(study, study.benchmark.items[:2])
    candidates, template = places(study), questions.template([0])
    ahead = shared_text(questions, [0], candidates)
    assert len(ahead) > len(template.prefix)
    assert template.show("<image>").startswith(ahead)
    first, whole = (
        questions.shown([0], marked=True, share_prefix=text) for text in (ahead, template.prefix)
    )
    tokens, before = (
        [int(place.positions(shown).index) for place in candidates] for shown in (first, whole)
    )
    assert min(tokens) == 0, "nothing is run again that could be shared"
    assert tokens == [token - whole.length + first.length for token in before]
    # Where places reach to the very beginning of the question, only the worked examples are.
    every = [*candidates, Place("question", 20, 8)]
    assert shared_text(questions, [0], every) == template.prefix


def test_gradients_that_do_not_fit_are_not_replaced_by_patching(study: Study) -> None:
    """Which would give other numbers: patching fits here, and no gradient does."""
    questions = Questions(study, study.benchmark.items[:1])
    shown = questions.shown([0], marked=True)
    at = shown.at("last")
    [own] = read(study.vlm, shown, [Site("mlp_out", [0, 1], at)])
    cells, tokens = [[Patch("mlp_out", [0, 1], at, 2 * own)]], torch.tensor([5])

    def no_room(*_: object) -> None:
        if torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    blocks = study.vlm.module.get_submodule(study.vlm.anatomy.blocks)
    hook = next(blocks.children()).register_forward_pre_hook(no_room)
    try:
        assert np.isfinite(patched(study.vlm, shown, cells, tokens)).all()
        with pytest.raises(MemoryTooSmall):
            scores_of_cells(study.vlm, shown, cells, tokens, tick=no_tick)
    finally:
        hook.remove()


def test_attribution_is_the_slope_of_exact_patching(study: Study) -> None:
    """Of a small change in a block, both are the same; of several blocks, it is the sum."""
    items = [item for item in study.benchmark.items if item.relation == "capital"][:3]
    questions, blocks = Questions(study, items), [0, 1, 2]
    shown = questions.shown([0, 1, 2], marked=True, share_prefix=questions.template([0]).prefix)
    tokens = torch.tensor(first_tokens(study.vlm, shown, [item.answers[0] for item in items]))
    generator, cells = torch.Generator().manual_seed(0), []
    for place in places(study):
        at = place.positions(shown)
        [own] = read(study.vlm, shown, [Site("mlp_out", blocks, at)])
        noise = torch.randn(own.shape, generator=generator)
        cells.append([Patch("mlp_out", blocks, at, own + 1e-2 * noise)])
    where = torch.stack([patch.positions.index[:, 0] for [patch] in cells])
    summed = np.zeros((3, len(cells)))
    for which, block in enumerate(blocks):
        alone = [
            [replace(patch, layers=[block], value=patch.value[which : which + 1])]
            for [patch] in cells
        ]
        slope = estimated(study.vlm, shown, alone, tokens, where)
        exact = patched(study.vlm, shown, alone, tokens)
        assert np.abs(exact).max() > 1e-4
        np.testing.assert_allclose(slope, exact, atol=0.1 * np.abs(exact).max())
        summed += slope
    table = scores_of_cells(study.vlm, shown, cells, tokens, tick=no_tick)
    for row, (scores, at, by) in enumerate(table):
        assert by == "attribution"
        np.testing.assert_allclose(scores, summed[row], rtol=1e-4, atol=1e-7)
        assert at.tolist() == where[:, row].tolist()
