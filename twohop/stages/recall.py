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

from interventions import Model, Prompt
from interventions.running.forced_choice import RULES
from twohop.ask.answers import DEFAULT_RULE, answers
from twohop.ask.on_server import on_each
from twohop.ask.questions import Questions, Rows, Scored, chosen_right
from twohop.ask.study import Study, first_tokens, item_coords, name_entities, text_array
from twohop.items.items import Item

GATES = ("recognised", "backbone_text", "vlm_text", "vlm_image", "vlm_blank")


def gate_dataset(items: Sequence[Item], scored: Scored, *, gate: str) -> xr.Dataset:
    """One gate's answers as a Dataset with dims ``item``, ``rule`` and a ``gate`` of length one."""
    by_rule = {rule: scored.by_rule.get(rule, [""] * len(items)) for rule in RULES}
    forced_right = [chosen_right(items, choices) for choices in by_rule.values()]
    data = {
        "text": (("gate", "item"), text_array([scored.texts])),
        "choice": (("gate", "item"), text_array([scored.choices])),
        "outcome": (("gate", "item"), text_array([scored.outcomes])),
        "right": (("gate", "item"), scored.right[None]),
        "choice_right": (("gate", "item"), scored.choice_right[None]),
        "cut": (("gate", "item"), np.array([scored.cut], dtype=bool)),
        "forced_choice": (("gate", "rule", "item"), text_array([list(by_rule.values())])),
        "forced_right": (("gate", "rule", "item"), np.array([forced_right])),
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
        (:data:`interventions.running.forced_choice.RULES`), ``forced_choice`` and
        ``forced_right``, of which ``choice`` is the first. ``forced_choice`` is empty where a rule
        gives none. ``surface`` (item): in this model's tokens the answer begins as the entity's
        name does, so that spelling alone may give it.
    """
    items = study.benchmark.items
    questions, prior = Questions(study, items), unnamed(study, model)
    scored = questions.ask(
        model,
        lambda rows: questions.named(model, rows),
        prior=[prior[item.relation] for item in items],
    )
    asked = gate_dataset(items, scored, gate=gate)
    return asked.assign(surface=("item", _surface(questions, model)))


def unnamed(study: Study, model: Model) -> dict[str, list[float]]:
    """Log-probabilities of each relation's candidates where the entity is not named, nats.

    It is asked about in the words of the question about a picture, if that has its own, else as
    "it": :meth:`twohop.items.items.Template.fill_with_nothing`.
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
    answered = on_each(model, answers, tasks)
    return {
        relation: answer["scores"]
        for relation, [answer] in zip(benchmark.relations, answered, strict=True)
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
        (vlm.module.get_submodule(of_vlm), backbone.module.get_submodule(of_backbone))
        for of_vlm, of_backbone in (
            (vlm.anatomy.blocks, backbone.anatomy.blocks),
            (vlm.anatomy.embeddings, backbone.anatomy.embeddings),
            (vlm.anatomy.final_norm, backbone.anatomy.final_norm),
            (vlm.anatomy.head, backbone.anatomy.head),
        )
    )
    for part, twin in pairs:
        mine, other = part.state_dict(), twin.state_dict()
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
        answer begins as the entity's name does, so spelling alone may give it), and the coordinate
        ``popularity`` (item) where the benchmark knows that of an entity; NaN of the others.
    """
    benchmark, vlm = study.benchmark, study.vlm
    questions = Questions(study, benchmark.items)

    texts, named, cut = name_entities(study, benchmark.entities)
    row = {entity.code: i for i, entity in enumerate(benchmark.entities)}
    rows = [row[item.entity.code] for item in questions.items]
    scored = replace(questions.score([texts[i] for i in rows]), cut=[cut[i] for i in rows])
    recognised = gate_dataset(questions.items, scored, gate="recognised")
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

    blank = _blank(questions)
    shown = questions.ask(vlm, questions.shown, prior=blank.scores)
    gates = [
        recognised,
        backbone_text,
        vlm_text,
        gate_dataset(questions.items, shown, gate="vlm_image"),
        gate_dataset(questions.items, blank, gate="vlm_blank"),
    ]
    joined = xr.concat(
        [gate.drop_vars("surface", errors="ignore") for gate in gates],
        dim="gate",
        coords="minimal",
        compat="override",
        join="exact",
    )
    joined["surface"] = ("item", _surface(questions, vlm))
    popularity = [item.entity.popularity for item in benchmark.items]
    if any(known is not None for known in popularity):
        joined = joined.assign_coords(popularity=("item", np.array(popularity, dtype=float)))
    joined.attrs["forced_default"] = DEFAULT_RULE
    joined.attrs["vlm_text"] = (
        "the VLM's decoder is bit-equal to the backbone's, so its text answers are the backbone's"
        if same
        else "asked of the VLM's own weights"
    )
    return joined


def _surface(questions: Questions, model: Model) -> np.ndarray:
    """Whether each item's answer begins with the token that its entity's name does, [item]."""
    items = questions.items
    begins_alike = np.zeros(len(items), dtype=bool)
    for rows in questions.parts():
        asked = questions.named(model, rows[:1])  # ends as all of them do
        for row in rows:
            texts = (items[row].entity.name, *items[row].answers)
            name, *answers_begin = first_tokens(model, asked, texts)
            begins_alike[row] = name in answers_begin
    return begins_alike


def _blank(questions: Questions) -> Scored:
    """Answers to a blank image of the size of the item's own.

    One question per relation and size, as nothing in it names an entity. Its forced choice is what
    the pictures' is corrected by, so it has none that is corrected.
    """
    study, items = questions.study, questions.items
    vlm, benchmark = study.vlm, study.benchmark
    sizes = {entity.code: benchmark.view(entity.code, 0).size for entity in benchmark.entities}
    kinds = [(item.relation, sizes[item.entity.code]) for item in items]
    first = dict(zip(reversed(kinds), reversed(items), strict=True))
    blank = Questions(study, list(first.values()))

    def prompt(rows: Rows) -> Prompt:
        text = blank.template(rows).show(vlm.image_token or "")
        of_size = [sizes[blank.items[i].entity.code] for i in rows]
        pictures = [benchmark.blank().resize(size) for size in of_size]
        return vlm.prompt([text] * len(rows), images=pictures)

    asked = blank.ask(vlm, prompt)
    place = {kind: i for i, kind in enumerate(first)}
    blank_of = [place[kind] for kind in kinds]
    scored = questions.score(
        [asked.texts[i] for i in blank_of], [asked.choices[i] for i in blank_of]
    )
    return replace(
        scored,
        by_rule={rule: [choices[i] for i in blank_of] for rule, choices in asked.by_rule.items()},
        scores=[asked.scores[i] for i in blank_of],
        cut=[asked.cut[i] for i in blank_of],
    )
