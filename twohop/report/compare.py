"""The comparison of runs as one page, with its numbers and figures beside it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from interventions.errors import ResultsError
from interventions.results import SETTINGS
from interventions.storable import write_atomically
from twohop.report.comparison import by_class, differing
from twohop.report.comparison_figures import (
    gap_comparison,
    lateness_comparison,
    recovery_comparison,
)
from twohop.report.comparison_scatter import gap_scatter
from twohop.report.comparison_tables import comparison_tables
from twohop.report.comparison_words import lead_sentence
from twohop.report.figures import save_figures
from twohop.report.page import Plate, embedded, environment, stylesheet
from twohop.report.replicates import gap_against, pairs_of

SUMMARY = "summary.json"
PAGE = "compare.html"
SHOWN = {
    "gap": (
        "Gap between text and image, by class",
        "Dots with intervals: gap of each run in points, free answer and forced choice, grouped by "
        "class of architecture. The numbers are in the table Gap by class.",
    ),
    "against": (
        "Gap against what comes late, and against predicted loss",
        "Two scatters with intervals: gap of each pair of models in points over the share of its "
        "entities that are late, and over the loss that the timetable predicts, one colour and "
        "marker per class, runs of one pair taken together. The numbers are in the tables Pairs of "
        "models and Does the gap go with lateness?",
    ),
    "lateness": (
        "What comes late, by class",
        "Dots with intervals: share of entities late in each run, and the loss that the timetable "
        "predicts. The numbers are in the table What comes late, and predicted loss.",
    ),
    "recovery": (
        "What gives the fact back, by class",
        "Bars with intervals in nine panels, one per arm: share of lost items of each run that are "
        "right again. The numbers are in the tables below it.",
    ),
}
"""Title and alternative text of each figure."""


def read_summary(folder: Path) -> dict[str, Any]:
    """Read a run's summary, with its settings under ``settings``.

    Raises
    ------
    ResultsError
        If the run is not finished, or its files cannot be read.
    """
    path = folder / SUMMARY
    if not path.exists():
        raise ResultsError(
            f"{folder} holds no {SUMMARY}. Expected the folder of a finished run. "
            f"Finish it: twohop study {folder.name} --out {folder.parent}"
        )
    settings = folder / SETTINGS
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        summary.setdefault("not_available", {})  # older versions have no such numbers
        if settings.exists():
            summary["settings"] = json.loads(settings.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultsError(f"{folder} cannot be read: {error}. Remove it and run again.") from error
    return summary


def write_comparison(folders: Sequence[Path], out: Path) -> Path:
    """Write ``compare.html``, ``compare.json`` and ``figures/`` of any number of runs.

    Parameters
    ----------
    folders : sequence of Path
        Folders of finished runs.
    out : Path
        Made if need be.

    Returns
    -------
    Path
        Of the page. It is one file, with figures and styles inside.

    Raises
    ------
    ResultsError
        If there is no run, or one is not finished.
    """
    if not folders:
        raise ResultsError("a comparison of no run. Expected one or more folders of finished runs.")
    summaries = [read_summary(folder) for folder in folders]
    classes = by_class(summaries)
    figures = {
        "gap": gap_comparison(classes),
        "against": gap_scatter(classes),
        "lateness": lateness_comparison(classes),
        "recovery": recovery_comparison(classes),
    }
    vectors = save_figures(out, {f"compare-{name}": figure for name, figure in figures.items()})
    plates = {name: Plate(*SHOWN[name], embedded(vectors[f"compare-{name}"])) for name in figures}
    tables = comparison_tables(summaries)
    different = differing(summaries)
    page = (
        environment()
        .get_template("compare.html.jinja")
        .render(
            lead=lead_sentence(summaries),
            classes=classes,
            differing=different,
            plates=plates,
            tables={table.name: table for table in tables},
            recovered=[table for table in tables if table.name.startswith("recovered")],
            strata=[table for table in tables if table.name.startswith("strata")],
            command=f"twohop compare {' '.join(folder.name for folder in folders)}",
            style=stylesheet(),
        )
    )
    pairs = pairs_of(classes)
    content = {
        "runs": summaries,
        "differing": different,
        "pairs": [pair.as_dict() for pair in pairs],
        "gap_against": {key: against.as_dict() for key, against in gap_against(pairs).items()},
    }
    write_atomically(out / "compare.json", json.dumps(content, indent=2, allow_nan=False).encode())
    write_atomically(out / PAGE, page.encode("utf-8"))
    return out / PAGE
