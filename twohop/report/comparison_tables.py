"""The tables of a comparison: one row per run, under the class of its architecture."""

from collections import Counter
from collections.abc import Mapping, Sequence
from math import isnan

from twohop.report import wording
from twohop.report.association import DRAWS, LEAST_PAIRS, TOO_FEW, Association
from twohop.report.comparison import Classes, Run, by_class, runs_of
from twohop.report.comparison_words import slope_text
from twohop.report.contrasts import LEVEL
from twohop.report.estimates import Unit, hundredths, p_value, rounded, written
from twohop.report.replicates import AGAINST, GAP, Pair, gap_against, pairs_of
from twohop.report.table import Cell, Summary, Table, at, count, number, row
from twohop.stages.recovery.arms import KNOWN, arm_groups

MOST_RELATIONS = 6  # side by side in a table


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
        if key.endswith("/n"):
            of_run = count(run.summary, key.removesuffix("/n"))
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
    """What comes late in every run, and what that is predicted to lose."""
    columns: dict[str, str] = {}
    for name, where in AGAINST.items():
        columns |= {wording.AGAINST[name]: where, f"n, {wording.AGAINST[name]}": f"{where}/n"}
    reasons = {
        f"{run.label}: {run.summary['not_available'][where]}"
        for run in runs_of(classes)
        for where in AGAINST.values()
        if where in run.summary["not_available"]
    }
    note = "Share of entities whose onset lies after the deadline, and the loss that the timetable "
    note += "predicts from onsets and forms; see each run’s own report."
    note += f" Not available: {'; '.join(sorted(reasons))}." if reasons else ""
    return _table("lateness", "What comes late, and predicted loss", classes, columns, note)


def pairs_table(classes: Classes) -> Table:
    """The gap of every pair of models, its runs taken together, and whether it is clear."""
    rows: list[tuple[Cell, ...]] = []
    pairs = pairs_of(classes)
    for kind in classes:
        columns = ("gap", "late", "predicted", "p", "clear", "runs")
        rows.append(row(wording.ARCHITECTURES[kind], *(Cell("") for _ in columns)))
        for pair in pairs:
            if pair.kind != kind:
                continue
            told = ("yes" if pair.loses else "no") if pair.of_runs(GAP) else "–"
            rows.append(
                row(
                    f"{pair.number}  {pair.name}",
                    Cell(_spread(pair, GAP, "points")),
                    *(Cell(_spread(pair, where, "share")) for where in AGAINST.values()),
                    Cell(bare_p(pair.p_holm)),
                    Cell(told),
                    Cell(str(len(pair.runs))),
                )
            )
    heads = ("pair", "gap, points", *wording.AGAINST.values(), "p", "clear gap", "runs")
    note = (
        "Runs of one pair are replicates: their mean, with the mean of their intervals’ ends (they "
        "are about the same entities, so their errors do not average out), and from the lowest to "
        "the highest of them. p: that there is no gap, from the interval, corrected (Holm) for all "
        f"pairs; a gap is clear below {LEVEL}."
    )
    return Table("pairs", "Pairs of models, replicates taken together", heads, tuple(rows), note)


def bare_p(p: float) -> str:
    """Write a p-value without its letter, for a column that has it; a dash where there is none.

    Examples
    --------
    >>> bare_p(0.031), bare_p(1e-9)
    ('0.031', '< 0.001')
    """
    return "–" if isnan(p) else p_value(p).removeprefix("p ").removeprefix("= ")


def _spread(pair: Pair, key: str, unit: Unit) -> str:
    """A pair's mean with its interval, and the range of its runs where they are several."""
    values = [number.value for number in pair.of_runs(key)]
    text = written(pair.mean(key), unit)
    if len(values) < 2:
        return text
    return f"{text}; runs {rounded(min(values), unit)} to {rounded(max(values), unit)}"


def association_table(classes: Classes) -> Table:
    """How the gap goes with what comes late, over pairs: all, within classes, in each class."""
    rows: list[tuple[Cell, ...]] = []
    for key, against in gap_against(pairs_of(classes)).items():
        rows.append(row(f"gap over {wording.AGAINST[key]}", *(Cell("") for _ in range(6))))
        rows.append(_association_row("all pairs", against.overall))
        if against.within is not None:
            rows.append(_association_row("within classes", against.within))
        for kind, of in against.families.items():
            rows.append(_association_row(wording.ARCHITECTURES[kind], of))
    note = (
        "Slope: points of the gap for each point, with Student’s interval; uncertainty of what is "
        "late flattens it. Rank correlations: Spearman’s with an interval (Bonett and Wright), "
        "Kendall’s without. p: two-sided, Spearman’s over permutations of the pairs (all orders of "
        f"up to eight, else {DRAWS:,} of them), corrected (Holm) for the rows that may be claimed: "
        f"those of {LEAST_PAIRS} pairs or more. Replicates count once. Pairs that share a backbone "
        "or a tower are not independent: read p as a lower bound."
    )
    heads = ("pairs", "n", "slope", "Spearman", "Kendall", "p", "claim")
    return Table("association", "Does the gap go with lateness?", heads, tuple(rows), note)


def _association_row(label: str, of: Association) -> tuple[Cell, ...]:
    if not of.slope.measured:
        return row(label, Cell(str(of.n)), *(Cell("–") for _ in range(4)), Cell(TOO_FEW))
    claim = ("shown" if of.shown else "not shown") if of.claimable else TOO_FEW
    return row(
        label,
        Cell(str(of.n)),
        Cell(slope_text(of)),
        Cell(written(of.spearman, "correlation")),
        Cell(hundredths(of.kendall.value)),
        Cell(bare_p(of.p_holm)),
        Cell(claim),
    )


def diagnosis_table(classes: Classes) -> Table:
    """Why the items of every run are lost."""
    columns = {label: f"diagnosis/{key}" for key, (label, _) in wording.VERDICTS.items()}
    note = "Share of all items; each has the first verdict that holds, from left to right."
    return _table("diagnosis", "Diagnosis", classes, columns, note)


def strata_tables(classes: Classes) -> list[Table]:
    """The gap of every run by popularity of the entities, and by relation."""
    note = "Gap in points, free answers, recognised items. "
    notes = {
        "popularity": "Quarters of the entities of each run by the data’s column popularity.",
        "relation": f"The {MOST_RELATIONS} relations that most runs have.",
    }
    titles = {"popularity": "Gap by popularity", "relation": "Gap by relation"}
    tables = []
    for by, title in titles.items():
        counts: Counter[str] = Counter()
        for run in runs_of(classes):
            counts.update([*(at(run.summary, f"gap_points_by/{by}") or {})])
        shown = (
            [*counts] if by == "popularity" else [n for n, _ in counts.most_common(MOST_RELATIONS)]
        )
        if shown:
            columns = {name: f"gap_points_by/{by}/{name}" for name in shown}
            said = note + notes[by]
            tables.append(_table(f"strata-{by}", title, classes, columns, said, n=True))
    return tables


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
    """What fits a console: gap, and what comes late."""
    columns = {
        "gap, points": "gap_points",
        "forced choice": "gap_points_forced",
        "late": AGAINST["late"],
    }
    return _table("short", "Side by side", classes, columns, "")


def comparison_tables(summaries: Sequence[Summary]) -> list[Table]:
    """Every table of a comparison."""
    classes = by_class(summaries)
    makers = (
        *(gap_table, gates_table, pairs_table, association_table, lateness_table),
        diagnosis_table,
    )
    tables = [make(classes) for make in makers]
    return [*tables, *strata_tables(classes), *recovery_tables(classes)]
