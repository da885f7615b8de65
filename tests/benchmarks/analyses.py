"""Cases: attribution, probes and collection."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

import interventions as iv
from benchmarks.contest import Case, Contestant, Run
from benchmarks.models import ANSWER, FOIL, WORDS, Bench, plain
from benchmarks.peers import Task, blocks
from interventions.attribution.attribute import SITES
from interventions.probing.logistic import fit_logistic
from interventions.probing.ridge import scaling
from interventions.sweeping.metrics import target

N_CLASSES, N_LABELS, PROBE_SAMPLE = 20, 4, 3
C, TOL, MAX_ITER = 1.0, 1e-5, 1000
N_BATCHES = 4


def attribution_case(bench: Bench, floor: float) -> Case:
    """Scores of every component of every layer at every position."""
    model, clean, corrupt = bench.vlm, bench.shown, bench.aside
    answer, foil = (target(model, clean, word).answers[0][0] for word in (ANSWER, FOIL))

    def forward() -> Run:
        module, inputs = plain(model), Task(model, clean, []).inputs

        def run(_units: list[int]) -> None:
            with torch.no_grad():
                module(**inputs)

        return run

    def hooks() -> Run:
        module = plain(model).requires_grad_(False)
        found: list[torch.Tensor] = []

        def keep(_module: Any, _args: Any, output: Any) -> None:
            found.append(output[0] if isinstance(output, tuple) else output)

        def enter(_module: Any, args: Any, kwargs: Any) -> Any:
            return (args[0].detach().requires_grad_(), *args[1:]), kwargs

        layers = blocks(module)
        layers[0].register_forward_pre_hook(enter, with_kwargs=True)
        for block in layers:  # in the order in which they run
            block.self_attn.o_proj.register_forward_pre_hook(lambda _m, args: found.append(args[0]))
            block.self_attn.register_forward_hook(keep)
            block.mlp.register_forward_hook(keep)
            block.register_forward_hook(keep)
        ours = {"head_out": 0, "attn_out": 1, "mlp_out": 2, "resid_post": 3}

        def values(prompt: iv.Prompt) -> tuple[list[torch.Tensor], torch.Tensor]:
            found.clear()
            logits = module(**Task(model, prompt, []).inputs).logits[0, -1].float()
            return list(found), logits[answer] - logits[foil]

        def run(_units: list[int]) -> torch.Tensor:
            with torch.no_grad():
                source, _ = values(clean)
            here, metric = values(corrupt)
            gradients = torch.autograd.grad(metric, here)
            scores = [
                ((one.float() - other.detach().float()) * gradient.float()).sum(-1)[0]
                for one, other, gradient in zip(source, here, gradients, strict=True)
            ]
            table = torch.stack(scores).unflatten(0, (len(layers), len(ours)))
            return table[:, [ours[name] for name in SITES]].transpose(0, 1)[None]

        return run

    def attributed() -> Run:
        def run(_units: list[int]) -> torch.Tensor:
            found = iv.attribute(
                model,
                corrupt,
                clean,
                answers=ANSWER,
                foils=FOIL,
                components=SITES,
                verify=False,
            )
            return torch.from_numpy(found["score"].sel(component=list(SITES)).values)

        return run

    n = len(SITES) * bench.shape.n_layers * clean.length
    return Case(
        "attribution",
        f"attribution patching, {n} sites ({', '.join(SITES)})",
        [
            Contestant("raw hooks: 2 forward, 1 backward", hooks),
            Contestant("one forward pass", forward, peer=False),
            Contestant("interventions: attribute", attributed, ours=True),
        ],
        aim=1 / 3.3,
        against="one forward pass",
        floor=floor,
    )


def probe_case(bench: Bench) -> Case:
    """Logistic probes of every layer, for the labels and shuffled ones."""
    shape = bench.shape
    rng = torch.Generator().manual_seed(0)
    labels = torch.randint(0, N_CLASSES, (shape.features,), generator=rng)
    label_sets = [labels]
    for _ in range(N_LABELS - 1):
        label_sets.append(labels[torch.randperm(len(labels), generator=rng)])
    size = (shape.n_layers, shape.features, shape.d_model)
    # Residual streams vary along few directions: a spectrum that falls off, in a random basis.
    spectrum = torch.arange(1, shape.d_model + 1) ** -0.5
    basis = torch.linalg.qr(torch.randn(shape.d_model, shape.d_model, generator=rng))[0]
    classes = 0.3 * torch.randn(shape.n_layers, N_CLASSES, shape.d_model, generator=rng)
    hidden = (torch.randn(size, generator=rng) + classes[:, labels]) * spectrum @ basis
    hidden = hidden.to(shape.device)

    mean, scale = scaling(hidden.double())
    scaled = ((hidden.double() - mean) / scale).cpu()
    rows = scaled.float().numpy()

    def objective(layer: int, which: int, weight: Any, offset: Any) -> torch.Tensor:
        weight, offset = (torch.as_tensor(one).double().cpu() for one in (weight, offset))
        loss = torch.nn.functional.cross_entropy(
            scaled[layer] @ weight + offset, label_sets[which], reduction="sum"
        )
        return C * loss + weight.square().sum() / 2

    def scikit() -> Run:
        def run(units: list[int]) -> torch.Tensor:
            made = []
            for unit in units:
                layer, which = divmod(unit, N_LABELS)
                fit = LogisticRegression(C=C, tol=TOL, max_iter=MAX_ITER)
                fit.fit(rows[layer], label_sets[which].numpy())
                made.append(objective(layer, which, fit.coef_.T, fit.intercept_))
            return torch.stack(made)

        return run

    def fitted() -> Run:
        def run(units: list[int]) -> torch.Tensor:
            layers = sorted({unit // N_LABELS for unit in units})
            probes = fit_logistic(
                hidden[layers], label_sets, n_classes=N_CLASSES, C=C, tol=TOL, max_iter=MAX_ITER
            )
            made = []
            for unit in units:
                layer, which = divmod(unit, N_LABELS)
                i = layers.index(layer)
                probe = probes[which]
                made.append(objective(layer, which, probe.weight[i], probe.offset[i]))
            return torch.stack(made)

        return run

    return Case(
        "probes",
        f"logistic probes, {shape.n_layers} layers x {N_LABELS} label sets, {shape.features} rows "
        f"x {shape.d_model}, {N_CLASSES} classes, tol {TOL:g}; objectives compared",
        [
            Contestant("scikit-learn", scikit, sample=PROBE_SAMPLE),
            Contestant("interventions: fit_logistic", fitted, ours=True),
        ],
        units=shape.n_layers * N_LABELS,
        unit="fit",
        aim=20,
        floor=1e-5,
    )


def collection_case(bench: Bench, floor: float) -> Case:
    """The last token of many prompts, at all layers."""
    model, n = bench.backbone, bench.shape.rows
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, bench.shape.alone - 1)) for _ in range(n)]
    batches = [texts[i : i + n // N_BATCHES] for i in range(0, n, n // N_BATCHES)]

    def forward(keep: bool) -> Run:
        module = plain(model)
        found: list[torch.Tensor] = []
        if keep:
            for block in blocks(module):
                block.register_forward_hook(lambda _m, _a, out: found.append(out[:, -1].cpu()))

        def run(units: list[int]) -> torch.Tensor | None:
            made = []
            for unit in units:
                found.clear()
                inputs = model.tokenizer(batches[unit], return_tensors="pt", padding=True)
                with torch.no_grad():
                    module(**inputs.to(model.device), logits_to_keep=1, use_cache=False)
                if keep:
                    made.append(torch.stack(found))
            return torch.stack(made) if keep else None

        return run

    def collected() -> Run:
        sites = {"last": iv.RoleSite("resid_post", slice(None), "last")}

        def run(units: list[int]) -> torch.Tensor:
            with tempfile.TemporaryDirectory() as folder:
                found = iv.collect(
                    model,
                    [text for unit in units for text in batches[unit]],
                    sites,
                    out=Path(folder) / "collected",
                    batch_rows=len(batches[0]),
                    progress=False,
                )
                values = torch.tensor(found["last"].values)  # [layer, row, d_model]
            return values.unflatten(1, (len(units), -1)).transpose(0, 1)

        return run

    return Case(
        "collection",
        f"resid_post of all layers at the last of {bench.shape.alone} tokens, {n} prompts",
        [
            Contestant("raw hooks, in memory", lambda: forward(True)),
            Contestant("bare forward passes", lambda: forward(False), peer=False),
            Contestant("interventions: collect, to disk", collected, ours=True),
        ],
        units=N_BATCHES,
        unit="batch",
        aim=1 / 1.1,
        against="bare forward passes",
        floor=floor,
    )
