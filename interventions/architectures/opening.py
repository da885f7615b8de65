"""What is checked before a checkpoint is opened, by ``load`` and ``interventions doctor`` alike."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError

from safetensors import SafetensorError

from interventions.architectures.access import refusal
from interventions.architectures.contents import ADAPTER, as_json, check_contents, explained
from interventions.architectures.unknown_types import unknown_type
from interventions.errors import LoadError


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
