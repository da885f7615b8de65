"""Think blocks: where a chat template or an answer opens one, and what stands behind it."""

THOUGHTS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
)
"""Marks that begin and end a think block."""


def opened(text: str, start: int = 0) -> str | None:
    """Return what would end the think block that a text leaves open; None if it leaves none.

    Parameters
    ----------
    text : str
    start : int
        Blocks that begin before this character do not count.

    Examples
    --------
    >>> opened("Q: Who? A: <think>")
    '</think>'
    """
    last, end = -1, None
    for opening, closing in THOUGHTS:
        place = text.rfind(opening)
        if place >= start and place > max(last, text.rfind(closing)):
            last, end = place, closing
    return end


def closed(text: str, end: str) -> str:
    """Return a text with its open think block ended by ``end``, empty as Qwen3 writes one.

    Examples
    --------
    >>> closed("A: <think>", "</think>")
    'A: <think>\\n\\n</think>\\n\\n'
    """
    opening = next(opening for opening, closing in THOUGHTS if closing == end)
    empty = text.rstrip("\n").endswith(opening)
    gap = "\n\n" if empty else "\n"
    breaks = len(text) - len(text.rstrip("\n"))
    return text + gap[min(breaks, len(gap)) :] + end + "\n\n"


def said_from(text: str) -> int | None:
    """Character of an answer at which what it says begins: behind its think block, if it has one.

    None while the block is open. An answer to a prompt that opened the block itself has only the
    mark that ends it.

    Examples
    --------
    >>> said_from("<think>France, so</think> Paris"), said_from("Paris"), said_from("<think>Hm")
    (26, 0, None)
    """
    ends = [text.find(end) + len(end) for _, end in THOUGHTS if end in text]
    if ends:
        behind = text[max(ends) :]
        return len(text) - len(behind.lstrip())
    begun = any(text.lstrip().startswith(opening) for opening, _ in THOUGHTS)
    return None if begun else 0


def behind_thoughts(text: str) -> str:
    """Return what an answer says behind its think block; nothing if it is still inside.

    Examples
    --------
    >>> behind_thoughts("<think>The flag is France's.</think> Paris")
    'Paris'
    """
    start = said_from(text)
    return "" if start is None else text[start:]
