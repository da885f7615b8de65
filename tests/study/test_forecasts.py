"""How good a forecast is: against pairs counted one by one, known lines, and known truths."""

import numpy as np
import pytest

from twohop.protocol import LEAST_RESAMPLES, Protocol
from twohop.stages.forecasts import Forecast, area, areas, binned, calibration, gain, permuted

FEW = Protocol(resamples=200)


def forecast(expected: np.ndarray, right: np.ndarray, *, per_entity: int = 1) -> Forecast:
    clusters = np.array([f"e{row // per_entity}" for row in range(len(right))])
    return Forecast(np.asarray(expected, float), np.asarray(right, bool), clusters)


def test_the_area_is_the_share_of_pairs_in_order_and_ties_are_half() -> None:
    rng = np.random.default_rng(0)
    scores, right = rng.integers(0, 5, 60) / 4, rng.random(60) < 0.4
    weights = rng.integers(0, 3, (1, 60)).astype(float)
    won = total = 0.0
    for i in np.nonzero(right)[0]:
        for j in np.nonzero(~right)[0]:
            both = weights[0, i] * weights[0, j]
            won += both * ((scores[i] > scores[j]) + (scores[i] == scores[j]) / 2)
            total += both
    assert areas(scores, right, weights)[0] == pytest.approx(won / total)
    assert areas(np.zeros(60), right, weights)[0] == 0.5


@pytest.mark.parametrize("order", [1, -1])
def test_a_perfect_ranking_has_an_interval_all_the_same(order: int) -> None:
    right = np.arange(40) % 2 == 0
    found = area(forecast(order * right, right), seed=0, protocol=FEW)
    edge = 0.025 ** (1 / 20)  # as if 20 of 20
    assert (found.value, found.n) == ((1 + order) / 2, 40)
    assert (found.low, found.high) == pytest.approx((edge, 1) if order == 1 else (0, 1 - edge))


@pytest.mark.parametrize(
    ("right", "per_entity", "why"),
    [
        (np.ones(30), 1, "no item is lost"),
        (np.zeros(30), 1, "every item is lost"),
        (np.arange(30) % 2, 10, "3 entities, fewer than 5"),
    ],
)
def test_what_says_nothing_is_not_measured(right: np.ndarray, per_entity: int, why: str) -> None:
    said = forecast(np.linspace(0, 1, 30), right, per_entity=per_entity)
    assert said.why_not() == why
    line = calibration(said, seed=0, protocol=FEW)
    numbers = (area(said, seed=0), gain(said, said.expected, seed=0), line.slope, line.skill)
    assert not any(number.measured for number in numbers)


def test_the_fewest_resamples_are_no_crash() -> None:
    right = np.arange(8) == 0
    for seed in range(8):
        said = forecast(np.arange(8) / 8, right)
        least = Protocol(resamples=LEAST_RESAMPLES)
        found = area(said, seed=seed, protocol=least)
        assert found.low <= found.value <= found.high
        calibration(said, seed=seed, protocol=least)
        gain(said, said.expected, seed=seed, protocol=least)


@pytest.mark.parametrize("separation", [0.0, 1.0, 4.0])
def test_the_intervals_of_areas_hold_what_they_promise(separation: float) -> None:
    """Entities of two items each, alike by half; resampling alone gives .48 to .93 here."""
    rng = np.random.default_rng(1)

    def drawn(n: int) -> Forecast:
        score = rng.normal(size=n)
        luck = rng.normal(size=(n, 1)) + rng.normal(size=(n, 2))
        right = separation * score[:, None] + luck / 2**0.5 > separation / 2
        return forecast(score.repeat(2), right.ravel(), per_entity=2)

    everyone = drawn(50_000)
    truth = areas(everyone.expected, everyone.right, np.ones((1, len(everyone))))[0]
    for n in (12, 60):
        found = [area(drawn(n), seed=seed, protocol=FEW) for seed in range(150)]
        inside = [each.low <= truth <= each.high for each in found if each.measured]
        assert np.mean(inside) >= 0.93


def test_a_calibrated_forecast_has_slope_one_and_its_skill() -> None:
    rng = np.random.default_rng(2)
    expected = rng.random(4000)
    right = rng.random(4000) < expected
    line = calibration(forecast(expected, right), seed=0, protocol=FEW)
    assert line.slope.low < 1 < line.slope.high
    assert line.intercept.low < 0 < line.intercept.high
    assert line.brier.value == pytest.approx(1 / 6, abs=0.02)  # the mean of p (1 - p)
    assert line.base == pytest.approx(1 / 4, abs=0.01)
    assert line.skill.value == pytest.approx(1 / 3, abs=0.05)
    for mean, share in binned(forecast(expected, right)):
        assert share.low < mean < share.high

    bold = calibration(forecast(np.where(expected > 0.5, 1, 0), right), seed=0, protocol=FEW)
    assert bold.slope.high < 0.6, "too sure of itself"
    alike = calibration(forecast(np.full(4000, 0.5), right), seed=0, protocol=FEW)
    assert not alike.slope.measured
    assert alike.skill.value == pytest.approx(0, abs=0.01)
    assert [share.n for _, share in binned(forecast(np.ones(7), np.ones(7)))] == [0, 0, 0, 0, 7]


def test_a_gain_is_the_difference_of_areas_on_the_same_items() -> None:
    rng = np.random.default_rng(3)
    score, right = rng.normal(size=300), rng.random(300) < 0.5
    good = forecast(score + 2 * right, right)
    found = gain(good, score, seed=0, protocol=FEW)
    everyone = np.ones((1, 300))
    assert found.value == areas(good.expected, right, everyone) - areas(score, right, everyone)
    assert 0 < found.low < found.value < found.high
    same = gain(good, good.expected, seed=0, protocol=FEW)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_dealing_forecasts_anew_leaves_what_the_strata_alone_tell() -> None:
    right = np.arange(60) < 30
    said = forecast(right, right, per_entity=3)
    dealt = permuted(said, ["same"] * 60, seed=0, protocol=FEW)
    assert np.mean(dealt) == pytest.approx(0.5, abs=0.03)
    # An entity's items stay together: 10 and 10 entities leave steps of a tenth.
    assert np.allclose(dealt * 10, np.round(dealt * 10))
    told = permuted(said, [str(hit) for hit in right], seed=0, protocol=FEW)
    assert (told == 1).all()
