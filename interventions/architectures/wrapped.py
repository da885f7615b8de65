"""What a model is: its module, its parts by name, its tokenizer, and where it computes.

What one does with it is :class:`interventions.Model`, which is one of these.

An NDIF server runs the code of an untrusted request in a process of its own, which has the model
without its weights and asks the process that has them through nnsight. What calls the modules
themselves, here, works in both.
"""

from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import torch
from nnsight.modeling.transformers import TransformersModel

from interventions.architectures.anatomy import Anatomy
from interventions.architectures.faults import check_unbroken
from interventions.errors import ModeError, RemoteError

Given = ParamSpec("Given")
Result = TypeVar("Result")


class Runner(Protocol):
    """What sends traces and operations to the server that a model runs on."""

    def placed(self, model: "Wrapped", settings: dict[str, Any]) -> dict[str, Any]:
        """Arguments of a trace, with those that say where it runs."""
        ...

    def call(self, model: "Wrapped", function: Any, args: Any, kwargs: Any) -> Any:
        """Return ``function(model, *args, **kwargs)``, run there as one request."""
        ...


class Wrapped:
    """A language model or VLM whose parts have the same names whatever its architecture.

    Attributes
    ----------
    nn : nnsight TransformersModel
        The wrapped model, for everything nnsight can do.
    name : str
    revision : str or None
    anatomy : Anatomy
        Where the parts are.
    remote : bool or str
        Whether, or at which URL, traces run on an NDIF server.
    runner : callable or None
        Gives the :class:`Runner` that sends them there, once it is needed.
    jobs : interventions.remote.Jobs or None
        Where requests to a server are kept, so that they outlive this process.
    requests : int
        How many requests were made to the server.
    running_rows : int
        Rows of the prompt that was traced last.
    running_images : bool
        Whether it has images.
    running_keys : bool
        Whether keys and values are kept for tokens that are generated.
    running_prefix : int
        How many tokens its rows share, which are not in them.
    running_vision : dict of str to Slots
        How many tokens of the vision tower its rows have; see :class:`interventions.Prompt`.
    held : dict or None
        Its fingerprint, while it is known not to change;
        see :class:`interventions.model.fingerprints.Unchanged`.
    feature_counts : dict
        How many image features were measured, by kind of input.
    """

    def __init__(
        self,
        nn: TransformersModel,
        *,
        name: str,
        revision: str | None = None,
        remote: bool | str = False,
        runner: Callable[[], Runner] | None = None,
    ) -> None:
        # What finds parts stays where models are loaded.
        from interventions.architectures.anatomy_finding import find_anatomy

        self.nn = nn
        self.name = name
        self.revision = revision
        self.remote = remote
        self.runner = runner
        self.jobs: Any = None
        self.requests = 0
        self.anatomy: Anatomy = find_anatomy(nn._module)
        self.running_rows = 0
        self.running_images = self.running_keys = False
        self.running_prefix = 0
        self.running_vision: dict[Any, Any] = {}
        self.held: dict[str, Any] | None = None
        self.feature_counts: dict[Any, int | None] = {}

    def __repr__(self) -> str:
        kind = "VLM" if self.anatomy.is_vlm else "language model"
        return (
            f"<{type(self).__name__} {self.name}: {kind}, {self.n_layers} layers x {self.d_model}>"
        )

    def __getstate__(self) -> dict[str, Any]:
        """What goes to a server, where the model is a local one."""
        here = {"remote": False, "runner": None, "jobs": None, "held": None, "feature_counts": {}}
        return {**self.__dict__, **here}

    def job(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call ``function(model, *args, **kwargs)`` where the model runs, as one request.

        See :mod:`interventions.remote`. For a local model this is the call itself.
        """
        if self.remote is False:
            return function(self, *args, **kwargs)
        return self.sender.call(self, function, args, kwargs)

    @property
    def sender(self) -> Runner:
        """What sends traces and operations of a model that does not run here.

        Raises
        ------
        RemoteError
            If there is nothing that could.
        """
        if self.runner is None:
            raise RemoteError(
                f"{self.name} was made without what sends requests to a server. Load it with "
                "iv.load(repo_id, remote=...)."
            )
        return self.runner()

    @property
    def module(self) -> Any:
        """The transformers model itself."""
        return self.nn._module

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks."""
        return self.anatomy.n_layers

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.anatomy.d_model

    @property
    def device(self) -> torch.device:
        """Where the embeddings are; where inputs are made, for a model that runs elsewhere."""
        embeddings = self.module.get_submodule(self.anatomy.embeddings)
        device = next(embeddings.parameters()).device
        return torch.device("cpu") if device.type == "meta" else device

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the weights; of those that are not packed, in a quantised model."""
        return number_format(self.module) or torch.float32

    @property
    def end_ids(self) -> set[int]:
        """Tokens that end a generation: the tokenizer's, and those of the generation config."""
        config = getattr(self.module, "generation_config", None)
        more = getattr(config, "eos_token_id", None)
        several = more if isinstance(more, list | tuple) else [more]
        return {token for token in (self.tokenizer.eos_token_id, *several) if token is not None}

    @property
    def processor(self) -> Any | None:
        """The image-and-text processor, or None in a text-only model."""
        return self.nn.processor

    @property
    def tokenizer(self) -> Any:
        """The tokenizer."""
        return self.processor.tokenizer if self.processor is not None else self.nn.tokenizer

    @property
    def image_token(self) -> str | None:
        """How an image is written in the text of a prompt; None in a text-only model."""
        token = self.placeholder
        return token and self.anatomy.family.placeholder.format(image_token=token)

    @property
    def placeholder(self) -> str | None:
        """The token that stands for an image in what the processor takes; None without one."""
        return placeholder_of(self.processor, self.tokenizer, self.anatomy.image_token_id)

    @property
    def blocks(self) -> Any:
        """The nnsight envoys of the decoder blocks."""
        return self.nn.get(self.anatomy.blocks)

    @property
    def head(self) -> Any:
        """The nnsight envoy of the output head."""
        return self.nn.get(self.anatomy.head)

    @property
    def final_norm(self) -> Any:
        """The nnsight envoy of the norm before the head."""
        return self.nn.get(self.anatomy.final_norm)


def where_the_model_is(
    function: Callable[Concatenate[Any, Given], Result],
) -> Callable[Concatenate[Any, Given], Result]:
    """Let a function, whose first argument is a model, run where that model does.

    For a model on a server a call is one request, of which only the result comes back; there, and
    for a local model, it is the plain call. What can be refused without the model is to be
    refused before.
    """

    def placed(model: Any, *args: Given.args, **kwargs: Given.kwargs) -> Result:
        if model.remote:
            return model.job(placed, *args, **kwargs)
        return function(model, *args, **kwargs)

    # By these it is found on the server.
    placed.__module__, placed.__doc__ = function.__module__, function.__doc__
    placed.__name__, placed.__qualname__ = function.__name__, function.__qualname__
    return placed


def placeholder_of(processor: Any, tokenizer: Any, image_token_id: int | None) -> str | None:
    """The text that a processor writes out into the tokens of one image."""
    own = getattr(processor, "image_token", None)
    if own is None and processor is not None and image_token_id is not None:
        own = tokenizer.convert_ids_to_tokens(image_token_id)
    return own


def number_format(module: torch.nn.Module) -> torch.dtype | None:
    """Format of the first parameter that is no packed one; None if there is none."""
    for parameter in module.parameters():
        if parameter.is_floating_point() and parameter.element_size() > 1:
            return parameter.dtype
    return None


def weightless(model: Wrapped) -> bool:
    """Whether the weights are elsewhere; where accelerate keeps some of them, none counts."""
    embeddings = model.module.get_submodule(model.anatomy.embeddings)
    away = all(weight.device.type == "meta" for weight in embeddings.parameters())
    return away and not hasattr(embeddings, "_hf_hook")


def about_weights(model: Wrapped) -> tuple[str, bool]:
    """Number format of the weights, and whether they are in the process that runs requests.

    Where they are not, values come and go as copies, which carry no gradients.
    """
    return str(model.dtype).removeprefix("torch."), not weightless(model)


def check_evaluating(model: Wrapped) -> None:
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
            path = next(path for path, module in model.module.named_modules() if module is part)
            where = f"its {path} ({type(part).__name__})" if path else "it"
            raise ModeError(
                f"{model.name} cannot be run: {where} is in train mode, where dropout and the "
                "like make numbers a matter of chance. Call model.module.eval() first, and "
                ".train() again when you go on training. For dropout on purpose, trace with "
                "nnsight: model.nn.trace(...)."
            )
        pending += [child for child in part._modules.values() if child is not None]


def forward(model: Wrapped, inputs: dict[str, Any]) -> Any:
    """Run the model on ``inputs`` without interventions; return its output."""
    check_unbroken(model.module, model.anatomy.model_type)
    check_evaluating(model)
    with torch.no_grad():
        if not weightless(model):
            return model.module(**inputs)
        flat, planes = without_planes(inputs)
        with model.nn.trace(flat):
            put_planes(model, planes)
            output = model.nn.output.save()
    return output


def without_planes(inputs: dict[str, Any]) -> tuple[dict[str, Any], torch.Tensor | None]:
    """Inputs without position ids [axis, row, token], whose axes nnsight takes for rows; these."""
    position = inputs.get("position_ids")
    if position is None or position.ndim < 3:
        return inputs, None
    return {key: value for key, value in inputs.items() if key != "position_ids"}, position


def put_planes(model: Wrapped, position: torch.Tensor | None) -> None:
    """Give the model, at the beginning of a trace, what :func:`without_planes` took out."""
    if position is not None:
        nn: Any = model.nn
        args, kwargs = nn.inputs
        nn.inputs = (args, {**kwargs, "position_ids": position})


def normed_and_projected(model: Wrapped, hidden: torch.Tensor) -> torch.Tensor:
    """Apply the final norm and the head to hidden states [..., d_model]."""
    check_evaluating(model)
    if weightless(model):
        one_token = {"input_ids": torch.zeros(1, 1, dtype=torch.long)}
        with model.nn.trace(one_token):  # run for the sake of the two calls inside it
            logits = model.head(model.final_norm(hidden)).save()
        return logits
    anatomy = model.anatomy
    norm, head = (model.module.get_submodule(path) for path in (anatomy.final_norm, anatomy.head))
    weight = next(head.parameters())
    near = next(norm.parameters(), weight).device  # a norm may have no weights
    # Packed weights of a head are no numbers to compute in.
    state = hidden.to(number_format(head) or number_format(norm) or model.dtype)
    # Weights that accelerate keeps elsewhere lie on meta until it fetches them.
    state = norm(state if near.type == "meta" else state.to(near))
    return head(state if weight.device.type == "meta" else state.to(weight.device))
