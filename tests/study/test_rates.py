"""A rate by the clock: what passes cost beside their tokens is not what a shared beginning does."""

import pytest

from interventions.sweeping.sizes import Sizes
from twohop.protocol import Protocol
from twohop.running.pair_run import Settings
from twohop.running.rates import ROWS, Timed, rate_between, timed_calls
from twohop.running.study import study_of
from twohop.stages.asked import Counts, scope_of
from twohop.stages.work import Asked, Lengths

SIZES = Sizes(10, 64, 4, 4, 16, 100, 256, 4, 1_000_000)


@pytest.mark.parametrize("before", [0, 40])
def test_the_rate_that_made_two_times_comes_back(before: int) -> None:
    """Of a device that takes so much for a token and for a pass, however much is shared."""
    of_token, of_pass = 2e-3, 0.5
    passes = 1 + bool(before)

    def call(tokens: int) -> Timed:
        return Timed(before + tokens, passes, (before + tokens) * of_token + passes * of_pass)

    rate = rate_between(call(7), call(24 * 7), SIZES)
    assert 2 * SIZES.block * SIZES.n_layers / rate.flops == pytest.approx(of_token)
    assert rate.of_pass * SIZES.n_layers == pytest.approx(of_pass)
    asked = Asked("backbone", SIZES, "cpu", SIZES.n_layers)
    lengths = Lengths((7,) * 24, before, 1, 3)
    work = asked.reading(lengths)
    expected = (before + 24 * 7) * of_token + 2 * of_pass
    assert rate.seconds(asked, work) == pytest.approx(expected)


def test_many_rows_are_timed_of_however_few_items_and_what_is_shared_counts() -> None:
    study = study_of("micro-late", Settings(protocol=Protocol.preset("quick"), limit=4))
    few, many = timed_calls(study.backbone, study)
    [first, *_] = scope_of(study, counts=Counts.most(4, study.protocol)).relations
    before = first.named.before
    assert before
    assert few.passes == many.passes == 2
    assert many.tokens - before == ROWS * (few.tokens - before)
