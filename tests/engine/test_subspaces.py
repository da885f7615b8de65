"""Subspaces: what is swapped in them, moved and taken out, and what is learned."""

from pathlib import Path
from typing import Any

import pytest
import torch
from families import case_of, raw_run
from floors import FLOOR32, FLOOR64, noise, relative
from micro import EVALUATION_START, answers, micro_folder, view

import interventions as iv
from interventions.errors import InterventionsError, PatchError, ResultsError
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


QUESTION = "Question : What is the capital of {} ? Answer :"


@pytest.fixture(scope="module")
def lesson() -> dict[str, Any]:
    """Pairs of countries whose capitals the micro backbone knows."""
    model = iv.load(micro_folder("micro-backbone"))
    countries = ["Avaria", "Belmora", "Corvenia", "Dravia", "Elsenia", "Fenmark", "Galdor"]
    every = model.prompt([QUESTION.format(name) for name in countries], spans={"entity": countries})
    capitals = iv.complete(model, every, stop=" .").texts
    assert len({*capitals} & {*answers("capital")}) > 3
    n = len(countries)
    pairs = [(i, j) for i in range(n) for j in range(n) if capitals[i] != capitals[j]]
    base, source = (every.select([pair[side] for pair in pairs]) for side in (0, 1))
    asked = {
        "expected": [capitals[j] for _, j in pairs],
        "other": [capitals[i] for i, _ in pairs],
        "layer": 2,
        "at": base.at("entity", -1),
        "source_at": source.at("entity", -1),
        "groups": [countries[i] for i, _ in pairs],
        "epochs": 6,
    }
    return {"model": model, "base": base, "source": source, "asked": asked}


def learn(lesson: dict[str, Any], **changes: Any) -> iv.Alignment:
    given = {key: changes.pop(key, lesson[key]) for key in ("model", "base", "source")}
    return iv.das(*given.values(), **{"size": 8, **lesson["asked"], **changes})


def test_a_learned_subspace_does_what_random_ones_do_not(lesson: dict[str, Any]) -> None:
    alignment = learn(lesson)
    shares = {name: float(value) for name, value in alignment.scores.accuracy.to_series().items()}
    assert list(shares) == ["learned", "random", "permuted", "whole", "none", "other"]
    assert shares["whole"] == 1.0
    assert shares["none"] == 0.0
    assert shares["learned"] > 0.6
    assert max(shares["random"], shares["permuted"], shares["other"]) < 0.4
    low, high = (alignment.scores[name].values for name in ("low", "high"))
    accuracy = alignment.scores.accuracy.values
    assert ((low <= accuracy) & (accuracy <= high)).all()
    assert alignment.scores.loss[-1] < alignment.scores.loss[0]
    assert alignment.subspace.about["layer"] == 2
    again = learn(lesson)
    assert torch.equal(again.subspace.basis, alignment.subspace.basis)
    assert again.scores.equals(alignment.scores)
    whole = learn(lesson, size=64, epochs=1).scores.accuracy
    assert float(whole.sel(condition="learned")) == 1.0


def test_scores_are_those_of_plain_runs(lesson: dict[str, Any]) -> None:
    alignment = learn(lesson, epochs=2, batch_rows=5)
    scores, model = alignment.scores, lesson["model"]
    rows = scores["row"].values.tolist()
    base, source = (lesson[name].select(rows) for name in ("base", "source"))
    [vectors] = iv.read(model, source, [iv.Site("resid_post", 2, source.at("entity", -1))])
    patch = alignment.subspace.interchange("resid_post", 2, base.at("entity", -1), vectors)
    logits = iv.run(model, base, patches=[patch]).logits
    assert logits is not None
    words = model.tokenizer.convert_ids_to_tokens(logits.argmax(-1).tolist())
    expected = [lesson["asked"]["expected"][row].split()[0] for row in rows]
    hits = [mine == theirs for mine, theirs in zip(words, expected, strict=True)]
    assert scores.correct.sel(condition="learned").values.tolist() == hits
    fitted = {*lesson["asked"]["groups"]} - {lesson["asked"]["groups"][row] for row in rows}
    assert fitted  # no group is on both sides
    assert scores.provenance


def test_a_vlm_learns_where_its_backbone_keeps_a_variable(lesson: dict[str, Any]) -> None:
    vlm, backbone = iv.load(micro_folder("micro-aligned")), lesson["model"]
    codes, names = ("ava", "bel", "cor", "dra"), ("Avaria", "Belmora", "Corvenia", "Dravia")
    pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
    pictures = [view(codes[i], EVALUATION_START) for i, _ in pairs]
    base = vlm.prompt([QUESTION.format("<image>")] * len(pairs), images=pictures)
    named = [names[j] for _, j in pairs]
    source = backbone.prompt([QUESTION.format(name) for name in named], spans={"entity": named})
    alignment = iv.das(
        vlm,
        base,
        source,
        source_model=backbone,
        expected=iv.complete(backbone, source, stop=" .").texts,
        layer=1,
        source_layer=2,
        at=base.at("image", -1),
        source_at=source.at("entity", -1),
        size=2,
        groups=[names[i] for i, _ in pairs],
        epochs=1,
    )
    assert alignment.subspace.width == 64
    assert "source_model" in str(alignment.scores.provenance)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"size": 65}, "size is 65"),
        ({"size": 0}, "size is 0"),
        ({"layer": 9}, "no layer 9"),
        ({"component": "attn_pattern"}, "attn_pattern"),
        ({"component": "mlp_pre"}, "only be read"),
        ({"expected": ["Marlow"]}, "expected are 1 for"),
        ({"groups": ["a", "b"] * 20}, "groups"),
        ({"groups": None, "test_share": 1.5}, "test_share"),
        ({"epochs": 0}, "epochs is 0"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"n_random": 0}, "n_random is 0"),
        ({"at": None}, "at is None"),
    ],
)
def test_what_cannot_be_learned_is_refused(
    lesson: dict[str, Any], changes: dict[str, Any], match: str
) -> None:
    with pytest.raises(InterventionsError, match=match):
        learn(lesson, **changes)


def test_streams_of_other_widths_and_other_rows_are_refused(lesson: dict[str, Any]) -> None:
    other = case_of("llama")
    changes = {
        "source": other.prompt,
        "source_model": other.model,
        "source_at": other.place,
        "source_layer": 1,
    }
    with pytest.raises(PatchError, match=r"64 wide and of .* 48"):
        learn(lesson, **changes)
    part = lesson["source"].select([0, 1])
    with pytest.raises(PatchError, match="Give the same rows"):
        learn(lesson, source=part, source_at=part.at("entity", -1))
    few = [0, 0, 1] * 20
    rows = len(lesson["base"])
    with pytest.raises(InterventionsError, match="at least 4"):
        learn(lesson, groups=few[:rows])


def test_rows_with_several_tokens_are_swapped_token_for_token() -> None:
    """Swapped with what they have themselves, rows of one and of two tokens stay as they are."""
    case = case_of("llama")
    rows = case.prompt.select([0, 1] * 3)
    entity = rows.at("entity")
    assert len({*entity.counts.tolist()}) > 1
    alignment = iv.das(
        case.model,
        rows,
        rows,
        expected=["Paris", "Madrid"] * 3,
        layer=1,
        at=entity,
        source_at=entity,
        size=2,
        epochs=2,
        component="head_out",
    )
    correct = alignment.scores.correct
    for condition in ("learned", "random", "whole"):
        assert (correct.sel(condition=condition) == correct.sel(condition="none")).all()
    assert alignment.scores.loss[0] == pytest.approx(float(alignment.scores.loss[1]), rel=1e-5)
    assert alignment.subspace.width == case.model.anatomy.n_heads * case.model.anatomy.head_dim
