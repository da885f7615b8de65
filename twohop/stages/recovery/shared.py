"""What the rows of a prompt that is written into can share: all that is ahead of the writing."""

from collections.abc import Iterable, Sequence

from interventions import Prompt
from twohop.ask.places import Place
from twohop.ask.questions import Questions, Rows


def shared_text(questions: Questions, rows: Rows, candidates: Sequence[Place]) -> str:
    """The beginning of the rows' prompts about pictures that is run once for all of them.

    The worked examples, and of the question as much as leaves every candidate a token of the rows,
    and the same one.

    Parameters
    ----------
    questions : Questions
    rows : list of int
        Of one relation.
    candidates : sequence of Place
        One or more.
    """
    prefix = questions.template(rows).prefix
    whole = questions.shown(rows[:1], marked=True, share_prefix=prefix)
    places = _tokens(whole, candidates)
    for longer in _longer(questions, rows):
        prompt = questions.shown(rows[:1], marked=True, share_prefix=longer)
        gone = whole.length - prompt.length
        if gone <= min(places) and [at - gone for at in places] == _tokens(prompt, candidates):
            return longer
    return prefix


def _longer(questions: Questions, rows: Rows) -> Iterable[str]:
    """The prompt up to before a word of the question ahead of the picture, the longest first."""
    template, image = questions.template(rows), questions.study.vlm.image_token
    text = template.show(image or "")
    ahead = text.partition(image)[0] if image else ""
    start = len(template.prefix)
    return (text[:cut] for cut in range(len(ahead) - 1, start, -1) if ahead[cut].isspace())


def _tokens(prompt: Prompt, candidates: Sequence[Place]) -> list[int]:
    return [int(place.positions(prompt).index[0, 0]) for place in candidates]
