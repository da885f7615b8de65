"""Data sets by name: of a folder, a configuration, a split."""

# ruff: noqa: F811 - `rows` is a fixture of test_data

from pathlib import Path

import pytest
from test_data import Row, drawn, jsonl, rows  # noqa: F401
from test_data_types import made

from twohop.items.reading import DataError
from twohop.items.validation import check

datasets = pytest.importorskip("datasets", reason="the package datasets is optional")
pytestmark = pytest.mark.filterwarnings("ignore:Cannot")  # dill, as datasets uses it
V = datasets.Value


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with two configurations, one of them with two splits."""
    folder = tmp_path / "some" / "things"
    dataset = made("answers", ["Paris", "Lima", "Accra"], V("string"))
    for place, part in {
        "en/train": dataset,
        "en/test": dataset.select([0]),
        "fr/train": dataset.select([0, 1]),
    }.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        part.to_parquet(str(folder / f"{place}.parquet"))
    (folder / "README.md").write_text(
        """---
configs:
- config_name: en
  data_files:
  - {split: train, path: en/train.parquet}
  - {split: test, path: en/test.parquet}
- config_name: fr
  data_files:
  - {split: train, path: fr/train.parquet}
---
"""
    )
    return folder


def test_configurations_and_splits_by_name(home: Path) -> None:
    def found(rest: str) -> int:
        return check(f"hf:{home}{rest}").report.usable

    assert found(":en:train") == 3
    assert found(":en:test") == 1
    assert found(":fr:train") == 2
    assert found(":fr") == 2, "a configuration, as there is no split of that name"
    assert found(":en:train[:2]") == 2
    assert found(":en:train[1:]+test") == 3
    for rest, said in {
        "": "Its configurations: en, fr",
        ":en": "has the splits train, test",
        ":train": "Its configurations: en, fr",
        ":de:train": "Its configurations: en, fr",
        ":en:dev": "Its splits: train, test",
        ":en:": "does not name a data set. Expected hf:NAME, hf:NAME:SPLIT or hf:NAME:CONFIG:SPLIT",
        ":en:train:more": "does not name a data set",
    }.items():
        with pytest.raises(DataError, match=said):
            found(rest)
    with pytest.raises(DataError, match="does not name a data set"):
        check("hf:")


def test_one_configuration_needs_no_name(tmp_path: Path) -> None:
    dataset = made("answers", ["Paris", "Lima"], V("string"))
    for split in ("train", "test"):
        (tmp_path / "data").mkdir(exist_ok=True)
        dataset.to_parquet(str(tmp_path / "data" / f"{split}.parquet"))
    assert check(f"hf:{tmp_path}:test").report.usable == 2
    assert check(f"hf:{tmp_path}:train[:1]").report.usable == 1
    with pytest.raises(DataError, match="has the splits train, test"):
        check(f"hf:{tmp_path}")
    with pytest.raises(DataError, match="Its splits: train, test"):
        check(f"hf:{tmp_path}:dev")


def test_saved_folders_with_and_without_splits(tmp_path: Path) -> None:
    dataset = made("answers", ["Paris", "Lima"], V("string"))
    both = tmp_path / "two: both"
    datasets.DatasetDict({"a": dataset, "b": dataset.select([1])}).save_to_disk(str(both))
    with pytest.raises(DataError, match=r"splits a, b\. Give one: hf:.*two: both:a, or"):
        check(both)
    assert check(f"hf:{both}:b").report.usable == check(both / "b").report.usable == 1
    with pytest.raises(DataError, match="no split 'c'"):
        check(f"hf:{both}:c")
    assert check(f"hf:{both}:a[:1]").report.usable == 1
    assert check(f"hf:{both}:a[50%:]").items[0].answers == ("Lima",)
    assert check(f"hf:{both}:a[:1]+b").report.rows == 2
    for none in ("c[:1]", "a[:x]", "a[:900%]"):
        with pytest.raises(DataError, match=r"has no '.*Its splits: a, b\."):
            check(f"hf:{both}:{none}")
    with pytest.raises(DataError, match="has no configurations"):
        check(f"hf:{both}:a:b")
    datasets.DatasetDict({"only": dataset}).save_to_disk(str(tmp_path / "one"))
    assert check(tmp_path / "one").report.usable == 2
    dataset.save_to_disk(str(tmp_path / "plain"))
    assert check(f"hf:{tmp_path / 'plain'}").report.usable == 2
    with pytest.raises(DataError, match="It has no splits"):
        check(f"hf:{tmp_path / 'plain'}:train")
    next((tmp_path / "plain").glob("*.arrow")).write_bytes(b"cut")
    with pytest.raises(DataError, match="cannot be read as a saved data set"):
        check(tmp_path / "plain")


def test_a_folder_of_pictures_and_one_of_json(tmp_path: Path, rows: list[Row]) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    lines = []
    for row in rows:
        drawn(folder / row["image"])
        about = {name: row[name] for name in ("entity", "question", "answers")}
        lines.append({"file_name": row["image"], **about})
    jsonl(folder / "metadata.jsonl", lines)
    (folder / "Peru.png").write_bytes(b"broken")
    found = check(f"hf:{folder}:train")
    assert found.report.reasons() == {"image_unreadable": 1}
    assert found.report.usable == 2
    with pytest.raises(DataError, match=r"or hf:.* for a folder that `datasets` can load"):
        check(folder)


def test_what_is_no_source_and_what_has_no_rows() -> None:
    with pytest.raises(DataError, match="int was given"):
        check(3)
    with pytest.raises(DataError, match="has no rows"):
        check(datasets.Dataset.from_dict({}))
    with pytest.raises(DataError, match="a mapping with nothing in it"):
        check({})
