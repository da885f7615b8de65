"""Items from files: every format gives the same items, and every bad row its own reason."""

import base64
import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from interventions.errors import InterventionsError
from twohop.items.datamap import Wording
from twohop.items.reading import DataError
from twohop.items.reasons import FLAGS, REASONS
from twohop.items.validation import Checked, check

COUNTRIES = {"France": "Paris", "Peru": "Lima", "Ghana": "Accra"}


Row = dict[str, Any]


def drawn(path: Path, colour: str = "red", size: tuple[int, int] = (24, 18)) -> Path:
    Image.new("RGB", size, colour).save(path)
    return path


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    """Three good rows, and their images."""
    made = []
    for name, colour in zip(COUNTRIES, ("red", "green", "blue"), strict=True):
        drawn(tmp_path / f"{name}.png", colour)
        made.append(
            {
                "id": name.lower(),
                "entity": name,
                "aliases": [f"Land of {name}", f"{name} Republic"],
                "image": f"{name}.png",
                "relation": "capital",
                "question": f"What is the capital of {name}?",
                "answers": [COUNTRIES[name], f"{COUNTRIES[name]} City"],
            }
        )
    return made


def jsonl(path: Path, rows: list[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def as_json(path: Path, rows: list[Row]) -> Path:
    path.write_text(json.dumps(rows, indent=1))
    return path


def as_csv(path: Path, rows: list[Row], *, mark: str = ",", encoding: str = "utf-8") -> Path:
    flat = [{k: "|".join(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows]
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, list(flat[0]), delimiter=mark)
        writer.writeheader()
        writer.writerows(flat)
    return path


def as_parquet(path: Path, rows: list[Row]) -> Path:
    pytest.importorskip("pyarrow", reason="pyarrow is in the extra `parquet`")
    from pyarrow import Table, parquet  # pyright: ignore[reportMissingImports]

    parquet.write_table(Table.from_pylist(rows), path)
    return path


WRITERS: dict[str, Callable[[Path, list[Row]], Any]] = {
    "items.jsonl": jsonl,
    "items.ndjson": jsonl,
    "items.json": as_json,
    "items.csv": as_csv,
    "bom.csv": lambda path, rows: as_csv(path, rows, encoding="utf-8-sig"),
    "semicolons.csv": lambda path, rows: as_csv(path, rows, mark=";"),
    "items.tsv": lambda path, rows: as_csv(path, rows, mark="\t"),
    "items.parquet": as_parquet,
}


def summary(checked: Checked) -> Any:
    found = [(i.id, i.entity.names, i.relation, i.answers) for i in checked.items]
    pictures = {code: [one.digest for one in some] for code, some in checked.pictures.items()}
    return found, pictures, dict(checked.wordings)


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_items(tmp_path: Path, rows: list[Row], name: str) -> None:
    expected = check([{**row, "image": tmp_path / row["image"]} for row in rows])
    assert [item.answers[0] for item in expected.items] == list(COUNTRIES.values())
    assert expected.wordings == {"capital": Wording("What is the capital of {entity}?")}
    path = tmp_path / name
    WRITERS[name](path, rows)
    found = check(str(path))
    assert summary(found) == summary(expected)
    assert found.report.set_aside == found.report.flags == ()
    assert (found.report.rows, found.report.usable, found.report.source) == (3, 3, path.stem)


def encoded(image: Image.Image, kind: str = "PNG", **more: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **more)
    return file.getvalue()


BAD: dict[str, Row] = {
    "no_entity": {"entity": " "},
    "no_answer": {"answers": ["", None, "  "]},
    "no_question": {"question": None},
    "no_image": {"image": None},
    "no_letters": {"entity": "?!"},
    "wrong_type": {"answers": {"en": "Paris"}},
    "entity_not_in_question": {"question": "What is the capital of Spain?"},
    "entity_repeated": {"question": "Is Niger north of Niger?", "entity": "Niger"},
    "entity_in_image_question": {"image_question": "What is the capital of France, shown here?"},
    "image_marks": {"image_question": "Is {image} like {image}?"},
    "answer_is_entity": {"answers": ["The France", "france"]},
    "image_missing": {"image": "nowhere.png"},
    "image_empty": {"image": "empty.png"},
    "image_truncated": {"image": "cut.png"},
    "image_unreadable": {"image": "text.png"},
    "image_too_small": {"image": "dot.png"},
    "image_too_large": {"image": "bomb.png"},
    "image_on_the_web": {"image": "https://example.org/a.png"},
    "duplicate_id": {"id": "peru", "entity": "Chad", "question": "Capital of Chad?"},
    "other_answers": {"id": "x", "entity": "Peru", "question": "What is the capital of Peru?"},
    "duplicate_row": {
        "id": "y",
        "entity": "Peru",
        "image": "Peru.png",
        "question": "What is the capital of Peru?",
        "answers": ["LIMA", "Lima city"],
    },
}


IN_TEXT = {"not_json", "not_a_row", "bad_encoding", "not_csv", "wrong_columns"}


def bad_images(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("this is no image")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    whole = encoded(Image.fromarray(noise))
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    drawn(folder / "dot.png", size=(1, 1))
    drawn(folder / "bomb.png", size=(400, 300))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_row_is_set_aside_and_the_rest_is_kept(
    tmp_path: Path, rows: list[Row], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad_images(tmp_path, monkeypatch)
    bad = {**rows[0], "id": "bad", **BAD[reason]}
    report = check(jsonl(tmp_path / "items.jsonl", [*rows[1:], bad])).report
    assert report.reasons() == {reason: 1}
    assert report.set_aside[0].place == "line 3"
    assert report.set_aside[0].said
    assert (report.usable, report.items) == (2, 2)


def second_frame() -> Image.Image:
    frames = [Image.new("L", (8, 8), grey) for grey in (0, 99)]
    image = Image.open(
        io.BytesIO(encoded(frames[0], "GIF", save_all=True, append_images=[frames[1]]))
    )
    image.seek(1)
    return image


IN_MEMORY: dict[str, Any] = {
    "image_values": np.full((8, 8, 3), -1.5),
    "image_shape": np.zeros((3, 8, 3)),
    "image_frame": second_frame(),
}


@pytest.mark.parametrize("reason", IN_MEMORY)
def test_an_image_object_that_is_no_one_picture_is_set_aside(
    tmp_path: Path, rows: list[Row], reason: str
) -> None:
    whole = [{**row, "image": tmp_path / row["image"]} for row in rows]
    report = check([*whole[1:], {**whole[0], "id": "bad", "image": IN_MEMORY[reason]}]).report
    assert report.reasons() == {reason: 1}
    assert report.set_aside[0].said
    assert (report.usable, report.items) == (2, 2)


def test_every_reason_has_a_test() -> None:
    assert set(REASONS) == set(BAD) | IN_TEXT | set(IN_MEMORY)


def test_many_bad_rows_are_all_named(
    tmp_path: Path, rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    bad_images(tmp_path, monkeypatch)
    bad = [{**rows[0], "id": str(i), **values} for i, values in enumerate(BAD.values())]
    report = check(jsonl(tmp_path / "items.jsonl", [*rows[1:], *bad])).report
    assert [one.reason for one in report.set_aside] == list(BAD)
    assert report.usable == 2
    assert json.loads(json.dumps(report.as_dict()))["reasons"] == dict.fromkeys(BAD, 1)


def test_lines_that_are_no_rows(tmp_path: Path, rows: list[Row]) -> None:
    lines = [json.dumps(row).encode() for row in rows]
    deep = b"[" * 100_000
    bad = [b"{'entity': 1}", b"", b'["a"]', b"7", b'"\xe9t\xe9"', b'{"entity": ', deep, b"\t"]
    path = tmp_path / "items.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join([lines[0], *bad, *lines[1:]]))
    report = check(path).report
    assert report.usable == 3
    assert [(one.place, one.reason) for one in report.set_aside] == [
        ("line 2", "not_json"),
        ("line 4", "not_a_row"),
        ("line 5", "not_a_row"),
        ("line 6", "bad_encoding"),
        ("line 7", "not_json"),
        ("line 8", "not_json"),
    ]
    assert "'é' in Windows' Latin encoding" in report.set_aside[3].said


def test_half_a_character_in_json_breaks_its_row_only(tmp_path: Path, rows: list[Row]) -> None:
    path = jsonl(tmp_path / "items.jsonl", rows)
    path.write_text(path.read_text().replace("Lima City", "Lima\\ud83c"))
    assert check(path).report.reasons() == {"bad_encoding": 1}


def test_rows_of_a_csv_that_are_none(tmp_path: Path, rows: list[Row]) -> None:
    path = as_csv(tmp_path / "items.csv", rows)
    header, *lines = path.read_bytes().splitlines()
    bad = [b"a,b", lines[0] + b",more", b"Per\xfa" + lines[1], b"", b'x,"y"z,1']
    unclosed = b'"never closed' + lines[0] + b"\n" + lines[0]
    path.write_bytes(b"\n".join([header, *lines, *bad, unclosed]))
    report = check(path).report
    assert report.usable == 3
    assert [(one.place, one.reason) for one in report.set_aside] == [
        ("line 5", "wrong_columns"),
        ("line 6", "wrong_columns"),
        ("line 7", "bad_encoding"),
        ("line 9", "not_csv"),
        ("line 10", "not_csv"),
        ("line 11", "duplicate_id"),
    ]


def test_cells_over_several_lines_and_long_ones_are_cells(tmp_path: Path, rows: list[Row]) -> None:
    image = tmp_path / "large.png"
    noise = np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(image)
    text = base64.b64encode(image.read_bytes()).decode()
    assert len(text) > csv.field_size_limit()
    rows[0] |= {"image": text, "question": "Look.\nWhat is the capital of France?"}
    found = check(as_csv(tmp_path / "items.csv", rows))
    assert found.report.usable == 3
    assert found.pictures["france"][0].open().size == (300, 300)
    assert "Look.\nWhat is" in next(iter(found.wordings.values())).text


def test_numbers_and_what_tables_write_for_nothing(tmp_path: Path, rows: list[Row]) -> None:
    rows[0]["answers"], rows[1]["answers"], rows[2]["answers"] = 1889.0, 42, [3.5, "nan", None]
    rows[0]["aliases"] = float("nan")
    path = jsonl(tmp_path / "items.jsonl", rows)
    assert "NaN" in path.read_text()
    found = check(path)
    assert [item.answers for item in found.items] == [("1889",), ("42",), ("3.5", "nan")]
    assert found.items[0].entity.aliases == ()


def test_nothing_usable_ends_in_one_clear_error(tmp_path: Path, rows: list[Row]) -> None:
    for row in rows:
        row["image"] = "gone.png"
    checked = check(jsonl(tmp_path / "items.jsonl", rows))
    assert checked.report.usable == 0
    with pytest.raises(DataError, match=r"none of 3 rows is usable: 3 x the image file is not the"):
        checked.needed()
    (tmp_path / "broken.jsonl").write_text("{\n{\n")
    with pytest.raises(DataError, match="2 x the line is not JSON"):
        check(tmp_path / "broken.jsonl").needed()


def flags(checked: Checked) -> dict[str, str]:
    found: dict[str, str] = {}
    for flag in checked.report.flags:
        found[flag.kind] = f"{found.get(flag.kind, '')}[{flag.where}: {flag.said}]"
    return found


def test_every_flag_is_raised_where_it_is_due(tmp_path: Path, rows: list[Row]) -> None:
    france, peru, ghana = rows
    extra = {"alises": ["x"], "image_question": "Which of Rome and Lima is this one's capital?"}
    planet = {"relation": "planet", "answers": "Earth"}
    more = [
        {**france, "id": "1", **planet, "question": "Planet of France?"},
        {**ghana, "id": "2", **planet, "question": "Planet of Ghana?", "answers": "EARTH"},
        {**france, "id": "3", **planet, "question": "France is on"},
        {
            **ghana,
            "id": "4",
            "entity_id": "gh",
            "question": "Who is in Ghana?",
            "answers": "Ghanans",
        },
        {
            **peru,
            "id": "5",
            "relation": "sea",
            "question": "Sea of Peru?",
            "aliases": ["🇵🇪"],
            "answers": ["Pacific", "...", "Peru"],
            "image": ["Peru.png", "gone.png"],
        },
    ]
    found = flags(check(jsonl(tmp_path / "items.jsonl", [france, peru | extra, ghana, *more])))
    assert set(found) == set(FLAGS)
    assert "[planet (2): 'Earth' is the answer to all of 1 items]" in found["constant_answer"]
    assert "1 of 1 items, such as Ghana: Ghanans" in found["surface"]
    assert "such as Peru: Lima" in found["answer_in_question"]
    assert found["several_wordings"].startswith("[capital: 3 wordings: capital, capital (2), capi")
    assert "[planet: 2 wordings: planet, planet (2)]" in found["several_wordings"]
    assert "[Ghana: a name of gh, ghana]" in found["shared_name"]
    assert found["dropped_image"].startswith("[line 8: image_missing")
    assert found["dropped_answer"] == "[line 8: '...'][line 8: 'Peru']"
    assert found["dropped_alias"] == "[line 8: '🇵🇪']"
    assert found["unused_column"] == "[alises: not a field of an item]"


def test_popularity_belongs_to_the_entity_and_to_no_question(
    tmp_path: Path, rows: list[Row]
) -> None:
    told = [
        row | {"popularity": number} for row, number in zip(rows, (3, "4.5", None), strict=True)
    ]
    again = {"id": "again", "relation": "size", "question": f"How large is {rows[0]['entity']}?"}
    told.append(rows[0] | again | {"popularity": 7, "answers": ["large"]})
    checked = check(jsonl(tmp_path / "items.jsonl", told))
    popular = [item.entity.popularity for item in checked.items]
    assert popular == [7, 4.5, None, 7]
    plain = check(
        jsonl(tmp_path / "plain.jsonl", [*rows, rows[0] | again | {"answers": ["large"]}])
    )
    assert plain.items == checked.items
    wrong = [rows[0] | {"popularity": "very"}, *rows[1:]]
    [aside] = check(jsonl(tmp_path / "wrong.jsonl", wrong)).report.set_aside
    assert aside.reason == "wrong_type"


def test_rows_of_one_question_are_pictures_of_one_entity(tmp_path: Path, rows: list[Row]) -> None:
    drawn(tmp_path / "other.png", "pink")
    del rows[0]["id"]
    more = [{**rows[0], "image": ["other.png", "France.png"]}]
    found = check(jsonl(tmp_path / "items.jsonl", [*rows, *more]))
    assert len(found.items) == 3
    assert len(found.pictures["france"]) == 2
    assert found.report.pictures == (1, 2)
    assert found.report.usable == 4
    assert found.items[0].id == "france/capital"


def test_one_spelling_of_an_answer_is_chosen(tmp_path: Path, rows: list[Row]) -> None:
    rows[0]["answers"], rows[1]["answers"] = ["Big City"], ["big city", "Lima"]
    found = check(jsonl(tmp_path / "items.jsonl", rows))
    assert found.items[1].answers == ("Big City", "big city", "Lima")


def test_entities_of_one_name_are_told_apart_by_their_ids(tmp_path: Path, rows: list[Row]) -> None:
    two = [{**rows[0], "id": None, "entity_id": code} for code in ("Q1", "Q2")]
    two[1]["answers"] = ["Paris, Texas"]
    found = check(jsonl(tmp_path / "items.jsonl", two))
    assert [item.id for item in found.items] == ["Q1/capital", "Q2/capital"]
    assert "shared_name" in flags(found)


def test_names_and_answers_may_be_of_any_script(tmp_path: Path, rows: list[Row]) -> None:
    from twohop.items.items import Entity, Item, check_items

    rows[0] |= {"entity": "法国", "question": "法国的首都是哪里？", "answers": ["巴黎"]}
    rows[1] |= {"entity": "Tromsø", "question": "Where is Tromsø?", "answers": ["Troms"]}
    found = check(jsonl(tmp_path / "items.jsonl", rows))
    assert found.report.set_aside == ()
    assert [item.answers for item in found.items[:2]] == [("巴黎",), ("Troms",)]
    check_items(found.items)
    with pytest.raises(InterventionsError, match="no letter and no digit"):
        check_items([Item("a/b", Entity("a", "A"), "b", ("?!",))])


def test_an_alias_in_the_question_is_the_entity(tmp_path: Path, rows: list[Row]) -> None:
    rows[0]["question"] = "What is the capital of the LAND OF FRANCE?"
    rows[0]["entity"] = "Gaul"
    found = check(jsonl(tmp_path / "items.jsonl", rows))
    assert "What is the capital of the {entity}?" in {one.text for one in found.wordings.values()}


ODD: list[Any] = [
    *(None, "", "   ", "NaN", float("nan"), float("inf"), True, 1, -3.5, 10**400, [], {}, [None]),
    *(["a"], [["a"]], ["a.png", 3], {"bytes": "x"}, {"path": "France.png"}, "France", "The", "🙂"),
    *("{entity}", "{image} {image}", "Is {entity}?", "[1, 2", "['x', 'y']", "a|b||", "|", "\x00"),
    *("é" * 300, "../..", "a" * 10_000, "\u202e", b"bytes", object()),
]


def test_odd_cells_in_any_field_are_a_reason(tmp_path: Path, rows: list[Row]) -> None:
    from twohop.items.datamap import FIELDS
    from twohop.items.items import check_items

    good = [{**row, "image": tmp_path / row["image"]} for row in rows[1:]]
    for name in FIELDS:
        for value in ODD:
            odd = {**rows[0], "image": tmp_path / rows[0]["image"], name: value}
            checked = check([*good, odd])
            report = checked.report
            assert report.usable + len(report.set_aside) == report.rows == 3
            assert report.usable >= 2
            check_items(checked.items)
            json.dumps(report.as_dict())
