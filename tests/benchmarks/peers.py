"""Patching one cell per forward pass: how other libraries document it, and raw hooks."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from nnsight.modeling.transformers import TransformersModel
from transformers import AutoTokenizer

import interventions as iv
from benchmarks.contest import Run
from benchmarks.models import plain

ARCHITECTURES = {"llava": "LlavaForConditionalGeneration", "llama": "LlamaForCausalLM"}


@dataclass(frozen=True)
class Cell:
    """Values [position or 1, d_model] that are written behind a block."""

    layer: int
    positions: tuple[int, ...]
    value: torch.Tensor


@dataclass(frozen=True)
class Task:
    """Cells of a prompt; wanted are the logits of its last token for each, [cell, vocab]."""

    model: iv.Model
    prompt: iv.Prompt
    cells: Sequence[Cell]

    @property
    def inputs(self) -> dict[str, Any]:
        moved = {key: value.to(self.model.device) for key, value in self.prompt.inputs.items()}
        if "pixel_values" in moved:
            moved["pixel_values"] = moved["pixel_values"].to(self.model.dtype)
        return {**moved, "logits_to_keep": 1}

    def each(self, logits: Callable[[Cell], torch.Tensor]) -> Run:
        """Run what gives the logits [vocab] of one cell, for several."""

        def run(units: list[int]) -> torch.Tensor:
            with torch.no_grad():
                return torch.stack([logits(self.cells[i]).float() for i in units])

        return run


def blocks(module: Any) -> Any:
    """The blocks of a decoder."""
    return module.get_decoder().layers


def raw(task: Task) -> Run:
    """PyTorch forward hooks."""
    module, inputs = plain(task.model), task.inputs

    def logits(cell: Cell) -> torch.Tensor:
        def write(_module: Any, _args: Any, hidden: torch.Tensor) -> torch.Tensor:
            hidden = hidden.clone()
            hidden[:, list(cell.positions)] = cell.value.to(hidden)
            return hidden

        handle = blocks(module)[cell.layer].register_forward_hook(write)
        try:
            return module(**inputs).logits[0, -1]
        finally:
            handle.remove()

    return task.each(logits)


def nnsight(task: Task) -> Run:
    """One trace per cell, on a model of nnsight's own."""
    module, inputs = plain(task.model), task.inputs
    kind = "image-text-to-text" if task.prompt.has_images else "text-generation"
    processor = task.model.processor if task.prompt.has_images else None
    model = TransformersModel(
        module, task=kind, tokenizer=task.model.tokenizer, processor=processor, dispatch=True
    )
    layers = model.model.language_model.layers if task.prompt.has_images else model.model.layers

    def logits(cell: Cell) -> torch.Tensor:
        with model.trace(inputs):
            layers[cell.layer].output[:, list(cell.positions)] = cell.value
            found = model.output.logits[0, -1].save()
        return found

    return task.each(logits)


def transformer_lens(task: Task) -> Run:
    """A bridge, which makes attention eager."""
    lens = import_module("transformer_lens")
    module = plain(task.model)
    module.config.architectures = [ARCHITECTURES[module.config.model_type]]
    with tempfile.TemporaryDirectory() as folder:  # its tokenizer must have been opened from disk
        task.model.tokenizer.save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        bridge = lens.TransformerBridge.boot_transformers(
            folder,
            hf_model=module,
            tokenizer=tokenizer,
            device=str(task.model.device),
            dtype=task.model.dtype,
        )
    inputs = task.inputs
    ids = inputs.pop("input_ids")

    def logits(cell: Cell) -> torch.Tensor:
        def write(hidden: torch.Tensor, hook: Any) -> torch.Tensor:
            hidden[:, list(cell.positions)] = cell.value.to(hidden)
            return hidden

        hooks = [(f"blocks.{cell.layer}.hook_out", write)]
        return bridge.run_with_hooks(ids, fwd_hooks=hooks, **inputs)[0, -1]

    return task.each(logits)


def pyvene(task: Task) -> Run:
    """An intervenable model per layer, all on the same weights."""
    library = import_module("pyvene")
    module, inputs = plain(task.model), task.inputs
    now: list[Cell] = []

    def write(hidden: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return now[-1].value.to(hidden).expand_as(hidden)

    path = "model.language_model.layers" if task.prompt.has_images else "model.layers"
    layered = {
        layer: library.IntervenableModel(
            {"component": f"{path}[{layer}].output", "unit": "pos", "intervention": write}, module
        )
        for layer in sorted({cell.layer for cell in task.cells})
    }

    def logits(cell: Cell) -> torch.Tensor:
        now[:] = [cell]
        where = {"sources->base": (None, [[list(cell.positions)]])}
        _, found = layered[cell.layer](inputs, unit_locations=where)
        return found.logits[0, -1]

    return task.each(logits)


def nnterp(task: Task) -> Run:
    """nnsight under standard names."""
    library = import_module("nnterp")
    model = library.StandardizedTransformer(plain(task.model), tokenizer=task.model.tokenizer)
    inputs = task.inputs

    def logits(cell: Cell) -> torch.Tensor:
        with model.trace(inputs):
            model.layers_output[cell.layer][:, list(cell.positions)] = cell.value
            found = model.logits[0, -1].save()
        return found

    return task.each(logits)


PEERS = {
    "raw hooks": raw,
    "nnsight": nnsight,
    "TransformerLens": transformer_lens,
    "pyvene": pyvene,
    "nnterp": nnterp,
}
