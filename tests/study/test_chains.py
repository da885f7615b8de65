"""Chains of thought in every format, and what of them is scored."""

from dataclasses import replace

import pytest
import tiny
from families import model_of

from twohop.ask.questions import Questions
from twohop.flags import benchmark as flags
from twohop.items.datamap import Wording
from twohop.items.formats import CHAT, COMPLETION, QA, Writer, chat_template_of
from twohop.items.items import PLACE, Benchmark
from twohop.micro import benchmark as micro
from twohop.running.pair_run import Settings
from twohop.running.study import study_of
from twohop.stages.recovery.chains import NO_TURN, NO_UNNAMED, chains, last_line

NAMING = Wording("Which country is {entity}?", "Which country is this?", (("Wales", "Wales"),))
ASKED = Wording(
    "What is the capital of {entity}?",
    "What is the capital of this country?",
    (("Wales", "Cardiff"),),
)


def test_an_unnamed_chain_does_not_say_the_name_again() -> None:
    chain = Writer(QA).chain(NAMING, ASKED, "France", unnamed=True).show("<image>")
    assert chain == (
        "Question: Which country is Wales?\nAnswer: Wales\n"
        "Question: What is the capital of this country?\nAnswer: Cardiff\n\n"
        "<image>\nQuestion: Which country is this?\nAnswer: France\n"
        "Question: What is the capital of this country?\nAnswer:"
    )
    [turn, rest] = chain.split(" France", 1)
    assert Writer(QA).one_turn(NAMING, ASKED).show("<image>") == turn
    assert "France" not in rest
    inline = Wording("The capital of {entity} is")
    written = Writer(COMPLETION).chain(inline, inline, "France", unnamed=True).fill("Peru")
    assert written == "The capital of Peru is France\nThe capital of it is"


@pytest.mark.parametrize("built_in", [flags.benchmark(), micro.benchmark()], ids=lambda b: b.name)
def test_built_in_chains_stop_where_the_name_is_written(built_in: Benchmark) -> None:
    assert built_in.unnamed_chain
    assert built_in.one_turn
    for relation in built_in.relations:
        chain = built_in.unnamed_chain(relation, "Peru").show("<image>")
        before, after = chain.split(" Peru", 1)
        assert built_in.one_turn(relation).show("<image>") == before
        assert "Peru" not in after
        assert "<image>" not in after
        named = built_in.chain(relation, "Peru").show("<image>")
        assert named.count("Peru") == 2


@pytest.mark.parametrize("family", tiny.VLMS)
def test_a_chat_asks_both_in_one_turn_without_brevity(family: str) -> None:
    vlm = model_of(family)
    brief = replace(CHAT, brief="Answer in one word.")
    writer = Writer(brief, chat_template_of(vlm.processor, name=family))
    shown = writer.one_turn(NAMING, ASKED)
    text = shown.show(vlm.image_token or "")
    assert "Answer in one word." not in text
    asked = text[text.rindex("Answer two questions") :]
    assert asked.index("Which country is this?") < asked.index(
        "What is the capital of this country?"
    )
    assert text.index("Wales\nCardiff") < text.index(asked)
    prompt = vlm.prompt(text, images=tiny.picture((40, 30)))
    assert prompt.has_images
    assert PLACE in shown.question


def test_the_end_of_two_lines_is_scored() -> None:
    assert last_line("Kuwait\nKuwait City\n\n") == "Kuwait City"
    assert last_line("Paris") == "Paris"
    assert last_line(" \n") == ""


def test_a_benchmark_without_such_prompts_is_told_why() -> None:
    study = study_of("micro-naming", Settings(limit=2))
    questions = Questions(study, study.benchmark.items[:2])
    names = [item.entity.name for item in questions.items]
    arms, refused = chains(questions, names)
    assert not refused
    assert {*arms} == {"cot_named", "cot_gold", "cot_wrong", "cot_unnamed", "cot_own"}
    bare = replace(study.benchmark, unnamed_chain=None, one_turn=None)
    fewer, refused = chains(Questions(replace(study, benchmark=bare), questions.items), names)
    assert refused == {"cot_unnamed": NO_UNNAMED, "cot_own": NO_TURN}
    assert {*fewer} == {"cot_named", "cot_gold", "cot_wrong"}
    for arm, outcome in fewer.items():
        assert outcome.texts == arms[arm].texts


def test_a_chat_writes_both_lines_and_the_last_is_the_answer() -> None:
    """A chat is one turn: nothing is put in its mouth, and its line break ends nothing."""
    study = study_of("micro-naming", Settings(limit=2))
    questions = Questions(study, study.benchmark.items[:1])
    chat = replace(study.benchmark, chat=True)
    questions = replace(questions, study=replace(study, benchmark=chat))
    arms, refused = chains(questions, ["Avaria"])
    assert not refused
    [text] = arms["cot_own"].texts
    # The micro model goes on with the next question by itself; " ." is only a word to it here.
    assert " . " in f"{text} "
