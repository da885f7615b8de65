"""What was computed is known by its content: another model's numbers are never given out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from accelerate import cpu_offload
from families import case_of
from hypothesis import given, settings
from hypothesis import strategies as st
from micro import micro_folder
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from PIL import Image

import interventions as iv
from interventions import digests
from interventions.digests import UnknownContent, digest_of
from interventions.errors import ResultsError
from interventions.model.fingerprints import fingerprint, hooks_of, weights_digest

FAMILIES = ("llama", "gemma3", "qwen2_5_vl", "mllama", "idefics3")
ANSWERED = {"answers": " a", "components": ["resid_post"], "progress": False}
TEXTS = ["The capital of France is", "The capital of Italy is"]


def fresh(name: str = "llama", seed: int = 0) -> iv.Model:
    """A model of its own, which a test may change."""
    module, processor = tiny.build(name)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05 * (seed > 0))
    kind = {"processor": processor} if name in tiny.VLMS else {"tokenizer": processor}
    return iv.load(module, **kind)


@pytest.mark.parametrize("name", FAMILIES)
def test_running_a_model_leaves_its_fingerprint_as_it_was(name: str) -> None:
    case = case_of(name, torch.float32, "sdpa")
    before = fingerprint(case.model)
    iv.complete(case.model, case.prompt, max_new_tokens=2)
    with case.model.generate(case.prompt, max_new_tokens=2):
        pass
    iv.sweep(case.model, case.prompt, 0.0, layers=[1], roles=["last"], **ANSWERED)
    long = case.model.prompt(TEXTS[0] + " a" * 40)
    iv.run(case.model, long)
    assert fingerprint(case.model) == before
    assert hooks_of(case.model) == []
    json.dumps(before)


@pytest.mark.parametrize("fast", [True, False])
def test_two_loads_of_a_folder_are_one_model(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not fast:
        monkeypatch.setattr(digests, "fast_digest", lambda: None)
    one, two = (iv.load(micro_folder("micro-late")) for _ in range(2))
    assert fingerprint(one) == fingerprint(two)
    other = fingerprint(iv.load(micro_folder("micro-naming")))
    assert other["weights"] != fingerprint(one)["weights"]


@pytest.mark.parametrize("name", ["llama", "llava"])
def test_where_accelerate_keeps_weights_is_not_told(name: str) -> None:
    """They are brought to a module when it runs; what it computes is the same."""
    plain, away = fresh(name), fresh(name)
    cpu_offload(away.module, execution_device=torch.device("cpu"))
    assert {weight.device.type for weight in away.module.parameters()} == {"meta"}
    assert fingerprint(away) == fingerprint(plain)
    other = fresh(name, seed=1)
    cpu_offload(other.module, execution_device=torch.device("cpu"))
    assert fingerprint(other) != fingerprint(plain)


def test_a_forward_of_ones_own_is_told_behind_accelerates() -> None:
    """Which then keeps it, and puts its own in its place."""
    plain, other = fresh(), fresh()
    for model, factor in ((plain, 1.0), (other, 2.0)):
        mlp = model.module.model.layers[1].mlp
        usual = mlp.forward
        mlp.forward = lambda x, usual=usual, factor=factor: factor * usual(x)
    before = [fingerprint(model)["modules"] for model in (plain, other)]
    for model in (plain, other):
        cpu_offload(model.module, execution_device=torch.device("cpu"))
    after = [fingerprint(model)["modules"] for model in (plain, other)]
    assert len({*before}) == len({*after}) == 2


LLAMA = fresh()


@given(data=st.data(), fast=st.booleans())
@settings(max_examples=150, deadline=None)
def test_any_number_that_changes_in_any_tensor_is_seen(data: st.DataObject, fast: bool) -> None:
    named = [*LLAMA.module.named_parameters(), *LLAMA.module.named_buffers()]
    name, tensor = data.draw(st.sampled_from(named), label="tensor")
    flat = tensor.data.view(-1)
    i = data.draw(st.integers(0, flat.numel() - 1), label="element")
    kept = digests.fast_digest
    digests.fast_digest = kept if fast else lambda: None
    try:
        before, old = weights_digest(LLAMA.module), flat[i].clone()
        flat[i] = torch.nextafter(old, old + 1)  # the least change that there is
        changed = weights_digest(LLAMA.module)
        flat[i] = old
        assert before == weights_digest(LLAMA.module)
        assert changed != before, name
    finally:
        digests.fast_digest = kept


@given(seed=st.integers(0, 2**32 - 1), size=st.integers(2, 200_000), fast=st.booleans())
@settings(max_examples=100, deadline=None)
def test_two_numbers_that_change_places_are_seen(seed: int, size: int, fast: bool) -> None:
    rng = np.random.default_rng(seed)
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(torch.from_numpy(rng.standard_normal(size)), False)
    a, b = rng.choice(size, 2, replace=False).tolist()
    kept = digests.fast_digest
    digests.fast_digest = kept if fast else lambda: None
    try:
        before = weights_digest(module)
        module.weight.data[[a, b]] = module.weight.data[[b, a]]
        assert weights_digest(module) != before
    finally:
        digests.fast_digest = kept


@pytest.mark.parametrize("n", [1000, 700_000])
@pytest.mark.parametrize("first", [0, 1, 3])
@pytest.mark.parametrize("fast", [True, False])
def test_where_in_memory_a_tensor_begins_is_not_told(
    n: int, first: int, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small ones and large ones, which are told of in other ways; 16 bits, in any place of 64."""
    if not fast:
        monkeypatch.setattr(digests, "fast_digest", lambda: None)
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(n, generator=generator).bfloat16()
    other = whole.clone()
    other[-1] += 1
    assert digests.tensor_digest(whole[first:]) == digests.tensor_digest(whole[first:].clone())
    assert digests.tensor_digest(whole[first:]) != digests.tensor_digest(other[first:])


def trained_on(model: iv.Model) -> None:
    """One step of training, as a training loop does it."""
    head = model.module.get_output_embeddings().weight.requires_grad_(True)
    optimiser = torch.optim.SGD([head], lr=1.0)
    ids = model.tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    model.module(input_ids=ids, labels=ids).loss.backward()
    optimiser.step()
    optimiser.zero_grad()
    head.requires_grad_(False)


def added_to(model: iv.Model) -> None:
    """``.data`` is not counted by torch's version counter."""
    model.module.model.layers[1].mlp.down_proj.weight.data += 0.1


def heads_swapped(model: iv.Model) -> None:
    weight = model.module.model.layers[0].self_attn.o_proj.weight.data
    half = weight.shape[1] // 2
    weight.copy_(torch.cat([weight[:, half:], weight[:, :half]], 1))


def scaled(model: iv.Model) -> None:
    """A number that a module keeps beside its weights."""
    model.module.model.layers[0].self_attn.scaling *= 2


def activated(model: iv.Model) -> None:
    model.module.model.layers[0].mlp.act_fn = torch.nn.ReLU().eval()


def replaced(model: iv.Model) -> None:
    part = model.module.model.layers[2].mlp.down_proj
    part.weight = torch.nn.Parameter(torch.zeros_like(part.weight), requires_grad=False)


CHANGES = (trained_on, added_to, heads_swapped, scaled, activated, replaced)


@pytest.mark.parametrize("change", CHANGES)
def test_a_sweep_is_not_given_the_table_of_what_the_model_was(
    change: Callable[[iv.Model], None], tmp_path: Path
) -> None:
    model = fresh()
    prompt = model.prompt(TEXTS)
    before = iv.sweep(model, prompt, 0.0, out=tmp_path, **ANSWERED)
    again = iv.sweep(model, prompt, 0.0, out=tmp_path, **ANSWERED)
    assert again.identical(before)
    change(model)
    with pytest.raises(ResultsError, match=r"model\.fingerprint\.(weights|modules): stored"):
        iv.sweep(model, prompt, 0.0, out=tmp_path, **ANSWERED)


def test_a_sweep_is_not_given_the_table_of_a_model_of_the_same_name(tmp_path: Path) -> None:
    one, other = fresh(seed=1), fresh(seed=2)
    assert one.name == other.name
    iv.sweep(one, one.prompt(TEXTS), 0.0, out=tmp_path, **ANSWERED)
    with pytest.raises(ResultsError, match="weights: stored"):
        iv.sweep(other, other.prompt(TEXTS), 0.0, out=tmp_path, **ANSWERED)


def test_a_sweep_knows_which_tokens_a_role_stood_for(tmp_path: Path) -> None:
    prompts = [LLAMA.prompt(TEXTS[0], spans={"it": word}) for word in ("capital", "France")]
    kinds = {"roles": ["it"], "out": tmp_path, **ANSWERED}
    iv.sweep(LLAMA, prompts[0], 0.0, **kinds)
    with pytest.raises(ResultsError, match="tokens: stored"):
        iv.sweep(LLAMA, prompts[1], 0.0, **kinds)


@pytest.mark.parametrize("change", CHANGES)
def test_a_shared_prefix_is_that_of_the_model_as_it_is(
    change: Callable[[iv.Model], None],
) -> None:
    model = fresh()

    def numbers(*, share_prefix: bool) -> torch.Tensor:
        logits = iv.run(model, model.prompt(TEXTS, share_prefix=share_prefix)).logits
        assert logits is not None
        return logits[:, -1]

    before = numbers(share_prefix=True)
    change(model)
    after = numbers(share_prefix=True)
    torch.testing.assert_close(after, numbers(share_prefix=False))
    assert (after - before).abs().max() > 1e-4


def test_a_shared_prefix_knows_hooks() -> None:
    model = fresh()
    shared = model.prompt(TEXTS, share_prefix=True)
    with model.trace(shared):
        before = model.logits[shared.at("last")].save()
    layer = model.module.model.layers[1]
    handle = layer.register_forward_hook(lambda _module, _inputs, output: output * 1.5)
    whole = model.prompt(TEXTS)
    found = []
    for prompt in (shared, whole):
        with model.trace(prompt):
            found.append(model.logits[prompt.at("last")].save())
    handle.remove()
    torch.testing.assert_close(*found)
    assert (found[0] - before).abs().max() > 1e-4
    with model.trace(shared):
        after = model.logits[shared.at("last")].save()
    assert torch.equal(after, before)


def adapted() -> tuple[Any, Any, iv.Model]:
    """A llama with an adapter that does something: PEFT's model, its tokenizer, and ours."""
    module, tokenizer = tiny.build("llama")
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    wrapped = get_peft_model(module, config)
    return wrapped, tokenizer, iv.load(wrapped.get_base_model(), tokenizer=tokenizer)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT's
def test_adapters_switched_or_merged_are_seen_by_prefixes_and_sweeps(tmp_path: Path) -> None:
    wrapped, _, model = adapted()
    first = fingerprint(model)
    [adapter] = first["adapters"]
    assert (adapter["name"], adapter["kind"], adapter["merged"]) == ("default", "LORA", 0)
    assert adapter["active"] == adapter["modules"] > 0

    def numbers(*, share_prefix: bool) -> torch.Tensor:
        logits = iv.run(model, model.prompt(TEXTS, share_prefix=share_prefix)).logits
        assert logits is not None
        return logits[:, -1]

    layers: list[Any] = [one for one in wrapped.modules() if isinstance(one, BaseTunerLayer)]

    def rescale() -> None:
        for layer in layers:
            layer.scale_layer(3.0)

    steps: list[tuple[Callable[[], Any], bool]] = [
        (wrapped.base_model.disable_adapter_layers, True),
        (wrapped.base_model.enable_adapter_layers, True),
        (wrapped.merge_adapter, False),
        (wrapped.unmerge_adapter, False),
        (rescale, True),
    ]
    seen = [json.dumps(first)]
    iv.sweep(model, model.prompt(TEXTS), 0.0, out=tmp_path, **ANSWERED)
    before = numbers(share_prefix=True)
    for step, moves in steps:
        step()
        after = numbers(share_prefix=True)
        torch.testing.assert_close(after, numbers(share_prefix=False), msg=step.__name__)
        assert ((after - before).abs().max() > 1e-4) == moves, step.__name__
        before = after
        seen.append(json.dumps(fingerprint(model)))
    assert seen[2] == seen[0]  # off and on again
    assert seen[4] != seen[3]
    assert len({*seen}) == len(seen) - 1 - (seen[4] == seen[2])
    with pytest.raises(ResultsError, match=r"model\.fingerprint"):
        iv.sweep(model, model.prompt(TEXTS), 0.0, out=tmp_path, **ANSWERED)


ROWS = [{"text": f"The capital of {name} is"} for name in ("France", "Italy", "Spain", "Peru")]
LAST = {"last": iv.RoleSite("resid_post", [1], "last")}


@pytest.mark.parametrize("row", range(4))
def test_a_collection_knows_each_of_its_rows(row: int, tmp_path: Path) -> None:
    asked = {"out": tmp_path, "batch_rows": 1, "progress": False}
    iv.collect(LLAMA, ROWS, LAST, **asked)
    rows = [*ROWS]
    rows[row] = {"text": "The capital of Chile is"}
    with pytest.raises(ResultsError, match=r"first_row|other rows"):
        iv.collect(LLAMA, rows, LAST, **asked)


def test_a_collection_knows_what_was_in_a_picture_file(tmp_path: Path) -> None:
    model = case_of("llava", torch.float32, "sdpa").model
    files = [tmp_path / f"{i}.png" for i in range(3)]
    for i, file in enumerate(files):
        Image.new("RGB", (32, 32), (80 * i, 0, 0)).save(file)
    rows = [{"text": "What is it?", "images": str(file)} for file in files]
    asked = {"out": tmp_path / "out", "batch_rows": 1, "progress": False}
    iv.collect(model, rows, LAST, **asked)
    Image.new("RGB", (32, 32), (0, 90, 0)).save(files[1])
    with pytest.raises(ResultsError, match="some of 1 to 1 differ"):
        iv.collect(model, rows, LAST, **asked)


def test_a_picture_is_known_by_all_that_decides_how_it_is_shown() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 9, 4), dtype=np.uint8)

    def turned(image: Image.Image) -> None:
        image.getexif()[274] = 6

    def made_solid(image: Image.Image) -> None:
        palette = image.getpalette("RGBA")
        assert palette is not None
        solid = [255 if i % 4 == 3 else one for i, one in enumerate(palette)]
        image.putpalette(bytes(solid), "RGBA")

    for make, change in (
        (lambda: Image.fromarray(pixels[..., :3]), turned),
        (lambda: Image.fromarray(pixels).quantize(16), made_solid),
    ):
        one, other = make(), make()
        assert digest_of(one) == digest_of(other)
        change(other)
        before, after = (np.asarray(iv.as_picture(image)) for image in (one, other))
        assert not np.array_equal(before, after)
        assert digest_of(one) != digest_of(other)


def test_a_collection_knows_which_tokens_were_meant(tmp_path: Path) -> None:
    site = {"it": iv.RoleSite("resid_post", [1], "it", -1)}

    def rows(word: str) -> list[dict[str, Any]]:
        return [
            {"text": text, "spans": {"it": span}}
            for text, span in zip(TEXTS, ("capital", word), strict=True)
        ]

    asked = {"out": tmp_path, "batch_rows": 1, "progress": False}
    iv.collect(LLAMA, rows("capital"), site, **asked)
    with pytest.raises(ResultsError, match="some of 1 to 1 differ"):
        iv.collect(LLAMA, rows("Italy"), site, **asked)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        (1, True),
        ("1", 1),
        ([1, 2], (1, 2)),
        ([[1], 2], [[1, 2]]),
        (np.float32(1), np.float64(1)),
        (np.array([1, 2]), np.array([[1, 2]])),
        (torch.tensor([1.0]), torch.tensor([1.0], dtype=torch.bfloat16)),
        (torch.tensor([0.0]), torch.tensor([-0.0])),
        (Image.new("L", (2, 2), 0), Image.new("L", (2, 2), 1)),
        ({"a": 1}, {"a": 2}),
        (lambda x: x, lambda x: x + 1),
    ],
)
def test_digests_tell_values_apart(one: Any, other: Any) -> None:
    assert digest_of(one) == digest_of(one)
    assert digest_of(one) != digest_of(other)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(UnknownContent, match="Pass tensors"):
        digest_of(object())


def test_an_attribution_is_verified_on_what_it_was_made_with() -> None:
    model = fresh()
    clean, corrupt, other = (model.prompt([text]) for text in (*TEXTS, "The capital of Spain is"))
    asked: dict[str, Any] = {"answers": " a", "foils": " b"}
    roles = {"roles": ["last"], "verify": False}
    scores = iv.attribute(model, corrupt, clean, **roles, **asked)
    iv.verify(model, scores, corrupt, clean, k=1, **asked)
    with pytest.raises(ResultsError, match="the prompts, answers, foils or metric"):
        iv.verify(model, scores, other, clean, k=1, **asked)
    with pytest.raises(ResultsError, match="prompt and source, which are the other way round"):
        iv.verify(model, scores, clean, corrupt, k=1, **asked)
    with pytest.raises(ResultsError, match="the prompts, answers, foils or metric"):
        iv.verify(model, scores, corrupt, clean, k=1, answers=" a", foils=" c")
    added_to(model)
    with pytest.raises(ResultsError, match="weights: stored"):
        iv.verify(model, scores, corrupt, clean, k=1, **asked)
