"""What a run was made with, as rows to be shown: models, versions, seeds, the command."""

import shlex
from collections.abc import Mapping
from typing import Any

import xarray as xr

from interventions.results import read_provenance
from twohop.pairs import DRAWINGS, PAIRS
from twohop.protocol import Protocol, documented
from twohop.published import PUBLISHED
from twohop.report.protocol_options import only_from_python, options
from twohop.stages.provenance import protocol_of, settings_of

MODEL_FACTS = ("revision", "dtype", "device", "attention")
HIDDEN = ("provenance",)
LOADING = {"dtype": "--dtype", "attention": "--attn", "quantization": "--quantization"}
"""Settings of how models are loaded, and their options on the command line."""


def provenances(tree: xr.DataTree) -> dict[str, dict[str, Any]]:
    """Provenance of every stage that carries one, with its settings beside the rest."""
    by_stage = {}
    for stage, node in tree.children.items():
        if provenance := read_provenance(node):
            settings = provenance.pop("settings", {})
            by_stage[stage] = {**settings, **provenance}
            if settings and "vlm" not in settings:
                by_stage[stage].pop("vlm", None)  # a stage of the backbone alone
    return by_stage


def flat(provenance: Mapping[str, Any]) -> dict[str, str]:
    """One provenance as lines; a model is its name and number format.

    Examples
    --------
    >>> flat({"seed": 0, "vlm": {"id": "toy", "dtype": "float32"}})
    {'seed': '0', 'vlm': 'toy (float32)'}
    """
    lines = {}
    for key, value in provenance.items():
        if isinstance(value, Mapping) and "id" in value:
            facts = [str(value[fact]) for fact in MODEL_FACTS if value.get(fact)]
            lines[key] = f"{value['id']} ({', '.join(facts)})" if facts else str(value["id"])
        elif isinstance(value, Mapping):
            lines[key] = ", ".join(f"{name} {detail}" for name, detail in value.items())
        else:
            lines[key] = "all" if key == "limit" and value is None else str(value)
    return lines


def settings_rows(tree: xr.DataTree) -> list[tuple[str, str]]:
    """Settings of the run; where stages differ, every value is shown with its stages.

    The protocol has rows of its own, :func:`protocol_rows`.
    """
    seen: dict[str, dict[str, list[str]]] = {}
    for stage, provenance in provenances(tree).items():
        provenance.pop("protocol", None)
        for key, value in flat(provenance).items():
            seen.setdefault(key, {}).setdefault(value, []).append(stage)
    return [
        (
            key,
            next(iter(values))
            if len(values) == 1
            else "; ".join(f"{value} [{', '.join(stages)}]" for value, stages in values.items()),
        )
        for key, values in seen.items()
    ]


def protocol_rows(protocol: Protocol) -> list[tuple[str, str, str]]:
    """Name, value and meaning of every number of a protocol; what is not the default says so."""
    changed = protocol.changed()
    rows = []
    for entry in documented():
        value = written_value(getattr(protocol, entry.name))
        if entry.name in changed:
            value += f" (default: {written_value(entry.default)})"
        rows.append((entry.name, value, f"{entry.says}{f' ({entry.unit})' if entry.unit else ''}"))
    return rows


def written_value(value: Any) -> str:
    """A number, or several, as text.

    Examples
    --------
    >>> written_value((0.4, 0.6)), written_value(24)
    ('0.4, 0.6', '24')
    """
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def stage_rows(tree: xr.DataTree) -> list[tuple[str, str]]:
    """What each stage was set to or settled on."""
    rows = []
    for stage, node in tree.children.items():
        parts = [
            f"{str(key).replace('_', ' ')}: {_plain(value)}"
            for key, value in node.attrs.items()
            if key not in HIDDEN
        ]
        if stage == "recovery":
            parts += _chosen(node.to_dataset())
        sizes = ", ".join(f"{n} {dim}" for dim, n in node.sizes.items())
        rows.append((stage, "; ".join([*parts, f"sizes: {sizes}"])))
    return rows


def _chosen(recovery: xr.Dataset) -> list[str]:
    """Where the recovery wrote what was chosen on other entities, for either half of them."""
    cells = [
        f"{recovery['back_place'].values[cell]}, layer {recovery['later'].values[cell]} into "
        f"{recovery['earlier'].values[cell]}"
        for cell in recovery["chosen_cell"].values
        if cell >= 0
    ]
    by_what = {
        "place": recovery["chosen_place"].values.tolist(),
        "span": recovery["chosen_span"].values.tolist(),
        "back-patching": cells,
    }
    return [
        f"{what}: {' / '.join(dict.fromkeys(map(str, chosen)))}"
        for what, chosen in by_what.items()
        if chosen
    ]


def _plain(value: Any) -> str:
    if hasattr(value, "tolist"):
        value = value.tolist()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def command(tree: xr.DataTree, summary: Mapping[str, Any]) -> str:
    """The command that makes the run again; FILE stands for a table of items of the user's."""
    run, pair = settings_of(tree), str(summary["pair"])
    registered = {published.vlm: key for key, published in PUBLISHED.items()}
    if pair in PAIRS or not run:
        parts = [pair]
    elif (key := registered.get(run["vlm"])) and pair.startswith(key):
        parts = [key, *_data(run)]
    else:
        vlm, backbone = (shlex.quote(run[role]) for role in ("vlm", "backbone"))
        parts = ["--vlm", vlm, "--backbone", backbone, *_data(run)]
    parts = ["twohop", "study", *parts, "--seed", str(run.get("seed", 0))]
    if run.get("limit") is not None:
        parts += ["--limit", str(run["limit"])]
    return " ".join([*parts, *_loading_options(tree), *options(protocol_of(tree))])


def _data(run: Mapping[str, Any]) -> list[str]:
    """Which items: a table that comes with the package by its name."""
    name = _items_of(run)
    return ["--data", name if name in DRAWINGS else "FILE"]


def _items_of(run: Mapping[str, Any]) -> str:
    return str(run["benchmark"]).rsplit(" ", 1)[0]


def _loading_options(tree: xr.DataTree) -> list[str]:
    """Options that load models as the run's were, where that is not the usual way."""
    run = settings_of(tree)
    parts = [part for key, flag in LOADING.items() if key in run for part in (flag, str(run[key]))]
    if "dtype" not in run and _in_float32_on_a_gpu(tree):
        parts += ["--dtype", "float32"]
    return parts


def _in_float32_on_a_gpu(tree: xr.DataTree) -> bool:
    records = [read_provenance(node).get("vlm", {}) for node in tree.children.values()]
    return any(
        record.get("dtype") == "torch.float32"
        and str(record.get("device", "cpu")).split(":")[0] in ("cuda", "mps", "xpu")
        for record in records
    )


def command_note(tree: xr.DataTree, summary: Mapping[str, Any]) -> str:
    """What the command leaves to the reader; empty if nothing."""
    notes = []
    if command(tree, summary).partition("--data FILE")[1]:
        name = _items_of(settings_of(tree))
        notes.append(
            f"FILE is the table of items called {name}. Give the same --map, --format and "
            "--alter-views, if there were any."
        )
    if more := only_from_python(protocol_of(tree)):
        numbers = ", ".join(f"{name}={value!r}" for name, value in more.items())
        notes.append(
            "Some numbers of the protocol were set from Python and have no option: "
            f"run_study(..., settings=Settings(protocol=Protocol({numbers}, ...)))."
        )
    return " ".join(notes)
