"""What of a class is not a library's is remembered, and never when it is another by now."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.llama import modeling_llama as llama

from interventions.model import own_code as module
from interventions.model.own_code import own_code

LAYER: Any = llama.LlamaMLP
BASE: Any = torch.nn.Module


def own(factor: float) -> Callable[..., Any]:
    return lambda *given: factor


CHANGES: dict[str, Callable[[pytest.MonkeyPatch, int], None]] = {
    "a method": lambda patch, i: patch.setattr(LAYER, "forward", own(i)),
    "a base's method": lambda patch, i: patch.setattr(BASE, "extra_repr", own(i)),
    "a number": lambda patch, i: patch.setattr(LAYER, "factor", float(i), raising=False),
    "nothing by name": lambda patch, i: patch.setattr(LAYER, "factor", None, raising=False),
    "a base's number": lambda patch, i: patch.setattr(BASE, "_version", i),
    "a tensor": lambda patch, i: patch.setattr(LAYER, "factor", torch.tensor(i), raising=False),
    "a function that a method calls": lambda patch, i: patch.setattr(
        llama, "ALL_ATTENTION_FUNCTIONS" if i % 2 else "rotate_half", own(i)
    ),
    "a name that was in no module": lambda patch, i: patch.setattr(
        llama, "super", own(i), raising=False
    ),
}


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([LAYER, llama.LlamaAttention, llama.LlamaForCausalLM]),
    st.lists(st.tuples(st.sampled_from(sorted(CHANGES)), st.integers(2, 5)), max_size=5),
)
def test_what_is_remembered_is_what_would_be_found(
    kind: type, changes: list[tuple[str, int]]
) -> None:
    before = own_code(kind)
    with pytest.MonkeyPatch.context() as patch:
        for what, i in changes:
            CHANGES[what](patch, i)
            assert own_code(kind) == module._found(kind).written, what
    assert own_code(kind) == before


def test_an_attribute_in_the_place_of_another_is_seen() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LAYER, "one", None, raising=False)
        before = own_code(LAYER)
        patch.delattr(LAYER, "one")
        patch.setattr(LAYER, "other", 3.0, raising=False)
        assert "other" not in before
        assert own_code(LAYER)["other"] == 3.0


def test_a_base_put_under_a_class_is_seen() -> None:
    class Mixed:
        factor = 3.0

    before = own_code(LAYER)
    bases = LAYER.__bases__
    LAYER.__bases__ = (Mixed, *bases)
    try:
        assert "factor" not in before
        assert own_code(LAYER)["factor"] == 3.0
    finally:
        LAYER.__bases__ = bases
    assert own_code(LAYER) == before


def test_code_put_into_a_function_is_seen() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llama, "mine", own(2.0), raising=False)
        before = own_code(llama.LlamaAttention)
        calls = compile("lambda *given: mine(*given)", "<own>", "eval")
        patch.setattr(llama.apply_rotary_pos_emb, "__code__", eval(calls).__code__)
        assert "mine" not in str(before)
        assert any("mine" in name for name in own_code(llama.LlamaAttention))


def test_while_nothing_changes_a_class_is_looked_through_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    walked: list[type] = []
    found = module._found
    monkeypatch.setattr(module, "_found", lambda kind: (walked.append(kind), found(kind))[1])
    monkeypatch.setattr(module, "_FOUND", {})
    several = [own_code(llama.LlamaModel) for _ in range(3)]
    assert walked == [llama.LlamaModel]
    assert several[0] is several[1] is several[2]


def test_classes_of_ones_own_are_not_kept_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    known: dict[type, Any] = {}
    monkeypatch.setattr(module, "_FOUND", known)
    own_code(type("Mine", (torch.nn.Module,), {"forward": own(1.0)}))
    assert not known


class Behind:
    """A descriptor that keeps what a class has in itself."""

    def __init__(self, **inside: Any) -> None:
        self.__dict__.update(inside)

    def __get__(self, *_: object) -> Any:
        return self


@pytest.mark.parametrize("name", ["fget", "__func__"])
def test_another_function_in_a_descriptor_that_stays_is_seen(name: str) -> None:
    first, second = own(1.0), own(2.0)
    descriptor = Behind(**{name: first})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LAYER, "forward", descriptor)
        assert own_code(LAYER)["forward"] is first
        setattr(descriptor, name, second)
        assert own_code(LAYER)["forward"] is second


def test_another_function_under_a_decorator_that_stays_is_seen() -> None:
    inside: Any = vars(llama)
    library: Any = eval("lambda *given: rotate_half(*given)", inside)
    library.__module__ = llama.__name__
    decorated: Any = eval("lambda *given: decorated.__wrapped__(*given)", inside)
    decorated.__module__, decorated.__wrapped__ = llama.__name__, library
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llama, "mine", own(2.0), raising=False)
        patch.setattr(LAYER, "forward", decorated)
        before = own_code(LAYER)
        another: Any = eval("lambda *given: mine(*given)", inside)
        another.__module__ = llama.__name__
        decorated.__wrapped__ = another
        assert "forward: mine" not in before
        assert "forward: mine" in own_code(LAYER)
