"""From a repo id, a folder or a ready module to a :class:`~interventions.model.model.Model`."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nnsight.modeling.transformers import TransformersModel

from interventions.architectures.adapters import add_adapters, named_adapters
from interventions.architectures.anatomy_finding import find_anatomy
from interventions.architectures.blocks import OTHERWISE
from interventions.architectures.blueprints import sees
from interventions.architectures.checkpoint_place import place_of
from interventions.architectures.families import tested
from interventions.architectures.opening import reading, without_bars
from interventions.architectures.quantisation import keep_packed, settings_in
from interventions.architectures.quantised_loading import quantisation_config
from interventions.architectures.quantised_opening import check_opens
from interventions.architectures.unwrapping import unwrapped
from interventions.architectures.verification import check_components
from interventions.architectures.wrapped import Runner
from interventions.errors import LoadError
from interventions.model.model import Model
from interventions.model.placement import placement


def load(
    source: str | Path | torch.nn.Module,
    *,
    processor: Any | None = None,
    tokenizer: Any | None = None,
    dtype: torch.dtype | str | None = None,
    device: str | torch.device | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    attn_implementation: str | None = None,
    quantization: Any | None = None,
    adapter: str | Path | Mapping[str, str | Path] | None = None,
    revision: str | None = None,
    remote: bool | str = False,
    trust_remote_code: bool = False,
) -> Model:
    """Load a language model or a VLM.

    Parameters
    ----------
    source : str, Path or torch.nn.Module
        Hub repo id, local folder, or a ready transformers model (then give its processor or
        tokenizer), also inside a wrapper of PEFT (LoRA and its like), torch.compile or
        DataParallel, which is seen through and left as it is. A ready model is put in eval mode,
        its parameters need no gradients afterwards, and a tokenizer without a pad token gets one.
        It stays on its device. Checkpoints in LLaVA's original layout are converted while they
        are read.
    processor, tokenizer : optional
        Used instead of those that belong to ``source``.
    dtype : torch.dtype or str, optional
        Default: float32 on a CPU, what the checkpoint says elsewhere.
    device : str, optional
        Default: CUDA when there is one, else CPU.
    device_map : str or dict, optional
        ``"auto"`` spreads the layers over the devices there are (accelerate).
    attn_implementation : str, optional
        ``"eager"``, ``"sdpa"`` or others of transformers.
    quantization : {"nf4", "int8", "fp8"} or config, optional
        Pack the weights of a whole checkpoint while they are read, by a format's name or a config
        of transformers. All numbers are then those of the packed model: the head is left whole,
        vision tower and projector are packed too.
    adapter : str, Path, or dict of str to them, optional
        Folder or repo id of a PEFT adapter (LoRA and its like), or several by name. The first of
        them acts; :meth:`Model.adapter <interventions.model.model.Model.adapter>` lets another
        act, or none.
    revision : str, optional
        Branch, tag or commit on the hub.
    remote : bool or str
        Run on NDIF, or on the NDIF server at a URL. Only the config and the processor's files are
        read here; no weight is. The server finds the model by its repo id, and says where its
        weights lie and in what format.
    trust_remote_code : bool
        Run code that comes with the checkpoint. Off unless asked for.

    Returns
    -------
    Model

    Raises
    ------
    LoadError
        If the source cannot be found, opened, or is of an architecture that is not supported.

    Examples
    --------
    >>> vlm = load("llava-hf/llava-1.5-7b-hf")
    """
    # transformers takes seconds to import; `import interventions` should not.
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoTokenizer,
    )

    from interventions.architectures.llava_layout import (
        is_original_llava,
        load_original_llava,
    )
    from interventions.architectures.processors import open_processor

    given = Preprocessors(processor, tokenizer)
    adapters = named_adapters(adapter)
    if isinstance(source, torch.nn.Module):
        _check_left_out(
            "for a ready module: it is used as it is. Make the module so, or give its repo id or "
            "folder.",
            dtype=dtype,
            device=device,
            device_map=device_map,
            attn_implementation=attn_implementation,
            quantization=quantization,
            adapter=adapter,
        )
        if remote:
            raise LoadError("a ready module runs here. For remote=, give the repo id instead.")
        return _wrap(source, given, name=_name_of(source), revision=revision)
    place = place_of(source)
    if remote:
        _check_left_out(
            "with remote=: the server holds the weights as it was told to. Leave it out.",
            device=device,
            device_map=device_map,
            dtype=dtype,
            quantization=quantization,
            adapter=adapter,
        )
        _check_hosted(place, remote)
    placed = {} if remote else placement(device, device_map, dtype, attn_implementation)
    name = Path(place).name if Path(place).is_dir() else place
    common: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    opened = reading(place, doing="loaded", weights=not remote, revision=revision)
    with opened, without_bars(place):
        if is_original_llava(place, revision=revision):
            if remote:
                raise LoadError(
                    f"{place!r} is in LLaVA's original layout, which is converted while it is "
                    "read; a server cannot run it. Leave remote= out, or convert it "
                    "(iv.load(...).module.save_pretrained) and serve that from a repo."
                )
            if quantization is not None:
                raise LoadError(
                    f"{place!r} is in LLaVA's original layout, which is converted while it is "
                    "read, and cannot be quantised at once. Save it first "
                    "(iv.load(...).module.save_pretrained), and load that with quantization=."
                )
            module, own = load_original_llava(
                place,
                tokenizer=tokenizer if processor is None else processor.tokenizer,
                revision=revision,
                **placed,
            )
            add_adapters(module, adapters, name)
            return _wrap(
                module, Preprocessors(processor or own, None), name=name, revision=revision
            )
        config = AutoConfig.from_pretrained(place, **common)
        visual = sees(config)
        if visual and processor is None:
            given = Preprocessors(open_processor(place, config, **common), None)
        elif not visual and tokenizer is None:
            given = Preprocessors(None, AutoTokenizer.from_pretrained(place, **common))
        if remote:
            return _wrap_remote(
                place,
                given,
                config=config,
                remote=remote,
                revision=revision,
                attn_implementation=attn_implementation,
            )
        if quantization is not None:
            placed["quantization_config"] = quantisation_config(
                quantization,
                config,
                place,
                dtype=placed["dtype"],
                device_map=placed["device_map"],
            )
        check_opens(config, place, device_map=placed["device_map"])
        auto = AutoModelForImageTextToText if visual else AutoModelForCausalLM
        loaded: Any = auto.from_pretrained(
            place,
            output_loading_info=True,
            **placed,
            **common,
        )
        module, report = loaded
    missing = sorted(report.get("missing_keys") or ())
    if missing:
        raise LoadError(
            f"{place!r} is a half-loaded model: {len(missing)} weights are not in the checkpoint, "
            f"such as {missing[0]!r}, and would be random. Use a complete checkpoint."
        )
    _check_all_used(module, place, report.get("unexpected_keys") or ())
    if settings_in(config):
        _check_unpacks(module, place)
    with without_bars(place):
        add_adapters(module, adapters, name)
    return _wrap(module, given, name=name, revision=revision)


def _check_left_out(because: str, **settings: Any) -> None:
    """Refuse settings that could not be kept."""
    if given := [key for key, value in settings.items() if value is not None]:
        raise LoadError(f"{' and '.join(given)} cannot be chosen {because}")


def _check_all_used(module: torch.nn.Module, place: str, unexpected: Iterable[str]) -> None:
    """Refuse a checkpoint that has more of the model's own parts than its config tells of.

    A bias or a scale of a layer that is there, or more blocks: without them other numbers come
    out. Weights of parts that the model has not, such as another head, are none of its own.
    """
    for name in sorted(unexpected):
        path, _, last = name.rpartition(".")
        while path:
            above, _, place_in_it = path.rpartition(".")
            holder = _part_at(module, above) if above else None
            if isinstance(holder, torch.nn.ModuleList) and place_in_it.isdigit():
                if int(place_in_it) >= len(holder):
                    raise LoadError(
                        f"{place!r} has weights of {above}.{place_in_it}, but its config.json says "
                        f"that there are {len(holder)} of these. Use the config that belongs to "
                        "it."
                    )
                break
            path = above
        part = _part_at(module, name.rpartition(".")[0])
        if part is not None and [*part.parameters(recurse=False)]:
            raise LoadError(
                f"{place!r} has a {last!r} of {name.rpartition('.')[0]} ({type(part).__name__}), "
                "which the model that its config.json tells of has not, and would leave out. Use "
                "the config that belongs to it."
            )


def _check_unpacks(module: Any, place: str) -> None:
    """Refuse quantised weights that came without what unpacks them, by one pass over a token."""
    token = torch.zeros(1, 1, dtype=torch.long, device=module.get_input_embeddings().weight.device)
    try:
        with torch.no_grad():
            module.eval()(input_ids=token, use_cache=False)
    except Exception as error:  # each format fails in a way of its own
        raise LoadError(
            f"{place!r} is a half-loaded model: its packed weights cannot be computed with "
            f"({type(error).__name__}: {error}). Its scales may be missing, or its weights may not "
            "be packed as quantization_config in its config.json says. Use a complete checkpoint."
        ) from error


def _part_at(module: torch.nn.Module, path: str) -> torch.nn.Module | None:
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


def _check_hosted(place: str, remote: bool | str) -> None:
    """Refuse what a server would not find."""
    if remote != "local" and Path(place).is_dir():
        raise LoadError(
            f"{place!r} is a folder on this machine, and a server finds a model by its repo id. "
            'Give the id, or leave remote= out (remote="local" tries the remote path here).'
        )


@dataclass(frozen=True)
class Preprocessors:
    """A VLM's processor, or a language model's tokenizer."""

    processor: Any | None
    tokenizer: Any | None

    @property
    def task(self) -> str:
        """What nnsight calls the kind of model."""
        return "text-generation" if self.processor is None else "image-text-to-text"

    @property
    def arguments(self) -> dict[str, Any]:
        """For nnsight's model."""
        if self.processor is None:
            return {"tokenizer": self.tokenizer}
        return {"processor": self.processor}

    def checked(self, name: str) -> Any:
        """Return the tokenizer, fast and with a pad token, or say what is amiss."""
        if self.processor is None and self.tokenizer is None:
            raise LoadError(
                f"{name} was given as a module without its processor or tokenizer. "
                "Pass processor= for a VLM, tokenizer= for a language model."
            )
        tokens: Any = self.tokenizer if self.processor is None else self.processor.tokenizer
        if not getattr(tokens, "is_fast", False):
            raise LoadError(
                f"the tokenizer of {name} is not a fast one, so character offsets are not to be "
                "had. Use a checkpoint with a tokenizer.json."
            )
        if tokens.pad_token_id is None and tokens.eos_token is not None:
            tokens.pad_token = tokens.eos_token
        return tokens


def _name_of(module: torch.nn.Module) -> str:
    return Path(getattr(module, "name_or_path", "") or type(module).__name__).name


def _wrap(
    module: torch.nn.Module, given: Preprocessors, *, name: str, revision: str | None
) -> Model:
    given.checked(name)
    module.eval().requires_grad_(False)
    keep_packed(module)
    module = unwrapped(module, name)
    find_anatomy(module)  # says what is amiss, where nnsight would fail
    # Else the pipeline that nnsight makes moves the module to the first GPU.
    stay = {} if getattr(module, "hf_device_map", None) is not None else {"device": -1}
    nn = TransformersModel(module, task=given.task, **stay, **given.arguments)
    model = Model(nn, name=name, revision=revision, runner=_sender)
    anatomy = model.anatomy
    _check_image_token(model)
    if not tested(anatomy.model_type):
        _check_parts(module, anatomy, name)
    return model


def _check_parts(module: Any, anatomy: Any, name: str) -> None:
    """Refuse an architecture outside the suite that does not run, or not as was understood."""
    try:
        wrong = check_components(module, anatomy)
    except RuntimeError as error:
        raise LoadError(
            f"{name} does not run as it was loaded, in {module.dtype}: {error}. If its mixture of "
            "experts does not take this format, call "
            'model.set_experts_implementation("eager") first, or load another format.'
        ) from error
    if wrong:
        raise LoadError(
            f"{name}: {wrong}, so the parts of this architecture ({anatomy.model_type}) were not "
            f"understood. {OTHERWISE}"
        )


def _wrap_remote(
    place: str,
    given: Preprocessors,
    *,
    config: Any,
    remote: bool | str,
    revision: str | None,
    attn_implementation: str | None,
) -> Model:
    from transformers import GenerationConfig

    given.checked(place)
    nn = TransformersModel(
        place,
        task=given.task,
        config=config,
        revision=revision,
        attn_implementation=attn_implementation,
        **given.arguments,
    )
    with suppress(OSError):  # a checkpoint need not have one; its tokens that end a text count
        settings = GenerationConfig.from_pretrained(place, revision=revision or "main")
        module: Any = nn._module
        module.generation_config = settings
    model = Model(nn, name=place, revision=revision, remote=remote, runner=_sender)
    _check_image_token(model)
    return model


def _sender() -> Runner:
    # What it imports takes most of a second, which a model that runs here should not.
    from interventions.remote import sending

    return sending


def _check_image_token(model: Model) -> None:
    """Refuse a processor that writes images in another token than the model looks for."""
    wanted, processor, tokenizer = model.anatomy.image_token_id, model.processor, model.tokenizer
    if wanted is None or processor is None:
        return
    # Which of its tokens a processor fills differs; it knows the one that it does fill.
    words = {value for value in vars(processor).values() if isinstance(value, str)}
    words.add(getattr(tokenizer, "image_token", None) or "")
    known = tokenizer.get_vocab()
    if wanted not in {known[word] for word in words if word in known}:
        raise LoadError(
            f"{type(processor).__name__} does not belong to {model.name}: image features take the "
            f"place of token {wanted}, which is {tokenizer.convert_ids_to_tokens(wanted)!r} to "
            "its tokenizer and no image token. Pass the processor= of this model."
        )
