"""What a job folder holds is data: opening it runs no code."""

import subprocess
import sys
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import pytest
import torch

from interventions.remote.jobs import stored
from interventions.remote.shipping import Luggage
from interventions.running.complete import Completion
from interventions.sweeping.measure import Piece


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


def test_a_result_is_opened_where_nothing_else_was_done(tmp_path: Path) -> None:
    """The class of what is stored is found by a process that has not used it yet."""
    torch.save({"returned": [Piece([0], [2], np.ones((1, 1, 1)))]}, tmp_path / "one.result")
    reading = (
        "import sys; from pathlib import Path; from interventions.remote.jobs import stored; "
        "assert 'interventions.sweeping.measure' not in sys.modules; "
        "[piece] = stored(Path(sys.argv[1]))['returned']; assert piece.cells == [2]"
    )
    subprocess.run([sys.executable, "-c", reading, tmp_path / "one.result"], check=True)


def test_a_class_that_was_not_said_to_be_stored_is_refused(tmp_path: Path) -> None:
    torch.save({"returned": [Luggage()]}, tmp_path / "one.result")
    with pytest.raises(UnpicklingError, match="Luggage"):
        stored(tmp_path / "one.result")
