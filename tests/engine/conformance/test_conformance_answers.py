"""Knockouts, lenses and generation of every family are the library's own."""

import pytest
import torch
from families import PATHS, Case, attending, with_sdpa
from floors import FLOOR32, noise, relative

import interventions as iv
from interventions.errors import SiteError
from interventions.prompt.answer_tokens import candidate_ids
from interventions.prompt.positions import from_lists
from interventions.running.complete import following


def test_knocked_out_edges_have_weight_zero_and_others_stay(case: Case) -> None:
    model = case.model
    queries, layer = case.prompt.at("last"), attending(case)[:2][-1]
    end = case.prompt.length - 1
    keys = from_lists([[end - 1], [end - 1, end - 2]], length=end + 1, single=False, role="before")
    weights: list[torch.Tensor] = []
    attention = model.module.get_submodule(f"{PATHS[case.name].blocks}.{layer}.self_attn")
    handle = attention.register_forward_hook(lambda _m, _a, out: weights.append(out[1].clone()))
    try:
        clean = iv.run(model, case.prompt)
        cut = iv.run(model, case.prompt, knockouts=[iv.Knockout(layer, queries, keys)])
    finally:
        handle.remove()
    before, after = weights
    for row in range(len(case.prompt)):
        q = queries.index[row, 0]
        k = keys.index[row][keys.mask[row]]
        assert (before[row, :, q, k] > 0).any()
        assert (after[row, :, q, k] == 0).all()
        others = [i for i in range(case.prompt.length) if i != int(q) and case.real[row, i]]
        assert torch.equal(before[row, :, others], after[row, :, others])
        assert after[row, :, q].sum(-1).allclose(torch.ones(after.shape[1]), atol=1e-5)
    assert clean.logits is not None
    assert cut.logits is not None
    assert not torch.equal(clean.logits, cut.logits)


def test_a_block_without_edges_is_refused_with_the_reason(case: Case) -> None:
    for layer in PATHS[case.name].recurrent:
        cut = iv.Knockout(layer, case.prompt.at("last"), case.prompt.at("entity"))
        with pytest.raises(SiteError, match=r"keeps a recurrent state.*attention: \[3\]"):
            iv.run(case.model, case.prompt, knockouts=[cut])


def test_the_knockout_is_the_same_under_sdpa(case: Case) -> None:
    other = with_sdpa(case)
    cut = [iv.Knockout(attending(case)[:3][-2:], case.prompt.at("last"), case.prompt.at("entity"))]
    eager = iv.run(case.model, case.prompt, knockouts=cut).logits
    sdpa = iv.run(other.model, other.prompt, knockouts=cut).logits
    assert eager is not None
    assert sdpa is not None
    assert relative(sdpa, eager) < FLOOR32


def test_sdpa_reads_what_eager_reads(case: Case) -> None:
    other = with_sdpa(case)
    sites = [iv.Site("resid_post", slice(0, case.model.n_layers), case.place)]
    [eager] = iv.read(case.model, case.prompt, sites)
    [sdpa] = iv.read(other.model, other.prompt, sites)
    assert relative(sdpa, eager) < FLOOR32


def test_the_lens_at_the_last_layer_is_the_models_own_prediction(case: Case) -> None:
    model = case.model
    last = case.prompt.at("last")
    tokens = torch.tensor([[5, 9], [7, 11]])
    [final] = iv.read(model, case.prompt, [iv.Site("resid_post", [model.n_layers - 1], last)])
    logprob, rank = iv.lens(model, final, tokens)
    logits = iv.run(model, case.prompt).logits
    assert logits is not None
    expected = logits.log_softmax(-1).gather(-1, tokens)
    assert relative(logprob[0], expected) < FLOOR32
    assert torch.equal(rank[0], (logits[:, None] > logits.gather(-1, tokens)[..., None]).sum(-1))


def test_generation_is_the_librarys_and_edits_act_in_the_prefill(case: Case) -> None:
    model, prompt = case.model, case.prompt
    value = noise((2, model.d_model))
    with torch.no_grad():
        inputs = {k: v for k, v in case.arguments.items() if k != "position_ids"}
        theirs = model.module.generate(**inputs, do_sample=False, max_new_tokens=4)
    with model.generate(prompt, max_new_tokens=4) as tracer:
        ours = tracer.result.save()
    assert torch.equal(ours, theirs)
    with model.generate(prompt, max_new_tokens=4) as tracer:
        model.resid_post[1, case.place] = value
        edited = tracer.result.save()
    found = iv.complete(
        model,
        prompt,
        patches=[iv.Patch("resid_post", 1, case.place, value)],
        max_new_tokens=4,
        stop=None,
    )
    special = model.end_ids
    for row, text in enumerate(found.texts):
        new = edited[row, prompt.length :].tolist()
        stop = next((i for i, token in enumerate(new) if token in special), len(new))
        assert text == model.tokenizer.decode(new[:stop], skip_special_tokens=True).strip()


def test_a_known_answer_scores_the_same_in_one_pass_and_token_by_token(case: Case) -> None:
    if case.name == "paligemma":
        pytest.skip("a prefix that is read in both directions cannot hold the answer")
    model = case.model
    [ids] = candidate_ids(model, ["Paris"])
    answers = [ids, ids]
    pad = model.tokenizer.pad_token_id
    asked = following(case.prompt, answers, pad_id=pad)
    at = asked.at("answer")
    logits = iv.run(model, asked, logits=at).logits
    assert logits is not None
    once = logits.log_softmax(-1).gather(-1, torch.tensor(answers)[..., None])[..., 0].sum(-1)
    found = iv.complete(model, case.prompt, candidates=["Paris"], max_new_tokens=2, stop=None)
    assert relative(torch.tensor(found.logprobs), once) < FLOOR32
