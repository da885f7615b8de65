"""Lenses that are fitted: what they are fitted to, how they read, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from families import Case, case_of
from floors import FLOOR32, noise, relative
from micro import micro_folder

import interventions as iv
from interventions.errors import InterventionsError, PatchError, ProbeError, ResultsError

QUESTION = "Question : What is the capital of {} ? Answer :"
COUNTRIES = "Avaria Belmora Corvenia Dravia Elsenia Fenmark Galdor Hestaria Ilvania Jorvania"


@pytest.fixture(scope="module")
def llm() -> iv.Model:
    return iv.load(micro_folder("micro-backbone"))


@pytest.fixture(scope="module")
def states(llm: iv.Model) -> tuple[torch.Tensor, list[int]]:
    """``resid_post`` of every token [layer, row, d_model], and which text each is of."""
    texts = [QUESTION.format(name) for name in COUNTRIES.split()]
    prompt = llm.prompt(texts)
    [read] = iv.read(llm, prompt, [iv.Site("resid_post", slice(None))])
    return read.flatten(1, 2), [i for i in range(len(texts)) for _ in range(prompt.length)]


def raw_logits(model: iv.Model, hidden: torch.Tensor) -> torch.Tensor:
    return model.module.lm_head(model.module.model.norm(hidden))


def test_translators_equal_a_plain_loop(
    llm: iv.Model, states: tuple[torch.Tensor, list[int]]
) -> None:
    rows, texts = states
    asked: dict[str, Any] = {"learning_rate": 2e-3, "weight_decay": 1e-2, "epochs": 3}
    fitted = iv.tuned_lens(llm, rows, groups=texts, batch_rows=len(texts), seed=3, **asked)
    held = np.random.default_rng(3).permutation(10)[:2]
    test = torch.from_numpy(np.isin(texts, held))
    expected = raw_logits(llm, rows[-1]).log_softmax(-1).detach()

    def kl(linear: torch.nn.Linear, layer: int, which: torch.Tensor) -> torch.Tensor:
        given = rows[layer, which]
        ours = raw_logits(llm, given + linear(given)).log_softmax(-1)
        return torch.nn.functional.kl_div(
            ours, expected[which], reduction="batchmean", log_target=True
        )

    for layer in (0, 5):
        linear = torch.nn.Linear(64, 64)
        torch.nn.init.zeros_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
        adam = torch.optim.AdamW(linear.parameters(), lr=2e-3, weight_decay=1e-2)
        for step in range(3):
            adam.param_groups[0]["lr"] = 2e-3 * (1 - step / 3)
            adam.zero_grad()
            kl(linear, layer, ~test).backward()
            adam.step()
        weight = linear.weight.detach() + torch.eye(64)
        assert relative(fitted.weight[layer], weight) < FLOOR32
        assert relative(fitted.bias[layer], linear.bias.detach()) < FLOOR32
        divergence = float(fitted.divergences.kl.sel(lens="tuned", layer=layer))
        assert divergence == pytest.approx(float(kl(linear, layer, test).detach()), rel=1e-3)


def test_a_tuned_lens_is_nearer_than_the_logit_lens(
    llm: iv.Model, states: tuple[torch.Tensor, list[int]], tmp_path: Path
) -> None:
    rows, texts = states
    fitted = iv.tuned_lens(llm, rows, groups=texts, epochs=60)
    kl = fitted.divergences
    assert (kl.kl.sel(lens="tuned") < kl.kl.sel(lens="logit")).all()
    assert ((kl.low <= kl.kl) & (kl.kl <= kl.high)).all()
    tokens = torch.zeros(rows.shape[1], 1, dtype=torch.long)
    logprob, _ = iv.lens(llm, rows, tokens, kind="tuned", fitted=fitted)
    plain, _ = iv.lens(llm, rows, tokens)
    assert torch.equal(logprob[-1], plain[-1])  # the last layer is read as it is
    expected = raw_logits(llm, rows[2] @ fitted.weight[2].T + fitted.bias[2]).log_softmax(-1)
    assert relative(logprob[2], expected[:, :1].detach()) < FLOOR32
    part, _ = iv.lens(llm, rows[[2, 7]], tokens, fitted=fitted, layers=[2, -1])
    assert torch.equal(part, logprob[[2, 7]])
    fitted.save(tmp_path / "lens.safetensors")
    opened = iv.FittedLens.load(tmp_path / "lens.safetensors")
    assert torch.equal(opened.weight, fitted.weight)
    assert opened.divergences.equals(kl)
    with pytest.raises(ResultsError, match=r"holds 'lens'. Expected a 'subspace'"):
        iv.Subspace.load(tmp_path / "lens.safetensors")


def test_a_lens_of_too_few_or_strange_rows_says_so(
    llm: iv.Model, states: tuple[torch.Tensor, list[int]]
) -> None:
    rows, texts = states
    with pytest.raises(ProbeError, match="takes at least 65"):
        iv.tuned_lens(llm, rows[:, :70])
    with pytest.warns(RuntimeWarning, match="no nearer to the last distribution"):
        iv.tuned_lens(llm, rows, groups=texts, learning_rate=5.0, epochs=2)


def test_layers_and_groups_are_those_of_a_collection(
    llm: iv.Model, states: tuple[torch.Tensor, list[int]]
) -> None:
    rows, texts = states
    array = xr.DataArray(
        rows[[1, 4, 7]].numpy(),
        dims=("layer", "row", "d_model"),
        coords={"layer": [1, 4, 7], "text": ("row", texts)},
    ).transpose("row", "layer", "d_model")
    fitted = iv.tuned_lens(llm, array, groups="text", epochs=2)
    same = iv.tuned_lens(llm, rows[[1, 4, 7]], layers=[1, 4, 7], groups=texts, epochs=2)
    assert fitted.layers == (1, 4)
    assert torch.equal(fitted.weight, same.weight)


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        ({"layers": [0, 1]}, "but 2 are named"),
        ({"layers": [0, 1, 2, 3, 4, 5, 6, 6]}, "layer 7 among them"),
        ({"groups": [1, 2]}, "groups"),
        ({"groups": "text"}, "no coordinate 'text'"),
        ({"test_share": 0}, "test_share"),
        ({"epochs": 0}, "epochs"),
        ({"learning_rate": 0}, "learning_rate"),
    ],
)
def test_what_cannot_be_fitted_is_refused(
    llm: iv.Model, states: tuple[torch.Tensor, list[int]], asked: dict[str, Any], match: str
) -> None:
    with pytest.raises(InterventionsError, match=match):
        iv.tuned_lens(llm, states[0], **asked)
    with pytest.raises(ProbeError, match=r"Expected .layer, row, 64."):
        iv.tuned_lens(llm, states[0][0])


def test_a_lens_that_is_not_the_models_is_refused(llm: iv.Model) -> None:
    fitted = iv.FittedLens("jacobian", (1, 2), noise((2, 64, 64)), torch.zeros(2, 64), 8)
    hidden, tokens = noise((2, 3, 64)), torch.zeros(3, 1, dtype=torch.long)
    iv.lens(llm, hidden, tokens, fitted=fitted)
    for asked, match in (
        ({"kind": "tuned"}, "Give what iv.tuned_lens gives"),
        ({"kind": "logit"}, "Give what nothing gives"),
        ({"kind": "other"}, "kind"),
        ({"layers": [3, 1]}, "of those that were fitted"),
        ({"layers": [1]}, "Expected as many"),
        ({"fitted": hidden}, "fitted"),
    ):
        with pytest.raises(PatchError, match=match):
            iv.lens(llm, hidden, tokens, **{"fitted": fitted, **asked})  # type: ignore[arg-type]
    with pytest.raises(PatchError, match="Say which layers"):
        iv.lens(llm, noise((5, 3, 64)), tokens, fitted=fitted)
    with pytest.raises(PatchError, match="kind='tuned', but fitted= is None"):
        iv.lens(llm, hidden, tokens, kind="tuned")
    other: Case = case_of("llama")
    with pytest.raises(PatchError, match="fitted to a model of 8 layers"):
        iv.lens(other.model, noise((2, 3, 48)), tokens, fitted=fitted)
    with pytest.raises(PatchError, match="not fitted to a distribution"):
        _ = fitted.divergences


def test_texts_without_a_token_to_count_are_refused(llm: iv.Model) -> None:
    prompt = llm.prompt(["Belmora", QUESTION.format("Belmora")])
    with pytest.raises(ProbeError, match=r"row 0 has .* a smaller skip"):
        iv.jacobian_lens(llm, prompt)
    with pytest.raises(ProbeError, match="its Jacobian is 1"):
        iv.jacobian_lens(llm, prompt, layers=[7])
