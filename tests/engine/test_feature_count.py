"""How many image features there will be is what the model's own code makes, or is not said."""

from typing import Any

import pytest
import tiny
import torch
from families import model_of
from torch import nn

import interventions as iv
from interventions.architectures.anatomy_finding import find_anatomy
from interventions.errors import PromptError
from interventions.prompt.feature_count import feature_count

PICTURE = tiny.picture((40, 30))
TOKENED = [name for name in tiny.VLMS if name != "mllama"]
LENGTHS = {  # where a processor says how many tokens an image has
    **dict.fromkeys(("llava", "vipllava"), "patch_size"),
    **dict.fromkeys(("gemma3", "paligemma", "internvl"), "image_seq_length"),
    **dict.fromkeys(("idefics3", "smolvlm"), "image_seq_len"),
}


class Pooled(nn.Module):
    """A projector whose features are means of several."""

    def __init__(self, projector: nn.Module, n: int) -> None:
        super().__init__()
        self.projector = projector
        self.n = n

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        made = self.projector(*args, **kwargs)
        return made.unflatten(-2, (-1, self.n)).mean(-2)


def pooling(name: str, n: int) -> tuple[Any, Any]:
    """A family's ready module whose projector pools, and its processor."""
    module, processor = tiny.build(name)
    path = find_anatomy(module).projector or ""
    module.set_submodule(path, Pooled(module.get_submodule(path), n))
    return module, processor


def shortened(name: str, processor: Any, n: int) -> Any:
    """The processor, with one image token in place of ``n``."""
    key = LENGTHS[name]
    value = getattr(processor, key)
    if name == "gemma3":  # it writes its tokens out when it is made
        return type(processor)(processor.image_processor, processor.tokenizer, None, value // n)
    setattr(processor, key, value * 2 if key == "patch_size" else value // n)
    return processor


@pytest.mark.parametrize("name", LENGTHS)
def test_a_projector_that_pools_is_counted_as_it_pools(name: str) -> None:
    n = 4 if LENGTHS[name] == "patch_size" else 2
    module, processor = pooling(name, n)
    model = iv.load(module, processor=shortened(name, processor, n))
    prompt = model.prompt("What is <image> here?", images=PICTURE)
    run = iv.run(model, prompt)
    assert torch.isfinite(run.logits).all()  # pyright: ignore
    whole = model_of(name).prompt("What is <image> here?", images=PICTURE)
    assert len(prompt.at("image").index[0]) * n == len(whole.at("image").index[0])
    assert len(model.feature_counts) == 1
    model.prompt(["What is <image> here?"] * 2, images=[tiny.picture((40, 30), seed=5)] * 2)
    assert len(model.feature_counts) == 1, "it is measured once for each kind of input"

    _, usual = tiny.build(name)
    unfit = iv.load(module, processor=usual)
    with pytest.raises(PromptError, match="image tokens, but the model will make"):
        unfit.prompt("What is <image> here?", images=PICTURE)


@pytest.mark.parametrize("name", TOKENED)
def test_what_is_measured_is_what_there_is(name: str) -> None:
    model = model_of(name)
    for pictures in ([PICTURE], [PICTURE, tiny.picture((24, 60), seed=1)]):
        prompt = model.prompt("<image>" * len(pictures), images=[pictures])
        tokens = len(prompt.at("image").index[0])
        tensors = {key: prompt.inputs[key] for key in prompt.entries}
        known: dict[Any, int | None] = {}
        found = feature_count(model.module, model.anatomy, tensors, tokens=tokens + 1, known=known)
        assert found == tokens
        assert list(known.values()) == [tokens]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("llava_onevision", "num_image_tokens"),
        ("llava_next", "patch_size"),
        ("llama4", "patch_size"),
    ],
)
def test_a_processor_that_does_not_fit_is_refused(name: str, key: str) -> None:
    module, processor = tiny.build(name)
    setattr(processor, key, getattr(processor, key) * 2)
    model = iv.load(module, processor=processor)
    with pytest.raises(PromptError, match=r"image tokens, but the model will make \d+ image feat"):
        model.prompt("What is <image> here?", images=PICTURE)


def test_of_weights_that_are_not_here_nothing_is_claimed_but_what_is_so() -> None:
    model = model_of("llava")
    prompt = model.prompt("<image>", images=PICTURE)
    tensors = {key: prompt.inputs[key] for key in prompt.entries}
    tokens = len(prompt.at("image").index[0])
    away: Any = tiny.build("llava")[0]
    away.to("meta")
    for wrong in (tokens, tokens + 1):
        found = feature_count(away, model.anatomy, tensors, tokens=wrong, known={})
        assert found in (tokens, None)
    path = model.anatomy.projector or ""
    away.set_submodule(path, Pooled(away.get_submodule(path), 4).to("meta"))
    found = feature_count(away, model.anatomy, tensors, tokens=tokens // 4, known={})
    assert found in (tokens // 4, None)


def test_memory_that_runs_out_says_nothing_of_the_pictures() -> None:
    """Where settings of pictures are given, what fails is a matter of them; not so this."""
    module, processor = tiny.build("llava")
    model = iv.load(module, processor=processor)

    def no_room(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    hook = module.get_submodule(model.anatomy.vision_tower or "").register_forward_pre_hook(no_room)
    settings = {"do_convert_rgb": True}
    model.prompt("What is <image> here?", images=PICTURE, processor_kwargs=settings)
    hook.remove()
    model.prompt("What is <image> here?", images=PICTURE, processor_kwargs=settings)
    assert None not in model.feature_counts.values()


def test_counting_changes_no_number() -> None:
    module, processor = pooling("llava", 4)
    model = iv.load(module, processor=shortened("llava", processor, 4))
    text = "What is <image> here?"
    before = {key: value.clone() for key, value in module.state_dict().items()}
    first = iv.run(model, model.prompt(text, images=PICTURE)).logits
    again = iv.run(model, model.prompt(text, images=PICTURE)).logits
    assert first is not None
    assert again is not None
    assert torch.equal(first, again)
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("llava", {"crop_size": 8}),
        ("llava", {"do_center_crop": False}),
        ("gemma3", {"size": {"height": 64, "width": 64}}),
        ("paligemma", {"size": {"height": 8, "width": 8}}),
        ("internvl", {"size": {"height": 8, "width": 8}}),
        ("idefics3", {"max_image_size": {"longest_edge": 8}}),
        ("qwen2_5_vl", {"rescale_factor": float("nan")}),
    ],
)
def test_images_that_the_model_cannot_read_are_refused_before_it_runs(name: str, told: Any) -> None:
    model = model_of(name)
    before = model.prompt("<image>is it", images=PICTURE)
    with pytest.raises(PromptError, match="processor"):
        model.prompt("<image>is it", images=PICTURE, processor_kwargs=told)
    after = model.prompt("<image>is it", images=PICTURE)
    assert all(torch.equal(value, before.inputs[key]) for key, value in after.inputs.items())


@pytest.mark.parametrize("name", [name for name in TOKENED if name != "llama4"])
def test_images_in_other_colours_are_read(name: str) -> None:
    model = model_of(name)
    grey = model.prompt("<image>is it", images=PICTURE, processor_kwargs={"do_normalize": False})
    assert grey.roles == model.prompt("<image>is it", images=PICTURE).roles
