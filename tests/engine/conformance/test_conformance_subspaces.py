"""What is written in coordinates is what plain hooks give, in every family."""

from collections.abc import Callable

import pytest
import torch
from families import PATHS, Case, case_of, raw_run, some_layers, with_sdpa
from floors import FLOOR32, noise, relative

import interventions as iv
from interventions.model.sites import Component
from interventions.running.gradients import frozen_weights
from interventions.subspaces.training import Learning, Swaps, batch_of, swap_loss

WRITTEN: tuple[Component, ...] = ("resid_pre", "attn_out", "mlp_out", "resid_post")
Edit = Callable[[torch.Tensor], torch.Tensor]


def space_of(case: Case, size: int = 3) -> iv.Subspace:
    return iv.Subspace(noise((case.model.d_model, size), 5))


def editing(case: Case, change: Edit) -> Edit:
    """An edit of the vectors [row, d_model] at the case's place."""
    rows, at = torch.arange(len(case.prompt)), case.place.index[:, 0]

    def edit(hidden: torch.Tensor) -> torch.Tensor:
        changed = hidden.clone()
        changed[rows, at] = change(hidden[rows, at])
        return changed

    return edit


def logits_of(case: Case, patches: list[iv.Patch]) -> torch.Tensor:
    logits = iv.run(case.model, case.prompt, patches=patches).logits
    assert logits is not None
    return logits


@pytest.mark.parametrize("component", WRITTEN)
def test_interchange_and_projection_equal_hooks(case: Case, component: Component) -> None:
    space = space_of(case)
    source = noise((len(case.prompt), case.model.d_model))
    onto = space.basis @ space.basis.T
    rows, at = torch.arange(len(case.prompt)), case.place.index[:, 0]
    plain, _ = raw_run(case)
    for layer in some_layers(case.model):
        changes: list[tuple[iv.Patch, Edit]] = [
            (
                space.interchange(component, layer, case.place, source),
                lambda hidden: hidden + (source - hidden) @ onto,
            ),
            (
                space.project_out(component, layer, case.place),
                lambda hidden: hidden - hidden @ onto,
            ),
        ]
        for patch, change in changes:
            expected, _ = raw_run(case, edits=[(component, layer, editing(case, change))])
            assert relative(logits_of(case, [patch]), expected[:, -1]) < FLOOR32, layer
            there = iv.run(case.model, case.prompt, patches=[patch], logits=case.place).logits
            assert there is not None
            assert relative(there[:, 0], expected[rows, at]) < FLOOR32, layer
            assert not torch.equal(there[:, 0], plain[rows, at]), layer


@pytest.mark.parametrize("component", WRITTEN)
def test_no_change_of_coordinates_changes_nothing_bit_for_bit(
    case: Case, component: Component
) -> None:
    space, plain = space_of(case), logits_of(case, [])
    for layer in some_layers(case.model):
        for mode, number in (("add", 0.0), ("scale", 1.0)):
            patch = iv.Patch(
                component,
                layer,
                case.place,
                torch.tensor(number),
                mode,  # type: ignore[arg-type]
                within=space,
            )
            assert torch.equal(logits_of(case, [patch]), plain)
        [own] = iv.read(case.model, case.prompt, [iv.Site(component, layer, case.place)])
        patch = space.interchange(component, layer, case.place, own)
        assert relative(logits_of(case, [patch]), plain) < FLOOR32


def test_cells_replay_what_runs_give(case: Case) -> None:
    case = case_of(case.name) if PATHS[case.name].no_sdpa else with_sdpa(case)
    spaces = [space_of(case), iv.Subspace.random(case.model.d_model, 2, seed=1)]
    source = noise((len(case.prompt), case.model.d_model))
    cells = [
        [space.interchange(component, layer, case.place, source)]
        for component in WRITTEN
        for layer in some_layers(case.model)[:2]
        for space in spaces
    ]
    cells += [[*cells[0], spaces[0].project_out("resid_post", 2, case.prompt.at("last"))]]
    replayed = iv.replay(case.model, case.prompt, cells)[:, :, 0]
    for ours, patches in zip(replayed, cells, strict=True):
        assert relative(ours, logits_of(case, patches)) < FLOOR32


def test_a_padded_batch_equals_single_rows(case: Case) -> None:
    space, layer = space_of(case), some_layers(case.model)[1]
    source = noise((len(case.prompt), case.model.d_model))
    together = logits_of(
        case, [space.interchange("resid_post", layer, case.prompt.at("last"), source)]
    )
    for row, text in enumerate(case.texts):
        alone = case.model.prompt(text, images=[case.pictures[row]] if case.pictures else None)
        patch = space.interchange("resid_post", layer, alone.at("last"), source[row : row + 1])
        single = iv.run(case.model, alone, patches=[patch]).logits
        assert single is not None
        assert relative(together[row], single[0]) < FLOOR32


@pytest.mark.parametrize("component", ["attn_out", "mlp_out", "resid_post"])
@pytest.mark.parametrize("keeps", [True, False])
def test_gradients_of_a_swap_equal_hooks(case: Case, component: Component, keeps: bool) -> None:
    """What a subspace is learned by, from the block on that changes, is that of the whole model."""
    case = case_of(case.name) if PATHS[case.name].no_sdpa else with_sdpa(case)
    model, basis = case.model, space_of(case).basis
    if model.anatomy.dependent_rows is not None:
        pytest.skip("rows run alone: one row is no batch")
    rows, tokens = torch.arange(len(case.prompt)), torch.tensor([5, 9])
    source = noise((len(rows), model.d_model))
    for layer in some_layers(model)[:3]:
        swaps = Swaps(component, layer, case.place, source[:, None], tokens)
        theirs, ours = (basis.clone().requires_grad_() for _ in range(2))

        def change(hidden: torch.Tensor, basis: torch.Tensor = theirs) -> torch.Tensor:
            return hidden + (source - hidden) @ basis @ basis.T

        with frozen_weights(model):
            edits = [(component, layer, editing(case, change))]
            logits, _ = raw_run(case, edits=edits, gradients=True)
            expected = torch.nn.functional.cross_entropy(logits[:, -1], tokens)
            batch = batch_of(model, case.prompt, swaps, rows, keeps=keeps)
            loss = swap_loss(model, batch, Learning(ours))
        [slope] = torch.autograd.grad(expected, theirs)
        [own] = torch.autograd.grad(loss, ours)
        assert relative(loss.detach(), expected.detach()) < FLOOR32
        assert relative(own, slope) < FLOOR32, layer
