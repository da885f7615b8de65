"""What a folder or repo holds, told from its files before a model is made of them.

A folder without a model in transformers' layout, or with weights that are not what their names
say, is refused with what it is instead and what to do.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

from interventions.errors import LoadError

CONFIG = "config.json"
ADAPTER = "adapter_config.json"
POINTER = b"version https://git-lfs"
POINTER_BYTES = 1024
WHOLE = (
    *("model.safetensors", "model.safetensors.index.json"),
    *("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
"""What transformers looks for, in its order."""
BESIDE = ("adapter_", "consolidated", "training_args", "optimizer", "scheduler", "rng_state")
"""How names of files begin that end as weights do, and are none of the model in this layout."""

PACKED = ("I", "U", "F8", "F4", "F6")
"""How types of numbers begin in which no weight is kept that is not quantised."""

HEADS = ("SequenceClassification", "TokenClassification", "QuestionAnswering", "MultipleChoice")
FOREIGN = (
    (
        ".gguf",
        "weights for llama.cpp (GGUF). Use the checkpoint that they were made from; or let "
        "transformers unpack them (from_pretrained(folder, gguf_file=...), which needs the gguf "
        "package) and pass the module to iv.load",
    ),
    (".onnx", "an ONNX export. Use the checkpoint that it was made from"),
    (".h5", "TensorFlow weights. Convert them with transformers 4 (from_pt=..., from_tf=True)"),
    (".msgpack", "Flax weights. Convert them with transformers 4 (from_flax=True)"),
    (".mlmodelc", "a Core ML export. Use the checkpoint that it was made from"),
    (".tflite", "a TensorFlow Lite export. Use the checkpoint that it was made from"),
    (".pth", "weights in their makers' own layout. Convert them to transformers' layout"),
    (".nemo", "a NeMo checkpoint. Convert it to transformers' layout"),
    (".distcp", "weights in pieces (torch.distributed). Put them together and save_pretrained"),
    (".npz", "NumPy or MLX weights. Convert them to transformers' layout"),
    (".ckpt", "a training checkpoint. Convert it to transformers' layout"),
)
"""What other weights there are, by the end of a file's name."""


def check_contents(folder: Path, *, weights: bool) -> None:
    """Refuse a folder that holds no model, or weights that cannot be what they should be.

    Parameters
    ----------
    folder : Path
    weights : bool
        Whether weights are needed; those that are there are looked at in any case.

    Raises
    ------
    LoadError
        Says what the folder holds, and what to do.
    """
    names = sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if ".git/" not in str(path)
    )
    if reason := explained(names, adapter=as_json(folder / ADAPTER)):
        raise LoadError(f"{str(folder)!r} {reason}")
    top = [name for name in names if "/" not in name and (folder / name).is_file()]
    for name in top:
        if _is_pointer(folder / name):
            raise LoadError(
                f"{str(folder)!r}: {name} is a pointer of git-lfs, and not the file. Run `git lfs "
                "install` and `git lfs pull` there, or download it with huggingface_hub "
                "(snapshot_download)."
            )
    if CONFIG not in top:
        return  # whoever opens it says so
    _check_config(folder)
    weight_files = [name for name in top if _is_weights(name)]
    # LLaVA's original layout is read file by file.
    own = "mm_vision_tower" not in (as_json(folder / CONFIG) or {})
    if weight_files and own:
        _check_pieces(folder, top)
    plain = own and not _says_how_packed(as_json(folder / CONFIG) or {})
    held: dict[str, str] = {}
    for name in weight_files:
        if name.endswith(".safetensors"):
            held |= _check_safetensors(folder, name, plain=plain)
        else:
            _check_pickle(folder, name)
    if own:
        _check_scales(folder, held)
    if not weight_files and weights and own:
        raise LoadError(
            f"{str(folder)!r} has a config, and no weights. Download the .safetensors files too; "
            "`interventions doctor` shows what can be told without them."
        )


def explained(names: Iterable[str], *, adapter: dict[str, Any] | None = None) -> str | None:
    """Say what a folder or repo is, where it is no model in transformers' layout; else None.

    Parameters
    ----------
    names : iterable of str
        Its files, by path.
    adapter : dict, optional
        What its ``adapter_config.json`` says.

    Returns
    -------
    str or None
        The predicate of a sentence about it.
    """
    top = {name for name in names if "/" not in name}
    names = set(names)
    weights = [name for name in top if _is_weights(name)]
    if ADAPTER in top:
        return _adapter(adapter or {}, whole=bool(weights))
    if "model_index.json" in top:
        return "is a diffusers pipeline, which makes images. Give a language model or a VLM."
    if "config_sentence_transformers.json" in top and not _writes(top):
        return (
            "is a sentence-transformers model, which gives vectors and no text. Give a language "
            "model or a VLM."
        )
    if CONFIG in top and weights:
        return None
    for end, what in FOREIGN:
        if foreign := sorted(name for name in top if name.endswith(end)):
            return f"holds {what}. (Found {foreign[0]!r}, and no weights in transformers' layout.)"
    if "params.json" in top or any(name.startswith("consolidated") for name in top):
        return (
            "is in its makers' own layout (params.json and consolidated weights). Use the repo in "
            "transformers' layout (Mistral's and Meta's have one of the same name, often with "
            "-hf); a Pixtral that has none is converted with `interventions convert FOLDER NEW`."
        )
    if any(name.startswith(("mp_rank_", "iter_", "latest_checkpointed")) for name in names):
        return "is a Megatron or DeepSpeed checkpoint. Convert it to transformers' layout."
    if CONFIG not in top:
        inside = sorted(name[: -len(CONFIG) - 1] for name in names if name.endswith(f"/{CONFIG}"))
        if inside:
            return f"has no {CONFIG}; {inside[-1]!r} inside it has one. Give that folder."
        return None
    return None


def _check_pieces(folder: Path, top: list[str]) -> None:
    """Refuse weights in pieces of which one is missing, or the list of them."""
    used = next((name for name in WHOLE if name in top), None)
    weights = [name for name in top if _is_weights(name)]
    pieces = [name for name in weights if "-of-" in name]
    if used is None and pieces:
        raise LoadError(
            f"{str(folder)!r} has weights in pieces ({pieces[0]!r}), and not the index.json that "
            "says which weight is in which piece. Download it again."
        )
    if used is None:
        raise LoadError(
            f"{str(folder)!r}: its weights are in {weights[0]!r}, a name under which transformers "
            f"does not look for any. Call that file {WHOLE[0]!r}, if it holds all of them."
        )
    if not used.endswith(".json"):
        return
    listed = (as_json(folder / used) or {}).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise LoadError(
            f"{str(folder)!r}: {used} does not say which weight is in which file (weight_map), as "
            "a download that was cut short leaves it. Download it again."
        )
    wanted = sorted({str(file) for file in listed.values()})
    if lost := [name for name in wanted if not (folder / name).exists()]:
        raise LoadError(
            f"{str(folder)!r} is not complete: {len(lost)} of its {len(wanted)} files of weights "
            f"are missing, such as {lost[0]!r}. Download it again."
        )


def _check_pickle(folder: Path, name: str) -> None:
    """Refuse a file of pickled weights that is none by its first bytes, or has lost its end."""
    with (folder / name).open("rb") as file:
        start = file.read(2)
    if start.startswith(b"\x80") or (start == b"PK" and is_zipfile(folder / name)):
        return
    raise LoadError(
        f"{str(folder)!r}: {name} is no file of weights, as a download that was cut short leaves "
        "it. Download it again, better with .safetensors files."
    )


def _adapter(said: dict[str, Any], *, whole: bool) -> str:
    base = said.get("base_model_name_or_path") or "its base model"
    kind = said.get("peft_type") or "PEFT"
    first = f"holds an adapter ({kind}) of {base!r}, and not a model of its own."
    if whole:
        first = f"holds a whole model, and an adapter ({kind}) of {base!r} beside it: which is it?"
    return (
        f"{first} Put it on its model with peft (pip install peft), and load both: "
        f"iv.load(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({base!r}), "
        "folder), tokenizer=AutoTokenizer.from_pretrained(...)); for a VLM with "
        "AutoModelForImageTextToText and processor=."
    )


def _is_weights(name: str) -> bool:
    """Whether a file is one of the model's, in transformers' layout."""
    if name.startswith(BESIDE):
        return False
    return name.endswith(".safetensors") or (
        name.startswith("pytorch_model") and name.endswith(".bin")
    )


def _writes(top: set[str]) -> bool:
    """Whether a sentence-transformers model is a language model that can also write."""
    return "generation_config.json" in top


def as_json(path: Path) -> dict[str, Any] | None:
    """Return what a file of JSON holds; None if there is none, or no dict in it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _is_pointer(path: Path) -> bool:
    if not path.is_file() or path.stat().st_size > POINTER_BYTES:
        return False
    with path.open("rb") as file:
        return file.read(len(POINTER)) == POINTER


def _says_how_packed(said: dict[str, Any]) -> bool:
    """Whether a config says that weights are quantised, in itself or in the config of a part."""
    inside = [said, *(part for part in said.values() if isinstance(part, dict))]
    return any(part.get("quantization_config") is not None for part in inside)


def _check_scales(folder: Path, held: dict[str, str]) -> None:
    """Refuse numbers of 8 bits without a scale, which some versions load as they are."""
    ends = [key.rpartition(".") for key in held]
    scaled = {module for module, _, last in ends if "scale" in last}
    for key, dtype in held.items():
        module, _, last = key.rpartition(".")
        if last != "weight" or not dtype.startswith("F8_") or {module, key} & scaled:
            continue
        raise LoadError(
            f"{str(folder)!r} is a half-loaded model: its packed weights cannot be computed with, "
            f"as {key} is of type {dtype} and no scale of it is in the checkpoint. Download it "
            "again."
        )


def _check_safetensors(folder: Path, name: str, *, plain: bool) -> dict[str, str]:
    """Refuse a file of weights that is shorter than its own list of them says; type by name.

    ``plain``: the config does not say that they are packed, so that integers and numbers of 8
    bits, which mean nothing without their scales, would be taken for weights.
    """
    size = (folder / name).stat().st_size
    wanted, header = None, {}
    with (folder / name).open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if 8 + length <= size:
            try:
                header = json.loads(file.read(length))
                ends = [
                    entry["data_offsets"][1] for key, entry in header.items() if key[:2] != "__"
                ]
                wanted = 8 + length + max(ends, default=0)
            except (ValueError, KeyError, TypeError, IndexError, AttributeError):
                wanted = None
    if wanted == size:
        types = {key: str(entry.get("dtype")) for key, entry in header.items() if key[:2] != "__"}
        packed = [
            key
            for key, dtype in types.items()
            if key.endswith("weight") and dtype.startswith(PACKED)
        ]
        if plain and packed:
            raise LoadError(
                f"{str(folder)!r}: {packed[0]} in {name} is of type {types[packed[0]]}, so it is "
                f"quantised, and {CONFIG} does not say how (no quantization_config): its numbers "
                "would be taken for weights without their scales. Get that file again, or use the "
                "checkpoint that it was made from."
            )
        return types
    why = "is no file of weights" if wanted is None else f"has {size} bytes of {wanted}"
    raise LoadError(
        f"{str(folder)!r} is not complete: {name} {why}, as a download that was cut short leaves "
        "it. Download it again."
    )


def _check_config(folder: Path) -> None:
    """Refuse a model with another head than one that writes."""
    for kind in (as_json(folder / CONFIG) or {}).get("architectures") or []:
        if any(head in str(kind) for head in HEADS) or str(kind).endswith("MaskedLM"):
            raise LoadError(
                f"{str(folder)!r} is a {kind}, whose head does not write text; a language model's "
                "head would be made up in its place. Give a language model or a VLM."
            )
