"""What ``import twohop`` offers, and that it costs nothing until it is used."""

import subprocess
import sys

import pytest

import twohop


def test_every_name_is_there() -> None:
    assert {*twohop.__all__} == {*twohop.LATER}
    assert dir(twohop) == sorted(twohop.__all__)
    for name in twohop.__all__:
        found = getattr(twohop, name)
        assert found.__doc__ or name == "PAIRS"
    assert twohop.find_pair("micro-late") is twohop.PAIRS["micro-late"]
    with pytest.raises(AttributeError, match="run_studies"):
        _ = twohop.run_studies  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("module", ["twohop", "twohop.stages.table", "twohop.stages.recovery.arms"])
def test_it_is_light_to_import(module: str) -> None:
    code = f"import sys; import {module}; assert not {{'torch', 'xarray'}} & {{*sys.modules}}"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
