"""Edits at every step of a generation are those of one pass over all its tokens, without a cache.

The reference is plain PyTorch hooks on a single forward pass over the prompt and the answer.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
import torch
from families import PATHS, Case, Edit, arguments_of, attending, raw_run, with_sdpa
from floors import FLOOR32, noise, relative

import interventions as iv
from interventions.model.prefix_cache import take_rows
from interventions.prompt.answer_tokens import candidate_ids, spaced
from interventions.running.complete import following
from interventions.running.greedy import step
from interventions.running.later_steps import in_prefill, later_edits

N = 12  # tokens: more than the windows of the tiny models hold behind the entity
Acts = Callable[[int], bool]


def answers_of(case: Case, n: int) -> list[list[int]]:
    """Tokens of an answer for each row, of words that stand for nothing else."""
    words = case.model.tokenizer("the town of the big river in the north is it to France ?")
    ids = [
        token for token in words["input_ids"] if token not in case.model.tokenizer.all_special_ids
    ]
    return [(ids * 3)[row : n + row] for row in range(2)]


def decoded(case: Case, ids: list[list[int]], patches: Any, knockouts: Any) -> torch.Tensor:
    """Log-probabilities of answers [row, token], fed token by token behind the prefill."""
    prefill = iv.run(case.model, case.prompt, **in_prefill(patches, knockouts), keep_cache=True)
    assert prefill.logits is not None
    later, rows = later_edits(patches, knockouts), torch.arange(len(ids))
    tokens, cache = torch.tensor(ids), take_rows(prefill.cache, rows)
    logits = [prefill.logits]
    for k in range(tokens.shape[1] - 1):
        last, cache = step(case.model, prefill, rows, cache, tokens[:, k : k + 1], later)
        logits.append(last)
    return torch.stack(logits, 1).log_softmax(-1).gather(-1, tokens[..., None])[..., 0]


def longer(case: Case, ids: list[list[int]]) -> Case:
    """The case whose prompt has answers behind it."""
    pad = case.model.tokenizer.pad_token_id
    two_way = case.model.anatomy.family.two_way == "prompt"
    prompt = following(case.prompt, ids, pad_id=pad, token_type=int(two_way))
    return replace(case, prompt=prompt)


def everywhere(case: Case, at: iv.Positions, width: int, acts: Acts, change: Edit) -> Edit:
    """Change a value at positions of the prompt, and at tokens behind it, where steps say so."""

    def edit(hidden: torch.Tensor) -> torch.Tensor:
        changed = hidden.clone()
        where = torch.zeros(hidden.shape[:2], dtype=torch.bool)
        for row in range(len(where)):
            if acts(0):
                where[row, at.index[row][at.mask[row]]] = True
            for later in range(1, hidden.shape[1] - width + 1):
                where[row, width + later - 1] = acts(later)
        changed[where] = change(hidden)[where]
        return changed

    return edit


def raw_knockout(case: Case, cut: iv.Knockout, width: int, acts: Acts) -> Any:
    """A hook that cuts edges in the mask that an attention is given."""

    def hook(_module: Any, args: Any, kwargs: Any) -> Any:
        mask = kwargs["attention_mask"].clone()
        mask = mask.expand(len(case.prompt), -1, -1, -1).clone()
        for row in range(len(mask)):
            keys = cut.keys.index[row][cut.keys.mask[row]]
            queries = cut.queries.index[row][cut.queries.mask[row]].tolist() if acts(0) else []
            queries += [width + k - 1 for k in range(1, mask.shape[-2] - width + 1) if acts(k)]
            for query in queries:
                mask[row, :, query, keys] = torch.finfo(mask.dtype).min
        return args, {**kwargs, "attention_mask": mask}

    return hook


def expected(
    case: Case, ids: list[list[int]], edits: Any, cut: iv.Knockout | None, acts: Acts
) -> torch.Tensor:
    """The same from one pass without a cache."""
    logprobs = hooked_logits(case, ids, edits, cut, acts).log_softmax(-1)
    return logprobs.gather(-1, torch.tensor(ids)[..., None])[..., 0]


def hooked_logits(
    case: Case, ids: list[list[int]], edits: Any, cut: iv.Knockout | None, acts: Acts
) -> torch.Tensor:
    """Logits [row, token, vocab] that predict answers, of one pass with plain hooks."""
    width, whole = case.prompt.length, longer(case, ids)
    with ExitStack() as stack:
        for layer in [] if cut is None else [cut.layers]:
            assert isinstance(layer, int)
            block = case.model.module.get_submodule(f"{PATHS[case.name].blocks}.{layer}")
            hook = raw_knockout(case, cut, width, acts)  # pyright: ignore[reportArgumentType]
            handle = block.self_attn.register_forward_pre_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        logits, _ = raw_run(whole, edits=edits, arguments=arguments_of(whole.prompt))
    return logits[:, width - 1 : width - 1 + len(ids[0])]


STEPS: list[tuple[Any, Acts]] = [
    ("prefill", lambda step: step == 0),
    ("all", lambda _: True),
    (2, lambda step: step == 2),
    (slice(1, None), lambda step: step >= 1),
    (slice(1, 6, 2), lambda step: step in (1, 3, 5)),
]


@pytest.mark.parametrize(("steps", "acts"), STEPS, ids=[str(steps) for steps, _ in STEPS])
def test_edits_at_steps_equal_a_recomputation_without_cache(
    case: Case, steps: Any, acts: Acts
) -> None:
    """Steering, an ablation, a transplanted value and a knockout together."""
    model, last, width = case.model, case.prompt.at("last"), case.prompt.length
    layers = attending(case)
    vector = 0.5 * noise((model.d_model,))
    value = noise((2, model.d_model), seed=1)
    cut = iv.Knockout(layers[-1], queries=last, keys=case.place, steps=steps)
    patches = [
        iv.Patch("resid_post", 0, case.place, value),
        iv.steering(1, last, vector, steps=steps),
        iv.ablated("mlp_out", model.n_layers - 1, last, steps=steps),
        iv.Patch("attn_out", layers[0], last, torch.tensor(0.5), "scale", steps=steps),
    ]
    ids = answers_of(case, N)

    def placed(hidden: torch.Tensor) -> torch.Tensor:
        changed = hidden.clone()
        changed[torch.arange(2), case.place.index[:, 0]] = value
        return changed

    edits = [
        ("resid_post", 0, placed),
        ("resid_post", 1, everywhere(case, last, width, acts, lambda hidden: hidden + vector)),
        ("mlp_out", model.n_layers - 1, everywhere(case, last, width, acts, torch.zeros_like)),
        ("attn_out", layers[0], everywhere(case, last, width, acts, lambda hidden: hidden * 0.5)),
    ]
    ours = decoded(case, ids, patches, [cut])
    assert relative(ours, expected(case, ids, edits, cut, acts)) < FLOOR32


@pytest.mark.parametrize(("steps", "acts"), STEPS, ids=[str(steps) for steps, _ in STEPS])
def test_a_trace_of_generation_is_edited_at_the_same_steps(
    case: Case, steps: Any, acts: Acts
) -> None:
    """Its tokens are the likeliest of one pass with hooks, and what it reads is behind edits."""
    model, last, width = case.model, case.prompt.at("last"), case.prompt.length
    layers = attending(case)
    vector = 2 * noise((model.d_model,))
    value = noise((2, model.d_model), seed=1)
    cut = iv.Knockout(layers[-1], queries=last, keys=case.place, steps=steps)
    patches = [
        iv.Patch("resid_post", 0, case.place, value),
        iv.steering(1, last, vector, steps=steps),
        iv.ablated("mlp_out", model.n_layers - 1, last, steps=steps),
    ]
    n = 6
    asked: Any = {"patches": patches, "knockouts": [cut], "max_new_tokens": n}
    with iv.generate(model, case.prompt, **asked) as tracer:
        ablated = model.mlp_out[model.n_layers - 1, last].save()
        ids = tracer.result.save()
    assert bool((ablated == 0).all()) == acts(0)
    new = ids[:, case.prompt.full_ids.shape[1] :]
    new = torch.nn.functional.pad(new, (0, n - new.shape[1]), value=model.tokenizer.pad_token_id)

    def placed(hidden: torch.Tensor) -> torch.Tensor:
        changed = hidden.clone()
        changed[torch.arange(2), case.place.index[:, 0]] = value
        return changed

    edits = [
        ("resid_post", 0, placed),
        ("resid_post", 1, everywhere(case, last, width, acts, lambda hidden: hidden + vector)),
        ("mlp_out", model.n_layers - 1, everywhere(case, last, width, acts, torch.zeros_like)),
    ]
    # An end, or a token that a picture would be looked for at, is the last that is compared.
    special = {*model.tokenizer.all_special_ids, *model.end_ids}
    stops = [next((k for k in range(n) if row[k] in special), n) for row in new.tolist()]
    pad = model.tokenizer.pad_token_id
    fed = [row[:stop] + [pad] * (n - stop) for row, stop in zip(new.tolist(), stops, strict=True)]
    likeliest = hooked_logits(case, fed, edits, cut, acts).argmax(-1)
    assert max(stops) > 2
    for row, stop in enumerate(stops):
        assert new[row, : stop + 1].tolist() == likeliest[row, : stop + 1].tolist()
    answered = iv.complete(model, case.prompt, stop=None, **asked)
    assert [text.strip() for text in model.completions(ids, case.prompt)] == answered.texts


def test_heads_and_cross_attention_are_edited_at_every_step(case: Case) -> None:
    model, last, width = case.model, case.prompt.at("last"), case.prompt.length
    layers = [attending(case)[-1], *PATHS[case.name].cross_blocks]
    dim = model.anatomy.head_dim
    patches = [
        iv.Patch("head_out", layer, last, torch.zeros(()), heads=1, steps="all") for layer in layers
    ]

    def without(hidden: torch.Tensor) -> torch.Tensor:
        changed = hidden.clone()
        changed[..., dim : 2 * dim] = 0
        return changed

    edits = [
        ("head_out", layer, everywhere(case, last, width, lambda _: True, without))
        for layer in layers
    ]
    ids = answers_of(case, 4)
    theirs = expected(case, ids, edits, None, lambda _: True)
    assert relative(decoded(case, ids, patches, []), theirs) < FLOOR32


def test_steps_are_the_same_under_sdpa_and_row_by_row(case: Case) -> None:
    """Rows of different lengths, together and alone, whose answers end at different steps."""
    other = with_sdpa(case)
    vector = noise((case.model.d_model,))

    def answered(chosen: Case, **asked: Any) -> iv.Completion:
        last = chosen.prompt.at("last")
        return iv.complete(
            chosen.model,
            chosen.prompt,
            patches=[iv.steering(1, last, vector, steps="all")],
            knockouts=[iv.Knockout(attending(chosen)[-1], last, chosen.place, steps="all")],
            candidates=["Paris", "the big river", "the town"],
            every_score=True,
            max_new_tokens=5,
            stop=None,
            **asked,
        )

    whole = answered(case)
    for again in (answered(case, batch_rows=1), answered(other)):
        assert again.texts == whole.texts
        assert again.choices == whole.choices
        assert relative(torch.tensor(again.scores), torch.tensor(whole.scores)) < FLOOR32


def test_candidates_are_scored_under_edits_of_every_step(case: Case) -> None:
    model, last, width = case.model, case.prompt.at("last"), case.prompt.length
    vector = noise((model.d_model,))
    words = ["the big river", "Paris"]
    answered = iv.complete(
        model,
        case.prompt,
        patches=[iv.steering(1, last, vector, steps=slice(1, None))],
        candidates=words,
        every_score=True,
        max_new_tokens=1,
        stop=None,
    )
    acts: Acts = lambda step: step >= 1  # noqa: E731
    edits = [("resid_post", 1, everywhere(case, last, width, acts, lambda hidden: hidden + vector))]
    for which, ids in enumerate(candidate_ids(model, words, space=spaced(model, case.prompt))):
        theirs = expected(case, [ids, ids], edits, None, acts)
        ours = torch.tensor([scores[which] for scores in answered.scores])
        assert relative(ours, theirs.sum(-1)) < FLOOR32
