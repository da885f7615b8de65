"""PopVQA from the hub: a sample of its entities, and no more pictures than that takes.

The whole of it, 15,395 entities with a picture each and over 100,000 questions, is more than a
first study needs. The sample is of entities, each with all its questions: their order is drawn at
random within each type (landmarks, paintings, ...), types take turns in proportion to their size,
and the first so many are taken. So a smaller sample is part of a larger one.
"""

import glob
from pathlib import Path
from typing import Any

import numpy as np

from interventions.progress import quiet_libraries
from twohop.items import popvqa
from twohop.items.rows import DataError, Row, Table

NAME, REPO = "popvqa", "idoco/PopVQA"
SAMPLE = 300
"""Entities, each with some seven questions."""
BY_HAND = (
    f"Or download it (hf download {REPO} --repo-type dataset --local-dir PopVQA) and give the "
    "folder of its two tables, --data PopVQA."
)


def is_asked(source: Any) -> bool:
    """Whether a source is ``popvqa`` or ``popvqa:N``, and no file or folder of that name."""
    if not isinstance(source, str) or Path(source).exists():
        return False
    return source == NAME or source.startswith(f"{NAME}:")


def sampled(source: str = NAME) -> Table:
    """Fetch PopVQA's tables, draw entities, and fetch their pictures.

    What was fetched before is not fetched again, and is enough where there is no network.

    Parameters
    ----------
    source : str
        ``popvqa``, or ``popvqa:N`` for N entities.

    Raises
    ------
    DataError
        If N is no number, or the data set cannot be had or holds something else.
    """
    n = _number(source)
    folder = _tables()
    table = popvqa.table(folder)
    chosen = {*drawn(popvqa.entities(folder))[:n]}
    # Rows that cannot be read are nobody's, and told with the rest.
    rows = tuple(
        row for row in table.rows if not row.values or row.values.get("entity_id") in chosen
    )
    pictures = sorted({str(row.values["image"]) for row in rows if row.values.get("image")})
    root = Path(_fetched([f"*{glob.escape(path.lstrip('./'))}" for path in pictures]))
    places = {path: _place(root, folder, path) for path in pictures}
    there = {path: place for path, place in places.items() if place is not None}
    if not there:
        raise DataError(
            f"none of the {len(pictures)} pictures of the sample is a file of {REPO}. If they are "
            f"in an archive: download it, unpack it beside the tables, and give that folder, "
            f"--data FOLDER."
        )
    return Table(NAME, tuple(_at(row, there) for row in rows), table.columns, folder, typed=False)


def _number(source: str) -> int:
    _, colon, text = source.partition(":")
    if not colon:
        return SAMPLE
    if not text.isdecimal() or int(text) < 2:
        raise DataError(
            f"--data {source}: got {text!r}; expected a number of entities, 2 or more, such as "
            f"{NAME}:{SAMPLE}."
        )
    return int(text)


def drawn(types: dict[str, str], seed: int = 0) -> list[str]:
    """Entities in the order in which they are taken.

    Parameters
    ----------
    types : dict of str to str
        The type of each entity, by its id.
    seed : int

    Examples
    --------
    >>> drawn({"Q1": "brand", "Q2": "brand", "Q3": "brand", "Q4": "brand", "Q5": "place"})[2]
    'Q5'
    """
    rng = np.random.default_rng(seed)
    order: list[tuple[float, str, str]] = []
    for kind in sorted({*types.values()}):
        members = sorted(entity for entity, own in types.items() if own == kind)
        shuffled = rng.permutation(len(members))
        order += [
            ((i + 0.5) / len(members), kind, members[which]) for i, which in enumerate(shuffled)
        ]
    return [entity for *_, entity in sorted(order)]


def _fetched(patterns: list[str]) -> str:
    """The folder of the hub's cache with the files that match."""
    from huggingface_hub import snapshot_download

    quiet_libraries()
    try:
        return snapshot_download(REPO, repo_type="dataset", allow_patterns=patterns)
    except Exception as error:  # the network's errors and the hub's are of many kinds
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{REPO} cannot be had from the hub: {first} {BY_HAND}") from error


def _tables() -> Path:
    """The folder that both tables are in."""
    root = Path(_fetched([f"*{name}" for name in popvqa.NEEDED]))
    folders = sorted({path.parent for path in root.rglob(popvqa.ENTITIES)})
    whole = [folder for folder in folders if popvqa.is_popvqa(folder)]
    if not whole:
        names = " and ".join(popvqa.NEEDED)
        raise DataError(f"{REPO} has no {names} in one folder any more. {BY_HAND}")
    return whole[0]


def _place(root: Path, folder: Path, path: str) -> Path | None:
    """Where a picture is: beside the tables, else below the root, else wherever its path ends."""
    for start in (folder, root):
        if (start / path).is_file():
            return start / path
    name = Path(path).name
    namesakes = [other for other in root.rglob(glob.escape(name)) if other.is_file()]
    return namesakes[0] if len(namesakes) == 1 else None


def _at(row: Row, there: dict[str, Path]) -> Row:
    path = str(row.values.get("image"))
    if path in there:
        row.values["image"] = str(there[path])
    return row
