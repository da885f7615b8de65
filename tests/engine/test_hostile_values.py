"""Whatever is handed over: a result, or a named error before anything runs that leaves nothing."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from hostile import CALLS, CASES, VALUES, rows_to_probe, text

import interventions as iv
from interventions.errors import InterventionsError

NOTHING_THERE = {"load_sae", "FromModel", "open_collection"}
"""Calls that take a file or a pair of models, which nothing here is."""


@pytest.fixture(autouse=True)
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Relative paths that a call takes for a folder lie in one of its own."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("here"))
    yield
    os.chdir(before)


def state() -> dict[str, Any]:
    """Everything that a refusal might leave behind."""
    module = text().model.module
    return {
        "hooks": sum(
            len(hooks)
            for one in module.modules()
            for hooks in (one._forward_hooks, one._forward_pre_hooks, one._backward_hooks)
        ),
        "training": [one.training for one in module.modules()],
        "gradients": [(one.requires_grad, one.grad is None) for one in module.parameters()],
        "weights": [float(one.detach().double().sum()) for one in module.parameters()],
        "enabled": torch.is_grad_enabled(),
        "random": torch.get_rng_state().sum().item(),
        "files": sorted(str(one) for one in Path().rglob("*")),
    }


def outcome(call: str, parameter: str, value: str) -> str:
    """Make a call with one value exchanged; say what came of it."""
    act, _ = CALLS[call]
    before = state()
    try:
        act(**{parameter: VALUES[value]()})
    except InterventionsError as error:
        assert state() == before
        return f"refused: {error}"
    except Exception as error:
        raise AssertionError(
            f"{call}({parameter}={value}): {type(error).__name__}: {error}"
        ) from error
    after = state()
    for kept in before.keys() - {"files"}:
        assert after[kept] == before[kept], kept
    return "done"


def owned(case: tuple[str, str], value: str) -> bool:
    """Whether an error would be that of a function of the user's own."""
    return case == ("replay", "reduce") and value in ("a class", "a function")


@pytest.mark.parametrize("call", sorted({*CALLS} - NOTHING_THERE))
def test_arguments_that_fit_give_a_result(call: str) -> None:
    """Else whatever is exchanged in them would be refused for another reason."""
    act, _ = CALLS[call]
    assert act() is not None


@pytest.mark.parametrize("case", CASES, ids=".".join)
def test_a_result_or_a_named_error_that_leaves_nothing_behind(case: tuple[str, str]) -> None:
    for value in VALUES:
        if not owned(case, value):
            outcome(*case, value)


# Values that were taken for others without a word


ALIKE: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "an int of numpy is one layer": ("Site", {"layers": np.int64(2)}, {"layers": 2}),
    "and so is a tensor": ("Site", {"layers": torch.tensor(2)}, {"layers": 2}),
    "layers in an array": ("Site", {"layers": np.array([0, 2])}, {"layers": [0, 2]}),
    "one head": (
        "Site",
        {"component": "head_out", "heads": np.int32(1)},
        {"component": "head_out", "heads": 1},
    ),
    "patches of a generator": (
        "run",
        {"patches": lambda: (iv.steering(1, text().clean.at("last"), torch.ones(48)) for _ in "a")},
        {"patches": lambda: [iv.steering(1, text().clean.at("last"), torch.ones(48))]},
    ),
    "uint8 that would wrap around": (
        "steering",
        {"vector": np.full(48, 200, dtype=np.uint8), "scale": 2},
        {"vector": torch.full((48,), 400.0), "scale": 1.0},
    ),
    "and in a tensor": (
        "steering",
        {"vector": torch.full((48,), 200, dtype=torch.uint8), "scale": np.uint8(2)},
        {"vector": torch.full((48,), 400.0), "scale": 1.0},
    ),
    "a list is no list to repeat": (
        "steering",
        {"vector": [1.0] * 48, "scale": 2},
        {"vector": torch.full((48,), 2.0), "scale": 1.0},
    ),
    "a range of rows": ("Prompt.select", {"rows": range(2)}, {"rows": [0, 1]}),
    "a mask of rows": ("Prompt.select", {"rows": [False, True]}, {"rows": [1]}),
    "and in an array": ("Prompt.select", {"rows": np.array([False, True])}, {"rows": [1]}),
    "a mask of positions": ("Positions.rows", {"rows": [False, True]}, {"rows": [1]}),
    "labels by their order, not their index": (
        "probe",
        {"labels": lambda: pd.Series([0, 1] * 4, index=range(8, 0, -1))},
        {"labels": [0, 1] * 4},
    ),
    "labels of uint8": (
        "probe",
        {"labels": np.array([255, 7] * 4, dtype=np.uint8)},
        {"labels": np.array([255, 7] * 4)},
    ),
    "labels that end in a zero byte": (
        "probe",
        {"labels": ["a", "a\0"] * 4},
        {"labels": ["a", "b"] * 4},
    ),
    "labels of bfloat16": (
        "probe",
        {"labels": torch.tensor([0.5, 2.0] * 4, dtype=torch.bfloat16)},
        {"labels": [0.5, 2.0] * 4},
    ),
    "splits of numpy": ("probe", {"splits": np.int8(2)}, {"splits": 2}),
    "activations backward": (
        "probe",
        {"activations": lambda: rows_to_probe()[:, :, ::-1]},
        {"activations": lambda: rows_to_probe()[:, :, ::-1].copy()},
    ),
    "tokens of uint8": (
        "lens",
        {"tokens": torch.tensor([[7], [200]], dtype=torch.uint8)},
        {"tokens": torch.tensor([[7], [200]])},
    ),
    "answers of a generator": (
        "sweep",
        {"answers": lambda: (one for one in ("the", "of"))},
        {"answers": ["the", "of"]},
    ),
    "answers of a Series": (
        "sweep",
        {"answers": lambda: pd.Series(["the", "of"], index=[1, 0])},
        {"answers": ["the", "of"]},
    ),
    "spans of a Series": (
        "Model.prompt",
        {"span": lambda: pd.Series(["France", "town"], index=[1, 0])},
        {"span": ["France", "town"]},
    ),
    "a vector of numpy as a source": (
        "sweep",
        {"source": np.arange(48, dtype=np.uint16)},
        {"source": torch.arange(48).float()},
    ),
}


def called(call: str, changed: dict[str, Any]) -> Any:
    act, _ = CALLS[call]
    fresh = {key: value() if callable(value) else value for key, value in changed.items()}
    return act(**fresh)


def numbers(result: Any) -> list[np.ndarray]:
    """The numbers of any result."""
    if isinstance(result, list | tuple):
        return [one for part in result for one in numbers(part)]
    if isinstance(result, iv.Prompt):
        places = [
            one for roles in result.roles for _, found in sorted(roles.items()) for one in found
        ]
        return [result.inputs["input_ids"].numpy(), np.array(places)]
    if isinstance(result, iv.Positions):
        return [result.index.numpy()]
    if isinstance(result, iv.Run):
        return numbers([result.logits])
    if isinstance(result, xr.Dataset):
        return [one.values for one in result.data_vars.values()]
    return [result.numpy()]


@pytest.mark.parametrize("name", ALIKE)
def test_the_same_values_in_another_spelling_give_the_same_numbers(name: str) -> None:
    call, one, other = ALIKE[name]
    found, expected = numbers(called(call, one)), numbers(called(call, other))
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.shape == theirs.shape
        np.testing.assert_array_equal(mine, theirs)


def test_a_value_of_numpy_has_a_layer_axis_too() -> None:
    model, prompt = text().model, text().clean
    value = np.random.default_rng(0).normal(size=(2, 2, 48))
    found = []
    for one in (value, torch.from_numpy(value)):
        with model.trace(prompt):
            model.resid_post[[0, 1], prompt.at("last")] = one
            logits = model.logits[prompt.at("last")].save()
        found.append(logits)
    assert torch.equal(*found)


def test_numbers_of_python_keep_their_digits_in_a_model_of_float64() -> None:
    assert iv.Patch("resid_post", 1, text().clean.at("last"), 0.1).value.item() == 0.1  # pyright: ignore


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "layers in a quantised tensor": (
        "Site",
        {"layers": VALUES["a quantised tensor"]()},
        "an int, a slice or a list of int",
    ),
    "a class of no number": ("Site", {"layers": VALUES["a class of no number"]()}, "a list of int"),
    "a mode that says nothing": ("Patch", {"mode": VALUES["a class of no number"]()}, "no mode"),
    "layers of a generator that breaks": (
        "Site",
        {"layers": VALUES["a generator that breaks"]},
        "cannot be gone through to its end .RuntimeError: it broke",
    ),
    "answers of a generator that breaks": (
        "sweep",
        {"answers": VALUES["a generator that breaks"]},
        "answers.* cannot be gone through",
    ),
    "a mask as layers": ("Site", {"layers": [True, False, True, False]}, "where it is True"),
    "a bool as a layer": ("Site", {"layers": True}, "an int, a slice or a list of int"),
    "a set of layers": ("Patch", {"layers": {0, 1}}, "an int, a slice or a list of int"),
    "one layer twice": ("Patch", {"layers": [1, -3]}, "name one twice"),
    "a mode that is not there": ("Patch", {"mode": "Add"}, "no mode 'Add'. Did you mean 'add'"),
    "a way that is not there": ("transplant", {"how": "last"}, "no how 'last'"),
    "numbers too large for the model": ("Patch", {"value": 1e300}, "float32 cannot hold"),
    "an infinite number": ("Patch", {"value": float("inf")}, "holds infinite numbers"),
    "complex numbers": ("Patch", {"value": np.ones(48, complex)}, "Expected real numbers"),
    "a vector of one number": ("resid_post", {"value": torch.zeros(1)}, "does not fit"),
    "one text to choose from": ("complete", {"candidates": "the"}, "is one text"),
    "rows of letters": ("collect", {"rows": "the"}, "Expected a sequence of rows"),
    "True as a number of places": ("attribute", {"verify": True}, "Expected a whole number"),
    "a baseline with NaN": ("attribute", {"prompt": float("nan")}, "the baseline holds NaN"),
    "mixed labels": ("probe", {"labels": [1, "1"] * 4}, r"several types \(int, str\)"),
    "1, True and 1.0": ("probe", {"labels": [1, True, 1.0, 2] * 2}, "several types"),
    "a label that is missing": ("probe", {"labels": ["a", None] * 4}, "row 1 is missing"),
    "a group that is missing": ("probe", {"groups": [1.0, float("nan")] * 4}, "row 1 is missing"),
    "a masked label": (
        "probe",
        {"labels": np.ma.masked_array([0, 1] * 4, mask=[True] + [False] * 7)},
        "missing",
    ),
    "a coordinate of mixed types": ("collect", {"coordinate": ["a", 1]}, "several types"),
    "a token beyond the vocabulary": ("lens", {"tokens": torch.full((2, 1), 10**6)}, "vocabulary"),
    "positions of another prompt": (
        "transplant",
        {
            "read_at": lambda: text().model.prompt(["The sea", "The sea"]).at("last"),
            "how": "mean-to-all",
        },
        "Use positions of the prompt that runs",
    ),
    "a flag in words": ("attribute", {"by_role": "no"}, "Expected True or False"),
    "a head twice": ("sweep", {"components": "head_out", "heads": [0, -4]}, "name one twice"),
    "a role twice": ("sweep", {"roles": ["last", "last"]}, "names 'last' twice"),
    "a metric twice": ("sweep", {"metrics": ["kl", "kl"]}, "names one twice"),
    "a budget too small": ("sweep", {"budget": 1, "out": "swept"}, "Give budget="),
}


@pytest.mark.parametrize("name", REFUSED)
def test_values_that_cannot_be_meant_are_refused(name: str) -> None:
    call, changed, message = REFUSED[name]
    before = state()
    with pytest.raises(InterventionsError, match=message):
        called(call, changed)
    assert state() == before
