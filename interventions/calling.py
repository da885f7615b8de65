"""Calling a model's own modules, also where its weights are in another process.

An NDIF server runs the code of an untrusted request in a process of its own, which has the model
without its weights and asks the process that has them through nnsight.
"""

from typing import TYPE_CHECKING, Any

import torch

from interventions.architectures.faults import check_unbroken
from interventions.errors import ModeError

if TYPE_CHECKING:
    from interventions.model import Model


def weightless(model: "Model") -> bool:
    """Whether the weights are elsewhere; where accelerate keeps some of them, none counts."""
    embeddings = model.module.get_submodule(model.anatomy.embeddings)
    return all(one.device.type == "meta" for one in embeddings.parameters()) and not hasattr(
        embeddings, "_hf_hook"
    )


def number_format(module: torch.nn.Module) -> torch.dtype | None:
    """Format of the first parameter that is no packed one; None if there is none."""
    for one in module.parameters():
        if one.is_floating_point() and one.element_size() > 1:
            return one.dtype
    return None


def about_weights(model: "Model") -> tuple[str, bool]:
    """Number format of the weights, and whether they are in the process that runs requests.

    Where they are not, values come and go as copies, which carry no gradients.
    """
    return str(model.dtype).removeprefix("torch."), not weightless(model)


def check_evaluating(model: "Model") -> None:
    """Refuse a model of which a part is in train mode; that of a server is the server's concern.

    Raises
    ------
    ModeError
        Names the first such part. Nothing is changed: the mode is the user's.
    """
    if model.remote or weightless(model):
        return
    pending: list[Any] = [model.module]
    while pending:  # ten times as fast as modules(), and it is done before every pass
        part = pending.pop()
        if part.training:
            path = next(path for path, one in model.module.named_modules() if one is part)
            where = f"its {path} ({type(part).__name__})" if path else "it"
            raise ModeError(
                f"{model.name} cannot be run: {where} is in train mode, where dropout and the "
                "like make numbers a matter of chance. Call model.module.eval() first, and "
                ".train() again when you go on training. For dropout on purpose, trace with "
                "nnsight: model.nn.trace(...)."
            )
        pending += [one for one in part._modules.values() if one is not None]


def call(model: "Model", inputs: dict[str, Any]) -> Any:
    """Run the model on ``inputs`` without interventions; return its output."""
    check_unbroken(model.module, model.anatomy.model_type)
    check_evaluating(model)
    with torch.no_grad():
        if not weightless(model):
            return model.module(**inputs)
        with model.nn.trace(inputs):
            output = model.nn.output.save()
    return output


def normed_and_projected(model: "Model", hidden: torch.Tensor) -> torch.Tensor:
    """Apply the final norm and the head to hidden states [..., d_model]."""
    check_evaluating(model)
    if weightless(model):
        one_token = {"input_ids": torch.zeros(1, 1, dtype=torch.long)}
        with model.nn.trace(one_token):  # run for the sake of the two calls inside it
            logits = model.head(model.final_norm(hidden)).save()
        return logits
    anatomy = model.anatomy
    norm, head = (model.module.get_submodule(one) for one in (anatomy.final_norm, anatomy.head))
    weight = next(head.parameters())
    near = next(norm.parameters(), weight).device  # a norm may have no weights
    # Packed weights of a head are no numbers to compute in.
    state = hidden.to(number_format(head) or number_format(norm) or model.dtype)
    # Weights that accelerate keeps elsewhere lie on meta until it fetches them.
    state = norm(state if near.type == "meta" else state.to(near))
    return head(state if weight.device.type == "meta" else state.to(weight.device))
