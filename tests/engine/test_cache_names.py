"""A cache is found and given by the name that the installed transformers has for it."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import model_of
from floors import FLOOR32, relative
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

import interventions as iv
from interventions.errors import PromptError
from interventions.model.cache_names import (
    NAMES,
    cache_argument,
    given_cache,
    names_a_cache,
    returned_cache,
    with_cache_named,
)

SOURCES = Path(__file__).parents[2]
TEXT = "The capital of France is the big river"
FEW = ("llama", "gemma2", "llava", "qwen2_vl", "mllama")


def continued(model: iv.Model) -> tuple[iv.Prompt, Callable[[], Any], torch.Tensor]:
    """A prompt without its first tokens, a cache of these, and the logits of the whole."""
    whole, own = model.prompt(TEXT), model.prompt(TEXT, share_prefix="The capital of")
    assert len(own.prefix_ids)

    def cache() -> Any:
        ids = own.prefix_ids[None]
        with torch.no_grad():
            return returned_cache(model.module(input_ids=ids, use_cache=True))

    found = iv.run(model, whole).logits
    assert found is not None
    return own, cache, found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("family", FEW)
def test_a_cache_is_taken_by_either_name(family: str, name: str) -> None:
    model = model_of(family)
    own, cache, wanted = continued(model)
    found = iv.run(model, own, inputs={name: cache()}).logits
    assert found is not None
    with model.trace(own, inputs={name: cache()}):
        inside = model.logits[own.at("last")].save()
    with model.trace(own, **{name: cache()}):
        beside = model.logits[own.at("last")].save()
    for one in (found, inside, beside):
        assert relative(one, wanted) < FLOOR32


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("family", FEW)
def test_generate_takes_a_cache_by_either_name_and_fills_it(family: str, name: str) -> None:
    model = model_of(family)
    prompt = model.prompt(TEXT)
    cache = DynamicCache(config=model.module.config)
    with model.generate(prompt, max_new_tokens=3) as tracer:
        wanted = tracer.result.save()
    with model.generate(prompt, max_new_tokens=3, **{name: cache}) as tracer:
        found = tracer.result.save()
    assert torch.equal(found, wanted)
    assert cache.get_seq_length() >= prompt.length


def test_two_names_of_one_argument_are_refused() -> None:
    model = model_of("llama")
    own, cache, _ = continued(model)
    twice = {name: cache() for name in NAMES}
    for ask in (
        lambda: iv.run(model, own, inputs=twice),
        lambda: model.trace(own, inputs=twice),
        lambda: model.trace(own, **twice),
        lambda: model.generate(own, **twice),
    ):
        with pytest.raises(PromptError, match=r"two names of one argument\. Give one"):
            ask()


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
def test_a_knockout_in_the_only_token_behind_a_cache(attn: str) -> None:
    """No mask is made for a single token, so how much it sees is known from the cache alone."""
    model = model_of("llama", torch.float32, attn)
    whole = model.prompt(TEXT)
    own = model.prompt(TEXT, share_prefix=True)
    assert own.length == 1
    found = []
    for prompt in (whole, own):
        last = prompt.at("last")
        cut = iv.Knockout(slice(0, model.n_layers), queries=last, keys=last)
        logits = iv.run(model, prompt, knockouts=[cut]).logits
        assert logits is not None
        found.append(logits)
    plain = iv.run(model, whole).logits
    assert plain is not None
    assert relative(found[1], found[0]) < FLOOR32
    assert relative(found[1], plain) > 1e-3


@pytest.mark.parametrize("family", FEW)
def test_the_name_is_that_of_the_forward_at_hand(family: str) -> None:
    module = model_of(family).module
    name = cache_argument(module)
    with torch.no_grad():
        output = module(input_ids=torch.ones(1, 3, dtype=torch.long), use_cache=True)
        assert returned_cache(output).get_seq_length() == 3
        assert returned_cache(output) is output[name]
        again = module(**{name: returned_cache(output)}, input_ids=torch.ones(1, 1).long())
    assert output[name].get_seq_length() == 4
    assert again.logits.shape[1] == 1


class Old(torch.nn.Module):
    def forward(self, input_ids: Any, past_key_values: Any = None) -> Any:
        return input_ids, past_key_values


class New(torch.nn.Module):
    def forward(self, input_ids: Any, cache: Any = None, **more: Any) -> Any:
        return input_ids, cache, more


class Around(torch.nn.Module):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return args, kwargs


def test_models_of_another_time_are_called_as_they_were_written() -> None:
    installed = cache_argument(model_of("llama").module)
    assert [cache_argument(one()) for one in (Old, New, Around)] == [NAMES[1], NAMES[0], installed]


@settings(max_examples=200, deadline=None)
@given(
    more=st.dictionaries(st.text(max_size=6), st.integers() | st.none()),
    cache=st.dictionaries(st.sampled_from(NAMES), st.integers(1) | st.none(), max_size=1),
    wanted=st.sampled_from(NAMES),
)
def test_renaming_changes_the_name_and_nothing_else(
    more: dict[str, Any], cache: dict[str, Any], wanted: str
) -> None:
    others = {key: value for key, value in more.items() if key not in NAMES}
    arguments = others | cache
    named = with_cache_named(wanted, arguments)
    assert named == others | ({wanted: one} if (one := next(iter(cache.values()), 0)) != 0 else {})
    assert names_a_cache(named) == names_a_cache(arguments) == bool(cache)
    assert given_cache(named) == given_cache(arguments) == next(iter(cache.values()), None)


def test_one_module_knows_the_names() -> None:
    used = re.compile(r"""["'.]past_key_values\b|\bpast_key_values\s*=""")
    found = {
        path.relative_to(SOURCES).as_posix()
        for package in ("interventions", "twohop")
        for path in (SOURCES / package).rglob("*.py")
        if used.search(path.read_text(encoding="utf-8"))
    }
    assert found == {"interventions/model/cache_names.py"}
