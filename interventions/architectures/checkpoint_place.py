"""Where a checkpoint is: a folder, or a repo of the hub."""

from pathlib import Path
from typing import Any

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
