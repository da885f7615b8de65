"""What cells mean by their types: in data sets and Parquet, in JSON, and in CSV, which has none."""

# ruff: noqa: F811 - `rows` is a fixture of test_data

import datetime as dt
import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_data import Row, as_csv, as_parquet, drawn, encoded, jsonl, rows  # noqa: F401

from twohop.items.reading import DataError
from twohop.items.validation import Checked, check

datasets = pytest.importorskip("datasets", reason="the package datasets is optional")
pa = pytest.importorskip("pyarrow", reason="pyarrow is in the extra `parquet`")
pytestmark = pytest.mark.filterwarnings("ignore:Cannot")  # dill, as datasets uses it

RED = encoded(Image.new("RGB", (8, 6), "red"))
NAMES = ("France", "Peru", "Ghana")


def made(column: str, values: list[Any], feature: Any) -> Any:
    """A data set of good rows, but for one column."""
    features = datasets.Features(
        {
            "entity": datasets.Value("string"),
            "question": datasets.Value("string"),
            "image": datasets.Image(),
            "answers": datasets.Value("string"),
            column: feature,
        }
    )
    found: dict[str, list[Any]] = {
        "entity": [*NAMES[: len(values)]],
        "question": [f"What is the capital of {name}?" for name in NAMES[: len(values)]],
        "image": [{"bytes": RED, "path": None}] * len(values),
        "answers": ["Paris", "Lima", "Accra"][: len(values)],
        column: values,
    }
    return datasets.Dataset.from_dict(found, features=features)


def read(dataset: Any, folder: Path) -> Iterator[Checked]:
    """The same data set in every way that it can be given."""
    yield check(dataset)
    yield check(dataset.to_iterable_dataset())
    folder.mkdir(exist_ok=True)
    if "Translation" not in str(dataset.features):  # these, the library cannot save
        dataset.save_to_disk(str(folder / "saved"))
        yield check(folder / "saved")
    table = dataset.with_format("arrow")[:]
    pa.parquet.write_table(table, folder / "items.parquet")
    yield check(folder / "items.parquet")


V = datasets.Value
TEXTS: dict[str, tuple[Any, Any, tuple[str, ...]]] = {
    "string": (V("string"), "NaN", ("NaN",)),
    "large_string": (V("large_string"), "None", ("None",)),
    "string_view": (V("string_view"), "NA", ("NA",)),
    **{f"int{n}": (V(f"int{n}"), -7, ("-7",)) for n in (8, 16, 32, 64)},
    **{f"uint{n}": (V(f"uint{n}"), 200, ("200",)) for n in (8, 16, 32)},
    "uint64": (V("uint64"), 2**62, ("4611686018427387904",)),
    "float16": (V("float16"), 0.1, ("0.1",)),
    "float32": (V("float32"), 0.1, ("0.1",)),
    "float32 whole": (V("float32"), 1889.0, ("1889",)),
    "float64": (V("float64"), 1e23, ("100000000000000000000000",)),
    "date32": (V("date32"), dt.date(1789, 7, 14), ("1789-07-14",)),
    "date64": (V("date64"), dt.date(1789, 7, 14), ("1789-07-14",)),
    "timestamp": (V("timestamp[s]"), dt.datetime(1789, 7, 14), ("1789-07-14",)),
    "timestamp ns": (
        V("timestamp[ns]"),
        dt.datetime(1989, 7, 14, 1, 2, 3),
        ("1989-07-14 01:02:03",),
    ),
    "timestamp tz": (
        V("timestamp[us, tz=Europe/Paris]"),
        dt.datetime(2020, 7, 1, tzinfo=dt.UTC),
        ("2020-07-01 02:00:00+02:00",),
    ),
    "time32": (V("time32[s]"), dt.time(1, 2, 3), ("01:02:03",)),
    "time64": (V("time64[us]"), dt.time(1, 2), ("01:02:00",)),
    "decimal128": (V("decimal128(10, 2)"), Decimal("1889.50"), ("1889.5",)),
    "decimal256": (V("decimal256(50, 3)"), Decimal("1889.000"), ("1889",)),
    "label": (datasets.ClassLabel(names=["Lima", "Paris"]), 1, ("Paris",)),
    "labels": (
        datasets.List(datasets.ClassLabel(names=["Lima", "Paris"])),
        [1, 0],
        ("Paris", "Lima"),
    ),
    "List": (datasets.List(V("string")), ["Paris", "NaN"], ("Paris", "NaN")),
    "List of float32": (datasets.List(V("float32")), [0.1, 2.0], ("0.1", "2")),
    "List of two": (datasets.List(V("int8"), length=2), [1, 2], ("1", "2")),
    "LargeList": (datasets.LargeList(V("string")), ["Paris", None], ("Paris",)),
    "Sequence": (datasets.Sequence(V("string")), ["Paris"], ("Paris",)),
    "Json text": (datasets.Json(), "Paris", ("Paris",)),
    "Json list": (datasets.Json(), ["Paris", 1889.0], ("Paris", "1889")),
    "Json number in text": (datasets.Json(), "a|b", ("a", "b")),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_a_feature_that_is_text_is_read_as_what_it_means(kind: str, tmp_path: Path) -> None:
    feature, value, expected = TEXTS[kind]
    for found in read(made("answers", [value], feature), tmp_path):
        assert [item.answers for item in found.items] == [expected]
        assert found.report.set_aside == ()


NO_TEXT: dict[str, tuple[Any, Any, str]] = {
    "bool": (V("bool"), True, "got True; write the answer as text, such as yes"),
    "binary": (V("binary"), b"Paris", "got bytes; store them as text"),
    "large_binary": (V("large_binary"), b"Paris", "got bytes"),
    "duration": (V("duration[s]"), dt.timedelta(days=2), "a span of time; write it as text"),
    "infinite": (V("float64"), float("inf"), "got the number inf"),
    "struct": (
        {"en": V("string"), "n": V("int8")},
        {"en": "Paris", "n": 1},
        r"an object \(en, n\)",
    ),
    "list of lists": (
        datasets.List(datasets.List(V("string"))),
        [["Paris"]],
        r"a list \(list\) of 1",
    ),
    "list of structs": (datasets.List({"en": V("string")}), [{"en": "Paris"}], r"an object \(en\)"),
    "Array2D": (datasets.Array2D((2, 2), "int8"), [[1, 2], [3, 4]], r"a list \(\w+\) of 2"),
    "Translation": (
        datasets.Translation(["en", "fr"]),
        {"en": "Paris", "fr": "Paris"},
        r"a translation \(en, fr\); make a column",
    ),
    "several translations": (
        datasets.TranslationVariableLanguages(languages=["en", "fr"]),
        {"en": "Paris", "fr": ["Paris", "Lutèce"]},
        r"a translation \(en, fr\)",
    ),
    "Json object": (datasets.Json(), {"en": "Paris"}, r"an object \(en\)"),
    "Image": (datasets.Image(), {"bytes": RED, "path": None}, r"an object \(bytes, path\)"),
    "Pdf": (datasets.Pdf(decode=False), {"bytes": b"%PDF", "path": None}, "a document"),
    "Nifti": (datasets.Nifti(decode=False), {"bytes": b"x", "path": None}, "a scan"),
    "Video": (datasets.Video(decode=False), {"bytes": b"x", "path": None}, "a video"),
    "Mesh": (datasets.Mesh(decode=False), {"bytes": b"x", "path": "a.glb"}, "a shape in space"),
}


@pytest.mark.parametrize("kind", NO_TEXT)
def test_a_feature_that_is_no_text_sets_its_row_aside_with_the_reason(
    kind: str, tmp_path: Path
) -> None:
    feature, value, said = NO_TEXT[kind]
    for found in read(made("answers", [value, None], feature), tmp_path):
        wrong, empty = found.report.set_aside
        assert (wrong.place, wrong.reason, empty.reason) == ("row 1", "wrong_type", "no_answer")
        assert re.search(said, wrong.said)


@pytest.mark.parametrize("kind", ["Pdf", "Nifti", "Video", "Audio", "Translation"])
def test_what_is_no_picture_is_refused_as_one_row_by_row(kind: str, tmp_path: Path) -> None:
    stored = {"bytes": b"x", "path": "x.wav"}
    if kind == "Translation":
        dataset = made("image", [{"en": "a"}, None], datasets.Translation(["en"]))
    else:
        dataset = made("image", [stored, None], {"bytes": V("binary"), "path": V("string")})
        dataset = dataset.cast_column("image", getattr(datasets, kind)(decode=False))
    for found in read(dataset, tmp_path):
        wrong, empty = found.report.set_aside
        assert (wrong.reason, empty.reason) == ("wrong_type", "no_image")
        assert "an image cannot be a" in wrong.said


def pictures_of(found: Checked) -> list[Any]:
    return [np.asarray(one.open()) for some in found.pictures.values() for one in some]


def test_one_broken_picture_breaks_its_row_or_is_left_out_of_its_list(tmp_path: Path) -> None:
    good, broken = {"bytes": RED, "path": None}, {"bytes": b"broken", "path": None}
    for decode in (True, False):
        one = made("image", [good, broken, good], datasets.Image(decode=decode))
        for found in read(one, tmp_path / f"one {decode}"):
            assert {s.place: s.reason for s in found.report.set_aside} == {
                "row 2": "image_unreadable"
            }
            assert [item.entity.name for item in found.items] == ["France", "Ghana"]
        values = [[good, broken, None], [broken], [good]]
        several = made("image", values, datasets.List(datasets.Image(decode=decode)))
        for found in read(several, tmp_path / f"several {decode}"):
            assert {s.place: s.reason for s in found.report.set_aside} == {
                "row 2": "image_unreadable"
            }
            assert [flag.kind for flag in found.report.flags] == ["dropped_image"]
            assert found.report.pictures == (1, 1)


def test_broken_pictures_that_nothing_maps_to_break_nothing(tmp_path: Path) -> None:
    nested = {"views": datasets.List(datasets.Image()), "sound": V("binary")}
    value = {"views": [{"bytes": b"broken", "path": None}], "sound": b"x"}
    for found in read(made("extra", [value], nested), tmp_path):
        assert found.report.set_aside == ()
        assert "extra" in {flag.where for flag in found.report.flags}


def test_the_mode_of_a_picture_is_kept(tmp_path: Path) -> None:
    for found in read(
        made("image", [{"bytes": RED, "path": None}], datasets.Image(mode="L")), tmp_path
    ):
        [pixels] = pictures_of(found)
        assert pixels[0, 0].tolist() == [76, 76, 76]
    odd = made("image", [{"bytes": RED, "path": None}], datasets.Image(mode="nothing"))
    for found in read(odd, tmp_path / "odd"):
        assert found.report.reasons() == {"image_unreadable": 1}
        assert "the mode 'nothing'" in found.report.set_aside[0].said


def test_arrays_are_pictures_or_refused(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    shown = made("image", [pixels], datasets.Array3D((6, 8, 3), "uint8"))
    for found in read(shown, tmp_path / "3"):
        assert np.array_equal(pictures_of(found)[0], pixels)
    tall = made("image", [pixels], datasets.Array3D((None, 8, 3), "uint8"))
    assert np.array_equal(pictures_of(check(tall))[0], pixels)
    grey = made("image", [pixels[..., 0]], datasets.Array2D((6, 8), "uint8"))
    for found in read(grey, tmp_path / "2"):
        assert np.array_equal(pictures_of(found)[0][..., 1], pixels[..., 0])
    for name, feature, value in (
        ("first", datasets.Array3D((3, 6, 8), "uint8"), pixels.transpose(2, 0, 1)),
        ("wide", datasets.Array3D((6, 8, 3), "float32"), pixels.astype("float32")),
        ("4", datasets.Array4D((1, 6, 8, 3), "uint8"), pixels[None]),
    ):
        for found in read(made("image", [value], feature), tmp_path / name):
            assert np.array_equal(pictures_of(found)[0], pixels)
    for name, feature, value, reason in (
        ("5", datasets.Array5D((1, 1, 6, 8, 3), "uint8"), pixels[None, None], "wrong_type"),
        ("minus", datasets.Array3D((6, 8, 3), "float32"), pixels / 255 - 0.5, "image_values"),
        ("thin", datasets.Array3D((6, 8, 5), "uint8"), np.zeros((6, 8, 5)), "image_shape"),
    ):
        for found in read(made("image", [value], feature), tmp_path / name):
            assert found.report.reasons() == {reason: 1}


def test_pixels_in_memory_are_a_picture(rows: list[Row]) -> None:
    pixels = np.zeros((6, 8, 4), np.uint8)
    found = check([{**row, "image": pixels} for row in rows])
    assert found.report.usable == 3
    mask = np.arange(8) * np.ones((6, 1)) > 3
    [shown] = pictures_of(check([{**rows[0], "image": mask}]))
    assert np.array_equal(shown[..., 0], mask * 255)


def test_a_label_that_is_unknown_or_has_no_name(tmp_path: Path) -> None:
    label = datasets.ClassLabel(names=["Paris"])
    dataset = made("answers", [0, -1, None], label)
    for found in read(dataset, tmp_path):
        assert found.report.reasons() == {"no_answer": 2}
        assert found.items[0].answers == ("Paris",)
    table = dataset.with_format("arrow")[:]
    at = table.column_names.index("answers")
    odd = table.set_column(at, table.schema.field(at), pa.array([0, 7, 0]))
    pa.parquet.write_table(odd, tmp_path / "odd.parquet")
    [aside] = check(tmp_path / "odd.parquet").report.set_aside
    assert (aside.place, aside.reason) == ("row 2", "wrong_type")
    assert "label 7, and the feature names 1" in aside.said


def test_an_iterable_data_set_without_features(rows: list[Row], tmp_path: Path) -> None:
    full = [{**row, "image": str(tmp_path / row["image"])} for row in rows]

    def stream() -> Iterator[Any]:
        yield full[0] | {"image": Image.open(full[0]["image"])}
        yield full[1] | {"image": b"broken"}
        yield {"entity": "NaN"}
        yield full[2] | {"image": [full[2]["image"], b"broken"], "answers": np.array([1889.0])}

    dataset = datasets.IterableDataset.from_generator(stream)
    assert dataset.features is None
    found = check(dataset)
    assert found.report.reasons() == {"image_unreadable": 1, "no_answer": 1}
    assert [item.answers for item in found.items] == [("Paris", "Paris City"), ("1889",)]
    assert check(datasets.IterableDatasetDict({"train": dataset})).report.usable == 2


def test_an_iterable_data_set_whose_rows_do_not_fit_its_features(rows: list[Row]) -> None:
    features = datasets.Features(
        {
            "entity": V("string"),
            "question": V("string"),
            "image": datasets.Image(),
            "answers": datasets.ClassLabel(names=["Lima", "Paris"]),
        }
    )

    def stream() -> Iterator[Row]:
        for row, label in zip(rows, (1, 9, "Accra"), strict=True):
            kept = {name: row[name] for name in ("entity", "question")}
            yield {**kept, "answers": label, "image": {"bytes": RED, "path": None}}

    found = check(datasets.IterableDataset.from_generator(stream, features=features))
    assert {one.place: one.reason for one in found.report.set_aside} == {"row 2": "wrong_type"}
    assert [item.answers for item in found.items] == [("Paris",), ("Accra",)]

    def breaks() -> Iterator[Row]:
        yield rows[0]
        raise OSError("the line is cut")

    with pytest.raises(DataError, match="breaks off after row 1: the line is cut"):
        check(datasets.IterableDataset.from_generator(breaks))


def test_a_data_set_with_a_format_or_a_transform(tmp_path: Path) -> None:
    dataset = made("answers", ["Paris", "Lima"], V("string"))
    for kind in ("numpy", "torch", "pandas", "arrow"):
        assert check(dataset.with_format(kind)).report.usable == 2

    def changed(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        if batch["answers"] == ["Lima"]:
            raise ValueError("not this one")
        return {**batch, "answers": [one.upper() for one in batch["answers"]]}

    found = check(dataset.with_transform(changed))
    assert [item.answers for item in found.items] == [("PARIS",)]
    assert "transform fails: not this one" in found.report.set_aside[0].said


def test_a_transform_leaves_labels_and_short_numbers_what_they_mean(tmp_path: Path) -> None:
    label = datasets.ClassLabel(names=["Lima", "Paris"])
    for feature, values, expected in (
        (label, [1, -1], [("Paris",), ()]),
        (datasets.List(label), [[1, 0], [0]], [("Paris", "Lima"), ("Lima",)]),
        (datasets.Value("float32"), [0.1, 2.0], [("0.1",), ("2",)]),
    ):
        dataset = made("answers", values, feature)
        left = check(dataset.with_transform(lambda batch: batch))
        for checked in (check(dataset), left):
            assert [item.answers for item in checked.items] == [one for one in expected if one]
    changed = made("answers", [1, 0], label).with_transform(
        lambda batch: {**batch, "answers": ["Lyon"] * len(batch["answers"])}
    )
    assert [item.answers for item in check(changed).items] == [("Lyon",), ("Lyon",)]


def test_values_that_python_cannot_hold_break_their_row_only(tmp_path: Path) -> None:
    table = made("answers", ["a", "b", "c"], V("string")).with_format("arrow")[:]
    at = table.column_names.index("answers")
    far = pa.array([10**15, 0, None], pa.timestamp("s"))
    text = pa.StringArray.from_buffers(3, *pa.array([b"Lima", b"P\xe9", b"x"]).buffers()[1:])
    listed = pa.ListArray.from_arrays([0, 2, 3, 3], text)
    for values, reasons in (
        (far, {"row 1": "wrong_type", "row 3": "no_answer"}),
        (text, {"row 2": "bad_encoding"}),
        (listed, {"row 1": "bad_encoding", "row 3": "no_answer"}),
        (pa.array(["x", "y", "x"]).dictionary_encode(), {}),
        (pa.array([{"x": 1}] * 3), dict.fromkeys(("row 1", "row 2", "row 3"), "wrong_type")),
        (pa.nulls(3), dict.fromkeys(("row 1", "row 2", "row 3"), "no_answer")),
    ):
        changed = table.set_column(at, pa.field("answers", values.type), values)
        path = tmp_path / "odd.parquet"
        pa.parquet.write_table(changed.replace_schema_metadata(None), path)
        found = {one.place: one.reason for one in check(path).report.set_aside}
        assert found == reasons


def test_a_parquet_file_with_two_columns_of_one_name(tmp_path: Path) -> None:
    table = pa.table([pa.array(["a"]), pa.array(["b"])], names=["entity", "entity"])
    pa.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="column 'entity' occurs twice"):
        check(tmp_path / "a.parquet")
