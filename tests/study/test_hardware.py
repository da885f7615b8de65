"""What only hardware shows, at tiny sizes here, so that its scripts are known to run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pretend_device
from hardware.gpu import PARTS
from hardware.real_size import STEPS

from twohop.stages.table import STAGES

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (ROOT, ROOT / "tests", ROOT / "tests/support")
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, FOLDERS))}


def test_the_script_for_a_gpu_runs_on_the_pretended_one(tmp_path: Path) -> None:
    pretend_device.build_or_skip()
    command = [sys.executable, "-m", "hardware.gpu", "--small", "--device", "fake:0"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads((tmp_path / "gpu.json").read_text())
    assert told["failed"] == {}
    assert told["left_out_for_time"] == []
    rows = told["rows"]
    assert len(rows) >= len(PARTS) + len(STAGES) - 1
    assert {f"study: {stage}" for stage in STAGES} <= {*rows}
    counts = rows["study: recall"]["told"]
    assert counts["both"] > counts["kept"] > 0
    assert rows["study: recovery"]["peak"] > rows["one forward pass"]["peak"] > 0
    assert rows["eager"]["told"]["differs by, of the largest logit"] > 0
    table = (tmp_path / "gpu.md").read_text()
    assert all(name in table for name in rows)


def test_without_a_gpu_it_says_so_and_fails_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hardware.gpu", "--out", str(tmp_path / "gpu")]
    environment = ENVIRONMENT | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "no GPU here" in done.stdout
    assert not (tmp_path / "gpu").exists()


def test_every_step_at_real_size_runs_at_a_tiny_one(tmp_path: Path) -> None:
    taken = {name: function(tmp_path, True) for name, function in STEPS.items()}
    assert {name: took.wrong for name, took in taken.items() if took.wrong} == {}
    assert taken["sweep"].told["cells"] == 10
    assert taken["transplant"].told["logits moved by"] > 0
    assert taken["checkpoint written"].told["GiB of weights"] > 0
    weights = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert {*weights["weight_map"].values()} <= {path.name for path in tmp_path.iterdir()}
