"""What a server refuses: wrong keys, and work that takes too long."""

import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from deployed import remote
from launch import ROOT, free_port
from test_jobs import slow

import interventions as iv
from interventions.cli import main
from interventions.errors import JobError, RemoteError
from interventions.remote import Jobs

SERVER = Path(os.environ.get("NDIF_TESTS", "."))
BIN = ROOT / ".venv-ndif" / "bin"
TRUSTED, OTHER, UNKNOWN = (f"{i}0000000-aaaa-4bbb-8ccc-dddddddddddd" for i in (1, 2, 3))
NO_UUID = "a-key-nobody-may-see"


def environment() -> dict[str, str]:
    """What the server's API was started with."""
    api = json.loads((SERVER / "pids.json").read_text())["api"]
    lines = (Path("/proc") / str(api) / "environ").read_text().split("\0")
    return dict(line.split("=", 1) for line in lines if "=" in line)


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A second API of the same server, whose check of keys is on."""
    folder, port = tmp_path_factory.mktemp("keyed"), free_port()
    keys = folder / "keys.json"
    keys.write_text(json.dumps({TRUSTED: ["trusted"], OTHER: []}))
    with (folder / "log").open("wb") as log:
        api = subprocess.Popen(
            [str(BIN / "uvicorn"), "file_keys:app", "--port", str(port)],
            env=environment() | {"NDIF_KEYS_FILE": str(keys)},
            stdout=log,
            stderr=log,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + 120
        while not answers(f"{address}/ping"):
            assert api.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < end
            time.sleep(0.2)
        yield address
    finally:
        api.terminate()
        api.wait(30)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status == 200
    except OSError:
        return False


def n_layers(model: iv.Model) -> int:
    return model.n_layers


@pytest.mark.parametrize("key", [None, NO_UUID, UNKNOWN], ids=["none", "no uuid", "unknown"])
@pytest.mark.parametrize("kept", [False, True], ids=["at once", "as a job"])
def test_a_wrong_key_is_refused_and_shown_nowhere(
    keyed: str,
    key: str | None,
    kept: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: Any,
) -> None:
    monkeypatch.setattr("nnsight.CONFIG.API.APIKEY", key)
    model = iv.load("tiny/llama", remote=keyed)
    model.jobs = Jobs(tmp_path / "jobs") if kept else None
    with pytest.raises(RemoteError, match=r"did not accept the key: .* Set NDIF_API_KEY") as error:
        model.job(n_layers)
    shown = capfd.readouterr()
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    if key is not None:
        assert key not in str(error.value) + shown.out + shown.err
        assert key.encode() not in written


@pytest.mark.parametrize("key", [TRUSTED, OTHER], ids=["trusted", "other"])
def test_a_key_decides_where_requests_run(
    keyed: str, key: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("nnsight.CONFIG.API.APIKEY", key)
    assert main(["remote", "tiny/llama", "--host", keyed, "--json"]) == 0
    told = capsys.readouterr().out
    assert json.loads(told)["gradients"] is (key == TRUSTED)
    assert key not in told


def test_the_servers_own_time_limit(tmp_path: Path) -> None:
    models = tmp_path / "models.yaml"
    models.write_text(
        "models:\n- checkpoint: tiny/hurried\n  task: text-generation\n"
        "  execution_timeout_seconds: 3\n"
    )
    deploy = [str(BIN / "ndif"), "deploy", "-f", str(models)]
    subprocess.run(deploy, env=environment(), check=True, timeout=240, capture_output=True)
    model = remote("hurried")
    diary = str(tmp_path / "diary")
    assert model.job(slow, 0.0, diary) == model.n_layers
    for jobs in (None, Jobs(tmp_path / "jobs")):
        model.jobs = jobs
        with pytest.raises(JobError, match=r"execution timeout of 3\.0s.* Ask for less"):
            model.job(slow, 30.0, diary)
    [record] = Jobs(tmp_path / "jobs").records().values()
    assert (record.state, record.sent) == ("failed", 1)
