"""The grid of places: of the image, of the question that a user wrote, and the last token."""

# ruff: noqa: F811 - `rows`, `items` and `chatty` are fixtures of other files

from pathlib import Path

import numpy as np
import pytest
from families import model_of
from test_brief import asked, chatty, items  # noqa: F401
from test_data import rows  # noqa: F401

import interventions as iv
from twohop.ask.places import places
from twohop.ask.questions import Questions
from twohop.ask.roles import question_tokens
from twohop.ask.study import Study
from twohop.items.items import Benchmark
from twohop.micro.benchmark import benchmark
from twohop.protocol import Protocol
from twohop.stages.resolution.states import image_states, own_items

PROTOCOL = Protocol(image_places=4, question_places=3)


def words_at(model: iv.Model, prompt: iv.Prompt, study: Study) -> dict[str, list[str]]:
    """The token at every place, of each row."""
    ids = prompt.inputs["input_ids"]
    return {
        str(place): [
            model.tokenizer.decode([int(of_row[at])])
            for of_row, [at] in zip(ids, place.positions(prompt).index.tolist(), strict=True)
        ]
        for place in places(study)
    }


def test_no_place_is_named_twice_and_each_is_where_it_says(vlm: iv.Model, llm: iv.Model) -> None:
    study = Study(vlm, llm, benchmark(), protocol=PROTOCOL)
    prompt = Questions(study, study.benchmark.items[:3]).shown([0], marked=True)
    names = [str(place) for place in places(study)]
    assert len({*names}) == len(names) == 4 + 3 + 1
    words = words_at(vlm, prompt, study)
    asked_words = study.benchmark.templates[study.benchmark.items[0].relation].question.split()
    behind = asked_words[asked_words.index("{entity}") + 1 :]
    assert words["last"] == behind[-1:] == [":"]
    before = asked_words[: asked_words.index("{entity}")]
    question = [words[f"question token -{1 + i}"][0] for i in range(3)]
    assert question == [*reversed([*before, *behind[:-1]])][:3], "a picture's tokens are no text"
    image = prompt.at("image").index[0].tolist()
    at = {str(place): int(place.positions(prompt).index[0, 0]) for place in places(study)}
    share = len(image) // 4
    assert [at[f"image token at {i + 1}/4"] for i in range(4)] == image[share - 1 :: share]


def test_a_chats_marks_and_its_instruction_are_no_places(chatty: Path, items: Path) -> None:
    model = iv.load(chatty)
    chat = asked(chatty, items)
    study = Study(model, model, chat, protocol=PROTOCOL)
    prompt = Questions(study, chat.items[:1]).shown([0], marked=True)
    told = [int(at) for at in question_tokens(prompt).index[0]]
    ids = prompt.inputs["input_ids"][0]
    said = model.tokenizer.decode([int(ids[at]) for at in told]).strip()
    assert said.endswith("What is this country's capital?")
    assert not {"<|im_end|>", "<|im_start|>"} & {model.tokenizer.decode([ids[at]]) for at in told}
    assert chat.templates["capital"].closing.count("<|im_end|>") == 1
    words = words_at(model, prompt, study)
    assert words["question token -1"][0].endswith("?")
    last = int(prompt.at("last").index[0, 0])
    assert int(places(study)[-1].positions(prompt).index[0, 0]) == last
    assert last not in told


@pytest.mark.parametrize("kind", ["qa", "completion"])
def test_other_formats_have_nothing_behind_the_question(
    chatty: Path, items: Path, kind: str
) -> None:
    for template in asked(chatty, items, format=kind).templates.values():
        assert template.closing == ""


def test_a_chain_of_questions_closes_as_a_question_does(chatty: Path, items: Path) -> None:
    chat: Benchmark = asked(chatty, items)
    closing = chat.templates["capital"].closing
    assert closing
    assert chat.chain("capital", "Peru").closing == closing


def test_where_images_enter_by_cross_attention_the_places_are_of_the_text(llm: iv.Model) -> None:
    study = Study(model_of("mllama"), llm, benchmark(), protocol=PROTOCOL)
    assert {place.role for place in places(study)} == {"question", "last"}


def test_states_are_those_of_the_places(vlm: iv.Model, llm: iv.Model) -> None:
    study = Study(vlm, llm, benchmark(), protocol=PROTOCOL)
    [states] = image_states(study, [0])
    assert [*states][:3] == ["image", "last_image", "last"]
    assert {*states} == {"image", "last_image", *(str(place) for place in places(study))}
    assert states["last_image"] is states["image token at 4/4"]
    chosen = [4, 2, 7]
    prompt = Questions(study, own_items(study.benchmark)).shown(chosen, marked=True)
    for place in places(study):
        [value] = iv.read(vlm, prompt, [iv.Site("resid_pre", 3, place.positions(prompt))])
        assert np.allclose(states[str(place)][3, chosen], value, atol=1e-5), place
