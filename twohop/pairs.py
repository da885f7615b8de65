"""VLM-backbone pairs, as data."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from interventions.errors import InterventionsError, did_you_mean
from twohop.entities.items import Benchmark


@dataclass(frozen=True)
class Pair:
    """A VLM and the language model it was built on.

    Attributes
    ----------
    key : str
        What the command line calls it.
    vlm, backbone : callable
        Give a local folder, making it first if need be.
    benchmark : callable
        Gives what the pair is asked.
    summary : str
        One line for lists.
    """

    key: str
    vlm: Callable[[], Path]
    backbone: Callable[[], Path]
    benchmark: Callable[[], Benchmark]
    summary: str


def _flags_vlm(key: str) -> Path:
    from twohop.flags.assemble import pair_folder

    return pair_folder("flags-naming" if key == "flags-naming" else "flags-aligned")


def _flags_backbone() -> Path:
    from twohop.flags.backbone import backbone_folder

    return backbone_folder()


def _flags_benchmark() -> Benchmark:
    from twohop.entities.flags import benchmark

    return benchmark()


def _micro_folder(key: str) -> Path:
    from twohop.micro import MICRO_KEYS, MicroKey, micro_folder

    known: dict[str, MicroKey] = {one: one for one in MICRO_KEYS}
    return micro_folder(known[key])


def _micro_benchmark() -> Benchmark:
    from twohop.entities.micro import benchmark

    return benchmark()


def _flags(key: str, summary: str) -> Pair:
    return Pair(key, lambda: _flags_vlm(key), _flags_backbone, _flags_benchmark, summary)


def _micro(key: str, summary: str) -> Pair:
    return Pair(
        key,
        lambda: _micro_folder(key),
        lambda: _micro_folder("micro-backbone"),
        _micro_benchmark,
        summary,
    )


PAIRS: dict[str, Pair] = {
    pair.key: pair
    for pair in (
        _flags("flags-naming", "SmolLM2-135M sees flags; projector trained on naming alone"),
        _flags(
            "flags-aligned", "SmolLM2-135M sees flags; projector fitted to the names' embeddings"
        ),
        _micro("micro-naming", "a micro world for tests; projector trained on naming alone"),
        _micro(
            "micro-aligned", "a micro world for tests; projector fitted to the names' embeddings"
        ),
        _micro("micro-late", "a micro world for tests; late by construction"),
    )
}


def find_pair(key: str) -> Pair:
    """Return a pair by its key.

    Raises
    ------
    InterventionsError
        If there is none; the nearest key is named.
    """
    if key not in PAIRS:
        raise InterventionsError(f"no pair {key!r}. {did_you_mean(key, PAIRS)}")
    return PAIRS[key]
