"""How long the prompts of a study are, and how many items each stage may be about."""

from dataclasses import dataclass

import torch
import xarray as xr

from interventions import Model, Prompt
from interventions.prompt.answer_tokens import candidate_ids, spaced, token_ids
from interventions.sweeping.schedule import path_of
from interventions.sweeping.sizes import Sizes
from twohop.ask.questions import Questions, by_relation
from twohop.ask.roles import has_image_tokens
from twohop.ask.study import Study, image_prompt, pictured
from twohop.protocol import Protocol
from twohop.stages.resolution.states import at_names, probed_relation
from twohop.stages.windows import in_circuit
from twohop.stages.work import Asked, Lengths, Role

PICTURES = 4
"""Of each relation that are looked at: those of a set are mostly of one size."""
TILED = 6404
"""Patches of a picture that is read by cross-attention: four tiles, which mllama fills up to."""


@dataclass(frozen=True)
class Relation:
    """The prompts of one relation.

    Attributes
    ----------
    named : Lengths
        About the entity by name, for the backbone.
    cut : Lengths
        The same up to the name.
    shown, marked : Lengths
        About the pictured entity; and where the question's tokens are told from the rest, which
        are then none of what is shared.
    unnamed : int
        Tokens of the prompt about no entity in particular.
    answer : int
        Tokens of the longest answer.
    beginnings : int
        Of candidates, that another pass of a row may be fed; all tokens of them.
    """

    named: Lengths
    cut: Lengths
    shown: Lengths
    marked: Lengths
    unnamed: int
    answer: int
    beginnings: int


@dataclass(frozen=True)
class Counts:
    """Items that stages may be about.

    Attributes
    ----------
    known, both_known : int
        In text, by the backbone, and by the VLM as well.
    right, lost : int
        Known, recognised, and answered from the picture or not; on which maps are measured.
    kept, gone : int
        The same, on which the recovery is.
    exact : bool
        Whether they were counted; else they are the most there can be.
    """

    known: int
    both_known: int
    right: int
    lost: int
    kept: int
    gone: int
    exact: bool = False

    @classmethod
    def most(cls, items: int, protocol: Protocol) -> "Counts":
        """Return the most that items can be: all known, and lost before they are kept."""
        lost = min(items, protocol.lost_items)
        kept = max(1, min(items - lost, protocol.kept_items))
        shared = items // 2
        return cls(items, items, shared, items - shared, kept, lost)

    @classmethod
    def of(cls, recall: xr.Dataset, backbone_text: xr.Dataset) -> "Counts":
        """Count them in stages that are done."""
        right = {gate: recall["right"].sel(gate=gate).values for gate in recall["gate"].values}
        own = in_circuit(backbone_text)
        mapped = own & right["recognised"]
        able = right["recognised"] & right["backbone_text"] & ~recall["surface"].values
        both = own & in_circuit(recall.sel(gate=["vlm_text"]))
        answered = right["vlm_image"]
        numbers = (own, both, mapped & answered, mapped & ~answered, able & answered)
        return cls(*(int(which.sum()) for which in (*numbers, able & ~answered)), exact=True)


@dataclass(frozen=True)
class Scope:
    """What a study asks of a pair, as far as it decides what it costs.

    Attributes
    ----------
    vlm, backbone : Asked
    relations : tuple of Relation
    naming : Lengths
        Of the question for the name of each pictured entity.
    named : Lengths
        Of the prompt that asks the backbone for it, up to the name.
    chained : Lengths
        Of a chain, the first question and its answer ahead.
    probed : int
        The relation whose answers are probed for.
    steps : int
        Tokens that an answer is expected to go on for behind its first.
    counts : Counts
    same : bool
        Whether the VLM's decoder is the backbone's, bit for bit: then its text is not asked again.
    """

    vlm: Asked
    backbone: Asked
    relations: tuple[Relation, ...]
    naming: Lengths
    named: Lengths
    chained: Lengths
    probed: int
    steps: int
    counts: Counts
    same: bool = False

    def spread(self, n: int) -> list[int]:
        """How many of ``n`` items are of each relation, as even as can be."""
        left, shares = n, [0] * len(self.relations)
        while left > 0:
            room = [i for i, of in enumerate(self.relations) if shares[i] < len(of.named.rows)]
            if not room:
                break
            for i in room[:left]:
                shares[i] += 1
            left -= len(room[:left])
        return shares

    def sampled(self, n: int, kind: str) -> list[tuple[Relation, Lengths]]:
        """Each relation with its part of ``n`` prompts of a kind, such as ``"named"``."""
        return [
            (relation, getattr(relation, kind).sample(share))
            for relation, share in zip(self.relations, self.spread(n), strict=True)
            if share
        ]


def scope_of(study: Study, *, counts: Counts | None = None, same: bool = False) -> Scope:
    """Look at a study's prompts; its models may be without weights.

    Parameters
    ----------
    study : Study
    counts : Counts, optional
        Default: the most there can be.
    same : bool
        As in :class:`Scope`.
    """
    benchmark, vlm, backbone = study.benchmark, study.vlm, study.backbone
    questions = Questions(study, benchmark.items)
    groups = [rows for _, rows in by_relation(benchmark.items)]
    relations = []
    for rows in groups:
        items = [benchmark.items[i] for i in rows]
        template = benchmark.templates[items[0].relation]
        named = questions.named(backbone, rows)
        [(cut, _)] = at_names(backbone, [(template, [item.entity for item in items])])
        few = rows[:PICTURES]
        plain, marked = (
            lengths_of(vlm, questions.shown(few, marked=told), "image").sample(len(rows))
            for told in (False, True)
        )
        space = spaced(backbone, named)
        candidates = candidate_ids(
            backbone,
            benchmark.answer_set(items[0].relation),
            stop=benchmark.end or benchmark.stop,
            space=space,
        )
        begun = {tuple(ids[:done]) for ids in candidates for done in range(1, len(ids))}
        relations.append(
            Relation(
                lengths_of(backbone, named, "entity"),
                lengths_of(backbone, cut, "entity"),
                plain,
                marked,
                int(backbone.prompt(template.fill_with_nothing()).lengths[0]),
                max(map(len, token_ids(backbone, [i.answers[0] for i in items], space=space))),
                sum(map(len, begun)),
            )
        )
    entities = benchmark.entities
    naming = image_prompt(study, benchmark.naming, entities[:PICTURES])
    [(named, _)] = at_names(backbone, [(benchmark.naming, entities)])
    first = benchmark.items[:1]
    chain = benchmark.chain(first[0].relation, first[0].entity.name)
    chained = lengths_of(vlm, pictured(study, first, [chain]), "image")
    probed = probed_relation(benchmark)
    n = len(benchmark.items)
    return Scope(
        _asked("vlm", vlm, patches=patches_of(vlm, naming)),
        _asked("backbone", backbone),
        tuple(relations),
        lengths_of(vlm, naming, "image").sample(len(entities)),
        lengths_of(backbone, named, "entity"),
        chained,
        [*dict(by_relation(benchmark.items))].index(probed),
        study.max_new_tokens - 1,
        counts or Counts.most(n, study.protocol),
        same,
    )


def lengths_of(model: Model, prompt: Prompt, entity: str) -> Lengths:
    """Measure a prompt; ``entity`` is the role that it is about, if it has its tokens."""
    ahead, behind = 0, prompt.length
    if entity == "entity" or has_image_tokens(model):
        at = prompt.at(entity)
        left = prompt.length - prompt.lengths
        ahead = int((at.index[:, 0] - left).min())
        ends = torch.stack(
            [index[mask].max() for index, mask in zip(at.index, at.mask, strict=True)]
        )
        behind = int((prompt.length - ends).max())
    return Lengths(
        tuple(sorted(prompt.lengths.tolist())),
        len(prompt.prefix_ids),
        ahead,
        behind,
        prompt.has_images,
        path_of(model, prompt)[0],
        sum(tensor.nbytes for tensor in prompt.inputs.values()) // len(prompt),
    )


def patches_of(model: Model, prompt: Prompt) -> int:
    """Tokens of a picture in the vision tower, about: those it has in the text, if it has any."""
    return int(prompt.at("image").counts.max()) if has_image_tokens(model) else TILED


def _asked(role: Role, model: Model, *, patches: int = 0) -> Asked:
    blocks = len(model.anatomy.self_blocks)
    vision = vision_of(model)
    return Asked(role, Sizes.of(model), model.device.type, blocks, vision, patches)


def vision_of(model: Model) -> int:
    """Parameters of a model's vision tower and projector."""
    anatomy = model.anatomy
    paths = [path for path in (anatomy.vision_tower, anatomy.projector) if path]
    parts = torch.nn.ModuleList([model.module.get_submodule(path) for path in paths])
    return sum(parameter.numel() for parameter in parts.parameters())
