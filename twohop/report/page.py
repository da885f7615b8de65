"""The report of one run: one page that needs nothing else, and its figures as files."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from interventions.storable import write_atomically
from interventions.sweeping.picture_map import OPAQUE
from twohop.items.items import Benchmark
from twohop.report.cautions import cautions
from twohop.report.estimates import bounds, estimate, short, unit_of, whole, written
from twohop.report.examples import examples
from twohop.report.figures import (
    gates_figure,
    outcomes_figure,
    recovery_figure,
    save_figures,
)
from twohop.report.layers import last_block, resolution_figure, windows_figure
from twohop.report.maps import attribution_methods, map_figure
from twohop.report.picture_drawing import gradient
from twohop.report.sentence import verdict_sentence
from twohop.report.settings import (
    command,
    command_note,
    protocol_rows,
    settings_rows,
    stage_rows,
)
from twohop.report.summary import whole_arm
from twohop.report.table import at
from twohop.report.tables import all_tables
from twohop.report.timetable import calibration_figure, timetable_figure
from twohop.stages.provenance import protocol_of
from twohop.statistics import estimates

REPORT = "report.html"


@dataclass(frozen=True)
class Plate:
    """A figure as the page shows it."""

    title: str
    alt: str
    source: str


@dataclass(frozen=True)
class KeyNumber:
    """A number at the top of the page."""

    label: str
    value: str
    detail: str
    key: str


def environment() -> Environment:
    """Templates of the reports; everything that is put in is escaped."""
    jinja = Environment(
        loader=PackageLoader("twohop.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    jinja.filters["unbroken"] = unbroken
    jinja.filters["per_cent"] = per_cent
    return jinja


def unbroken(text: str) -> str:
    """A sentence in which no line ends between a number and its per cent sign.

    Examples
    --------
    >>> unbroken("7 % of them") == "7\u00a0% of them"
    True
    """
    return text.replace(" %", "\u00a0%")


def per_cent(share: float) -> str:
    """A share in words of a text.

    Examples
    --------
    >>> per_cent(0.9), per_cent(0.125)
    ('90 %', '12.5 %')
    """
    return f"{100 * share:g} %"


def embedded(vector: bytes) -> str:
    """Return an SVG as a data URI."""
    return "data:image/svg+xml;base64," + base64.b64encode(vector).decode()


def key_number(summary: Mapping[str, Any], key: str, label: str, *, reason: str = "") -> KeyNumber:
    """A number of the summary, large, with its interval beneath, or why there is none."""
    number, unit = estimate(at(summary, key)), unit_of(key)
    value = short(number, unit)
    if number.measured:
        detail = f"{bounds(number, unit)}, n\u00a0{number.n}"
    elif key in summary["not_available"]:
        value, detail = "not available", summary["not_available"][key]
    elif key.startswith("recovered"):
        detail = "no item was lost"
    else:
        detail = reason
    return KeyNumber(label, value, detail, key)


def key_numbers(summary: Mapping[str, Any]) -> list[KeyNumber]:
    """The numbers that the verdict rests on."""
    return [
        key_number(summary, "backbone_text", "right in text, backbone"),
        key_number(summary, "vlm_image", "right from the image"),
        key_number(
            summary,
            "gap_points",
            "gap, points (recognised)",
            reason="no item was recognised",
        ),
        key_number(summary, "lateness/late", "entities too late"),
        key_number(summary, "diagnosis/late", "items lost for that"),
        key_number(summary, f"net/{whole_arm(summary)}/closed", "of the gap closed by transplant"),
    ]


def draw(tree: xr.DataTree, summary: Mapping[str, Any]) -> dict[str, Figure]:
    """Every figure of a run, by name."""
    return {
        "gates": gates_figure(summary),
        "outcomes": outcomes_figure(summary),
        "resolution": resolution_figure(tree, summary),
        "windows": windows_figure(tree),
        "timetable": timetable_figure(tree),
        "calibration": calibration_figure(tree),
        "map": map_figure(tree, protocol=protocol_of(tree)),
        "recovery": recovery_figure(summary),
    }


def alt_texts(summary: Mapping[str, Any]) -> dict[str, str]:
    """What each figure shows, in words, for those who do not see it."""
    end, out = (
        whole(block) if (block := last_block(summary, window)) >= 0 else "none"
        for window in ("enrichment_end", "readout_end")
    )
    late = written(summary["lateness"]["late"])
    return {
        "gates": "Dots with intervals: accuracy at each gate, free answer and forced choice. "
        "The numbers are in the table Accuracy at each gate.",
        "outcomes": "Two stacked bars: classes of image answers, and diagnosis of every item. "
        "The numbers are in the tables below.",
        "resolution": "Curves over layers: share of entities that probes read from the image "
        "tokens, "
        f"and of answers read at the last token. Entities read only too late: {late}.",
        "windows": "Curves over blocks of the backbone: answers that survive ablation from a block "
        "up, "
        f"and answers that follow a swap after it. Last blocks of the windows: {end} and {out}.",
        "timetable": "Heat map of the text run: share of answers recalled if the entity, in the "
        "form it has after so many blocks, comes only after so many; and the deadline of each "
        "form. Over it, when the VLM's entities can be read, and in which form. The numbers are in "
        "the table When the entity comes.",
        "calibration": "Share of items lost against the share that the timetable expects, with "
        "intervals. The numbers are in the table What the timetable predicts.",
        "map": "Heat maps, backbone in text, VLM with images on items it answers right and on lost "
        "ones: component and token role by blocks, logits that a patch brings over. Left exact, by "
        "windows of blocks; right estimated by attribution, block by block. Their agreement, and "
        "the similarity of the maps, are in the tables below.",
        "recovery": "Bars with intervals: share of lost items right again under each arm. "
        "The numbers are in the table Lost items that come back.",
    }


TITLES = {
    "gates": "Accuracy at each gate",
    "outcomes": "Classes of answers, and why items are lost",
    "resolution": "Where the entity and the answer can be read",
    "windows": "Where the backbone recalls",
    "timetable": "By when the entity must come, and when it comes",
    "calibration": "What the timetable predicts",
    "map": "Which sublayers carry the fact",
    "recovery": "What gives the fact back",
}


def write_report(
    folder: Path, tree: xr.DataTree, summary: Mapping[str, Any], benchmark: Benchmark
) -> Path:
    """Write ``report.html`` and ``figures/`` into a run's folder.

    Parameters
    ----------
    folder : Path
    tree : DataTree
        Of the finished run.
    summary : mapping
        From :func:`twohop.report.summary.summarise`; or as it was stored.
    benchmark : Benchmark
        For the pictures, the questions and its notes.

    Returns
    -------
    Path
        Of the page. It is one file, with figures and styles inside.
    """
    summary = estimates(summary)
    vectors = save_figures(folder, draw(tree, summary))
    alts = alt_texts(summary)
    plates = {
        name: Plate(TITLES[name], alts[name], embedded(vector)) for name, vector in vectors.items()
    }
    shown = examples(tree, benchmark)
    lenses = [example.lens for example in shown if example.lens]
    layers = max((lens.layers[-1] + 1 for lens in lenses), default=0)
    measures = max((len(lens.panels) for lens in lenses), default=0)
    page = (
        environment()
        .get_template("report.html.jinja")
        .render(
            pair=summary["pair"],
            verdict=summary.get("verdict") or verdict_sentence(summary),
            summary=summary,
            numbers=key_numbers(summary),
            cautions=cautions(tree, summary),
            plates=plates,
            tables=all_tables(summary),
            examples=shown,
            benchmark=benchmark,
            vlm_text=str(tree["recall"].attrs.get("vlm_text", "")),
            answer_relation=tree["resolution"].attrs["answer_relation"],
            settings=settings_rows(tree),
            protocol=protocol_of(tree),
            protocol_rows=protocol_rows(protocol_of(tree)),
            stages=stage_rows(tree),
            attribution_methods=attribution_methods(tree),
            command=command(tree, summary),
            command_note=command_note(tree, summary),
            lens_measures=measures,
            style=stylesheet(lens_layers=layers, lens_measures=measures),
        )
    )
    path = folder / REPORT
    write_atomically(path, page.encode("utf-8"))
    return path


def stylesheet(*, lens_layers: int = 0, lens_measures: int = 0) -> Markup:
    """The pages' style sheet.

    Parameters
    ----------
    lens_layers : int
        Most layers of the lens of an example.
    lens_measures : int
        Most measures of one, the lens among them.
    """
    template = environment().get_template("style.css.jinja")
    return Markup(
        template.render(
            lens_scale=gradient(),
            lens_signed=gradient(signed=True),
            lens_opacity=OPAQUE,
            lens_layers=lens_layers,
            lens_measures=lens_measures,
        )
    )
