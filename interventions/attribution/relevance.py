"""Backward rules that make gradients into relevance coefficients, as RelP needs them.

Layer-wise relevance propagation through a transformer is a gradient of a model in which some parts
are held constant. The forward values stay what they were, bit for bit:

==================  ==========================================================================
norm                its scale is a constant (LN rule; Ali et al., 2022)
activation          ``a(x)`` counts as ``x`` times the constant ``a(x) / x`` (identity rule)
gated product       each factor gets half of what the product gets (half rule; Arras et al., 2019)
attention           the pattern is a constant, values carry everything (AH rule; Ali et al., 2022)
choice of experts   the router's weights are constants, as the pattern of attention is
==================  ==========================================================================

Source: Rezaei Jafari, Eberle, Khakzar and Nanda, "RelP: Faithful and Efficient Circuit Discovery
via Relevance Patching", 2025 (arXiv 2508.21258).
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from nnsight.intervention.source import STATE
from torch import nn

from interventions.errors import SiteError
from interventions.model.model import Model

Rule = Callable[[Any, Any], Any]
"""Takes the input and the output of a module; gives an output of equal value."""


@contextmanager
def relevance_rules(model: Model) -> Iterator[None]:
    """Make gradients of the model's forward relevance coefficients, until the context is left.

    Raises
    ------
    SiteError
        If a part of the model has no rule.
    """
    with ExitStack() as stack:
        for module, rule in find_rules(model):
            stack.enter_context(_ruled(module, rule))
        yield


@contextmanager
def _ruled(module: nn.Module, rule: Rule) -> Iterator[None]:
    # Under nnsight's own wrapper of the forward: what it reads must be what the rule gives.
    state = module.__dict__[STATE]
    plain = state.body

    def body(_module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return rule(args[0] if args else None, plain(_module, *args, **kwargs))

    state.body = body
    try:
        yield
    finally:
        state.body = plain


def find_rules(model: Model) -> list[tuple[nn.Module, Rule]]:
    """Which rule applies at which module of the text decoder.

    Raises
    ------
    SiteError
        If a norm, attention or MLP is of a kind for which there is none.
    """
    anatomy = model.anatomy
    rules = [_norm_rule(model, model.module.get_submodule(anatomy.final_norm), "the final norm")]
    for layer, names in enumerate(anatomy.parts):
        block = model.module.get_submodule(f"{anatomy.blocks}.{layer}")
        for name, child in block.named_children():
            if name == names.attention:
                rules += _attention_rules(model, child, layer)
            elif name == names.mlp:
                rules += _mlp_rules(model, child, layer)
            elif any(True for _ in child.parameters()):
                rules.append(_norm_rule(model, child, f"{name} of block {layer}"))
    return rules


def _refusal(model: Model, what: str, expected: str) -> SiteError:
    return SiteError(
        f"RelP has no rule for {what} of {model.name}; expected {expected}. "
        'Use method="patching" or "ig", or give this kind a rule in '
        "interventions/attribution/relevance.py."
    )


def _norm_rule(model: Model, norm: nn.Module, what: str) -> tuple[nn.Module, Rule]:
    if isinstance(norm, nn.LayerNorm):
        return norm, lambda x, y: _same_value(y, _layer_norm(norm, x))
    with torch.no_grad():
        weight = next(iter(norm.parameters()), torch.empty(0, device=model.device))
        probe = torch.randn(
            4, model.d_model, generator=torch.Generator().manual_seed(0), dtype=torch.float32
        ).to(weight)
        gain = norm(torch.ones_like(probe[:1]))[0].detach()
        whole = norm(probe)
        error = (whole - _scaled(probe, whole, gain)).abs().max() / whole.abs().max()
    if not error < 0.05:
        raise _refusal(model, f"{what} ({type(norm).__name__})", "an RMS norm or nn.LayerNorm")
    return norm, lambda x, y: _same_value(y, _scaled(x, y, gain))


def _scaled(x: torch.Tensor, y: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    """An RMS norm's output as its input times a constant, found from what it gave."""
    with torch.no_grad():
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        weighted = x.to(wide) * gain.to(wide)
        square = weighted.square().sum(-1, keepdim=True)
        scale = (weighted * y.to(wide)).sum(-1, keepdim=True)
        scale = torch.where(square > 0, scale / square, 0)
        factor = (gain.to(wide) * scale).to(x.dtype)
    return x * factor


def _layer_norm(norm: nn.LayerNorm, x: torch.Tensor) -> torch.Tensor:
    """A layer norm's output with its scale a constant; its mean is taken off as ever."""
    centred = x - x.mean(-1, keepdim=True)
    with torch.no_grad():
        scale = (centred.square().mean(-1, keepdim=True) + norm.eps).rsqrt()
        factor = scale if norm.weight is None else scale * norm.weight
    return centred * factor


def _same_value(y: torch.Tensor, linear: torch.Tensor) -> torch.Tensor:
    """The value of ``y`` with the gradient of ``linear``."""
    return y.detach() + (linear - linear.detach())


def _attention_rules(model: Model, attention: nn.Module, layer: int) -> list[tuple[Any, Rule]]:
    # The pattern is a function of queries and keys alone, so it is constant where they are.
    parts = dict(attention.named_children())
    if not {"q_proj", "k_proj", "v_proj"} <= set(parts) or "v_norm" in parts:
        raise _refusal(
            model,
            f"the attention of block {layer} ({', '.join(parts)})",
            "q_proj, k_proj and v_proj apart, so the pattern can be held constant, and no norm "
            "of values",
        )
    return [(parts[name], _constant) for name in ("q_proj", "k_proj")]


def _constant(_x: Any, y: Any) -> Any:
    if isinstance(y, tuple):
        return tuple(_constant(None, entry) for entry in y)
    return y.detach() if torch.is_tensor(y) else y


def _mlp_rules(model: Model, mlp: nn.Module, layer: int) -> list[tuple[Any, Rule]]:
    parts = dict(mlp.named_children())
    linears = [part for part in parts.values() if isinstance(part, nn.Linear)]
    activations = [part for part in parts.values() if not any(True for _ in part.parameters())]
    activations = [part for part in activations if not isinstance(part, nn.Dropout | nn.Identity)]
    rules: list[tuple[Any, Rule]] = [(activation, _identity) for activation in activations]
    if len(linears) >= 2 and len(activations) == 1 and len(parts) - len(activations) <= 3:
        down = linears[-1]
        into = sum(linear.out_features for linear in linears[:-1])
        if into == 2 * down.in_features:
            return [*rules, (down, _half)]
        if into == down.in_features:
            return rules
    if {"gate_up_proj", "down_proj"} <= {name for name, _ in mlp.named_parameters(recurse=False)}:
        return [*rules, (mlp, _half)]
    router = parts.pop("router", parts.pop("gate", None))
    if router is not None and not isinstance(router, nn.ModuleList) and "experts" in parts:
        inner = [rule for part in parts.values() for rule in _mlp_rules(model, part, layer)]
        return [(router, _constant), *inner]
    raise _refusal(
        model,
        f"the MLP of block {layer} ({type(mlp).__name__}: {', '.join(parts)})",
        "linear maps around one activation module, gated or not, or experts of that kind",
    )


def _identity(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        factor = torch.where(x == 0, 0, y / x)
    return _same_value(y, x * factor)


def _half(_x: Any, y: torch.Tensor) -> torch.Tensor:
    # Put behind the down projection: as that is linear, it halves what the product before it gets.
    half = y / 2
    return half + half.detach()
