"""Where pictures are read, in a report: the numbers that are stored, and the page's drawings."""

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from PIL import Image

import interventions as iv
from interventions.results import read_tree
from twohop.ask.questions import Questions
from twohop.protocol import Protocol
from twohop.report.examples import examples
from twohop.report.page import write_report
from twohop.report.picture_drawing import STEPS
from twohop.report.picture_lens import picture_lens, with_lens, with_maps
from twohop.running.study import Settings, study_of
from twohop.stages.resolution.picture_maps import MEASURES
from twohop.stages.resolution.pictured import read_pictures
from twohop.stages.resolution.states import own_items

LIMIT = 12


@pytest.fixture(scope="module")
def study() -> Any:
    protocol = Protocol(picture_entities=3)
    return study_of("micro-late", Settings(limit=LIMIT, protocol=protocol))


@pytest.fixture(scope="module")
def lens(study: Any) -> xr.Dataset:
    return read_pictures(study)


def test_what_is_stored_is_what_the_head_says_of_each_token(study: Any, lens: xr.Dataset) -> None:
    vlm, items = study.vlm, own_items(study.benchmark)[::4]
    assert lens["pictured"].values.tolist() == [item.entity.name for item in items]
    for row, item in enumerate(items):
        prompt = Questions(study, [item]).shown([0], marked=True)
        grid = prompt.image_grid()
        for edge in ("x0", "y0", "x1", "y1"):
            assert (
                lens["picture_box"].sel(edge=edge)[row].values.tolist()
                == grid[edge].values.tolist()
            )
        assert lens["picture_view"].values[row].tolist() == grid["kind"].values.tolist()
        for whose in ("own", "other"):
            name = item.entity.name if whose == "own" else str(lens["pictured_other"].values[row])
            ours = lens["picture_lens"].sel(whose=whose).values[row]
            before = iv.lens_map(vlm, prompt, name, component="resid_pre", roles=["image"])
            behind = iv.lens_map(vlm, prompt, name, layers=[vlm.n_layers - 1], roles=["image"])
            theirs = np.concatenate([before["probability"][0], behind["probability"][0]])
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-7)
    assert (lens["pictured_other"].values != lens["pictured"].values).all()


class _Page:
    """The parts of a page that show a lens."""

    def __init__(self, text: str) -> None:
        self.lenses = re.findall(r'<div class="lens".*?(?=<div class="said">)', text, re.S)


def colours(address: str) -> np.ndarray:
    [data] = re.findall(r"^data:image/png;base64,(.*)$", address)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_a_drawing_has_the_step_of_each_value_where_it_lies(study: Any, lens: xr.Dataset) -> None:
    [entity] = [one for one in study.benchmark.entities if one.name == lens["pictured"].values[1]]
    stored = lens.assign_coords(layer=range(lens.sizes["layer"]))
    drawn = picture_lens(stored, entity.name, study.benchmark.view(entity.code, 0))
    own = stored["picture_lens"].isel(pictured=1).sel(whose="own").values
    most = float(stored["picture_lens"].isel(pictured=1).max())
    panel = drawn.panels[0]
    assert panel.name == "lens"
    assert panel.box == (0, 0, *drawn.size)
    assert not panel.signed
    for k, (layer, figure) in enumerate(zip(drawn.layers, panel.figures, strict=True)):
        expected = np.rint(own[k] / most * STEPS).reshape(2, 2)
        [cells] = figure.cells
        assert colours(cells.source).tolist() == expected.tolist()
        assert f"Layer {k}: largest {own[k].max():.2g}" in cells.alt
        assert figure.layers == (layer,) == (k,)
    assert drawn.first == own.max(-1).argmax()
    assert f"at most {own.max():.2g}, at layer {drawn.first}" in panel.says
    assert "As a control, of “" in panel.says


def test_cells_that_are_not_alike_keep_their_shares() -> None:
    lens = xr.Dataset(
        {
            "picture_lens": (
                ("whose", "pictured", "layer", "image_token"),
                np.array([[[[1.0, 0.5, np.nan]]], [[[0.0, 0.0, np.nan]]]]),
            ),
            "picture_box": (
                ("pictured", "image_token", "edge"),
                np.array([[[0, 0, 30, 10], [30, 0, 40, 10], [np.nan] * 4]]),
            ),
            "picture_view": (("pictured", "image_token"), [["picture", "picture", ""]]),
            "picture_size": (("pictured", "side"), [[40.0, 10.0]]),
        },
        coords={
            **{"whose": ["own", "other"], "pictured": ["a"], "layer": [0]},
            **{"edge": ["x0", "y0", "x1", "y1"], "side": ["width", "height"]},
            **{
                "pictured_relation": ("pictured", ["capital"]),
                "pictured_other": ("pictured", [""]),
            },
        },
    )
    drawn = picture_lens(lens, "a", Image.new("RGB", (40, 10)))
    [panel] = drawn.panels
    [drawing] = panel.figures[0].cells
    cells = colours(drawing.source)
    assert cells.shape[1] == 96
    assert (cells[0] == STEPS).mean() == 0.75
    assert "control" not in panel.says


def test_a_report_shows_it_and_older_results_make_one_without(
    studied: Callable[..., Path], tmp_path: Path
) -> None:
    folder = studied("micro-late", limit=LIMIT) / "micro-late"
    tree, summary = read_tree(folder), json.loads((folder / "summary.json").read_text())
    benchmark = study_of("micro-late", Settings(limit=LIMIT)).benchmark
    page = (folder / "report.html").read_text(encoding="utf-8")
    lenses = _Page(page).lenses
    read = with_lens(tree["resolution"].to_dataset())
    shown = examples(tree, benchmark)
    assert len(lenses) == len(read & {example.entity for example in shown}) > 0, "each once"
    n_layers = tree["resolution"].sizes["layer"]
    mapped = with_maps(tree["resolution"].to_dataset())
    assert 0 < len(mapped) < len(read)
    for k in range(n_layers):
        assert f".lens .l{k}:checked ~ .beside .f{k}" in page
    measures = ["lens", *MEASURES]
    for k in range(len(measures)):
        assert f".lens .m{k}:checked ~ .p{k}" in page
    with_panels = 0
    for part in lenses:
        whole = 'class="m0"' in part
        with_panels += whole
        here = measures if whole else ["lens"]
        buttons = re.findall(r'<input[^>]* name="(layer-\d+)"[^>]*aria-label="(.*?)"', part)
        assert [label for _, label in buttons] == [f"layer {k}" for k in range(n_layers)]
        assert len({name for name, _ in buttons}) == 1
        assert len(re.findall(r"<input[^>]* checked>", part)) == 1 + whole
        panels = re.split(r'<div class="beside ', part)[1:]
        assert [re.findall(r'aria-label="(.*?)"', panel)[0] for panel in panels] == here
        for name, panel in zip(here, panels, strict=True):
            shown_at = [
                int(layer)
                for classes in re.findall(r'<(?:figure|p) class="(.*?)"', panel)
                for layer in re.findall(r"\bf(\d+)", classes)
            ]
            assert sorted(shown_at) == [*range(n_layers)], "each layer shows one thing"
            sides = 2 if name in ("attribution", "patched", "probe") else 1
            n_figures = panel.count("<figure")
            assert panel.count('<svg role="img" aria-label="') == sides * n_figures
            assert panel.count("printed") == min(n_figures, 12 if name == "lens" else 6)
            assert ("an illustration, not a result" in panel) == (name != "lens")
        if whole:
            labels = re.findall(r'<label for="(.*?)">(.*?)</label>', part)
            assert [label for _, label in labels] == here
            ids = re.findall(
                r'<input type="radio" class="m\d" id="(.*?)" name="(measure-\d+)"', part
            )
            assert [one for one, _ in ids] == [target for target, _ in labels]
            assert len({name for _, name in ids}) == 1
        assert {*re.findall(r'href="([^"]{5})', part)} <= {"data:", "#pict"}
    assert with_panels == len(mapped & {example.entity for example in shown}) > 0
    assert "http" not in "".join(lenses)

    old = tree["resolution"].to_dataset()
    maps = ("mapped", "region", "against", "cut_off", "which_probe", "measure", "block", "attr")
    before_maps = old.drop_vars(
        [name for name in old.variables if {*map(str, old[name].dims)} & {*maps, "picture_window"}]
    )
    assert with_maps(before_maps) == set()
    older = _with_resolution(tree, before_maps)
    text = write_report(tmp_path, older, summary, benchmark).read_text(encoding="utf-8")
    assert len(_Page(text).lenses) == len(lenses)
    assert 'class="m0"' not in text
    assert all(part.count('<div class="beside only"') == 1 for part in _Page(text).lenses)

    stored = [name for name in old.variables if str(name).startswith(("picture", "whose"))]
    older = _with_resolution(tree, old.drop_vars([*stored, "pictured"], errors="ignore"))
    assert with_lens(older["resolution"].to_dataset()) == set()
    text = write_report(tmp_path, older, summary, benchmark).read_text(encoding="utf-8")
    assert '<div class="lens"' not in text
    assert ".l0:checked" not in text
    assert '<article class="example">' in text


def _with_resolution(tree: xr.DataTree, resolution: xr.Dataset) -> xr.DataTree:
    others = {name: tree[name].to_dataset() for name in tree.children if name != "resolution"}
    return xr.DataTree.from_dict({**others, "resolution": resolution})
