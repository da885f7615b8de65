"""Attribution against plain autograd, finite differences and exact patching, on every family."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from families import PATHS, Case, arguments_of, case_of, part, set_at
from floors import FLOOR32, FLOOR64, NAMES
from hypothesis import given, settings
from hypothesis import strategies as st
from nnsight.intervention.source import STATE
from transformers.models.llama import modeling_llama as llama

import interventions as iv
from interventions.attribution.agreement import _resampled_spearman, spearman
from interventions.attribution.attribute import SITES
from interventions.attribution.relevance import find_rules
from interventions.errors import InterventionsError, PatchError, PromptError, RoleError, SiteError
from interventions.model.sites import Component
from interventions.prompt.answer_tokens import spaced, token_ids
from interventions.running.complete import following

ANSWER, FOIL = "river", "town"  # of several tokens, and not as many
CAPITAL = "Question : What is the capital of {} ? Answer :"


def double(name: str) -> tuple[Case, float]:
    """A family in float64; in float32 where it only has eager attention, which pads wrongly."""
    if PATHS[name].no_sdpa:
        return case_of(name), 10 * FLOOR32
    if name in ("llama4", "gemma4", "gemma4_text"):
        # Norms and rotations are float32 there, whatever the weights are.
        return case_of(name, torch.float64, "sdpa"), FLOOR32
    return case_of(name, torch.float64, "sdpa"), FLOOR64 * 100


def corrupted(case: Case) -> iv.Prompt:
    """The same tokens in another order, or other pictures of the same size."""
    model, spans = case.model, {"entity": ["France", "the town"]}
    if case.pictures:
        pictures = [tiny.picture(one.size, seed=7 + i) for i, one in enumerate(case.pictures)]
        return model.prompt(list(case.texts), images=pictures, spans=spans)
    texts = [
        one.replace("capital of", "of capital").replace("first mayor", "mayor first")
        for one in case.texts
    ]
    return model.prompt(texts, spans=spans)


Places = Sequence[tuple[Component, int]]


def raw_pass(
    case: Case, prompt: iv.Prompt, places: Places, text: str
) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """Log-probability of a whole answer, values and gradients by hooks and autograd alone."""
    model = case.model
    [ids] = token_ids(model, [text], space=spaced(model, prompt))
    n = prompt.length
    prompt = following(prompt, [ids] * len(prompt), pad_id=0)
    if case.name == "paligemma":  # what is written is not seen by the prompt's own tokens
        prompt.inputs["token_type_ids"][:, n:] = 1
    kept: dict[Any, torch.Tensor] = {}

    def enter(_module: Any, args: Any, kwargs: Any) -> Any:
        if args:
            return (args[0].detach().requires_grad_(), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": kwargs["hidden_states"].detach().requires_grad_()}

    with ExitStack() as stack, torch.enable_grad():
        first = part(case.name, model.module, "resid_pre", 0)
        stack.callback(first.register_forward_pre_hook(enter, with_kwargs=True).remove)
        for place in places:
            module = part(case.name, model.module, *place)

            def keep(value: torch.Tensor, place: Any = place) -> None:
                value.retain_grad()
                kept[place] = value

            if place[0] == "head_out":
                hook: Any = module.register_forward_pre_hook(lambda _m, args, k=keep: k(args[0]))
            else:
                hook = module.register_forward_hook(
                    lambda _m, _a, out, k=keep: k(out[0] if isinstance(out, tuple) else out)
                )
            stack.callback(hook.remove)
        arguments = {
            key: value.to(model.dtype) if value.is_floating_point() else value
            for key, value in arguments_of(prompt).items()
        }
        logprobs = model.module(**arguments).logits[:, n - 1 :].log_softmax(-1)
        metric = torch.stack([logprobs[:, i, one] for i, one in enumerate(ids)]).sum(0)
        metric.sum().backward()
    shape = prompt.inputs["input_ids"].shape
    values = [kept[place].detach().reshape(*shape, -1)[:, :n] for place in places]
    slopes: list[Any] = [kept[place].grad for place in places]
    return metric.detach(), values, [one.reshape(*shape, -1)[:, :n] for one in slopes]


def raw_difference(case: Case, prompt: iv.Prompt) -> torch.Tensor:
    return raw_pass(case, prompt, [], ANSWER)[0] - raw_pass(case, prompt, [], FOIL)[0]


def raw_products(
    case: Case, run: iv.Prompt, source: iv.Prompt, places: Places
) -> list[torch.Tensor]:
    """Change times slope [row, position, width] at every place."""
    total: list[torch.Tensor] = []
    for sign, text in ((1, ANSWER), (-1, FOIL)):
        _, sources, _ = raw_pass(case, source, places, text)
        _, values, slopes = raw_pass(case, run, places, text)
        some = [sign * (a - b) * slope for a, b, slope in zip(sources, values, slopes, strict=True)]
        total = [a + b for a, b in zip(total, some, strict=True)] if total else some
    return [one.double() for one in total]


RULED = [name for name in tiny.FAMILIES if not name.startswith(("gemma4", "qwen3_5"))]
"""Families that RelP has rules for: not values with a norm of their own, nor recurrent states."""


def sites_of(case: Case) -> list[str]:
    """What is attributed: heads only where all blocks have them."""
    return [site for site in SITES if site != "head_out" or not PATHS[case.name].headless]


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_every_score_equals_plain_hooks_and_autograd(name: str) -> None:
    case, floor = double(name)
    model, corrupt = case.model, corrupted(case)
    sites: Any = sites_of(case)
    scores = iv.attribute(
        model, corrupt, case.prompt, answers=ANSWER, foils=FOIL, verify=False, components=sites
    )
    places: Places = [(one, layer) for layer in range(model.n_layers) for one in sites]
    products = raw_products(case, corrupt, case.prompt, places)
    assert np.allclose(scores["run_metric"], raw_difference(case, corrupt), rtol=1e-5, atol=1e-5)
    other = raw_difference(case, case.prompt)
    assert np.allclose(scores["source_metric"], other, rtol=1e-5, atol=1e-5)
    real = case.real
    for (component, layer), product in zip(places, products, strict=True):
        expected = product.sum(-1)
        largest = product.abs().sum(-1)[real].max()
        ours = torch.from_numpy(scores["score"].sel(component=component, layer=layer).values)
        assert (ours - expected)[real].abs().max() <= floor * largest, (component, layer)
        assert ours[~real].isnan().all()
        if component == "head_out":
            heads = torch.from_numpy(scores["head_score"].sel(layer=layer).values)
            expected = product.unflatten(-1, (-1, model.anatomy.head_dim)).sum(-1)
            assert (heads - expected)[real].abs().max() <= floor * largest


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_equal_inputs_give_exactly_zero(name: str) -> None:
    case = case_of(name)
    for method in ("patching", "relp") if name in RULED else ("patching",):
        scores = iv.attribute(
            case.model,
            case.prompt,
            case.prompt,
            components=sites_of(case),
            answers=ANSWER,
            foils=FOIL,
            method=method,
            verify=1,
        )
        real = case.real.numpy()
        assert (scores["score"].values.transpose(0, 3, 1, 2)[real] == 0).all(), method
        assert np.abs(scores["checked_effect"]).max() < FLOOR32


def fresh_llama(dtype: torch.dtype, attn: str) -> Case:
    """The llama of the suite, built anew: of the classes as they are patched now."""
    module, tokenizer = tiny.build("llama", dtype=dtype, attn_implementation=attn)
    return replace(case_of("llama", dtype, attn), model=iv.load(module, tokenizer=tokenizer))


def test_scores_are_the_slope_of_the_metric_by_finite_differences(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def norm(self: Any, x: torch.Tensor) -> torch.Tensor:  # the library's own is float32 inside
        return self.weight * x * (x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon).rsqrt()

    monkeypatch.setattr(llama.LlamaRMSNorm, "forward", norm)
    case = fresh_llama(torch.float64, "sdpa")
    model, corrupt = case.model, corrupted(case)
    scores = iv.attribute(model, corrupt, case.prompt, answers=ANSWER, foils=FOIL, verify=False)
    step = 1e-4
    places: Places = [("mlp_out", 0), ("attn_out", 1), ("resid_post", 2)]
    for component, layer in places:
        [source] = iv.read(model, case.prompt, [iv.Site(component, layer)])
        [value] = iv.read(model, corrupt, [iv.Site(component, layer)])
        for position in (corrupt.length - 1, corrupt.length - 3):
            found = []
            for sign in (1, -1):
                moved = value + sign * step * (source - value)

                def write(module: Any, _args: Any, out: Any, moved: Any = moved) -> Any:
                    old = out[0] if isinstance(out, tuple) else out
                    new = old.clone()
                    new[:, position] = moved[:, position]  # noqa: B023 - called in this turn
                    return (new, *out[1:]) if isinstance(out, tuple) else new

                module = part("llama", model.module, component, layer)
                hook = module.register_forward_hook(write)
                found.append(raw_difference(case, corrupt))
                hook.remove()
            slope = (found[0] - found[1]) / (2 * step)
            ours = scores["score"].sel(component=component, layer=layer, position=position)
            assert np.allclose(ours, slope, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("order", ["denoising", "noising"])
def test_exact_effects_equal_plain_hooks(order: str) -> None:
    case = case_of("qwen2")
    model, corrupt = case.model, corrupted(case)
    run, source = (corrupt, case.prompt) if order == "denoising" else (case.prompt, corrupt)
    scores = iv.attribute(model, run, source, answers=ANSWER, foils=FOIL, verify=6)
    assert set(scores["checked_component"].values) == set(SITES)
    for i in range(scores.sizes["checked"]):
        one = scores.isel(checked=i)
        component: Any = str(one.checked_component.values)
        layer = int(one.checked_layer)
        item, head = int(one.checked_item), int(one.checked_head)
        column = torch.tensor([int(one.checked_column)])
        metric = raw_difference(case, run.select([item]))
        _, [value], _ = raw_pass(case, run.select([item]), [(component, layer)], ANSWER)
        _, [other], _ = raw_pass(case, source.select([item]), [(component, layer)], ANSWER)
        new = value[:, int(column)].clone()
        dim = model.anatomy.head_dim
        where = slice(None) if head < 0 else slice(head * dim, (head + 1) * dim)
        new[:, where] = other[:, int(column), where]
        at = iv.Positions(column[None], column[None] >= 0, run.length, True, "")
        module = part(case.name, model.module, component, layer)
        edit = set_at(at, new)
        if component == "head_out":
            hook: Any = module.register_forward_pre_hook(lambda _m, a, e=edit: (e(a[0]), *a[1:]))
        else:
            hook = module.register_forward_hook(
                lambda _m, _a, o, e=edit: (e(o[0]), *o[1:]) if isinstance(o, tuple) else e(o)
            )
        patched = raw_difference(case, run.select([item]))
        hook.remove()
        assert abs(float(one.checked_effect) - float(patched - metric)) < 20 * FLOOR32


def test_relp_equals_its_rules_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of("llama", torch.float64, "eager")
    prompt, corrupt = case.prompt.select([1]), corrupted(case).select([1])
    ours = iv.attribute(
        case.model, corrupt, prompt, answers=ANSWER, foils=FOIL, method="relp", verify=False
    )
    eager = llama.eager_attention_forward

    def norm(self: Any, x: torch.Tensor) -> torch.Tensor:
        scale = (x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon).rsqrt()
        return self.weight * x * scale.detach()

    def mlp(self: Any, x: torch.Tensor) -> torch.Tensor:
        gate = self.gate_proj(x)
        gate, up = gate * gate.sigmoid().detach(), self.up_proj(x)  # the forward stays what it was
        return self.down_proj((gate * up.detach() + gate.detach() * up) / 2)

    def attention(module: Any, query: Any, key: Any, *args: Any, **kwargs: Any) -> Any:
        return eager(module, query.detach(), key.detach(), *args, **kwargs)

    places: Places = [(one, layer) for layer in range(case.model.n_layers) for one in SITES]
    monkeypatch.setattr(llama.LlamaRMSNorm, "forward", norm)
    monkeypatch.setattr(llama.LlamaMLP, "forward", mlp)
    monkeypatch.setattr(llama, "eager_attention_forward", attention)
    products = raw_products(fresh_llama(torch.float64, "eager"), corrupt, prompt, places)
    for (component, layer), product in zip(places, products, strict=True):
        expected = product.sum(-1)
        found = ours["score"].sel(component=component, layer=layer).values
        assert np.allclose(found, expected, rtol=1e-5, atol=1e-7), (component, layer)


@pytest.mark.parametrize("name", ["llama", "mistral", "llava", "pixtral", "mistral3", "idefics3"])
def test_relevance_is_conserved_where_nothing_has_a_bias(name: str) -> None:
    case, _ = double(name)
    biased = [key for key, _ in case.model.module.get_decoder().named_parameters() if "bias" in key]
    assert not biased
    scores = iv.attribute(
        case.model,
        case.prompt,
        0.0,
        answers="b",  # of one token: their log-probabilities differ by logits, which are linear
        foils="c",
        method="relp",
        components=("resid_pre", "resid_post"),
        verify=False,
    )
    assert np.allclose(scores["source_metric"], 0, atol=1e-6)
    total = scores["score"].sum("position")
    assert np.allclose(total + scores["run_metric"], 0, atol=1e-4 * abs(total).max())


def test_relp_is_refused_where_values_have_a_norm() -> None:
    case = case_of("gemma4_text")
    with pytest.raises(SiteError, match=r"attention of block 0 .*v_norm.* no norm of values"):
        iv.attribute(
            case.model,
            corrupted(case),
            case.prompt,
            answers=ANSWER,
            foils=FOIL,
            method="relp",
            components="mlp_out",
        )
    with pytest.raises(SiteError, match=r"heads of block\(s\) \[5\]"):
        iv.attribute(case.model, corrupted(case), case.prompt, answers=ANSWER, foils=FOIL)


@pytest.mark.parametrize("name", RULED)
def test_relp_leaves_values_and_model_as_they_were(name: str) -> None:
    case = case_of(name)
    module = case.model.module
    bodies = [id(one.__dict__[STATE].body) for one in module.modules() if STATE in one.__dict__]
    one, two = (
        iv.attribute(
            case.model,
            corrupted(case),
            case.prompt,
            answers=ANSWER,
            foils=FOIL,
            method=method,
            verify=False,
        )
        for method in ("patching", "relp")
    )
    assert np.array_equal(one["run_metric"], two["run_metric"])
    assert not np.allclose(one["score"], two["score"], equal_nan=True)
    left = [id(one.__dict__[STATE].body) for one in module.modules() if STATE in one.__dict__]
    assert left == bodies
    assert len(find_rules(case.model)) >= 5 * case.model.n_layers + 1


def test_nothing_stays_after_an_exception() -> None:
    case = case_of("llama")
    module = case.model.module
    weight = next(module.parameters())
    weight.requires_grad_(True)
    bodies = [one.__dict__[STATE].body for one in module.modules() if STATE in one.__dict__]
    try:
        with pytest.raises(PatchError, match="NaN"):
            iv.attribute(
                case.model,
                float("nan"),
                case.prompt,
                answers=ANSWER,
                foils=FOIL,
                method="relp",
                verify=False,
            )
        assert weight.requires_grad
        assert weight.grad is None
        left = [one.__dict__[STATE].body for one in module.modules() if STATE in one.__dict__]
        assert all(a is b for a, b in zip(left, bodies, strict=True))
    finally:
        weight.requires_grad_(False)


def test_integrated_gradients_are_complete() -> None:
    case = case_of("llama", torch.float64, "sdpa")
    corrupt = corrupted(case)

    def error(method: Any, steps: int) -> tuple[float, Any]:
        scores = iv.attribute(
            case.model,
            corrupt,
            case.prompt,
            answers=ANSWER,
            foils=FOIL,
            method=method,
            steps=steps,
            components=("resid_pre", "mlp_out", "head_out"),
            layers=[0, 2],
            verify=False,
        )
        return float(abs(scores["completeness_error"]).max()), scores

    rough, _ = error("ig", 1)
    fine, scores = error("ig", 48)
    change = scores["source_metric"] - scores["run_metric"]
    total = scores["score"].sel(component="resid_pre", layer=0).sum("position")
    assert np.allclose(total - change, scores["completeness_error"], atol=1e-6)
    assert fine < rough / 100
    rough, _ = error("ig-activations", 1)
    fine, scores = error("ig-activations", 24)
    assert scores["completeness_error"].dims == ("item", "component", "layer")
    assert fine < rough / 100


# --- the trained micro pair: roles, whole answers, batches


def asked(llm: iv.Model, names: Sequence[str]) -> iv.Prompt:
    return llm.prompt([CAPITAL.format(one) for one in names], spans={"entity": list(names)})


@pytest.fixture(scope="module")
def swapped(llm: iv.Model) -> tuple[iv.Model, iv.Prompt, iv.Prompt]:
    return llm, asked(llm, NAMES), asked(llm, [NAMES[1], NAMES[0], NAMES[3], NAMES[2]])


def test_names_of_different_length_are_compared_by_role(swapped: Any) -> None:
    llm, clean, corrupt = swapped
    arguments: Any = {"answers": [" a", " b", " c", " d"], "metric": "logprob", "verify": False}
    assert not torch.equal(clean.lengths, corrupt.lengths)
    with pytest.raises(RoleError, match=r"row\(s\) \[.*entity\[-1\]"):
        iv.attribute(llm, corrupt, clean, **arguments)
    with pytest.raises(RoleError, match=r"where its values are read. Name one token"):
        iv.attribute(llm, corrupt, clean, roles=["entity"], **arguments)
    scores = iv.attribute(llm, corrupt, clean, roles=["entity[-1]", "last"], **arguments)
    assert scores["score"].dims == ("item", "component", "layer", "role")
    assert scores["role"].values.tolist() == ["entity[-1]", "last"]
    assert np.isfinite(scores["score"]).all()


def test_rows_without_a_role_are_left_out_and_named(swapped: Any) -> None:
    llm, clean, corrupt = swapped
    lacking = replace(clean, roles=[{**clean.roles[0]}, {"last": clean.roles[1]["last"]}] * 2)
    arguments: Any = {"answers": "a", "metric": "logprob", "verify": False}
    scores = iv.attribute(llm, corrupt, lacking, roles=["entity[-1]"], **arguments)
    assert scores["item"].values.tolist() == [0, 2]
    lacking = "no token of role 'entity[-1]'"
    assert json.loads(scores.attrs["left_out"]) == {"1": lacking, "3": lacking}
    whole = iv.attribute(llm, corrupt, clean, roles=["entity[-1]"], **arguments)
    assert np.allclose(scores["score"], whole["score"].sel(item=[0, 2]), atol=1e-4)


def test_roles_add_up_to_positions_whatever_the_batches() -> None:
    case = case_of("llava")
    arguments: Any = {"answers": ANSWER, "foils": FOIL, "verify": False}
    given = case.model, corrupted(case), case.prompt
    scores = iv.attribute(*given, **arguments)
    roles = iv.attribute(*given, by_role=True, batch_size=1, **arguments)
    assert {"image", "entity", "question", "last"} <= set(roles["role"].values)
    largest = float(abs(scores["score"]).max())
    for name in roles["role"].values:
        inside = scores["score"].where(scores["role"] == name).sum("position")
        assert abs(inside - roles["score"].sel(role=name)).max() < 10 * FLOOR32 * largest


def test_a_later_check_is_the_check_at_once_and_the_map_says_so() -> None:
    case = case_of("llama")
    arguments: Any = {"answers": ANSWER, "foils": FOIL}
    given = case.model, corrupted(case), case.prompt
    at_once = iv.attribute(*given, verify=4, seed=3, **arguments)
    unchecked = iv.attribute(*given, verify=False, **arguments)
    assert unchecked.attrs["verified"] == "not verified"
    assert "NOT VERIFIED" in iv.heatmap(unchecked).get_supxlabel()
    later = iv.verify(case.model, unchecked, *given[1:], k=4, seed=3, **arguments)
    assert later.identical(at_once)
    assert "rank correlation" in iv.heatmap(at_once, item=1).get_supxlabel()
    assert (at_once["n_checked"] == 4).all()


def test_spearman_shares_ranks_among_ties() -> None:
    one, other = np.array([1.0, 1, 2, 3, 3, 3]), np.array([4.0, 1, 1, 8, 9, 9])
    stats = pytest.importorskip("scipy.stats")
    assert spearman(one, other) == pytest.approx(stats.spearmanr(one, other).statistic)


def plain_spearman(one: np.ndarray, other: np.ndarray) -> float:
    ranks = [np.array([(x < v).sum() + ((x == v).sum() + 1) / 2 for v in x]) for x in (one, other)]
    a, b = (x - x.mean() for x in ranks)
    size = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / size) if size > 0 else float("nan")


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 40), ties=st.booleans())
def test_resamples_together_are_each_alone_bit_for_bit(seed: int, n: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    one = rng.normal(size=n)
    other = one + rng.normal(size=n)
    if ties:
        one, other = np.round(one), np.round(other)
    draws = rng.integers(n, size=(20, n))
    together = _resampled_spearman(one, other, draws)
    alone = [plain_spearman(one[row], other[row]) for row in draws]
    assert together.tobytes() == np.array(alone).tobytes()


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"metric": "rank"}, PromptError, "no gradient"),
        ({"metric": "logits"}, PromptError, "no metric"),
        ({"method": "relq"}, PromptError, "Did you mean 'relp'"),
        ({"foils": None}, PromptError, "give foils"),
        ({"components": ()}, SiteError, "empty"),
        ({"components": ("mlp",)}, SiteError, "mlp_out"),
        ({"layers": 99}, SiteError, "no layer 99"),
        ({"roles": ["entitty"]}, RoleError, "Did you mean 'entity'"),
        ({"roles": []}, RoleError, "empty"),
        ({"roles": ["last"], "by_role": True}, PromptError, "leave out roles"),
        ({"components": ["mlp_out", "mlp_out"]}, SiteError, "names one twice"),
        ({"read_roles": ["last"]}, PromptError, "name the roles written"),
        ({"roles": ["last"], "read_roles": ["last", "last"]}, PromptError, "1 roles are written"),
        ({"steps": 0, "method": "ig"}, PromptError, "at least 1"),
        ({"verify": 0}, PromptError, "verify=False"),
    ],
)
def test_bad_input_is_named(
    given: dict[str, Any], error: type[InterventionsError], message: str
) -> None:
    case = case_of("llama")
    arguments: Any = {"answers": ANSWER, "foils": FOIL, **given}
    with pytest.raises(error, match=message):
        iv.attribute(case.model, case.prompt, case.prompt, **arguments)


def test_what_cannot_be_done_says_what_can() -> None:
    case = case_of("mllama")
    with pytest.raises(SiteError, match="ig-activations"):
        iv.attribute(
            case.model, corrupted(case), case.prompt, answers=ANSWER, foils=FOIL, method="ig"
        )
    plain = case_of("llama")
    given: Any = {"answers": ANSWER, "foils": FOIL}
    with pytest.raises(PromptError, match="the source has 1 rows, the prompt 2"):
        iv.attribute(plain.model, plain.prompt, plain.prompt.select([0]), **given)
    with pytest.raises(PatchError, match="Noise is none"):
        iv.attribute(plain.model, plain.prompt, iv.Noise(), **given)  # type: ignore[arg-type]
    with pytest.raises(PromptError, match=r"the prompt is 0\.0. Expected a Prompt"):
        iv.attribute(plain.model, 0.0, 0.0, **given)
    for name in ("clean", "corrupt", "direction"):
        with pytest.raises(TypeError, match=name):
            iv.attribute(plain.model, plain.prompt, 0.0, **{**given, name: plain.prompt})


def test_half_precision_says_so_and_points_the_same_way() -> None:
    exact, rough = (case_of("llama", dtype) for dtype in (torch.float32, torch.bfloat16))
    one, two = (
        iv.attribute(
            case.model, corrupted(case), case.prompt, answers=ANSWER, foils=FOIL, verify=False
        )
        for case in (exact, rough)
    )
    assert two.attrs["precision"] == "bfloat16"
    a, b = (scores["score"].values[np.isfinite(scores["score"].values)] for scores in (one, two))
    assert np.corrcoef(a, b)[0, 1] > 0.98
