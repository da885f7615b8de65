"""What the tokens of one picture are to its answer, measure by measure, drawn over the picture."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from PIL import Image

from twohop.report.picture_drawing import Column, Panel, panel, short

PRINTED = 6
"""Layers that are drawn side by side on paper."""
CUT = ("region", "random")
ALONE = "One picture: an illustration, not a result."


@dataclass(frozen=True)
class Measure:
    """What is drawn of a measure.

    Attributes
    ----------
    columns : list of Column
    values : ndarray [side, column, token]
    says : str
    sides : tuple of str
    """

    columns: list[Column]
    values: np.ndarray
    says: str
    sides: tuple[str, ...] = ("",)


def map_panels(
    stored: xr.Dataset, entity: str, picture: Image.Image
) -> tuple[list[Panel], list[str]]:
    """Draw every map that was stored of an entity's picture.

    Parameters
    ----------
    stored : Dataset
        Of this entity alone.
    entity : str
    picture : PIL.Image.Image
        As the model was shown it.

    Returns
    -------
    panels : list of Panel
    missing : list of str
        Of measures that were not made, what and why.
    """
    refused = dict(zip(stored["measure"].values, stored["picture_refused"].values, strict=True))
    asked = f"In the prompt that asks for the {stored['pictured_relation'].item()}."
    panels, missing = [], []
    for name, measure in MEASURES.items():
        if str(refused[name]):
            missing.append(f"{name}: {refused[name]}")
            continue
        drawn = measure(stored, entity)
        panels.append(
            panel(
                name,
                stored,
                picture,
                drawn.columns,
                drawn.values,
                says=f"{asked} {drawn.says} {ALONE}",
                printed=PRINTED,
                sides=drawn.sides,
            )
        )
    return panels, missing


def attribution(stored: xr.Dataset, entity: str) -> Measure:
    """Estimated loss, token by token."""
    values, columns = _against(stored, "attribution"), _layers(stored["block"].values.tolist())
    return Measure(
        columns,
        values,
        f"An estimate, by {stored['attributed_by'].item()}, of what is lost of "
        f"{_difference(stored)} if this token alone has, at this layer, the state that it has in a "
        f"picture of “{stored['mapped_other'].item()}”: {_peak(values[0], columns)}. "
        f"{_control(values, entity)}",
        _sides(stored, entity),
    )


def attention(stored: xr.Dataset, entity: str) -> Measure:
    """Where the last token looks."""
    shares = stored["picture_attention"].values
    columns = [Column(f"block {block}", (block,)) for block in stored["block"].values.tolist()]
    together = _peak(np.nansum(shares, -1, keepdims=True), columns)
    return Measure(
        columns,
        shares[None],
        f"Share of the last token's attention, mean over heads: {_peak(shares, columns)}. All "
        f"image tokens together: {together}. It says what is looked at, not what is needed.",
    )


def rollout(stored: xr.Dataset, entity: str) -> Measure:
    """What of each token is mixed into the last one."""
    shares = stored["picture_rollout"].values
    columns = _layers([block + 1 for block in stored["block"].values.tolist()])
    return Measure(
        columns,
        shares[None],
        "Share of each token in the last one by attention rollout, which follows attention down to "
        f"the first block, whatever is attended to: {_peak(shares, columns)}.",
    )


def patched(stored: xr.Dataset, entity: str) -> Measure:
    """Loss by patches, region by region."""
    values, windows = _against(stored, "patched"), _windows(stored)
    columns = [Column(f"layer {window[0]}", tuple(window)) for window in windows]
    return Measure(
        columns,
        _at_tokens(stored, values),
        f"What is lost of {_difference(stored)} if a region has, at this layer, the states that it "
        f"has in a picture of “{stored['mapped_other'].item()}”: {_peak(values[0], columns)}, of "
        f"n = {_n_regions(values)} regions at {len(columns)} layers. {_control(values, entity)}",
        _sides(stored, entity),
    )


def cut(stored: xr.Dataset, entity: str) -> Measure:
    """Loss by cuts, region by region; those of tokens drawn from everywhere lie nowhere."""
    values, drawn = (stored["picture_cut"].sel(cut_off=which).values for which in CUT)
    columns = [Column(_blocks(window), tuple(window)) for window in _windows(stored)]
    of_region = np.unique(stored["picture_region"].values, return_counts=True)
    single = all(n == 1 for region, n in zip(*of_region, strict=True) if region >= 0)
    control = (
        "Each region is one token, so there is no control."
        if single
        else f"As a control, to as many tokens drawn from all regions: {_peak(drawn, columns)}."
    )
    return Measure(
        columns,
        _at_tokens(stored, values[None]),
        f"What is lost of {_difference(stored)} if nothing behind the picture attends to a region "
        f"in these blocks: {_peak(values, columns)}, of n = {_n_regions(values)} regions in "
        f"{len(columns)} windows. {control}",
    )


def probe(stored: xr.Dataset, entity: str) -> Measure:
    """Whether the entity is read, in the form that it has at names, rather than the other."""
    values = np.stack(
        [stored["picture_probe"].sel(which_probe=which).values for which in ("own", "null")]
    )
    columns = _layers(stored["layer"].values.tolist())
    return Measure(
        columns,
        values,
        "A linear probe that was fitted on names in text (transfer, centred): its score of "
        f"“{entity}” less that of “{stored['mapped_other'].item()}”: {_peak(values[0], columns)}. "
        f"Control, the same probe fitted on names of permuted entities: "
        f"{_peak(values[1], columns)}.",
        ("probe", "control: permuted names"),
    )


MEASURES: dict[str, Callable[[xr.Dataset, str], Measure]] = {
    "attribution": attribution,
    "attention": attention,
    "rollout": rollout,
    "patched": patched,
    "cut": cut,
    "probe": probe,
}
"""What each measure draws, in the order of the buttons."""


def _against(stored: xr.Dataset, measure: str) -> np.ndarray:
    """Values by whose picture was taken: another entity's, and another of the own."""
    values = stored[f"picture_{measure}"]
    return np.stack([values.sel(against=whose).values for whose in ("other", "same")])


def _at_tokens(stored: xr.Dataset, values: np.ndarray) -> np.ndarray:
    """Values of regions [..., region] at the tokens of these."""
    region = stored["picture_region"].values
    return np.where(region < 0, np.nan, values[..., region])


def _n_regions(values: np.ndarray) -> int:
    return int(np.isfinite(values).reshape(-1, values.shape[-1]).any(0).sum())


def _windows(stored: xr.Dataset) -> list[range]:
    firsts, lasts = stored["picture_window"].values, stored["picture_window_last"].values
    return [range(a, b + 1) for a, b in zip(firsts.tolist(), lasts.tolist(), strict=True)]


def _blocks(window: range) -> str:
    return f"block {window[0]}" if len(window) == 1 else f"blocks {window[0]} to {window[-1]}"


def _layers(numbers: Sequence[int]) -> list[Column]:
    return [Column(f"layer {number}", (number,)) for number in numbers]


def _difference(stored: xr.Dataset) -> str:
    own, foil = (stored[f"mapped_{which}"].item() for which in ("answer", "foil"))
    return f"the logit of “{own}” less that of “{foil}” (first tokens)"


def _peak(values: np.ndarray, columns: Sequence[Column]) -> str:
    """The largest of values [column, place], and where."""
    if not np.isfinite(values).any():
        return "nothing"
    k, _ = np.unravel_index(int(np.nanargmax(values)), values.shape)
    return f"at most {short(float(np.nanmax(values)))} ({columns[int(k)].caption})"


def _control(values: np.ndarray, entity: str) -> str:
    most = float(np.nanmax(values[1]))
    return f"As a control, of another picture of “{entity}”: at most {short(most)}."


def _sides(stored: xr.Dataset, entity: str) -> tuple[str, ...]:
    return f"from “{stored['mapped_other'].item()}”", f"control: from “{entity}”"
