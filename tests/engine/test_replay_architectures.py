"""Replayed cells equal one forward pass with plain hooks each, outside the conformance suite too.

Some of these blocks give a tuple, keep something else in the cache than what they attend to, or do
not attend through transformers' interchangeable functions.
"""

from contextlib import ExitStack
from itertools import product
from typing import Any

import pytest
import torch
from floors import FLOOR32, noise, relative
from test_architectures import HEADS, LAYERS, UNDERSTOOD, WIDTH, build, tokenizer_of

import interventions as iv
from interventions.errors import PatchError, SiteError
from interventions.sweeping.schedule import path_of

TEXTS = ["The capital of France is", "Who was the first mayor of the town in the north?"]
BEGIN = "This is a longer beginning. The capital of "
SHARED = [f"{BEGIN}France is", f"{BEGIN}the big town was"]
FALCON = UNDERSTOOD["Falcon"]
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, settings) for name, settings in UNDERSTOOD.items()},
    "GPTNeo": (
        "GPTNeo",
        {
            **{"hidden_size": WIDTH, "num_layers": LAYERS, "num_heads": HEADS, "window_size": 4},
            "attention_types": [[["global", "local", "global"], 1]],
        },
    ),
    "JetMoe": (
        "JetMoe",
        {
            **{"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_key_value_heads": 2},
            **{"kv_channels": 8, "intermediate_size": 32, "num_local_experts": 4},
        },
    ),
    "Falcon with groups": (
        "Falcon",
        {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2},
    ),
    "Falcon with all heads": ("Falcon", {**FALCON, "multi_query": False}),
    "Falcon with alibi": ("Falcon", {**FALCON, "alibi": True}),
    "Falcon one after the other": ("Falcon", {**FALCON, "parallel_attn": False, "bias": True}),
}
PATHS = {  # blocks, and in them what gives attn_out and mlp_out
    **dict.fromkeys(("GPT2", "GPTBigCode"), ("transformer.h", "attn", "mlp")),
    **dict.fromkeys(("GPTJ", "CodeGen"), ("transformer.h", "attn", "mlp")),
    "GPTNeo": ("transformer.h", "attn", "mlp"),
    "GPTNeoX": ("gpt_neox.layers", "attention", "mlp"),
    "Falcon": ("transformer.h", "self_attention", "mlp"),
    **dict.fromkeys(
        ("Olmo2", "Exaone4"),
        ("model.layers", "post_attention_layernorm", "post_feedforward_layernorm"),
    ),
    "JetMoe": ("model.layers", "self_attention", "mlp"),
    "Glm4": ("model.layers", "post_self_attn_layernorm", "post_mlp_layernorm"),
    "Mixtral": ("model.layers", "self_attn", "mlp"),
}
OTHERS = ("model.layers", "self_attn", "mlp")
WITHOUT_SDPA = ("GPTJ", "GPTNeo", "CodeGen", "GptOss", "VaultGemma")
CASES = [
    (name, attn)
    for name, attn in product(VARIANTS, ("eager", "sdpa"))
    if attn == "eager" or name not in WITHOUT_SDPA
]


def model_of(name: str, attn: str) -> iv.Model:
    architecture, settings = VARIANTS[name]
    module = build(architecture, {**settings, "attn_implementation": attn})
    return iv.load(module, tokenizer=tokenizer_of())


def hooked(model: iv.Model, name: str, prompt: iv.Prompt, patches: list[iv.Patch]) -> torch.Tensor:
    """Logits [row, vocab] at the last token, with values set by plain hooks."""
    blocks, attention, mlp = PATHS.get(VARIANTS[name][0], OTHERS)

    def changed(value: torch.Tensor, patch: iv.Patch) -> torch.Tensor:
        new = value.clone().reshape(*prompt.inputs["input_ids"].shape, -1)
        for row, (index, mask) in enumerate(
            zip(patch.positions.index, patch.positions.mask, strict=True)
        ):
            new[row, index[mask]] = patch.value[row][mask]
        return new.reshape(value.shape)

    def before(patch: iv.Patch) -> Any:
        def hook(_module: Any, args: Any, kwargs: Any) -> Any:
            if args:
                return (changed(args[0], patch), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": changed(kwargs["hidden_states"], patch)}

        return hook

    def after(patch: iv.Patch) -> Any:
        def hook(_module: Any, _args: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (changed(output[0], patch), *output[1:])
            return changed(output, patch)

        return hook

    with ExitStack() as stack, torch.no_grad():
        for patch in patches:
            block = model.module.get_submodule(f"{blocks}.{patch.layers}")
            part = {"attn_out": attention, "mlp_out": mlp}.get(patch.component)
            part = block if part is None else block.get_submodule(part)
            handle = (
                part.register_forward_pre_hook(before(patch), with_kwargs=True)
                if patch.component == "resid_pre"
                else part.register_forward_hook(after(patch))
            )
            stack.callback(handle.remove)
        return model.module(**prompt.inputs).logits[:, -1]


def cells_of(model: iv.Model, prompt: iv.Prompt) -> list[list[iv.Patch]]:
    """Every block, from one token, ragged ones and the last; and several patches together."""
    places = [prompt.at("entity"), prompt.at("entity", -1), prompt.at("last")]
    components = ("resid_pre", "attn_out", "mlp_out", "resid_post")
    single = [
        iv.Patch(component, layer, place, noise((*place.index.shape, model.d_model), seed))
        for seed, (component, layer, place) in enumerate(
            product(components, range(model.n_layers), places)
        )
    ]
    pairs = [[single[i], single[-1 - i]] for i in (0, 4, 11)]
    return [*([patch] for patch in single), *pairs, [single[1], single[13], single[26]]]


def check(model: iv.Model, name: str, prompt: iv.Prompt, whole: iv.Prompt) -> None:
    """``whole``: the same rows without a shared prefix, for the hooks."""
    cells = cells_of(model, prompt)
    assert path_of(model, prompt)[0] == ("plain" if _in_windows(model, prompt) else "suffix")
    ours = iv.replay(model, prompt, cells)[:, :, 0]
    n = len(prompt.prefix_ids)
    for patches, found in zip(cells, ours, strict=True):
        moved = [iv.Patch(p.component, p.layers, _behind(p.positions, n), p.value) for p in patches]
        assert relative(found, hooked(model, name, whole, moved)) < FLOOR32, patches


def _in_windows(model: iv.Model, prompt: iv.Prompt) -> bool:
    return model.anatomy.windowed and len(prompt.prefix_ids) > 0


def _behind(at: iv.Positions, n: int) -> iv.Positions:
    return iv.Positions(at.index + n, at.mask, at.length + n, False, at.role)


@pytest.mark.parametrize(("name", "attn"), CASES)
def test_cells_equal_hooks(name: str, attn: str) -> None:
    model = model_of(name, attn)
    prompt = model.prompt(TEXTS, spans={"entity": ["France", "the town"]})
    check(model, name, prompt, prompt)


@pytest.mark.parametrize(("name", "attn"), CASES)
def test_cells_behind_a_shared_prefix_equal_hooks(name: str, attn: str) -> None:
    model = model_of(name, attn)
    texts = [SHARED[0]] * 2 if model.anatomy.windowed else SHARED
    spans = {"entity": ["France", "France" if model.anatomy.windowed else "the big town"]}
    shared = model.prompt(texts, spans=spans, share_prefix=True)
    assert len(shared.prefix_ids) > 3
    check(model, name, shared, model.prompt(texts, spans=spans))


@pytest.mark.parametrize("name", ["Falcon", "GPTJ", "DeepseekV3", "Phi"])
def test_runs_that_start_in_a_block_equal_whole_ones(name: str) -> None:
    model = model_of(name, "eager")
    prompt = model.prompt(TEXTS)
    expected = iv.run(model, prompt).logits
    assert expected is not None
    for block in range(model.n_layers + 1):
        site = iv.Site("resid_pre", block) if block < model.n_layers else iv.Site("resid_post", -1)
        started = iv.run(model, prompt, start=(block, iv.read(model, prompt, [site])[0])).logits
        assert started is not None
        assert relative(started, expected) < FLOOR32


def test_blocks_whose_code_does_not_tell_what_they_give_are_not_skipped() -> None:
    model = model_of("Falcon", "eager")
    kind = type(model.module.get_submodule("transformer.h.0"))

    class Untold(kind):
        def forward(self, *args: Any, **kwargs: Any) -> Any:  # pyright: ignore
            return super().forward(*args, **kwargs)

    for block in model.module.get_submodule("transformer.h"):
        block.__class__ = Untold
    model = iv.load(model.module, tokenizer=tokenizer_of())
    assert [block.n_given for block in model.anatomy.parts] == [None] * model.n_layers
    prompt = model.prompt(TEXTS, spans={"entity": ["France", "the town"]})
    check(model, "Falcon", prompt, prompt)


def test_keys_that_are_made_of_the_cache_are_not_written() -> None:
    model = model_of("DeepseekV3", "sdpa")
    prompt = model.prompt(TEXTS)
    place = prompt.at("last")
    (keys,) = iv.read(model, prompt, [iv.Site("k_rot", 1, place)])
    with pytest.raises(PatchError, match=r"made anew of what is in the cache.* Write head_out"):
        iv.run(model, prompt, patches=[iv.Patch("k_rot", 1, place, keys)])
    with pytest.raises(PatchError, match="made anew"), model.trace(prompt):
        model.k_rot[1, place] = keys


def test_attention_that_is_called_twice_is_not_looked_into() -> None:
    model = model_of("DiffLlama", "sdpa")
    prompt = model.prompt(TEXTS)
    with pytest.raises(SiteError, match=r"calls its attention function 2 times.* Use head_out"):
        iv.read(model, prompt, [iv.Site("attn_pattern", 1, prompt.at("last"))])


def test_local_attention_counts_as_a_window() -> None:
    model = model_of("GPTNeo", "eager")
    assert model.anatomy.windowed
    assert not len(model.prompt(SHARED, share_prefix=True).prefix_ids)  # rows of other lengths
