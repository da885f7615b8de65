"""Every published pair without its weights: anatomy at true size, patches between tiny twins."""

from functools import cache
from typing import Any

import pytest
import tiny
import torch
from families import PATHS, Case, Edit, raw_run
from floors import FLOOR32, relative
from published_configs import backbone_config, published_config, vlm_config
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

import interventions as iv
from interventions.architectures.anatomy import Anatomy
from interventions.architectures.anatomy_finding import find_anatomy
from interventions.errors import PatchError
from interventions.model.pairing import match_blocks
from twohop.published import PUBLISHED, PublishedPair

every_pair = pytest.mark.parametrize("pair", PUBLISHED.values(), ids=PUBLISHED)
WITH_IMAGES_IN_TRAINING = [key for key, pair in PUBLISHED.items() if pair.architecture != "llava"]
ROPE = "rope_parameters"
HEADLESS = {
    "gemma-4-31b": list(range(5, 60, 6)),
    "qwen3.5-9b": [i for i in range(32) if i % 4 != 3],
}
"""Blocks whose heads are of another size than most, or that have a state in their place."""
NORMED = ("gemma", "glm")
"""How keys begin of pairs whose sublayers are followed by a norm,"""
IN_A_PLANE = ("qwen", "glm")
"""and of those whose image tokens have positions of three axes."""
# The cross-attention blocks of Mllama, written down by hand.
CROSSING = {
    "llama-3.2-vision-11b": [3, 8, 13, 18, 23, 28, 33, 38],
    "llama-3.2-vision-90b": list(range(3, 100, 5)),
}


@cache
def true_anatomy(repo: str, text_only: bool) -> Anatomy:
    config = published_config(repo, text_only=text_only)
    auto = AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM
    with torch.device("meta"):
        return find_anatomy(auto.from_config(config))


@every_pair
def test_the_anatomy_at_true_size(pair: PublishedPair) -> None:
    vlm, backbone = true_anatomy(pair.vlm, False), true_anatomy(pair.backbone, pair.same_weights)
    crossing = CROSSING.get(pair.key, [])
    assert vlm.cross_blocks == crossing
    assert backbone.cross_blocks == []
    for anatomy, config in ((vlm, vlm_config(pair)), (backbone, backbone_config(pair))):
        whole: Any = config.get_text_config(decoder=True)
        text = whole.per_layer_config[0]
        assert (anatomy.n_layers, anatomy.d_model) == (text.num_hidden_layers, text.hidden_size)
        assert anatomy.n_heads == text.num_attention_heads
        assert anatomy.n_kv_heads == text.num_key_value_heads
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        assert anatomy.head_dim == head_dim
        other = [i for i, block in enumerate(anatomy.parts) if not block.projection]
        assert other == HEADLESS.get(pair.key, [])
        assert {block.behind_norm for block in anatomy.parts} == {pair.key.startswith(NORMED)}
    assert vlm.is_vlm
    assert not backbone.is_vlm
    assert (vlm.image_token_id is None) == bool(crossing)
    assert vlm.three_axis_positions == pair.key.startswith(IN_A_PLANE)
    assert vlm.blocks == PATHS[vlm.model_type].blocks

    others = [layer for layer in range(vlm.n_layers) if layer not in crossing]
    assert match_blocks(vlm, backbone) == others
    assert len(others) == backbone.n_layers


def test_mllama_has_40_blocks_for_32_and_100_for_80() -> None:
    for key, n, of in (("llama-3.2-vision-11b", 40, 32), ("llama-3.2-vision-90b", 100, 80)):
        pair = PUBLISHED[key]
        vlm, backbone = true_anatomy(pair.vlm, False), true_anatomy(pair.backbone, False)
        assert (vlm.n_layers, backbone.n_layers) == (n, of)
        found = match_blocks(vlm, backbone)
        assert found[:5] == [0, 1, 2, 4, 5]  # block 3 is the first that was put in
        assert found[-1] == n - 1


@cache
def twin(repo: str, text_only: bool) -> iv.Model:
    config = tiny.shrink(published_config(repo, text_only=text_only))
    module, processor = tiny.build_model(config), tiny.tiny_processor(config)
    if hasattr(config, "vision_config"):
        return iv.load(module, processor=processor)
    return iv.load(module, tokenizer=processor)


def name_of(model: iv.Model) -> str:
    """Which entry of the hand-written map a twin has."""
    return model.anatomy.model_type


def shown_to(vlm: iv.Model) -> Case:
    image = vlm.image_token
    texts = (f"{image}what is it to the town?", f"{image}tell me now : is it the big river here?")
    pictures = (tiny.picture((40, 30)), tiny.picture((24, 60), seed=1))
    prompt = vlm.prompt(list(texts), images=list(pictures), spans={"it": ["it", "it"]})
    return Case(name_of(vlm), vlm, prompt, texts, pictures)


def named_to(model: iv.Model) -> Case:
    texts = ("The capital of France is", "Who was the first mayor of the town in the north?")
    prompt = model.prompt(list(texts), spans={"entity": ["France", "the town"]})
    return Case(name_of(model), model, prompt, texts, ())


def set_everywhere(positions: iv.Positions, value: torch.Tensor) -> Edit:
    """Edit that writes value [row, width] at every position of a row."""

    def edit(hidden: torch.Tensor) -> torch.Tensor:
        changed = hidden.clone()
        for row, one in enumerate(value):
            for position in positions.index[row][positions.mask[row]].tolist():
                changed[row, position] = one
        return changed

    return edit


def last_of(case: Case, logits: torch.Tensor) -> torch.Tensor:
    return logits[torch.arange(len(logits)), case.prompt.at("last").index[:, 0]]


def check_a_transplant(both: iv.ModelPair, layer: int) -> None:
    """The backbone's entity, put into the VLM, is what a raw hook puts there."""
    shown, named = shown_to(both.vlm), named_to(both.backbone)
    entity = named.prompt.at("entity")
    # Cross-attention models have no image positions: there it is written at a word.
    place = shown.prompt.at("it" if both.vlm.anatomy.cross_blocks else "image")
    there = both.layer_map[layer]
    for component in ("resid_post", "mlp_out"):
        patches = iv.transplant(
            both, named.prompt, component=component, layers=[layer], read_at=entity, write_at=place
        )
        assert [patch.layers for patch in patches] == [[there]]
        final = both.vlm.n_layers - 1
        reads = [iv.Site("resid_post", final)]
        ours = iv.run(both.vlm, shown.prompt, patches=patches, reads=reads)
        plain = iv.run(both.vlm, shown.prompt, reads=reads)
        assert ours.logits is not None
        assert plain.logits is not None

        _, [hidden] = raw_run(named, reads=[(component, layer)])
        last = [int(entity.index[row][entity.mask[row]][-1]) for row in range(2)]
        value = hidden.reshape(2, -1, both.backbone.d_model)[[0, 1], last]
        edits = [(component, there, set_everywhere(place, value))]
        logits, [after] = raw_run(shown, edits=edits, reads=[("resid_post", final)])
        assert torch.equal(ours.reads[0], after.reshape(ours.reads[0].shape))
        # Here the head was given the last tokens only, there all: their sums differ in order.
        assert relative(ours.logits, last_of(shown, logits)) < FLOOR32
        assert ((ours.logits - plain.logits).abs().amax(-1) > 1e-3).all()


@every_pair
def test_a_transplant_between_the_twins_is_a_raw_write(pair: PublishedPair) -> None:
    vlm = twin(pair.vlm, False)
    backbone = vlm if pair.same_weights else twin(pair.backbone, False)
    both = iv.pair(vlm, backbone)
    others = [i for i in range(vlm.n_layers) if i not in PATHS[name_of(vlm)].cross_blocks]
    assert both.layer_map == tuple(others)
    found = {one.what for one in both.differences}
    text: Any = vlm_config(pair).get_text_config(decoder=True)
    other: Any = backbone_config(pair)
    assert (ROPE in found) == (text.rope_parameters != other.rope_parameters)
    assert found <= {ROPE, "architecture", "vocabulary size"}
    check_a_transplant(both, layer=2)


@pytest.mark.parametrize(
    "key", [key for key in PUBLISHED if PUBLISHED[key].architecture != "llava"]
)
def test_a_native_vlm_is_its_own_backbone(key: str) -> None:
    vlm = twin(PUBLISHED[key].vlm, False)
    both = iv.pair(vlm, vlm)
    assert both.differences == ()
    if not vlm.anatomy.cross_blocks:
        check_a_transplant(both, layer=2)
        return
    named = named_to(vlm).prompt
    with pytest.raises(PatchError, match=r"blocks \[1, 4\] of .* are cross-attention blocks"):
        iv.transplant(
            both,
            named,
            layers=slice(None),
            read_at=named.at("entity"),
            write_at=shown_to(vlm).prompt.at("it"),
        )


def test_a_native_vlm_and_its_language_model_alone_are_the_same() -> None:
    """Gemma 3 without its tower is a model of its own; it fits as a backbone does."""
    pair = PUBLISHED["gemma-3-12b"]
    vlm, alone = twin(pair.vlm, False), twin(pair.backbone, True)
    both = iv.pair(vlm, alone)
    assert {one.what for one in both.differences} <= {"vocabulary size"}
    check_a_transplant(both, layer=3)
