"""Why an item is lost: the differential diagnosis, one verdict per item, in a fixed order.

A verdict is given by what was shown, never by what was not: that something does not help needs an
interval that ends below what matters, and where a test that a verdict rests on cannot tell, the
verdict is ``not_tested``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import xarray as xr

from twohop.protocol import DEFAULT, Protocol
from twohop.stages.echo import echo
from twohop.stages.evidence import EVIDENCE, Measured, State, measured, of_all, resampled
from twohop.stages.timing import (
    NULLS,
    Timing,
    blocks_done_at,
    elsewhere,
    read_anywhere,
    timing,
)
from twohop.statistics import Estimate, interval, mean

VERDICTS = (
    "right",
    "knowledge_missing",
    "not_recognised",
    "echo_or_format",
    "late",
    "never_in_circuit",
    "in_time",
    "unexplained",
    "not_tested",
)

_ECHO = "echo: "
"""What the names of the echo's tests begin with, one to a relation."""


@dataclass(frozen=True)
class Case:
    """What is known of each lost item by itself.

    Attributes
    ----------
    state : ndarray of str [item]
        When its entity comes, see :data:`twohop.stages.timing.STATES`.
    decodable : ndarray of bool [item]
        The plain probe reads its entity somewhere.
    elsewhere : ndarray of bool [item]
        It is neither late nor never, see :func:`twohop.stages.timing.elsewhere`.
    regained : ndarray [item]
        1 if the transplant into all its places gives the answer back, 0 if not, NaN if not tried.
    formed : ndarray of bool [item]
        Where back-patching takes the states of its half from, its entity is read already.
    """

    state: np.ndarray
    decodable: np.ndarray
    elsewhere: np.ndarray
    regained: np.ndarray
    formed: np.ndarray


def judged(case: Case, evidence: Mapping[str, State]) -> np.ndarray:
    """The verdict on each lost item, given what was shown of the pair, [item].

    - ``late``: its entity is read, but only after the deadline of its form, and is not shown to be
      read before at another place, and is read where back-patching takes its states from; the
      transplant gives its answer back; and of the pair it was shown that probes read entities so
      late more often than by luck, that they read the VLM's own text, and that back-patching gives
      back more than both of its nulls.
    - ``in_time``: its entity is read before the deadline, and its answer is lost all the same; of
      the pair it was shown that probes read entities in time more often than by luck, and the
      VLM's own text.
    - ``never_in_circuit``: its entity is decodable, and no probe reads it in the backbone's form,
      nor is it shown to be read in passing, or at another place; the transplant gives its answer
      back; and of the pair it was shown that entities are decodable, that the probes read the
      VLM's own text, and that back-patching does *not* give back more than either null.
    - ``unexplained``: all of these tests could tell, and none of the three is the case.
    - ``not_tested``: one of them could not.
    """
    state, back = case.state, case.regained
    patched = of_all(evidence[test] for test in ("back_patching", "back_patching_change"))
    decodable = evidence["decodable"]
    verdict = np.full(len(state), "not_tested", dtype=object)
    if evidence["own_text"] != "shown":
        return verdict
    if evidence["early"] == "shown":
        verdict[state == "early"] = "in_time"
    if evidence["late"] == "shown":
        late = state == "late"
        if patched == "shown":
            verdict[late & (back == 1) & ~case.elsewhere & case.formed] = "late"
        verdict[late & ((back == 0) | (patched == "absent"))] = "unexplained"
    never = state == "never"
    hidden = never & case.decodable & (decodable == "shown") & ~case.elsewhere
    if patched == "absent":
        verdict[hidden & (back == 1)] = "never_in_circuit"
    verdict[never & ((back == 0) | (patched == "shown"))] = "unexplained"
    if decodable != "open":
        nowhere = never & ~hidden & ~case.elsewhere
        verdict[nowhere & (back == 1) & (patched == "absent")] = "unexplained"
    return verdict


def diagnosis(
    gates: xr.Dataset,
    resolution: xr.Dataset,
    recovery: xr.Dataset,
    timetable: xr.Dataset,
    *,
    seed: int,
    protocol: Protocol = DEFAULT,
) -> xr.Dataset:
    """Give every item its verdict, and every verdict its share.

    In this order, the first that holds:

    - ``right``: the VLM answers from the image.
    - ``knowledge_missing``: the backbone does not know it.
    - ``not_recognised``: the VLM does not name the entity.
    - ``echo_or_format``: the forced choice is right, the free answer is no answer of the relation;
      in relations in which that is more often so than with permuted choices. Some of these are
      luck all the same: their weight says how many, and the rest of it goes to the next verdict.
    - those of :func:`judged`.

    Parameters
    ----------
    gates, resolution, recovery, timetable : Dataset
        From the stages of these names; the gates are those of ``recall``.
    seed : int
        Of the resamples.
    protocol : Protocol

    Returns
    -------
    Dataset
        ``verdict`` (item); ``otherwise`` (item): the verdict if an echo was luck, else the same;
        ``weight`` (item): of ``verdict``, the rest is of ``otherwise``; ``state``, ``blocks`` and
        ``form`` (item): when the entity comes, see :class:`twohop.stages.timing.Timing`;
        ``share``, ``share_low`` and ``share_high`` (kind): of all items but the surface ones, each
        verdict's. The interval is the wider of that of a share, and of what the whole diagnosis
        gives on resamples of the entities, its tests included. ``evidence``, ``evidence_low``,
        ``evidence_high``, ``evidence_n`` and ``evidence_state`` (test): what was shown.
    """
    right = {
        gate: gates["right"].sel(gate=gate).values.astype(bool) for gate in gates["gate"].values
    }
    lost = right["backbone_text"] & right["recognised"] & ~right["vlm_image"]
    read = timing(resolution, timetable, protocol=protocol)
    null = timing(resolution, timetable, kinds=NULLS, protocol=protocol)
    tests = measured(resolution, recovery, read, null, seed=seed, protocol=protocol)
    evidence = {name: test.judged(protocol=protocol) for name, test in tests.items()}
    case = _case(gates, resolution, recovery, timetable, read, protocol=protocol)
    counted = ~gates["surface"].values.astype(bool)
    echoed = echo(gates, lost & counted)

    early = np.select(
        [right["vlm_image"], ~right["backbone_text"], ~right["recognised"]],
        ["right", "knowledge_missing", "not_recognised"],
        "",
    ).astype(object)

    of_relation = {_ECHO + name: test for name, test in echoed.tests.items()}

    def verdicts(states: Mapping[str, State]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The verdict on each item, the one if it is luck, and the weight of the first, [item]."""
        other = np.where(lost, judged(case, states), early)
        shown = [name for name in echoed.tests if states[_ECHO + name] == "shown"]
        masked = echoed.masked(shown)
        return np.where(masked, "echo_or_format", other), other, np.where(masked, echoed.weight, 1)

    def shares_of(states: Mapping[str, State]) -> np.ndarray:
        first, other, weight = verdicts(states)
        return np.array([_share(kind, first, other, weight)[counted] for kind in VERDICTS])

    states: dict[str, State] = {name: test.state for name, test in evidence.items()}
    states |= {name: test.judged(protocol=protocol).state for name, test in of_relation.items()}
    verdict, otherwise, weight = verdicts(states)
    entity = gates["entity"].values.astype(str)
    drawn = _resamples(
        tests | of_relation, shares_of, entity[counted], seed=seed, protocol=protocol
    )
    table = [
        _wider(mean(of_items, entity[counted]), resamples)
        for of_items, resamples in zip(shares_of(states), drawn, strict=True)
    ]
    rows = {name: i for i, name in enumerate(resolution["entity"].values.astype(str))}
    where = np.array([rows[name] for name in entity], dtype=int)
    return xr.Dataset(
        {
            "verdict": ("item", verdict),
            "otherwise": ("item", otherwise),
            "weight": ("item", weight),
            "state": ("item", read.state[where]),
            "blocks": ("item", read.blocks[where]),
            "form": ("item", read.form[where]),
            "share": ("kind", [each.value for each in table]),
            "share_low": ("kind", [each.low for each in table]),
            "share_high": ("kind", [each.high for each in table]),
            "evidence": ("test", [evidence[name].estimate.value for name in EVIDENCE]),
            "evidence_low": ("test", [evidence[name].estimate.low for name in EVIDENCE]),
            "evidence_high": ("test", [evidence[name].estimate.high for name in EVIDENCE]),
            "evidence_n": ("test", [evidence[name].estimate.n for name in EVIDENCE]),
            "evidence_state": (
                "test",
                np.array([evidence[name].state for name in EVIDENCE], dtype=object),
            ),
        },
        coords={
            **{name: gates[name] for name in ("item", "entity", "relation", "surface")},
            "kind": list(VERDICTS),
            "test": list(EVIDENCE),
        },
    )


def _case(
    gates: xr.Dataset,
    resolution: xr.Dataset,
    recovery: xr.Dataset,
    timetable: xr.Dataset,
    read: Timing,
    *,
    protocol: Protocol,
) -> Case:
    """What is known of each item by itself."""
    rows = {name: i for i, name in enumerate(resolution["entity"].values.astype(str))}
    where = np.array([rows[name] for name in gates["entity"].values.astype(str)], dtype=int)
    plain = read_anywhere(resolution, "plain", protocol=protocol)
    there = elsewhere(resolution, timetable, read, protocol=protocol)
    tried = dict(zip(recovery["lost"].values, recovery["whole"].values, strict=True))
    regained = [float(tried.get(item, np.nan)) for item in gates["item"].values]
    # Of what was tried on no item of an entity, nothing was chosen.
    names, halves = recovery["tried_entity"].values.tolist(), recovery["half"].values.tolist()
    half_of = dict(zip(names, halves, strict=True))
    layers = read_at(recovery)
    done = np.where(layers < 0, -1, blocks_done_at(resolution, layers))
    reached = [done[half_of[name]] if name in half_of else -1 for name in gates["entity"].values]
    formed = np.array(reached) >= read.blocks[where]
    return Case(read.state[where], plain[where], there[where], np.array(regained), formed)


def read_at(recovery: xr.Dataset) -> np.ndarray:
    """The layer that back-patching takes the states of each half from; -1 for none, [half]."""
    cells = recovery["chosen_cell"].values
    return np.array([recovery["later"].values[cell] if cell >= 0 else -1 for cell in cells])


def _share(kind: str, verdict: np.ndarray, otherwise: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """How much of each item is of a kind, [item]."""
    return weight * (verdict == kind) + (1 - weight) * (otherwise == kind)


def _resamples(
    tests: Mapping[str, Measured],
    shares_of: Callable[[Mapping[str, State]], np.ndarray],
    entities: np.ndarray,
    *,
    seed: int,
    protocol: Protocol,
) -> np.ndarray:
    """Share of each kind in resamples of the entities, the tests made anew, [kind, resample].

    ``shares_of(states)`` gives how much of each item is of each kind, [kind, item].
    """
    if not len(entities):  # every item is set aside
        return np.full((len(VERDICTS), 1), np.nan)
    codes, index = np.unique(entities, return_inverse=True)
    generator = np.random.default_rng(seed)
    times = generator.multinomial(
        len(codes), np.full(len(codes), 1 / len(codes)), size=protocol.gate_resamples
    )
    of_states: dict[tuple[State, ...], np.ndarray] = {}
    shares = []
    for drawn in times:
        states = resampled(
            tests, dict(zip(codes.tolist(), drawn.tolist(), strict=True)), protocol=protocol
        )
        key = tuple(states.values())
        if key not in of_states:
            of_states[key] = shares_of(states)
        weights = drawn[index]
        shares.append(of_states[key] @ weights / weights.sum())
    return np.array(shares).T


def _wider(first: Estimate, drawn: np.ndarray) -> Estimate:
    """The wider of an interval, and of what resamples gave."""
    if not first.measured:
        return first
    low, high = interval(drawn)
    return Estimate(first.value, min(first.low, low), max(first.high, high), first.n)
