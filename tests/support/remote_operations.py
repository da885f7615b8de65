"""Every operation, on a model elsewhere and here: what the two give must be the same.

Run against a process that cannot import the package (``test_travels.py``), and against a real
server (``ndif/``).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from families import Case
from raw_dictionary import written

import interventions as iv
from interventions.architectures.wrapped import about_weights
from interventions.errors import RemoteError, SiteError
from interventions.model.sites import COMPONENTS, INSIDE, STREAMS, VISION, Component
from interventions.model.vision_places import space_of
from interventions.remote.backend import Backend

CLOSE = 1e-5
OVERHEAD = 4000  # bytes of a request that tell what its values are
PairOf = Callable[[str], tuple[iv.Model, Case]]


def same(ours: torch.Tensor | None, theirs: torch.Tensor | None) -> None:
    """Equal to rounding in float32, as a share of the largest value."""
    assert ours is not None
    assert theirs is not None
    assert ours.shape == theirs.shape
    scale = float(theirs.abs().max().clamp(min=1.0))
    assert float((ours - theirs).abs().max()) / scale < CLOSE


def same_dataset(ours: xr.Dataset, theirs: xr.Dataset) -> None:
    """Numbers equal to rounding; words and decisions exactly."""
    assert {*ours.variables} == {*theirs.variables}
    for name, expected in theirs.variables.items():
        found = ours[name].values
        if expected.dtype.kind == "f":
            np.testing.assert_allclose(found, expected.values, atol=CLOSE, err_msg=str(name))
        else:
            assert (found == expected.values).all(), name


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


BESIDE_WEIGHTS: tuple[Component, ...] = (
    "resid_mid",
    "q_rot",
    "k_rot",
    "attn_scores",
    "attn_pattern",
)
"""What is not to be had where requests run in a process of their own."""


def same_where_seen(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Equal, and -inf at the same places: scores of what a query cannot see."""
    assert torch.equal(ours.isinf(), theirs.isinf())
    same(ours.nan_to_num(neginf=0.0), theirs.nan_to_num(neginf=0.0))


def streams_inside_blocks(there: iv.Model, case: Case) -> None:
    """Those that any server has: each read, and each written where it can be."""
    _inside(there, case, [name for name in INSIDE if name not in BESIDE_WEIGHTS])


def streams_beside_weights(there: iv.Model, case: Case) -> None:
    """Those that only the process with the weights has, by functions and by hand."""
    _inside(there, case, BESIDE_WEIGHTS)
    if case.model.anatomy.is_vlm:
        _of_tower(there, case, ["vision.attn_pattern"])
    layer, last = layers_of(case)[1], case.prompt.at("last")
    found = []
    for model in (there, case.model):
        prompt = case.prompt
        with model.trace(prompt):
            keys = model.k[layer, last].save()
            pattern = model.attn_pattern[layer, last].save()
            model.resid_mid[layer, last] *= 0.5
            neurons = model.mlp_post[layer, last].save()
            logits = model.logits[last].save()
        found.append([keys, pattern, neurons, logits])
    for mine, other in zip(*found, strict=True):
        same(mine, other)
    if not case.model.anatomy.cross_blocks:
        _maps_of_attention(there, case)


def _maps_of_attention(there: iv.Model, case: Case) -> None:
    asks: list[dict[str, Any]] = [{}, {"heads": [1]}, {"rollout": True}]
    for asked in asks:
        before = there.requests
        ours, theirs = (
            iv.attention_map(model, case.prompt, **asked) for model in (there, case.model)
        )
        for name in theirs.data_vars:
            np.testing.assert_allclose(ours[name].values, theirs[name].values, atol=CLOSE)
        assert there.requests - before == 1


def streams_of_the_tower(there: iv.Model, case: Case) -> None:
    """Those that any server has, where the model sees: read, written, and in answers."""
    if not case.model.anatomy.is_vlm:
        return
    names: list[Component] = [name for name in VISION if name != "vision.attn_pattern"]
    _of_tower(there, case, names)
    at = case.prompt.at("image", slice(0, 2), of="tower")
    texts = []
    for model in (there, case.model):
        prompt = case.prompt
        with model.trace(prompt):
            heads = model.vision.head_out[0, at, 1].save()
            model.vision.resid_post[0, at] *= 0.5
            logits = model.logits[prompt.at("last")].save()
        texts.append([heads, logits])
    for mine, other in zip(*texts, strict=True):
        same(mine, other)
    patches = [iv.Patch("vision.mlp_out", 0, at, torch.zeros(()))]
    ours, theirs = (
        iv.complete(model, case.prompt, patches=patches, max_new_tokens=3, stop=None)
        for model in (there, case.model)
    )
    assert ours.texts == theirs.texts


def maps_of_the_tower(there: iv.Model, case: Case) -> None:
    """A sweep of it is one request, an attribution two with its check, a replay one."""
    if not case.model.anatomy.is_vlm:
        return
    source = iv.Noise(seed=1)
    asked: dict[str, Any] = {"components": "vision.resid_post", "roles": ["image[0]", "image[2]"]}
    before = there.requests
    ours, theirs = (
        iv.sweep(model, case.prompt, source, metrics=["kl", entropy], progress=False, **asked)
        for model in (there, case.model)
    )
    same_dataset(ours, theirs)
    assert there.requests - before == 1
    at = case.prompt.at("image", 1, of="tower")
    cells = [[iv.Patch("vision.mlp_out", 0, at, torch.zeros(()))]]
    same(*(iv.replay(model, case.prompt, cells) for model in (there, case.model)))
    if not there.job(about_weights)[1]:
        return
    pictures = [picture.rotate(180) for picture in case.pictures]
    other = case.model.prompt(list(case.texts), images=pictures)
    before = there.requests
    ours, theirs = (
        iv.attribute(model, case.prompt, other, metric=entropy, verify=1, **asked)
        for model in (there, case.model)
    )
    same_dataset(ours, theirs)
    assert there.requests - before == 2


def _of_tower(there: iv.Model, case: Case, names: Sequence[Component]) -> None:
    reads = [
        iv.Site(name, 0, case.prompt.at("image", 1, of=space_of(case.model, name)))
        for name in names
    ]
    values = iv.read(case.model, case.prompt, reads)
    patches = [
        iv.Patch(site.component, 0, site.positions, value.flip(-1))
        for site, value in zip(reads, values, strict=True)
        if site.positions is not None and site.component != "vision.attn_pattern"
    ]
    ours, theirs = (
        iv.run(model, case.prompt, patches=patches, reads=reads) for model in (there, case.model)
    )
    same(ours.logits, theirs.logits)
    read = iv.read(there, case.prompt, reads)
    for mine, other in zip([*read, *ours.reads], [*values, *theirs.reads], strict=True):
        same(mine, other)


def _inside(there: iv.Model, case: Case, asked: Sequence[Component]) -> None:
    layer, last = layers_of(case)[1], case.prompt.at("last")
    names: list[Component] = [
        name for name in asked if case.model.anatomy.parts[layer].spot(name).path
    ]
    reads = [iv.Site(name, layer, last) for name in names]
    values = iv.read(case.model, case.prompt, reads)
    patches = [
        iv.Patch(name, layer, last, value.flip(0) if name != "attn_pattern" else value)
        for name, value in zip(names, values, strict=True)
        if not STREAMS[name].instead
    ]
    for ours, theirs in zip(iv.read(there, case.prompt, reads), values, strict=True):
        same_where_seen(ours, theirs)
    ours, theirs = (
        iv.run(model, case.prompt, patches=patches, reads=reads) for model in (there, case.model)
    )
    same(ours.logits, theirs.logits)
    for mine, other in zip(ours.reads, theirs.reads, strict=True):
        same_where_seen(mine, other)
    cells = [[patch] for patch in patches]
    same(*(iv.replay(model, case.prompt, cells) for model in (there, case.model)))


def generation_with_a_patch(there: iv.Model, case: Case) -> None:
    found = []
    for model in (there, case.model):
        with model.generate(case.prompt, max_new_tokens=4) as tracer:
            model.resid_post[layers_of(case)[1], case.place] *= 0.5
            ids = tracer.result.save()
        found.append(model.completions(ids, case.prompt))
    assert found[0] == found[1]


def generation_with_edits_at_steps(there: iv.Model, case: Case) -> None:
    """A trace of one's own, one request; edits ride with it."""
    layers, last = layers_of(case), case.prompt.at("last")
    asked: dict[str, Any] = {
        "patches": [
            iv.steering(layers[0], last, drawn(case.model.d_model), steps="all"),
            iv.ablated("mlp_out", layers[1], last, steps=slice(1, None)),
        ],
        "knockouts": [iv.Knockout(layers[1:], queries=last, keys=case.place, steps="all")],
        "max_new_tokens": 4,
    }
    if not there.job(about_weights)[1]:
        with pytest.raises(RemoteError, match="given no keys"):
            generated_under(there, case, asked)
        del asked["knockouts"]
    written = []
    for model in (there, case.model):
        before = model.requests
        written.append((*generated_under(model, case, asked), model.requests - before))
    same(written[0][0], written[1][0])
    assert written[0][1] == written[1][1]
    assert written[0][2] == 1


def what_enters_blocks_while_tokens_are_generated(there: iv.Model, case: Case) -> None:
    """Keys are kept for later tokens, so what a block is given may not come back as a copy."""
    last, n = case.prompt.at("last"), len(case.prompt)
    value = 3 * drawn(case.model.d_model).expand(n, -1)
    patch = iv.Patch("resid_pre", layers_of(case)[0], last, value, "add", steps="all")

    def completed(model: iv.Model) -> list[str]:
        return iv.complete(model, case.prompt, patches=[patch], max_new_tokens=4, stop=None).texts

    def generated(model: iv.Model) -> list[str]:
        return generated_under(model, case, {"patches": [patch], "max_new_tokens": 4})[1]

    def by_hand(model: iv.Model) -> list[str]:
        with model.generate(case.prompt, max_new_tokens=4) as tracer:
            model.resid_pre[layers_of(case)[0], last] += value
            ids = tracer.result.save()
        return model.completions(ids, case.prompt)

    for act in (completed, generated, by_hand):
        if there.job(about_weights)[1]:
            assert act(there) == act(case.model)
        else:
            with pytest.raises((SiteError, RemoteError), match="as copies"):
                act(there)


def generated_under(
    model: iv.Model, case: Case, edits: dict[str, Any]
) -> tuple[torch.Tensor, list[str]]:
    """What a block reads, and what is written, in a trace of generation under edits."""
    with iv.generate(model, case.prompt, **edits) as tracer:
        read = model.resid_post[layers_of(case)[0], case.prompt.at("last")].save()
        ids = tracer.result.save()
    return read, model.completions(ids, case.prompt)


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


def edits_at_every_step(there: iv.Model, case: Case) -> None:
    """One request; greedy, drawn, and of candidates."""
    layers, last = layers_of(case), case.prompt.at("last")
    asked: dict[str, Any] = {
        "patches": [
            iv.steering(layers[0], last, drawn(case.model.d_model), steps="all"),
            iv.ablated("mlp_out", layers[1], last, steps=slice(1, None)),
        ],
        "knockouts": [iv.Knockout(layers[1:], queries=last, keys=case.place, steps="all")],
        "candidates": ["Paris", "the big river"],
        "every_score": True,
        "max_new_tokens": 4,
    }
    if not there.job(about_weights)[1]:
        with pytest.raises(SiteError, match=r"given no keys.*iv\.run"):
            iv.complete(there, case.prompt, **asked)
        del asked["knockouts"]
    for temperature in (0.0, 0.7):
        before = there.requests
        ours, theirs = (
            iv.complete(model, case.prompt, temperature=temperature, **asked)
            for model in (there, case.model)
        )
        assert there.requests - before == int(there is not case.model)
        assert ours.texts == theirs.texts
        assert ours.choices == theirs.choices
        same(*(torch.tensor(answered.scores) for answered in (ours, theirs)))


def lens_and_unembedding(there: iv.Model, case: Case) -> None:
    hidden = drawn(2, 2, case.model.d_model, seed=1)
    tokens = torch.tensor([[5, 6], [7, 8]])
    ours, theirs = (iv.lens(model, hidden, tokens) for model in (there, case.model))
    same(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])
    same(there.unembed(hidden), case.model.unembed(hidden))


def lens_of_each_token(there: iv.Model, case: Case) -> None:
    before = there.requests
    asked: dict[str, Any] = {"words": ["Paris", "the big river"], "layers": layers_of(case)}
    ours, theirs = (iv.lens_map(model, case.prompt, **asked) for model in (there, case.model))
    for name in ("logprob", "probability"):
        np.testing.assert_allclose(ours[name].values, theirs[name].values, atol=CLOSE)
    assert there.requests - before == 1


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


def curves_of_knockouts(there: iv.Model, case: Case) -> None:
    """Routes, heads across layers, and cut cells of a replay: one request each."""
    layers, last, place = layers_of(case), case.prompt.at("last"), case.prompt.at("entity")
    routes = {"entity -> last": "entity -> last", "to the answer": (place, "answer")}
    if case.pictures:
        routes["image -> last"] = "image -> last"
    for heads in (None, [0, 1], {"few": [(layer, 1) for layer in range(case.model.n_layers)]}):
        asked: dict[str, Any] = {"heads": heads, "metrics": ["logprob", "kl"], "window": 2}
        ours, theirs = (
            iv.knockout_curves(
                model, case.prompt, routes, answers=["Paris", "the big river"], **asked
            )
            for model in (there, case.model)
        )
        same_dataset(ours, theirs)
        assert ours.attrs["requests"] == 1
    cells = [
        [
            iv.Knockout(layer, last, place, heads=[0], keep_self=True),
            iv.ablated("mlp_out", layer, last),
        ]
        for layer in layers
    ]
    same(*(iv.replay(model, case.prompt, cells) for model in (there, case.model)))


def entropy(logits: torch.Tensor) -> torch.Tensor:
    logprobs = logits.log_softmax(-1)
    return -(logprobs.exp() * logprobs).sum(-1)


def metrics_of_ones_own(there: iv.Model, case: Case) -> None:
    """Functions travel by value, with what they close over and name."""
    vocab = case.model.anatomy.vocab
    tokens, weights = [3, 5], drawn(vocab) / vocab**0.5  # so that sums of all logits round as these

    def weighed(logits: torch.Tensor) -> torch.Tensor:
        return entropy(logits) + logits[:, tokens].sum(-1)

    metrics: list[Any] = [
        entropy,
        weighed,
        lambda logits: logits @ weights,
        iv.Direction(drawn(case.model.d_model)),
    ]
    asked: dict[str, Any] = {"layers": layers_of(case)[:2], "roles": ["entity[-1]"]}
    before = there.requests
    ours, theirs = (
        iv.sweep(model, case.prompt, 0.0, metrics=metrics, progress=False, **asked)
        for model in (there, case.model)
    )
    same_dataset(ours, theirs)
    assert there.requests - before == 1
    if there.job(about_weights)[1]:
        source = case.prompt.select([1, 0])
        ours, theirs = (
            iv.attribute(model, case.prompt, source, metric=weighed, verify=2, **asked)
            for model in (there, case.model)
        )
        same_dataset(ours, theirs)
    lock = Lock()
    before = there.requests

    def held(logits: torch.Tensor) -> torch.Tensor:
        with lock:
            return logits[:, 0]

    with pytest.raises(RemoteError, match="cannot be packed"):
        iv.sweep(there, case.prompt, 0.0, metrics=held, **asked)
    with pytest.raises(RemoteError, match="lru_cache"):
        iv.sweep(there, case.prompt, 0.0, metrics=uses_a_cache, **asked)


def contrast_vectors(there: iv.Model, case: Case) -> None:
    """One request."""
    first, second = ([row] * 14 for row in (0, 1))
    positive, negative = case.prompt.select(first), case.prompt.select(second)
    asked: dict[str, Any] = {"metric": "logit_diff", "answers": "the big river", "foils": "Paris"}
    before = there.requests
    ours, theirs = (
        iv.contrast_vectors(
            model, positive, negative, layers=layers_of(case)[1:], controls=3, **asked
        )
        for model in (there, case.model)
    )
    same_dataset(ours, theirs)
    assert there.requests - before == 1


@lru_cache
def remembered(token: int) -> int:
    return token


def uses_a_cache(logits: torch.Tensor) -> torch.Tensor:
    return logits[:, remembered(3)]


def back_patching_noise_and_ablation(there: iv.Model, case: Case) -> None:
    layers = layers_of(case)
    for source in (iv.FromLayers(layers[1:]), iv.Noise(seed=4), 0.0):
        asked: dict[str, Any] = {"answers": "Paris", "layers": layers[:2], "roles": ["entity[-1]"]}
        ours, theirs = (
            iv.sweep(model, case.prompt, source, **asked) for model in (there, case.model)
        )
        same_dataset(ours, theirs)
        assert ours.attrs["requests"] == 1


def what_is_kept_is_not_asked_again(there: iv.Model, case: Case) -> None:
    """Sweeps and collections in folders: the same call a second time sends nothing."""
    row: dict[str, Any] = {"text": case.texts[0], "spans": {"entity": "France"}}
    if case.pictures:
        row["images"] = case.pictures[0]
    sites = {"name": iv.RoleSite("resid_post", layers_of(case), "entity", -1)}
    with TemporaryDirectory() as made:
        found = []
        for model in (there, case.model, there):
            before = model.requests
            at = Path(made) / str(bool(model.remote))
            activations = iv.collect(model, [row], sites, out=at / "activations").load()
            asked: dict[str, Any] = {"answers": "Paris", "layers": [0], "roles": ["last"]}
            swept = iv.sweep(model, case.prompt, 0.0, out=at / "sweep", **asked)
            found.append((activations, swept, model.requests - before))
    for ours, theirs in zip(found[0][:2], found[1][:2], strict=True):
        same_dataset(ours, theirs)
    assert found[0][2] == 2
    assert found[2][2] == 0


def attribution_and_its_agreement(there: iv.Model, case: Case) -> None:
    """Gradients where the server lets them through; else the exact sweep is offered."""
    settings: dict[str, Any] = {
        "answers": "Paris",
        "foils": "Madrid",
        "roles": ["entity[-1]", "last"],
        "layers": layers_of(case)[:2],
        "components": ["mlp_out", "head_out"],
        "verify": 2,
    }
    corrupt = case.prompt.select([1, 0])
    has_weights = there.job(about_weights)[1]
    for method in ("patching", "relp"):
        asked = {**settings, "method": method}
        before = there.requests
        if not has_weights:
            with pytest.raises(SiteError, match=r"iv\.sweep\(model, prompt, source"):
                iv.attribute(there, corrupt, case.prompt, **asked)
            return
        ours, theirs = (
            iv.attribute(model, corrupt, case.prompt, **asked) for model in (there, case.model)
        )
        same_dataset(ours, theirs)
        assert there.requests - before == 2


def edges_and_circuits(there: iv.Model, case: Case) -> None:
    """Scores, exact edges, circuits and paths: a request each."""
    asked: dict[str, Any] = {"answers": "Paris", "foils": "Madrid"}
    corrupt = drawn(case.model.d_model)  # enters the first block, in place of the embeddings
    if not there.job(about_weights)[1]:
        with pytest.raises(SiteError, match=r"has no weights.*iv\.sweep"):
            iv.attribute_edges(there, case.prompt, corrupt, roles=["last"], **asked)
        return
    results = []
    for model in (there, case.model):
        before = model.requests
        scores = iv.attribute_edges(
            model, case.prompt, corrupt, roles=["entity[-1]", "last"], **asked
        )
        given = (model, scores, case.prompt, corrupt)
        verified = iv.verify_edges(*given, k=2, **asked)
        kept = iv.faithfulness(*given, circuits=[200], n_random=1, **asked)
        path = scores.circuit(2, prune=False).names
        patched = iv.path_patch(model, case.prompt, corrupt, [path], roles=["last"], **asked)
        results.append((scores.data, kept.data, patched, model.requests - before))
        assert (verified.data["n_checked"] == 2).all()
    for ours, theirs in zip(results[0][:3], results[1][:3], strict=True):
        same_dataset(ours, theirs)
    assert results[0][3] == 4
    for metric in (entropy, iv.Direction(corrupt)):
        pair = []
        for model in (there, case.model):
            before = model.requests
            scores = iv.attribute_edges(model, case.prompt, 0.0, metric=metric, roles=["last"])
            given = (model, scores, case.prompt, 0.0)
            kept = iv.faithfulness(*given, circuits=[200], n_random=1, metric=metric)
            pair.append((scores.data, kept.data, model.requests - before))
        for ours, theirs in zip(pair[0][:2], pair[1][:2], strict=True):
            same_dataset(ours, theirs)
        assert pair[0][2] == 2


def folders_of_dictionaries(case: Case, folder: Path) -> list[iv.Dictionary]:
    """An autoencoder of a residual stream, and a transcoder, at a block of the case's model."""
    width, layer = case.model.d_model, layers_of(case)[1]
    written(folder / "sae", "jumprelu", width)
    written(folder / "transcoder", "transcoder", width, hook_name="blocks.1.mlp.hook_in")
    return [iv.load_sae(folder / name, layer=layer) for name in ("sae", "transcoder")]


def subspaces_and_features(there: iv.Model, case: Case) -> None:
    """Written in coordinates: each run, and each replay, is one request."""
    layers, place, last = layers_of(case), case.place, case.prompt.at("last")
    space = iv.Subspace.random(case.model.d_model, 3, seed=2)
    patches = [
        space.interchange("resid_post", layers[0], place, drawn(2, case.model.d_model)),
        space.project_out("attn_out", layers[1:], last),
    ]
    with TemporaryDirectory() as folder:
        dictionaries = folders_of_dictionaries(case, Path(folder))
    patches += [one.patch([3, 1], place, 2.0, "add") for one in dictionaries]
    before = there.requests
    same(*(iv.run(model, case.prompt, patches=patches).logits for model in (there, case.model)))
    cells = [[patch] for patch in patches]
    same(*(iv.replay(model, case.prompt, cells) for model in (there, case.model)))
    assert there.requests - before == 2
    for one in dictionaries:
        same(*(iv.feature_acts(model, case.prompt, one, last) for model in (there, case.model)))
    ours, theirs = (
        iv.complete(model, case.prompt, patches=patches, max_new_tokens=3)
        for model in (there, case.model)
    )
    assert ours.texts == theirs.texts


def what_is_learned_by_gradients(there: iv.Model, case: Case) -> None:
    """A subspace and two lenses, each one request that learns, or refused where none can."""
    layer, order = layers_of(case)[1], [0, 1] * 3
    base, source = case.prompt.select(order), case.prompt.select(order[::-1])
    states = drawn(2, 3 * case.model.d_model, case.model.d_model, seed=5)

    def subspace(model: iv.Model) -> list[torch.Tensor]:
        alignment = iv.das(
            model,
            base,
            source,
            expected=["Paris", "Madrid"] * 3,
            layer=layer,
            at=base.at("last"),
            source_at=source.at("last"),
            size=2,
            epochs=2,
        )
        return [alignment.subspace.basis, torch.from_numpy(alignment.scores.loss.values)]

    def tuned(model: iv.Model) -> list[torch.Tensor]:
        last = model.n_layers - 1
        return [iv.tuned_lens(model, states, layers=[layer, last], epochs=1).weight]

    def jacobian(model: iv.Model) -> list[torch.Tensor]:
        return [iv.jacobian_lens(model, case.prompt, layers=[layer], skip=1).weight]

    has_weights = there.job(about_weights)[1]
    for learn in (subspace, tuned, jacobian):
        if not has_weights:
            with pytest.raises(SiteError, match="Load the model here"):
                learn(there)
            continue
        for ours, theirs in zip(learn(there), learn(case.model), strict=True):
            same(ours, theirs)


OPERATIONS = (
    *(streams_in_a_trace, streams_inside_blocks, streams_of_the_tower, maps_of_the_tower),
    generation_with_edits_at_steps,
    what_enters_blocks_while_tokens_are_generated,
    patches_knockouts_and_reads,
    generation_with_a_patch,
    *(completion_and_choice, edits_at_every_step, lens_and_unembedding, lens_of_each_token),
    *(patchscope, noise_and_frozen),
    *(metrics_of_ones_own, contrast_vectors),
    *(replays_and_sweeps, back_patching_noise_and_ablation, what_is_kept_is_not_asked_again),
    curves_of_knockouts,
    *(attribution_and_its_agreement, edges_and_circuits),
    *(subspaces_and_features, what_is_learned_by_gradients),
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


def transplants_around_cross_attention(pair_of: PairOf) -> None:
    there, case = pair_of("mllama")
    texts, names = ["The capital of France is", "Who was in the town?"], ["France", "the town"]
    source = case.model.prompt(texts, spans={"entity": names})
    logits = []
    for model in (there, case.model):  # a native VLM is its own backbone, asked in text
        patches = iv.transplant(
            iv.pair(model, model),
            source,
            layers=layers_of(case),
            read_at=source.at("entity", -1),
            write_at=case.prompt.at("last"),
        )
        logits.append(iv.run(model, case.prompt, patches=patches).logits)
    same(*logits)


@dataclass(frozen=True)
class Traffic:
    """Bytes that went to a server and came back, request by request.

    Attributes
    ----------
    up : list of int
        Of the request, as sent.
    down : list of int
        Of the tensors in what was returned.
    """

    up: list[int] = field(default_factory=list)
    down: list[int] = field(default_factory=list)


def counted(monkeypatch: pytest.MonkeyPatch) -> Traffic:
    """Note the size of every request from now on."""
    traffic, plain = Traffic(), Backend.__call__

    def call(self: Backend, tracer: Any = None) -> Any:
        saved = plain(self, tracer)
        traffic.up.append(self.request_bytes)
        traffic.down.append(sum(one.nbytes for one in tensors(self.saved["returned"])))
        return saved

    monkeypatch.setattr(Backend, "__call__", call)
    return traffic


def tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [one for part in value for one in tensors(part)] if isinstance(value, Sequence) else []


def other_placements(pair_of: PairOf, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backbone here and its VLM on a server, the reverse, and each on a deployment of its own.

    Between them go values of the layers and positions asked for, and nothing else.
    """
    shown, named = pair_of("llava"), pair_of("llama")
    source, prompt = named[1].prompt, shown[1].prompt
    traffic, found = counted(monkeypatch), []
    asked: dict[str, Any] = {"answers": "Paris", "roles": ["entity[-1]"]}
    layers, d_model = slice(0, 3), named[1].model.d_model
    for vlm in (shown[1].model, shown[0]):
        iv.sweep(vlm, prompt, 0.0, **asked)
        bare = traffic.up[-1] if vlm.remote else 0
        for llm in (named[1].model, named[0]):
            pair = iv.pair(vlm, llm)
            [patch] = iv.transplant(
                pair,
                source,
                layers=layers,
                read_at=source.at("entity", -1),
                write_at=prompt.at("entity", -1),
            )
            if llm.remote:
                assert traffic.down[-1] == 4 * 3 * len(source) * d_model
            swept = iv.sweep(vlm, prompt, iv.FromModel(pair, source), **asked)
            moved = 4 * vlm.n_layers * len(source) * d_model
            if llm.remote:
                assert traffic.down[-2 if vlm.remote else -1] == moved
            if vlm.remote:
                assert traffic.up[-1] - bare < 1.1 * moved + OVERHEAD
            found.append((iv.run(vlm, prompt, patches=[patch]).logits, swept))
    for logits, swept in found[1:]:
        same(logits, found[0][0])
        same_dataset(swept, found[0][1])


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
