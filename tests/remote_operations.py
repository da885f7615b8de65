"""Every operation, on a model elsewhere and here: what the two give must be the same.

Run against a process that cannot import the package (``test_travels.py``), and against a real
server (``ndif/``).
"""

from collections.abc import Callable

import pytest
import torch
from families import Case

import interventions as iv
from interventions.streams import COMPONENTS

CLOSE = 1e-5
PairOf = Callable[[str], tuple[iv.Model, Case]]


def same(ours: torch.Tensor | None, theirs: torch.Tensor | None) -> None:
    """Equal to rounding in float32, as a share of the largest value."""
    assert ours is not None
    assert theirs is not None
    assert ours.shape == theirs.shape
    scale = float(theirs.abs().max().clamp(min=1.0))
    assert float((ours - theirs).abs().max()) / scale < CLOSE


def layers_of(case: Case) -> list[int]:
    return list(case.model.anatomy.self_blocks)[:3]


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def streams_in_a_trace(there: iv.Model, case: Case) -> None:
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


def patches_knockouts_and_reads(there: iv.Model, case: Case) -> None:
    layers = layers_of(case)
    place, last = case.place, case.prompt.at("last")
    value = drawn(2, case.model.d_model)
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
    same(ours.logits, theirs.logits)
    for one, other in zip(ours.reads, theirs.reads, strict=True):
        same(one, other)


def generation_with_a_patch(there: iv.Model, case: Case) -> None:
    found = []
    for model in (there, case.model):
        with model.generate(case.prompt, max_new_tokens=4) as tracer:
            model.resid_post[layers_of(case)[1], case.place] *= 0.5
            ids = tracer.result.save()
        found.append(model.completions(ids, case.prompt))
    assert found[0] == found[1]


def completion_and_choice(there: iv.Model, case: Case) -> None:
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


def lens_and_unembedding(there: iv.Model, case: Case) -> None:
    hidden = drawn(2, 2, case.model.d_model, seed=1)
    tokens = torch.tensor([[5, 6], [7, 8]])
    ours, theirs = (iv.lens(model, hidden, tokens) for model in (there, case.model))
    same(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])
    same(there.unembed(hidden), case.model.unembed(hidden))


def patchscope(there: iv.Model, case: Case) -> None:
    values = drawn(2, case.model.d_model, seed=2)
    layer = layers_of(case)[0]
    ours, theirs = (
        iv.patchscope(model, values, layer=layer, max_new_tokens=3) for model in (there, case.model)
    )
    assert ours == theirs


def noise_and_frozen(there: iv.Model, case: Case) -> None:
    logits = []
    last, layers = case.prompt.at("last"), layers_of(case)
    for model in (there, case.model):
        noise = iv.embedding_noise(model, case.prompt, case.place, seed=3)
        hold = iv.frozen(model, case.prompt, last, layers, component="mlp_out")
        logits.append(iv.run(model, case.prompt, patches=[noise, *hold]).logits)
    same(*logits)


def replays_and_sweeps(there: iv.Model, case: Case) -> None:
    layers, place = layers_of(case), case.place
    cells = [
        [iv.Patch(component, layer, place, drawn(2, case.model.d_model, seed=layer))]
        for component in ("attn_out", "mlp_out", "resid_post")
        for layer in layers
    ]
    same(*(iv.replay(model, case.prompt, cells) for model in (there, case.model)))
    ours, theirs = (
        iv.sweep(
            model,
            case.prompt,
            case.prompt.select([1, 0]),
            answers=["Paris", "the big river"],
            foils="Madrid town",
            metrics=["logprob", "logit_diff", "kl", "rank"],
            components=["mlp_out", "resid_post"],
            layers=layers,
            roles=["entity[-1]", "last"],
            read_roles=["last", "entity[-1]"],
        )
        for model in (there, case.model)
    )
    for name in theirs.data_vars:
        same(*(torch.from_numpy(one[name].values.copy()) for one in (ours, theirs)))


OPERATIONS = (
    *(streams_in_a_trace, patches_knockouts_and_reads, generation_with_a_patch),
    *(completion_and_choice, lens_and_unembedding, patchscope, noise_and_frozen),
    replays_and_sweeps,
)


def a_shared_prefix(pair_of: PairOf) -> None:
    there, case = pair_of("llama")
    texts = ["The capital of France is", "The capital of the town is the big river"]
    logits = []
    for model in (there, case.model):
        prompt = model.prompt(texts, share_prefix=True)
        assert len(prompt.prefix_ids) > 1
        logits.append(iv.run(model, prompt).logits)
    same(*logits)


def transplants(pair_of: PairOf, how: str) -> None:
    shown, named = pair_of("llava"), pair_of("llama")
    prompt, source = shown[1].prompt, named[1].prompt
    found = []
    for vlm, llm in ((shown[0], named[0]), (shown[1].model, named[1].model)):
        patches = iv.transplant(
            iv.pair(vlm, llm),
            source,
            layers=slice(0, 3),
            read_at=source.at("entity", slice(0, 1)),
            write_at=prompt.at("entity", slice(0, 1)),
            how=how,  # type: ignore[arg-type]
        )
        found.append((patches, iv.complete(vlm, prompt, patches=patches, max_new_tokens=3)))
    (ours, said), (theirs, expected) = found
    same(ours[0].value, theirs[0].value)
    assert said.texts == expected.texts


def sweeps_from_another_deployment(pair_of: PairOf) -> None:
    shown, named = pair_of("llava"), pair_of("llama")
    found = []
    for vlm, llm in ((shown[0], named[0]), (shown[1].model, named[1].model)):
        found.append(
            iv.sweep(
                vlm,
                shown[1].prompt,
                iv.FromModel(iv.pair(vlm, llm), named[1].prompt),
                answers="Paris",
                roles=["image[-1]", "last"],
                read_roles=["entity[-1]", "last"],
            )
        )
    same(*(torch.from_numpy(one["logprob"].values.copy()) for one in found))
