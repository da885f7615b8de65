"""Calling a model's own modules, also where its weights are in another process.

An NDIF server runs the code of an untrusted request in a process of its own, which has the model
without its weights and asks the process that has them through nnsight.
"""

from typing import TYPE_CHECKING, Any

import torch

from interventions.architectures.faults import check_unbroken

if TYPE_CHECKING:
    from interventions.model import Model


def weightless(model: "Model") -> bool:
    """Whether the weights are elsewhere; where accelerate keeps some of them, none counts."""
    embeddings = model.module.get_submodule(model.anatomy.embeddings)
    return all(one.device.type == "meta" for one in embeddings.parameters()) and not hasattr(
        embeddings, "_hf_hook"
    )


def about_weights(model: "Model") -> tuple[str, bool]:
    """Number format of the weights, and whether they are in the process that runs requests.

    Where they are not, values come and go as copies, which carry no gradients.
    """
    return str(model.dtype).removeprefix("torch."), not weightless(model)


def call(model: "Model", inputs: dict[str, Any]) -> Any:
    """Run the model on ``inputs`` without interventions; return its output."""
    check_unbroken(model.module, model.anatomy.model_type)
    with torch.no_grad():
        if not weightless(model):
            return model.module(**inputs)
        with model.nn.trace(inputs):
            output = model.nn.output.save()
    return output


def normed_and_projected(model: "Model", hidden: torch.Tensor) -> torch.Tensor:
    """Apply the final norm and the head to hidden states [..., d_model]."""
    if weightless(model):
        one_token = {"input_ids": torch.zeros(1, 1, dtype=torch.long)}
        with model.nn.trace(one_token):  # run for the sake of the two calls inside it
            logits = model.head(model.final_norm(hidden)).save()
        return logits
    anatomy = model.anatomy
    norm, head = (model.module.get_submodule(one) for one in (anatomy.final_norm, anatomy.head))
    weight = next(head.parameters())
    near = next(norm.parameters(), weight).device  # a norm may have no weights
    state = hidden.to(weight.dtype)
    # Weights that accelerate keeps elsewhere lie on meta until it fetches them.
    state = norm(state if near.type == "meta" else state.to(near))
    return head(state if weight.device.type == "meta" else state.to(weight.device))
