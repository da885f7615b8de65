"""Files of text that are almost what they should be: no row is lost, and none is misread."""

# ruff: noqa: F811 - `rows` is a fixture of test_data

import json
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_data import Row, as_csv, jsonl, rows  # noqa: F401

from twohop.items.cells import texts_of
from twohop.items.reading import DataError, open_table
from twohop.items.validation import check


@pytest.mark.parametrize("ending", [".csv", ".tsv"])
@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_whatever_stands_between_cells(tmp_path: Path, ending: str, mark: str) -> None:
    path = tmp_path / f"items{ending}"
    path.write_text(f"entity{mark}answers\nFrance{mark}Paris\n")
    table = open_table(path)
    assert table.columns == ("entity", "answers")
    assert table.rows[0].values == {"entity": "France", "answers": "Paris"}


def test_blank_lines_before_the_header(tmp_path: Path, rows: list[Row]) -> None:
    path = as_csv(tmp_path / "items.csv", rows)
    path.write_text("\n \n" + path.read_text())
    report = check(path).report
    assert (report.usable, report.rows) == (3, 3)


LINE = st.lists(st.sampled_from(["France", "Peru", "", " ", "Łódź"]), min_size=2, max_size=2)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(LINE, min_size=1, max_size=8), st.integers(0, 7))
def test_a_quote_that_is_never_closed_costs_its_own_line(
    tmp_path: Path, lines: list[list[str]], which: int
) -> None:
    which %= len(lines)
    texts = [",".join(cells) for cells in lines]
    texts[which] = '"' + texts[which]
    path = tmp_path / "items.csv"
    path.write_text("\n".join(["entity,answers", *texts]) + "\n")
    read = open_table(path).rows
    assert [row.place for row in read] == [f"line {i}" for i in range(2, len(lines) + 2)]
    for i, row in enumerate(read):
        if i == which:
            assert row.problem is not None
            assert row.problem[0] == "not_csv"
        else:
            assert [*row.values.values()] == lines[i]


def test_a_key_that_occurs_twice_is_no_choice_of_ours(tmp_path: Path, rows: list[Row]) -> None:
    twice = json.dumps(rows[0]).replace('"entity"', '"entity": "Italy", "entity"', 1)
    nested = (
        json.dumps({**rows[1], "aliases": []}).replace('"aliases": [], ', "")[:-1]
        + ', "aliases": {"a": 1, "a": 2}}'
    )
    path = jsonl(tmp_path / "items.jsonl", rows)
    path.write_text("\n".join([twice, nested, json.dumps(rows[2])]))
    report = check(path).report
    assert [(one.place, one.reason) for one in report.set_aside] == [
        ("line 1", "not_a_row"),
        ("line 2", "wrong_type"),
    ]
    assert "'entity' occurs twice" in report.set_aside[0].said
    assert "'a' occurs twice" in report.set_aside[1].said
    path = path.with_suffix(".json")
    path.write_text(f"[{twice}, {json.dumps(rows[2])}]")
    assert check(path).report.reasons() == {"not_a_row": 1}


def test_one_object_over_several_lines(tmp_path: Path, rows: list[Row]) -> None:
    path = tmp_path / "items.json"
    path.write_text(json.dumps(rows[0], indent=2))
    assert check(path).report.usable == 1
    path.write_text(json.dumps(rows[0], indent=2) + "\n" + json.dumps(rows[1], indent=2))
    assert check(path).report.usable == 0


@pytest.mark.parametrize("action", ["error", "ignore", "always"])
def test_a_list_in_a_text_does_not_depend_on_warnings(action: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter(action)  # type: ignore[arg-type]
        assert texts_of(r"['a\d', 'b']") == [r"a\d", "b"]


def test_a_table_in_memory_is_told_how_to_give_its_rows() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"entity": ["France"], "answers": ["Paris"]})
    with pytest.raises(DataError, match=r'DataFrame was given.*to_dict\("records"\)'):
        open_table(frame)
    assert open_table(frame.to_dict("records")).columns == ("entity", "answers")
    arrow = pytest.importorskip("pyarrow")
    with pytest.raises(DataError, match=r"Table was given.*to_pylist"):
        open_table(arrow.Table.from_pandas(frame))
    with pytest.raises(DataError, match="bytes was given"):
        open_table(b"abc")


def test_a_list_in_the_first_line_costs_that_line(tmp_path: Path, rows: list[Row]) -> None:
    path = jsonl(tmp_path / "items.jsonl", rows)
    path.write_text("[1, 2]\n" + path.read_text())
    report = check(path).report
    assert (report.usable, report.rows) == (3, 4)
    path.write_text('[{"entity":\n' + path.read_text())
    with pytest.raises(DataError, match="begins as a JSON list and is none"):
        check(path)


@pytest.mark.parametrize("unseen", ["\ufeff", "\u200b", "\u2060"])
def test_characters_that_nobody_sees_are_no_part_of_a_text(
    tmp_path: Path, rows: list[Row], unseen: str
) -> None:
    """A file put together of two has the mark of the second's beginning within it."""
    expected = [(item.entity, item.answers) for item in check(rows_in(tmp_path, rows)).items]
    for row in rows:
        row["entity"] = unseen + row["entity"]
        row["answers"] = [f"{unseen}{one}{unseen}" for one in row["answers"]] + [unseen]
    found = check(rows_in(tmp_path, rows)).items
    assert [(item.entity, item.answers) for item in found] == expected
    assert texts_of("नेपाल\u200cी | \ufeff") == ["नेपाल\u200cी"]  # which divides what it stands in


def rows_in(folder: Path, rows: list[Row]) -> Path:
    return jsonl(folder / "items.jsonl", rows)
