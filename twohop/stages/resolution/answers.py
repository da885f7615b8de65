"""The answer's curves beside the entity's: by the model's own head, and by a probe for it."""

from collections.abc import Sequence

import numpy as np
import torch

from interventions.probing.ridge import fit_probe
from interventions.running.lens import lens
from twohop.ask.questions import Questions, by_relation
from twohop.ask.residence import at_home
from twohop.ask.roles import backbone_layers
from twohop.ask.study import Study, first_tokens, text_prompt
from twohop.stages.resolution.states import own_items, probed_relation, spread_rows, text_states


def lens_curves(study: Study, hidden: Sequence[torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Mean lens probability of the name's and of the answer's first token, [role, layer] each.

    On no more entities than the protocol's ``lens_entities``: the head is the dearest part of a
    small model.
    """
    vlm, questions = study.vlm, Questions(study, own_items(study.benchmark))
    n = len(questions)
    tokens = torch.zeros(n, 2, dtype=torch.long)
    for rows in questions.parts():
        asked = questions.named(vlm, rows[:1])
        for i in rows:
            said = (questions.items[i].entity.name, questions.items[i].answers[0])
            tokens[i] = torch.tensor(first_tokens(vlm, asked, said))
    sampled = [*spread_rows(n, study.protocol.lens_entities)]
    at_home(vlm)
    logprobs, _ = lens(
        vlm, torch.cat([states[:, sampled] for states in hidden]).float(), tokens[sampled]
    )
    curves = logprobs.exp().mean(1).unflatten(0, (len(hidden), -1))
    return curves[..., 0].cpu().numpy(), curves[..., 1].cpu().numpy()


def answer_curves(study: Study, seen: torch.Tensor) -> tuple[np.ndarray, float, str]:
    """Probe the last token for the answer, on entities that the probe was not fitted on.

    Parameters
    ----------
    study : Study
    seen : Tensor [layer, entity, d_model]
        The VLM's states there, each entity asked about by its :func:`own_items`.

    Returns
    -------
    curves : ndarray [model, layer]
        Held-out accuracy, for the VLM (image) and the backbone (text), on the VLM's layers.
    chance : float
        Share of the commonest answer.
    relation : str
    """
    benchmark = study.benchmark
    relation = probed_relation(benchmark)
    items = [benchmark.items[i] for i in dict(by_relation(benchmark.items))[relation]]
    kinds = benchmark.answer_set(relation)
    labels = torch.tensor([kinds.index(item.answers[0]) for item in items])
    entities = [item.entity for item in items]
    template = benchmark.templates[relation]
    row_of = {entity.code: row for row, entity in enumerate(benchmark.entities)}
    named = text_prompt(study.backbone, template, entities)
    n_folds, ridge = study.protocol.answer_folds, study.protocol.answer_ridge
    folds = torch.tensor(np.random.default_rng(study.seed).permutation(len(items)) % n_folds)
    curves = []
    mine = seen[:, [row_of[entity.code] for entity in entities]]
    for last in (mine, *text_states(study, [(named, named.at("last"))])):
        right = torch.zeros(last.shape[:2])
        for fold in folds.unique().tolist():
            probe = fit_probe(
                last[:, folds != fold], labels[folds != fold], n_classes=len(kinds), ridge=ridge
            )
            here = probe.predict(last[:, folds == fold]) == labels[folds == fold]
            right[:, folds == fold] = here.float()
        curves.append(right.mean(-1).numpy())
    curves[1] = curves[1][backbone_layers(study.pair)]
    chance = float(torch.bincount(labels).max() / len(labels))
    return np.stack(curves), chance, relation
