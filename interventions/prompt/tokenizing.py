"""A text becomes ids as a model was trained to see it: one begin token, and no end.

Most tokenizers put a begin token in front of what they are given. A chat template may have written
one already, a processor may write its own, and a tokenizer may be set to close what it is given.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ends:
    """What a tokenizer puts around a text.

    Attributes
    ----------
    begin : str
        The special tokens in front, as text.
    n_back : int
        How many tokens it puts behind.
    """

    begin: str
    n_back: int


def ends_of(tokenizer: Any) -> Ends:
    """Find what a tokenizer puts around a text by trying it."""
    whole = list(tokenizer("a")["input_ids"])
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    starts = range(len(whole) - len(bare) + 1)
    front = next((i for i in starts if whole[i : i + len(bare)] == bare), 0)
    begin = "".join(tokenizer.convert_ids_to_tokens(whole[:front]))
    return Ends(begin, len(whole) - front - len(bare))


class Listener:
    """Stands in for a tokenizer; keeps the last text it was given and the offsets of its tokens.

    Where the text begins with the begin token, as it was written or by the processor (Mllama's),
    no second one is added. What the tokenizer would put behind it is left out: a prompt goes on.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ends = ends_of(tokenizer)
        self.text = ""
        self.offsets: list[tuple[int, int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, text: Any, **kwargs: Any) -> Any:
        """Encode a text, or a list of one, as the tokenizer does."""
        settings = {"add_special_tokens": True, **kwargs, "return_offsets_mapping": True}
        self.text = text if isinstance(text, str) else text[0]
        begin = self._ends.begin
        if begin and self.text.startswith(begin):
            settings["add_special_tokens"] = False
        encoded = self._tokenizer(text, **settings)
        if settings["add_special_tokens"] and self._ends.n_back:
            for key, value in list(encoded.items()):
                encoded[key] = _shortened(value, self._ends.n_back)
        offsets = encoded.pop("offset_mapping")
        first = offsets if isinstance(text, str) else offsets[0]
        self.offsets = [(int(a), int(b)) for a, b in first]
        return encoded


def _shortened(value: Any, n: int) -> Any:
    """One text's entries, or those of a batch of texts, without the last ``n``."""
    if hasattr(value, "shape"):
        return value[:, :-n]
    if value and isinstance(value[0], list):
        return [entries[:-n] for entries in value]
    return value[:-n] if isinstance(value, Sequence) else value
