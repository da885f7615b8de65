"""Maps of the vision tower, of every family: cells are those of plain hooks, slopes of autograd."""

import numpy as np
import pytest
import tiny
import torch
from families import Case, arguments_of, case_of
from floors import FLOOR32, relative
from raw_tower import raw_tower

import interventions as iv
from interventions.model.sites import TOWER, Component

ROLES = ["image[0]", "image[-1]"]


def entropy(logits: torch.Tensor) -> torch.Tensor:
    logprobs = logits.log_softmax(-1)
    return -(logprobs.exp() * logprobs).sum(-1)


def double(case: Case) -> Case:
    """The family in float64, but where transformers' own tower does not run in it."""
    return case if case.name == "llama4" else case_of(case.name, torch.float64, "sdpa")


def other_pictures(case: Case) -> iv.Prompt:
    pictures = [tiny.picture(own.size, seed=7 + i) for i, own in enumerate(case.pictures)]
    return case.model.prompt(list(case.texts), images=pictures, spans={"entity": list(ENTITIES)})


ENTITIES = ("France", "the town")


def arguments(case: Case, prompt: iv.Prompt) -> dict[str, torch.Tensor]:
    return {
        key: value.to(case.model.dtype) if value.is_floating_point() else value
        for key, value in arguments_of(prompt).items()
    }


def first_tokens(case: Case, role: str) -> torch.Tensor:
    """Where the one token of a role is of each row, counted over all that run."""
    at = case.prompt.at("image", int(role[6:-1]), of="tower")
    starts = torch.tensor([0, *case.prompt.vision["tower"].counts]).cumsum(0)[:-1]
    return at.index[:, 0] + starts


def used(case: Case) -> list[int]:
    tower = case.model.anatomy.tower
    assert tower is not None
    return [0, tower.n_used - 1]


def plain(component: Component) -> str:
    return component.removeprefix("vision.")


def test_cells_are_those_of_plain_hooks(shown: Case) -> None:
    case = double(shown)
    model, prompt, source = case.model, case.prompt, other_pictures(case)
    components: list[Component] = ["vision.head_out", "vision.mlp_out", "vision.resid_post"]
    layers = used(case)
    swept = iv.sweep(
        model,
        prompt,
        source,
        metrics=[entropy, "kl"],
        components=components,
        layers=layers,
        roles=ROLES,
        progress=False,
    )
    there = arguments(case, source)
    for component in components:
        name = plain(component)
        for layer in layers:
            _, [value] = raw_tower(case, reads=[(name, layer)], arguments=there)
            for role in ROLES:
                at = first_tokens(case, role)

                def put(
                    flat: torch.Tensor, at: torch.Tensor = at, value: torch.Tensor = value
                ) -> torch.Tensor:
                    flat = flat.clone()
                    flat[at] = value[at]
                    return flat

                logits, _ = raw_tower(case, edits=[(name, layer, put)])
                cell = swept["entropy"].sel(component=component, layer=layer, role=role)
                theirs = entropy(logits[:, -1].to(torch.promote_types(logits.dtype, torch.float32)))
                assert relative(torch.from_numpy(cell.values.copy()), theirs) < FLOOR32
    assert float(np.abs(swept["entropy"] - swept["clean_entropy"]).max()) > 1e-5
    clean, _ = raw_tower(case)
    ours = torch.from_numpy(swept["clean_entropy"].values.copy())
    assert relative(ours, entropy(clean[:, -1].float())) < FLOOR32


@pytest.mark.parametrize("component", TOWER)
def test_scores_are_slopes_of_autograd(shown: Case, component: Component) -> None:
    case = double(shown)
    model, prompt, source = case.model, case.prompt, other_pictures(case)
    scores = iv.attribute(
        model,
        prompt,
        source,
        metric=entropy,
        components=component,
        layers=used(case),
        roles=["every"],
        each=True,
        verify=False,
    )
    there = arguments(case, source)
    name = plain(component)
    counts = prompt.vision["tower"].counts
    for layer in used(case):
        _, [value] = raw_tower(case, reads=[(name, layer)], arguments=there)
        _, [own] = raw_tower(case, reads=[(name, layer)])
        leaf = own.clone().requires_grad_()
        edits = [(name, layer, lambda flat, leaf=leaf: flat * 0 + leaf)]
        logits, _ = raw_tower(case, edits=edits, gradients=True)
        wide = torch.promote_types(logits.dtype, torch.float32)
        [slope] = torch.autograd.grad(entropy(logits[:, -1].to(wide)).sum(), leaf)
        expected = ((value - own) * slope).sum(-1)
        ours = scores["score"].sel(component=component, layer=layer)
        for row, mine in enumerate(expected.split(counts)):
            found = torch.from_numpy(ours.values[row].copy())
            assert found[len(mine) :].isnan().all()
            assert relative(found[: len(mine)], mine) < FLOOR32, (layer, row)
