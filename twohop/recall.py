"""Gates: what each model answers to each item, asked in each way; and the gap between them.

======================  ====================================================================
gate                    who is asked, and how
======================  ====================================================================
``recognised``          the VLM names the entity in the image
``backbone_text``       the backbone is asked about the named entity
``vlm_text``            the VLM's own weights are asked the same, without an image
``vlm_image``           the VLM is asked about the imaged entity
``vlm_blank``           the same with a blank image: what the question alone gives away
======================  ====================================================================
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import xarray as xr

from interventions import Model
from interventions.choosing import RULES
from twohop.answering import DEFAULT_RULE, answers
from twohop.asking import (
    Scored,
    Study,
    ask,
    by_relation,
    chosen_right,
    first_token,
    image_prompt,
    item_coords,
    name_entities,
    score,
    text_array,
    text_prompt,
)
from twohop.entities.items import Item
from twohop.running import on_each

GATES = ("recognised", "backbone_text", "vlm_text", "vlm_image", "vlm_blank")


def gate_dataset(items: Sequence[Item], scored: Scored, *, gate: str) -> xr.Dataset:
    """One gate's answers as a Dataset with dims ``item``, ``rule`` and a ``gate`` of length one."""
    by_rule = {rule: scored.by_rule.get(rule, [""] * len(items)) for rule in RULES}

    def right_of(choices: Sequence[str]) -> np.ndarray:
        return chosen_right(items, choices)

    data = {
        "text": (("gate", "item"), text_array([scored.texts])),
        "choice": (("gate", "item"), text_array([scored.choices])),
        "outcome": (("gate", "item"), text_array([scored.outcomes])),
        "right": (("gate", "item"), scored.right[None]),
        "choice_right": (("gate", "item"), scored.choice_right[None]),
        "cut": (("gate", "item"), np.array([scored.cut], dtype=bool)),
        "forced_choice": (("gate", "rule", "item"), text_array([list(by_rule.values())])),
        "forced_right": (("gate", "rule", "item"), np.array([[*map(right_of, by_rule.values())]])),
    }
    coords = {"gate": [gate], "rule": list(by_rule), **item_coords(items)}
    return xr.Dataset(data, coords=coords)


def text_gate(study: Study, model: Model, *, gate: str) -> xr.Dataset:
    """Ask a model about the named entities.

    Parameters
    ----------
    study : Study
    model : Model
        The backbone, or the VLM without an image.
    gate : str
        ``"backbone_text"`` or ``"vlm_text"``.

    Returns
    -------
    Dataset
        Dims ``gate`` (1), ``item`` and ``rule``: ``text``, ``choice``, ``outcome``, ``right`` (free
        answer), ``choice_right`` (forced choice), ``cut`` (the free answer was at the limit of
        tokens before it ended); and the forced choice under each rule
        (:data:`interventions.choosing.RULES`), ``forced_choice`` and ``forced_right``, of which
        ``choice`` is the first. ``forced_choice`` is empty where a rule gives none.
    """
    items = study.benchmark.items
    templates = study.benchmark.templates
    prior = unnamed(study, model)
    scored = ask(
        study,
        model,
        items,
        prompt_of=lambda relation, some: text_prompt(
            model, templates[relation], [item.entity for item in some]
        ),
        prior=[prior[item.relation] for item in items],
    )
    return gate_dataset(items, scored, gate=gate)


def unnamed(study: Study, model: Model) -> dict[str, list[float]]:
    """Log-probabilities of each relation's candidates where the entity is not named, nats.

    It is asked about in the words of the question about a picture, if that has its own, else as
    "it": :meth:`twohop.entities.items.Template.fill_with_nothing`.
    """
    benchmark = study.benchmark
    tasks = (
        (
            model.prompt(benchmark.templates[relation].fill_with_nothing()),
            benchmark.answer_set(relation),
            study.decoding,
        )
        for relation in benchmark.relations
    )
    found = on_each(model, answers, tasks)
    return {
        relation: said["scores"][0]
        for relation, said in zip(benchmark.relations, found, strict=True)
    }


def same_decoder(vlm: Model, backbone: Model) -> bool:
    """Whether a VLM answers text exactly as its backbone: same tokens, bit-equal decoder.

    Weights that are on a server are not compared: there, what is not the same model is asked.
    """
    if vlm is backbone:
        return True
    if vlm.remote or backbone.remote:
        return False
    ours, theirs = vlm.tokenizer.get_vocab(), backbone.tokenizer.get_vocab()
    changed = {i for token, i in theirs.items() if ours.get(token) != i}
    if changed - {vlm.anatomy.image_token_id}:
        return False
    pairs = (
        (vlm.module.get_submodule(a), backbone.module.get_submodule(b))
        for a, b in (
            (vlm.anatomy.blocks, backbone.anatomy.blocks),
            (vlm.anatomy.embeddings, backbone.anatomy.embeddings),
            (vlm.anatomy.final_norm, backbone.anatomy.final_norm),
            (vlm.anatomy.head, backbone.anatomy.head),
        )
    )
    for one, its_twin in pairs:
        mine, other = one.state_dict(), its_twin.state_dict()
        if mine.keys() != other.keys():
            return False
        if any(not torch.equal(mine[key], other[key]) for key in mine):
            return False
    return True


def recall(study: Study, backbone_text: xr.Dataset) -> xr.Dataset:
    """Run the gates that need the VLM and join the backbone's.

    Parameters
    ----------
    study : Study
    backbone_text : Dataset
        :func:`text_gate` of the backbone on the same items.

    Returns
    -------
    Dataset
        Dims ``gate`` (:data:`GATES`) and ``item``, as :func:`text_gate`; plus ``surface`` (the
        answer begins as the entity's name does, so spelling alone may give it).
    """
    benchmark, vlm = study.benchmark, study.vlm
    items = benchmark.items
    templates = benchmark.templates

    texts, named, cut = name_entities(study, benchmark.entities)
    row = {entity.code: i for i, entity in enumerate(benchmark.entities)}
    rows = [row[item.entity.code] for item in items]
    said = [texts[i] for i in rows]
    scored = score(study, items, said, [""] * len(items))
    scored = replace(scored, cut=[cut[i] for i in rows])
    recognised = gate_dataset(items, scored, gate="recognised")
    recognised["right"] = (("gate", "item"), named[rows][None])
    recognised["choice_right"] = recognised["right"]
    recognised["outcome"] = (
        ("gate", "item"),
        text_array([["right" if ok else "other" for ok in named[rows]]]),
    )

    same = same_decoder(vlm, study.backbone)
    if same:
        vlm_text = backbone_text.assign_coords(gate=["vlm_text"])
    else:
        vlm_text = text_gate(study, vlm, gate="vlm_text")

    blank = _blank(study)
    shown = ask(
        study,
        vlm,
        items,
        prompt_of=lambda relation, some: image_prompt(
            study, templates[relation], [item.entity for item in some]
        ),
        prior=blank.scores,
    )
    gates = [
        recognised,
        backbone_text,
        vlm_text,
        gate_dataset(items, shown, gate="vlm_image"),
        gate_dataset(items, blank, gate="vlm_blank"),
    ]
    joined = xr.concat(gates, dim="gate", coords="minimal", compat="override", join="exact")
    joined["surface"] = ("item", _surface(study))
    joined.attrs["forced_default"] = DEFAULT_RULE
    joined.attrs["vlm_text"] = (
        "the VLM's decoder is bit-equal to the backbone's, so its text answers are the backbone's"
        if same
        else "asked of the VLM's own weights"
    )
    return joined


def _surface(study: Study) -> np.ndarray:
    """Whether each item's answer begins with the token that its entity's name does, [item]."""
    vlm, found = study.vlm, np.zeros(len(study.benchmark.items), dtype=bool)
    for relation, rows in by_relation(study.benchmark.items):
        some = [study.benchmark.items[i] for i in rows]
        template = study.benchmark.templates[relation]
        asked = text_prompt(vlm, template, [some[0].entity])  # ends as all of them do
        for row, item in zip(rows, some, strict=True):
            name = first_token(vlm, asked, item.entity.name)
            found[row] = name in {first_token(vlm, asked, one) for one in item.answers}
    return found


def _blank(study: Study) -> Scored:
    """Answers to a blank image of the size of the item's own.

    One question per relation and size, as nothing in it names an entity. Its forced choice is what
    the pictures' is corrected by, so it has none that is corrected.
    """
    items = study.benchmark.items
    vlm, templates = study.vlm, study.benchmark.templates
    sizes = {e.code: study.benchmark.view(e.code, 0).size for e in study.benchmark.entities}
    kinds = [(item.relation, sizes[item.entity.code]) for item in items]
    first = dict(zip(reversed(kinds), reversed(items), strict=True))
    asked = ask(
        study,
        vlm,
        list(first.values()),
        prompt_of=lambda relation, some: vlm.prompt(
            [templates[relation].show(vlm.image_token or "")] * len(some),
            images=[study.benchmark.blank().resize(sizes[one.entity.code]) for one in some],
        ),
    )
    place = {kind: i for i, kind in enumerate(first)}
    which = [place[kind] for kind in kinds]
    scored = score(study, items, [asked.texts[i] for i in which], [asked.choices[i] for i in which])
    return replace(
        scored,
        by_rule={rule: [some[i] for i in which] for rule, some in asked.by_rule.items()},
        scores=[asked.scores[i] for i in which],
        cut=[asked.cut[i] for i in which],
    )
