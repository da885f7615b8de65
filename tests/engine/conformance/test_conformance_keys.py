"""Keys and values of image tokens that are written in the prefill are what every step attends to.

The reference has no cache and no nnsight: every answer is run whole, behind its prompt, and plain
hooks write at the same tokens.
"""

import sys
from typing import Any

import pytest
import torch
from families import PATHS, Case, arguments_of
from floors import FLOOR32, noise, relative
from raw_attention import attending_with
from raw_inside import Value, writing

import interventions as iv
from interventions.errors import PatchError, SiteError
from interventions.model.sites import Component
from interventions.prompt.answer_tokens import candidate_ids, spaced
from interventions.running.complete import following

ANSWERS = ("the town in the north", "a big river of France", "France")


def scored(case: Case, run: Any) -> torch.Tensor:
    """Log-probability of each answer behind each row [row, candidate], run whole."""
    model, prompt = case.model, case.prompt
    two_way = model.anatomy.family.two_way == "prompt"
    space = spaced(model, prompt)
    columns = []
    for ids in candidate_ids(model, list(ANSWERS), stop="\n", space=space):
        whole = following(prompt, [ids] * len(prompt), pad_id=0, token_type=int(two_way))
        logits = run(arguments_of(whole)).float()
        at = whole.at("answer").index
        rows = torch.arange(len(prompt))[:, None]
        log = logits[rows, at].log_softmax(-1)
        columns.append(log.gather(-1, torch.tensor([ids] * len(prompt))[..., None]).sum((1, 2)))
    return torch.stack(columns, -1)


def ours(case: Case, patches: list[iv.Patch]) -> torch.Tensor:
    answers = iv.complete(
        case.model, case.prompt, patches=patches, candidates=ANSWERS, every_score=True
    )
    return torch.tensor(answers.scores)


def plainly(case: Case) -> Any:
    def run(arguments: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            return case.model.module(**arguments, use_cache=False).logits

    return run


def with_image(case: Case) -> tuple[int, iv.Positions]:
    """A block, and image tokens whose keys and values it has."""
    paths = PATHS[case.name]
    if paths.cross_blocks:
        return paths.cross_blocks[0], case.prompt.at("image", [0, 1], of="features")
    without = (*paths.headless, *paths.recurrent)
    layer = next(i for i in range(case.model.n_layers) if i not in without)
    return layer, case.prompt.at("image", [0, 1, -1])


def test_written_keys_and_values_of_image_tokens_are_what_answers_attend_to(shown: Case) -> None:
    layer, at = with_image(shown)
    [own] = iv.read(shown.model, shown.prompt, [iv.Site("v", layer, at)])
    assert own.shape[-2] == shown.model.anatomy.n_kv_heads
    names: tuple[Component, ...] = ("k", "v")
    values = [2 * noise(tuple(own.shape), i) for i in range(2)]
    patches = [iv.Patch(name, layer, at, value) for name, value in zip(names, values, strict=True)]
    edits = [Value(name, layer, at.index, value) for name, value in zip(names, values, strict=True)]
    with writing(shown, edits, prefill_only=False):
        expected = scored(shown, plainly(shown))
    assert relative(ours(shown, patches), expected) < FLOOR32
    assert relative(ours(shown, []), expected) > 10 * FLOOR32
    assert relative(ours(shown, []), scored(shown, plainly(shown))) < FLOOR32


def test_written_rotated_keys_of_image_tokens_are_what_answers_attend_to(shown: Case) -> None:
    layer, at = with_image(shown)
    if PATHS[shown.name].cross_blocks:
        with pytest.raises(SiteError, match="its keys are not rotated"):
            iv.read(shown.model, shown.prompt, [iv.Site("k_rot", layer)])
        return
    [own] = iv.read(shown.model, shown.prompt, [iv.Site("k_rot", layer, at)])
    value = 2 * noise(tuple(own.shape), 1)
    patch = iv.Patch("k_rot", layer, at, value)
    block = shown.model.module.get_submodule(f"{PATHS[shown.name].blocks}.{layer}")
    rows = torch.arange(len(shown.prompt))[:, None]

    def attend(module: Any, query: Any, key: Any, values: Any, mask: Any, **given: Any) -> Any:
        if module is block.self_attn:
            key = key.clone()
            key[rows, :, at.index] = value
        eager = sys.modules[type(module).__module__].eager_attention_forward
        return eager(module, query, key, values, mask, **given)

    with attending_with(shown, attend):
        expected = scored(shown, plainly(shown))
    assert relative(ours(shown, [patch]), expected) < FLOOR32
    assert relative(ours(shown, []), expected) > 10 * FLOOR32
    same = iv.run(shown.model, shown.prompt, patches=[iv.Patch("k_rot", layer, at, own)]).logits
    plain = iv.run(shown.model, shown.prompt).logits
    assert same is not None
    assert plain is not None
    assert torch.equal(same, plain)


def test_rotated_keys_behind_a_shared_prefix_are_refused(case: Case) -> None:
    texts = ["what is the capital of France", "what is the capital of the town"]
    prompt = case.model.prompt(texts, share_prefix=True)
    if not len(prompt.prefix_ids):
        return
    layer = next(i for i in case.model.anatomy.self_blocks if i not in PATHS[case.name].headless)
    patch = iv.Patch("k_rot", layer, prompt.at("last"), torch.zeros(()))
    with pytest.raises(PatchError, match="behind a shared prefix"):
        iv.run(case.model, prompt, patches=[patch])
    with pytest.raises(PatchError, match="behind a shared prefix"), case.model.trace(prompt):
        case.model.k_rot[layer, prompt.at("last")] = 0
