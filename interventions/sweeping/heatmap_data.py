"""What of a Dataset is drawn as a map, and what is said beside it."""

from typing import Any

import numpy as np
import xarray as xr

from interventions.errors import ResultsError, did_you_mean
from interventions.given import shown, text_of

COLUMNS = ("position", "role", "route")
MAPS = ("score", "effect", "value")
COMPARED = (
    "kl",
    "changed",
)  # with the clean run already; others are drawn as the difference from it


def check_item(data: xr.DataArray, item: Any) -> None:
    """Refuse an item that there is not; True is no item, and 1.0 is none."""
    items = data["item"].values.tolist() if "item" in data.dims else []
    if not any(type(known) is type(item) and known == item for known in items):
        raise ResultsError(
            f"no item {shown(item)} in this Dataset. {did_you_mean(shown(item), map(str, items))}"
        )


def of_item(data: xr.DataArray, item: Any) -> xr.DataArray:
    """Values of one item, if one is asked for.

    Raises
    ------
    ResultsError
        If there is no such item.
    """
    if item is None:
        return data
    check_item(data, item)
    return data.isel(item=data["item"].values.tolist().index(item))


def drawable(data: xr.DataArray, column: str) -> xr.DataArray:
    """Return a map by component, layer and column, in numbers that a plot can hold.

    Raises
    ------
    ResultsError
        If it has other dims, is no numbers, or its layers are not numbers, each once.
    """
    if "component" not in data.dims:
        data = data.expand_dims(component=[str(data.name)])
    if "head" in data.dims:
        data = _by_head(data)
    if extra := set(data.dims) - {"component", "layer", column}:
        raise ResultsError(
            f"{data.name} also has {', '.join(sorted(map(str, extra)))}. Select one value of each "
            "first, such as dataset.sel(...), or take a mean."
        )
    data = data.transpose("component", "layer", column)
    if data.dtype.kind not in "biuf":
        raise ResultsError(f"{data.name} is of type {data.dtype}. Expected numbers to draw.")
    layers = data["layer"].values
    if layers.dtype.kind not in "iuf" or len({*layers.tolist()}) < layers.size:
        raise ResultsError(
            f"the layers of {data.name} are {shown(layers.tolist())}. Expected numbers, each once."
        )
    data = data.astype(float).sortby("layer")
    return data.where(np.isfinite(data))


def component_names(data: xr.DataArray) -> list[str]:
    """The components that a map is of."""
    return [str(name) for name in data["component"].values] if "component" in data.dims else []


def _by_head(data: xr.DataArray) -> xr.DataArray:
    """Each head of each component as a component of its own."""
    components, heads = data["component"].values.tolist(), data["head"].values.tolist()
    many = len(components) > 1
    names = [f"{c} head {h}" if many else f"head {h}" for c in components for h in heads]
    dims = [dim for dim in data.dims if dim not in ("component", "head")]
    flat = data.transpose("component", "head", *dims)
    coords = {dim: data[dim].values for dim in dims if dim in data.coords}
    values = flat.values.reshape(len(names), *flat.shape[2:])
    return xr.DataArray(
        values, {"component": names, **coords}, ("component", *dims), data.name, data.attrs
    )


def change_of(dataset: xr.Dataset, variable: str | None) -> tuple[xr.DataArray, str]:
    """What of a Dataset is looked at, and its variable: of some metrics, the change they show.

    Raises
    ------
    ResultsError
        If there is no such variable, or no map where none is named.
    """
    known = maps_of(dataset)
    if variable is None:
        usual = [name for name in MAPS if name in known] or known
        if not usual:
            raise ResultsError(
                "this Dataset has no map: no variable has the dim layer and one of "
                f"{', '.join(COLUMNS)}."
            )
        variable = usual[0]
    variable = text_of(variable, "variable", error=ResultsError)
    if variable not in dataset.data_vars:
        raise ResultsError(f"no map {variable!r} in this Dataset. {did_you_mean(variable, known)}")
    data = dataset[variable]
    if variable not in COMPARED and f"clean_{variable}" in dataset:
        data = (data - dataset[f"clean_{variable}"]).assign_attrs(data.attrs)
        data.name = f"change of {variable}"
    return data, variable


def maps_of(dataset: xr.Dataset) -> list[str]:
    """Variables that are maps."""
    return [
        str(name)
        for name, array in dataset.data_vars.items()
        if "layer" in array.dims and set(COLUMNS) & set(array.dims)
    ]


def chosen_map(dataset: xr.Dataset, variable: str | None) -> tuple[xr.DataArray, str]:
    """The map that is asked for, and the dim of its columns."""
    data, name = change_of(dataset, variable)
    if name not in (known := maps_of(dataset)):
        raise ResultsError(f"no map {name!r} in this Dataset. {did_you_mean(name, known)}")
    return data, next(column for column in COLUMNS if column in data.dims)


def title_of(dataset: xr.Dataset) -> str:
    """What an attribution is called, and which of its two sides runs."""
    if "method_name" not in dataset.attrs:
        return ""
    which = "\nprompt runs, values of source put in" if "source" in dataset.attrs else ""
    return f"{dataset.attrs['method_name']}{which}"


def footnote(dataset: xr.Dataset, names: list[str]) -> str:
    """How far the map agrees with exact patching, or that nobody looked."""
    if "verified" not in dataset.attrs or not names:
        return ""
    if "spearman" not in dataset:
        return "NOT VERIFIED: no place was patched exactly"
    parts = []
    for name in names:
        correlation = dataset["spearman"].sel(component=name)
        n = int(dataset["n_checked"].sel(component=name, sample="random"))
        parts.append(
            f"{name} {float(correlation.sel(sample='random')):.2f} at random places, "
            f"{float(correlation.sel(sample='top')):.2f} at the top (n={n} each)"
        )
    return "rank correlation with exact patching: " + "; ".join(parts)
