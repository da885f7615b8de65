"""What gives the lost facts back: patching the backbone's entity in, and naming it first.

Every arm is tried on *lost* items (recognised, right in text, wrong from the image) and reports
which of them are answered right afterwards; on *kept* items (right from the image) the same arms
report harm. Patches act in the prefill only. The values are the backbone's at the last token of
the entity's name, in the blocks of its enrichment window, from its run on the text question.

========================================  ========================================================
arm                                       what is written, and where
========================================  ========================================================
``transplant_all_image``                  block outputs, into every image token
``transplant_last_image``                 the same, into the last image token only
``transplant_all_image_mlp``              MLP outputs only, into every image token
``transplant_random_position``            as the first, into as many random text tokens (20 seeds)
``wrong_entity``                          another entity's values, into every image token
``mean_entity``                           the mean over the other entities
``norm_matched``                          random vectors of the same norm
``back_patching``                         the VLM's own later state, into an earlier layer
``back_patching_null``                    the same search with another picture's states
``cot_named``                             the VLM says its own name for it, then is asked
``cot_gold``, ``cot_wrong``               the same with the right name, with a wrong one
========================================  ========================================================
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import xarray as xr

from interventions import Patch, Prompt, Site, read
from interventions.alignment import layer_map
from interventions.answers import following
from interventions.positions import from_lists
from interventions.streams import Component
from twohop.asking import (
    Scored,
    Study,
    ask,
    by_relation,
    chain_prompt,
    complete,
    derangement,
    image_prompt,
    mean_of_others,
    score,
    text_array,
    text_prompt,
)
from twohop.cells import answer_ids, answered_cells
from twohop.entities.items import Item
from twohop.window import known_items

MAX_LOST = 36
MAX_KEPT = 18
RANDOM_SEEDS = 20
LATER = (0.4, 0.6, 0.8)
EARLIER = (0.0, 0.1, 0.2)
PATCH_ARMS = (
    "transplant_all_image",
    "transplant_last_image",
    "transplant_all_image_mlp",
    "wrong_entity",
    "mean_entity",
    "norm_matched",
)
ARMS = (
    *PATCH_ARMS[:3],
    "transplant_random_position",
    *PATCH_ARMS[3:],
    "back_patching",
    "back_patching_null",
    "cot_named",
    "cot_gold",
    "cot_wrong",
)
HARM_ARMS = ("transplant_all_image", "transplant_last_image", "cot_named")


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


def matched_noise(values: torch.Tensor, *, seed: int) -> torch.Tensor:
    """Random directions with the norms of ``values`` [layer, item, d_model]."""
    noise = torch.randn(values.shape, generator=torch.Generator().manual_seed(seed))
    return noise / noise.norm(dim=-1, keepdim=True) * values.norm(dim=-1, keepdim=True)


def ask_images(
    study: Study,
    items: Sequence[Item],
    *,
    patches_of: Callable[[list[int], Prompt], Sequence[Patch]] | None = None,
) -> Scored:
    """Ask the VLM about imaged entities, under patches; free answers only."""
    templates = study.benchmark.templates
    return ask(
        study,
        study.vlm,
        items,
        prompt_of=lambda relation, some: image_prompt(
            study, templates[relation], [item.entity for item in some]
        ),
        patches_of=patches_of,
        forced=False,
    )


def partners(items: Sequence[Item], *, seed: int) -> list[int]:
    """For each item, another of the same relation with a different answer."""
    found = [0] * len(items)
    for _, rows in by_relation(items):
        order = derangement([items[i].answers[0] for i in rows], seed=seed)
        for i, j in zip(rows, order, strict=True):
            found[i] = rows[j]
    return found


def transplant_arms(
    study: Study, items: Sequence[Item], *, window_end: int, arms: Sequence[str] = PATCH_ARMS
) -> dict[str, Scored]:
    """Run the arms that write backbone values at fixed image positions."""
    layers = list(range(max(window_end, 0) + 1))
    vlm_layers = [layer_map(study.vlm, study.backbone)[layer] for layer in layers]
    resid = entity_values(study, items, "resid_post", layers)
    partner = partners(items, seed=study.seed)
    mlp = (
        entity_values(study, items, "mlp_out", layers)
        if "transplant_all_image_mlp" in arms
        else resid
    )
    sources: dict[str, tuple[Component, torch.Tensor, int | None]] = {
        "transplant_all_image": ("resid_post", resid, None),
        "transplant_last_image": ("resid_post", resid, -1),
        "transplant_all_image_mlp": ("mlp_out", mlp, None),
        "wrong_entity": ("resid_post", resid[:, partner], None),
        "mean_entity": ("resid_post", mean_of_others(resid), None),
        "norm_matched": ("resid_post", matched_noise(resid, seed=study.seed), None),
    }
    results: dict[str, Scored] = {}
    for arm in arms:
        component, value, index = sources[arm]

        def patches_of(
            rows: list[int],
            prompt: Prompt,
            component: Component = component,
            value: torch.Tensor = value,
            index: int | None = index,
        ) -> list[Patch]:
            return [Patch(component, vlm_layers, prompt.at("image", index), value[:, rows])]

        results[arm] = ask_images(study, items, patches_of=patches_of)
    return results


def follows(study: Study, items: Sequence[Item], scored: Scored) -> np.ndarray:
    """Whether each answer is that of the entity whose values were written, [item]."""
    partner = partners(items, seed=study.seed)
    theirs = [items[j] for j in partner]
    again = score(study, theirs, scored.texts, [""] * len(items)).right
    return again & np.array([i != j for i, j in enumerate(partner)])


def random_positions(study: Study, items: Sequence[Item], *, window_end: int) -> np.ndarray:
    """Write the right values at random text tokens instead of the image's.

    Returns
    -------
    ndarray of bool [seed, item]
        Whether greedy decoding then gives the canonical answer.
    """
    layers = list(range(max(window_end, 0) + 1))
    vlm_layers = [layer_map(study.vlm, study.backbone)[layer] for layer in layers]
    values = entity_values(study, items, "resid_post", layers)
    table = np.zeros((RANDOM_SEEDS, len(items)), dtype=bool)
    for relation, rows in by_relation(items):
        some = [items[i] for i in rows]
        template = study.benchmark.templates[relation]
        shown = image_prompt(
            study, template, [one.entity for one in some], share_prefix=template.prefix
        )
        answers = answer_ids(study.vlm, some)
        prompt = following(shown, answers, pad_id=study.vlm.tokenizer.pad_token_id)
        image = shown.at("image")
        generator = np.random.default_rng(study.seed)
        draws = []
        for _ in range(RANDOM_SEEDS):
            lists = []
            for roles in shown.roles:
                free = sorted(set(roles["question"]) - set(roles["last"]))
                n = min(image.index.shape[1], len(free))
                lists.append(sorted(generator.choice(free, size=n, replace=False).tolist()))
            draws.append(
                from_lists(lists, length=prompt.length, single=False, role="random position")
            )

        def patches_of(
            batch: torch.Tensor,
            cells: torch.Tensor,
            draws: list = draws,
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

        table[:, rows] = answered_cells(
            study, study.vlm, prompt, answers, n_cells=RANDOM_SEEDS, patches_of=patches_of
        )
    return table


def layer_pairs(n_layers: int) -> list[tuple[int, int]]:
    """Pairs (later, earlier) of layers tried by back-patching."""
    later = [round(share * n_layers) for share in LATER]
    earlier = [round(share * n_layers) for share in EARLIER]
    return [(s, t) for s in dict.fromkeys(later) for t in dict.fromkeys(earlier) if s > t]


def back_patching(study: Study, items: Sequence[Item]) -> xr.Dataset:
    """Write the VLM's own later state at the image tokens into an earlier layer.

    Every pair of layers is tried on every item; the pair is fixed on one half of the entities
    (``dev``) and scored on the other. The null does the same with the states of another entity's
    picture, so that what a search over pairs finds by luck can be told apart.

    Returns
    -------
    Dataset
        ``own`` and ``null`` (pair, tried): the canonical answer is given; ``dev`` (tried);
        ``later`` and ``earlier`` (pair); ``chosen`` and ``chosen_null``: index of
        the pair fixed on dev.
    """
    pairs = layer_pairs(study.vlm.n_layers)
    n = len(items)
    partner = partners(items, seed=study.seed)
    tables = {"own": np.zeros((len(pairs), n), bool), "null": np.zeros((len(pairs), n), bool)}
    needed = sorted({s for s, _ in pairs})
    for relation, rows in by_relation(items):
        some = [items[i] for i in rows]
        shown = image_prompt(
            study, study.benchmark.templates[relation], [one.entity for one in some]
        )
        answers = answer_ids(study.vlm, some)
        prompt = following(shown, answers, pad_id=study.vlm.tokenizer.pad_token_id)
        [state] = read(study.vlm, shown, [Site("resid_pre", needed, shown.at("image"))])
        image = prompt.at("image")
        local = {row: i for i, row in enumerate(rows)}
        other = [local[partner[row]] for row in rows]
        for name, source in (("own", state), ("null", state[:, other])):

            def patches_of(
                batch: torch.Tensor, cells: torch.Tensor, source: torch.Tensor = source
            ) -> list[Patch]:
                return [
                    Patch(
                        "resid_pre",
                        pairs[cell][1],
                        image.rows(batch).only(cells == cell),  # noqa: B023 - used at once
                        source[needed.index(pairs[cell][0]), batch],
                    )
                    for cell in cells.unique().tolist()
                ]

            tables[name][:, rows] = answered_cells(
                study, study.vlm, prompt, answers, n_cells=len(pairs), patches_of=patches_of
            )
    codes = sorted({item.entity.code for item in items})
    shuffled = np.random.default_rng(study.seed).permutation(len(codes))
    half = {codes[i] for i in shuffled[: len(codes) // 2]}
    dev = np.array([item.entity.code in half for item in items], dtype=bool)
    best = {
        name: int(table[:, dev].mean(1).argmax()) if dev.any() else 0
        for name, table in tables.items()
    }
    return xr.Dataset(
        {
            "own": (("pair", "tried"), tables["own"]),
            "null": (("pair", "tried"), tables["null"]),
            "dev": ("tried", dev),
            "later": ("pair", [s for s, _ in pairs]),
            "earlier": ("pair", [t for _, t in pairs]),
        },
        attrs={"chosen": best["own"], "chosen_null": best["null"]},
    )


def chain(study: Study, items: Sequence[Item], names: Sequence[str]) -> Scored:
    """Ask after ``names`` have been said of the pictures; free answers only."""
    texts = [""] * len(items)
    for _, rows in by_relation(items):
        prompt = chain_prompt(study, [items[i] for i in rows], [names[i] for i in rows])
        found = complete(
            study.vlm, prompt, stop=study.benchmark.stop, max_new_tokens=6, on_rows=study.tick
        )
        for row, text in zip(rows, found.texts, strict=True):
            texts[row] = text
    return score(study, items, texts, [""] * len(items))


def recovery(study: Study, gates: xr.Dataset, *, window_end: int) -> xr.Dataset:
    """Run every arm.

    Parameters
    ----------
    study : Study
    gates : Dataset
        From :func:`twohop.recall.recall`.
    window_end : int
        Last block of the backbone's enrichment window.

    Returns
    -------
    Dataset
        ``recovered`` (arm, lost): right after the intervention (a share, for the random
        positions), NaN where an arm was not tried on an item; ``said`` (arm, lost); ``followed``
        (follow_arm, tried): the answer is that of the entity whose values, or name, were put in;
        ``still_right`` (harm_arm, kept); back-patching as :func:`back_patching`.
    """
    benchmark = study.benchmark
    right = {gate: gates["right"].sel(gate=gate).values for gate in gates["gate"].values}
    able = right["recognised"] & right["backbone_text"] & ~gates["surface"].values
    lost = [
        item for item, gone in zip(benchmark.items, able & ~right["vlm_image"], strict=True) if gone
    ]
    tried = known_items(
        benchmark.items, able & ~right["vlm_image"], seed=study.seed, limit=MAX_LOST
    )
    kept = known_items(benchmark.items, able & right["vlm_image"], seed=study.seed, limit=MAX_KEPT)
    place = {item.id: i for i, item in enumerate(benchmark.items)}
    own_names = gates["text"].sel(gate="recognised").values

    arms: dict[str, np.ndarray] = {}
    said: dict[str, list[str]] = {}
    followed: dict[str, np.ndarray] = {}
    still: dict[str, np.ndarray] = {}
    if tried:
        for arm, scored in transplant_arms(
            study, tried, window_end=window_end, arms=PATCH_ARMS[1:]
        ).items():
            arms[arm], said[arm] = scored.right, scored.texts
            if arm == "wrong_entity":
                followed[arm] = follows(study, tried, scored)
        arms["transplant_random_position"] = random_positions(
            study, tried, window_end=window_end
        ).mean(0)
        names = {
            "cot_named": [str(own_names[place[item.id]]) for item in tried],
            "cot_gold": [item.entity.name for item in tried],
            "cot_wrong": [tried[j].entity.name for j in partners(tried, seed=study.seed)],
        }
        for arm, some in names.items():
            scored = chain(study, tried, some)
            arms[arm], said[arm] = scored.right, scored.texts
            if arm == "cot_wrong":
                followed[arm] = follows(study, tried, scored)
    back = back_patching(study, tried)
    arms["back_patching"] = back["own"].values[back.attrs["chosen"]]
    arms["back_patching_null"] = back["null"].values[back.attrs["chosen_null"]]
    where = [[item.id for item in lost].index(item.id) for item in tried]
    tables = {name: np.full(len(lost), np.nan) for name in ARMS}
    words = {name: [""] * len(lost) for name in tables}
    for arm, row in arms.items():
        tables[arm][where] = row
        for i, text in zip(where, said.get(arm, []), strict=False):
            words[arm][i] = text
    if lost:
        # The arm that the diagnosis of every lost item needs is run on all of them.
        [whole] = transplant_arms(study, lost, window_end=window_end, arms=PATCH_ARMS[:1]).values()
        tables["transplant_all_image"] = whole.right.astype(float)
        words["transplant_all_image"] = whole.texts
    if kept:
        for arm, scored in transplant_arms(
            study, kept, window_end=window_end, arms=HARM_ARMS[:2]
        ).items():
            still[arm] = scored.right
        still["cot_named"] = chain(
            study, kept, [str(own_names[place[item.id]]) for item in kept]
        ).right
    result = xr.Dataset(
        {
            "recovered": (("arm", "lost"), _table(tables, len(lost))),
            "said": (
                ("arm", "lost"),
                text_array(list(words.values())).reshape(len(words), len(lost)),
            ),
            "followed": (("follow_arm", "tried"), _table(followed, len(tried))),
            "still_right": (("harm_arm", "kept"), _table(still, len(kept))),
            "lost_entity": ("lost", text_array([item.entity.name for item in lost])),
            "tried_entity": ("tried", text_array([item.entity.name for item in tried])),
            "kept_entity": ("kept", text_array([item.entity.name for item in kept])),
        },
        coords={
            "arm": list(tables),
            "follow_arm": list(followed),
            "harm_arm": list(still),
            "lost": [item.id for item in lost],
            "tried": [item.id for item in tried],
            "kept": [item.id for item in kept],
        },
        attrs={"window_end": window_end, "random_seeds": RANDOM_SEEDS},
    )
    return result.merge(back, combine_attrs="no_conflicts")


def _table(rows: dict[str, np.ndarray], width: int) -> np.ndarray:
    return np.array([np.asarray(row, dtype=float) for row in rows.values()]).reshape(
        len(rows), width
    )
