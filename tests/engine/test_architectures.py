"""Architectures outside the conformance suite: understood through structure, or refused."""

from typing import Any

import pytest
import tiny
import torch
import transformers
from families import model_of
from tiny.weights import randomise
from transformers import AutoModelForImageTextToText, LlamaConfig, LlamaForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import interventions as iv
from interventions.architectures.anatomy_finding import find_anatomy
from interventions.architectures.verification import check_components
from interventions.errors import LoadError
from interventions.model.sites import RESIDUAL

hf: Any = transformers
LAYERS, WIDTH, HEADS = 3, 32, 4
TEXTS = ["The capital of France is", "Paris is the big capital of"]
SIZES: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
MIXTURE = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4}
DEEPSEEK = {
    **{**SIZES, **MIXTURE, **LATENT, "num_key_value_heads": HEADS, "v_head_dim": 8},
    **{"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
}

UNDERSTOOD: dict[str, dict[str, Any]] = {
    "GPT2": {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS},
    "GPTNeoX": SIZES,
    "Cohere": SIZES,
    "Olmo": SIZES,
    "Olmo2": SIZES,
    "Phi": SIZES,
    "Phi3": SIZES,
    "Glm4": {**SIZES, "head_dim": 8},
    "Starcoder2": SIZES,
    "Falcon": {
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
    },
    "GPTJ": {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "rotary_dim": 4},
    "GPTBigCode": {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS},
    "CodeGen": {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "rotary_dim": 4},
    "Mixtral": {**SIZES, "num_local_experts": 2},
    "Qwen3Moe": {**SIZES, **MIXTURE, "num_experts": 4, "head_dim": 8},
    "Granite": {**SIZES, "logits_scaling": 4.0},
    "Exaone4": SIZES,
    "SmolLM3": SIZES,
    "GptOss": {**SIZES, "head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1},
    "DiffLlama": SIZES,
    "VaultGemma": {**SIZES, "head_dim": 8, "query_pre_attn_scalar": 8},
    "DeepseekV2": DEEPSEEK,
    "DeepseekV3": DEEPSEEK,
}
SIDE_BY_SIDE = ("GPTNeoX", "Cohere", "Phi", "Falcon", "GPTJ", "CodeGen")


def tokenizer_of() -> Any:
    return model_of("llama").tokenizer


def build(name: str, settings: dict[str, Any], kind: str = "ForCausalLM") -> Any:
    """A random model of transformers; every parameter matters."""
    text = "TextConfig" if name == "Gemma3n" else "Config"
    kind = "LMHeadModel" if name == "GPT2" else kind
    config = getattr(hf, name + text)(vocab_size=len(tokenizer_of()) + 3, **settings)
    config.bos_token_id, config.eos_token_id = 1, 2
    module = getattr(hf, name + kind)(config)
    randomise(module, 0)
    return module.eval()


@pytest.mark.parametrize("name", UNDERSTOOD)
def test_components_add_up(name: str) -> None:
    model = iv.load(build(name, UNDERSTOOD[name]), tokenizer=tokenizer_of())
    assert (model.n_layers, model.d_model, model.anatomy.n_heads) == (LAYERS, WIDTH, HEADS)
    prompt = model.prompt(TEXTS)
    real = prompt.inputs["attention_mask"].bool()
    before, attn, mlp, after = iv.read(
        model, prompt, [iv.Site(one, slice(0, LAYERS)) for one in RESIDUAL]
    )
    error = (before + attn + mlp - after)[:, real].abs().max()
    assert error < 1e-5 * after.abs().max()
    assert min(attn[:, real].std(), mlp[:, real].std()) > 1e-3
    (heads,) = iv.read(model, prompt, [iv.Site("head_out", 0)])
    assert heads.shape == (*real.shape, HEADS, 8)
    with model.trace(prompt):
        logits = model.logits[:].save()
    unembedded = model.unembed(after[-1])
    assert (unembedded - logits)[real].abs().max() < 1e-5 * logits.abs().max()


@pytest.mark.parametrize("name", UNDERSTOOD)
def test_writes_land(name: str) -> None:
    model = iv.load(build(name, UNDERSTOOD[name]), tokenizer=tokenizer_of())
    prompt = model.prompt(TEXTS[0])
    place = prompt.at("last")
    found = iv.read(model, prompt, [iv.Site(one, 1, place) for one in RESIDUAL])
    before, _, mlp, _ = found
    with model.trace(prompt):
        model.attn_out[1, place] = torch.zeros_like(before)
        after = model.resid_post[1, place].save()
    assert not torch.equal(after, found[3])
    if name in SIDE_BY_SIDE:  # attention and MLP
        assert torch.allclose(after, before + mlp, atol=1e-5)


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "Granite": (
        {**SIZES, "residual_multiplier": 0.5},
        "ForCausalLM",
        r"scale what they add .*residual_multiplier=0\.5.* with nnsight alone",
    ),
    "OPT": (
        {
            **{"hidden_size": WIDTH, "ffn_dim": 64, "num_hidden_layers": LAYERS},
            **{"num_attention_heads": HEADS, "word_embed_proj_dim": WIDTH},
        },
        "ForCausalLM",
        r"block 0 is not one attention and one MLP.*'fc1', 'fc2'.* with nnsight alone",
    ),
    "Mamba": (
        {"hidden_size": WIDTH, "num_hidden_layers": LAYERS},
        "ForCausalLM",
        r"got attention none and \['mixer'\].* with nnsight alone",
    ),
    "T5": (
        {"d_model": WIDTH, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": HEADS},
        "ForConditionalGeneration",
        r"is an encoder-decoder; only decoders of one stack",
    ),
    "Gemma3n": (
        {
            **{"hidden_size": WIDTH, "intermediate_size": [64] * 6, "num_hidden_layers": 6},
            **{"num_attention_heads": HEADS, "num_key_value_heads": 2, "head_dim": 8},
            **{"vocab_size_per_layer_input": 64, "hidden_size_per_layer_input": 8},
            "num_kv_shared_layers": 0,
            "layer_types": ["sliding_attention", "full_attention"] * 3,
        },
        "ForCausalLM",
        r"block 0 is not one attention and one MLP.*'altup', 'laurel'.* with nnsight alone",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_architectures_are_refused_with_the_reason(name: str) -> None:
    settings, kind, reason = REFUSED[name]
    with pytest.raises(LoadError, match=reason):
        iv.load(build(name, settings, kind), tokenizer=tokenizer_of())


def _as_new(module: Any) -> Any:
    """Under a name that the conformance suite does not know."""
    module.config.model_type = "newcomer"
    return module


def llama() -> Any:
    return build("Llama", SIZES)


def test_a_misunderstood_block_is_caught_by_numbers() -> None:
    good = iv.load(_as_new(llama()), tokenizer=tokenizer_of())
    assert good.anatomy.model_type == "newcomer"
    module = _as_new(llama())
    for layer in module.model.layers:
        layer.__class__ = HalfMlp
    with pytest.raises(LoadError, match=r"block 0 resid_pre \+ attn_out \+ mlp_out is not resid"):
        iv.load(module, tokenizer=tokenizer_of())


class HalfMlp(transformers.models.llama.modeling_llama.LlamaDecoderLayer):
    """A Llama block that adds half of what its MLP gives."""

    def forward(self, hidden_states: Any, *_: Any, **kwargs: Any) -> Any:  # pyright: ignore
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        between = hidden_states + attended
        return between + 0.5 * self.mlp(self.post_attention_layernorm(between))


def test_experts_that_do_not_take_a_format_are_said_to_be_so() -> None:
    module = build("Mixtral", UNDERSTOOD["Mixtral"]).double()
    says = r"does not run as it was loaded, in torch.float64.*set_experts_implementation\("
    with pytest.raises(LoadError, match=says):
        iv.load(module, tokenizer=tokenizer_of())
    module.set_experts_implementation("eager")
    assert iv.load(module, tokenizer=tokenizer_of()).n_layers == LAYERS


class Scaled(LlamaForCausalLM):
    """A Llama whose logits are scaled by something that no config entry tells."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output: Any = super().forward(*args, **kwargs)
        output.logits = output.logits * 0.5
        return output


@pytest.mark.parametrize("small", [1.0, 1e-3])
def test_the_check_is_relative_to_what_is_added(small: float) -> None:
    module = llama()
    with torch.no_grad():
        for layer in module.model.layers:
            layer.mlp.down_proj.weight *= small
            layer.__class__ = HalfMlp
    wrong = check_components(module, find_anatomy(module))
    assert wrong is not None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "name", ["llama", "gemma2", "qwen3", "gemma3_text", "gemma4_text", "qwen3_5_text"]
)
def test_rounding_is_not_mistaken_for_a_misunderstanding(name: str, dtype: torch.dtype) -> None:
    module, _ = tiny.build(name, dtype=dtype)
    assert check_components(module, find_anatomy(module)) is None


def test_unknown_logits_are_caught_by_numbers() -> None:
    module = _as_new(llama())
    module.__class__ = Scaled
    with pytest.raises(LoadError, match="do not make the logits of the last resid_post"):
        iv.load(module, tokenizer=tokenizer_of())


SEEN = (
    *("aria", "cohere2_vision", "deepseek_vl", "exaone4_5", "fuyu", "glm4v", "got_ocr2"),
    *("idefics2", "janus", "lfm2_vl", "llava_next_video", "ovis2", "qwen3_vl_moe", "video_llama_3"),
)
UNSEEN = {
    "blip-2": "Expected one of each",
    "florence2": "is an encoder-decoder",
    "kosmos-2": "how its images enter is unknown",
    "idefics": "how its images enter is unknown",
    "gemma4": "a third part of block 0 .per_layer_input_gate. adds something",
    "video_llava": "takes images, but no vision tower was found",
}


def on_meta(model_type: str) -> Any:
    config = CONFIG_MAPPING[model_type]()
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config)


@pytest.mark.parametrize("model_type", SEEN)
def test_other_vlms_are_understood(model_type: str) -> None:
    module = on_meta(model_type)
    anatomy = find_anatomy(module)
    assert anatomy.is_vlm
    assert anatomy.image_token_id is not None
    assert anatomy.n_layers == module.config.get_text_config(decoder=True).num_hidden_layers
    assert all(block.projection for block in anatomy.parts)
    for path in (anatomy.final_norm, anatomy.head, anatomy.embeddings, anatomy.vision_tower):
        module.get_submodule(path)


@pytest.mark.parametrize("model_type", UNSEEN)
def test_other_vlms_are_refused_with_the_reason(model_type: str) -> None:
    with pytest.raises(LoadError, match=UNSEEN[model_type]):
        find_anatomy(on_meta(model_type))


def test_a_newcomer_whose_images_see_both_ways_is_known_by_its_config() -> None:
    config = CONFIG_MAPPING["gemma4_unified"]()
    config.text_config.use_bidirectional_attention = None
    with torch.device("meta"):
        module = AutoModelForImageTextToText.from_config(config)
    assert find_anatomy(module).family.two_way is None
    assert find_anatomy(on_meta("gemma4_unified")).family.two_way == "image"


def test_what_nobody_thought_of_is_a_load_error_too() -> None:
    class Odd(LlamaForCausalLM):
        def get_output_embeddings(self) -> Any:
            raise NotImplementedError("it has five heads")

    with torch.device("meta"):
        module = Odd(LlamaConfig(num_hidden_layers=1, vocab_size=16))
    with pytest.raises(LoadError, match="Odd is of an unknown build: it has five heads"):
        find_anatomy(module)
