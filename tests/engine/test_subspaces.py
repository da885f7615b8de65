"""Subspaces: what is swapped in them, moved and taken out, and what is learned."""

from pathlib import Path
from typing import Any

import pytest
import torch
from families import case_of, raw_run
from floors import FLOOR32, FLOOR64, noise, relative

import interventions as iv
from interventions.errors import PatchError, ResultsError
from interventions.running.coordinates import Coordinates


def test_a_basis_is_kept_if_it_is_orthonormal_and_made_so_if_not() -> None:
    given = noise((16, 3))
    made = iv.Subspace(given)
    assert relative(made.basis.T @ made.basis, torch.eye(3)) < FLOOR32
    assert torch.equal(iv.Subspace(made.basis).basis, made.basis)
    vectors = noise((5, 16), 1)
    exact = given.double()
    onto = exact @ torch.linalg.inv(exact.T @ exact) @ exact.T
    assert relative(made.projected(vectors), (vectors.double() @ onto).float()) < FLOOR32
    assert iv.Subspace(given[:, 0]).size == 1


@pytest.mark.parametrize(
    ("basis", "match"),
    [
        (torch.zeros(4, 4, 4), "Expected .d_model, k."),
        (torch.ones(2, 3), "no more of them than d_model"),
        (torch.ones(4, 2), "column 1 of the basis lies in the span"),
        (torch.zeros(4), "is zero"),
        (torch.full((4,), float("nan")), "NaN"),
        ("no numbers", "basis"),
    ],
)
def test_what_is_no_basis_is_refused(basis: Any, match: str) -> None:
    with pytest.raises(PatchError, match=match):
        iv.Subspace(basis)


def test_a_subspace_is_saved_and_opened(tmp_path: Path) -> None:
    made = iv.Subspace(noise((8, 2)), {"layer": 3})
    made.save(tmp_path / "space.safetensors")
    opened = iv.Subspace.load(tmp_path / "space.safetensors")
    assert torch.equal(opened.basis, made.basis)
    assert opened.about == {"layer": 3}
    (tmp_path / "other.safetensors").write_bytes(b"\x80\x04")
    with pytest.raises(ResultsError, match="safetensors"):
        iv.Subspace.load(tmp_path / "other.safetensors")


def test_random_subspaces_are_drawn_by_seed() -> None:
    first, again, other = (iv.Subspace.random(12, 4, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.basis, again.basis)
    assert not torch.equal(first.basis, other.basis)


def test_numbers_in_float64_agree_eight_orders_better() -> None:
    case = case_of("llama", torch.float64, "sdpa")
    width = case.model.d_model
    space, source = iv.Subspace(noise((width, 3)).double()), noise((2, width)).double()
    rows, at = torch.arange(2), case.place.index[:, 0]

    def edit(hidden: torch.Tensor) -> torch.Tensor:
        changed = hidden.clone()
        onto = space.basis @ space.basis.T
        changed[rows, at] += (source - hidden[rows, at]) @ onto
        return changed

    expected, _ = raw_run(case, edits=[("resid_post", 1, edit)])
    patch = space.interchange("resid_post", 1, case.place, source)
    ours = iv.run(case.model, case.prompt, patches=[patch]).logits
    assert ours is not None
    assert relative(ours, expected[:, -1]) < FLOOR64


def test_whole_space_is_a_plain_patch() -> None:
    case = case_of("llama")
    source = noise((2, case.model.d_model))
    whole = iv.Subspace(torch.eye(case.model.d_model))
    patches = [
        whole.interchange("resid_post", 2, case.place, source),
        iv.Patch("resid_post", 2, case.place, source),
    ]
    ours, theirs = (iv.run(case.model, case.prompt, patches=[patch]).logits for patch in patches)
    assert ours is not None
    assert theirs is not None
    assert relative(ours, theirs) < FLOOR32


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        ({"within": iv.Subspace(noise((32, 2)))}, "is 48 wide"),
        ({"value": torch.zeros(3)}, "width 3 for 2 coordinates"),
        ({"heads": [0], "component": "head_out"}, "do not go together"),
        ({"component": "attn_pattern"}, "do not go together"),
    ],
)
def test_coordinates_that_do_not_fit_are_refused(asked: dict[str, Any], match: str) -> None:
    case = case_of("llama")
    patch = {
        "component": "resid_post",
        "layers": 1,
        "positions": case.place,
        "value": torch.zeros(()),
        "within": iv.Subspace(noise((48, 2))),
    }
    with pytest.raises(PatchError, match=match):
        iv.run(case.model, case.prompt, patches=[iv.Patch(**{**patch, **asked})])


def test_within_is_of_coordinates() -> None:
    case = case_of("llama")
    with pytest.raises(PatchError, match="within"):
        iv.Patch("resid_post", 1, case.place, torch.zeros(2), within=torch.zeros(64, 2))  # type: ignore[arg-type]
    assert isinstance(iv.Subspace(noise((48, 2))), Coordinates)
