"""Which items the recall timetable says are lost, and which are.

"Too late" is an explanation if it tells the lost items from the others. For every item that the
VLM names and the backbone knows, the resolution says from which layer on its entity can be read in
the VLM, and in the form of which of the backbone's layers; the timetable, which was measured on
the backbone's text alone, says how likely the answer then is. Nothing here is fitted to the answers
that the VLM gives.
"""

from dataclasses import dataclass, replace

import numpy as np
import xarray as xr

from twohop.ask.study import SEPARATOR, Study
from twohop.protocol import DEFAULT, Protocol
from twohop.stages.deadlines import expected_right
from twohop.stages.forecasts import Forecast, area, binned, calibration, gain, permuted
from twohop.stages.timing import READS, blocks_done
from twohop.statistics import Estimate, difference, interval, mean

PREDICTORS = ("timetable", "onset_alone", *READS)
"""What items are ranked by: the timetable; how early the entity is read, whatever its form; the
timetable with what one of the two probes reads."""


@dataclass(frozen=True)
class Arrivals:
    """Where each entity of a VLM can first be read, and in which form.

    Attributes
    ----------
    onset : ndarray of int [entity]
        The VLM's layer, -1 where the entity is never read.
    block : ndarray of int [entity]
        How many of the backbone's blocks are done there; meaningless where it is never read.
    form : ndarray of int [entity]
        How many of them are done where the backbone's own state is most like it there.
    """

    onset: np.ndarray
    block: np.ndarray
    form: np.ndarray

    @property
    def read(self) -> np.ndarray:
        """Whether an entity is read at all, [entity]."""
        return self.onset >= 0

    def expected(self, timetable: xr.Dataset) -> np.ndarray:
        """Probability of an answer about each entity: the neutral run's where it is never read."""
        end = np.full(len(self.onset), int(timetable.attrs["n_layers"]))
        return expected_right(
            timetable, np.where(self.read, self.form, end), np.where(self.read, self.block, end)
        )


def arrivals(resolution: xr.Dataset, probes: tuple[str, ...] = READS) -> Arrivals:
    """When, by probes, each entity can first be read at the place chosen on the other half.

    Parameters
    ----------
    resolution : Dataset
        With ``onset`` (probe_kind, entity), ``form`` (role, layer, entity), ``half`` (entity) and
        the attributes ``chosen_role`` (of each half) and ``vlm_blocks``; see
        :func:`twohop.stages.resolution.resolution`.
    probes : tuple of str
        An entity is read where the first of them reads it.
    """
    onsets = resolution["onset"].sel(probe_kind=list(probes)).values
    n_layers, roles = resolution.sizes["layer"], resolution["role"].values.tolist()
    first = np.where(onsets >= 0, onsets, n_layers).min(0)
    chosen = [str(role) for role in np.atleast_1d(resolution.attrs["chosen_role"])]
    places = [chosen[half] for half in resolution["half"].values]
    there = np.array([place in roles for place in places], dtype=bool)
    at = [roles.index(place) if place in roles else 0 for place in places]
    layer = np.minimum(first, n_layers - 1)
    form = resolution["form"].values[at, layer, np.arange(len(places))].astype(int)
    done = blocks_done(resolution)[layer]
    read = (first < n_layers) & there & (form >= 0)
    return Arrivals(np.where(read, first, -1), done, np.where(read, form, -1))


def prediction(
    study: Study, gates: xr.Dataset, resolution: xr.Dataset, timetable: xr.Dataset
) -> xr.Dataset:
    """Predict which of a study's items are lost; see :func:`predicted`."""
    return predicted(gates, resolution, timetable, seed=study.seed, protocol=study.protocol)


def predicted(
    gates: xr.Dataset,
    resolution: xr.Dataset,
    timetable: xr.Dataset,
    *,
    seed: int,
    protocol: Protocol = DEFAULT,
) -> xr.Dataset:
    """Predict which items are lost, and hold it against those that are.

    Parameters
    ----------
    gates, resolution, timetable : Dataset
        Of the stages ``recall``, ``resolution`` and ``timetable``.
    seed : int
    protocol : Protocol

    Returns
    -------
    Dataset
        Of the items that the VLM names and the backbone knows, without the surface ones, whose
        answer can be had from the name's spelling: ``expected`` (item): probability of
        an answer, the neutral run's where the entity is never read; ``right`` (item): whether the
        VLM answers from the image; ``read``, ``onset``, ``block`` and ``form`` (item): see
        :class:`Arrivals`; ``predicted_lost`` (item): expected below the protocol's
        ``predicted_lost``. ``auc`` (predictor), with ``auc_low`` and ``auc_high``, of
        :data:`PREDICTORS`. ``bin_expected``, ``bin_right`` (with ``bin_right_low`` and
        ``bin_right_high``) and ``bin_n`` (bin): calibration.

        Attributes with ``_low`` and ``_high``: ``auc`` of the timetable, ``gain`` (over the onset
        alone), ``slope``, ``intercept``, ``brier``, ``skill``
        (:class:`~twohop.stages.forecasts.Calibration`), ``excess`` (share expected to be lost minus
        share lost), ``lost_if_predicted`` and ``lost_if_not`` (shares lost of the items that are
        predicted lost, and of the others). Others: ``auc_permuted_low``, ``auc_permuted_high`` and
        ``auc_p``: the area where onsets and forms are dealt out anew over entities that are asked
        the same, and how often it is as large; ``brier_base``; ``n_items``, ``n_entities``,
        ``n_lost``, ``n_read``, ``n_predicted_lost``; ``not_measured``: why there are no numbers,
        empty if there are.
    """
    known = gates["right"].sel(gate=["recognised", "backbone_text"]).values.all(0)
    known &= ~gates["surface"].values.astype(bool)
    # Without a timetable nothing is expected of any item.
    chosen = gates.isel(item=known & bool(timetable.sizes["item"]))
    names = chosen["entity"].values.astype(str)
    row_of = {str(name): row for row, name in enumerate(resolution["entity"].values)}
    rows = np.array([row_of[name] for name in names], dtype=int)
    right = chosen["right"].sel(gate="vlm_image").values.astype(bool)
    first = arrivals(resolution)
    forecast = Forecast(first.expected(timetable)[rows], right, names)
    onset = np.where(first.read, first.onset, resolution.sizes["layer"])
    scores = {
        "timetable": forecast.expected,
        "onset_alone": -onset[rows].astype(float),
        **{probe: arrivals(resolution, (probe,)).expected(timetable)[rows] for probe in READS},
    }
    ranked = [
        area(replace(forecast, expected=scores[name]), seed=seed, protocol=protocol)
        for name in PREDICTORS
    ]
    better = gain(forecast, scores["onset_alone"], seed=seed, protocol=protocol)
    line = calibration(forecast, seed=seed, protocol=protocol)
    lost, foretold = ~right, forecast.expected < protocol.predicted_lost
    numbers = {
        "auc": ranked[0],
        "gain": better,
        "slope": line.slope,
        "intercept": line.intercept,
        "brier": line.brier,
        "skill": line.skill,
        "excess": difference(1 - forecast.expected, lost, names),
        "lost_if_predicted": mean(lost[foretold], names[foretold]),
        "lost_if_not": mean(lost[~foretold], names[~foretold]),
    }
    bins = binned(forecast, protocol=protocol)
    why_not = forecast.why_not(protocol=protocol)
    alike = asked_alike(gates, names)
    dealt = permuted(forecast, alike, seed=seed, protocol=protocol) if not why_not else None
    return xr.Dataset(
        {
            "expected": ("item", forecast.expected),
            "right": ("item", right),
            "read": ("item", first.read[rows]),
            "onset": ("item", first.onset[rows]),
            "block": ("item", first.block[rows]),
            "form": ("item", first.form[rows]),
            "predicted_lost": ("item", foretold),
            **_columns("predictor", "auc", ranked),
            "bin_expected": ("bin", np.array([expected for expected, _ in bins])),
            **_columns("bin", "bin_right", [share for _, share in bins]),
            "bin_n": ("bin", np.array([share.n for _, share in bins])),
        },
        coords={
            **{name: chosen[name] for name in ("item", "entity", "relation")},
            "predictor": list(PREDICTORS),
        },
        attrs={
            **{
                f"{name}{end}": value
                for name, estimate in numbers.items()
                for end, value in _ends(estimate)
            },
            "brier_base": line.base,
            **_dealt(ranked[0].value, dealt),
            "n_items": len(forecast),
            "n_entities": len({*names}),
            "n_lost": int(lost.sum()),
            "n_read": int(first.read[rows].sum()),
            "n_predicted_lost": int(foretold.sum()),
            "not_measured": why_not,
        },
    )


def asked_alike(gates: xr.Dataset, names: np.ndarray) -> list[str]:
    """For each item's entity, what it is asked about: alike where these are the same, [item]."""
    asked: dict[str, set[str]] = {}
    for name, relation in zip(gates["entity"].values, gates["relation"].values, strict=True):
        asked.setdefault(str(name), set()).add(str(relation))
    return [SEPARATOR.join(sorted(asked[name])) for name in names]


def _ends(estimate: Estimate) -> list[tuple[str, float]]:
    return [("", estimate.value), ("_low", estimate.low), ("_high", estimate.high)]


def _columns(dim: str, name: str, estimates: list[Estimate]) -> dict[str, tuple[str, np.ndarray]]:
    """Estimates along a dimension as variables: the values and both ends."""
    columns = zip(*([value for _, value in _ends(each)] for each in estimates), strict=True)
    ends = ("", "_low", "_high")
    return {f"{name}{end}": (dim, np.array(of)) for end, of in zip(ends, columns, strict=True)}


def _dealt(observed: float, dealt: np.ndarray | None) -> dict[str, float]:
    """The interval of areas of permuted forecasts, and how often they reach the observed one."""
    if dealt is None:
        return {name: float("nan") for name in ("auc_permuted_low", "auc_permuted_high", "auc_p")}
    low, high = interval(dealt)
    p = (1 + (dealt >= observed - 1e-12).sum()) / (1 + len(dealt))
    return {"auc_permuted_low": low, "auc_permuted_high": high, "auc_p": float(p)}
