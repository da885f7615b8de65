"""Patches taken apart by layer and put together over copies of rows; rows of unlike length."""

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from families import case_of
from hypothesis import given, settings
from hypothesis import strategies as st

import interventions as iv
from interventions.errors import PatchError
from interventions.prompt.positions import Positions, from_lists, ragged
from interventions.running.patches import Patch
from interventions.running.transplant import How
from interventions.sweeping.measure import measured

LENGTH = 7
lists = st.lists(st.lists(st.integers(0, LENGTH - 1), max_size=5), min_size=1, max_size=4)


@settings(max_examples=100, deadline=None)
@given(lists, st.integers(-1, 9))
def test_rows_of_unlike_length_are_filled_up(rows: list[list[int]], fill: int) -> None:
    numbers, mask = ragged(rows, fill=fill)
    assert numbers.shape == mask.shape == (len(rows), max(map(len, rows)))
    assert [own[there].tolist() for own, there in zip(numbers, mask, strict=True)] == rows
    assert bool((numbers[~mask] == fill).all())


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, LENGTH - 1), min_size=1, max_size=5), min_size=1))
def test_filled_up_positions_are_the_rows_own_and_its_first_again(rows: list[list[int]]) -> None:
    at = from_lists(rows, length=LENGTH, single=False, role="some")
    filled = at.filled()
    assert not filled.ragged
    assert (filled.length, filled.single, filled.role) == (LENGTH, False, "some")
    width = max(map(len, rows))
    assert filled.index.tolist() == [[*row, *row[:1] * (width - len(row))] for row in rows]


@pytest.mark.parametrize("how", ["one-to-one", "last-to-all", "mean-to-all"])
def test_values_that_were_read_before_are_transplanted_as_if_read_now(
    llm: iv.Model, vlm: iv.Model, named: iv.Prompt, shown: iv.Prompt, how: How
) -> None:
    models, layers = iv.pair(vlm, llm), slice(0, 3)
    at, into = named.at("entity"), shown.at("image")
    assert at.ragged
    if how == "one-to-one":
        at, into = (prompt.at("question", slice(-2, None)) for prompt in (named, shown))
    place = at.last() if how == "last-to-all" else at.filled()
    [value] = iv.read(llm, named, [iv.Site("resid_post", layers, place)])
    if how == "mean-to-all":
        rows = [own[:, :n].mean(1) for own, n in zip(value.unbind(1), at.counts, strict=True)]
        value = torch.stack(rows, 1)
    given = iv.transplant(models, value, layers=layers, write_at=into)
    made = iv.transplant(models, named, layers=layers, read_at=at, write_at=into, how=how)
    now, before, unpatched = (
        iv.run(vlm, shown, patches=patches).logits for patches in (made, given, ())
    )
    assert now is not None
    assert before is not None
    assert unpatched is not None
    torch.testing.assert_close(now, before)
    assert how == "mean-to-all" or torch.equal(now, before)
    assert not torch.equal(now, unpatched)


def test_values_are_put_where_the_backbones_blocks_are_in_the_vlm() -> None:
    case = case_of("mllama")
    blocks = case.model.anatomy.self_blocks
    value = torch.zeros(2, len(case.prompt), case.model.d_model)
    models, at = iv.pair(case.model, case.model), case.prompt.at("last")
    [patch] = iv.transplant(models, value, layers=blocks[:2], write_at=at)
    assert patch.layers == blocks[:2]
    with pytest.raises(PatchError, match="Leave read_at= out"):
        iv.transplant(models, value, layers=blocks[:2], read_at=at, write_at=at)
    with pytest.raises(PatchError, match=r"read_at is None\. Expected a Positions"):
        iv.transplant(models, case.prompt, layers=blocks[:2], write_at=at)


D = 64
UNFIT = {
    "too few layers": (torch.zeros(2, 1, D), "names 3 layers but its value has 2"),
    "too many rows": (torch.zeros(3, 7, D), "does not fit resid_post"),
    "too many positions": (torch.zeros(3, 1, 99, D), "does not fit resid_post"),
    "another width": (torch.zeros(3, 1, D + 1), "width 65 cannot be written"),
    "nothing": (torch.zeros(0), "width 0 cannot be written"),
    "NaN": (torch.full((3, 1, D), float("nan")), "holds NaN"),
    "too large": (torch.full((3, 1, D), 1e300, dtype=torch.float64), "float32 cannot hold"),
    "an array that does not fit": (np.zeros((3, 7, D)), "does not fit resid_post"),
    "a text": ("named", "in place of a Prompt, is 'named'; give a tensor"),
    "none": (None, "in place of a Prompt, is None; give a tensor"),
    "a model": (iv.Noise(), "in place of a Prompt"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_values_that_do_not_fit_are_refused_when_a_transplant_is_made(
    llm: iv.Model, vlm: iv.Model, shown: iv.Prompt, name: str
) -> None:
    value, said = UNFIT[name]
    given: Any = value
    with pytest.raises(PatchError, match=said):
        iv.transplant(iv.pair(vlm, llm), given, layers=slice(3), write_at=shown.at("image"))


def test_an_array_is_transplanted_as_a_tensor_of_it(
    llm: iv.Model, vlm: iv.Model, shown: iv.Prompt
) -> None:
    value: Any = np.random.default_rng(0).normal(size=(3, 1, D))
    asked: dict[str, Any] = {"layers": slice(3), "write_at": shown.at("image")}
    models = iv.pair(vlm, llm)
    [array], [tensor] = (
        iv.transplant(models, given, **asked) for given in (value, torch.from_numpy(value))
    )
    assert torch.equal(array.value, tensor.value)


def places(n_rows: int, *counts: int) -> Positions:
    rows = [list(range(count)) for count in counts]
    return from_lists((rows * n_rows)[:n_rows], length=LENGTH, single=False, role="some")


def test_a_patch_is_split_into_its_layers() -> None:
    at = places(2, 3)
    value = torch.randn(2, 2, 3, 8)
    whole = Patch("resid_post", [1, 3], at, value)
    parts = whole.split(4)
    assert [part.layers for part in parts] == [1, 3]
    assert torch.equal(torch.stack([part.value for part in parts]), value)
    ablated = iv.ablated("mlp_out", slice(None), at).split(4)
    assert [part.layers for part in ablated] == [0, 1, 2, 3]
    assert all(part.value.ndim == 0 for part in ablated)


def test_merged_patches_write_what_each_wrote_into_its_own_rows(llm: iv.Model) -> None:
    prompt = llm.prompt(["The capital of France is", "The capital of Spain is"])
    at = [prompt.at("question"), prompt.at("last"), prompt.at("question", 0)]
    patches = {
        0: Patch("resid_post", 1, at[0], torch.randn(llm.d_model)),
        2: Patch("resid_post", 1, at[1], torch.randn(2, llm.d_model)),
        3: Patch("resid_post", 1, at[2], torch.zeros(())),
    }
    n_copies = 4  # of which one is left as it is
    merged = Patch.merge(llm, patches, n_copies)
    rows = torch.arange(len(prompt)).repeat_interleave(n_copies)
    together = iv.run(llm, prompt.select(rows), patches=[merged]).logits
    assert together is not None
    for copy in range(n_copies):
        alone = iv.run(llm, prompt, patches=[patches[copy]] if copy in patches else []).logits
        torch.testing.assert_close(together[copy::n_copies], alone)


def test_what_runs_where_the_model_is_is_found_by_its_name() -> None:
    assert pickle.loads(pickle.dumps(measured)) is measured
    assert measured.__module__ == "interventions.sweeping.measure"
    assert measured.__name__ == "measured"


def test_edits_of_which_come_no_numbers_are_refused() -> None:
    """Every value is a number that the format holds; what they are added to, or scale, is not."""
    case = case_of("llama", torch.float16, "sdpa")
    model, prompt = case.model, case.prompt
    large = torch.full((model.d_model,), 6e4)
    added = iv.Patch("resid_post", [0, 1, 2], case.place, large, "add")
    scaled = iv.Patch("resid_post", 1, case.place, torch.tensor(6e4), "scale")
    says = r"no numbers \(NaN\).* more than float16 can hold.* load the model in a wider format"
    behind = r"what patches behind a block make of its result holds infinite numbers"
    for patch in (added, scaled):
        with pytest.raises(PatchError, match=says):
            iv.run(model, prompt, patches=[patch])
        with pytest.raises(PatchError, match=f"{says}|{behind}"):
            iv.replay(model, prompt, [[patch]])
        with pytest.raises(PatchError, match=says):
            iv.complete(model, prompt, patches=[patch])
    wide = case_of("llama").model
    logits = iv.run(wide, case.prompt, patches=[added]).logits
    assert logits is not None
    assert bool(logits.isfinite().all())
