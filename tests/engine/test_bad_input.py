"""A mistake is named, says what to do, and is found before any forward pass runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import tiny
import torch
from families import Case, case_of, model_of
from floors import noise

import interventions as iv
from interventions.errors import (
    InterventionsError,
    PatchError,
    PromptError,
    RoleError,
    SiteError,
)
from interventions.prompt.positions import from_lists

PICTURE = tiny.picture((40, 30))


@contextmanager
def refused(
    model: iv.Model, kind: type[InterventionsError], match: str, *, running: bool = False
) -> Iterator[None]:
    """Expect an error, and that no forward pass began (unless ``running``: inside a trace)."""
    began: list[int] = []
    hook = model.module.register_forward_pre_hook(lambda *_: began.append(1))
    try:
        with pytest.raises(kind, match=match):
            yield
    finally:
        hook.remove()
    assert running or not began


@pytest.fixture
def text() -> Case:
    return case_of("llama")


@pytest.fixture
def shown() -> Case:
    return case_of("llava")


@pytest.fixture
def crossed() -> Case:
    return case_of("mllama")


# Prompts


def test_a_prompt_with_pictures_is_not_for_a_model_of_text(llm: iv.Model, shown: Case) -> None:
    """With as many tokens, it would be answered as if the placeholders were words."""
    prompt = shown.prompt
    site = iv.Site("resid_post", 0, prompt.at("last"))
    zeros = torch.zeros(len(prompt), llm.anatomy.d_model)
    patch = iv.Patch("resid_post", 0, prompt.at("last"), zeros)
    for ask in (
        lambda: iv.run(llm, prompt),
        lambda: iv.read(llm, prompt, [site]),
        lambda: iv.replay(llm, prompt, [[patch]], logits=prompt.at("last")),
        lambda: iv.complete(llm, prompt, max_new_tokens=1),
    ):
        with refused(llm, PromptError, "the prompt has pictures"):
            ask()


def test_roles_that_are_not_there(text: Case, crossed: Case) -> None:
    with refused(text.model, RoleError, "Did you mean 'entity'"):
        text.prompt.at("entitty")
    with refused(text.model, RoleError, "pass images= to prompt"):
        text.prompt.at("image")
    with refused(text.model, RoleError, "no index 40"):
        text.prompt.at("entity", 40)
    with refused(crossed.model, RoleError, r"use model\.image_features, or attn_out of model"):
        crossed.prompt.at("image")


@pytest.mark.parametrize(
    "span",
    [
        slice(0, 3),
        range(3),
        4,
        1.5,
        None,
        [4],
        [],
        [1, 2, 3],
        {0, 3},
        b"Fr",
        [0.5, 3],
        torch.tensor(4),
    ],
    ids=repr,
)
def test_spans_that_are_none(text: Case, span: Any) -> None:
    with pytest.raises(PromptError, match="span 'entity'"):
        text.model.prompt(["France", "Italy"], spans={"entity": [span, "Italy"]})


def test_spans_that_are_not_there_or_twice(text: Case) -> None:
    with refused(text.model, PromptError, r"occurs 0 times.*\(start, stop\) character offsets"):
        text.model.prompt("The capital of France is", spans={"entity": "Italy"})
    with refused(text.model, PromptError, r"occurs 2 times.*\(start, stop\) character offsets"):
        text.model.prompt("France, the capital of France", spans={"entity": "France"})
    with refused(text.model, PromptError, "outside the text of 6 characters"):
        text.model.prompt("France", spans={"entity": (2, 9)})
    with refused(text.model, PromptError, "1 entries for 2 rows"):
        text.model.prompt(["France", "Italy"], spans={"entity": ["France"]})


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "mllama", "llama4", "gemma3"])
def test_images_that_do_not_match_the_text(name: str) -> None:
    model = model_of(name)
    one = f"{model.image_token}what is it?"
    with refused(model, PromptError, r"2 image\(s\).*1 image placeholder.*one placeholder per"):
        model.prompt(one, images=[[PICTURE, PICTURE]])
    with refused(model, PromptError, r"0 image\(s\).*1 image placeholder"):
        model.prompt(one)
    with refused(model, PromptError, "1 images for 2 rows. Give one entry per row"):
        model.prompt([one, one], images=[PICTURE])


def test_images_for_a_language_model(text: Case) -> None:
    with refused(text.model, PromptError, "text-only model .* Load the VLM"):
        text.model.prompt("what is it?", images=PICTURE)


def test_a_processor_of_another_model() -> None:
    module, processor = tiny.build("llava")
    processor.patch_size *= 2
    model = iv.load(module, processor=processor)
    with refused(model, PromptError, r"image tokens, but the model will make \d+ image features"):
        model.prompt(f"{model.image_token}what is it?", images=PICTURE)


def test_rows_with_different_numbers_of_images_in_a_cross_attention_model(crossed: Case) -> None:
    model, token = crossed.model, crossed.model.image_token or ""
    with refused(model, PromptError, "different numbers of images.*prompts of their own"):
        model.prompt([f"{token}one", f"{token}{token}two"], images=[[PICTURE], [PICTURE] * 2])
    with refused(model, PromptError, "different numbers of images"):
        model.prompt([f"{token}one", "none"], images=[PICTURE, None])


@pytest.mark.parametrize("name", ["llama", "llava", "mllama"])
def test_padded_rows_in_float64_under_eager_attention(name: str) -> None:
    case = case_of(name, torch.float64)
    model, prompt = case.model, case.prompt
    how = "attn_implementation='sdpa', or run rows of equal length"
    with refused(model, PromptError, how):
        iv.run(model, prompt)
    with refused(model, PromptError, how), model.trace(prompt):
        model.logits[:].save()
    with refused(model, PromptError, how), model.generate(prompt) as tracer:
        tracer.result.save()
    with refused(model, PromptError, how):
        iv.complete(model, prompt)


# Sites and values, in iv.run


def patch(case: Case, **changed: Any) -> iv.Patch:
    """A patch that fits, but for what is changed."""
    width = case.model.d_model
    fields = {
        "component": "resid_post",
        "layers": 1,
        "positions": case.prompt.at("last"),
        "value": torch.zeros(2, width),
    }
    return iv.Patch(**{**fields, **changed})


BAD_PLACES = {
    "a layer beyond the last": ({"layers": 99}, "no layer 99: the model has layers 0 to 3"),
    "a layer before the first": ({"layers": -5}, "no layer -5: the model has layers 0 to 3"),
    "a slice beyond the last": ({"layers": slice(2, 9)}, "layers 2:9 reach outside 0:4"),
    "no layer": ({"layers": []}, "no layer is named"),
    "a layer that is no number": ({"layers": 1.5}, "an int, a slice or a list of int"),
    "a component that is not there": ({"component": "mlp"}, "Did you mean 'mlp_out'"),
    "a head beyond the last": (
        {"component": "head_out", "heads": 99},
        "no head 99: .* heads 0 to 3",
    ),
    "a head of what has none": ({"heads": 0}, "summed over heads.*Use head_out"),
}


@pytest.mark.parametrize("name", BAD_PLACES)
def test_places_that_are_not_there(text: Case, name: str) -> None:
    changed, match = BAD_PLACES[name]
    value = {"value": torch.tensor(0.0)}
    with refused(text.model, SiteError, match):
        iv.run(text.model, text.prompt, patches=[patch(text, **value, **changed)])
    fields = {"component": "resid_post", "layers": 1, "positions": text.prompt.at("last")}
    with refused(text.model, SiteError, match):
        iv.read(text.model, text.prompt, [iv.Site(**{**fields, **changed})])
    with refused(text.model, SiteError, match):
        iv.complete(text.model, text.prompt, patches=[patch(text, **value, **changed)])


BAD_VALUES: dict[str, tuple[Callable[[int], dict[str, Any]], str]] = {
    "NaN": (lambda d: {"value": torch.full((2, d), torch.nan)}, "holds NaN. Check the run"),
    "too narrow": (lambda d: {"value": torch.zeros(2, d - 1)}, "of width 47 cannot be written"),
    "too many rows": (lambda d: {"value": torch.zeros(3, d)}, r"Expected \[2, 1, 48\], or"),
    "too many positions": (lambda d: {"value": torch.zeros(2, 2, d)}, r"Expected \[2, 1, 48\]"),
    "too many axes": (lambda d: {"value": torch.zeros(1, 2, 1, d)}, r"Expected \[2, 1, 48\]"),
    "too few layers": (
        lambda d: {"layers": [1, 2, 3], "value": torch.zeros(2, 2, d)},
        "names 3 layers but its value has 2",
    ),
    "rows of several layers": (
        lambda d: {"layers": [1, 2, 3], "value": torch.zeros(3, 3, d)},
        r"Expected \[3, 2, 1, 48\], or \[3, 2, 48\]",
    ),
    "heads flattened": (
        lambda d: {"component": "head_out", "value": torch.zeros(2, d)},
        "of width 48 cannot be written into head_out .* 12 wide",
    ),
    "too few heads": (
        lambda _: {"component": "head_out", "value": torch.zeros(2, 3, 12), "heads": [0, 1]},
        r"Expected \[2, 1, 2, 12\], or \[2, 2, 12\]",
    ),
}


@pytest.mark.parametrize("name", BAD_VALUES)
def test_values_that_do_not_fit(text: Case, name: str) -> None:
    changed, match = BAD_VALUES[name]
    bad = patch(text, **changed(text.model.d_model))
    with refused(text.model, PatchError, match):
        iv.run(text.model, text.prompt, patches=[bad])
    with refused(text.model, PatchError, match):
        iv.complete(text.model, text.prompt, patches=[bad])


def test_a_number_is_a_value(text: Case) -> None:
    number = iv.Patch("resid_post", 1, text.prompt.at("last"), 0.0)  # pyright: ignore
    one = iv.run(text.model, text.prompt, patches=[number]).logits
    other = iv.run(text.model, text.prompt, patches=[patch(text)]).logits
    assert one is not None
    assert other is not None
    assert torch.equal(one, other)


def test_positions_of_another_prompt(text: Case, shown: Case) -> None:
    model, other = text.model, shown.prompt.at("last")
    match = f"made for 2 rows x {shown.prompt.length} tokens; the prompt has 2 x"
    with refused(model, SiteError, match):
        iv.run(model, text.prompt, patches=[patch(text, positions=other)])
    with refused(model, SiteError, match):
        iv.read(model, text.prompt, [iv.Site("resid_post", 1, other)])
    with refused(model, SiteError, match):
        iv.run(model, text.prompt, logits=other)
    with refused(model, SiteError, match):
        cut = iv.Knockout(1, other, text.prompt.at("entity"))
        iv.run(model, text.prompt, knockouts=[cut])
    with refused(model, SiteError, match):
        cut = iv.Knockout(1, text.prompt.at("last"), other)
        iv.run(model, text.prompt, knockouts=[cut])


def test_rows_that_differ_in_tokens_cannot_be_read_as_one_tensor(text: Case) -> None:
    with refused(text.model, SiteError, r"one token per row, such as at\(role, -1\)"):
        iv.read(text.model, text.prompt, [iv.Site("resid_post", 1, text.prompt.at("entity"))])


# Knockouts


def test_a_knockout_that_would_blind_a_token(text: Case) -> None:
    model, prompt = text.model, text.prompt
    last, every = prompt.at("last"), prompt.every()
    match = "row 0 with nothing to see. Leave at least the token itself"
    with refused(model, SiteError, match):
        iv.run(model, prompt, knockouts=[iv.Knockout(1, last, every)])
    firsts = [[int(row.nonzero()[0])] for row in text.real]
    first = from_lists(firsts, length=prompt.length, single=True, role="first")
    with refused(model, SiteError, match):  # the first token has itself only
        iv.run(model, prompt, knockouts=[iv.Knockout([0, 1], first, first)])
    halves = [iv.Knockout(1, last, prompt.at("question")), iv.Knockout([1, 2], last, first)]
    if not model.tokenizer("")["input_ids"]:
        halves[1] = iv.Knockout([1, 2], last, last)
    with refused(model, SiteError, match):
        iv.run(model, prompt, knockouts=halves)
    iv.run(model, prompt, knockouts=halves[:1], logits=False)


def test_a_knockout_in_a_trace_that_would_blind_a_token(text: Case) -> None:
    model, prompt = text.model, text.prompt
    with refused(model, SiteError, "nothing to see", running=True), model.trace(prompt):
        iv.knockout(model, 1, queries=prompt.at("last"), keys=prompt.every())
    with refused(model, SiteError, "no layer 99", running=True), model.trace(prompt):
        iv.knockout(model, 99, queries=prompt.at("last"), keys=prompt.at("entity"))


def test_a_knockout_at_a_cross_attention_block(crossed: Case) -> None:
    model, prompt = crossed.model, crossed.prompt
    block = model.anatomy.cross_blocks[0]
    cut = iv.Knockout(block, prompt.at("last"), prompt.at("entity"))
    with refused(model, SiteError, "attends to the image only.*write 0 into attn_out"):
        iv.run(model, prompt, knockouts=[cut])
    with refused(model, SiteError, "attends to the image only", running=True), model.trace(prompt):
        iv.knockout(model, block, queries=cut.queries, keys=cut.keys)


# Blocks that do not run


def test_a_cross_attention_block_of_a_prompt_without_images(crossed: Case) -> None:
    model = crossed.model
    asked = model.prompt("The capital of France is")
    block = model.anatomy.cross_blocks[0]
    match = "does not run without an image. Leave it out: model.anatomy.self_blocks"
    for component in ("resid_pre", "attn_out", "resid_post"):
        with refused(model, SiteError, match):
            iv.read(model, asked, [iv.Site(component, slice(0, 3), asked.at("last"))])
    write = iv.Patch("resid_post", block, asked.at("last"), torch.tensor(0.0))
    with refused(model, SiteError, match):
        iv.run(model, asked, patches=[write])
    with refused(model, SiteError, match, running=True), model.trace(asked):
        model.resid_post[block, asked.at("last")] = 0.0
    with refused(model, SiteError, match):
        iv.patchscope(model, torch.zeros(1, model.d_model), layer=block)


def test_image_features_where_there_are_none(text: Case, shown: Case, crossed: Case) -> None:
    with refused(text.model, SiteError, "text-only", running=True), text.model.trace(text.prompt):
        text.model.image_features[:].save()
    asked = shown.model.prompt("The capital of France is")
    with refused(shown.model, SiteError, "Pass images=", running=True), shown.model.trace(asked):
        shown.model.image_features[:].save()
    last = shown.prompt.at("last")
    at_image = refused(shown.model, SiteError, r'prompt\.at\("image"\)', running=True)
    with at_image, shown.model.trace(shown.prompt):
        shown.model.image_features[last].save()
    last = crossed.prompt.at("last")
    tokens = refused(crossed.model, SiteError, "slice or list of vision tokens", running=True)
    with tokens, crossed.model.trace(crossed.prompt):
        crossed.model.image_features[last] = 0.0


# Transplants, lens and patchscope


def test_a_transplant_token_for_token_needs_as_many(shown: Case) -> None:
    model = shown.model
    pair = iv.pair(model, model)
    match = 'One-to-one needs as many; use how="last-to-all" or "mean-to-all"'
    with refused(model, PatchError, match):
        iv.transplant(
            pair,
            shown.prompt,
            read_at=shown.prompt.at("entity"),
            write_at=shown.prompt.at("image"),
            how="one-to-one",
        )
    with refused(model, PatchError, "same rows in the same order"):
        iv.transplant(
            pair,
            shown.prompt,
            read_at=shown.prompt.at("entity"),
            write_at=shown.prompt.select([0]).at("image"),
        )


def test_a_lens_and_a_patchscope_of_what_does_not_fit(text: Case) -> None:
    model = text.model
    width = model.d_model
    with refused(model, PatchError, r"Expected \[layer, row, 48\] and \[row, token\]"):
        iv.lens(model, torch.zeros(2, width), torch.tensor([[1], [2]]))
    with refused(model, PatchError, r"Expected \[value, 48\]"):
        iv.patchscope(model, torch.zeros(2, width + 1), layer=1)
    with refused(model, PatchError, "no placeholder '#'"):
        iv.patchscope(model, torch.zeros(2, width), layer=1, placeholder="#")
    with refused(model, SiteError, "no layer 99"):
        iv.patchscope(model, torch.zeros(2, width), layer=99)
    with refused(model, PatchError, "holds NaN"):
        iv.patchscope(model, torch.full((2, width), torch.nan), layer=1)


# Inside a trace nnsight runs the block beside the forward pass: our error comes out as it is


IN_A_TRACE: dict[str, tuple[Callable[[iv.Model, iv.Prompt], Any], type, str]] = {
    "a role": (lambda m, p: m.resid_post[0, p.at("entitty")], RoleError, "Did you mean 'entity'"),
    "a layer": (lambda m, p: m.resid_post[99, p.at("last")], SiteError, "layers 0 to 3"),
    "a head": (lambda m, p: m.head_out[0, p.at("last"), 99], SiteError, "heads 0 to 3"),
    "a position": (lambda m, p: m.resid_post[0, 999], SiteError, "no position 999"),
    "an index too many": (
        lambda m, p: m.mlp_out[0, p.at("last"), 0],
        SiteError,
        r"\[layers, positions\], not 3",
    ),
    "rows that differ": (lambda m, p: m.mlp_out[0, p.at("entity")], SiteError, "one token per row"),
    "another prompt": (
        lambda m, p: m.mlp_out[0, p.select([0]).at("last")],
        SiteError,
        "Use positions of the prompt that is traced",
    ),
    "an earlier block": (
        lambda m, p: (m.mlp_out[1, p.at("last")], m.mlp_out[0, p.at("last")]),
        SiteError,
        "earlier blocks first",
    ),
    "embeddings too late": (
        lambda m, p: (m.mlp_out[1, p.at("last")], m.embeddings[p.at("last")]),
        SiteError,
        "earlier blocks first",
    ),
    "NaN": (
        lambda m, p: m.mlp_out.write(0, p.at("last"), torch.full((2, m.d_model), torch.nan)),
        PatchError,
        "holds NaN",
    ),
    "a wrong width": (
        lambda m, p: m.mlp_out.write(0, p.at("last"), torch.zeros(2, 3)),
        PatchError,
        r"Expected \[2, 1, 48\]",
    ),
    "a wrong shape, all positions": (
        lambda m, _: m.mlp_out.write(0, None, noise((3, 7, m.d_model))),
        PatchError,
        "does not fit where it is to go",
    ),
    "wrong heads": (
        lambda m, p: m.head_out.write(0, p.at("last"), torch.zeros(2, 3, 12), heads=[0, 1]),
        PatchError,
        r"must end in \[2, 12\]",
    ),
    "no value": (
        lambda m, p: m.mlp_out.write(0, p.at("last"), "much"),
        PatchError,
        "give a tensor or number",
    ),
}


@pytest.mark.parametrize("name", IN_A_TRACE)
def test_mistakes_inside_a_trace_reach_the_user_as_they_are(text: Case, name: str) -> None:
    act, kind, match = IN_A_TRACE[name]
    model, prompt = text.model, text.prompt
    with refused(model, kind, match, running=True), model.trace(prompt):
        act(model, prompt)
    before = iv.run(model, prompt).logits
    with refused(model, kind, match, running=True), model.generate(prompt, max_new_tokens=2):
        act(model, prompt)
    after = iv.run(model, prompt).logits
    assert before is not None
    assert after is not None
    assert torch.equal(before, after)
