"""Maps that people can read: layer x token or role, one panel per component."""

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from interventions.errors import ResultsError, did_you_mean
from interventions.given import of_kind, plain, shown, text_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = ("position", "role")
MAPS = ("score", "effect", "value")
CHANGES = ("logprob", "logit_diff", "rank")  # drawn as the difference from the clean run
MOST_LABELS = 40
LONGEST_LABEL = 14
LEAST, MOST, LOWEST_POWER = 1e-30, 1e30, -300
"""Largest values that are drawn as they are; others are scaled by a power of ten."""


def heatmap(
    dataset: xr.Dataset,
    variable: str | None = None,
    *,
    item: int | None = None,
    title: str | None = None,
) -> "Figure":
    """Draw a map of layers and tokens (or roles), one panel per component.

    Red is up, blue is down, white is 0; all panels share one scale. Of a sweep's ``logprob``,
    ``logit_diff`` and ``rank`` the change from the clean run is drawn. Runs of the same token, such
    as an image's, are drawn as they are and labelled once.

    Parameters
    ----------
    dataset : Dataset
        With dims ``layer`` and ``position`` or ``role``, and any of ``item`` and ``component``;
        what :func:`interventions.attribute` or a sweep returns.
    variable : str, optional
        Default: ``score``, ``effect`` or ``value``, whichever there is; else the only one with
        those dims.
    item : int, optional
        Draw this item. Default: the mean over items, where they share their columns.
    title : str, optional
        Default: of an attribution, its method, and which of its two sides runs.

    Returns
    -------
    matplotlib Figure
        Save it with ``figure.savefig(path)``.

    Raises
    ------
    ResultsError
        If the Dataset has no such map or item.

    Examples
    --------
    >>> scores = iv.attribute(llm, other, named, answers="Marlow", foils="Brenn", verify=False)
    >>> iv.heatmap(scores, item=0).savefig("map.png")
    """
    of_kind(dataset, xr.Dataset, "the dataset", error=ResultsError)
    title = None if title is None else text_of(title, "title", error=ResultsError)
    item = plain(item)
    data, column = _chosen(dataset, variable)
    if item is not None:
        _check_item(data, item)
    labels = _labels(dataset, column, item)
    note = ""
    if "item" in data.dims:
        items = data["item"].values.tolist()
        if item is None:
            note = f"mean of {len(items)} items" if len(items) > 1 else ""
            data = data.mean("item", skipna=True, keep_attrs=True)
        else:
            data, note = data.isel(item=items.index(item)), f"item {item}"
    if "component" not in data.dims:
        data = data.expand_dims(component=[str(data.name)])
    if extra := set(data.dims) - {"component", "layer", column}:
        raise ResultsError(
            f"{data.name} also has {', '.join(sorted(map(str, extra)))}. Select one value of each "
            "first, such as dataset.sel(...), or take a mean."
        )
    data = _drawable(data.transpose("component", "layer", column))
    used = np.array(np.isfinite(data.values).any(axis=(0, 1)), ndmin=1)
    if not used.any():
        raise ResultsError(f"{data.name} is NaN everywhere, so there is nothing to draw.")
    return _drawn(
        data.isel({column: np.flatnonzero(used)}),
        column,
        [label for label, keep in zip(labels, used, strict=True) if keep],
        dataset,
        " · ".join(part for part in (title or _title(dataset), note) if part),
    )


def _check_item(data: xr.DataArray, item: Any) -> None:
    """Refuse an item that there is not; True is no item, and 1.0 is none."""
    items = data["item"].values.tolist() if "item" in data.dims else []
    if not any(type(known) is type(item) and known == item for known in items):
        raise ResultsError(
            f"no item {shown(item)} in this Dataset. {did_you_mean(str(item), map(str, items))}"
        )


def _drawable(data: xr.DataArray) -> xr.DataArray:
    """Values as numbers with layers in order, or say why they cannot be drawn."""
    if data.dtype.kind not in "biuf":
        raise ResultsError(f"{data.name} is of type {data.dtype}. Expected numbers to draw.")
    layers = data["layer"].values
    if layers.dtype.kind not in "iuf" or len({*layers.tolist()}) < layers.size:
        raise ResultsError(
            f"the layers of {data.name} are {shown(layers.tolist())}. Expected numbers, each once."
        )
    data = data.astype(float).sortby("layer")
    return data.where(np.isfinite(data))


def _chosen(dataset: xr.Dataset, variable: str | None) -> tuple[xr.DataArray, str]:
    known = [
        str(name)
        for name, array in dataset.data_vars.items()
        if "layer" in array.dims and set(COLUMNS) & set(array.dims)
    ]
    if variable is None:
        usual = [name for name in MAPS if name in known] or known
        if not usual:
            raise ResultsError(
                "this Dataset has no map: no variable has the dims layer and position or role."
            )
        variable = usual[0]
    variable = text_of(variable, "variable", error=ResultsError)
    if variable not in known:
        raise ResultsError(f"no map {variable!r} in this Dataset. {did_you_mean(variable, known)}")
    data = dataset[variable]
    if variable in CHANGES and f"clean_{variable}" in dataset:
        data = (data - dataset[f"clean_{variable}"]).assign_attrs(data.attrs)
        data.name = f"change of {variable}"
    return data, "position" if "position" in data.dims else "role"


def _labels(dataset: xr.Dataset, column: str, item: int | None) -> list[str]:
    """What the columns are called: tokens, where they are known for all that is drawn."""
    if column == "role":
        return [_short(str(name)) for name in dataset["role"].values]
    numbers = [str(position) for position in dataset["position"].values]
    if not {"token", "role"} <= set(dataset.coords) or "position" not in dataset["token"].dims:
        return numbers
    tokens = _of_items(dataset["token"], item)
    source_tokens = tokens
    if "source_token" in dataset.coords:
        source_tokens = _of_items(dataset["source_token"], item)
    labels = []
    for i, position in enumerate(numbers):
        names = list(dict.fromkeys(tokens[:, i].tolist()))
        changed = list(dict.fromkeys(source_tokens[:, i].tolist()))
        if len(names) > 1:
            roles = (
                set(np.atleast_2d(dataset["role"].values)[:, i].tolist())
                if "role" in dataset.coords
                else set()
            )
            labels.append(f"<{roles.pop()}>" if len(roles) == 1 else position)
        else:
            labels.append(" / ".join(dict.fromkeys(map(_short, [*names, *changed[:1]]))))
    return labels


def _of_items(labels: xr.DataArray, item: Any) -> np.ndarray:
    """Labels [item, position] of all items or one; of a Dataset of one item too."""
    if "item" in labels.dims and item is not None:
        labels = labels.isel(item=[labels["item"].values.tolist().index(item)])
    return np.atleast_2d(labels.transpose(..., "position").values)


def _short(text: str) -> str:
    shown = text.strip().replace("\n", "↵") or repr(text)[1:-1].replace(" ", "␣")
    return shown if len(shown) <= LONGEST_LABEL else shown[: LONGEST_LABEL - 1] + "…"


def _title(dataset: xr.Dataset) -> str:
    """What an attribution is called, and which of its two sides runs."""
    if "method_name" not in dataset.attrs:
        return ""
    which = "\nprompt runs, values of source put in" if "source" in dataset.attrs else ""
    return f"{dataset.attrs['method_name']}{which}"


def _footnote(dataset: xr.Dataset, names: list[str]) -> str:
    """How far the map agrees with exact patching, or that nobody looked."""
    if "verified" not in dataset.attrs:
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


def _drawn(
    data: xr.DataArray, column: str, labels: list[str], dataset: xr.Dataset, title: str
) -> "Figure":
    from matplotlib.figure import Figure  # 0.4 s, which import interventions need not wait for
    from matplotlib.ticker import MaxNLocator

    names = [str(name) for name in data["component"].values]
    shown = _runs(labels)
    width = float(np.clip(0.28 * len(labels), 2.4, 6.0))
    figure = Figure(figsize=(1.4 + width * len(names), 4.6), layout="constrained")
    panels: Any = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    most = float(np.nanmax(np.abs(data.values))) or 1.0
    # Colour maps take differences, which numbers at the ends of their range do not have.
    power = 0 if LEAST < most < MOST else max(int(np.floor(np.log10(most))), LOWEST_POWER)
    values, most = data.values / 10.0**power, most / 10.0**power
    layers = data["layer"].values
    drawn: Any = None
    for i, (axes, name) in enumerate(zip(panels, names, strict=True)):
        drawn = axes.pcolormesh(
            np.arange(len(labels) + 1) - 0.5,
            np.append(layers, layers[-1] + 1) - 0.5,
            np.ma.masked_invalid(values[i]),
            cmap="RdBu_r",
            vmin=-most,
            vmax=most,
        )
        axes.set_facecolor("0.85")
        axes.set_title(name, fontsize=10)
        axes.set_xticks([i for i, _ in shown], [label for _, label in shown])
        axes.tick_params(axis="x", labelsize=8, rotation=90)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel(column)
    panels[0].set_ylabel("layer")
    units = data.attrs.get("units")
    name = f"{data.name} ({units})" if units else str(data.name)
    scaled = f", times 1e{power}" if power else ""
    figure.colorbar(drawn, ax=list(panels), label=f"{name}{scaled}")
    figure.suptitle(title, fontsize=11)
    if footnote := _footnote(dataset, names):
        warned = "spearman" not in dataset
        figure.supxlabel(footnote, fontsize=7.5, color="firebrick" if warned else "0.3", wrap=True)
    return figure


def _runs(labels: list[str]) -> list[tuple[float, str]]:
    """Where labels go: one in the middle of each run of the same, and few enough to read."""
    runs: list[list[int]] = []
    for i, label in enumerate(labels):
        if runs and labels[runs[-1][0]] == label:
            runs[-1].append(i)
        else:
            runs.append([i])
    step = -(-len(runs) // MOST_LABELS)
    return [
        (float(np.mean(run)), labels[run[0]] + (f" ×{len(run)}" if len(run) > 1 else ""))
        for run in runs[::step]
    ]
