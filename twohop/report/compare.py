"""The comparison of runs as one page, with its numbers and figures beside it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from interventions.errors import ResultsError
from interventions.results import SETTINGS, write_atomically
from twohop.report.comparison import comparison_table, differing
from twohop.report.comparison_figures import (
    gap_comparison,
    lateness_comparison,
    recovery_comparison,
)
from twohop.report.figures import save_figures
from twohop.report.page import Plate, embedded, environment, stylesheet

SUMMARY = "summary.json"
PAGE = "compare.html"


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
        if settings.exists():
            summary["settings"] = json.loads(settings.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultsError(f"{folder} cannot be read: {error}. Remove it and run again.") from error
    return summary


def write_comparison(folders: Sequence[Path], out: Path) -> Path:
    """Write ``compare.html``, ``compare.json`` and ``figures/`` of two or more runs.

    Parameters
    ----------
    folders : sequence of Path
        Folders of finished runs.
    out : Path
        Made if need be.

    Returns
    -------
    Path
        Of the page.

    Raises
    ------
    ResultsError
        If there are fewer than two runs, or one is not finished.
    """
    if len(folders) < 2:
        raise ResultsError(
            f"a comparison of {len(folders)} run(s). Expected two or more folders of finished runs."
        )
    summaries = [read_summary(folder) for folder in folders]
    figures = {
        "compare-gap": gap_comparison(summaries),
        "compare-lateness": lateness_comparison(summaries),
        "compare-recovery": recovery_comparison(summaries),
    }
    vectors = save_figures(out, figures)
    table = comparison_table(summaries)
    names = ", ".join(str(one["pair"]) for one in summaries)
    titles = {
        "compare-gap": "Gap between text and image, by run",
        "compare-lateness": "Lateness, by run",
        "compare-recovery": "What gives the fact back, by run",
    }
    plates = {
        name.removeprefix("compare-"): Plate(
            titles[name],
            f"Dots with intervals, one colour per run ({names}): {titles[name]}. "
            "The numbers are in the table Side by side.",
            embedded(vector),
        )
        for name, vector in vectors.items()
    }
    page = (
        environment()
        .get_template("compare.html.jinja")
        .render(
            names=names,
            summaries=summaries,
            differing=differing(summaries),
            plates=plates,
            table=table,
            style=stylesheet(),
        )
    )
    content = {"runs": summaries, "differing": differing(summaries)}
    write_atomically(out / "compare.json", json.dumps(content, indent=2, allow_nan=False).encode())
    write_atomically(out / PAGE, page.encode("utf-8"))
    return out / PAGE
