"""VLM-backbone pairs: built in, published (`twohop.published`), or the user's own."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from interventions.errors import InterventionsError, did_you_mean
from twohop.flags.items import DRAWINGS, MAP, table
from twohop.items.formats import CHAT, COMPLETION, QA, Kind, PromptFormat, writer_for
from twohop.items.items import Benchmark
from twohop.items.validation import Checked, check
from twohop.protocol import DEFAULT, Protocol
from twohop.published import PUBLISHED, PublishedPair

if TYPE_CHECKING:
    from twohop.flags.assemble import PairKey as FlagsKey

ASSEMBLED = re.compile(r"-[0-9a-f]{12}$")  # what the name of a folder made here ends with


@dataclass(frozen=True)
class Pair:
    """A VLM and the language model it was built on.

    Attributes
    ----------
    key : str
        What the command line calls it.
    vlm, backbone : callable
        Give where the model is: a folder of the built-in ones as a Path, made first if need be;
        a repo id, or another folder, as text.
    benchmark : callable
        Gives what the pair is asked.
    summary : str
        One line for lists.
    format : PromptFormat, optional
        How it is asked about items of a file. None: see
        :func:`twohop.items.formats.writer_for`.
    served : (str, str), optional
        What a server calls the VLM and the backbone, where that is not where they are here.
    """

    key: str
    vlm: Callable[[], Path | str]
    backbone: Callable[[], Path | str]
    benchmark: Callable[[], Benchmark]
    summary: str
    format: PromptFormat | None = None
    served: tuple[str, str] | None = None

    def places(self, *, remote: bool | str = False) -> dict[str, Path | str]:
        """Where ``vlm`` and ``backbone`` are: here, or by the names that a server finds them by."""
        if remote and self.served is not None:
            return dict(zip(("vlm", "backbone"), self.served, strict=True))
        return {"vlm": self.vlm(), "backbone": self.backbone()}


def _flags_vlm(key: "FlagsKey") -> Path:
    from twohop.flags.assemble import pair_folder

    return pair_folder(key)


def _flags_backbone() -> Path:
    from twohop.flags.backbone import backbone_folder

    return backbone_folder()


def _flags_benchmark(key: "FlagsKey") -> Benchmark:
    from twohop.flags.benchmark import benchmark

    return benchmark(key)


def _micro_folder(key: str) -> Path:
    from twohop.micro import MICRO_KEYS, MicroKey, micro_folder

    known: dict[str, MicroKey] = {name: name for name in MICRO_KEYS}
    return micro_folder(known[key])


def _micro_benchmark() -> Benchmark:
    from twohop.micro.benchmark import benchmark

    return benchmark()


def _flags(key: "FlagsKey", summary: str) -> Pair:
    return Pair(
        key,
        lambda: _flags_vlm(key),
        _flags_backbone,
        lambda: _flags_benchmark(key),
        summary,
        QA,
        served=(f"twohop/{key}", "twohop/flags-backbone"),
    )


def _micro(key: str, summary: str) -> Pair:
    return Pair(
        key,
        lambda: _micro_folder(key),
        lambda: _micro_folder("micro-backbone"),
        _micro_benchmark,
        summary,
        COMPLETION,
        served=(f"twohop/{key}", "twohop/micro-backbone"),
    )


PAIRS: dict[str, Pair] = {
    pair.key: pair
    for pair in (
        _flags("flags-naming", "SmolLM2-135M sees flags; projector trained on naming alone"),
        _flags(
            "flags-aligned", "SmolLM2-135M sees flags; projector fitted to the names' embeddings"
        ),
        _flags(
            "flags-late", "SmolLM2-135M sees 80 flags; the country is formed too late for recall"
        ),
        _micro("micro-naming", "a micro world for tests; projector trained on naming alone"),
        _micro(
            "micro-aligned", "a micro world for tests; projector fitted to the names' embeddings"
        ),
        _micro("micro-late", "a micro world for tests; late by construction"),
    )
}


def find_pair(key: str, *, has_data: bool = False) -> Pair:
    """Return a pair by its key.

    Parameters
    ----------
    key : str
    has_data : bool
        Whether it will be given items (:func:`with_data`): the published pairs have none of their
        own, and are asked about flags else (:func:`with_flags`).

    Raises
    ------
    InterventionsError
        If there is none: the nearest key is named. If it is a published one that has to be
        converted first.
    """
    if key in PUBLISHED:
        published = PUBLISHED[key]
        if published.layout == "mistral":
            raise InterventionsError(_unconverted(published))
        pair = replace(own_pair(published.vlm, published.backbone), key=key, format=CHAT)
        return pair if has_data else with_flags(pair, protocol=DEFAULT)
    if key not in PAIRS:
        raise InterventionsError(f"no pair {key!r}. {did_you_mean(key, (*PAIRS, *PUBLISHED))}")
    return PAIRS[key]


def own_pair(vlm: str | Path, backbone: str | Path) -> Pair:
    """Return the pair of any VLM and its backbone, each a repo id or a folder.

    It has no items of its own, see :func:`with_data` and :func:`with_flags`.

    Examples
    --------
    >>> own_pair("llava-hf/llava-1.5-7b-hf", "lmsys/vicuna-7b-v1.5").key
    'llava-1.5-7b-hf'
    """

    def needs_data() -> Benchmark:
        raise InterventionsError(
            f"{vlm} on {backbone}: no items were given. Ask about those of a file, "
            "with_data(pair, check(FILE)), or about flags, with_flags(pair)."
        )

    seen, read = _place(vlm), _place(backbone)
    return Pair(
        key=Path(seen).name,
        vlm=lambda: seen,
        backbone=lambda: read,
        benchmark=needs_data,
        summary=f"{vlm} on {backbone}",
    )


def _place(model: str | Path) -> str:
    """A repo id, or a folder's whole path: two folders may have the same name."""
    return str(Path(model).resolve()) if Path(model).is_dir() else str(model)


def model_name(place: Path | str) -> str:
    """What results call a model: a built-in one by its name, another by where it is.

    Which weights are there is told apart by :class:`twohop.running.checkpoints.Digests`.
    """
    return ASSEMBLED.sub("", place.name) if isinstance(place, Path) else place


def with_data(
    pair: Pair,
    checked: Checked,
    *,
    format: Kind | None = None,
    alter_views: bool = False,
    protocol: Protocol = DEFAULT,
) -> Pair:
    """Return the pair, asked about the items of a file.

    Parameters
    ----------
    pair : Pair
    checked : Checked
        From :func:`twohop.items.validation.check`.
    format : {"chat", "qa", "completion"}, optional
        How it is asked; default: what the map says, else what the pair declares.
    alter_views : bool
        Let altered copies stand in where an entity has fewer pictures than the probes need.
    protocol : Protocol
        Says which pictures they need.

    Raises
    ------
    DataError
        If no item is usable, or entities have too few pictures.
    """
    from twohop.items.benchmark import check_views, data_benchmark

    checked.needed()
    if not alter_views:
        check_views(checked, needed=max(protocol.test_view, *protocol.fit_views) + 1)
    kind = format or checked.map.format
    chosen = PromptFormat(kind) if kind else pair.format

    def benchmark() -> Benchmark:
        wordings = [*checked.wordings.values(), checked.map.naming]
        writer = writer_for(chosen, pair.vlm(), wordings)
        written = writer.format
        written = replace(
            written,
            stop=checked.map.stop or written.stop,
            brief=checked.map.brief_in(written.kind),
        )
        writer = replace(writer, format=written)
        return data_benchmark(checked, writer, alter_views=alter_views)

    key = f"{pair.key}-{checked.report.source}"
    return replace(pair, key=key, benchmark=benchmark, format=chosen)


def with_flags(
    pair: Pair,
    name: str = "flags",
    *,
    format: Kind | None = None,
    protocol: Protocol = DEFAULT,
) -> Pair:
    """Return the pair, asked about the flags that come with the package.

    Parameters
    ----------
    pair : Pair
    name : str
        A key of :data:`twohop.flags.items.DRAWINGS`: ``"flags"``, or ``"flags-iso"`` for the same
        in other drawings.
    format, protocol
        As in :func:`with_data`.

    Examples
    --------
    >>> pair = with_flags(own_pair("llava-hf/llava-1.5-7b-hf", "lmsys/vicuna-7b-v1.5"))
    >>> pair.key
    'llava-1.5-7b-hf-flags'
    """
    return with_data(pair, flags_checked(name), format=format, protocol=protocol)


@cache
def flags_checked(name: str) -> Checked:
    """The flags, checked as a file of items is; read once.

    Raises
    ------
    InterventionsError
        If no table of flags has this name.
    """
    if name not in DRAWINGS:
        raise InterventionsError(f"no flags {name!r}. {did_you_mean(name, DRAWINGS)}")
    return check(table(name), MAP)


def published_bytes(repo: str) -> int | None:
    """Bytes of a published model's checkpoint, by its repo id; None of others."""
    for pair in PUBLISHED.values():
        if repo in (pair.vlm, pair.backbone):
            return pair.vlm_bytes if repo == pair.vlm else pair.backbone_bytes
    return None


def what_it_takes(pair: PublishedPair) -> str:
    """What is downloaded to run a published pair, and where it could run."""
    models = f"{pair.vlm} ({pair.vlm_bytes / 1e9:.1f} GB at bfloat16)"
    if pair.same_weights:
        models += ", which is its own backbone,"
    else:
        models += f" and {pair.backbone} ({pair.backbone_bytes / 1e9:.1f} GB)"
    return (
        f"{pair.key} takes {models} from the Hugging Face hub, and GPUs here that hold them. Where "
        "it could run: twohop pairs."
    )


def _unconverted(pair: PublishedPair) -> str:
    return (
        f"the pair {pair.key!r} is registered, but the VLM is stored in Mistral's own format: "
        "convert it first, then give its folder, --vlm FOLDER --backbone MODEL: "
        f"`hf download {pair.vlm} --local-dir RAW`, `interventions convert RAW FOLDER`. "
        f"{what_it_takes(pair)} What runs as it is: {', '.join(PAIRS)}."
    )
