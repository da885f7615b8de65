"""Greedy answers and forced choices, against transformers' own generation and brute force."""

import pytest
import torch
from floors import FLOOR32, NAMES, noise, relative
from micro import answers
from PIL import Image
from raw_hooks import part, set_at

import interventions as iv
from interventions.errors import PromptError
from interventions.model.prefix_attention import is_shared
from interventions.prompt.answer_tokens import candidate_ids
from interventions.running.complete import following
from interventions.running.forced_choice import choose_by, tokens_of
from interventions.running.greedy import greedy


@pytest.fixture(scope="module")
def candidates() -> list[str]:
    return list(answers("capital"))


def hf_text(model: iv.Model, prompt: iv.Prompt, n: int) -> list[str]:
    inputs = {key: value for key, value in prompt.inputs.items() if key != "position_ids"}
    with torch.no_grad():
        ids = model.module.generate(**inputs, max_new_tokens=n, do_sample=False)
    return model.tokenizer.batch_decode(ids[:, prompt.length :], skip_special_tokens=True)


@pytest.mark.parametrize("which", ["llm", "vlm"])
def test_generate_and_greedy_equal_transformers(which: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(which)
    prompt = request.getfixturevalue("named" if which == "llm" else "shown")
    expected = hf_text(model, prompt, 5)
    with model.generate(prompt, max_new_tokens=5) as tracer:
        ids = tracer.result.save()
    assert model.completions(ids, prompt) == expected
    prefill = iv.run(model, prompt, keep_cache=True)
    found = greedy(model, prefill, max_new_tokens=5, stop=None)
    assert found.texts == [text.strip() for text in expected]


def test_generate_from_a_shared_prefix(llm: iv.Model, named: iv.Prompt) -> None:
    shared = llm.prompt(named.texts, share_prefix=True)
    with llm.generate(shared, max_new_tokens=5) as tracer:
        ids = tracer.result.save()
    assert llm.completions(ids, shared) == hf_text(llm, named, 5)


@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("which", ["llm", "vlm"])
def test_answers_from_a_shared_prefix(
    which: str,
    apart: bool,
    candidates: list[str],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rows of several lengths that go on from one copy of their beginning, or from one each."""
    if not apart:
        monkeypatch.setattr("interventions.running.run.SHORT", 0)
    model: iv.Model = request.getfixturevalue(which)
    ahead = "Question : What is the capital of"
    texts = [f"{ahead} Avaria ?", f"{ahead} Belmora and of Avaria ? Question : Which ?"]
    pictures = None
    if which == "vlm":
        texts = [f"{text} {model.image_token}" for text in texts]
        pictures = [Image.new("RGB", (64, 64), shade) for shade in ("red", "blue")]
    whole, shared = (
        model.prompt(texts, images=pictures, share_prefix=share) for share in (False, True)
    )
    n = len(shared.prefix_ids)
    assert n > 3
    assert shared.lengths.unique().numel() == 2
    one, two = (iv.run(model, prompt, keep_cache=True) for prompt in (whole, shared))
    assert one.logits is not None
    assert two.logits is not None
    assert relative(two.logits, one.logits) < FLOOR32
    assert is_shared(two.cache)
    for layer, plain in zip(two.cache.layers, one.cache.layers, strict=True):
        assert len(layer.before[0]) == 1, "the prefix is kept once"
        assert layer.keys.shape[-2] == shared.length
        own = shared.inputs["attention_mask"][:, n:].bool()
        for mine, theirs in zip(layer.whole(), (plain.keys, plain.values), strict=True):
            for row, used in enumerate(own):
                k = int(used.sum())
                assert relative(mine[row, :, -k:], theirs[row, :, -k:]) < FLOOR32
                assert relative(mine[row, :, :n], theirs[row, :, -k - n : -k]) < FLOOR32
    ours, theirs = (
        iv.complete(model, prompt, candidates=candidates, max_new_tokens=5, stop=None)
        for prompt in (shared, whole)
    )
    assert ours.texts == theirs.texts
    assert ours.choices == theirs.choices
    assert relative(torch.tensor(ours.logprobs), torch.tensor(theirs.logprobs)) < FLOOR32
    assert model.module.config.get_text_config()._attn_implementation == "sdpa"


def test_attention_is_as_it_was_after_a_run_that_failed(llm: iv.Model) -> None:
    shared = llm.prompt(["Which country ?", "Which capital ?"], share_prefix=True)
    broken = iv.Patch("resid_post", 1, shared.at("last"), torch.zeros(3, llm.d_model))
    with pytest.raises(Exception, match="does not fit"):
        iv.run(llm, shared, patches=[broken])
    assert llm.module.config._attn_implementation == "sdpa"


def test_edits_while_generating_act_in_prefill_only(vlm: iv.Model, shown: iv.Prompt) -> None:
    place = shown.at("image", -1)
    value = noise((4, vlm.d_model)) * 5
    calls = []

    def once(_module: object, _args: object, output: torch.Tensor) -> torch.Tensor:
        calls.append(output.shape[1])
        return set_at(place.index[:, 0], value)(output) if output.shape[1] > 1 else output

    handle = part(vlm, "resid_post", 1).register_forward_hook(once)
    try:
        expected = hf_text(vlm, shown, 5)
    finally:
        handle.remove()
    assert len(calls) > 1, "more than one step must have run"
    with vlm.generate(shown, max_new_tokens=5) as tracer:
        vlm.resid_post[1, place] = value
        ids = tracer.result.save()
    assert vlm.completions(ids, shown) == expected
    found = iv.complete(
        vlm,
        shown,
        patches=[iv.Patch("resid_post", 1, place, value)],
        max_new_tokens=5,
        stop=None,
    )
    assert found.texts == [text.strip() for text in expected]


def brute_force(model: iv.Model, text: str, candidates: list[list[int]]) -> list[float]:
    ids = model.tokenizer(text)["input_ids"]
    scores = []
    for tokens in candidates:
        with torch.no_grad():
            logits = model.module(torch.tensor([ids + tokens])).logits[0].log_softmax(-1)
        scores.append(sum(float(logits[len(ids) - 1 + i, t]) for i, t in enumerate(tokens)))
    return scores


@pytest.mark.parametrize("decoded", [False, True])
def test_choose_equals_scoring_every_candidate(
    llm: iv.Model, named: iv.Prompt, candidates: list[str], decoded: bool
) -> None:
    ids = candidate_ids(llm, candidates, stop=" .")
    assert {len(tokens) for tokens in ids} > {1}, "some answers must have two tokens"
    prefill = iv.run(llm, named, keep_cache=True)
    watch = tokens_of(ids)
    first = greedy(llm, prefill, max_new_tokens=4, stop=" .", watch=watch) if decoded else None
    chosen = choose_by(llm, prefill, ids, decoded=first)
    found, logprobs = chosen.choices["sum"], chosen.scores.amax(-1).tolist()
    for row, text in enumerate(named.texts):
        scores = torch.tensor(brute_force(llm, text, ids))
        assert found[row] == int(scores.argmax())
        assert relative(torch.tensor(logprobs[row]), scores.max()) < 1e-4


def test_batches_do_not_change_answers(
    llm: iv.Model, named: iv.Prompt, candidates: list[str]
) -> None:
    whole = iv.complete(llm, named, candidates=candidates, stop=" .")
    parts = iv.complete(llm, named, candidates=candidates, stop=" .", batch_rows=3)
    assert (whole.texts, whole.choices) == (parts.texts, parts.choices)
    assert whole.texts == ["Tessin", "Marlow", "Port Mira", "Quenlo City"]


def test_following_scores_the_tokens_of_the_answer(llm: iv.Model, named: iv.Prompt) -> None:
    tokens = candidate_ids(llm, ["Tessin", "Marlow", "Port Mira", "Quenlo City"])
    asked = following(named, tokens, pad_id=llm.tokenizer.pad_token_id)
    logits = iv.run(llm, asked, logits=asked.at("answer")).logits
    assert logits is not None
    for row, ids in enumerate(tokens):
        assert logits[row, : len(ids)].argmax(-1).tolist() == ids


def test_bad_candidates_are_refused(llm: iv.Model) -> None:
    with pytest.raises(PromptError, match="no tokens"):
        candidate_ids(llm, ["Tessin", " "])
    with pytest.raises(PromptError, match="given twice"):
        candidate_ids(llm, ["Tessin", "Tessin"])


def test_a_candidate_that_begins_another_needs_a_stop(llm: iv.Model) -> None:
    with pytest.raises(PromptError, match="begins another one"):
        candidate_ids(llm, ["Quenlo", "Quenlo City"])
    with pytest.raises(PromptError, match="no candidate answers"):
        candidate_ids(llm, [])


def test_a_prefix_of_another_candidate_must_also_end(llm: iv.Model) -> None:
    short, long = candidate_ids(llm, ["Quenlo", "Quenlo City"], stop=" .")
    assert short[-1] == llm.tokenizer(" .", add_special_tokens=False)["input_ids"][-1]
    assert len(long) == 2


def test_the_vlm_answers_from_pictures(
    vlm: iv.Model, shown: iv.Prompt, pictures: list[Image.Image], candidates: list[str]
) -> None:
    assert len(pictures) == len(NAMES)
    found = iv.complete(vlm, shown, candidates=candidates, stop=" .")
    assert found.texts == ["Tessin", "Marlow", "Port Mira", "Quenlo City"]
    assert [candidates[i] for i in found.choices] == found.texts
