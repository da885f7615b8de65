"""The tables of a comparison: one row per run, under the class of its architecture."""

from collections.abc import Mapping, Sequence

from twohop.report import wording
from twohop.report.comparison import Classes, Run, by_class, runs_of
from twohop.report.estimates import whole
from twohop.report.tables import Cell, Summary, Table, count, number, row
from twohop.stages.recovery.arms import KNOWN, arm_groups


def _table(
    name: str,
    title: str,
    classes: Classes,
    columns: Mapping[str, str],
    note: str,
    *,
    n: bool = False,
) -> Table:
    """One row per run under its class; a column is a number of the summary, or its count."""

    def cell(run: Run, key: str) -> Cell:
        group, _, arm = key.partition("/")
        if arm == "n":
            of_run = count(run.summary, group)
        else:
            key = f"{group}/{run.arm(arm)}" if group == "recovered" else key
            of_run = number(run.summary, key, n=n)
        return Cell(of_run.text, f"{run.index}/{of_run.key}")

    rows: list[tuple[Cell, ...]] = []
    for kind, runs in classes.items():
        rows.append(row(wording.ARCHITECTURES[kind], *(Cell("") for _ in columns)))
        for run in runs:
            rows.append(row(run.name, *(cell(run, key) for key in columns.values())))
    return Table(name, title, ("run", *columns), tuple(rows), note)


def gap_table(classes: Classes) -> Table:
    """The gap of every run."""
    columns = {
        "backbone, text": "backbone_text",
        "VLM, image": "vlm_image",
        "gap, points": "gap_points",
        "forced choice, points": "gap_points_forced",
        "gap, relative": "gap_relative",
        "n": "gap_points/n",
    }
    note = "Brackets: 95 %, over the entities of each run. The gap, and n, are of recognised items."
    return _table("gap", "Gap by class", classes, columns, note)


def gates_table(classes: Classes) -> Table:
    """Accuracy of every run at each gate."""
    columns = {label: gate for gate, label in wording.GATES.items()} | {"n": "vlm_image/n"}
    return _table("gates", "Accuracy at each gate, free answers", classes, columns, "All items.")


def lateness_table(classes: Classes) -> Table:
    """Lateness of every run, in layers and against the depth of the model."""
    columns = {
        "lateness, transfer probe": "lateness_layers",
        "lateness, plain probe": "lateness_layers_plain",
        "entities": "lateness_layers/n",
    }
    base = _table("lateness", "Lateness, in layers", classes, columns, "")
    runs = {run.name: run.summary for run in runs_of(classes)}
    rows = []
    for cells in base.rows:
        summary = runs.get(cells[0].text)
        depth = Cell(f"{summary['n_layers']}" if summary else "")
        part = Cell(part_of_depth(summary) if summary else "")
        rows.append((*cells[:2], part, *cells[2:], depth))
    reasons = {
        f"{run.label}: {run.summary['not_available']['lateness_layers']}"
        for run in runs_of(classes)
        if "lateness_layers" in run.summary["not_available"]
    }
    note = "Positive is too late. Blocks are the backbone’s; compare models of different depth in "
    note += "per cent of them. Not measured: the probe does not clearly beat shuffled labels."
    note += f" Not available: {'; '.join(sorted(reasons))}." if reasons else ""
    heads = (*base.columns[:2], "of the depth", *base.columns[2:], "blocks")
    return Table(base.name, base.title, heads, tuple(rows), note)


def part_of_depth(summary: Summary) -> str:
    """Lateness in per cent of the number of blocks, with its sign; a dash where there is none."""
    late = summary["lateness_layers"]
    if not late.measured:
        return "–"
    return f"{whole(100 * late.value / summary['n_layers'])}\u00a0%"


def diagnosis_table(classes: Classes) -> Table:
    """Why the items of every run are lost."""
    columns = {label: f"diagnosis/{key}" for key, (label, _) in wording.VERDICTS.items()}
    note = "Share of all items; each has the first verdict that holds, from left to right."
    return _table("diagnosis", "Diagnosis", classes, columns, note)


def recovery_tables(classes: Classes) -> list[Table]:
    """Recovery of every run, one table for each group of arms."""
    runs = runs_of(classes)
    arms: dict[str, None] = dict.fromkeys(
        KNOWN[name].in_place_of or name if name in KNOWN else name
        for run in runs
        for name in run.summary["recovered"]
    )
    note = "Share of the tried lost items that are answered right; n is how many were tried."
    if any(run.arm(arm) != arm for run in runs for arm in arms):
        note += " Where an image has no tokens, the question’s take the place of its tokens."
    tables = []
    for title, group in arm_groups([*arms]):
        columns = {label: f"recovered/{arm}" for arm, label in group.items()}
        tables.append(_table(f"recovered-{len(tables)}", title, classes, columns, note, n=True))
    return tables


def short_table(classes: Classes) -> Table:
    """What fits a console: gap and lateness."""
    columns = {
        "gap, points": "gap_points",
        "forced choice": "gap_points_forced",
        "lateness, layers": "lateness_layers",
    }
    return _table("short", "Side by side", classes, columns, "")


def comparison_tables(summaries: Sequence[Summary]) -> list[Table]:
    """Every table of a comparison."""
    classes = by_class(summaries)
    makers = (gap_table, gates_table, lateness_table, diagnosis_table)
    return [*(make(classes) for make in makers), *recovery_tables(classes)]
