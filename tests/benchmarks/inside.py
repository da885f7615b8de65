"""Cases: heads, edges of attention, edges between parts, and patterns."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch

import interventions as iv
from benchmarks.contest import Case, Contestant, Run
from benchmarks.models import ANSWER, FOIL, Bench, plain
from benchmarks.peers import Task, blocks
from interventions.circuits.asked import batches_of, edge_contrast
from interventions.circuits.exact import exact_edges
from interventions.circuits.layout import layout_of
from interventions.sweeping.metrics import target

SAMPLE = 3  # cells that are run one at a time
EDGES = 256


def _logprob(module: Any, inputs: dict[str, Any], token: int) -> torch.Tensor:
    with torch.no_grad():
        return module(**inputs).logits[0, -1].float().log_softmax(-1)[token]


def heads_case(bench: Bench, floor: float) -> Case:
    """Every head of every layer at the last token, its output that of another prompt."""
    model, prompt, source = bench.vlm, bench.shown, bench.aside
    token = target(model, prompt, ANSWER).answers[0][0]
    n_layers, n_heads = model.n_layers, model.anatomy.n_heads
    values = iv.read(model, source, [iv.Site("head_out", slice(None), source.at("last"))])[0][:, 0]

    def hooks() -> Run:
        module, inputs = plain(model), Task(model, prompt, []).inputs
        width = model.anatomy.head_dim

        def logprob(cell: int) -> torch.Tensor:
            layer, head = divmod(cell, n_heads)

            def write(_module: Any, args: Any) -> Any:
                hidden = args[0].clone()
                hidden[:, -1, head * width : (head + 1) * width] = values[layer, head]
                return (hidden, *args[1:])

            handle = blocks(module)[layer].self_attn.o_proj.register_forward_pre_hook(write)
            try:
                return _logprob(module, inputs, token)
            finally:
                handle.remove()

        return lambda units: torch.stack([logprob(cell) for cell in units])

    def swept() -> Run:
        def run(units: list[int]) -> torch.Tensor:
            every = len(units) == n_layers * n_heads
            found = iv.sweep(
                model,
                prompt,
                source,
                answers=ANSWER,
                components="head_out",
                heads=slice(None),
                roles=["last"],
                layers=None if every else [n_layers - 1],
                progress=False,
            )
            return torch.from_numpy(found["logprob"].values).flatten()[-len(units) :]

        return run

    return Case(
        "heads",
        f"{n_layers} layers x {n_heads} heads at the last token",
        [
            Contestant("raw hooks", hooks, sample=SAMPLE),
            Contestant("interventions: sweep", swept, ours=True),
        ],
        units=n_layers * n_heads,
        unit="cell",
        aim=10,
        floor=floor,
    )


def knockout_case(bench: Bench, floor: float) -> Case:
    """Curves of attention knockout: what the last token sees, and what the question does."""
    model, prompt = bench.vlm, bench.shown
    token = target(model, prompt, ANSWER).answers[0][0]
    image, last = (prompt.at(role).index[0] for role in ("image", "last"))
    question = prompt.at("question").index[0]
    question = question[question != last]
    routes = {
        "image -> last": (image, last),
        "question -> last": (question, last),
        "image -> question": (image, question),
    }
    n_layers = model.n_layers

    def hooks() -> Run:
        module, inputs = plain(model), Task(model, prompt, []).inputs
        n = prompt.length
        causal = torch.ones(n, n, dtype=torch.bool, device=model.device).tril()

        def logprob(cell: int) -> torch.Tensor:
            layer, which = divmod(cell, len(routes))
            keys, queries = list(routes.values())[which]
            mask = causal.clone()
            mask[queries[:, None], keys[None]] = False

            def write(_module: Any, args: Any, kwargs: Any) -> Any:
                return args, {**kwargs, "attention_mask": mask[None, None]}

            attention = blocks(module)[layer].self_attn
            handle = attention.register_forward_pre_hook(write, with_kwargs=True)
            try:
                return _logprob(module, inputs, token)
            finally:
                handle.remove()

        return lambda units: torch.stack([logprob(cell) for cell in units])

    def curves() -> Run:
        def run(units: list[int]) -> torch.Tensor:
            every = len(units) == n_layers * len(routes)
            found = iv.knockout_curves(
                model,
                prompt,
                [*routes],
                answers=ANSWER,
                layers=None if every else [n_layers - 1],
                progress=False,
            )
            values = found["logprob"].transpose("item", "layer", "route").values
            return torch.from_numpy(values).flatten()[-len(units) :]

        return run

    return Case(
        "knockout",
        f"attention knockout, {n_layers} layers x {len(routes)} routes",
        [
            Contestant("raw hooks", hooks, sample=SAMPLE),
            Contestant("interventions: knockout_curves", curves, ours=True),
        ],
        units=n_layers * len(routes),
        unit="cell",
        aim=10,
        floor=floor,
    )


def edges_case(bench: Bench, floor: float, *, last: bool = False) -> Case:
    """Edges from heads and MLPs into MLPs, each patched alone, at all tokens or at the last."""
    model, prompt, source = bench.backbone, bench.told, bench.untold
    contrast, _ = edge_contrast(
        model,
        prompt,
        source,
        answers=ANSWER,
        foils=FOIL,
        metric="logit_diff",
        roles=["last"] if last else None,
    )
    computed: list[int] = []
    graph = layout_of(model, prompt).graph
    into = [
        i
        for i, (sender, receiver) in enumerate(graph.edges.tolist())
        if graph.receivers[receiver].kind == "mlp" and graph.senders[sender].kind != "input"
    ]
    edges = [into[i] for i in np.linspace(0, len(into) - 1, EDGES).round().astype(int)]
    answer, foil = (target(model, prompt, word).answers[0][0] for word in (ANSWER, FOIL))

    def hooks() -> Run:
        module = plain(model)
        inputs = Task(model, prompt, []).inputs
        written = [_written(module, Task(model, side, []).inputs) for side in (prompt, source)]

        def difference() -> torch.Tensor:
            with torch.no_grad():
                logits = module(**inputs).logits[0, -1].float()
            return logits[answer] - logits[foil]

        def effect(unit: int) -> torch.Tensor:
            sender, receiver = (int(node) for node in graph.edges[edges[unit]])
            node, block = graph.senders[sender], graph.receivers[receiver].layer
            change = written[1](node.layer, node.head) - written[0](node.layer, node.head)
            change[:, : -1 if last else 0] = 0
            norm = blocks(module)[block].post_attention_layernorm
            handle = norm.register_forward_pre_hook(lambda _m, args: (args[0] + change,))
            try:
                return difference()
            finally:
                handle.remove()

        return lambda units: torch.stack([effect(unit) for unit in units])

    def exact() -> Run:
        # Effects are small beside the metric, whose rounding theirs is: so it is what is compared.
        logits = iv.run(model, prompt).logits
        assert logits is not None
        clean = (logits[0, answer] - logits[0, foil]).double().cpu()

        def run(units: list[int]) -> torch.Tensor:
            parts = exact_edges(model, batches_of(model, contrast, None), [edges[i] for i in units])
            assert not isinstance(parts, str)
            computed[:] = [sum(part.token_blocks for part in parts)]
            return torch.from_numpy(np.concatenate([part.effect for part in parts])[0]) + clean

        return run

    def bound() -> float:
        changed = 1 if last else prompt.length
        receivers = [graph.receivers[graph.edges[edge, 1]] for edge in edges]
        above = sum((model.n_layers - 1 - receiver.layer) * changed for receiver in receivers)
        return (above + 2 * model.n_layers * prompt.length) / computed[0]

    where = "the last token" if last else f"all {prompt.length} tokens"
    return Case(
        "edges-last" if last else "edges",
        f"{EDGES} of {len(into)} edges into MLPs, exactly, at {where}",
        [
            Contestant("raw hooks", hooks, sample=SAMPLE),
            Contestant("interventions: exact edges", exact, ours=True),
        ],
        units=EDGES,
        unit="edge",
        aim=10,
        floor=floor,
        bound=bound,
    )


def _written(module: Any, inputs: dict[str, Any]) -> Callable[[int, int], torch.Tensor]:
    """What each head (-1: the MLP) of each layer adds to the stream, [row, position, d_model]."""
    mixed: list[torch.Tensor] = []
    added: list[torch.Tensor] = []
    with ExitStack() as hooks, torch.no_grad():
        for block in blocks(module):
            projection = block.self_attn.o_proj
            keep = projection.register_forward_pre_hook(lambda _m, args: mixed.append(args[0]))
            hooks.callback(keep.remove)
            keep = block.mlp.register_forward_hook(lambda _m, _a, output: added.append(output))
            hooks.callback(keep.remove)
        module(**inputs)

    def of(layer: int, head: int) -> torch.Tensor:
        if head < 0:
            return added[layer]
        attention = blocks(module)[layer].self_attn
        part = slice(head * attention.head_dim, (head + 1) * attention.head_dim)
        return mixed[layer][..., part] @ attention.o_proj.weight[:, part].T

    return of


def pattern_case(bench: Bench, _floor: float) -> Case:
    """The attention pattern of one layer, beside a forward pass."""
    model, prompt = bench.vlm, bench.shown
    layer = model.n_layers // 2

    def forward() -> Run:
        module, inputs = plain(model), Task(model, prompt, []).inputs

        def run(_units: list[int]) -> None:
            with torch.no_grad():
                module(**inputs)

        return run

    def read() -> Run:
        site = iv.Site("attn_pattern", layer, prompt.at("last"))

        def run(_units: list[int]) -> None:
            iv.run(model, prompt, reads=[site])

        return run

    return Case(
        "pattern",
        "the attention pattern of one layer, with the logits",
        [
            Contestant("one forward pass", forward, peer=False),
            Contestant("interventions: run, reads", read, ours=True),
        ],
        aim=1 / 1.1,
        against="one forward pass",
    )
