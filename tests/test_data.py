"""Items from files: every format gives the same items, and every bad row its own reason."""

import base64
import csv
import io
import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from twohop.entities.datamap import DataMap, Wording, read_map
from twohop.entities.pictures import PictureError, altered, picture_of
from twohop.entities.reasons import FLAGS, REASONS
from twohop.entities.sources import DataError
from twohop.entities.validation import Checked, check

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


@pytest.mark.filterwarnings("ignore:Cannot")  # dill, as datasets uses it
def test_a_data_set_of_hugging_face_gives_them_too(tmp_path: Path, rows: list[Row]) -> None:
    datasets = pytest.importorskip("datasets", reason="the package datasets is optional")
    full = [{**row, "image": str(tmp_path / row["image"])} for row in rows]
    expected = summary(check(full))
    made = datasets.Dataset.from_list(full).cast_column("image", datasets.Image())
    assert summary(check(made)) == expected
    made.save_to_disk(str(tmp_path / "saved"))
    assert summary(check(tmp_path / "saved")) == expected
    made.to_parquet(str(tmp_path / "pushed.parquet"))
    assert summary(check(tmp_path / "pushed.parquet")) == expected
    (tmp_path / "hub").mkdir()
    made.to_parquet(str(tmp_path / "hub" / "train.parquet"))
    assert summary(check(f"hf:{tmp_path / 'hub'}")) == expected
    with pytest.raises(DataError, match="has the splits a, b"):
        check(datasets.DatasetDict({"a": made, "b": made}))
    (tmp_path / "Peru.png").write_bytes(b"broken")
    again = check(datasets.Dataset.from_list(full).cast_column("image", datasets.Image()))
    assert again.report.reasons() == {"image_unreadable": 1}
    assert again.report.usable == 2


def test_structs_lists_and_nulls_of_parquet(tmp_path: Path, rows: list[Row]) -> None:
    data = [(tmp_path / row["image"]).read_bytes() for row in rows]
    images = [{"bytes": one, "path": None} for one in data]
    cells = [
        {"image": [images[0], images[1]], "year": 1889, "answers": ["Paris"]},
        {"image": [images[1]], "year": None, "answers": []},
        {"image": None, "year": 3, "answers": ["Accra"]},
    ]
    made = [{"question": row["question"], **one} for row, one in zip(rows, cells, strict=True)]
    made = [{**one, "entity": row["entity"]} for one, row in zip(made, rows, strict=True)]
    found = check(as_parquet(tmp_path / "hub.parquet", made))
    assert [item.entity.name for item in found.items] == ["France"]
    assert found.report.pictures == (2, 2)
    assert {one.place: one.reason for one in found.report.set_aside} == {
        "row 2": "no_answer",
        "row 3": "no_image",
    }


def test_without_pyarrow_the_remedy_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r'pip install "twohop\[parquet\]"'):
        check(whole_file(tmp_path, "a.parquet", b"PAR1"))
    with pytest.raises(DataError, match="pip install datasets"):
        check("hf:someone/something")


def test_a_damaged_parquet_file(tmp_path: Path, rows: list[Row]) -> None:
    path = as_parquet(tmp_path / "a.parquet", rows)
    whole = path.read_bytes()
    for data in (
        b"PAR1 nothing of the kind PAR1",
        whole[: len(whole) // 2],
        whole[:-20] + whole[-8:],
    ):
        path.write_bytes(data)
        with pytest.raises(DataError, match="cannot be read as Parquet"):
            check(path)


def test_images_in_every_form_are_the_same_picture(tmp_path: Path) -> None:
    path = drawn(tmp_path / "a.png")
    data = path.read_bytes()
    text = base64.b64encode(data).decode()
    forms = [
        "a.png",
        str(path),
        path,
        data,
        bytearray(data),
        text,
        f"data:image/png;base64,{text}",
        {"bytes": data, "path": "elsewhere.png"},
        {"bytes": text},
        {"bytes": None, "path": "a.png"},
    ]
    found = [picture_of(form, tmp_path) for form in forms]
    assert len({one.digest for one in found}) == 1
    with Image.open(path) as image:
        opened = picture_of(image.copy(), tmp_path).open()
    for one in found:
        assert np.array_equal(np.asarray(one.open()), np.asarray(opened))


def encoded(image: Image.Image, kind: str = "PNG", **more: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **more)
    return file.getvalue()


def test_pictures_are_opened_as_people_see_them(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert picture_of(encoded(clear), tmp_path).open().getpixel((0, 0)) == (255, 255, 255)
    deep = Image.fromarray(np.full((8, 8), 32768, np.uint16))
    assert picture_of(encoded(deep), tmp_path).open().getpixel((0, 0)) == (128, 128, 128)
    grey = picture_of(encoded(Image.new("L", (8, 8), 77)), tmp_path).open()
    assert grey.mode == "RGB"
    assert grey.getpixel((0, 0)) == (77, 77, 77)
    palette = Image.new("RGB", (8, 8), "blue").convert("P")
    assert picture_of(encoded(palette, "GIF"), tmp_path).open().getpixel((0, 0)) == (0, 0, 255)
    turned = Image.new("RGB", (8, 16), "red")
    exif = turned.getexif()
    exif[0x0112] = 6  # taken on its side
    assert picture_of(encoded(turned, "JPEG", exif=exif), tmp_path).open().size == (16, 8)
    cmyk = picture_of(encoded(Image.new("CMYK", (8, 8)), "JPEG"), tmp_path)
    assert cmyk.open().mode == "RGB"


def test_an_altered_copy_is_another_picture_and_the_same_each_time() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    one, same, other = (np.asarray(altered(image, seed=seed)) for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert not np.array_equal(one, noise)
    assert one.shape == noise.shape


BAD: dict[str, Row] = {
    "no_entity": {"entity": " "},
    "no_answer": {"answers": ["", None, "  "]},
    "no_question": {"question": None},
    "no_image": {"image": None},
    "not_latin": {"entity": "Ελλάδα"},
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


def test_every_reason_has_a_test() -> None:
    assert set(REASONS) == set(BAD) | IN_TEXT


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
    assert [item.answers for item in found.items] == [("1889",), ("42",), ("3.5",)]
    assert found.items[0].entity.aliases == ()


def whole_file(tmp_path: Path, name: str, content: bytes) -> Path:
    (tmp_path / name).write_bytes(content)
    return tmp_path / name


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b"\n \n", "has no rows"),
        ("a.csv", b"entity,image,question,answers\n", "has no rows"),
        ("a.csv", b"entity,entity\n1,2\n", "column 'entity' occurs twice"),
        ("a.csv", b'"entity\n', "first line cannot be read"),
        ("a.jsonl", '{"a": 1}'.encode("utf-16"), "is in UTF-16"),
        ("a.csv", b"a\x00b", "holds zero bytes"),
        ("a.json", b'[{"entity": 1},', "begins as a JSON list and is none"),
        ("a.xlsx", b"PK", "not a format known here. Known: .jsonl"),
        ("a", b"x", "no ending is not a format"),
        ("a.jsonl", b'{"entiti": "x", "image": "y", "answers": "z"}', "Did you mean 'entiti'"),
        (
            "a.jsonl",
            b'{"entity": "x", "image": "y", "answers": "z"}',
            "no column holds .* 'question'",
        ),
    ],
)
def test_a_file_that_cannot_be_used_as_a_whole(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    with pytest.raises(DataError, match=said):
        check(whole_file(tmp_path, name, content))


class Trap:
    """Leaves a file behind if its pickle is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("ending", [".pkl", ".pt", ".npy", ".jsonl", ".csv"])
def test_no_pickle_is_loaded(tmp_path: Path, ending: str) -> None:
    sprung = tmp_path / "sprung"
    path = whole_file(tmp_path, f"items{ending}", pickle.dumps(Trap(sprung)))
    with pytest.raises(DataError):
        check(path).needed()
    assert not sprung.exists()


def test_a_file_that_is_not_there_is_guessed(tmp_path: Path, rows: list[Row]) -> None:
    jsonl(tmp_path / "items.jsonl", rows)
    with pytest.raises(DataError, match=r"Did you mean 'items\.jsonl'"):
        check(tmp_path / "itmes.jsonl")
    with pytest.raises(DataError, match="is a folder, but not one"):
        check(tmp_path)
    with pytest.raises(DataError, match="a mapping with entity"):
        check({"entity": ["France"]})


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
            "aliases": ["Перу"],
            "answers": ["Pacific", "Тихий", "Peru"],
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
    assert found["dropped_answer"] == "[line 8: 'Тихий'][line 8: 'Peru']"
    assert found["dropped_alias"] == "[line 8: 'Перу']"
    assert found["unused_column"] == "[alises: not a field of an item]"


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


def test_an_alias_in_the_question_is_the_entity(tmp_path: Path, rows: list[Row]) -> None:
    rows[0]["question"] = "What is the capital of the LAND OF FRANCE?"
    rows[0]["entity"] = "Gaul"
    found = check(jsonl(tmp_path / "items.jsonl", rows))
    assert "What is the capital of the {entity}?" in {one.text for one in found.wordings.values()}


def test_a_map_names_columns_and_questions(tmp_path: Path, rows: list[Row]) -> None:
    told = [{"name": r["entity"], "file": r["image"], "city": r["answers"]} for r in rows]
    path = jsonl(tmp_path / "items.jsonl", told)
    (tmp_path / "map.toml").write_text(
        """
        format = "qa"
        naming = "Which country is {entity}?"
        [columns]
        entity = "name"
        image = "file"
        answers = "city"
        [questions.capital]
        text = "What is the capital of {entity}?"
        image = "What is the capital of the country in {image}?"
        examples = [["Wales", "Cardiff"]]
        """
    )
    found = check(path, read_map(tmp_path / "map.toml"))
    assert found.wordings == {
        "capital": Wording(
            "What is the capital of {entity}?",
            "What is the capital of the country in {image}?",
            (("Wales", "Cardiff"),),
        )
    }
    assert found.items[0].id == "france/capital"
    assert found.report.flags == ()
    short = read_map("entity=name, image=file,answers=city")
    assert short.columns == read_map(tmp_path / "map.toml").columns


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("entiti=name", "no field 'entiti'. Did you mean 'entity'"),
        ("entity=name,entity=other", "names 'entity' twice"),
        ("entity=", "has no column"),
        ("nothing.toml", "is no file and has no '='"),
        ('frmat = "qa"', "no setting 'frmat'. Did you mean 'format'"),
        ('format = "caht"', "no format 'caht'. Did you mean 'chat'"),
        ('stop = ""', "'stop'.* is empty"),
        ("stop = 3", "'stop' is int, expected a text"),
        ("columns = 3", "'columns' is int, expected a table"),
        ("[columns]\nentity = 3", "'entity' is int"),
        ('[questions]\ncapital = "What is the capital?"', "needs {entity} once"),
        ("[questions]\ncapital = 3", "is int, expected a text"),
        ('[naming]\ntext = "{entity}"\nimage = "{entity}"', "and no {entity}"),
        ('[naming]\ntext = "{entity}"\nexamples = [["a"]]', "expected .name, answer."),
        ("[naming", "is not TOML"),
    ],
)
def test_a_map_that_cannot_be_read_says_why(tmp_path: Path, given: str, said: str) -> None:
    if ("=" in given and " " in given) or "[" in given:
        (tmp_path / "map.toml").write_text(given)
        given = str(tmp_path / "map.toml")
    with pytest.raises(DataError, match=said):
        read_map(given)


def test_a_column_that_is_not_there_is_guessed(tmp_path: Path, rows: list[Row]) -> None:
    path = jsonl(tmp_path / "items.jsonl", rows)
    with pytest.raises(DataError, match=r"no column 'entty' for 'entity'\. Did you mean 'entity'"):
        check(path, DataMap(columns={"entity": "entty"}))


def test_reading_is_safe_for_paths_that_are_none(tmp_path: Path) -> None:
    for cell in ("a" * 5000, "a\x00b", "..", ".", "QUJD" * 40, {"bytes": "***"}, {}, 3):
        with pytest.raises(PictureError):
            picture_of(cell, tmp_path)


POPVQA = {
    "entities.csv": [
        ["", "type", "s_uri", "subject", "aliases", "resized_path"],
        ["0", "landmarks", "Q243", "Eiffel Tower", "['La dame de fer', \"Paris' tower\"]", "a.png"],
        ["1", "paintings", "Q12418", "Mona Lisa", "[]", "images/b.png"],
        ["2", "brands", "Q246", "Nokia", "[]", "gone.png"],
    ],
    "questions.csv": [
        ["", "s_uri", "subject", "relation", "question", "question_for_image", "possible_answers"],
        ["0", "Q243", "Eiffel Tower", "architect", "Who designed Eiffel Tower?",
         "Who designed the place in the image?", "['Gustave Eiffel', 'Eiffel']"],
        ["1", "Q243", "Eiffel Tower", "architect", "Who designed Eiffel Tower?",
         "Who designed the place in the image?", "['Stephen Sauvestre']"],
        ["2", "Q12418", "Mona Lisa", "creator", "Who made Mona Lisa?",
         "Who made the painting in the image?", "['Leonardo da Vinci']"],
        ["3", "Q246", "Nokia", "country", "Which country is Nokia from?",
         "Which country is the brand in the image from?", "['Finland']"],
        ["4", "Q999", "Nobody", "country", "Which country is Nobody from?",
         "Which country is the subject in the image from?", "['Spain']"],
    ],
}  # fmt: skip


def popvqa(folder: Path) -> Path:
    (folder / "images").mkdir()
    drawn(folder / "a.png")
    drawn(folder / "images" / "b.png", "blue")
    for name, lines in POPVQA.items():
        with (folder / name).open("w", newline="") as file:
            csv.writer(file).writerows(lines)
    return folder


def test_popvqa_as_it_is_published(tmp_path: Path) -> None:
    found = check(popvqa(tmp_path))
    tower, lisa = found.items
    assert tower.id == "Q243/architect"
    assert tower.entity.names == ("Eiffel Tower", "La dame de fer", "Paris' tower")
    assert tower.answers == ("Gustave Eiffel", "Eiffel", "Stephen Sauvestre")
    assert found.wordings["creator"] == Wording(
        "Who made {entity}?", "Who made the painting in the image?"
    )
    assert lisa.answers == ("Leonardo da Vinci",)
    assert found.pictures["Q12418"][0].open().getpixel((0, 0)) == (0, 0, 255)
    assert {one.place: one.reason for one in found.report.set_aside} == {
        "questions.csv line 5": "image_missing",
        "questions.csv line 6": "no_image",
    }
    assert "surface" in flags(found)  # Eiffel Tower: Eiffel


def test_popvqa_without_a_column_says_which(tmp_path: Path) -> None:
    path = popvqa(tmp_path) / "questions.csv"
    path.write_text(path.read_text().replace("possible_answers", "answers"))
    with pytest.raises(DataError, match="no column 'possible_answers'"):
        check(tmp_path)
    path.write_text("s_uri\n")
    with pytest.raises(DataError, match="no column"):
        check(tmp_path)


@pytest.mark.parametrize("name", ["items.jsonl", "items.csv", "items.json", "Peru.png"])
def test_damage_of_any_kind_is_a_reason_or_one_error(
    tmp_path: Path, rows: list[Row], name: str
) -> None:
    """Bytes changed, cut and doubled at random: every row is used or named, or the file is."""
    path = jsonl(tmp_path / "items.jsonl", rows)
    if name != "Peru.png":
        WRITERS[name](tmp_path / name, rows)
        path = tmp_path / name
    whole = (tmp_path / name).read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(150):
        data = bytearray(whole)
        for place in generator.integers(0, len(data), size=generator.integers(1, 6)):
            data[place] = generator.integers(0, 256)
        first, second = sorted(generator.integers(0, len(data), size=2))
        data = data + data[first:second] if generator.random() < 0.5 else data[:second]
        (tmp_path / name).write_bytes(bytes(data))
        try:
            report = check(path).report
        except DataError:
            continue
        assert report.usable + len(report.set_aside) == report.rows
        if name == "Peru.png":
            assert report.usable >= 2


ODD: list[Any] = [
    *(None, "", "   ", "NaN", float("nan"), float("inf"), True, 1, -3.5, 10**400, [], {}, [None]),
    *(["a"], [["a"]], ["a.png", 3], {"bytes": "x"}, {"path": "France.png"}, "France", "The", "🙂"),
    *("{entity}", "{image} {image}", "Is {entity}?", "[1, 2", "['x', 'y']", "a|b||", "|", "\x00"),
    *("é" * 300, "../..", "a" * 10_000, "\u202e", b"bytes", object()),
]


def test_odd_cells_in_any_field_are_a_reason(tmp_path: Path, rows: list[Row]) -> None:
    from twohop.entities.datamap import FIELDS
    from twohop.entities.items import check_items

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
