"""What is checked before a checkpoint is opened, by ``load`` and ``interventions doctor`` alike."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from safetensors import SafetensorError

from interventions.architectures.access import refusal
from interventions.architectures.contents import ADAPTER, as_json, check_contents, explained
from interventions.architectures.unknown_types import unknown_type
from interventions.errors import LoadError


def place_of(source: Any) -> str:
    """Return a repo id, or the path of a folder that is there.

    Raises
    ------
    LoadError
        For a path at which there is no folder, and for what is neither.
    """
    if not isinstance(source, str | Path):
        raise LoadError(
            f"a {type(source).__name__} cannot be loaded. Give a Hugging Face repo id, a folder, "
            "or a transformers model (a torch.nn.Module)."
        )
    path = Path(source).expanduser()
    if path.is_dir():
        return str(path)
    place = str(source)
    if path.is_file():
        raise LoadError(f"{place!r} is a file. Give the folder that it is in, with config.json.")
    if isinstance(source, Path) or path.is_absolute() or place[:1] in ".~" or place.count("/") > 1:
        raise LoadError(
            f"{place!r}: there is no such folder, and it is no repo id either. Expected a Hugging "
            "Face repo id, or a folder with config.json."
        )
    return place


@contextmanager
def reading(
    place: str, *, doing: str, weights: bool, revision: str | None = None
) -> Iterator[None]:
    """Check what a place holds; and where it cannot be opened, say why, and what was expected.

    Parameters
    ----------
    place : str
        Repo id or folder.
    doing : {"loaded", "examined"}
        For messages.
    weights : bool
        Whether its weights are read.
    revision : str, optional

    Raises
    ------
    LoadError
    """
    from huggingface_hub.errors import StrictDataclassError

    if Path(place).is_dir():
        check_contents(Path(place), weights=weights)
    try:
        yield
    except (
        *(OSError, ValueError, ImportError, KeyError, AttributeError, TypeError, EOFError),
        # Sizes that do not go together.
        *(RuntimeError, ArithmeticError, AssertionError, StrictDataclassError),
        *(SafetensorError, UnpicklingError),
    ) as error:
        if (refused := refusal(error)) is not None:
            raise LoadError(f"{place!r} cannot be {doing}: {refused}") from error
        if (reason := _repo_explained(place, revision)) is not None:
            raise LoadError(f"{place!r} {reason}") from error
        if isinstance(error, UnpicklingError):
            raise LoadError(
                f"{place!r} has pickled weights that hold more than tensors, or are cut short; "
                "such files can run code when they are opened. Use .safetensors files."
            ) from error
        if (reason := unknown_type(place, revision=revision)) is not None:
            raise LoadError(f"{place!r} {reason}\nIt was said: {_first_line(error)}") from error
        needed = "safetensors weights and " if weights else ""
        raise LoadError(
            f"{place!r} cannot be {doing}: {error}\nExpected a "
            f"Hugging Face repo id, or a folder with config.json, {needed}the tokenizer or "
            f"processor files{'' if weights else '; weights are not needed'}."
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0]


def _repo_explained(place: str, revision: str | None) -> str | None:
    """What a repo is that is no model in transformers' layout; None where that cannot be told."""
    if Path(place).is_dir():
        return None  # looked at before
    from huggingface_hub import HfApi, hf_hub_download

    try:
        names = HfApi().list_repo_files(place, revision=revision)
        said = None
        if ADAPTER in names:
            said = as_json(Path(hf_hub_download(place, ADAPTER, revision=revision)))
    except Exception:  # no network, no such repo: the first error says so
        return None
    return explained(names, adapter=said)


@contextmanager
def without_bars(place: str) -> Iterator[None]:
    """Show no progress of a local folder, which opens in a blink."""
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    if Path(place).is_dir():
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            logging.enable_progress_bar()
