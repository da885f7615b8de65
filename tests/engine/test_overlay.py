"""Values of image tokens on their picture: which cell has which value, and the page."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import xarray as xr
from families import model_of
from hostile import VALUES
from PIL import Image

import interventions as iv
from interventions.errors import InterventionsError, ResultsError
from interventions.sweeping.overlay_page import STEPS

SIZE = (40, 30)
LAYERS = [0, 2, 3]


def prompt_of(name: str, n: int = 1) -> tuple[iv.Prompt, Image.Image]:
    model, picture = model_of(name), tiny.picture(SIZE)
    text = f"{model.image_token} what?"
    return model.prompt([text] * n, images=[[picture]] * n), picture


def made_up(prompt: iv.Prompt) -> xr.Dataset:
    """A value for every image token of a row, another in each layer."""
    grid = prompt.image_grid()
    position = grid["position"].values
    values = np.random.default_rng(0).normal(size=(len(LAYERS), len(position)))
    return xr.Dataset(
        {"value": (("layer", "position"), values, {"units": "nats"})},
        coords={"layer": LAYERS, "position": position},
    )


def value_at(drawing: iv.PictureMap, x: Any, y: Any) -> np.ndarray:
    j = int(np.searchsorted(drawing.x, x, side="right")) - 1
    i = int(np.searchsorted(drawing.y, y, side="right")) - 1
    return drawing.values[..., i, j]


@pytest.mark.parametrize(
    "name", ["llava", "llava_next", "internvl", "qwen2_vl", "llama4", "gemma4"]
)
@pytest.mark.parametrize("view", [None, "thumbnail"])
def test_each_token_has_its_value_where_it_lies(name: str, view: str | None) -> None:
    prompt, picture = prompt_of(name)
    grid, dataset = prompt.image_grid().to_dataframe(), made_up(prompt)
    kinds = {*grid["kind"]}
    if view and view not in kinds:
        with pytest.raises(ResultsError, match="no value at a token of a thumbnail"):
            iv.overlay(dataset, picture, grid=prompt, view=view)
        return
    drawing = iv.overlay(dataset, picture, grid=prompt, view=view)
    shown = view or ("tile" if "tile" in kinds else "picture")
    for _, token in grid[grid["kind"] == shown].iterrows():
        middle = (token["x0"] + token["x1"]) / 2, (token["y0"] + token["y1"]) / 2
        expected = dataset["value"].sel(position=token["position"]).values
        assert value_at(drawing, *middle).tolist() == [expected.tolist()]
    panels = [axes for axes in drawing.figure().axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == [f"layer {layer}" for layer in LAYERS]
    for k, axes in enumerate(panels):
        [mesh] = axes.collections
        drawn: Any = np.ma.filled(np.ma.asarray(mesh.get_array()), np.nan)
        assert np.array_equal(drawn, drawing.values[0, k], equal_nan=True)
        assert axes.get_xlim() == (0, SIZE[0])
        assert axes.get_ylim() == (SIZE[1], 0)


def test_a_sweep_and_an_attribution_say_where_their_columns_lie() -> None:
    model = model_of("llava_next")
    prompt, picture = prompt_of("llava_next")
    grid = prompt.image_grid()
    asked: dict[str, Any] = {"answers": "the", "components": "resid_post", "layers": [0, 1]}
    swept = iv.sweep(model, prompt, 0.0, roles=["image"], each=True, **asked)
    scores = iv.attribute(
        model, prompt, 0.0, metric="logprob", verify=False, **{**asked, "layers": [0, 1]}
    )
    by_name = iv.sweep(model, prompt, 0.0, roles=["image[5]", "last"], **asked)
    for name in ("x0", "y0", "x1", "y1", "picture", "grid_row", "grid_column", "width"):
        assert np.array_equal(swept[name].values[0], grid[name].values, equal_nan=True)
    assert swept["kind"].values[0].tolist() == grid["kind"].values.tolist()
    tokens = prompt.roles[0]["image"]
    assert np.array_equal(scores["x0"].values[0, tokens], grid["x0"].values, equal_nan=True)
    assert np.isnan(np.delete(scores["x0"].values[0], tokens)).all()
    assert by_name["x0"].values[0].tolist()[0] == grid["x0"].values[5]
    assert np.isnan(by_name["x0"].values[0, 1])
    change = (swept["logprob"] - swept["clean_logprob"]).values[0, 0]
    drawing = iv.overlay(swept, picture)
    for token in range(grid.sizes["token"]):
        if str(grid["kind"].values[token]) == "tile":
            mine = {name: float(grid[name].values[token]) for name in ("x0", "y0", "x1", "y1")}
            at = value_at(drawing, (mine["x0"] + mine["x1"]) / 2, (mine["y0"] + mine["y1"]) / 2)
            assert at[0].tolist() == change[:, token].tolist()
    titles = [axes.get_title() for axes in iv.heatmap(scores, over=picture).axes]
    assert titles[:2] == ["layer 0", "layer 1"]
    assert "NOT VERIFIED" in iv.heatmap(scores, over=picture).get_supxlabel()
    assert iv.overlay(by_name, picture).values.shape[-2:] == (1, 1)


class _Page(HTMLParser):
    """Elements of a page with their attributes, in order."""

    def __init__(self, text: str) -> None:
        HTMLParser.__init__(self)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def of(self, tag: str, **wanted: str) -> list[dict[str, str | None]]:
        return [
            attrs
            for name, attrs in self.elements
            if name == tag and all(attrs.get(key) == value for key, value in wanted.items())
        ]


def test_the_page_stands_alone_and_has_every_layer(tmp_path: Path) -> None:
    prompt, picture = prompt_of("llava_next")
    title = "<script>alert(1)</script> & more"
    drawing = iv.overlay(made_up(prompt), picture, grid=prompt, title=title)
    path = drawing.save(tmp_path / "map.html")
    text = path.read_text(encoding="utf-8")
    page = _Page(text)
    assert "alert(1)</script> &" not in text
    links = [
        attrs.get(key) for _, attrs in page.elements for key in ("src", "href") if key in attrs
    ]
    assert links
    assert all(link and (link == "#picture" or link.startswith("data:image/png")) for link in links)
    assert "http" not in text
    sections = page.of("section", **{"class": "layer"})
    assert [section["aria-label"] for section in sections] == [f"layer {n}" for n in LAYERS]
    assert ["hidden" in section for section in sections] == [False, True, True]
    [slider] = page.of("input", type="range")
    assert (slider["min"], slider["max"], slider["value"]) == ("0", "2", "0")
    assert slider["aria-valuetext"] == "layer 0"
    assert page.of("label", **{"for": "slider"})
    assert all(drawn["aria-label"] for drawn in page.of("svg", role="img"))
    printed = text[text.index("@media print") :]
    assert ".layer[hidden]{display:block}" in printed
    assert "ArrowRight" in text


def test_the_page_has_the_colour_of_each_value(tmp_path: Path) -> None:
    prompt, picture = prompt_of("internvl")
    drawing = iv.overlay(made_up(prompt), picture, grid=prompt)
    text = drawing.html()
    held = re.search(r'id="data">(.*?)</script>', text, re.S)
    assert held
    data = json.loads(held[1])
    assert np.allclose(data["values"], drawing.values, rtol=1e-3)
    drawn = re.findall(r'<g class="cells">(.*?)</g>', text)
    assert len(drawn) == len(LAYERS)
    fills = dict(re.findall(r"\.c(\d+)\{fill:(#\w+)\}", text))
    assert fills["0"] != fills[str(2 * STEPS)]
    for k, cells in enumerate(drawn):
        steps = np.full(drawing.values.shape[-2:], -1)
        for step, moves in re.findall(r'<path class="c(\d+)" d="(.*?)"/>', cells):
            for x, y in re.findall(r"M([\d.]+) ([\d.]+)H", moves):
                i = int(np.abs(drawing.y - float(y)).argmin())
                j = int(np.abs(drawing.x - float(x)).argmin())
                assert steps[i, j] == -1
                steps[i, j] = int(step)
        expected = np.rint((drawing.values[0, k] / drawing.most + 1) * STEPS)
        assert steps.tolist() == expected.tolist()


def test_a_figure_is_saved_by_its_ending(tmp_path: Path) -> None:
    prompt, picture = prompt_of("llava")
    drawing = iv.overlay(made_up(prompt), picture, grid=prompt)
    assert drawing.save(tmp_path / "map.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ResultsError, match="cannot be written"):
        drawing.save(tmp_path / "map.nonsense")
    with pytest.raises(ResultsError, match="cannot be written"):
        drawing.save(tmp_path / "no" / "map.html")


def test_routes_are_laid_over_as_the_messages_say() -> None:
    prompt, picture = prompt_of("llava")
    model = model_of("llava")
    asked: dict[str, Any] = {"answers": "Paris", "progress": False}
    routes = ["image -> last", "question -> last"]
    whole = iv.knockout_curves(model, prompt, routes, **asked)
    advice = r"image\[0\] -> last.* grid=prompt.image_grid\(\); or regions, with grid="
    for grid in (None, prompt):
        with pytest.raises(ResultsError, match=f"routes.* Cut single image tokens.*{advice}"):
            iv.overlay(whole, picture, grid=grid)
    single = iv.knockout_curves(model, prompt, [f"image[{i}] -> last" for i in (0, 1)], **asked)
    tokens = iv.overlay(single, picture, grid=prompt.image_grid())
    assert np.isfinite(tokens.values[0, 0]).sum() == 2
    box = (0, 0, 20, 20)
    cat = {"cat": (prompt.at("image", box=box), "last")}
    region = iv.overlay(iv.knockout_curves(model, prompt, cat, **asked), picture, grid={"cat": box})
    assert np.isfinite(region.values).any()


def test_what_cannot_be_laid_over_a_picture_is_refused() -> None:
    prompt, picture = prompt_of("llava", 2)
    one_row = made_up(prompt.select([0]))
    wrong: list[tuple[Any, str]] = [
        (lambda: iv.overlay(one_row, picture), "does not say where in a picture"),
        (lambda: iv.overlay(one_row, picture, grid=prompt), r"has rows \[0, 1\]"),
        (
            lambda: iv.overlay(one_row, tiny.picture((30, 40)), grid=prompt.select([0])),
            "over= has 30 x 40 pixels, upright, and the picture that was shown 40 x 30",
        ),
        (
            lambda: iv.overlay(one_row, picture, grid=prompt.select([0]), picture=1),
            "no value is at a token of picture 1",
        ),
        (
            lambda: iv.overlay(
                one_row.assign_coords(position=["a"] * one_row.sizes["position"]),
                picture,
                grid=prompt.select([0]),
            ),
            "no positions of a prompt",
        ),
        (lambda: iv.overlay(xr.Dataset(), picture), "has no map"),
        (lambda: iv.overlay(one_row, picture, grid=xr.Dataset()), "grid= has no"),
        (lambda: iv.heatmap(one_row, grid=prompt), "with over= only"),
        (
            lambda: iv.overlay(
                xr.concat([one_row, one_row], "item").assign_coords(item=[0, 1]),
                picture,
                grid=prompt,
            ),
            "there are 2 items",
        ),
    ]
    for call, match in wrong:
        with pytest.raises(ResultsError, match=match):
            call()


def test_values_of_several_pictures_are_told_apart() -> None:
    model = model_of("qwen2_vl")
    pictures = [tiny.picture(SIZE), tiny.picture((24, 60), seed=1)]
    token = model.image_token
    prompt = model.prompt(f"{token} and {token}", images=[pictures])
    dataset = made_up(prompt)
    with pytest.raises(ResultsError, match=r"values are of pictures \[0, 1\]"):
        iv.overlay(dataset, pictures[0], grid=prompt)
    for which, picture in enumerate(pictures):
        drawing = iv.overlay(dataset, picture, grid=prompt, picture=which)
        n = len(prompt.roles[0][f"image_{which}"])
        assert np.isfinite(drawing.values[0, 0]).sum() == n


@pytest.mark.parametrize(
    "parameter", ["dataset", "over", "variable", "grid", "item", "picture", "view", "title"]
)
def test_any_value_gives_a_map_or_an_error_that_says_why(parameter: str) -> None:
    prompt, picture = prompt_of("llava")
    usual = {"dataset": made_up(prompt), "over": picture, "grid": prompt}
    for value in VALUES.values():
        try:
            drawing = iv.overlay(**{**usual, parameter: value()})  # pyright: ignore
        except InterventionsError as error:
            assert str(error)  # noqa: PT017
        else:
            assert np.isfinite(drawing.most)
