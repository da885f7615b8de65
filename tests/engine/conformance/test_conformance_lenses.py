"""Jacobians of every family are those of plain PyTorch."""

import torch
from families import PATHS, Case, arguments_of, case_of, raw_run, with_sdpa
from floors import FLOOR32, noise, relative

import interventions as iv
from interventions.running.gradients import frozen_weights

DIMS = [0, 7, 30]
SKIP = 2


def raw_jacobian(case: Case, prompt: iv.Prompt, layer: int) -> torch.Tensor:
    """Some rows of one text's Jacobian: summed over later tokens, mean over tokens."""
    single = Case(case.name, case.model, prompt, case.texts[:1], case.pictures[:1])
    leaves: list[torch.Tensor] = []

    def leaf(hidden: torch.Tensor) -> torch.Tensor:
        leaves.append(hidden.detach().clone().requires_grad_())
        return leaves[0]

    last, counted = case.model.n_layers - 1, slice(SKIP, prompt.length - 1)
    with frozen_weights(case.model):
        _, [final] = raw_run(
            single,
            edits=[("resid_post", layer, leaf)],
            reads=[("resid_post", last)],
            arguments=arguments_of(prompt),
            gradients=True,
        )
    rows = []
    for dim in DIMS:
        [slope] = torch.autograd.grad(final[0, counted, dim].sum(), leaves, retain_graph=True)
        rows.append(slope[0, counted].mean(0))
    return torch.stack(rows)


def test_jacobians_equal_hooks(case: Case) -> None:
    case = case_of(case.name) if PATHS[case.name].no_sdpa else with_sdpa(case)
    model = case.model
    layers = sorted({0, model.n_layers // 2, model.n_layers - 2})
    texts = [case.prompt.select([row]).trimmed()[0] for row in range(len(case.prompt))]
    fitted = iv.jacobian_lens(model, case.prompt, layers=layers, skip=SKIP, batch_dims=16)
    assert fitted.layers == tuple(layers)
    for ours, layer in zip(fitted.weight, layers, strict=True):
        expected = torch.stack([raw_jacobian(case, text, layer) for text in texts]).mean(0)
        assert relative(ours[DIMS], expected) < FLOOR32, layer
    hidden = noise((len(layers), 2, model.d_model))
    read = iv.lens(model, hidden, torch.tensor([[3], [4]]), kind="jacobian", fitted=fitted)[0]
    carried = torch.stack([h @ j.T for h, j in zip(hidden, fitted.weight, strict=True)])
    plain = iv.lens(model, carried, torch.tensor([[3], [4]]))[0]
    assert relative(read, plain) < FLOOR32
