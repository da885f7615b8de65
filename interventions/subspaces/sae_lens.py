"""Sparse autoencoders and transcoders from a folder in SAELens' format.

Its files are ``cfg.json`` and ``sae_weights.safetensors`` (SAELens 6.18, ``sae_lens/saes`` and
``loading/pretrained_sae_loaders.py``; configurations from before 6.0 are read as it reads them).
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from interventions.errors import LoadError, ResultsError
from interventions.given import folder_of, number, one_of, shown, whole
from interventions.model.sites import ANY, STREAMS, Component, check_component
from interventions.subspaces.dictionary import Activation, Dictionary
from interventions.tensor_files import read_tensors

CONFIG = "cfg.json"
WEIGHTS = "sae_weights.safetensors"
TYPES = ("float32", "float64", "float16", "bfloat16")


@dataclass(frozen=True)
class Architecture:
    """What SAELens' name of an architecture means.

    ``weights`` are those beside ``W_enc``, ``W_dec`` and ``b_dec``.
    """

    activation: Activation
    weights: tuple[str, ...]
    transcoder: bool = False


ARCHITECTURES = {
    "standard": Architecture("relu", ("b_enc",)),
    "gated": Architecture("gated", ("b_gate", "b_mag", "r_mag")),
    "jumprelu": Architecture("jumprelu", ("b_enc", "threshold")),
    "topk": Architecture("topk", ("b_enc",)),
    "transcoder": Architecture("relu", ("b_enc",), True),
    "skip_transcoder": Architecture("relu", ("b_enc", "W_skip"), True),
    "jumprelu_transcoder": Architecture("jumprelu", ("b_enc", "threshold"), True),
}
HOOKS: dict[str, Component] = {
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_mlp_in": "resid_mid",
    "hook_resid_post": "resid_post",
    "hook_attn_out": "attn_out",
    "attn.hook_z": "head_out",
    "mlp.hook_in": "mlp_in",
    "mlp.hook_post": "mlp_post",
    "mlp.hook_out": "mlp_out",
    "hook_mlp_out": "mlp_out",
}
"""Places in a block by TransformerLens' names; its ``hook_mlp_in`` is in front of the norm."""
UNCERTAIN = {
    "ln2.hook_normalized": (
        "which TransformerLens has in front of the norm's weight or behind it, by kind of norm and "
        'by how the model was loaded. If it was trained on what the MLP is given, say source="mlp_'
        'in" for a transcoder, or component="mlp_in"'
    ),
}
FLAGS = ("apply_b_dec_to_input", "rescale_acts_by_decoder_norm")
OLD_NAMES = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "hook_point_layer": "hook_layer",
    "activation_fn_str": "activation_fn",
}
"""Keys of configurations from before SAELens 6.0."""


def load_sae(
    path: Path | str,
    *,
    component: Component | None = None,
    source: Component | None = None,
    layer: int | None = None,
    norm_scaling_factor: float | None = None,
) -> Dictionary:
    """Open a sparse autoencoder or a transcoder in SAELens' format.

    Parameters
    ----------
    path : Path
        Folder with ``cfg.json`` and ``sae_weights.safetensors``. Nothing is unpickled.
    component, source, layer : optional
        Where it belongs, if the ``hook_name`` in ``cfg.json`` does not tell, or tells of another
        model; ``source`` is where a transcoder reads. Of a VLM, ``layer`` is that of its language
        model.
    norm_scaling_factor : float, optional
        By which vectors are multiplied in front of the encoder, for one with
        ``normalize_activations`` of ``"expected_average_only_in"``, whose files do not have it.

    Returns
    -------
    Dictionary

    Raises
    ------
    LoadError
        If a file is missing or broken, weights do not fit ``cfg.json``, or it asks for what is not
        known here: the reason is given.

    Examples
    --------
    >>> sae = iv.load_sae("sae")
    >>> sae
    <Dictionary (relu): resid_post of block 3, 96 features of 64>
    """
    folder = folder_of(path, "path")
    given = _config(folder)
    name = given.get("architecture", "standard")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise LoadError(
            f"{folder} is of the architecture {shown(name)}, which is not known here. Known: "
            f"{', '.join(ARCHITECTURES)}. One that was trained as batchtopk or matryoshka is saved "
            "by SAELens as jumprelu: use save_inference_model."
        )
    kind = ARCHITECTURES[name]
    normalised = _checked(folder, given, kind, norm_scaling_factor)
    weights = _weights(folder, given, kind)
    if norm_scaling_factor is not None:
        factor = number(norm_scaling_factor, "norm_scaling_factor", above=0, error=LoadError)
        weights["W_enc"] = weights["W_enc"] * factor
        weights |= {key: weights[key] / factor for key in ("W_dec", "b_dec")}
    places = _places(folder, given, kind, component, source, layer)
    rescaled = kind.activation == "topk" and bool(given.get("rescale_acts_by_decoder_norm", False))
    if rescaled:
        weights["norms"] = weights["W_dec"].norm(dim=-1)
    k = _k(folder, given, weights) if kind.activation == "topk" else None
    return Dictionary(
        **places,
        activation=kind.activation,
        weights=weights,
        k=k,
        normalised=normalised,
        centred=bool(given.get("apply_b_dec_to_input", True)),
        rescaled=rescaled,
        about=given,
    )


def _config(folder: Path) -> dict[str, Any]:
    """What ``cfg.json`` says, in the words of SAELens 6."""
    path = folder / CONFIG
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LoadError(
            f"{folder} has no {CONFIG}. Expected a folder as SAELens' save_model writes it, with "
            f"{CONFIG} and {WEIGHTS}; other formats are converted by SAELens itself."
        ) from None
    except (OSError, ValueError) as error:
        raise LoadError(f"{path} cannot be read: {error}.") from None
    if not isinstance(given, dict):
        raise LoadError(f"{path} holds {shown(given)}. Expected an object.")
    metadata = given.get("metadata") or {}
    config: dict[str, Any] = {
        OLD_NAMES.get(key) or key: value for key, value in {**metadata, **given}.items()
    }
    config.pop("metadata", None)
    kwargs = config.get("activation_fn_kwargs") or {}
    if config.get("activation_fn") == "topk" and kwargs.get("k") is not None:
        config |= {"architecture": "topk", "k": kwargs["k"]}
    return config


def _checked(folder: Path, given: Mapping[str, Any], kind: Architecture, factor: Any) -> Any:
    """Refuse what a configuration asks for and is not known; return how vectors are normalised."""
    for key in FLAGS:
        if not isinstance(given.get(key) or False, bool):
            raise LoadError(f"{folder} has {key}={shown(given[key])}. Expected true or false.")
    activation = given.get("activation_fn") or "relu"
    if activation not in ("relu", *(("topk",) if kind.activation == "topk" else ())):
        raise LoadError(
            f"{folder} has the activation function {shown(activation)}. Expected relu: with "
            "another its features would be other numbers."
        )
    if given.get("hook_head_index") is not None:
        raise LoadError(
            f"{folder} is of head {given['hook_head_index']} alone. Expected one of a whole stream."
        )
    if kind.transcoder and given.get("apply_b_dec_to_input", True):
        raise LoadError(
            f"{folder} is a transcoder with apply_b_dec_to_input, but its b_dec is of what it "
            "writes. SAELens has it false; check the file."
        )
    reshaped = given.get("reshape_activations") or "none"
    if reshaped not in ("none", "hook_z"):
        raise LoadError(f"{folder} has reshape_activations={shown(reshaped)}, which is not known.")
    normalised = given.get("normalize_activations") or "none"
    if normalised is True:
        normalised = "expected_average_only_in"
    known = ("none", "constant_norm_rescale", "layer_norm", "expected_average_only_in")
    if normalised not in known:
        raise LoadError(
            f"{folder} has normalize_activations={shown(normalised)}. Known: {', '.join(known)}."
        )
    averaged = normalised == "expected_average_only_in"
    if averaged != (factor is not None):
        raise LoadError(
            f"{folder} has normalize_activations={normalised!r}, "
            + (
                "whose factor is not in its files: give norm_scaling_factor=, as SAELens lists it "
                "for the release, or have SAELens fold it in and save it again."
                if averaged
                else "which takes no norm_scaling_factor. Leave it out."
            )
        )
    return "none" if averaged else normalised


def _weights(folder: Path, given: Mapping[str, Any], kind: Architecture) -> dict[str, torch.Tensor]:
    """Its weights, each of the size that the configuration says."""
    path = folder / WEIGHTS
    if not path.is_file():
        others = sorted(entry.name for entry in folder.iterdir())[:8]
        raise LoadError(
            f"{folder} has no {WEIGHTS}; there are {', '.join(others)}. Pickled weights (.pt) are "
            "never opened: have SAELens save them again."
        )
    sizes = {
        key: whole(given.get(key), f"{key} of {folder / CONFIG}", least=1, error=LoadError)
        for key in ("d_in", "d_sae", *(("d_out",) if kind.transcoder else ()))
    }
    d_in, d_sae = sizes["d_in"], sizes["d_sae"]
    d_out = sizes.get("d_out", d_in)
    shapes = {
        **{"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_out), "b_dec": (d_out,)},
        **{name: (d_out, d_in) if name == "W_skip" else (d_sae,) for name in kind.weights},
    }
    try:
        tensors, _ = read_tensors(path)
    except ResultsError as error:
        raise LoadError(str(error)) from None
    factor = tensors.pop("scaling_factor", None)
    if factor is not None and not torch.allclose(factor, torch.ones_like(factor)):
        raise LoadError(
            f"{path} has a scaling_factor that is not 1: it was finetuned in a way SAELens 6 no "
            "longer applies. Use one without."
        )
    if {*tensors} != {*shapes}:
        raise LoadError(
            f"{path} has the tensors {sorted(tensors)}. Expected {sorted(shapes)}: with others it "
            "would be computed otherwise than it was trained."
        )
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != shapes[name] or not tensor.is_floating_point():
            raise LoadError(
                f"{name} of {path} has shape {tuple(tensor.shape)} ({tensor.dtype}). {CONFIG} says "
                f"{shapes[name]}, in floating point."
            )
        if not bool(tensor.isfinite().all()):
            raise LoadError(f"{name} of {path} holds NaN or infinite numbers.")
    stored = str(given.get("dtype", TYPES[0])).removeprefix("torch.")
    dtype = getattr(torch, one_of(stored, f"dtype of {folder / CONFIG}", TYPES, error=LoadError))
    cast = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    if over := [name for name, tensor in cast.items() if not bool(tensor.isfinite().all())]:
        raise LoadError(
            f"{over[0]} of {path} reaches {float(tensors[over[0]].abs().max()):.3g}, which the "
            f"dtype of {CONFIG}, {stored}, cannot hold. Change that to float32."
        )
    return cast


def _k(folder: Path, given: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> int:
    most = weights["W_enc"].shape[1]
    return whole(given.get("k"), f"k of {folder / CONFIG}", least=1, most=most, error=LoadError)


def _places(
    folder: Path,
    given: Mapping[str, Any],
    kind: Architecture,
    component: Component | None,
    source: Component | None,
    layer: int | None,
) -> dict[str, Any]:
    """Where it is read and written, by what the user says or else its hooks' names."""
    if source is not None and not kind.transcoder:
        raise LoadError(f"{folder} is no transcoder: it reads where it writes. Leave source= out.")
    written = _place(folder, given, "hook_name_out" if kind.transcoder else "hook_name", component)
    read = _place(folder, given, "hook_name", source) if kind.transcoder else (None, written[1])
    blocks = {block for block in (written[1], read[1]) if block is not None}
    if layer is None and len(blocks) != 1:
        raise LoadError(
            f"{folder} is of blocks {sorted(blocks)}. "
            + ("Transcoders across blocks are not known here." if blocks else "Say layer=.")
        )
    at = blocks.pop() if layer is None else whole(layer, "layer", least=0, error=LoadError)
    late = read[0] is not None and ANY.index(read[0]) > ANY.index(written[0])
    if late or STREAMS[written[0]].instead:
        raise LoadError(
            f"{folder} would read {read[0] or written[0]} and write {written[0]}, which cannot be: "
            "a model computes one before the other, or it is only read."
        )
    return {"component": written[0], "source": read[0], "layer": at}


def _place(folder: Path, given: Mapping[str, Any], key: str, chosen: Any) -> tuple[Any, int | None]:
    """Component and block that a hook's name means; of one that is chosen, the block alone."""
    hook = str(given.get(key) or "")
    parts = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook)
    block = int(parts[1]) if parts else None
    if chosen is not None:
        return check_component(chosen), block
    place = parts[2] if parts else ""
    if place in HOOKS:
        return HOOKS[place], block
    why = UNCERTAIN.get(place, "which is not known here. Say component= (and layer=)")
    what = f"{key} {hook!r}, {why}" if hook else f"no {key}. Say component= and layer="
    raise LoadError(f"{folder} has {what}; known are {', '.join(HOOKS)}.")
