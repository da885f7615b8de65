"""Probes against scikit-learn, and on data whose answer is known."""

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import interventions as iv
from interventions.errors import ProbeError
from interventions.probing.logistic import fit_logistic
from interventions.probing.ridge import fit_probe

N_LAYERS = 3


def rows_of(n: int, d: int, n_classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features with a falling spectrum, of unbalanced classes; deeper layers know more."""
    generator = np.random.default_rng(seed)
    share = np.arange(n_classes, 0, -1.0)
    labels = generator.choice(n_classes, size=n, p=share / share.sum())
    labels[: 4 * n_classes] = np.arange(4 * n_classes) % n_classes  # all occur
    mix = np.linalg.qr(generator.normal(size=(d, d)))[0] * np.arange(1, d + 1)[:, None] ** -0.5
    means = generator.normal(size=(n_classes, d)) / np.sqrt(d)
    layers = [
        generator.normal(size=(n, d)) @ mix + layer * means[labels] + 3 for layer in range(N_LAYERS)
    ]
    return np.stack(layers), labels


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("penalty", [1.0, 0.01])
@pytest.mark.parametrize(
    ("n", "d", "n_classes"), [(120, 20, 5), (90, 24, 2), (40, 100, 4), (30, 60, 2), (240, 30, 40)]
)
def test_a_logistic_probe_is_that_of_scikit_learn(
    n: int, d: int, n_classes: int, penalty: float, dtype: torch.dtype
) -> None:
    hidden, labels = rows_of(n, d, n_classes)
    fresh, _ = rows_of(n, d, n_classes, seed=1)
    mixed = np.random.default_rng(2).permutation(labels)
    exact = dtype == torch.float64
    probes = fit_logistic(
        torch.from_numpy(hidden).to(dtype),
        [torch.from_numpy(labels), torch.from_numpy(mixed)],
        n_classes=n_classes,
        C=penalty,
        tol=1e-9 if exact else 1e-6,
    )
    floor = 1e-5 if exact else 2e-3
    for targets, ours in zip((labels, mixed), probes, strict=True):
        logits = ours.scores(torch.from_numpy(fresh))
        for layer in range(N_LAYERS):
            reference = make_pipeline(
                StandardScaler(), LogisticRegression(C=penalty, tol=1e-9, max_iter=20_000)
            ).fit(hidden[layer], targets)
            weight = ours.weight[layer].mT.numpy()
            weight = weight[1:] - weight[:1] if n_classes == 2 else weight
            theirs: Any = reference[-1]
            assert np.abs(weight - theirs.coef_).max() < floor * np.abs(theirs.coef_).max()
            probability = reference.predict_proba(fresh[layer])
            assert np.abs(logits[layer].softmax(-1).numpy() - probability).max() < floor / 10
            predicted = ours.predict(torch.from_numpy(fresh))[layer].numpy()
            sure = np.sort(probability, axis=1)
            sure = sure[:, -1] - sure[:, -2] > floor / 5
            assert sure.mean() > 0.9
            assert (predicted == reference.predict(fresh[layer]))[sure].all()


@pytest.mark.parametrize(("n", "d", "n_classes"), [(90, 20, 5), (60, 20, 2), (40, 80, 3)])
def test_a_ridge_probe_is_that_of_scikit_learn(n: int, d: int, n_classes: int) -> None:
    hidden, labels = rows_of(n, d, n_classes)
    fresh, _ = rows_of(n, d, n_classes, seed=1)
    ours = fit_probe(
        torch.from_numpy(hidden), torch.from_numpy(labels), n_classes=n_classes, ridge=0.3
    )
    predicted = ours.predict(torch.from_numpy(fresh)).numpy()
    for layer in range(N_LAYERS):
        x = StandardScaler().fit_transform(hidden[layer])
        alpha = 0.3 * (x**2).sum() / n
        reference = make_pipeline(StandardScaler(), RidgeClassifier(alpha=alpha))
        reference.fit(hidden[layer], labels)
        assert (predicted[layer] == reference.predict(fresh[layer])).all()
        theirs: Any = reference[-1]
        coefficients = np.atleast_2d(theirs.coef_)[-1] / 2  # scikit-learn's targets are -1, 1
        weight = ours.weight[layer, :, -1].numpy()
        np.testing.assert_allclose(weight, coefficients, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("n_classes", [2, 5])
@pytest.mark.parametrize("method", ["logistic", "ridge"])
def test_accuracies_are_those_of_scikit_learn_on_the_same_splits(
    method: Any, n_classes: int
) -> None:
    hidden, labels = rows_of(200, 24, n_classes)
    settings: Any = {"C": 0.1, "tol": 1e-8} if method == "logistic" else {"ridge": 0.05}
    found = iv.probe(torch.from_numpy(hidden), labels, method=method, splits=3, **settings)
    assert found.accuracy.dims == ("layer", "seed")
    assert bool(found.converged.all())
    for seed in range(3):
        out = found.held_out.sel(seed=seed).values
        for layer in range(N_LAYERS):
            x, fresh = hidden[layer][~out], hidden[layer][out]
            scaled: Any = StandardScaler().fit(x)
            if method == "logistic":
                reference: Any = LogisticRegression(C=0.1, tol=1e-8, max_iter=20_000)
            else:
                reference = RidgeClassifier(alpha=0.05 * (scaled.transform(x) ** 2).sum() / len(x))
            reference.fit(scaled.transform(x), labels[~out])
            one = found.sel(seed=seed, layer=layer)
            assert float(one.accuracy) == reference.score(scaled.transform(fresh), labels[out])
            assert float(one.train_accuracy) == reference.score(scaled.transform(x), labels[~out])
            predicted = reference.predict(scaled.transform(fresh))
            assert (one.predicted.values[out] == predicted).all()
            assert (one.predicted.values[~out] == -1).all()


def test_a_layer_that_knows_is_selective_and_one_of_noise_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(4).repeat(100)
    hidden = torch.randn(2, 400, 10, generator=generator)
    hidden[1] += 8 * torch.nn.functional.one_hot(labels, 10)
    found = iv.probe({"last": hidden, "image": hidden.flip(0)}, labels, n_controls=4)
    mean = found.mean("seed")
    assert float(mean.accuracy.sel(role="last", layer=1)) > 0.98
    assert float(mean.selectivity.sel(role="last", layer=1)) > 0.6
    assert abs(float(mean.accuracy.sel(role="last", layer=0)) - 0.25) < 0.08
    assert abs(float(mean.control_accuracy.sel(role="last", layer=1)) - 0.25) < 0.08
    assert abs(float(mean.selectivity.sel(role="last", layer=0))) < 0.1
    flipped = found.accuracy.sel(role="image").isel(layer=[1, 0]).values
    np.testing.assert_array_equal(flipped, found.accuracy.sel(role="last").values)


def test_groups_are_never_on_both_sides_and_unlearnable_groups_are_found_out() -> None:
    """Rows of a group are nearly equal and its label is random: only leaks could be read."""
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(80), 5)
    labels = generator.permutation(np.repeat(np.arange(2), 40))[groups]
    hidden = generator.normal(size=(80, 60))[groups] + 0.01 * generator.normal(size=(400, 60))
    leaky = iv.probe(hidden[None], labels)
    clean = iv.probe(hidden[None], labels, groups=groups, splits=8)
    assert float(leaky.accuracy.mean()) > 0.95
    assert abs(float(clean.accuracy.mean()) - 0.5) < 0.12
    for out in clean.held_out.values:
        assert not set(groups[out]) & set(groups[~out])
        assert set(labels[out]) == set(labels[~out]) == {0, 1}


def test_the_same_seed_gives_the_same_numbers_and_another_gives_other_splits() -> None:
    hidden, labels = rows_of(100, 10, 3)
    one, again = (iv.probe(hidden, labels, splits=2) for _ in range(2))
    other = iv.probe(hidden, labels, splits=2, seed=1)
    assert one.identical(again)
    np.testing.assert_array_equal(one.held_out.sel(seed=1), other.held_out.sel(seed=1))
    assert (one.held_out.sel(seed=0).values != other.held_out.sel(seed=2).values).any()


def test_held_out_rows_can_be_given_and_chance_is_the_commonest_class() -> None:
    hidden, labels = rows_of(100, 10, 3)
    out = np.arange(100) % 4 == 0
    found = iv.probe(hidden, [f"class {i}" for i in labels], splits=out, n_controls=0)
    assert found.held_out.values.tolist() == [out.tolist()]
    common = np.bincount(labels[~out]).argmax()
    assert float(found.chance[0]) == (labels[out] == common).mean()
    assert bool(found.control_accuracy.isnull().all())
    assert found.label.values[1] == f"class {labels[1]}"


def test_labels_and_groups_by_the_name_of_a_coordinate() -> None:
    hidden, labels = rows_of(100, 10, 3)
    array = xr.DataArray(
        hidden.transpose(1, 0, 2),
        dims=("row", "layer", "d_model"),
        coords={"layer": [3, 5, 8], "kind": ("row", labels), "row": np.arange(100) * 2},
    )
    named = iv.probe(xr.Dataset({"last": array}), "kind")
    plain = iv.probe(hidden, labels)
    assert named.layer.values.tolist() == [3, 5, 8]
    assert named.row.values.tolist() == array.row.values.tolist()
    np.testing.assert_array_equal(named.accuracy.sel(role="last").values, plain.accuracy.values)
    with pytest.raises(ProbeError, match=r"no coordinate 'knd' for labels. Did you mean 'kind'"):
        iv.probe(array, "knd")


def test_a_fit_that_does_not_converge_is_named() -> None:
    hidden, labels = rows_of(100, 10, 3)
    hidden[1] = 0  # nothing to learn: converges at once
    with pytest.warns(RuntimeWarning, match=r"did not converge in layers \[0, 2\] within 3"):
        found = iv.probe(hidden, labels, max_iter=3, tol=1e-8, splits=1)
    assert found.converged.squeeze().values.tolist() == [False, True, False]


def test_a_result_can_be_stored(tmp_path: Any) -> None:
    hidden, labels = rows_of(60, 5, 3)
    found = iv.probe(hidden, labels)
    found.to_netcdf(tmp_path / "probe.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "probe.nc", engine="h5netcdf") as back:
        xr.testing.assert_equal(back.accuracy, found.accuracy)


ROWS = np.random.default_rng(0).normal(size=(2, 12, 3))
LABELS = np.arange(12) % 3
BROKEN = ROWS.copy()
BROKEN[1, 4, 2] = np.nan


@pytest.mark.parametrize(
    ("activations", "labels", "settings", "message"),
    [
        (ROWS, np.zeros(12, int), {}, "all 12 rows are of the class 0"),
        (ROWS, LABELS[:5], {}, r"labels have shape \(5,\), but there are 12 rows"),
        (ROWS, [0, 1] * 5 + [1, 2], {}, "1 of 3 classes have fewer than two rows.* 2"),
        (ROWS, LABELS, {"groups": LABELS}, "3 of 3 classes have fewer than two groups"),
        (ROWS[0], LABELS, {}, r"Expected \[layer, row, d_model\]"),
        (BROKEN, LABELS, {}, r"NaN or infinite values in layers \[1\]"),
        ({"a": ROWS, "b": ROWS[:, :9]}, LABELS, {}, "'b' has 9 rows"),
        ({}, LABELS, {}, "no activations"),
        (ROWS, LABELS, {"splits": 0}, "at least one split"),
        (ROWS, LABELS, {"splits": np.arange(12)}, "True for the rows to hold out"),
        (ROWS, LABELS, {"splits": LABELS == 1}, r"no row to fit of the classes \['1'\]"),
        (ROWS, LABELS, {"splits": LABELS == 7}, "tests no row"),
        (
            ROWS,
            LABELS,
            {"splits": np.arange(12) < 6, "groups": np.arange(12) % 6},
            "6 groups with rows on both sides",
        ),
        (ROWS, LABELS, {"method": "ridg"}, "Did you mean 'ridge'"),
    ],
)
def test_bad_input_is_refused_with_the_reason(
    activations: Any, labels: Any, settings: Any, message: str
) -> None:
    with pytest.raises(ProbeError, match=message):
        iv.probe(activations, labels, **settings)
