"""A number with its interval, from where it is measured to ``summary.json`` and back."""

import json
import math

from hypothesis import given, settings
from hypothesis import strategies as st

from twohop.report.estimates import NOT_MEASURED, Unit, bounds, short, written
from twohop.statistics import Estimate, as_json, estimates

VALUES = st.floats(-1e6, 1e6) | st.just(math.nan)
ESTIMATES = st.builds(Estimate, VALUES, VALUES, VALUES, st.integers(0, 10**6))
PLAIN = st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.integers())
KEYS = st.text(min_size=1)
SUMMARIES = st.recursive(
    ESTIMATES | PLAIN, lambda part: st.dictionaries(KEYS, part, max_size=4), max_leaves=12
)
UNITS: tuple[Unit, ...] = ("share", "points", "layers", "correlation")


@settings(max_examples=200, deadline=None)
@given(SUMMARIES)
def test_what_is_stored_is_read_as_it_was(summary: object) -> None:
    stored = json.loads(json.dumps(as_json(summary), allow_nan=False))
    assert repr(estimates(stored)) == repr(summary)
    assert repr(estimates(summary)) == repr(summary), "what is typed already stays"


@settings(max_examples=200, deadline=None)
@given(ESTIMATES, st.sampled_from(UNITS))
def test_a_number_is_its_value_and_its_interval(number: Estimate, unit: Unit) -> None:
    assert written(number, unit) == written(number.as_dict(), unit)
    if not number.measured:
        assert written(number, unit) == short(number, unit) == NOT_MEASURED
    else:
        assert written(number, unit) == f"{short(number, unit)} {bounds(number, unit)}"
        assert written(number, unit, n=True).endswith(f"(n\u00a0{number.n})")


def test_a_number_in_another_unit() -> None:
    assert Estimate(0.5, 0.25, 0.75, 8).scaled(100) == Estimate(50, 25, 75, 8)
    assert written(None) == NOT_MEASURED
