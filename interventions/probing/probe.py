"""Probing every layer for a property of the rows, beside a control task."""

import warnings
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr

from interventions.errors import ProbeError, did_you_mean
from interventions.given import number, one_of, seed_of, shown, whole
from interventions.given_arrays import classes_of, row_values, tensor_of
from interventions.probing.logistic import fit_logistic
from interventions.probing.ridge import fit_probes
from interventions.probing.splits import control_labels, held_out
from interventions.results import provenance, read_provenance, with_provenance

Method = Literal["logistic", "ridge"]
METHODS: tuple[Method, ...] = ("logistic", "ridge")
MOST_DRAWS = 10_000
AXES = ("layer", "row", "d_model")
XARRAY = (xr.Dataset, xr.DataArray)
Activations = torch.Tensor | np.ndarray | xr.DataArray


def probe(
    activations: Activations | xr.Dataset | Mapping[str, Activations],
    labels: Any,
    *,
    method: Method = "logistic",
    C: float = 1.0,
    ridge: float = 1e-2,
    groups: Any | None = None,
    splits: int | np.ndarray = 5,
    test_share: float = 0.25,
    n_controls: int = 1,
    tol: float = 1e-5,
    max_iter: int = 1000,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> xr.Dataset:
    """Probe every layer for a property of the rows, beside a control task.

    For every layer and split a probe is fitted on some rows and tested on the others. Control
    probes are fitted and tested on labels that were shuffled on each side of the split;
    *selectivity* is how much better the probe does than they (Hewitt and Liang, "Designing and
    Interpreting Probes with Control Tasks", EMNLP 2019).

    Parameters
    ----------
    activations : [layer, row, d_model]
        A Tensor, array or DataArray; or several by name, such as what
        :func:`interventions.collect` returned. One layer at a time is held in memory.
    labels : sequence [row]
        The class of each row, of any kind that sorts; or the name of a coordinate.
    method : {"logistic", "ridge"}
        Logistic regression with an L2 penalty (:func:`fit_logistic`), or ridge regression on
        one-hot labels in closed form (:func:`fit_probes`), which is faster.
    C : float
        Inverse strength of the logistic penalty, as in scikit-learn.
    ridge : float
        Strength of the ridge penalty.
    groups : sequence [row], optional
        Rows of one group (an image, an entity) are never on both sides of a split; or the name of
        a coordinate.
    splits : int, or bool [row] or [seed, row]
        Number of random splits, or the rows to hold out (True).
    test_share : float
        Share of the rows, or groups, of each class that a random split holds out.
    n_controls : int
        Shuffled sets of labels per split. 0: no control.
    tol, max_iter
        When a logistic fit ends.
    seed : int
        Of the first split; the others have the following numbers.
    device : optional
        Where the probes are fitted. Default: where the activations are.

    Returns
    -------
    Dataset
        ``accuracy``, ``train_accuracy``, ``control_accuracy`` (mean over the controls),
        ``selectivity`` (accuracy - control accuracy) and ``converged`` (all fits, controls
        included), each (role, layer, seed), without role where one array was given; ``chance``
        (seed): accuracy of the commonest class of the fitted rows; ``predicted``
        (role, layer, seed, row): index of the class that each held-out row is taken for, -1 where
        it was fitted on; ``label`` (row) and ``held_out`` (seed, row).

    Raises
    ------
    ProbeError
        If shapes do not fit, activations are not finite, or a class cannot be split.

    Warns
    -----
    RuntimeWarning
        If logistic fits did not converge; the layers are named.

    Examples
    --------
    >>> generator = torch.Generator().manual_seed(0)
    >>> labels = torch.arange(2).repeat(40)
    >>> noise = torch.randn(2, 80, 8, generator=generator)
    >>> noise[1, :, 0] += 9 * labels  # the second layer knows
    >>> probed = probe(noise, labels)
    >>> probed.accuracy.mean("seed").sel(layer=1).item()
    1.0
    """
    settings = _settings(method, C=C, ridge=ridge, tol=tol, max_iter=max_iter)
    seed = seed_of(seed, error=ProbeError)
    n_controls = whole(n_controls, "n_controls", least=0, most=MOST_DRAWS, error=ProbeError)
    test_share = number(test_share, "test_share", above=0, below=1, error=ProbeError)
    device = None if device is None else _device(device)
    named, single = _named(activations)
    rows, layers = _common(named)
    names, label = classes_of(_per_row(labels, activations, rows, "labels"))
    if len(names) < 2:
        raise ProbeError(f"all {rows} rows are of the class {names[0]!s}. A probe needs two.")
    own = np.arange(rows) if groups is None else _per_row(groups, activations, rows, "groups")
    group = classes_of(own)[1]
    if _is_number(splits):
        what = "splits (at least one split, or masks)"
        n_splits = whole(splits, what, least=1, most=MOST_DRAWS, error=ProbeError)
        draws = [seed + i for i in range(n_splits)]
        test = np.stack([held_out(label, group, names, share=test_share, seed=i) for i in draws])
    else:
        test = _given(_masks(splits), label, group, names)
    controls = [
        [
            control_labels(label, group, out, seed=seed + 1_000_003 * (k + 1) + i)
            for k in range(n_controls)
        ]
        for i, out in enumerate(test)
    ]
    _check_finite(named, layers)
    probed = xr.concat(
        [
            xr.concat(
                [
                    _of_layer(_rows(array, i, device), label, test, controls, method, settings)
                    for i in range(len(layers))
                ],
                dim="layer",
            )
            for array in named.values()
        ],
        dim="role",
    )
    probed = probed.assign_coords(
        role=list(named), layer=layers, seed=[seed + i for i in range(len(test))]
    )
    share = [np.bincount(label[~out]).argmax() for out in test]
    probed["chance"] = (
        "seed",
        [float((label[out] == best).mean()) for out, best in zip(test, share, strict=True)],
    )
    probed["held_out"] = (("seed", "row"), test)
    probed = probed.assign_coords(label=("row", names[label]))
    for array in named.values():
        if isinstance(array, xr.DataArray) and "row" in array.coords:
            probed = probed.assign_coords(row=array.coords["row"].values)
    probed.attrs = {"method": method, "n_classes": len(names)}
    _warn(probed, max_iter)
    about = read_provenance(activations) if isinstance(activations, XARRAY) else {}
    asked = {
        "method": method,
        **settings,
        "n_controls": n_controls,
        "splits": len(test),
        "test_share": test_share,
        "activations": about.pop("settings", None),
    }
    about.pop("seed", None)
    probed = probed.isel(role=0, drop=True) if single else probed
    return with_provenance(probed, {**about, **provenance()}, settings=asked, seed=seed)


def _settings(method: Any, *, C: Any, ridge: Any, tol: Any, max_iter: Any) -> dict[str, Any]:
    """Check what a fit is asked for; what is not used is no part of it."""
    if one_of(method, "method", METHODS, error=ProbeError) == "ridge":
        return {"ridge": number(ridge, "ridge", above=0, error=ProbeError)}
    return {
        "C": number(C, "C", above=0, error=ProbeError),
        "tol": number(tol, "tol", above=0, error=ProbeError),
        "max_iter": whole(max_iter, "max_iter", least=1, error=ProbeError),
    }


def _device(device: Any) -> torch.device:
    """A device that is there."""
    try:
        place = torch.device(device)
        torch.empty(1, device=place).cpu()
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ProbeError(f"device {shown(device)} cannot be used: {reason}") from None
    return place


def _is_number(splits: Any) -> bool:
    """Whether splits are a number, if a wrong one, and not masks."""
    return (not isinstance(splits, str | bytes) and not hasattr(splits, "__len__")) or (
        isinstance(splits, np.ndarray | torch.Tensor) and not splits.ndim
    )


def _masks(splits: Any) -> np.ndarray:
    """Rows to hold out as an array [seed, row], of whatever type it is."""
    try:
        tensor = isinstance(splits, torch.Tensor)
        given = splits.detach().cpu().numpy() if tensor else np.asarray(splits)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ProbeError(f"splits are {shown(splits)}, no number and no masks: {error}") from None
    return np.atleast_2d(given)


def _of_layer(
    rows: torch.Tensor,
    label: np.ndarray,
    test: np.ndarray,
    controls: list[list[np.ndarray]],
    method: Method,
    settings: dict[str, Any],
) -> xr.Dataset:
    """Fit and test the probes of one layer, on rows [row, d_model], for every split."""
    columns: dict[str, list[Any]] = {}
    n_classes = int(label.max()) + 1
    fitter = fit_logistic if method == "logistic" else fit_probes
    for out, shuffled in zip(test, controls, strict=True):
        sets = np.stack([label, *shuffled])
        fitted = [torch.from_numpy(labels[~out]) for labels in sets]
        probes = fitter(rows[None, ~out], fitted, n_classes=n_classes, **settings)
        guesses = np.stack([probe.predict(rows[None])[0].cpu().numpy() for probe in probes])
        hits = guesses == sets
        accuracy = hits[:, out].mean(1)
        control = accuracy[1:].mean() if shuffled else np.nan
        remaining = [float(probe.gradient.max()) for probe in probes if probe.gradient is not None]
        scores = {
            "accuracy": accuracy[0],
            "train_accuracy": hits[0, ~out].mean(),
            "control_accuracy": control,
            "selectivity": accuracy[0] - control,
            "converged": max(remaining, default=0.0) <= settings.get("tol", 0.0),
            "predicted": np.where(out, guesses[0], -1),
        }
        for key, value in scores.items():
            columns.setdefault(key, []).append(value)
    return xr.Dataset(
        {
            key: (("seed", "row") if key == "predicted" else "seed", np.array(values))
            for key, values in columns.items()
        }
    )


def _named(activations: Any) -> tuple[dict[str, torch.Tensor | xr.DataArray], bool]:
    """Activations by name, each [layer, row, d_model], and whether just one array was given."""
    single = not isinstance(activations, Mapping)
    given = {"activations": activations} if single else dict(activations.items())
    named: dict[str, torch.Tensor | xr.DataArray] = {}
    for name, value in given.items():
        what = f"activations {name!r}"
        if str(name) in named:
            raise ProbeError(f"two activations are called {str(name)!r}. Name each its own way.")
        array = value
        if not isinstance(array, xr.DataArray):
            array = tensor_of(array, what, error=ProbeError)
        elif array.dtype.kind not in "iuf":
            raise ProbeError(f"{what} are of type {array.dtype}. Expected real numbers.")
        if isinstance(array, xr.DataArray):
            array = array.rename({dim: str(dim).split(":")[0] for dim in array.dims})
            array = array.transpose(*AXES) if set(array.dims) == set(AXES) else array
        if (
            array.ndim != 3
            or 0 in array.shape
            or (isinstance(array, xr.DataArray) and array.dims != AXES)
        ):
            dims = f" {array.dims}" if isinstance(array, xr.DataArray) else ""
            raise ProbeError(
                f"activations {name!r} have shape {tuple(array.shape)}{dims}. Expected "
                "[layer, row, d_model]; read one position per row, or average over positions."
            )
        named[str(name)] = array
    if not named:
        raise ProbeError("there are no activations to probe.")
    return named, single


def _common(named: Mapping[str, torch.Tensor | xr.DataArray]) -> tuple[int, list[int]]:
    """Number of rows, and the layers, which all activations must share."""
    shapes = {}
    for name, array in named.items():
        layers = list(range(array.shape[0]))
        if isinstance(array, xr.DataArray) and "layer" in array.coords:
            layers = array.coords["layer"].values.tolist()
        shapes[name] = (array.shape[1], layers)
    first = next(iter(shapes.values()))
    if any(shape != first for shape in shapes.values()):
        raise ProbeError(
            "activations differ in their rows or layers: "
            + "; ".join(
                f"{name!r} has {rows} rows, layers {at}" for name, (rows, at) in shapes.items()
            )
            + ". Probe them one at a time."
        )
    return first


def _per_row(given: Any, activations: Any, rows: int, what: str) -> np.ndarray:
    """One value per row: as given, or a coordinate of the activations by its name."""
    if isinstance(given, str):
        known = getattr(activations, "coords", {})
        if given not in known:
            names = [str(name) for name in known]
            raise ProbeError(f"no coordinate {given!r} for {what}. {did_you_mean(given, names)}")
        given = known[given].values
    return row_values(given, rows, what, error=ProbeError)


def _given(
    splits: np.ndarray, label: np.ndarray, group: np.ndarray, names: np.ndarray
) -> np.ndarray:
    """Check held-out rows [seed, row] that a user chose."""
    if splits.dtype != bool or splits.ndim != 2 or splits.shape[1] != len(label):
        raise ProbeError(
            f"splits of shape {splits.shape} and type {splits.dtype}. Expected a number, or bool "
            f"[{len(label)}] or [seed, {len(label)}] that is True for the rows to hold out."
        )
    for i, out in enumerate(splits):
        lacking = [str(name) for name in np.delete(names, np.unique(label[~out]))]
        if lacking or not out.any():
            raise ProbeError(
                f"split {i} "
                + (
                    f"has no row to fit of the classes {lacking[:8]}."
                    if lacking
                    else "tests no row."
                )
            )
        if shared := set(group[out]) & set(group[~out]):
            raise ProbeError(f"split {i} has {len(shared)} groups with rows on both sides.")
    return splits


def _rows(array: torch.Tensor | xr.DataArray, layer: int, device: Any) -> torch.Tensor:
    """One layer of activations, [row, d_model]."""
    rows = array[layer]
    hidden = rows if isinstance(rows, torch.Tensor) else tensor_of(rows.values, error=ProbeError)
    return hidden.detach().to(device) if device is not None else hidden.detach()


def _check_finite(named: Mapping[str, torch.Tensor | xr.DataArray], layers: list[int]) -> None:
    """Refuse activations with NaN or infinite values, and name their layers."""
    for name, array in named.items():
        wrong = [
            layer
            for i, layer in enumerate(layers)
            if not bool(torch.isfinite(_rows(array, i, None)).all())
        ]
        if wrong:
            raise ProbeError(
                f"activations {name!r} hold NaN or infinite values in layers {wrong}. Leave out "
                "the rows or layers concerned, or read again in a wider dtype."
            )


def _warn(probed: xr.Dataset, max_iter: int) -> None:
    """Say in which layers fits did not converge."""
    layers = probed.layer.values[~probed.converged.all(["role", "seed"]).values]
    if len(layers):
        warnings.warn(
            f"logistic probes did not converge in layers {layers.tolist()} within "
            f"{max_iter} iterations. Raise max_iter or tol, or lower C.",
            RuntimeWarning,
            stacklevel=3,
        )
