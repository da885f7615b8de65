"""The suite over every family: each test runs on all of them."""

import pytest
import tiny
from families import TWINS, Case, case_of, sees

FAMILIES = (*tiny.FAMILIES, *TWINS)


@pytest.fixture(params=FAMILIES)
def case(request: pytest.FixtureRequest) -> Case:
    return case_of(request.param)


@pytest.fixture(params=[name for name in FAMILIES if sees(name)])
def shown(request: pytest.FixtureRequest) -> Case:
    return case_of(request.param)
