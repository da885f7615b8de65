"""Chains of thought: the entity is named first, by the model or for it, and then it is asked."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from twohop.ask.answers import answers
from twohop.ask.on_server import Task
from twohop.ask.questions import Questions, Rows
from twohop.ask.study import pictured
from twohop.items.items import Item, Template
from twohop.stages.recovery.transplants import Outcomes

NO_UNNAMED = "the benchmark has no second question that does not say the name (`unnamed_chain`)"
NO_TURN = "the benchmark has no prompt for a name and an answer in one turn (`one_turn`)"

ABOUT_NAME: tuple[str, ...] = ("cot_named", "cot_gold", "cot_wrong")
"""Arms that are asked about the name that was said."""
WITHOUT_NAME: tuple[str, ...] = ("cot_unnamed", "cot_own")
"""Arms that are asked without it."""


def chains(
    questions: Questions, own_names: Sequence[str]
) -> tuple[dict[str, Outcomes], dict[str, str]]:
    """Ask after names have been said of the pictures; free answers only.

    Parameters
    ----------
    questions : Questions
    own_names : sequence of str
        What the VLM named each picture when it was asked for the name alone.

    Returns
    -------
    arms : dict of str to Outcomes
        ``cot_named``, ``cot_gold`` and ``cot_wrong``: this name, the right one and another's, and
        then the question about the name; ``cot_unnamed``: its own, and then the question in words
        that do not say it; ``cot_own``: the model writes the name itself, in this chain.
    refused : dict of str to str
        Arms that the benchmark has no prompts for, and why.
    """
    benchmark = questions.study.benchmark
    said = (
        list(own_names),
        [item.entity.name for item in questions.items],
        [other.entity.name for other in questions.others.items],
    )
    named = dict(zip(ABOUT_NAME, said, strict=True))
    arms = after_names(questions, named, benchmark.chain)
    arms["cot_wrong"] = arms["cot_wrong"].without(~questions.has_rival)
    unnamed: dict[str, list[str]] = {}
    refused: dict[str, str] = {}
    if benchmark.unnamed_chain is None:
        refused["cot_unnamed"] = NO_UNNAMED
    else:
        unnamed["cot_unnamed"] = list(own_names)
    if benchmark.one_turn is None or (benchmark.unnamed_chain is None and not benchmark.chat):
        refused["cot_own"] = NO_TURN
    elif benchmark.chat:
        arms["cot_own"] = _scored(questions, [last_line(text) for text in in_one_turn(questions)])
    else:
        unnamed["cot_own"] = in_one_turn(questions)
    if benchmark.unnamed_chain is not None:
        arms |= after_names(questions, unnamed, benchmark.unnamed_chain)
    return arms, refused


def after_names(
    questions: Questions,
    arms: Mapping[str, Sequence[str]],
    chain: Callable[[str, str], Template],
) -> dict[str, Outcomes]:
    """Answers after names were said: for each arm, one of each item's picture."""
    # Arms often say the same name: each is asked once.
    wanted = {
        (item.id, name): (item, name)
        for names in arms.values()
        for item, name in zip(questions.items, names, strict=True)
    }
    asked = replace(questions, items=[item for item, _ in wanted.values()])
    texts = said_to(asked, [chain(item.relation, name) for item, name in wanted.values()])
    said = dict(zip(wanted, texts, strict=True))
    return {
        arm: _scored(
            questions,
            [said[item.id, name] for item, name in zip(questions.items, names, strict=True)],
        )
        for arm, names in arms.items()
    }


def in_one_turn(questions: Questions) -> list[str]:
    """What the VLM writes where it is to name the entity and then to answer."""
    benchmark = questions.study.benchmark
    assert benchmark.one_turn is not None
    templates = {relation: benchmark.one_turn(relation) for relation in benchmark.relations}
    prompts = [templates[item.relation] for item in questions.items]
    return said_to(questions, prompts, lines=benchmark.chat)


def said_to(
    questions: Questions, templates: Sequence[Template], *, lines: bool = False
) -> list[str]:
    """Free answers to a text of its own for each item; ``lines``: of two lines, not cut at one."""
    study = questions.study
    decoding = study.decoding
    if lines:
        decoding = replace(decoding, max_new_tokens=2 * decoding.max_new_tokens, stop=None)

    def arguments(rows: Rows) -> Task:
        items: list[Item] = [questions.items[i] for i in rows]
        return pictured(study, items, [templates[i] for i in rows]), None, decoding

    of_items = questions.map(answers, arguments, model=study.vlm)
    return [answer["text"] for answer in of_items]


def last_line(text: str) -> str:
    """The last line with anything on it: where there are a name and an answer, the answer.

    Examples
    --------
    >>> last_line("France\\n2. Paris\\n")
    '2. Paris'
    """
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _scored(questions: Questions, texts: Sequence[str]) -> Outcomes:
    return Outcomes.of(questions.score(texts))
