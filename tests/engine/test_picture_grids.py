"""Where the tokens of pictures lie in them: known cases, settings of processors, and refusals."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from families import Case, case_of, model_of
from hostile import VALUES
from painting import reached, touched
from PIL import Image

import interventions as iv
from interventions.errors import InterventionsError, RoleError
from interventions.prompt.picture_grids import PictureGrid
from interventions.prompt.picture_regions import share_in_box, share_in_mask


def processor_of(model: iv.Model) -> Any:
    return model.processor


def grid_of(
    name: str, size: tuple[int, int], told: dict[str, Any] | None = None
) -> tuple[iv.Prompt, Any]:
    model = model_of(name)
    text = f"{model.image_token} what?"
    prompt = model.prompt(text, images=[[tiny.picture(size)]], processor_kwargs=told)
    return prompt, prompt.image_grid().to_dataframe()


def of_kind(table: Any, kind: str, *columns: str) -> list[list[float]]:
    return table[table["kind"] == kind][list(columns)].values.tolist()


def test_a_centre_crop_shows_the_middle_of_a_wide_picture() -> None:
    prompt, table = grid_of("llava", (64, 16))  # 16 x 16 pixels are cut from the middle
    assert table["x0"].min() == 24
    assert table["x1"].max() == 40
    assert table["x0"].tolist()[:5] == [24, 28, 32, 36, 24]
    assert table["y0"].tolist()[:5] == [0, 0, 0, 0, 4]
    with pytest.raises(RoleError, match=r"names no token .* show 24 to 40 across and 0 to 16 down"):
        prompt.at("image", box=(0, 0, 20, 16))


def test_anyres_has_the_whole_picture_first_and_a_newline_behind_each_line() -> None:
    _, table = grid_of("llava_next", (32, 16))  # tiles of 8: the canvas is 16 x 16, half is padding
    kinds = table["kind"].tolist()
    assert kinds == ["thumbnail"] * 4 + (["tile"] * 4 + ["newline"]) * 2
    assert of_kind(table, "thumbnail", "x0", "y0", "x1", "y1") == [
        [0, 0, 16, 8],
        [16, 0, 32, 8],
        [0, 8, 16, 16],
        [16, 8, 32, 16],
    ]
    first, second = table[4:8], table[9:13]
    assert first["x0"].tolist() == second["x0"].tolist() == [0, 8, 16, 24]
    assert (first["y0"].unique().tolist(), second["y1"].unique().tolist()) == ([0], [16])
    assert table["x0"].isna().tolist() == [kind == "newline" for kind in kinds]


def test_tiles_come_one_behind_another_and_then_the_whole() -> None:
    _, table = grid_of("internvl", (32, 16))  # two tiles of 16, each 2 x 2 tokens of 8 pixels
    assert table["kind"].tolist() == ["tile"] * 8 + ["thumbnail"] * 4
    assert table["x0"].tolist()[:8] == [0, 8, 0, 8, 16, 24, 16, 24]
    assert table["y0"].tolist()[:8] == [0, 0, 8, 8, 0, 0, 8, 8]
    assert table["grid_column"].tolist()[:8] == [0, 1, 0, 1, 2, 3, 2, 3]
    assert of_kind(table, "thumbnail", "x0", "x1")[:2] == [[0, 16], [16, 32]]


def test_a_canvas_of_tiles_that_a_picture_does_not_fill_has_padding() -> None:
    _, table = grid_of("llama4", (32, 20))  # two by two tiles of 16, of which 12 lines are empty
    padding = of_kind(table, "padding", "grid_row")
    assert padding == [[3]] * 4
    assert of_kind(table, "tile", "y1")[-1] == [20]


VARIANTS: list[tuple[str, tuple[int, int], dict[str, Any], set[str]]] = [
    ("llava", (40, 30), {"do_center_crop": False, "size": {"height": 16, "width": 16}}, set()),
    ("llava", (8, 30), {"do_resize": False}, {"padding"}),
    (
        "gemma3",
        (60, 20),
        {
            "do_pan_and_scan": True,
            "pan_and_scan_min_crop_size": 8,
            "pan_and_scan_max_num_crops": 4,
            "pan_and_scan_min_ratio_to_activate": 1.2,
        },
        {"tile", "thumbnail"},
    ),
    ("idefics3", (60, 20), {"do_image_splitting": False}, {"picture"}),
    ("internvl", (60, 20), {"crop_to_patches": False}, {"picture"}),
    ("internvl", (60, 20), {"max_patches": 6}, {"tile", "thumbnail"}),
    ("qwen2_vl", (60, 20), {"max_pixels": 8 * 64}, {"picture"}),
    ("qwen2_vl", (64, 32), {"do_resize": False}, {"picture"}),
    ("pixtral", (60, 20), {"size": {"longest_edge": 12}}, {"picture"}),
    ("llava_onevision", (60, 20), {}, {"tile", "thumbnail", "newline"}),
    ("gemma4", (60, 20), {"max_soft_tokens": 140}, {"picture"}),
]


@pytest.mark.parametrize(("name", "size", "settings", "kinds"), VARIANTS)
def test_what_a_processor_is_told_is_seen_in_the_boxes(
    name: str,
    size: tuple[int, int],
    settings: dict[str, Any],
    kinds: set[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = model_of(name)
    monkeypatch.setattr(processor_of(model).image_processor, "resample", 0)
    prompt, _ = grid_of(name, size, settings)
    grid = prompt.image_grid()
    assert kinds <= {*grid["kind"].values.tolist()}
    text = f"{model.image_token} what?"
    for x0, y0 in ((0, 0), (size[0] // 2, size[1] // 2), (size[0] - 7, 4)):
        box = x0, y0, x0 + 7, y0 + 6
        shown = tiny.picture(size)
        [moved] = reached(model, text, [shown], 0, [box], told=settings)
        margin = 7 if name == "llava_onevision" else 2 if name == "idefics3" else 0
        assert touched(grid, box, by=1 / 4) <= moved
        assert moved <= touched(grid, box, grown=margin)


def test_a_picture_that_is_padded_to_a_square_first() -> None:
    import transformers

    model = model_of("llava")
    images = transformers.LlavaImageProcessorPil(  # pyright: ignore
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, do_pad=True, resample=0
    )
    before, processor_of(model).image_processor = processor_of(model).image_processor, images
    try:
        picture = tiny.picture((64, 16))
        prompt = model.prompt(f"{model.image_token} what?", images=[[picture]])
        table = prompt.image_grid().to_dataframe()
        # 64 x 64 pixels become 4 x 4 tokens; the picture is in the lines from 24 to 40.
        assert table["kind"].tolist() == ["padding"] * 4 + ["picture"] * 8 + ["padding"] * 4
        assert table["y0"].tolist()[4:12] == [0] * 4 + [8] * 4
        text = f"{model.image_token} what?"
        [moved] = reached(model, text, [picture], 0, [(16, 0, 32, 8)])
        assert moved == {*prompt.at("image", box=(16, 0, 32, 8)).index[0].tolist()}
    finally:
        processor_of(model).image_processor = before


@pytest.fixture
def case() -> Case:
    return case_of("qwen2_vl")


def test_rows_may_name_different_numbers_of_tokens(case: Case) -> None:
    boxes = [(0, 0, 40, 30), (0, 0, 3, 3)]
    positions = case.prompt.at("image", box=boxes)
    assert positions.counts.tolist() == [20, 1]
    assert positions.ragged
    for row, box in enumerate(boxes):
        alone = case.prompt.select([row]).at("image", box=box)
        assert positions.index[row][positions.mask[row]].tolist() == alone.index[0].tolist()
    with case.model.trace(case.prompt):
        case.model.resid_post.write(0, positions, 0.0)
        logits = case.model.logits[:].save()
    assert logits.isfinite().all()


def test_an_index_counts_within_the_region(case: Case) -> None:
    box = (4, 8, 22, 25)
    named = case.prompt.at("image", box=box).index[0].tolist()
    last = case.prompt.at("image", -1, box=box)
    assert last.single
    assert last.index[0].tolist() == named[-1:]
    assert case.prompt.at("image", slice(0, 2), box=box).index[0].tolist() == named[:2]


def test_a_patch_counts_from_either_end_and_a_row_may_have_several(case: Case) -> None:
    image = case.prompt.roles[0]["image"]  # 4 lines of 5
    prompt = case.prompt.select([0])
    assert prompt.at("image", patch=(1, 2)).index.tolist() == [[image[7]]]
    assert prompt.at("image", patch=(-1, -1)).index.tolist() == [[image[19]]]
    several = prompt.at("image", patch=[[(0, 1), (2, 0)]])
    assert (several.index.tolist(), several.single) == ([[image[1], image[10]]], False)
    both = case.prompt.at("image", patch=[(0, 0), (7, 2)])
    assert both.single
    assert both.index[:, 0].tolist() == [
        roles["image"][i] for roles, i in zip(case.prompt.roles, (0, 23), strict=True)
    ]


def test_regions_survive_selecting_and_trimming(case: Case) -> None:
    box = (0, 0, 15, 15)
    trimmed, left = case.prompt.select([0]).trimmed()
    assert left > 0
    whole = case.prompt.select([0]).at("image", box=box)
    assert (trimmed.at("image", box=box).index + left).tolist() == whole.index.tolist()
    assert trimmed.image_grid()["position"].values.tolist() == trimmed.roles[0]["image"]


def test_masks_may_be_pictures_or_tensors_and_lie_between_tokens(case: Case) -> None:
    prompt = case.prompt.select([0])
    mask = np.zeros((30, 40), dtype=bool)
    mask[3, 5] = True
    expected = prompt.at("image", box=(5, 3, 6, 4)).index.tolist()
    for given in (
        mask,
        torch.from_numpy(mask),
        mask.astype(np.uint8),
        mask * 1.0,
        Image.fromarray(mask),
        Image.fromarray(mask.astype(np.uint8) * 255),
        [mask],
    ):
        assert prompt.at("image", mask=given).index.tolist() == expected


def test_the_share_in_a_mask_is_that_of_its_pixels() -> None:
    rng = np.random.default_rng(0)
    mask = rng.random((11, 17)) > 0.5
    fine = np.kron(mask, np.ones((8, 8)))  # each pixel as 8 x 8
    ends = (
        np.sort(rng.integers(0, 88, (40, 2)), axis=1) / 8,
        np.sort(rng.integers(0, 136, (40, 2)), axis=1) / 8,
    )
    (y0, y1), (x0, x1) = ends[0].T, ends[1].T
    boxes = np.stack([x0, y0, x1, y1], axis=1)[(x0 < x1) & (y0 < y1)]
    for box, share in zip(boxes, share_in_mask(boxes, mask), strict=True):
        left, top, right, bottom = (box * 8).astype(int)
        assert abs(share - fine[top:bottom, left:right].mean()) < 1e-9
    whole = np.ones((11, 17), dtype=bool)
    assert np.allclose(share_in_mask(boxes, whole), 1)
    assert np.allclose(share_in_box(boxes, (0, 0, 17, 11)), 1)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"box": (0, 0, 400, 10)}, r"has 40 x 30 pixels, upright"),
    ({"box": (10, 0, 5, 10)}, r"Expected x0 < x1"),
    ({"box": (0, 0, float("nan"), 10)}, "an end of box="),
    ({"box": [(0, 0, 5, 5)] * 3}, "3 entries for 1 rows"),
    ({"box": "all"}, "box=: got 'all'"),
    ({"box": (0, 0, 5, 5), "patch": (0, 0)}, "box and patch are given"),
    ({"mask": np.ones((40, 30), bool)}, r"has shape \[40, 30\]. Expected \[30, 40\]"),
    ({"mask": np.arange(1200).reshape(30, 40)}, "has 1200 levels"),
    ({"mask": np.zeros((30, 40), bool)}, "names no token"),
    ({"mask": Image.new("RGB", (40, 30))}, "mode RGB"),
    ({"patch": (4, 0)}, "the row of patch="),
    ({"patch": (0, -6)}, "the column of patch="),
    ({"patch": [[(0, 0), (0, 0)]]}, "names a token twice"),
    ({"patch": (0, 0), "view": "tile"}, "has no view 'tile'. It has picture"),
    ({"box": (0, 0, 5, 5), "view": "tiles"}, "view"),
    ({"box": (0, 0, 5, 5), "share": 1.5}, "share is 1.5"),
    ({"box": (0, 0, 5, 5), "picture": 1}, "has 1 picture"),
    ({"picture": 0}, "say which tokens of box="),
]


@pytest.mark.parametrize(("asked", "match"), WRONG)
def test_what_does_not_fit_is_refused(case: Case, asked: dict[str, Any], match: str) -> None:
    with pytest.raises(RoleError, match=match):
        case.prompt.select([0]).at("image", **asked)


def test_only_roles_of_images_have_regions(case: Case) -> None:
    with pytest.raises(RoleError, match="not of 'question'"):
        case.prompt.at("question", box=(0, 0, 3, 3))
    with pytest.raises(RoleError, match="is a picture already"):
        case.prompt.at("image_0", box=(0, 0, 3, 3), picture=0)


def test_a_row_without_a_picture_is_named() -> None:
    model = model_of("qwen2_vl")
    texts = [f"{model.image_token} what?", "The sea"]
    prompt = model.prompt(texts, images=[tiny.picture(), None])
    with pytest.raises(RoleError, match="row 1 has 0 pictures"):
        prompt.at("image", box=(0, 0, 3, 3))
    assert {*prompt.image_grid()["row"].values.tolist()} == {0}
    with pytest.raises(RoleError, match="no image tokens"):
        model.prompt("The sea").image_grid()


def test_a_processor_of_another_kind_is_refused_with_the_reason() -> None:
    model = model_of("llava")

    class Strange:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return self.inner(*args, **kwargs)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

    before = processor_of(model).image_processor
    try:
        processor_of(model).__dict__["image_processor"] = Strange(before)
        prompt = model.prompt(f"{model.image_token} what?", images=[[tiny.picture()]])
    finally:
        processor_of(model).__dict__["image_processor"] = before
    with pytest.raises(RoleError, match="Strange is none of the image processors that are known"):
        prompt.at("image", box=(0, 0, 3, 3))
    assert prompt.at("image", 0).single


def test_why_it_is_not_known_is_said() -> None:
    prompt = case_of("qwen2_vl").prompt.select([0])
    prompt = replace(prompt, grids=[[PictureGrid((40, 30), reason="of a resampler")]])
    with pytest.raises(
        RoleError, match="picture 0 of row 0 lie in it is not known: of a resampler"
    ):
        prompt.image_grid()
    with pytest.raises(RoleError, match="of a resampler"):
        prompt.at("image", patch=(0, 0))


@pytest.mark.parametrize("parameter", ["box", "mask", "patch", "picture", "view", "share"])
def test_any_value_gives_positions_or_an_error_that_says_why(case: Case, parameter: str) -> None:
    beside = {} if parameter in ("box", "mask", "patch") else {"box": [(0, 0, 9, 9), (0, 0, 9, 9)]}
    for value in VALUES.values():
        try:
            positions = case.prompt.at("image", **{**beside, parameter: value()})
        except InterventionsError as error:
            assert str(error)  # noqa: PT017
        else:
            assert positions.index.shape[0] == 2
