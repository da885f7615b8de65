"""The notebook on NDIF, with the embedded pair on a real server."""

from pathlib import Path

import pytest
from notebooks import kept_and_said


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_notebook(tmp_path: Path) -> None:
    names = {"BACKBONE": "twohop/flags-backbone", "VLM": "twohop/flags-naming"}
    _, found = kept_and_said("ndif", tmp_path, settings=names)
    assert "from the image:  ['France']" in found
    assert "after the patch: [' Paris" in found
    assert "cells, 1 request\n" in found
    assert "complete: done, sent 1 time(s)" in found
    assert found.rstrip().endswith("['Paris']")
