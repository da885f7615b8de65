"""Where the tokens of a picture lie in it, in every family, by painting parts of pictures."""

from typing import Any

import numpy as np
import pytest
import tiny
from families import PATHS, Case
from painting import LEAST, Box, painted, reached, sides, touched, unmixed

import interventions as iv
from interventions.errors import RoleError
from interventions.model.sites import Component
from interventions.prompt.positions import Space

NEAREST = 0  # of PIL's ways to resize: no pixel is a mixture of others
SIZES = ((40, 30), (24, 60), (33, 47), (90, 20))
TWICE_RESIZED = {"idefics3", "smolvlm"}
LEAST_PIXELS = 4  # along a token's side, of what a tower is shown


def processor_of(model: iv.Model) -> Any:
    return model.processor


def text_of(case: Case, n: int = 1) -> str:
    token = case.model.image_token or ""
    return f"{token * n}what is it" if PATHS[case.name].image_first else f"Q: {token * n} what?"


def boxes_in(size: tuple[int, int], seed: int, n: int = 4) -> list[Box]:
    """Boxes all over a picture, and its corners."""
    width, height = size
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(n):
        x0, y0 = int(rng.integers(0, width - 4)), int(rng.integers(0, height - 4))
        wide, tall = int(rng.integers(4, width - x0 + 1)), int(rng.integers(4, height - y0 + 1))
        drawn.append((x0, y0, x0 + wide, y0 + tall))
    return [(0, 0, width // 3, height // 3), (width - 5, height - 5, width, height), *drawn]


def has_no_positions(case: Case) -> bool:
    if not case.model.anatomy.cross_blocks:
        return False
    regions: list[dict[str, Any]] = [
        {"box": (0, 0, 4, 4)},
        {"patch": (0, 0)},
        {"mask": np.ones((30, 40), bool)},
    ]
    for asked in regions:
        with pytest.raises(RoleError, match="cross-attention"):
            case.prompt.at("image", **asked)
    with pytest.raises(RoleError, match="cross-attention"):
        case.prompt.image_grid()
    return True


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_box_names_the_tokens_that_painting_it_reaches(
    shown: Case, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    if has_no_positions(shown):
        return
    model, text = shown.model, text_of(shown)
    monkeypatch.setattr(processor_of(model).image_processor, "resample", NEAREST)
    picture = tiny.picture(size, seed=7)
    prompt = model.prompt([text], images=[[picture]])
    grid = prompt.image_grid()
    kind = model.anatomy.model_type
    shrunk = kind == "llava_onevision"  # its model resizes the grid of features, too
    grown = 0.0 if kind not in TWICE_RESIZED else sides(grid)[0] / LEAST_PIXELS
    grown = np.where(grid["kind"] == "tile", sides(grid)[0], 0) if shrunk else grown
    boxes = boxes_in(size, seed=sum(size))
    for box, moved in zip(boxes, reached(model, text, [picture], 0, boxes), strict=True):
        try:
            named = {*prompt.at("image", box=box).index[0].tolist()}
        except RoleError as error:
            assert "names no token" in str(error)  # noqa: PT017
            named = set()
        assert named == touched(grid, box)
        assert touched(grid, box, by=1 / LEAST_PIXELS) <= moved
        assert moved <= (touched(grid, box, grown=grown) if np.any(grown) else named)


@pytest.mark.parametrize("of", ["tower", "features"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_box_names_the_tokens_of_the_tower_that_painting_it_reaches(
    shown: Case, size: tuple[int, int], of: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, text = shown.model, text_of(shown)
    if shown.model.anatomy.cross_blocks:
        text = f"{shown.model.image_token}what is it"
    monkeypatch.setattr(processor_of(model).image_processor, "resample", NEAREST)
    picture, boxes = tiny.picture(size, seed=7), boxes_in(size, seed=sum(size))
    name: Component = "vision.resid_pre" if of == "tower" else "vision.projector_out"
    rows = [[picture], *([painted(picture, box)] for box in boxes)]
    prompt = model.prompt([text] * len(rows), images=rows)
    with unmixed(model):
        [(plain, *others)] = iv.read(model, prompt, [iv.Site(name, 0)])
    grid = prompt.select([0]).image_grid(of)
    twice = model.anatomy.model_type in TWICE_RESIZED
    grown = sides(grid)[0] / (LEAST_PIXELS if of == "features" else 1) if twice else 0.0
    least = LEAST * float(plain.abs().max())
    for box, other in zip(boxes, others, strict=True):
        moved = {*((plain - other).abs().amax(-1) > least).nonzero().flatten().tolist()}
        try:
            named = {*prompt.select([0]).at("image", box=box, of=of).index[0].tolist()}
        except RoleError as error:
            assert "names no token" in str(error)  # noqa: PT017
            named = set()
        assert named == touched(grid, box)
        # Half a patch of the tower may be one pixel, which two resizes may take from elsewhere.
        share = 1 / LEAST_PIXELS if of == "features" else 0.5
        inner = -sides(grid)[0] / 2 if twice and of == "tower" else 0.0
        assert touched(grid, box, by=share, grown=inner) <= moved
        assert moved <= (touched(grid, box, grown=grown) if twice else named)


def test_the_usual_resize_blurs_a_box_by_no_more_than_its_kernel(shown: Case) -> None:
    if has_no_positions(shown):
        return
    model, text, size = shown.model, text_of(shown), (75, 64)
    picture = tiny.picture(size, seed=3)
    grid = model.prompt([text], images=[[picture]]).image_grid()
    wide, tall = sides(grid)
    # The widest kernel, of Lanczos, reaches over 3 pixels of the smaller of both pictures.
    blur = 3 * np.maximum(np.fmax(wide, tall) / LEAST_PIXELS, 1) + 1
    boxes = [(20, 18, 51, 44), (0, 0, 30, 30)]
    for box, moved in zip(boxes, reached(model, text, [picture], 0, boxes), strict=True):
        assert touched(grid, box, by=1 / LEAST_PIXELS) <= moved
        assert moved <= touched(grid, box, grown=blur)


def test_the_box_of_each_token_names_it(shown: Case) -> None:
    if has_no_positions(shown):
        return
    grid, prompt = shown.prompt.image_grid(), shown.prompt
    for row in range(len(prompt)):
        alone = prompt.select([row])
        mine = grid.isel(token=np.flatnonzero(grid["row"] == row))
        assert mine["position"].values.tolist() == prompt.roles[row]["image"]
        for token in range(mine.sizes["token"]):
            values = {name: mine[name].values[token] for name in mine.data_vars}
            if not np.isfinite(values["x0"]):
                assert values["kind"] in ("newline", "padding", "class")
                continue
            box = [float(values[edge]) for edge in ("x0", "y0", "x1", "y1")]
            position = int(values["position"])
            assert position in alone.at("image", box=box).index[0].tolist()
            place = int(values["grid_row"]), int(values["grid_column"])
            at = alone.at("image", patch=place, view=str(values["kind"]))
            assert at.single
            assert at.index.tolist() == [[position]]
            outside = alone.at("image", box=box, view=str(values["kind"]), share=0.99)
            assert outside.index.tolist() == [[position]]


def test_a_mask_names_what_its_box_does(shown: Case) -> None:
    if has_no_positions(shown):
        return
    boxes = [(7, 4, 33, 21), (2, 11, 24, 40)]
    masks = []
    for picture, (x0, y0, x1, y1) in zip(shown.pictures, boxes, strict=True):
        masks.append(np.zeros(picture.size[::-1], dtype=bool))
        masks[-1][y0:y1, x0:x1] = True
    for share in (0.0, 0.25):
        by_mask = shown.prompt.at("image", mask=masks, share=share)
        by_box = shown.prompt.at("image_0", box=boxes, share=share)
        assert by_mask.index.tolist() == by_box.index.tolist()
        assert by_mask.mask.tolist() == by_box.mask.tolist()


def test_pictures_of_a_row_are_told_apart(shown: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    if has_no_positions(shown):
        return
    model = shown.model
    monkeypatch.setattr(processor_of(model).image_processor, "resample", NEAREST)
    text, pictures, box = text_of(shown, 2), list(shown.pictures), (8, 9, 19, 22)
    prompt = model.prompt(text, images=[pictures])
    grid = prompt.image_grid()
    for which in range(2):
        named = {*prompt.at("image", box=box, picture=which).index[0].tolist()}
        assert named == {*prompt.at(f"image_{which}", box=box).index[0].tolist()}
        mine = grid.isel(token=np.flatnonzero(grid["picture"] == which))
        assert set(mine["width"].values.tolist()) == {pictures[which].size[0]}
        [moved] = reached(model, text, pictures, which, [box])
        margin = sides(mine)[0] / LEAST_PIXELS
        assert touched(mine, box, by=1 / LEAST_PIXELS) <= moved
        assert moved <= touched(mine, box, grown=margin)
    with pytest.raises(RoleError, match=r"has 2 pictures\. Say which one with picture="):
        prompt.at("image", box=box)
