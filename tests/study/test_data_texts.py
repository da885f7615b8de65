"""Texts that look like nothing, numbers and dates: what a cell says, in every format."""

# ruff: noqa: F811 - `rows` is a fixture of test_data

import datetime as dt
import json
import uuid
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_data import Row, as_csv, as_parquet, jsonl, rows  # noqa: F401

from twohop.cli import main
from twohop.items.cells import CellError, text_of, texts_of
from twohop.items.datamap import DataMap, read_map
from twohop.items.reading import DataError, open_table
from twohop.items.validation import check

datasets = pytest.importorskip("datasets", reason="the package datasets is optional")
pa = pytest.importorskip("pyarrow", reason="pyarrow is in the extra `parquet`")
pytestmark = pytest.mark.filterwarnings("ignore:Cannot")  # dill, as datasets uses it

WORDS = ("NaN", "nan", "None", "null", "NULL", "NA", "<NA>", "Null")


@pytest.mark.parametrize("word", WORDS)
def test_where_texts_are_typed_a_text_is_a_text(tmp_path: Path, rows: list[Row], word: str) -> None:
    row = {**rows[0], "entity": word, "question": "Who?{entity}", "answers": [f"x {word}", "N/A"]}
    typed = [row, *rows[1:]]
    absolute = [{**one, "image": str(tmp_path / one["image"])} for one in typed]
    for source in (
        jsonl(tmp_path / "a.jsonl", typed),
        as_parquet(tmp_path / "a.parquet", typed),
        absolute,
        datasets.Dataset.from_list(absolute),
    ):
        found = check(source)
        assert found.report.set_aside == ()
        assert found.report.read_as_missing == {}
        assert found.items[0].entity.name == word
        assert found.items[0].answers == (f"x {word}", "N/A")


def test_csv_cannot_tell_and_says_what_it_took_for_nothing(
    tmp_path: Path, rows: list[Row], capsys: pytest.CaptureFixture[str]
) -> None:
    changes = [{"aliases": ["NaN"], "entity": "None"}, {"aliases": ["NaN"]}, {"aliases": ["NA"]}]
    for row, change in zip(rows, changes, strict=True):
        row |= change
    rows[0]["question"] = "Who is {entity}?"
    path = as_csv(tmp_path / "items.csv", rows)
    found = check(path)
    assert found.report.read_as_missing == {"entity": {"None": 1}, "aliases": {"NaN": 2}}
    assert found.report.as_dict()["read_as_missing"] == found.report.read_as_missing
    [aside] = found.report.set_aside
    assert aside.reason == "no_entity"
    assert "says 'None', which was read as nothing" in aside.said
    assert found.items[-1].entity.aliases == ("NA",), "Namibia's code is a text"
    assert main(["data", "check", str(path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "column aliases: 2 cells were read as nothing: 'NaN' x 2" in said
    assert "missing = []" in said

    kept = check(path, DataMap(missing=()))
    assert kept.report.read_as_missing == {}
    assert kept.items[0].entity.names == ("None", "NaN")
    (tmp_path / "map.toml").write_text('missing = ["NA", "None"]')
    own = check(path, read_map(tmp_path / "map.toml"))
    assert own.report.read_as_missing == {"entity": {"None": 1}, "aliases": {"NA": 1}}
    typed = check(jsonl(tmp_path / "a.jsonl", rows), read_map(tmp_path / "map.toml"))
    assert typed.report.read_as_missing == {"entity": {"None": 1}}, "where the map says so"


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("missing = 3", "'missing' is int, expected a list"),
        ("missing = [3]", "expected texts that"),
    ],
)
def test_a_map_whose_marks_are_none(tmp_path: Path, written: str, said: str) -> None:
    (tmp_path / "map.toml").write_text(written)
    with pytest.raises(DataError, match=said):
        read_map(tmp_path / "map.toml")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1889.0, "1889"),
        (-0.0, "0"),
        (1e21, "1000000000000000000000"),
        (1e23, "100000000000000000000000"),
        (1e-7, "0.0000001"),
        (0.1 + 0.2, "0.30000000000000004"),
        (np.float32(3.14), "3.14"),
        (np.float16(3.14), "3.14"),
        (np.int64(42), "42"),
        (np.uint8(7), "7"),
        (np.array(3), "3"),
        (np.str_("NaN"), "NaN"),
        (Decimal("1E+3"), "1000"),
        (Decimal("0.00"), "0"),
        (Decimal("100"), "100"),
        (np.datetime64("1789-07-14"), "1789-07-14"),
        (np.datetime64("1989-07-14T01:02:03.5", "ns"), "1989-07-14 01:02:03.500000"),
        (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
        (float("nan"), None),
        (np.float32("nan"), None),
        (np.datetime64("NaT"), None),
        (Decimal("sNaN"), None),
    ],
)
def test_scalars_are_written_as_people_write_them(value: Any, expected: str | None) -> None:
    assert text_of(value) == expected
    assert texts_of([value]) == ([] if expected is None else [expected])


@pytest.mark.parametrize(
    "value",
    [
        *(True, np.True_, float("inf"), np.float64("-inf"), Decimal("-Infinity"), 1j),
        *(dt.timedelta(1), np.timedelta64(3, "s"), b"x", {"a": 1}, {1}, np.zeros((2, 2)), object()),
        pa.scalar((1, 2, 3), pa.month_day_nano_interval()).as_py(),
        pytest.param(10**5000, id="of 5000 digits"),
    ],
)
def test_what_is_no_text_is_refused(value: Any) -> None:
    with pytest.raises(CellError):
        texts_of(value)


@settings(max_examples=300, deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(["f8", "f4", "f2"]))
def test_a_number_reads_back_as_itself_and_has_no_exponent(value: float, kind: str) -> None:
    with np.errstate(over="ignore"):
        number = np.dtype(kind).type(value)
    if not np.isfinite(number):
        return
    said = text_of(number)
    assert said is not None
    assert "e" not in said
    assert not said.endswith((".", ".0"))
    assert np.dtype(kind).type(said) == number


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(min_size=1).filter(lambda text: text.strip()), min_size=1, max_size=4))
def test_lists_of_any_text_come_back_from_json_and_parquet(texts: list[str]) -> None:
    expected = list(dict.fromkeys(" ".join(text.split()) for text in texts))
    table = open_table(json.loads(json.dumps([{"answers": texts}])))
    assert texts_of(table.rows[0].values["answers"]) == expected
    dataset = datasets.Dataset.from_dict({"answers": [texts]})
    assert texts_of(open_table(dataset).rows[0].values["answers"]) == expected


def test_numbers_and_truth_in_json_and_csv(tmp_path: Path, rows: list[Row]) -> None:
    (tmp_path / "a.jsonl").write_text(
        "".join(
            json.dumps({**row, "answers": "HERE"}).replace('"HERE"', value) + "\n"
            for row, value in zip(rows, ("true", "1e400", "[[1]]"), strict=True)
        )
    )
    said = [one.said for one in check(tmp_path / "a.jsonl").report.set_aside]
    assert "got True; write the answer as text" in said[0]
    assert "got the number inf" in said[1]
    assert "got a list" in said[2]
    for row, value in zip(rows, ("True", "inf", "1889.0"), strict=True):
        row["answers"] = value
    found = check(as_csv(tmp_path / "a.csv", rows))
    assert [item.answers for item in found.items] == [("True",), ("inf",), ("1889.0",)]
