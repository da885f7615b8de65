"""Patches taken apart by layer and put together over copies of rows; rows of unlike length."""

import pickle

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import interventions as iv
from interventions.prompt.positions import Positions, from_lists, ragged
from interventions.running.patches import Patch
from interventions.running.transplant import padded

LENGTH = 7
lists = st.lists(st.lists(st.integers(0, LENGTH - 1), max_size=5), min_size=1, max_size=4)


@settings(max_examples=100, deadline=None)
@given(lists, st.integers(-1, 9))
def test_rows_of_unlike_length_are_filled_up(rows: list[list[int]], fill: int) -> None:
    numbers, mask = ragged(rows, fill=fill)
    assert numbers.shape == mask.shape == (len(rows), max(map(len, rows)))
    assert [own[there].tolist() for own, there in zip(numbers, mask, strict=True)] == rows
    assert bool((numbers[~mask] == fill).all())


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
    assert pickle.loads(pickle.dumps(padded)) is padded
    assert (padded.__module__, padded.__name__) == ("interventions.running.transplant", "padded")
