"""Training the tower, and the three projectors that differ in how they reach the backbone."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from transformers import CLIPVisionModel, LlamaForCausalLM
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from twohop.micro.corpus import IGNORED, pictured_documents
from twohop.micro.layout import IMAGE_TOKENS, vocabulary
from twohop.micro.parts import build_processor, vision_config, vlm_config
from twohop.micro.templates import IMAGE_PLACEHOLDER, description
from twohop.micro.world import ENTITIES, view

Advance = Callable[[float], None]


def training_pixels(views: int) -> tuple[Tensor, Tensor]:
    """Draw the first `views` views of every entity.

    Returns
    -------
    pixels
        `[row, channel, height, width]`, as the processor makes them.
    targets
        `[row]`: index of the entity in `ENTITIES`.
    """
    pictures = [view(entity.code, index) for entity in ENTITIES for index in range(views)]
    pixels = build_processor().image_processor(pictures, return_tensors="pt")["pixel_values"]
    return pixels, torch.arange(len(ENTITIES)).repeat_interleave(views)


def features(tower: CLIPVisionModel, pixels: Tensor) -> Tensor:
    """Return what LLaVA hands to the projector: `[row, patch, d_vision]`, no class token."""
    return tower(pixels, output_hidden_states=True).hidden_states[-1][:, 1:]


def train_tower(
    pixels: Tensor,
    targets: Tensor,
    *,
    seed: int,
    steps: int = 500,
    rows: int = 96,
    advance: Advance = lambda loss: None,
) -> CLIPVisionModel:
    """Train the tower to tell the entity at every patch, and the k-th word of its description.

    Parameters
    ----------
    pixels, targets
        Training pictures `[row, channel, height, width]` and their entities `[row]`.
    seed, steps, rows
        Of the initial weights and batches; optimiser steps; pictures per step.
    advance
        Called with the loss (nats) after every step.
    """
    index = {word: number for number, word in enumerate(vocabulary())}
    words = torch.tensor([[index[word] for word in row] for row in description_words()])
    rng = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tower = CLIPVisionModel(vision_config())
        width = vision_config().hidden_size
        to_entity, to_word = nn.Linear(width, len(ENTITIES)), nn.Linear(width, len(index))
    weights = [*tower.parameters(), *to_entity.parameters(), *to_word.parameters()]
    optimiser, schedule = _optimiser(weights, peak_rate=3e-3, steps=steps)
    for _ in range(steps):
        row = torch.randint(len(pixels), (rows,), generator=rng)
        seen = features(tower, pixels[row]).flatten(0, 1)
        entity = targets[row].repeat_interleave(IMAGE_TOKENS)
        loss = nn.functional.cross_entropy(to_entity(seen), entity)
        loss = loss + nn.functional.cross_entropy(to_word(seen), words[targets[row]].flatten())
        _step(loss, optimiser, schedule, advance)
    return tower.eval().requires_grad_(False)


def train_by_naming(
    seen: Tensor,
    targets: Tensor,
    backbone: LlamaForCausalLM,
    *,
    seed: int,
    steps: int = 300,
    rows: int = 48,
    advance: Advance = lambda loss: None,
) -> LlavaMultiModalProjector:
    """Train a projector through the frozen backbone, on "Which country is <image> ?" alone.

    Parameters
    ----------
    seen, targets
        Features `[row, patch, d_vision]` and their entities `[row]`.
    backbone
        Frozen; gradients pass through it.
    seed, steps, rows, advance
        As for `train_tower`.
    """
    projector, rng = _projector(seed), torch.Generator().manual_seed(seed)
    optimiser, schedule = _optimiser(projector.parameters(), peak_rate=3e-3, steps=steps)
    image = vocabulary().index(IMAGE_PLACEHOLDER)
    for _ in range(steps):
        row = torch.randint(len(seen), (rows,), generator=rng)
        documents = pictured_documents([ENTITIES[index] for index in targets[row].tolist()])
        embedded = backbone.model.embed_tokens(documents.ids)
        inputs = embedded.masked_scatter(
            (documents.ids == image)[:, :, None], projector(seen[row]).to(embedded.dtype)
        )
        last = backbone.model(inputs_embeds=inputs, use_cache=False).last_hidden_state
        predicted = documents.labels[:, 1:] != IGNORED
        logits = backbone.lm_head(last[:, :-1][predicted])
        loss = nn.functional.cross_entropy(logits, documents.labels[:, 1:][predicted])
        _step(loss, optimiser, schedule, advance)
    return projector.eval()


def fit_to_embeddings(
    seen: Tensor,
    wanted: Tensor,
    *,
    seed: int,
    steps: int = 1200,
    rows: int = 192,
    advance: Advance = lambda loss: None,
) -> LlavaMultiModalProjector:
    """Fit a projector by least squares to given input embeddings, no language model involved.

    Parameters
    ----------
    seen, wanted
        Features `[row, patch, d_vision]`, and the embeddings they should become
        `[row, patch, d_model]`.
    seed, steps, rows, advance
        As for `train_tower`; the loss is the mean squared error.
    """
    projector, rng = _projector(seed), torch.Generator().manual_seed(seed)
    optimiser, schedule = _optimiser(projector.parameters(), peak_rate=5e-3, steps=steps)
    for _ in range(steps):
        row = torch.randint(len(seen), (rows,), generator=rng)
        loss = nn.functional.mse_loss(projector(seen[row]), wanted[row])
        _step(loss, optimiser, schedule, advance)
    return projector.eval()


def name_words() -> list[list[str]]:
    """Return, per entity, the words its image tokens stand for in `micro-aligned`: its name."""
    return [(entity.name.split() * IMAGE_TOKENS)[-IMAGE_TOKENS:] for entity in ENTITIES]


def description_words() -> list[list[str]]:
    """Return, per entity, the words its image tokens stand for in `micro-late`."""
    return [description(entity).split() for entity in ENTITIES]


def embeddings_of(words: list[list[str]], backbone: LlamaForCausalLM) -> Tensor:
    """Return the input embeddings of rows of words: `[row, word, d_model]`."""
    index = {word: number for number, word in enumerate(vocabulary())}
    ids = torch.tensor([[index[word] for word in row] for row in words])
    return backbone.model.embed_tokens(ids).detach()


def _projector(seed: int) -> LlavaMultiModalProjector:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlavaMultiModalProjector(vlm_config())


def _optimiser(
    weights: object, *, peak_rate: float, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    optimiser = torch.optim.AdamW(weights, lr=peak_rate, weight_decay=0.0)  # type: ignore[arg-type]
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min(1.0, step / 20) * 0.5 * (1 + np.cos(np.pi * step / steps))
    )
    return optimiser, schedule


def _step(
    loss: Tensor,
    optimiser: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    advance: Advance,
) -> None:
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    schedule.step()
    advance(float(loss.detach()))
