"""Edges of every family: what senders write adds up, and what is carried is what hooks carry."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from families import PATHS, Case, arguments_of, case_of, part
from floors import FLOOR32, FLOOR64

import interventions as iv
from interventions.attribution.sides import contrast_of, scored
from interventions.circuits.carried import Choice, carried
from interventions.circuits.estimates import EdgeEstimate, edge_estimates
from interventions.circuits.exact import ExactEdges, exact_edges
from interventions.circuits.flow import flow
from interventions.circuits.graph import Graph, Node
from interventions.circuits.layout import layout_of
from interventions.circuits.nodes import attention_writes, scale_of
from interventions.sweeping.contrast import Contrast

Edit = Callable[[torch.Tensor], torch.Tensor]


def double(case: Case) -> tuple[Case, float]:
    """The family in float64; in float32 where it only has eager attention, which pads wrongly."""
    if PATHS[case.name].no_sdpa:
        return case, FLOOR32
    floor = FLOOR32 if float32_inside(case) else 100 * FLOOR64
    return case_of(case.name, torch.float64, "sdpa"), floor


def float32_inside(case: Case) -> bool:
    """Whether shares behind a norm, rotations or a recurrent state are float32 in any format."""
    kinds = ("llama4", "qwen3_5")
    return PATHS[case.name].behind_norm or case.model.anatomy.model_type.startswith(kinds)


def corrupted(case: Case) -> iv.Prompt:
    """Other pictures; or tokens in another order, without pictures or where they enter aside."""
    spans = {"entity": ["France", "the town"]}
    if case.pictures and not case.model.anatomy.cross_blocks:
        pictures = [tiny.picture(own.size, seed=7 + i) for i, own in enumerate(case.pictures)]
        return case.model.prompt(list(case.texts), images=pictures, spans=spans)
    texts = list(case.texts)
    swaps = ("capital of", "of capital"), ("first mayor", "mayor first")
    swaps = (*swaps, ("is it to", "it is to"), ("town or the", "town the or"))
    for old, new in swaps:
        texts = [text.replace(old, new) for text in texts]
    return case.model.prompt(texts, images=list(case.pictures) or None, spans=spans)


def entropy(logits: torch.Tensor) -> torch.Tensor:
    logprobs = logits.log_softmax(-1)
    return -(logprobs.exp() * logprobs).sum(-1)


def contrast(case: Case, metric: Any = "logit_diff") -> Contrast:
    named = isinstance(metric, str)
    return contrast_of(
        case.model,
        case.prompt,
        corrupted(case),
        answers="river" if named else None,
        foils="town" if named else None,
        metric=metric,
        roles=None,
        read_roles=None,
        each=True,
        by_role=False,
    )


def test_what_senders_write_adds_up_to_what_receivers_read(case: Case) -> None:
    case, floor = double(case)
    model = case.model
    layout = layout_of(model, case.prompt)
    last = case.prompt.at("last")
    passed = flow(model, layout, case.prompt, last, keep=True, streams=True)
    written = passed.written
    assert written is not None
    streams = iter(passed.streams)
    real = case.real
    total = torch.zeros_like(passed.streams[0])

    def check(sum_of_writes: torch.Tensor) -> None:
        read = next(streams)[real]
        assert float((sum_of_writes[real] - read).abs().max() / read.abs().max()) < floor

    with torch.no_grad():
        for entry in layout.entries:
            total = total + written.added.get(entry.layer, 0)
            check(total)
            heads, attention = written.heads.get(entry.layer), written.attention[entry.layer]
            shares = attention_writes(model, entry, heads, attention)
            assert len(shares) == max(1, entry.heads)
            middle = total + shares.sum(0)
            check(total if entry.parallel else middle)
            total = middle + written.mlp[entry.layer]
            if (factor := scale_of(model, entry)) is not None:
                total = total * factor
    check(total)
    with torch.no_grad():
        raw = plain_logits(case, case.prompt)
    raw = raw[torch.arange(len(raw)), last.index[:, 0]]
    assert float((passed.logits[:, 0] - raw).abs().max() / raw.abs().max()) < floor


def plain_logits(case: Case, prompt: iv.Prompt) -> torch.Tensor:
    arguments = {
        key: value.to(case.model.dtype) if value.is_floating_point() else value
        for key, value in arguments_of(prompt).items()
    }
    return case.model.module(**arguments).logits


def test_all_edges_carry_the_source_and_none_leave_the_run(case: Case) -> None:
    case, floor = double(case)
    [edges] = carried(case.model, [contrast(case)], [Choice([], but=True), Choice([])], budget=None)
    scale = np.abs(edges.run).max()
    assert np.abs(edges.values[0] - edges.source).max() / scale < 10 * floor
    assert np.abs(edges.values[1] - edges.run).max() / scale < 10 * floor
    assert np.abs(edges.source - edges.run).max() / scale > 1e-3


def sampled(graph: Graph, n: int) -> list[int]:
    """Some edges of every kind of receiver."""
    rng = np.random.default_rng(0)
    kinds: dict[Any, list[int]] = {}
    for edge, (_, receiver) in enumerate(graph.edges):
        node = graph.receivers[receiver]
        kinds.setdefault((node.kind, node.part), []).append(edge)
    return sorted({int(e) for own in kinds.values() for e in rng.choice(own, min(n, len(own)))})


def test_single_edges_are_what_plain_hooks_make_of_them(case: Case) -> None:
    case, floor = double(case)
    own = contrast(case)
    model, graph = case.model, layout_of(case.model, case.prompt).graph
    edges = sampled(graph, 2)
    [exact] = exact_edges(model, [own], edges)
    assert isinstance(exact, ExactEdges)
    [one_by_one] = carried(model, [own], [Choice([edge]) for edge in edges], budget=None)
    scale = np.abs(exact.effect).max() + np.abs(one_by_one.run).max()
    flowing = (one_by_one.values - one_by_one.run).T
    assert np.abs(flowing - exact.effect).max() / scale < 10 * floor
    hooked = np.stack([hooked_effect(case, own, graph, edge) for edge in edges], -1)
    assert np.abs(hooked - exact.effect).max() / scale < 10 * floor
    assert np.abs(exact.effect).max() > 1e-4


def test_scores_are_the_slopes_that_autograd_has_of_an_edge(case: Case) -> None:
    case, _ = double(case)
    own = contrast(case)
    graph = layout_of(case.model, case.prompt).graph
    [estimate] = edge_estimates(case.model, [own], "eap", 1, columns=False)
    assert isinstance(estimate, EdgeEstimate)
    edges = sampled(graph, 2)
    slopes = np.stack([hooked_slope(case, own, graph, edge) for edge in edges], -1)
    scores = estimate.score[:, edges, 0]
    assert np.abs(scores).max() > 1e-4
    assert np.abs(slopes - scores).max() / np.abs(scores).max() < FLOOR32


@pytest.mark.parametrize("which", ["entropy", "resid", "logits"])
def test_edges_of_any_metric_are_those_of_plain_hooks(case: Case, which: Any) -> None:
    """Exact effects, effects of flowing edges, and slopes."""
    case, floor = double(case)
    width = case.model.d_model if which == "resid" else case.model.anatomy.vocab
    vector = torch.randn(width, generator=torch.Generator().manual_seed(0))
    metric = entropy if which == "entropy" else iv.Direction(vector, which)
    own = contrast(case, metric)
    graph = layout_of(case.model, case.prompt).graph
    edges = sampled(graph, 1)
    [exact] = exact_edges(case.model, [own], edges)
    [flowing] = carried(case.model, [own], [Choice([edge]) for edge in edges], None)
    [estimate] = edge_estimates(case.model, [own], "eap", 1, columns=False)
    assert isinstance(exact, ExactEdges)
    assert isinstance(estimate, EdgeEstimate)
    hooked = np.stack([hooked_effect(case, own, graph, edge) for edge in edges], -1)
    scale = np.abs(hooked).max() + np.abs(flowing.run).max()
    assert np.abs(hooked).max() > 1e-4
    assert np.abs(exact.effect - hooked).max() / scale < 10 * floor
    assert np.abs((flowing.values - flowing.run).T - hooked).max() / scale < 10 * floor
    slopes = np.stack([hooked_slope(case, own, graph, edge) for edge in edges], -1)
    scores = estimate.score[:, edges, 0]
    assert np.abs(slopes - scores).max() / np.abs(slopes).max() < FLOOR32


# --- the same by plain PyTorch hooks, with the paths that families.py has written down by hand


def hooked_effect(case: Case, own: Contrast, graph: Graph, edge: int) -> np.ndarray:
    """What an edge alone does to the metric, [item]."""
    run = scored(own, "run").prompt
    change = hooked_change(case, own, graph, edge)
    with torch.no_grad(), ExitStack() as stack:
        plain = hooked_metric(case, own, run)
        hook_receiver(case, stack, graph.receivers[graph.edges[edge, 1]], change)
        return (hooked_metric(case, own, run) - plain).numpy()


def hooked_slope(case: Case, own: Contrast, graph: Graph, edge: int) -> np.ndarray:
    """Derivative of the metric by the share of an edge's change that is carried, [item]."""
    run = scored(own, "run").prompt
    change = hooked_change(case, own, graph, edge)
    share = torch.zeros(len(own.items), 1, 1, dtype=change.dtype, requires_grad=True)
    rows = share.repeat(own.target.repeats, 1, 1)
    with torch.enable_grad(), ExitStack() as stack:
        hook_receiver(case, stack, graph.receivers[graph.edges[edge, 1]], rows * change)
        metric = hooked_metric(case, own, run)
        [slope] = torch.autograd.grad(metric.sum(), share)
    return slope.flatten().numpy()


def hooked_change(case: Case, own: Contrast, graph: Graph, edge: int) -> torch.Tensor:
    """What a sender writes in the source minus what it writes in the run, where it is read."""
    sender, receiver = (int(i) for i in graph.edges[edge])
    run, source = scored(own, "run").prompt, scored(own, "source").prompt
    with torch.no_grad():
        writes = [hooked_write(case, prompt, graph.senders[sender]) for prompt in (run, source)]
    node = graph.receivers[receiver]
    layers = range(max(0, graph.senders[sender].layer), node.layer)
    change = torch.zeros_like(writes[0][0])
    for layer, (here, there) in enumerate(zip(*writes, strict=True)):
        if layer <= node.layer:  # the input goes on being added to, where images are
            change = change + (there - here)
    for layer in layers:
        if scale := PATHS[case.name].scale:
            change = change * block_of(case, layer).get_buffer(scale)
    real = run.inputs["attention_mask"].bool()
    return torch.where(real[..., None], change, 0).detach()


def hooked_metric(case: Case, own: Contrast, prompt: iv.Prompt) -> torch.Tensor:
    [metric] = own.metrics
    final: list[torch.Tensor] = []
    norm = final_norm(case)
    handle = norm.register_forward_pre_hook(lambda _m, args: final.append(args[0]))
    logits = plain_logits(case, prompt)
    handle.remove()
    if isinstance(metric, str):
        at = own.target.positions(prompt)
        logits = logits[torch.arange(len(logits))[:, None], at.index.clamp(min=0)]
        return own.target.values("logit_diff", logits).double()
    last = torch.arange(len(logits)), prompt.at("last").index[:, 0]
    if isinstance(metric, iv.Direction):
        values = (final[0] if metric.space == "resid" else logits)[last]
        return (values @ metric.vector.to(values)).double()
    return metric(logits[last].to(torch.promote_types(logits.dtype, torch.float32))).double()


def final_norm(case: Case) -> Any:
    return case.model.module.get_submodule(PATHS[case.name].blocks.rsplit(".", 1)[0] + ".norm")


def block_of(case: Case, layer: int) -> Any:
    return part(case.name, case.model.module, "resid_post", layer)


def first(value: Any) -> torch.Tensor:
    return value[0] if isinstance(value, tuple) else value


def entering(args: Any, kwargs: Any) -> torch.Tensor:
    return args[0] if args else kwargs["hidden_states"]


def hooked_write(case: Case, prompt: iv.Prompt, node: Node) -> list[torch.Tensor]:
    """What a sender adds to the stream; of the input, in front of every block."""
    shape = prompt.inputs["input_ids"].shape
    paths, module = PATHS[case.name], case.model.module
    kept: dict[str, torch.Tensor] = {}

    def keep_input(name: str) -> Any:
        def hook(_m: Any, args: Any, kwargs: Any) -> None:
            kept.setdefault(name, entering(args, kwargs).reshape(*shape, -1))

        return hook

    def keep_output(name: str) -> Any:
        def hook(_m: Any, _args: Any, output: Any) -> None:
            kept[name] = first(output).reshape(*shape, -1)

        return hook

    with ExitStack() as stack:

        def watch(target: Any, name: str, *, before: bool = False) -> None:
            if before:
                handle = target.register_forward_pre_hook(keep_input(name), with_kwargs=True)
            else:
                handle = target.register_forward_hook(keep_output(name))
            stack.callback(handle.remove)

        if node.kind == "input":
            n_layers = case.model.n_layers
            for layer in range(n_layers):
                watch(block_of(case, layer), f"pre{layer}", before=True)
                watch(block_of(case, layer), f"post{layer}")
            plain_logits(case, prompt)
            between = [kept[f"pre{i + 1}"] - kept[f"post{i}"] for i in range(n_layers - 1)]
            if paths.scale:  # what enters is scaled on its way
                return [kept["pre0"]]
            none = torch.zeros_like(kept["pre0"])
            return [
                kept["pre0"],
                *(b if i in paths.added_between else none for i, b in enumerate(between)),
            ]
        block = block_of(case, node.layer)
        if node.layer in paths.cross_blocks:
            watch(block, "pre", before=True)
            watch(block, "post")
            watch(block.get_submodule(paths.mid), "mid", before=True)
            plain_logits(case, prompt)
            if node.kind == "attn":
                return [kept["mid"] - kept["pre"]]
            return [kept["post"] - kept["mid"]]
        if node.kind == "mlp":
            watch(part(case.name, module, "mlp_out", node.layer), "mlp")
            plain_logits(case, prompt)
            return [kept["mlp"]]
        watch(part(case.name, module, "attn_out", node.layer), "attn")
        if node.kind == "attn":
            plain_logits(case, prompt)
            return [kept["attn"]]
        projection = part(case.name, module, "head_out", node.layer)
        watch(projection, "z", before=True)
        watch(projection, "o")
        plain_logits(case, prompt)
        dim, n_heads = case.model.anatomy.head_dim, case.model.anatomy.n_heads
        own = slice(node.head * dim, (node.head + 1) * dim)
        share = kept["z"][..., own] @ projection.weight[:, own].T
        if projection.bias is not None:
            share = share + projection.bias / n_heads
        if paths.behind_norm:
            share = share * (kept["attn"] / kept["o"])
        return [share.detach()]


def hook_receiver(case: Case, stack: ExitStack, node: Node, change: torch.Tensor) -> None:
    """Let one receiver read the stream with a change added."""
    paths, model = PATHS[case.name], case.model
    if node.kind == "logits":
        norm = final_norm(case)
        stack.callback(norm.register_forward_pre_hook(lambda _m, args: (args[0] + change,)).remove)
        return
    block = block_of(case, node.layer)
    kept: dict[str, torch.Tensor] = {}

    def keep(_m: Any, args: Any, kwargs: Any) -> None:
        kept.setdefault("stream", entering(args, kwargs))

    if node.kind == "mlp":
        norm = block.get_submodule(paths.mid)
        stack.callback(norm.register_forward_pre_hook(keep, with_kwargs=True).remove)
        target = block.get_submodule(paths.mlp)

        def reread(_m: Any, args: Any, kwargs: Any) -> Any:
            new = norm(kept["stream"] + change).reshape(entering(args, kwargs).shape)
            if args:
                return (new, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": new}

        stack.callback(target.register_forward_pre_hook(reread, with_kwargs=True).remove)
        return
    stack.callback(block.register_forward_pre_hook(keep, with_kwargs=True).remove)
    norm = block.get_submodule("input_layernorm")
    attention = "cross_attn" if node.layer in paths.cross_blocks else "self_attn"
    attention = "linear_attn" if node.layer in paths.recurrent else attention
    if node.kind == "attn":

        def reattend(_m: Any, args: Any, kwargs: Any) -> Any:
            new = norm(kept["stream"] + change)
            if args:
                return (new, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": new}

        target = block.get_submodule(attention)
        stack.callback(target.register_forward_pre_hook(reattend, with_kwargs=True).remove)
        return
    linear = block.get_submodule(f"{attention}.{node.part}_proj")
    dim = model.anatomy.head_dim
    own = slice(node.head * dim, (node.head + 1) * dim)

    def reproject(_m: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
        if "busy" in kept:
            return output
        kept["busy"] = output
        new = output.clone()
        new[..., own] = linear(norm(kept["stream"] + change))[..., own]
        return new

    stack.callback(linear.register_forward_hook(reproject).remove)
