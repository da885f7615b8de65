"""Tensors in safetensors files, each with what kind of thing it holds; nothing is unpickled."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from interventions.errors import ResultsError
from interventions.storable import write_atomically

KIND = "interventions"


def save_tensors(
    path: Path | str, kind: str, tensors: Mapping[str, torch.Tensor], about: Mapping[str, Any]
) -> None:
    """Write tensors, and what is said about them in JSON types, to one file, all or nothing."""
    own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        write_atomically(_path(path), save(own, {KIND: kind, "about": json.dumps(about)}))
    except OSError as error:
        raise ResultsError(f"{path} cannot be written: {error.strerror}.") from None


def load_tensors(path: Path | str, kind: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return what :func:`save_tensors` wrote.

    Raises
    ------
    ResultsError
        If there is no such file, or it holds something else.
    """
    tensors, metadata = read_tensors(path)
    if metadata.get(KIND) != kind:
        raise ResultsError(
            f"{path} holds {metadata.get(KIND, 'something that this package did not write')!r}. "
            f"Expected a {kind!r}, as its save() writes one."
        )
    return tensors, json.loads(metadata["about"])


def read_tensors(path: Path | str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return the tensors of any safetensors file, and its metadata.

    Raises
    ------
    ResultsError
        If it cannot be read.
    """
    try:
        with safe_open(str(_path(path)), framework="pt") as file:
            names = list(file.keys())
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ResultsError(
            f"{path} cannot be read: {error}. Expected a safetensors file; others are never opened."
        ) from None


def _path(path: Any) -> Path:
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise ResultsError(f"{path!r} is no path of a file.")
    return Path(path)
