"""Writing the backbone's entity into the VLM, and the controls that must fail."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from interventions import Model, Patch, Prompt, Site, transplant
from interventions.model.sites import Component
from interventions.prompt.positions import from_lists
from twohop.ask.memory import read
from twohop.ask.on_server import Task, Tick
from twohop.ask.questions import Questions, Rows, Scored
from twohop.ask.roles import entity_tokens, has_image_tokens, last_entity_token, question_tokens
from twohop.ask.study import mean_of_others
from twohop.stages.patched import free_answers
from twohop.stages.recovery.arms import LAST, WHOLE, WHOLE_MLP, WITHOUT_IMAGE_TOKENS, WRITTEN


def own_arm(vlm: Model, arm: str) -> str:
    """Name of an arm in a VLM: by the tokens where it writes."""
    return arm if has_image_tokens(vlm) else WITHOUT_IMAGE_TOKENS.get(arm, arm)


@dataclass(frozen=True)
class Reading:
    """Values of entities in the backbone, at the last token of their names.

    Attributes
    ----------
    questions : Questions
        About the entities.
    component : str
    layers : list of int
    """

    questions: Questions
    component: Component
    layers: list[int]


def entity_values(*readings: Reading) -> list[torch.Tensor]:
    """Backbone activations at the last token of entities, [layer, item, d_model] for each reading.

    Of items of the same relations in the same order; all in one go, as on a server each is a
    request.
    """
    questions = readings[0].questions
    backbone = questions.study.backbone

    def arguments(rows: Rows) -> Task:
        return (
            [
                (reading.questions.named(backbone, rows), reading.component, reading.layers)
                for reading in readings
            ],
        )

    of_items = questions.map(name_values, arguments, model=backbone, passes=0)
    return [*torch.stack(of_items, dim=1).split([len(reading.layers) for reading in readings])]


def name_values(
    model: Model, asked: Sequence[tuple[Prompt, Component, list[int]]], *, tick: Tick
) -> torch.Tensor:
    """Activations at the last token of entities, those of all prompts, [row, layer, d_model]."""
    values = [
        read(model, prompt, [Site(component, layers, prompt.at("entity", -1))])[0].cpu()
        for prompt, component, layers in asked
    ]
    tick(0)
    return torch.cat(values).movedim(1, 0)


def blocks_to(last: int) -> list[int]:
    """Blocks from 0 to ``last``; block 0 at least."""
    return list(range(max(last, 0) + 1))


def matched_noise(values: torch.Tensor, *, seed: int) -> torch.Tensor:
    """Random directions with the norms of ``values`` [layer, item, d_model]."""
    noise = torch.randn(values.shape, generator=torch.Generator().manual_seed(seed))
    return noise / noise.norm(dim=-1, keepdim=True) * values.norm(dim=-1, keepdim=True)


def transplant_arms(
    questions: Questions,
    *,
    last_block: int,
    last_mlp: int,
    arms: Sequence[str] = WRITTEN,
) -> dict[str, Scored]:
    """Run the arms that write backbone values at fixed positions.

    Into all image tokens or the last one; where an image has none, into all of the question's
    tokens or the last of the prompt.

    Parameters
    ----------
    questions : Questions
    last_block : int
        Block outputs are written in blocks 0 to this one.
    last_mlp : int
        MLP outputs are written in blocks 0 to this one.
    arms : sequence of str
        Which of :data:`twohop.stages.recovery.arms.WRITTEN`.

    Returns
    -------
    dict of str to Scored
        By :func:`own_arm`.
    """
    study, pair = questions.study, questions.study.pair
    readings = {"own": Reading(questions, "resid_post", blocks_to(last_block))}
    if "wrong_entity" in arms:
        readings["other"] = Reading(questions.others, "resid_post", blocks_to(last_block))
    if WHOLE_MLP in arms:
        readings["mlp"] = Reading(questions, "mlp_out", blocks_to(last_mlp))
    values = dict(zip(readings, entity_values(*readings.values()), strict=True))
    own = values["own"]
    sources: dict[str, tuple[Component, torch.Tensor]] = {
        WHOLE: ("resid_post", own),
        LAST: ("resid_post", own),
        WHOLE_MLP: ("mlp_out", values.get("mlp", own)),
        "wrong_entity": ("resid_post", values.get("other", own)),
        "mean_entity": ("resid_post", mean_of_others(own, questions.items)),
        "norm_matched": ("resid_post", matched_noise(own, seed=study.seed)),
    }

    def cells_of(shown: Prompt, rows: Rows) -> list[list[Patch]]:
        # One arm to a cell: a decoding step costs the same for all arms as for one.
        cells = []
        for arm in arms:
            component, value = sources[arm]
            place = (last_entity_token if arm == LAST else entity_tokens)(shown)
            blocks = slice(len(value))
            cells.append(
                transplant(pair, value[:, rows], component=component, layers=blocks, write_at=place)
            )
        return cells

    said = said_in_cells(questions, cells_of, n_cells=len(arms))
    return {
        own_arm(study.vlm, arm): questions.score(texts)
        for arm, texts in zip(arms, said, strict=True)
    }


def said_in_cells(
    questions: Questions,
    cells_of: Callable[[Prompt, Rows], list[list[Patch]]],
    *,
    n_cells: int,
    marked: bool = False,
) -> list[list[str]]:
    """Free answers about the pictures of items under interventions, [cell][item].

    Parameters
    ----------
    questions : Questions
    cells_of : callable
        ``cells_of(prompt, rows)`` gives the cells of the prompt of some of the items.
    n_cells : int
        How many these are.
    marked : bool
        Leave the question in the rows and give it the role ``asked``, to be written into.
    """
    study = questions.study

    def arguments(rows: Rows) -> Task:
        share: bool | str = questions.template(rows).prefix if marked else True
        shown = questions.shown(rows, marked=marked, share_prefix=share)
        return shown, cells_of(shown, rows), study.decoding

    of_items = questions.map(free_answers, arguments, model=study.vlm, passes=n_cells)
    return [[texts[cell] for texts in of_items] for cell in range(n_cells)]


def random_positions(questions: Questions, *, last_block: int) -> np.ndarray:
    """Write the right values at random text tokens instead of the image's.

    As many as there are image tokens, but no more than a share of the question's, the protocol's
    ``random_share``; where an image has none, at one, as there is one last token.

    Returns
    -------
    ndarray of bool [seed, item]
        Whether the free answer is then right.
    """
    study = questions.study
    n_seeds, share = study.protocol.random_seeds, study.protocol.random_share
    layers = blocks_to(last_block)
    [values] = entity_values(Reading(questions, "resid_post", layers))

    def cells_of(shown: Prompt, rows: Rows) -> list[list[Patch]]:
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
            cells.append(transplant(study.pair, mine, layers=layers, write_at=drawn))
        return cells

    said = said_in_cells(questions, cells_of, n_cells=n_seeds, marked=True)
    return np.array([questions.score(texts).right for texts in said])
