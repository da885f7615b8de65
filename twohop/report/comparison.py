"""Runs side by side: their numbers, and in what they differ besides the pair."""

from collections.abc import Mapping, Sequence
from typing import Any

from twohop.report import wording
from twohop.report.numbers import Unit, written
from twohop.report.tables import Cell, Table, at, row

LINES: tuple[tuple[str, str, Unit], ...] = (
    ("VLM names the entity", "recognised", "share"),
    ("right in text, backbone", "backbone_text", "share"),
    ("right from the image", "vlm_image", "share"),
    ("right with a blank image", "vlm_blank", "share"),
    ("gap, points", "gap_points", "points"),
    ("gap, forced choice, points", "gap_points_forced", "points"),
    ("gap, relative", "gap_relative", "share"),
    ("lateness, transfer, layers", "lateness_layers", "layers"),
    ("lateness, plain, layers", "lateness_layers_plain", "layers"),
    ("back-patching minus null", "back_patching_minus_null", "share"),
)
SAME = ("benchmark", "limit", "seed")


def comparison_table(summaries: Sequence[Mapping[str, Any]]) -> Table:
    """One column per run."""

    def line(label: str, key: str, unit: Unit = "share") -> tuple[Cell, ...]:
        cells = [Cell(written(at(one, key), unit), f"{i}/{key}") for i, one in enumerate(summaries)]
        return row(label, *cells)

    def heading(title: str) -> tuple[Cell, ...]:
        return row(title, *(Cell("") for _ in summaries))

    rows = [line(*one) for one in LINES]
    rows.append(heading("Diagnosis"))
    rows += [line(label, f"diagnosis/{key}") for key, (label, _) in wording.VERDICTS.items()]
    known = list(dict.fromkeys(arm for one in summaries for arm in one["recovered"]))
    for title, arms in wording.arm_groups(known):
        rows.append(heading(title))
        rows += [line(label, f"recovered/{arm}") for arm, label in arms.items()]
    return Table(
        "comparison",
        "Side by side",
        ("", *(str(one["pair"]) for one in summaries)),
        tuple(rows),
        "95 % intervals, bootstrap over entities. An arm that is not measured had no lost item.",
    )


def differing(summaries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sentences about runs that do not answer the same question.

    Looks at ``settings`` where a summary carries them, and at the number of items.
    """
    found = []
    for key in SAME:
        values = {
            str(one["pair"]): one["settings"].get(key) for one in summaries if "settings" in one
        }
        if len(set(values.values())) > 1:
            said = "; ".join(f"{pair}: {value}" for pair, value in values.items())
            found.append(f"The runs differ in {key} ({said}), so compare them with care.")
    sizes = {str(one["pair"]): one["n_items"] for one in summaries}
    if len({*sizes.values()}) > 1 and not found:
        said = "; ".join(f"{pair}: {n}" for pair, n in sizes.items())
        found.append(f"The runs differ in the number of items ({said}), so compare with care.")
    return found
