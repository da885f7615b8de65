"""Writing the backbone's entity into the VLM, and the controls that must fail."""

from collections.abc import Sequence

import numpy as np
import torch

from interventions import Model, Patch, Positions, Prompt, Site, read
from interventions.alignment import layer_map
from interventions.positions import from_lists
from interventions.streams import Component
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
from twohop.places import entity_tokens, has_image_tokens, last_entity_token, question_tokens

RANDOM_SEEDS = 20
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


def entity_values(
    study: Study, items: Sequence[Item], component: Component, layers: list[int]
) -> torch.Tensor:
    """Backbone activations at the last token of each item's entity, [layer, item, d_model]."""
    values: torch.Tensor | None = None
    for relation, rows in by_relation(items):
        template = study.benchmark.templates[relation]
        prompt = text_prompt(study.backbone, template, [items[i].entity for i in rows])
        [found] = read(study.backbone, prompt, [Site(component, layers, prompt.at("entity", -1))])
        if values is None:
            values = torch.zeros(found.shape[0], len(items), found.shape[-1], dtype=found.dtype)
        values[:, rows] = found.cpu()
    return values if values is not None else torch.zeros(len(layers), 0, study.backbone.d_model)


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
    resid = entity_values(study, items, "resid_post", blocks_to(last_block))
    other = [one or item for one, item in zip(another(study, items), items, strict=True)]
    sources: dict[str, tuple[Component, torch.Tensor]] = {
        WHOLE: ("resid_post", resid),
        LAST: ("resid_post", resid),
        "wrong_entity": (
            "resid_post",
            entity_values(study, other, "resid_post", blocks_to(last_block)),
        ),
        "mean_entity": ("resid_post", mean_of_others(resid, items)),
        "norm_matched": ("resid_post", matched_noise(resid, seed=study.seed)),
    }
    if WHOLE_MLP in arms:
        mlp = entity_values(study, items, "mlp_out", blocks_to(last_mlp))
        sources[WHOLE_MLP] = ("mlp_out", mlp)
    mapped = layer_map(study.vlm, study.backbone)
    said = {arm: [""] * len(items) for arm in arms}
    for relation, rows in by_relation(items):
        template = study.benchmark.templates[relation]
        shown = image_prompt(study, template, [items[i].entity for i in rows])

        def patches_of(
            batch: torch.Tensor,
            cells: torch.Tensor,
            shown: Prompt = shown,
            mine: torch.Tensor = torch.tensor(rows),  # noqa: B008 - the loop's own
        ) -> list[Patch]:
            patches = []
            for cell in cells.unique().tolist():
                component, value = sources[arms[int(cell)]]
                tokens = last_entity_token if arms[int(cell)] == LAST else entity_tokens
                place = tokens(shown).rows(batch).only(cells == cell)
                layers = [mapped[block] for block in range(len(value))]
                patches.append(Patch(component, layers, place, value[:, mine[batch]]))
            return patches

        # One arm to a cell: a decoding step costs the same for all arms as for one.
        texts = free_answers(study, study.vlm, shown, n_cells=len(arms), patches_of=patches_of)
        for arm, words in zip(arms, texts, strict=True):
            for row, text in zip(rows, words, strict=True):
                said[arm][row] = text
    return {
        own_arm(study.vlm, arm): score(study, items, texts, [""] * len(items))
        for arm, texts in said.items()
    }


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

    As many as there are image tokens, but no more than half of the question's; where an image has
    none, at one, as there is one last token.

    Returns
    -------
    ndarray of bool [seed, item]
        Whether the free answer is then right.
    """
    layers = blocks_to(last_block)
    vlm_layers = [layer_map(study.vlm, study.backbone)[layer] for layer in layers]
    values = entity_values(study, items, "resid_post", layers)
    table = np.zeros((RANDOM_SEEDS, len(items)), dtype=bool)
    for relation, rows in by_relation(items):
        some = [items[i] for i in rows]
        template = study.benchmark.templates[relation]
        shown = image_prompt(
            study,
            template,
            [one.entity for one in some],
            marked=True,
            share_prefix=template.prefix,
        )
        tokens = (entity_tokens if has_image_tokens(study.vlm) else last_entity_token)(shown)
        question = question_tokens(shown)
        generator = np.random.default_rng(study.seed)
        draws = []
        for _ in range(RANDOM_SEEDS):
            lists = []
            for row, most in enumerate(tokens.counts.tolist()):
                free = question.index[row][question.mask[row]].tolist()
                n = max(1, min(most, len(free) // 2))
                lists.append(sorted(generator.choice(free, size=n, replace=False).tolist()))
            draws.append(
                from_lists(lists, length=shown.length, single=False, role="random position")
            )

        def patches_of(
            batch: torch.Tensor,
            cells: torch.Tensor,
            draws: list[Positions] = draws,
            mine: torch.Tensor = values[:, rows],
        ) -> list[Patch]:
            return [
                Patch(
                    "resid_post",
                    vlm_layers,
                    draws[cell].rows(batch).only(cells == cell),
                    mine[:, batch],
                )
                for cell in cells.unique().tolist()
            ]

        texts = free_answers(study, study.vlm, shown, n_cells=RANDOM_SEEDS, patches_of=patches_of)
        for seed, said in enumerate(texts):
            table[seed, rows] = score(study, some, said, [""] * len(some)).right
    return table
