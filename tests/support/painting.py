"""Which tokens a part of a picture reaches, by painting it: no knowledge of layouts, and no boxes.

The vision tower's blocks are made to pass on what they are given, so that a token's feature comes
of its own patches alone, through the model's real patchify, merge, pooling and packing.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from families import arguments_of
from PIL import Image

import interventions as iv

Box = tuple[int, int, int, int]


def painted(picture: Image.Image, box: Box) -> Image.Image:
    """The picture with every pixel of a box in another colour, half the range away."""
    pixels = np.array(picture)
    x0, y0, x1, y1 = box
    pixels[y0:y1, x0:x1] += np.uint8(128)
    return Image.fromarray(pixels)


def _passes_on(_module: Any, args: Any, kwargs: Any, output: Any) -> Any:
    given = args[0] if args else kwargs["hidden_states"]
    return (given, *output[1:]) if isinstance(output, tuple) else given


def entering(model: iv.Model, prompt: iv.Prompt) -> torch.Tensor:
    """What enters the first block, [row, position, d_model], without mixing in the tower."""
    tower = model.module.get_submodule(model.anatomy.vision_tower)
    kept: list[torch.Tensor] = []

    def keep(_module: Any, args: Any, kwargs: Any) -> None:
        kept.append(args[0] if args else kwargs["hidden_states"])

    with ExitStack() as stack, torch.no_grad():
        for blocks in tower.modules():
            if isinstance(blocks, torch.nn.ModuleList):
                for block in blocks:
                    if type(block).__name__.endswith(("Layer", "Block")):
                        hook = block.register_forward_hook(_passes_on, with_kwargs=True)
                        stack.callback(hook.remove)
        first = model.module.get_submodule(model.anatomy.blocks[0])
        stack.callback(first.register_forward_pre_hook(keep, with_kwargs=True).remove)
        model.module(**arguments_of(prompt))
    return kept[0]


def reached(
    model: iv.Model, text: str, pictures: Sequence[Image.Image], which: int, box: Box
) -> set[int]:
    """Positions of the tokens that change when a box of one picture of a row is painted."""
    changed = list(pictures)
    changed[which] = painted(pictures[which], box)
    before, after = (
        entering(model, model.prompt([text], images=[list(shown)])) for shown in (pictures, changed)
    )
    return {*(before != after).any(-1)[0].nonzero().flatten().tolist()}
