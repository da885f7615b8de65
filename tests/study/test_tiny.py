"""The tiny models of all families do what the conformance tests count on."""

import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from published_configs import backbone_config, vlm_config
from tiny import (
    FAMILIES,
    QUIRKS,
    TEXT,
    VLMS,
    WITHOUT_SDPA,
    build,
    build_model,
    open_processor,
    picture,
    save,
    shrink,
    tiny_processor,
)
from tiny.configs import true_config
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
)

from interventions.architectures.faults import check_unbroken
from twohop.published import PUBLISHED, PublishedPair

SAID = "The capital of this country, of Köln or 日本, is\n\n what?"
WITHOUT_BEGIN = ("paligemma", "internvl", "smolvlm", "qwen", "glm", "llava_onevision")
SIZES = ((24, 16), (16, 20), (30, 12))


@cache
def built(name: str, **settings: Any) -> tuple[Any, Any]:
    return build(name, **settings)


def process(processor: Any, texts: list[str], images: list[list[Any]] | None = None) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "__array__", DeprecationWarning)  # PaliGemma's labels
        if images is None or not any(images):
            tokens = processor if not hasattr(processor, "tokenizer") else processor.tokenizer
            return dict(tokens(texts, return_tensors="pt", padding=True))
        encoded = processor(text=texts, images=images, return_tensors="pt", padding=True)
    return {key: value for key, value in encoded.items() if key != "labels"}


def row(name: str, n_images: int, seed: int = 0) -> tuple[str, list[Any]]:
    shown = [QUIRKS[name].placeholder] * n_images if n_images else []
    images = [picture(SIZES[i], seed=seed + i) for i in range(n_images)]
    return " and ".join([*shown, SAID]), images


def run(model: Any, inputs: dict[str, Any], **kwargs: Any) -> torch.Tensor:
    cast = {
        key: value.to(model.dtype) if value.is_floating_point() else value
        for key, value in inputs.items()
    }
    check_unbroken(model, model.config.model_type)
    with torch.no_grad():
        return model(**cast, **kwargs).logits


def counted(inputs: dict[str, Any]) -> torch.Tensor:
    return (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_models_are_small_and_made_the_same_each_time(name):
    model, _ = built(name)
    assert not model.training
    assert 4 <= model.config.get_text_config(decoder=True).num_hidden_layers <= 6
    assert sum(p.numel() * p.element_size() for p in model.parameters()) < 2e6
    state = torch.get_rng_state()
    again, other = build(name)[0], build(name, seed=1)[0]
    assert torch.equal(state, torch.get_rng_state())
    for one, two, three in zip(
        model.parameters(), again.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(one, two)
        assert not torch.equal(one, three)


@pytest.mark.parametrize("name", FAMILIES)
def test_no_parameter_is_trivial(name):
    for path, value in built(name)[0].named_parameters():
        assert (value.abs() > 1e-6).float().mean() > 0.99, path
        assert (value - 1).abs().max() > 1e-2, path
        assert value.numel() == 1 or value.std() > 0.05, path


@pytest.mark.parametrize("name", FAMILIES)
def test_texts_give_logits_of_their_own(name):
    model, processor = built(name)
    inputs = process(processor, [SAID, "Paris"])
    logits = run(model, inputs, position_ids=counted(inputs))
    assert logits.isfinite().all()
    assert logits.std() > 0.3
    assert (logits[0, -1] - logits[0, -2]).std() > 0.3
    assert (logits[0, -1] - logits[1, -1]).std() > 0.3


@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_know_their_characters(name):
    _, processor = built(name)
    tokens = getattr(processor, "tokenizer", processor)
    encoded = tokens(SAID, return_offsets_mapping=True)
    covered = {i for start, stop in encoded["offset_mapping"] for i in range(start, stop)}
    assert covered == set(range(len(SAID)))
    assert tokens.decode(encoded["input_ids"], skip_special_tokens=True) == SAID
    begins = encoded["input_ids"][0] == tokens.bos_token_id
    assert begins == (not name.startswith(WITHOUT_BEGIN))


@pytest.mark.parametrize("name", VLMS)
@pytest.mark.parametrize("n_images", [1, 2])
def test_every_image_matters(name, n_images):
    model, processor = built(name)
    text, images = row(name, n_images)
    inputs = process(processor, [text], [images])
    logits = run(model, inputs)
    assert logits.isfinite().all()
    held = inputs["input_ids"] == processor.tokenizer.convert_tokens_to_ids(QUIRKS[name].holds)
    assert (
        (n_images if name == "mllama" else 4) <= held.sum() <= QUIRKS[name].most_tokens * n_images
    )
    for changed in range(n_images):
        others = list(images)
        others[changed] = picture(SIZES[changed], seed=7)
        moved = run(model, process(processor, [text], [others]))
        assert (moved - logits)[0, -1].std() > 1e-2


@pytest.mark.parametrize("name", VLMS)
def test_the_axes_are_as_said(name):
    _, processor = built(name)
    counts = [1, 1] if QUIRKS[name].one_count else [1, 2, 0]
    rows = [row(name, n) for n in counts]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "__array__", DeprecationWarning)
        texts, images = [text for text, _ in rows], [images for _, images in rows]
        inputs = processor(text=texts, images=images, return_tensors="pt", padding=True)
    found = dict(inputs)
    length = found.pop("input_ids").shape[1]
    assert found.pop("attention_mask").shape == (len(rows), length)
    assert set(found) == set(QUIRKS[name].axes)
    known = {
        "row": len(rows),
        "position": length,
        "image": sum(counts),
        "imaged_row": sum(n > 0 for n in counts),
        "~image": max(counts),
        "channel": 3,
    }
    for key, value in found.items():
        axes = QUIRKS[name].axes[key].split()
        assert len(axes) == value.ndim, key
        for axis, size in zip(axes, value.shape, strict=True):
            assert known.get(axis, size) == size, (key, axis)


@pytest.mark.parametrize("name", VLMS)
def test_padded_rows_are_what_they_are_alone(name):
    model, processor = built(name, dtype=torch.float64, attn_implementation="sdpa")
    counts = [1, 1] if QUIRKS[name].one_count else [1, 2]
    if QUIRKS[name].text_alone and not QUIRKS[name].one_count:
        counts.append(0)
    rows = [row(name, n, seed=i) for i, n in enumerate(counts)]
    rows[0] = ("So, " + rows[0][0], rows[0][1])

    def logits(chosen: list[tuple[str, list[Any]]]) -> torch.Tensor:
        inputs = process(processor, [text for text, _ in chosen], [ims for _, ims in chosen])
        if QUIRKS[name].positions == "m-rope":
            return run(model, inputs)
        first = QUIRKS[name].positions == "one"
        return run(model, inputs, position_ids=counted(inputs) + first)

    together = logits(rows)
    for i, one in enumerate(rows):
        alone = logits([one])[0]
        assert (together[i, -len(alone) :] - alone).abs().max() < QUIRKS[name].rounding


@pytest.mark.parametrize("name", FAMILIES)
def test_dtypes_and_attention_agree(name):
    inputs = process(built(name)[1], *_two(name))
    reference = run(built(name)[0], inputs)
    for settings in ({"dtype": torch.float64}, {"attn_implementation": "sdpa"}):
        if name in WITHOUT_SDPA and "attn_implementation" in settings:
            continue
        logits = run(built(name, **settings)[0], inputs)
        assert logits.dtype == settings.get("dtype", torch.float32)
        assert (logits - reference).abs().max() < 2e-4 * reference.abs().max()


def _two(name: str) -> tuple[list[str], list[list[Any]] | None]:
    if name in TEXT:
        return [SAID], None
    text, images = row(name, 2)
    return [text], [images]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_saved_folder_opens_to_the_same(name, tmp_path: Path):
    model, processor = built(name)
    save(name, tmp_path)
    auto = AutoModelForCausalLM if name in TEXT else AutoModelForImageTextToText
    loaded: Any = auto.from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation="eager"
    )
    opened, report = loaded
    assert not any(report.values())
    wanted = process(processor, *_two(name))
    if name in TEXT:
        reader = AutoTokenizer.from_pretrained(tmp_path)
    elif QUIRKS[name].auto_processor:
        reader = AutoProcessor.from_pretrained(tmp_path)
    else:
        with pytest.raises((ImportError, ValueError), match=r"[Tt]orchvision"):
            AutoProcessor.from_pretrained(tmp_path)
        reader = open_processor(tmp_path)
    inputs = process(reader, *_two(name))
    assert set(inputs) == set(wanted)
    assert all(torch.equal(inputs[key], wanted[key]) for key in wanted)
    assert torch.equal(run(opened, inputs), run(model, wanted))
    assert reader.chat_template == processor.chat_template


@pytest.mark.parametrize("name", FAMILIES)
def test_chats_become_texts(name):
    _, processor = built(name)
    parts = [{"type": "text", "text": "What is it?"}]
    if name in VLMS:
        parts = [{"type": "image"}, *parts]
    content: Any = parts if name in VLMS else "What is it?"
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    assert "What is it?" in text
    if name in VLMS:
        assert text.count(QUIRKS[name].placeholder) == 1
        assert process(processor, [text], [[picture()]])["pixel_values"].isfinite().all()


SAME = (
    *("model_type", "hidden_act", "hidden_activation", "rms_norm_eps", "tie_word_embeddings"),
    *("attention_bias", "attn_logit_softcapping", "final_logit_softcapping", "use_qk_norm"),
    *("attn_temperature_tuning", "vision_feature_select_strategy", "spatial_merge_size"),
    *("norm_type", "downsample_ratio", "scale_factor", "projector_hidden_act"),
)


def _check_twin(true: Any, tiny: Any) -> None:
    parts = [(true, tiny), (true.get_text_config(decoder=True), tiny.get_text_config(decoder=True))]
    if vision := getattr(true, "vision_config", None):
        parts.append((vision, tiny.vision_config))
    for large, small in parts:
        assert type(large) is type(small)
        for name in SAME:
            assert getattr(large, name, None) == getattr(small, name, None), name
    large, small = parts[1]
    n = small.num_hidden_layers
    for name in ("layer_types", "no_rope_layers"):
        if getattr(large, name, None) is not None:
            assert getattr(small, name) == getattr(large, name)[:n]
            assert set(getattr(small, name)) == set(getattr(large, name))
    first = [part.per_layer_config[0] for part in (large, small)]
    shared = [part.num_key_value_heads == part.num_attention_heads for part in first]
    assert shared[0] == shared[1]
    assert bool(getattr(large, "sliding_window", None)) == bool(
        getattr(small, "sliding_window", None)
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_shrinking_keeps_everything_but_sizes(name):
    true = true_config(name)
    before = true.to_dict()
    tiny = shrink(true)
    assert true.to_dict() == before
    _check_twin(true, tiny)
    assert shrink(tiny).to_dict() == tiny.to_dict()


@pytest.mark.parametrize("pair", PUBLISHED.values(), ids=PUBLISHED)
def test_published_pairs_have_twins(pair: PublishedPair):
    configs = [vlm_config(pair), backbone_config(pair)]
    twins = [shrink(config) for config in configs]
    ids, widths, blocks = [], [], []
    for true, tiny in zip(configs, twins, strict=True):
        _check_twin(true, tiny)
        model, processor = build_model(tiny), tiny_processor(tiny)
        inputs = process(processor, [SAID])
        assert run(model, inputs).isfinite().all()
        text = tiny.get_text_config(decoder=True)
        crossing = getattr(text, "cross_attention_layers", None) or []
        ids.append(inputs["input_ids"].tolist())
        first = text.per_layer_config[0]
        widths.append((first.hidden_size, first.num_attention_heads, first.num_key_value_heads))
        blocks.append(text.num_hidden_layers - len(crossing))
    assert ids[0] == ids[1]
    assert widths[0] == widths[1]
    assert blocks[0] == blocks[1]
    name = "pixtral" if "pixtral" in pair.key else twins[0].model_type
    text, images = row(name, 1)
    model, processor = build_model(twins[0]), tiny_processor(twins[0])
    one = run(model, process(processor, [text], [images]))
    other = run(model, process(processor, [text], [[picture(SIZES[0], seed=7)]]))
    assert one.isfinite().all()
    assert (one - other)[0, -1].std() > 1e-2
