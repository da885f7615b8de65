"""What a job folder holds is data: opening it runs no code."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import pytest
import torch

from interventions.answers import Completion
from interventions.remote.jobs import stored
from interventions.sweeping.measuring import Piece


class Code:
    def __reduce__(self) -> Any:
        return print, ("this ran",)


def test_results_come_back_as_they_were(tmp_path: Path) -> None:
    values = np.arange(6.0).reshape(3, 2, 1)
    piece = Piece([0, 1], [2], values, np.ones((3, 2), np.float32))
    answered = Completion(["Paris"], [0], [-0.5])
    given = [torch.eye(2), piece, answered, {"n": 1, "name": "x"}]
    torch.save({"returned": given}, tmp_path / "one.result")
    eye, found, said, plain = stored(tmp_path / "one.result")["returned"]
    assert torch.equal(eye, torch.eye(2))
    assert (found.rows, found.cells, found.source) == ([0, 1], [2], None)
    assert np.array_equal(np.asarray(found.values), values)
    assert np.array_equal(np.asarray(found.clean), np.ones((3, 2)))
    assert (said, plain) == (answered, {"n": 1, "name": "x"})


def test_code_in_a_result_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"returned": [Code()]}, tmp_path / "one.result")
    with pytest.raises(UnpicklingError):
        stored(tmp_path / "one.result")
    assert "this ran" not in capsys.readouterr().out
