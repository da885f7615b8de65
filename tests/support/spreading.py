"""Tiny models on one pretend device, or with their blocks on two."""

from typing import Any

import tiny
import torch
from accelerate import dispatch_model

import interventions as iv
from interventions.architectures.anatomy_finding import find_anatomy


def spread(module: Any, blocks: str, upper: tuple[str, ...]) -> Any:
    """Put the upper half of the blocks, and what is named, on the second device.

    As transformers does it with a ``device_map``. Tied weights lie with the embeddings.
    """
    places: dict[str, str | int | torch.device] = {}
    n_blocks = len(module.get_submodule(blocks))

    def visit(name: str, part: Any) -> None:
        if name == blocks:
            for i in range(n_blocks):
                places[f"{name}.{i}"] = f"fake:{int(i >= n_blocks // 2)}"
        elif not name or blocks.startswith(f"{name}."):
            for own in part.parameters(recurse=False):  # no hook moves these
                own.data = own.data.to("fake:0")
            for child, inner in part.named_children():
                visit(f"{name}.{child}" if name else child, inner)
        else:
            places[name] = f"fake:{int(name in upper)}"

    visit("", module)
    return dispatch_model(module, device_map=places, main_device=torch.device("fake:0"))


def model_on(name: str, where: str, dtype: torch.dtype, attn: str) -> iv.Model:
    """A family's tiny model on one pretend device, or on both."""
    module: Any
    module, given = tiny.build(name, dtype=dtype, attn_implementation=attn)
    if where == "one":
        module.to("fake:0")
    else:
        anatomy = find_anatomy(module)
        tied = module.get_output_embeddings().weight is module.get_input_embeddings().weight
        upper = (anatomy.final_norm,) if tied else (anatomy.final_norm, anatomy.head)
        module = spread(module, anatomy.blocks, upper)
    kind = "processor" if name in tiny.VLMS else "tokenizer"
    return iv.load(module, **{kind: given})
