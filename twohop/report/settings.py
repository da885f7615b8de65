"""What a run was made with, as rows to be shown: models, versions, seeds, the command."""

import json
from collections.abc import Mapping
from typing import Any

import xarray as xr

MODEL_FACTS = ("revision", "dtype", "device", "attention")
HIDDEN = ("provenance",)


def provenances(tree: xr.DataTree) -> dict[str, dict[str, Any]]:
    """Provenance of every stage that carries one."""
    found = {}
    for stage, node in tree.children.items():
        stored = node.attrs.get("provenance")
        if stored:
            one = json.loads(stored) if isinstance(stored, str) else dict(stored)
            merged = {**one.pop("settings", {}), **one}
            if merged.get("vlm") == merged.get("backbone"):
                merged.pop("vlm", None)  # a stage of the backbone alone
            found[stage] = merged
    return found


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
            lines[key] = ", ".join(f"{name} {one}" for name, one in value.items())
        else:
            lines[key] = "all" if key == "limit" and value is None else str(value)
    return lines


def settings_rows(tree: xr.DataTree) -> list[tuple[str, str]]:
    """Settings of the run; where stages differ, every value is shown with its stages."""
    seen: dict[str, dict[str, list[str]]] = {}
    for stage, provenance in provenances(tree).items():
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


def stage_rows(tree: xr.DataTree) -> list[tuple[str, str]]:
    """What each stage was set to or settled on."""
    rows = []
    for stage, node in tree.children.items():
        parts = [
            f"{str(key).replace('_', ' ')}: {_plain(value)}"
            for key, value in node.attrs.items()
            if key not in HIDDEN
        ]
        if stage == "recovery" and "chosen" in node.attrs and node.sizes.get("pair"):
            pair = int(node.attrs["chosen"])
            data = node.to_dataset()
            later, earlier = (int(data[name].values[pair]) for name in ("later", "earlier"))
            parts.append(f"back-patching: layer {later} into layer {earlier}")
        sizes = ", ".join(f"{n} {dim}" for dim, n in node.sizes.items())
        rows.append((stage, "; ".join([*parts, f"sizes: {sizes}"])))
    return rows


def _plain(value: Any) -> str:
    if hasattr(value, "tolist"):
        value = value.tolist()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def command(tree: xr.DataTree, summary: Mapping[str, Any]) -> str:
    """The command that makes the run again."""
    last = next(reversed(provenances(tree).values()), {})
    parts = ["twohop study", str(summary["pair"]), "--seed", str(last.get("seed", 0))]
    if last.get("limit") is not None:
        parts += ["--limit", str(last["limit"])]
    return " ".join(parts)
