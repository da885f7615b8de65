"""VLM-backbone pairs that are built in, as data; the published ones are in `twohop.published`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from interventions.errors import InterventionsError, did_you_mean
from twohop.entities.items import Benchmark
from twohop.published import PUBLISHED, PublishedPair


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
        If there is none: the nearest key is named. If it is a published one, which the study does
        not run yet: what running it takes is said.
    """
    if key in PUBLISHED:
        raise InterventionsError(_why_not_yet(PUBLISHED[key]))
    if key not in PAIRS:
        raise InterventionsError(f"no pair {key!r}. {did_you_mean(key, (*PAIRS, *PUBLISHED))}")
    return PAIRS[key]


def _why_not_yet(pair: PublishedPair) -> str:
    models = f"{pair.vlm} ({pair.vlm_bytes / 1e9:.1f} GB at bfloat16)"
    if pair.same_weights:
        models += ", which is its own backbone,"
    else:
        models += f" and {pair.backbone} ({pair.backbone_bytes / 1e9:.1f} GB)"
    layout = ""
    if pair.layout == "mistral":
        layout = " The VLM is stored in Mistral's own format and has to be converted first."
    return (
        f"the pair {pair.key!r} is registered, but the study runs only built-in pairs so far. It "
        f"takes {models} from the Hugging Face hub, GPUs here or an NDIF deployment that hold "
        f"them, and a benchmark of items.{layout} Where it could run: twohop pairs. What runs "
        f"now: {', '.join(PAIRS)}."
    )
