"""What `twohop pairs` shows: the pairs built in, the published ones, and where these could run."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from twohop.pairs import PAIRS
from twohop.published import PUBLISHED
from twohop.published.hosts import Gpu, Ndif


def pairs_as_dict(
    where: Mapping[str, Sequence[str]], gpus: Sequence[Gpu], ndif: Ndif | None
) -> dict[str, Any]:
    """All of it as JSON types.

    Parameters
    ----------
    where : mapping of str to sequence of str
        Places where each published pair could run, by key.
    gpus : sequence of Gpu
        Of this machine.
    ndif : Ndif or None
        What NDIF said; None if it was not asked.

    Returns
    -------
    dict
        With `gpus` (each with `name` and `memory` in bytes), `ndif` (null if it was not asked, else
        `host`, `reached` and `statement`), `built_in` (each with `key` and `summary`) and
        `published` (each with the keys of :meth:`twohop.published.PublishedPair.record`, and
        `where`).
    """
    return {
        "gpus": [asdict(gpu) for gpu in gpus],
        "ndif": ndif and {key: getattr(ndif, key) for key in ("host", "reached", "statement")},
        "built_in": [{"key": pair.key, "summary": pair.summary} for pair in PAIRS.values()],
        "published": [
            pair.record() | {"where": list(where[key])} for key, pair in PUBLISHED.items()
        ],
    }


def print_pairs(where: Mapping[str, Sequence[str]], ndif: Ndif | None, console: Console) -> None:
    """Print a table of the built-in pairs and one of the published ones, and what NDIF said.

    Parameters
    ----------
    where : mapping of str to sequence of str
        Places where each published pair could run, by key.
    ndif : Ndif or None
        What NDIF said; None if it was not asked.
    console : Console
    """
    console.print(_built_in())
    console.print()
    console.print(_published(where))
    if ndif is not None:
        console.print(f"\n{ndif.statement}", soft_wrap=True, highlight=False)


def _built_in() -> Table:
    table = Table("built in", "what it is", box=None)
    for pair in PAIRS.values():
        table.add_row(pair.key, pair.summary)
    return table


def _published(where: Mapping[str, Sequence[str]]) -> Table:
    table = Table(box=None)
    table.add_column("published: class, VLM, backbone", no_wrap=True, min_width=45)
    for name in ("params", "bf16", "could run on"):
        table.add_column(name)
    for key, pair in PUBLISHED.items():
        backbone = "the same, text only" if pair.same_weights else pair.backbone
        table.add_row(
            f"[bold]{key}[/]  {pair.architecture}\n{pair.vlm}\n{backbone}",
            f"\n{pair.vlm_parameters}\n{pair.backbone_parameters}",
            f"\n{pair.vlm_bytes / 1e9:.0f} GB\n{pair.backbone_bytes / 1e9:.0f} GB",
            "\n" + "\n".join(where[key]),
        )
    return table
