"""Which tokens a part of a picture reaches, by painting it: no knowledge of layouts, and no boxes.

Attention in the vision tower is made to give nothing, so that a token's feature comes of its own
patches alone, through all else that the model does: patchify, blocks, merge, pooling, packing.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
import xarray as xr
from families import arguments_of
from PIL import Image

import interventions as iv

LEAST = 1e-5
Box = tuple[int, int, int, int]


def painted(picture: Image.Image, box: Box) -> Image.Image:
    """The picture with every pixel of a box in another colour, half the range away."""
    pixels = np.array(picture)
    x0, y0, x1, y1 = box
    pixels[y0:y1, x0:x1] += np.uint8(128)
    return Image.fromarray(pixels)


def _nothing(_module: Any, _args: Any, output: Any) -> Any:
    first = torch.zeros_like(output[0] if isinstance(output, tuple) else output)
    return (first, *output[1:]) if isinstance(output, tuple) else first


@contextmanager
def unmixed(model: iv.Model) -> Iterator[None]:
    """Let attention in the tower give nothing while this is open."""
    tower = model.module.get_submodule(model.anatomy.vision_tower)
    mixing = [m for m in tower.modules() if type(m).__name__.endswith("Attention")]
    assert mixing
    with ExitStack() as stack:
        for attention in mixing:
            stack.callback(attention.register_forward_hook(_nothing).remove)
        yield


def entering(model: iv.Model, prompt: iv.Prompt) -> torch.Tensor:
    """What enters the first block, [row, position, d_model], without attention in the tower."""
    kept: list[torch.Tensor] = []

    def keep(_module: Any, args: Any, kwargs: Any) -> None:
        kept.append(args[0] if args else kwargs["hidden_states"])

    with unmixed(model), ExitStack() as stack, torch.no_grad():
        first = model.module.get_submodule(f"{model.anatomy.blocks}.0")
        stack.callback(first.register_forward_pre_hook(keep, with_kwargs=True).remove)
        model.module(**arguments_of(prompt))
    return kept[0]


def reached(
    model: iv.Model,
    text: str,
    pictures: Sequence[Image.Image],
    which: int,
    boxes: Sequence[Box],
    *,
    told: dict[str, Any] | None = None,
) -> list[set[int]]:
    """For each box, positions of the tokens that change when it is painted in a row's picture.

    ``told``: to the processor.
    """
    rows = [list(pictures)]
    for box in boxes:
        rows.append(list(pictures))
        rows[-1][which] = painted(pictures[which], box)
    plain, *others = entering(
        model, model.prompt([text] * len(rows), images=rows, processor_kwargs=told)
    )
    differences = [(plain - other).abs().amax(-1) for other in others]
    least = LEAST * float(plain.abs().max())  # rows of a batch differ by rounding
    return [{*(change > least).nonzero().flatten().tolist()} for change in differences]


def sides(grid: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Width and height of whole tokens of the view that each token is of."""
    kinds, wide = grid["kind"].values, (grid["x1"] - grid["x0"]).values
    tall = (grid["y1"] - grid["y0"]).values
    for kind in {*kinds.tolist()} - {"newline", "class", "padding"}:
        of_kind = kinds == kind
        wide[of_kind], tall[of_kind] = wide[of_kind].max(), tall[of_kind].max()
    return wide, tall


def touched(grid: xr.Dataset, box: Any, *, by: float = 0.0, grown: Any = 0.0) -> set[int]:
    """Positions of tokens of which more than a share of their sides lies in a box."""
    wide, tall = sides(grid)
    x0, y0, x1, y1 = (grid[name].values for name in ("x0", "y0", "x1", "y1"))
    across = np.minimum(x1, box[2] + grown) - np.maximum(x0, box[0] - grown)
    down = np.minimum(y1, box[3] + grown) - np.maximum(y0, box[1] - grown)
    inside = (across > by * wide) & (down > by * tall)
    return {*grid["position"].values[inside].tolist()}
