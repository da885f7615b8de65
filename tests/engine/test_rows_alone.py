"""Rows of a prompt are what they are alone, whatever stands beside them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from families import model_of, sees
from floors import FLOOR32, relative
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_forms import encoded, noise
from PIL import Image

import interventions as iv

NAMES = ["llava", "qwen2_5_vl", "qwen3_vl", "gemma3", "idefics3", "internvl", "llama", "gemma2"]
PICTURES = [noise(30, 40), noise(50, 24, seed=1), noise(16, 16, seed=2)]
FORMS = [  # one range of floats, as one prompt has
    lambda a: a,
    Image.fromarray,
    lambda a: encoded(Image.fromarray(a)),
    lambda a: a / 255,
    lambda a: torch.from_numpy(a).permute(2, 0, 1),
    lambda a: {"bytes": encoded(Image.fromarray(a)), "path": None},
]


@dataclass(frozen=True)
class Row:
    """One row of a prompt: its text or chat, and the pictures beside it."""

    text: Any
    images: list[Any]


def part(value: Any) -> dict[str, Any]:
    return {"type": "image", "image": value}


@st.composite
def shown(draw: st.DrawFn) -> Any:
    form, number = draw(st.sampled_from(FORMS)), draw(st.integers(0, len(PICTURES) - 1))
    return form(PICTURES[number])


@st.composite
def rows(draw: st.DrawFn, *, seeing: bool) -> Row:
    words = draw(st.text(st.sampled_from("ab CD.,?!\n"), min_size=1, max_size=20))
    words = f"{words} to France"
    pictures = draw(st.lists(shown(), max_size=2)) if seeing else []
    beside = draw(st.booleans())
    if draw(st.booleans()):
        return Row(
            draw(st.sampled_from(["", " "])).join(["<image>"] * len(pictures)) + words, pictures
        )
    places = [{"type": "image"} if beside else part(one) for one in pictures]
    content: Any = [*places, {"type": "text", "text": words}]
    if not places and draw(st.booleans()):
        content = words
    chat: list[Any] = [{"role": "user", "content": content}]
    if draw(st.booleans()):
        chat.append({"role": "assistant", "content": draw(st.sampled_from(["It is", "It is "]))})
    if draw(st.booleans()) and len(chat) == 2:
        chat.append({"role": "user", "content": "So?"})
    return Row(chat, pictures if beside else [])


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_a_row_is_what_it_is_alone(name: str, data: st.DataObject) -> None:
    model = model_of(name)
    given_rows = data.draw(st.lists(rows(seeing=sees(name)), min_size=2, max_size=4))
    images = [row.images for row in given_rows] if sees(name) else None
    together = model.prompt(
        [row.text for row in given_rows], images=images, spans={"entity": "France"}
    )
    logits = iv.run(model, together).logits
    assert logits is not None
    for i, row in enumerate(given_rows):
        alone = model.prompt(
            [row.text], images=[row.images] if row.images else None, spans={"entity": "France"}
        )
        n = alone.length
        assert torch.equal(together.inputs["input_ids"][i, -n:], alone.inputs["input_ids"][0])
        assert int(together.inputs["attention_mask"][i].sum()) == n
        moved = together.length - n
        assert together.roles[i] == {
            role: [position + moved for position in found] for role, found in alone.roles[0].items()
        }
        expected = iv.run(model, alone).logits
        assert expected is not None
        assert relative(logits[i], expected[0]) < FLOOR32
        assert np.isfinite(expected.numpy()).all()
