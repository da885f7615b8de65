"""Steps of a generation: what may be asked, what is refused, and tokens that are drawn."""

from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from floors import FLOOR32, noise, relative
from transformers import GenerationConfig

import interventions as iv
from interventions.errors import PatchError, PromptError, SiteError
from interventions.prompt.answer_tokens import candidate_ids, spaced
from interventions.running.sampling import sampling_of
from interventions.running.steps import acts_at, checked_steps, only_in_prefill


@pytest.mark.parametrize(
    ("steps", "acting"),
    [
        ("prefill", [0]),
        ("all", [0, 1, 2, 3, 4, 5]),
        (0, [0]),
        (np.int64(3), [3]),
        (slice(1, None), [1, 2, 3, 4, 5]),
        (slice(None, 2), [0, 1]),
        (slice(1, 6, 3), [1, 4]),
        (slice(0, 3, 5), [0]),
    ],
)
def test_steps_name_passes(steps: Any, acting: list[int]) -> None:
    kept = checked_steps(steps)
    assert [step for step in range(6) if acts_at(kept, step)] == acting
    assert only_in_prefill(kept) == (acting == [0])


@pytest.mark.parametrize(
    "steps", ["every", -1, slice(-2, None), slice(3, 3), slice(5, 1, -1), True, 1.5, None, [1, 2]]
)
def test_other_steps_are_refused(steps: Any, named: iv.Prompt) -> None:
    with pytest.raises(PatchError, match="Expected 'prefill', 'all', an int or a slice"):
        iv.Patch("resid_post", 0, named.at("last"), torch.zeros(()), steps=steps)
    with pytest.raises(PatchError, match="Expected 'prefill', 'all', an int or a slice"):
        iv.Knockout(0, named.at("last"), named.at("entity"), steps=steps)


def test_one_pass_refuses_what_acts_behind_it(llm: iv.Model, named: iv.Prompt) -> None:
    last, later = named.at("last"), slice(1, None)
    patch = iv.ablated("mlp_out", 1, last, steps=later)
    with pytest.raises(PatchError, match="one forward pass"):
        iv.run(llm, named, patches=[patch])
    with pytest.raises(PatchError, match="one forward pass"):
        iv.replay(llm, named, [[patch]])
    with pytest.raises(PatchError, match="one forward pass"):
        iv.run(llm, named, knockouts=[iv.Knockout(1, last, named.at("entity"), steps=later)])


def test_what_cannot_act_on_a_new_token_is_refused(llm: iv.Model, named: iv.Prompt) -> None:
    where = named.at("question", [0, 1])
    patch = iv.Patch("resid_post", 1, where, torch.zeros(len(named), 2, llm.d_model), steps="all")
    with pytest.raises(PatchError, match="one for each of 2 positions"):
        iv.complete(llm, named, patches=[patch])
    weights = iv.Patch("attn_pattern", 1, named.at("last"), torch.zeros(()), steps="all")
    with pytest.raises(PatchError, match="a number for each key"):
        iv.complete(llm, named, patches=[weights])


def test_only_rows_with_a_position_are_edited(llm: iv.Model, named: iv.Prompt) -> None:
    last = named.at("last")
    chosen = last.only(torch.tensor([True, False, False, True]))
    patches = [iv.steering(2, chosen, 5 * noise((llm.d_model,)), steps="all")]
    asked: Any = {"candidates": ["Marlow", "Brenn", "Tessin"], "every_score": True}
    plain, steered = (iv.complete(llm, named, patches=p, **asked) for p in ((), patches))
    scores = [torch.tensor(answered.scores) for answered in (plain, steered)]
    assert torch.allclose(scores[0][1:3], scores[1][1:3], atol=1e-4)
    assert not torch.allclose(scores[0][[0, 3]], scores[1][[0, 3]], atol=1e-1)


def test_generate_by_hand_is_complete_at_all_steps(llm: iv.Model, named: iv.Prompt) -> None:
    vector = 4 * noise((llm.d_model,))
    patch = iv.steering(2, named.at("last"), vector, steps="all")
    ours = iv.complete(llm, named, patches=[patch], max_new_tokens=3, stop=None)
    with llm.generate(named, max_new_tokens=3) as tracer:
        for _step in tracer.iter[:3]:
            llm.resid_post[2, -1] += vector
        ids = tracer.result.save()
    assert [text.strip() for text in llm.completions(ids, named)] == ours.texts


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0])
    n = 4000
    sampling = sampling_of(2.0, 1.0, 0, n_rows=n, steps=1)
    assert sampling is not None
    drawn = sampling.drawn(logits.expand(n, -1), torch.arange(n), 0)
    shares = torch.bincount(drawn, minlength=4) / n
    assert (shares - (logits / 2).softmax(-1)).abs().max() < 4 * 0.5 / n**0.5
    nucleus = sampling_of(2.0, 0.6, 0, n_rows=n, steps=1)
    assert nucleus is not None
    assert set(nucleus.drawn(logits.expand(n, -1), torch.arange(n), 0).tolist()) == {1, 3}


def test_draws_of_a_row_hang_on_its_number_alone(llm: iv.Model, named: iv.Prompt) -> None:
    asked: Any = {"max_new_tokens": 6, "stop": None, "temperature": 3.0, "seed": 4}
    together = iv.complete(llm, named, **asked)
    assert iv.complete(llm, named, batch_rows=1, **asked).texts == together.texts
    fewer = iv.complete(llm, named.select([0, 1]), **asked)
    assert fewer.texts == together.texts[:2]
    assert iv.complete(llm, named, **{**asked, "seed": 5}).texts != together.texts
    greedy = iv.complete(llm, named, **{**asked, "temperature": 0.0})
    cold = iv.complete(llm, named, **{**asked, "temperature": 1e-4})
    assert cold.texts == greedy.texts
    many = iv.complete(llm, named.select([0] * 8), **asked)
    assert len({*many.texts}) > 1


def test_candidates_do_not_hang_on_what_was_drawn(llm: iv.Model, named: iv.Prompt) -> None:
    asked: Any = {"candidates": ["Marlow", "Brenn of Tessin"], "every_score": True}
    patches = [iv.steering(2, named.at("last"), noise((llm.d_model,)), steps="all")]
    plain, drawn = (
        iv.complete(llm, named, patches=patches, temperature=t, **asked) for t in (0.0, 2.0)
    )
    assert relative(torch.tensor(drawn.scores), torch.tensor(plain.scores)) < FLOOR32


@pytest.mark.parametrize(
    ("asked", "what"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p"),
        ({"temperature": 1.0, "top_p": 1.5}, "top_p"),
        ({"top_p": 0.9}, "Give a temperature too"),
    ],
)
def test_ways_to_draw_that_are_none_are_refused(
    asked: Any, what: str, llm: iv.Model, named: iv.Prompt
) -> None:
    with pytest.raises(PromptError, match=what):
        iv.complete(llm, named, **asked)


def test_edits_behind_a_shared_prefix_are_those_of_whole_rows(llm: iv.Model) -> None:
    """Also of keys that are kept once for all rows, which a knockout spreads out again."""
    ahead = "Question : What is the capital of"
    texts = [f"{ahead} Avaria ?", f"{ahead} Belmora and of Avaria ? Question : Which ?"]
    spans = {"entity": "Avaria"}
    answered = []
    for share in (False, True):
        prompt = llm.prompt(texts, spans=spans, share_prefix=share)
        last = prompt.at("last")
        vector = 3 * noise((llm.d_model,))
        done = iv.complete(
            llm,
            prompt,
            patches=[iv.steering(2, last, vector, steps="all")],
            knockouts=[iv.Knockout([3, 4], last, prompt.at("entity", -1), steps="all")],
            candidates=["Marlow", "Brenn of Tessin", "the capital"],
            every_score=True,
            stop=None,
        )
        answered.append(done)
    assert len(llm.prompt(texts, share_prefix=True).prefix_ids) > 3
    assert answered[0].texts == answered[1].texts
    assert relative(*(torch.tensor(done.scores) for done in answered)) < FLOOR32


def test_coordinates_and_single_heads_are_edited_at_every_step(llm: iv.Model) -> None:
    """Held against one pass over prompt and answer, without a cache, with hooks."""
    prompt = llm.prompt("Question: What is the capital of Belmora ? Answer:")
    width, last = prompt.length, prompt.at("last")
    space, layer, heads = iv.Subspace.random(llm.d_model, 8, seed=1), 2, [0, 3]
    patch = replace(space.project_out("resid_post", layer, last), steps="all")
    cut = iv.Knockout(4, last, prompt.at("question", slice(2, 5)), heads=heads, steps="all")
    candidate = "Quenlo City ."
    asked: Any = {"candidates": [candidate, "Brenn"], "every_score": True}
    answered = iv.complete(llm, prompt, patches=[patch], knockouts=[cut], **asked)

    ids = candidate_ids(llm, [candidate], space=spaced(llm, prompt))[0]
    assert len(ids) > 1
    row = torch.cat([prompt.inputs["input_ids"], torch.tensor([ids])], 1)
    basis = space.basis if len(space.basis) == llm.d_model else space.basis.T
    n, keys = row.shape[1], cut.keys.index[0].tolist()

    def project(_module: Any, _args: Any, hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden.clone()
        new = hidden[:, width - 1 :]
        hidden[:, width - 1 :] = new - new @ basis @ basis.T
        return hidden

    def mask(_module: Any, args: Any, kwargs: Any) -> Any:
        allowed = torch.ones(n, n, dtype=torch.bool).tril().repeat(1, llm.anatomy.n_heads, 1, 1)
        for head in heads:
            for query in range(width - 1, n):
                allowed[0, head, query, keys] = False
        return args, {**kwargs, "attention_mask": allowed}

    blocks = llm.module.get_submodule(llm.anatomy.blocks)
    with ExitStack() as stack, torch.no_grad():
        stack.callback(blocks[layer].register_forward_hook(project).remove)
        attention = blocks[4].self_attn
        stack.callback(attention.register_forward_pre_hook(mask, with_kwargs=True).remove)
        logits = llm.module(input_ids=row, use_cache=False).logits
    logprobs = logits[0, width - 1 : -1].log_softmax(-1)
    expected = logprobs[torch.arange(len(ids)), ids].sum()
    assert abs(answered.scores[0][0] - float(expected)) < 1e-4
    plain = iv.complete(llm, prompt, **asked)
    assert abs(plain.scores[0][0] - float(expected)) > 1e-2


def test_a_trace_of_generation_under_edits_ends_with_its_rows(llm: iv.Model) -> None:
    """Rows that end early leave later steps out, and what stands behind in the block runs."""
    prompt = llm.prompt(["Question : What is the capital of Avaria ? Answer :"] * 2)
    last = prompt.at("last")
    patches = [iv.steering(1, last, 0.01 * noise((llm.d_model,)), steps="all")]
    with iv.generate(llm, prompt, patches=patches, max_new_tokens=60) as tracer:
        seen = llm.resid_post[1, last].save()
        ids = tracer.result.save()
    answered = iv.complete(llm, prompt, patches=patches, max_new_tokens=60, stop=None)
    assert [text.strip() for text in llm.completions(ids, prompt)] == answered.texts
    plain = iv.read(llm, prompt, [iv.Site("resid_post", 1, last)])[0]
    assert relative(seen - plain, patches[0].value.expand_as(seen)) < 1e-3
    with llm.generate(prompt, max_new_tokens=1) as tracer:
        clean = llm.resid_post[1, last].save()
    assert torch.equal(clean, plain)


def test_edits_of_a_trace_that_cannot_be_are_refused(llm: iv.Model, named: iv.Prompt) -> None:
    last = named.at("last")
    steered = [iv.steering(1, last, noise((llm.d_model,)), steps="all")]
    beams: Any = (
        {"num_beams": 2},
        {"num_return_sequences": 3, "do_sample": True},
        {"generation_config": GenerationConfig(num_beams=2)},
    )
    for settings in beams:
        with pytest.raises(PatchError, match="more rows than the prompt has"):
            iv.generate(llm, named, patches=steered, **settings)
    others: Any = (
        {"use_cache": False},
        {"guidance_scale": 1.5},
        {"generation_config": GenerationConfig(guidance_scale=1.5)},
        {"prefill_chunk_size": 2},
        {"prompt_lookup_num_tokens": 3},
        {"assistant_model": llm.module},
    )
    for settings in others:
        with pytest.raises(PatchError, match=r"one new token of each row.* Leave it out"):
            iv.generate(llm, named, patches=steered, **settings)
    neutral: Any = {"use_cache": True, "guidance_scale": 1.0, "num_beams": 1}
    with iv.generate(llm, named, patches=steered, max_new_tokens=3, **neutral) as tracer:
        ids = tracer.result.save()
    assert [text.strip() for text in llm.completions(ids, named)] == iv.complete(
        llm, named, patches=steered, max_new_tokens=3, stop=None
    ).texts
    weights = iv.Patch("attn_pattern", 1, last, torch.zeros(()), steps="all")
    with pytest.raises(PatchError, match="a number for each key"):
        iv.generate(llm, named, patches=[weights])
    nowhere = last.only(torch.zeros(len(named), dtype=torch.bool))
    unedited = [iv.steering(1, nowhere, noise((llm.d_model,)), steps="all")]
    for patches in ([], unedited):
        with iv.generate(llm, named, patches=patches, max_new_tokens=3) as tracer:
            ids = tracer.result.save()
        assert [t.strip() for t in llm.completions(ids, named)] == iv.complete(
            llm, named, max_new_tokens=3, stop=None
        ).texts


def test_draws_of_a_trace_are_under_its_edits(llm: iv.Model, named: iv.Prompt) -> None:
    patches = [iv.ablated("mlp_out", layer, named.at("last"), steps="all") for layer in (1, 2)]
    asked: Any = {"max_new_tokens": 4, "do_sample": True, "temperature": 1e-4}
    with iv.generate(llm, named, patches=patches, **asked) as tracer:
        ids = tracer.result.save()
    answered = iv.complete(llm, named, patches=patches, max_new_tokens=4, stop=None)
    assert [text.strip() for text in llm.completions(ids, named)] == answered.texts


@pytest.mark.parametrize("steps", ["prefill", "all"])
def test_edges_are_not_cut_among_keys_of_a_set_number(
    llm: iv.Model, named: iv.Prompt, steps: Any
) -> None:
    last = named.at("last")
    patches = [iv.steering(1, last, noise((llm.d_model,)), steps="all")]
    with iv.generate(
        llm, named, patches=patches, max_new_tokens=4, cache_implementation="static"
    ) as tracer:
        ids = tracer.result.save()
    answered = iv.complete(llm, named, patches=patches, max_new_tokens=4, stop=None)
    assert [text.strip() for text in llm.completions(ids, named)] == answered.texts
    cuts = [iv.Knockout(2, last, named.at("entity"), steps=steps)]
    with (
        pytest.raises(SiteError, match="StaticCache have places for tokens that are not there"),
        iv.generate(
            llm, named, knockouts=cuts, max_new_tokens=4, cache_implementation="static"
        ) as tracer,
    ):
        ids = tracer.result.save()
