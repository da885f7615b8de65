"""Writing the backbone's entity into the VLM, and the controls that must fail."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from interventions import Model, Patch, Prompt, Site
from interventions.alignment import layer_map
from interventions.positions import from_lists
from interventions.sites import Component
from twohop.asking import (
    Scored,
    Study,
    another,
    by_relation,
    image_prompt,
    mean_of_others,
    score,
    text_prompt,
)
from twohop.cells import free_answers
from twohop.entities.items import Item
from twohop.memory import read
from twohop.places import entity_tokens, has_image_tokens, last_entity_token, question_tokens
from twohop.running import Task, Tick, on_each

WHOLE, LAST, WHOLE_MLP = "transplant_all_image", "transplant_last_image", "transplant_all_image_mlp"
PATCH_ARMS = (
    WHOLE,
    LAST,
    WHOLE_MLP,
    "wrong_entity",
    "mean_entity",
    "norm_matched",
)
WITHOUT_IMAGE_TOKENS = {
    WHOLE: "transplant_question",
    LAST: "transplant_last_token",
    WHOLE_MLP: "transplant_question_mlp",
}
"""The arms that take the place of those at image tokens, where an image has none."""


def own_arm(vlm: Model, arm: str) -> str:
    """Name of an arm in a VLM: by the tokens where it writes."""
    return arm if has_image_tokens(vlm) else WITHOUT_IMAGE_TOKENS.get(arm, arm)


@dataclass(frozen=True)
class Wanted:
    """Values of entities in the backbone.

    Attributes
    ----------
    items : sequence of Item
        Whose entities.
    component : str
    layers : list of int
    """

    items: Sequence[Item]
    component: Component
    layers: list[int]


def entity_values(study: Study, *wanted: Wanted) -> list[torch.Tensor]:
    """Backbone activations at the last token of entities, [layer, item, d_model] for each wanted.

    All in one go, as on a server each is a request.
    """
    parts = [(i, rows) for i, one in enumerate(wanted) for _, rows in by_relation(one.items)]
    tasks = []
    for i, rows in parts:
        some = [wanted[i].items[row] for row in rows]
        template = study.benchmark.templates[some[0].relation]
        prompt = text_prompt(study.backbone, template, [one.entity for one in some])
        tasks.append((prompt, wanted[i].component, wanted[i].layers))
    found = on_each(study.backbone, name_values, tasks)
    d_model = study.backbone.d_model
    values = [torch.zeros(len(one.layers), len(one.items), d_model) for one in wanted]
    for (i, rows), value in zip(parts, found, strict=True):
        values[i] = values[i].to(value.dtype)
        values[i][:, rows] = value
    return values


def name_values(
    model: Model, prompt: Prompt, component: Component, layers: list[int], *, tick: Tick
) -> torch.Tensor:
    """Activations at the last token of each row's entity, [layer, row, d_model]."""
    [found] = read(model, prompt, [Site(component, layers, prompt.at("entity", -1))])
    tick(0)
    return found.cpu()


def blocks_to(last: int) -> list[int]:
    """Blocks from 0 to ``last``; block 0 at least."""
    return list(range(max(last, 0) + 1))


def matched_noise(values: torch.Tensor, *, seed: int) -> torch.Tensor:
    """Random directions with the norms of ``values`` [layer, item, d_model]."""
    noise = torch.randn(values.shape, generator=torch.Generator().manual_seed(seed))
    return noise / noise.norm(dim=-1, keepdim=True) * values.norm(dim=-1, keepdim=True)


def transplant_arms(
    study: Study,
    items: Sequence[Item],
    *,
    last_block: int,
    last_mlp: int,
    arms: Sequence[str] = PATCH_ARMS,
) -> dict[str, Scored]:
    """Run the arms that write backbone values at fixed positions.

    Into all image tokens or the last one; where an image has none, into all of the question's
    tokens or the last of the prompt.

    Parameters
    ----------
    study : Study
    items : sequence of Item
    last_block : int
        Block outputs are written in blocks 0 to this one.
    last_mlp : int
        MLP outputs are written in blocks 0 to this one.
    arms : sequence of str
        Which of :data:`PATCH_ARMS`.

    Returns
    -------
    dict of str to Scored
        By :func:`own_arm`.
    """
    other = [one or item for one, item in zip(another(study, items), items, strict=True)]
    resid, theirs, mlp = entity_values(
        study,
        Wanted(items, "resid_post", blocks_to(last_block)),
        Wanted(other if "wrong_entity" in arms else (), "resid_post", blocks_to(last_block)),
        Wanted(items if WHOLE_MLP in arms else (), "mlp_out", blocks_to(last_mlp)),
    )
    sources: dict[str, tuple[Component, torch.Tensor]] = {
        WHOLE: ("resid_post", resid),
        LAST: ("resid_post", resid),
        WHOLE_MLP: ("mlp_out", mlp),
        "wrong_entity": ("resid_post", theirs),
        "mean_entity": ("resid_post", mean_of_others(resid, items)),
        "norm_matched": ("resid_post", matched_noise(resid, seed=study.seed)),
    }
    mapped = layer_map(study.vlm, study.backbone)

    def cells_of(shown: Prompt, rows: list[int]) -> list[list[Patch]]:
        # One arm to a cell: a decoding step costs the same for all arms as for one.
        cells = []
        for arm in arms:
            component, value = sources[arm]
            place = (last_entity_token if arm == LAST else entity_tokens)(shown)
            cells.append([Patch(component, mapped[: len(value)], place, value[:, rows])])
        return cells

    said = said_in_cells(study, items, cells_of)
    return {
        own_arm(study.vlm, arm): score(study, items, texts, [""] * len(items))
        for arm, texts in zip(arms, said, strict=True)
    }


def said_in_cells(
    study: Study,
    items: Sequence[Item],
    cells_of: Callable[[Prompt, list[int]], list[list[Patch]]],
    *,
    marked: bool = False,
) -> list[list[str]]:
    """Free answers about the pictures of items under interventions, [cell][item].

    Parameters
    ----------
    study : Study
    items : sequence of Item
    cells_of : callable
        ``cells_of(prompt, rows)`` gives the cells of the prompt of some of the items.
    marked : bool
        Leave the question in the rows and give it the role ``asked``, to be written into.
    """
    groups = list(by_relation(items))

    def task(rows: list[int]) -> Task:
        template = study.benchmark.templates[items[rows[0]].relation]
        shown = image_prompt(
            study,
            template,
            [items[i].entity for i in rows],
            marked=marked,
            share_prefix=template.prefix if marked else True,
        )
        return shown, cells_of(shown, rows), study.decoding

    tasks = (task(rows) for _, rows in groups)
    found = on_each(study.vlm, free_answers, tasks, tick=study.tick)
    said: list[list[str]] = [[""] * len(items) for _ in (found[0] if found else ())]
    for (_, rows), texts in zip(groups, found, strict=True):
        for cell, words in enumerate(texts):
            for row, text in zip(rows, words, strict=True):
                said[cell][row] = text
    return said


def has_other(study: Study, items: Sequence[Item]) -> np.ndarray:
    """Whether there is another entity to put in an item's place, [item]."""
    return np.array([one is not None for one in another(study, items)], dtype=bool)


def follows(study: Study, items: Sequence[Item], scored: Scored) -> np.ndarray:
    """Whether each answer is that of the entity put in; NaN where there was none, [item]."""
    others = another(study, items)
    theirs = [one or item for one, item in zip(others, items, strict=True)]
    again = score(study, theirs, scored.texts, [""] * len(items)).right
    return np.where(has_other(study, items), again.astype(float), np.nan)


def random_positions(study: Study, items: Sequence[Item], *, last_block: int) -> np.ndarray:
    """Write the right values at random text tokens instead of the image's.

    As many as there are image tokens, but no more than a share of the question's, the protocol's
    ``random_share``; where an image has none, at one, as there is one last token.

    Returns
    -------
    ndarray of bool [seed, item]
        Whether the free answer is then right.
    """
    n_seeds, share = study.protocol.random_seeds, study.protocol.random_share
    layers = blocks_to(last_block)
    mapped = layer_map(study.vlm, study.backbone)[: len(layers)]
    [values] = entity_values(study, Wanted(items, "resid_post", layers))

    def cells_of(shown: Prompt, rows: list[int]) -> list[list[Patch]]:
        tokens = (entity_tokens if has_image_tokens(study.vlm) else last_entity_token)(shown)
        question = question_tokens(shown)
        generator = np.random.default_rng(study.seed)
        mine, cells = values[:, rows], []
        for _ in range(n_seeds):
            lists = []
            for row, most in enumerate(tokens.counts.tolist()):
                free = question.index[row][question.mask[row]].tolist()
                n = max(1, min(most, int(len(free) * share + 1e-9)))
                lists.append(sorted(generator.choice(free, size=n, replace=False).tolist()))
            drawn = from_lists(lists, length=shown.length, single=False, role="random position")
            cells.append([Patch("resid_post", mapped, drawn, mine)])
        return cells

    table = np.zeros((n_seeds, len(items)), dtype=bool)
    for seed, texts in enumerate(said_in_cells(study, items, cells_of, marked=True)):
        table[seed] = score(study, items, texts, [""] * len(items)).right
    return table
