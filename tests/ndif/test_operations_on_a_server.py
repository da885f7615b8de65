"""Every operation on a real server against its local result."""

import pytest
import torch
from deployed import pair_of, same
from families import Case

import interventions as iv
from interventions.streams import COMPONENTS

NAMES = ("llama", "llava", "mllama")
Both = tuple[iv.Model, Case]


@pytest.fixture(params=NAMES)
def both(request: pytest.FixtureRequest, path: str) -> Both:
    return pair_of(request.param)


def layers_of(case: Case) -> list[int]:
    return list(case.model.anatomy.self_blocks)[:3]


def test_streams_in_a_trace(both: Both) -> None:
    there, case = both
    place, last = case.place, case.prompt.at("last")
    found = []
    for model in (there, case.model):
        prompt = case.prompt
        layer, later = layers_of(case)[0], layers_of(case)[2]
        with model.trace(prompt):
            embedded = model.embeddings[place].save()
            pre = model.resid_pre[layer, place].save()
            heads = model.head_out[layer, place].save()
            attn = model.attn_out[layer, place].save()
            mlp = model.mlp_out[layer, place].save()
            post = model.resid_post[layer, place].save()
            model.resid_post[later, place] += 1.0
            logits = model.logits[last].save()
        found.append([embedded, pre, heads, attn, mlp, post, logits])
    for ours, theirs in zip(*found, strict=True):
        same(ours, theirs)


def test_run_with_patches_knockouts_and_reads(both: Both) -> None:
    there, case = both
    layers = layers_of(case)
    place, last = case.place, case.prompt.at("last")
    value = torch.randn(2, case.model.d_model, generator=torch.Generator().manual_seed(0))
    asked = {
        "patches": [
            iv.Patch("resid_post", layers[0], place, value),
            iv.Patch("head_out", layers[1], place, torch.zeros(()), heads=[0, 1]),
            iv.steering(layers[1], last, value[0], scale=0.5),
        ],
        "knockouts": [iv.Knockout(layers[1:], queries=last, keys=place)],
        "reads": [iv.Site(component, layers, last) for component in COMPONENTS],
    }
    ours, theirs = (iv.run(model, case.prompt, **asked) for model in (there, case.model))
    assert ours.logits is not None
    assert theirs.logits is not None
    same(ours.logits, theirs.logits)
    for one, other in zip(ours.reads, theirs.reads, strict=True):
        same(one, other)


def test_generate_with_a_patch(both: Both) -> None:
    there, case = both
    found = []
    for model in (there, case.model):
        with model.generate(case.prompt, max_new_tokens=4) as tracer:
            model.resid_post[layers_of(case)[1], case.place] *= 0.5
            ids = tracer.result.save()
        found.append(model.completions(ids, case.prompt))
    assert found[0] == found[1]


def test_complete_greedily_and_by_choice(both: Both) -> None:
    there, case = both
    patches = [iv.ablated("mlp_out", layers_of(case)[1], case.place)]
    candidates = ["Paris", "the big river", "Madrid town", "the north"]
    ours, theirs = (
        iv.complete(
            model, case.prompt, patches=patches, candidates=candidates, max_new_tokens=4, stop="."
        )
        for model in (there, case.model)
    )
    assert ours.texts == theirs.texts
    assert ours.choices == theirs.choices
    assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)


def test_lens(both: Both) -> None:
    there, case = both
    hidden = torch.randn(2, 2, case.model.d_model, generator=torch.Generator().manual_seed(1))
    tokens = torch.tensor([[5, 6], [7, 8]])
    ours, theirs = (iv.lens(model, hidden, tokens) for model in (there, case.model))
    same(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])
    same(there.unembed(hidden), case.model.unembed(hidden))


def test_patchscope(both: Both) -> None:
    there, case = both
    values = torch.randn(2, case.model.d_model, generator=torch.Generator().manual_seed(2))
    layer = layers_of(case)[0]
    ours, theirs = (
        iv.patchscope(model, values, layer=layer, max_new_tokens=3) for model in (there, case.model)
    )
    assert ours == theirs


def test_noise_and_frozen(both: Both) -> None:
    there, case = both
    logits = []
    for model in (there, case.model):
        noise = iv.embedding_noise(model, case.prompt, case.place, seed=3)
        hold = iv.frozen(
            model, case.prompt, case.prompt.at("last"), layers_of(case), component="mlp_out"
        )
        done = iv.run(model, case.prompt, patches=[noise, *hold])
        assert done.logits is not None
        logits.append(done.logits)
    same(*logits)


def test_a_shared_prefix(path: str) -> None:
    there, case = pair_of("llama")
    texts = ["The capital of France is", "The capital of the town is the big river"]
    logits = []
    for model in (there, case.model):
        prompt = model.prompt(texts, share_prefix=True)
        assert len(prompt.prefix_ids) > 1
        done = iv.run(model, prompt)
        assert done.logits is not None
        logits.append(done.logits)
    same(*logits)


@pytest.mark.parametrize("how", ["one-to-one", "last-to-all", "mean-to-all"])
def test_transplant_between_two_deployments(path: str, how: str) -> None:
    found = []
    for vlm, llm in (
        (pair_of("llava")[0], pair_of("llama")[0]),
        (pair_of("llava")[1].model, pair_of("llama")[1].model),
    ):
        case, source = pair_of("llava")[1], pair_of("llama")[1]
        pair = iv.pair(vlm, llm)
        patches = iv.transplant(
            pair,
            source.prompt,
            layers=slice(0, 3),
            read_at=source.prompt.at("entity", slice(0, 1)),
            write_at=case.prompt.at("entity", slice(0, 1)),
            how=how,  # type: ignore[arg-type]
        )
        found.append((patches, iv.complete(vlm, case.prompt, patches=patches, max_new_tokens=3)))
    (ours, said), (theirs, expected) = found
    same(ours[0].value, theirs[0].value)
    assert said.texts == expected.texts
