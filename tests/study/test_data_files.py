"""Files of items as a whole: images, maps, damage, data sets, PopVQA."""

# ruff: noqa: F811 - `rows` is a fixture of test_data

import base64
import csv
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_data import WRITERS, Row, as_parquet, drawn, encoded, flags, jsonl, rows, summary  # noqa: F401

from interventions.errors import PictureError
from twohop.items.datamap import DataMap, Wording, read_map
from twohop.items.pictures import altered, picture_of
from twohop.items.reading import DataError
from twohop.items.validation import check


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


def test_popvqa_with_popularity(tmp_path: Path) -> None:
    path = popvqa(tmp_path) / "entities.csv"
    lines = [[*line] for line in POPVQA["entities.csv"]]
    known = ["popularity", "12.5", *[""] * (len(lines) - 2)]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(
            [*line, number] for line, number in zip(lines, known, strict=True)
        )
    popular = {item.entity.code: item.entity.popularity for item in check(tmp_path).items}
    assert popular == {"Q243": 12.5, "Q12418": None}


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
