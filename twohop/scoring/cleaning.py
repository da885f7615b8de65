"""Text without what only dresses it: markup, special tokens, typographic marks, hidden letters."""

import html
import re
import unicodedata

BREAK = " -- "  # what a dash between parts of a sentence becomes

_APOSTROPHES = "‘’‛`´ʻʼʽʾʿˈʹ′＇ꞌ՚׳"
_QUOTES = "“”„‟«»‹›″❝❞〝〞「」『』《》〈〉"
_HYPHENS = "‐‑⁃−⁻﹣－\u2012"
_MARKS = str.maketrans(
    dict.fromkeys(_APOSTROPHES, "'")
    | dict.fromkeys(_QUOTES, '"')
    | dict.fromkeys(_HYPHENS, "-")
    | dict.fromkeys("—―⸺⸻", BREAK)
    | dict.fromkeys("。।॥۔։", ". ")
    | dict.fromkeys("、،", ", ")
    | {"؛": "; ", "؟": "? ", "・": " ", "·": " ", "\u00b9": "¹"}
)
_HIDDEN = re.compile(r"[\ufe00-\ufe0f\u20e3]")
_EN_DASH = re.compile(r"(?<=\w)–(?=\w)")
_THOUGHT = re.compile(r"<(think|thinking|reasoning)>.*?</\1>", re.DOTALL | re.IGNORECASE)
_STRUCK = re.compile(r"~~[^~\n]+~~|<(del|strike)>.*?</\1>", re.DOTALL | re.IGNORECASE)
_TURN_ENDS = re.compile(
    r"<\|(?:im_end|im_start|eot_id|eom_id|end|endoftext|end_of_text|eos|return|user)\|>"
    r"|</s>|<eos>|<end_of_turn>|<start_of_turn>|<｜end▁of▁sentence｜>|\[/?INST\]",
    re.IGNORECASE,
)
_TAG = re.compile(r"<\|[^<>|\n]{1,40}\|>|</?[A-Za-z][^<>\n]{0,80}>")
LINK = re.compile(r"\]\((?:https?|/|#|www)[^)\s]*\)|https?://\S+")
_CITATION = re.compile(r"\[\d{1,3}\]")
_BOXED = re.compile(r"\\boxed\b")
_COMMAND = re.compile(r"\\[A-Za-z]+|\\(?=[^\w\s])")
_RAISED = "⁰¹²³⁴⁵⁶⁷⁸⁹"
_POWER = re.compile(rf"(?<=\d)(⁻?[{_RAISED}]+)")
# A power is no footnote; the charge of an ion, as in "Na⁺", goes as one does.
_FOOTNOTE = re.compile(
    rf"(?<![\s\d^⁻])(?<!\b[kcm]m)(?<!\bm)(?<!\b[KCM]M)(?<!\bM)(?<!\bft)(?<!\bFT)(?:[{_RAISED}]+[⁺⁻]?|[⁺⁻])"
)


def _digit(character: str) -> str:
    """A character; if it is a digit of any script, as one of 0 to 9."""
    if character.isascii() or unicodedata.category(character) != "Nd":
        return character
    return str(unicodedata.decimal(character))


def plain(text: str) -> str:
    """Return a text with its marks made uniform, nothing of its wording lost.

    Apostrophes, quotation marks, hyphens, dashes and full stops of every kind become the plain
    ones, compatibility forms such as full-width letters become the usual ones (NFKC), and
    characters that are not seen go.

    Examples
    --------
    >>> plain("Ｎ’Ｄｊａｍｅｎａ"), plain("Port‑au‑Prince"), plain("Par\\u200bis")
    ("N'Djamena", 'Port-au-Prince', 'Paris')
    """
    text = (html.unescape(text) if "&" in text else text).replace("_", " ")
    if text.isascii():
        return re.sub(r"-{2,}", BREAK, text.replace("`", "'"))
    text = "".join(
        character
        for character in text
        if character.isascii() or unicodedata.category(character) != "Cf"
    )
    text = _POWER.sub(r"^\1", text)
    text = _FOOTNOTE.sub("", text)
    text = _EN_DASH.sub("-", text.translate(_MARKS)).replace("–", BREAK)
    text = unicodedata.normalize("NFKC", _HIDDEN.sub("", text))
    text = "".join(_digit(character) for character in text)
    return re.sub(r"-{2,}", BREAK, text)


def undressed(text: str) -> str:
    r"""Return the plain text of an answer, without markup and without what follows its end.

    Examples
    --------
    >>> undressed("\\boxed{\\text{Paris}}").split()
    ['answer:', '{', '{Paris}}']
    >>> undressed("<answer>Paris</answer><|im_end|>\n<|im_start|>user").split()
    ['Paris']
    """
    if "</" in text:
        text = _THOUGHT.sub(" ", text)
    text = _STRUCK.sub(" ", text)
    for end in _TURN_ENDS.finditer(text):
        if re.search(r"[^\W_]", _TAG.sub("", text[: end.start()])):
            text = text[: end.start()]
            break
    text = _TAG.sub(" ", _TURN_ENDS.sub(" ", text))
    text = _CITATION.sub("", LINK.sub(" ", text.replace("{,}", ",")))
    text = _COMMAND.sub(" ", _BOXED.sub(" answer: ", text))
    return plain(text)
