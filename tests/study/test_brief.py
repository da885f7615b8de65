"""Chats are asked to be brief, with room for a sentence, the same about names and pictures."""

# ruff: noqa: F811 - `rows` is a fixture of test_data

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import xarray as xr
from families import model_of
from test_data import Row, jsonl, rows  # noqa: F401

from twohop.ask.study import longest_answer
from twohop.cli import main
from twohop.items.datamap import BRIEF, DataMap, Wording, read_map
from twohop.items.digest import asked_parts
from twohop.items.formats import CHAT, QA, Writer, chat_template_of
from twohop.items.items import Benchmark
from twohop.items.reading import DataError
from twohop.items.validation import check
from twohop.micro import benchmark as micro
from twohop.pairs import own_pair, with_data
from twohop.protocol import Protocol
from twohop.report.cautions import cautions
from twohop.report.sentence import verdict_sentence
from twohop.report.summary import answers_cut, summarise
from twohop.running.pair_run import Settings
from twohop.running.study import study_of
from twohop.stages.recall import text_gate
from twohop.stages.run import run_stages
from twohop.stages.table import STAGES
from twohop.statistics import as_json

FAMILY = "qwen2_5_vl"
OWN = "One word."


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VLM that has a chat template, as a folder."""
    return tiny.save(FAMILY, tmp_path_factory.mktemp("chatty"))


def asked(vlm: Path, source: Any, mapping: DataMap | None = None, **more: Any) -> Benchmark:
    pair = own_pair(vlm, "someone/backbone")
    return with_data(pair, check(source, mapping), alter_views=True, **more).benchmark()


@pytest.fixture
def items(tmp_path: Path, rows: list[Row]) -> Path:
    for row in rows:
        row["image_question"] = "What is this country's capital?"
    return jsonl(tmp_path / "items.jsonl", rows)


def test_a_chat_ends_its_questions_with_the_same_words_in_text_and_image(
    chatty: Path, items: Path
) -> None:
    benchmark = asked(chatty, items)
    template = benchmark.templates["capital"]
    said = template.fill("France")
    assert f"What is the capital of France?\n{BRIEF}<|im_end|>" in said
    shown = template.show("")
    assert f"What is this country's capital?\n{BRIEF}<|im_end|>" in shown
    assert template.fill_with_nothing().count(BRIEF) == 1
    assert "What is this country's capital?\n" in template.fill_with_nothing()
    assert benchmark.naming.fill("X").count(BRIEF) == 1
    assert benchmark.chain("capital", "Peru").show("").count(BRIEF) == 2
    start, stop = template.span("France")
    assert said[start:stop] == "France"
    assert f"Every question ends with: “{BRIEF}”" in benchmark.notes


def test_the_map_words_it_or_turns_it_off(chatty: Path, items: Path, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text(f'brief = " {OWN} "')
    (tmp_path / "off.toml").write_text("brief = false")
    own, off = (read_map(tmp_path / f"{name}.toml") for name in ("own", "off"))
    by_default, worded, bare = (asked(chatty, items, one) for one in (None, own, off))
    assert worded.templates["capital"].fill("X").count(f"?\n{OWN}<|im_end|>") == 1
    assert "?<|im_end|>" in bare.templates["capital"].fill("X")
    assert BRIEF not in bare.notes
    assert len({str(asked_parts(one)) for one in (by_default, worded, bare)}) == 3
    for kind in ("qa", "completion"):
        other = asked(chatty, items, format=kind)
        assert BRIEF not in other.templates["capital"].fill("X")
        assert asked_parts(other) == asked_parts(asked(chatty, items, off, format=kind))
        with pytest.raises(DataError, match="behind the questions of a chat, and the format is"):
            asked(chatty, items, own, format=kind)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("brief = 3", "'brief' is 3, expected a text"),
        ('brief = " "', "expected a text behind every question, or false"),
        ('brief = "Of {entity}?"', "it has no {entity} or {image}"),
        ('brief = "x"\nformat = "qa"', "the format is 'qa'"),
    ],
)
def test_a_map_whose_instruction_is_none(
    items: Path, tmp_path: Path, written: str, said: str
) -> None:
    (tmp_path / "map.toml").write_text(written)
    with pytest.raises(DataError, match=said):
        check(items, read_map(tmp_path / "map.toml"))


def test_data_check_shows_it(
    items: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def shown(*more: str) -> tuple[str, Any]:
        assert main(["data", "check", str(items), *more]) == 0
        text = capsys.readouterr().out
        assert main(["data", "check", str(items), *more, "--json"]) == 0
        return text, json.loads(capsys.readouterr().out)["brief"]

    said, brief = shown()
    assert f"in a chat, every question ends with: {BRIEF}" in said
    assert brief == BRIEF
    for written, expected in ((f'brief = "{OWN}"', OWN), ("brief = false", None),
                              ('format = "qa"', None), ('format = "chat"', BRIEF)):  # fmt: skip
        (tmp_path / "map.toml").write_text(written)
        said, brief = shown("--map", str(tmp_path / "map.toml"))
        assert brief == expected
        assert ("in a chat" in said) == (expected is not None)


def test_answers_of_a_chat_have_room_for_a_sentence(chatty: Path, items: Path) -> None:
    chat, framed = asked(chatty, items), asked(chatty, items, format="qa")
    model = model_of("llama")
    assert longest_answer(model, chat) == 32
    assert longest_answer(model, framed) < 32
    roomy = Protocol(sentence_tokens=64)
    assert longest_answer(model, chat, protocol=roomy) == 64
    assert longest_answer(model, framed, protocol=roomy) < 32
    long = "a very " * 40 + "long name"
    names = replace(chat.items[0], answers=(*chat.items[0].answers, long))
    assert longest_answer(model, replace(chat, items=(names, *chat.items[1:]))) > 40


def test_the_limit_is_that_of_the_whole_benchmark() -> None:
    model = model_of("llama")
    benchmark = micro.benchmark()
    last = benchmark.items[-1]
    long = replace(last, answers=("a very long answer that no other item has",))
    whole = replace(benchmark, items=(*benchmark.items[:-1], long))
    few = whole.limited(2)
    assert long not in few.items
    assert longest_answer(model, few) == longest_answer(model, whole)
    assert longest_answer(model, few) > longest_answer(model, benchmark)


def test_no_item_for_windows_and_maps_is_no_crash_and_has_its_reason() -> None:
    """What is said in sentences is right, and the windows are not measured on it."""
    study = study_of("micro-naming", Settings(limit=4))
    told = text_gate(study, study.backbone, gate="backbone_text")
    told["text"] = ("gate", "item"), [[f"It is {text}" for text in told["text"].values[0]]]
    told["cut"] = told["cut"] | (told["item"] == told["item"][0])
    told["right"] = told["right"] & ~told["cut"]
    found = run_stages(STAGES[1:], study, {"backbone_text": told})
    assert found["windows"].sizes["item"] == 0
    tree = xr.DataTree.from_dict(found)
    summary = as_json(summarise(tree, pair="wordy", seed=0))
    assert summary["answers_cut"]["backbone_text"] == {"n": 1, "wrong": 1}
    assert summary["windows"]["enrichment_end"]["value"] is None
    assert "AUC" not in verdict_sentence(summary), "nothing is predicted without a timetable"
    said = " ".join(cautions(tree, summary))
    assert "Of no item the backbone gives the canonical answer in text" in said
    assert "cut at the limit of tokens" in said
    assert "does not clearly beat shuffled labels" not in said


def test_cut_answers_are_counted() -> None:
    study = study_of("micro-naming", Settings(limit=4))
    gates = run_stages(["recall"], replace(study, max_new_tokens=1))["recall"]
    cut = answers_cut(gates)
    assert cut["backbone_text"]["n"] == int(gates["cut"].sel(gate="backbone_text").sum()) > 0
    assert cut["backbone_text"]["wrong"] <= cut["backbone_text"]["n"]
    whole = text_gate(study, study.backbone, gate="backbone_text")
    assert not whole["cut"].any()


def test_an_unnamed_entity_has_the_words_of_the_pictures_question() -> None:
    plain = Wording("What is the capital of {entity}?")
    placed = Wording(plain.text, "What is the capital of the country in {image}?")
    shown = Wording(plain.text, "What is this country's capital?", (("Wales", "Cardiff"),))
    writer = Writer(QA)
    ends = {
        plain: "Question: What is the capital of it?\nAnswer:",
        placed: "Question: What is the capital of the country in it?\nAnswer:",
        shown: "Question: What is this country's capital?\nAnswer:",
    }
    for wording, end in ends.items():
        template = writer.template(wording)
        assert template.fill_with_nothing() == template.prefix + end
    processor = model_of("llava").processor
    chat = Writer(replace(CHAT, brief=OWN), chat_template_of(processor, name="llava"))
    for wording in ends:
        text = chat.template(wording).fill_with_nothing()
        assert "<image>" not in text
        assert text.count("Wales") == (wording is shown)
        assert text.count(OWN) == 1 + len(wording.examples)
