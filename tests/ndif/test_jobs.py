"""Jobs that survive: the client's death, the server's, and what users do wrong."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from deployed import pair_of, remote
from remote_operations import same

import interventions as iv
from interventions.errors import JobError, JobTimeout, RemoteError
from interventions.remote import Jobs

SERVER = Path(os.environ.get("NDIF_TESTS", "."))
SECRET = "0123-a-key-nobody-may-see"


def slow(model: iv.Model, seconds: float, diary: str) -> int:
    """Note that it runs, and as which process; then take its time."""
    import os
    import time
    from pathlib import Path

    with Path(diary).open("a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(seconds)
    return model.n_layers


def broken(model: iv.Model) -> None:
    raise ValueError("wrong on purpose")


def noise(model: iv.Model, megabytes: int) -> torch.Tensor:
    return torch.randn(megabytes, 2**18, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def there(tmp_path: Path) -> Iterator[iv.Model]:
    model = remote("llama")
    model.jobs = Jobs(tmp_path / "jobs")
    yield model
    model.jobs = None


def only(model: iv.Model) -> Any:
    """The one record there is."""
    assert model.jobs is not None
    [record] = model.jobs.records().values()
    return record


def runs(diary: Path) -> list[int]:
    """Processes in which the slow job has begun."""
    return [int(line) for line in diary.read_text().split()] if diary.exists() else []


def until(happens: Any, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_the_same_is_asked_once(there: iv.Model) -> None:
    case = pair_of("llama")[1]
    sites = [iv.Site("mlp_out", [0, 1], case.prompt.at("last"))]
    first, again = (iv.read(there, case.prompt, sites)[0] for _ in range(2))
    same(first, iv.read(case.model, case.prompt, sites)[0])
    assert torch.equal(first, again)
    assert only(there).sent == 1
    assert only(there).request_bytes > 0


def test_errors_of_the_code_come_back_with_its_line_and_are_not_tried_again(
    there: iv.Model,
) -> None:
    for _ in range(2):
        with pytest.raises(JobError, match=r'raise ValueError\("wrong on purpose"\)'):
            there.job(broken)
    assert only(there).sent == 1
    there.jobs = None
    with pytest.raises(JobError, match=r'raise ValueError\("wrong on purpose"\)'):
        there.job(broken)


def test_a_result_of_30_megabytes(there: iv.Model) -> None:
    found = there.job(noise, 30)
    assert torch.equal(found, noise(there, 30))
    there.jobs = None
    assert torch.equal(there.job(noise, 30), found)


def test_a_time_limit_ends_the_waiting_and_not_the_job(there: iv.Model, tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    assert there.jobs is not None
    there.jobs.time_limit = 1.0
    with pytest.raises(JobTimeout, match=r"not done after 1\.0 s.* ask again"):
        there.job(slow, 4.0, str(diary))
    there.jobs.time_limit = None
    assert there.job(slow, 4.0, str(diary)) == there.n_layers
    assert len(runs(diary)) == 1


def test_a_cancelled_job_is_not_picked_up(there: iv.Model, tmp_path: Path) -> None:
    jobs = there.jobs
    assert jobs is not None
    key = jobs.submit(there, slow, 0.1, str(tmp_path / "diary"))
    jobs.cancel(key)
    with pytest.raises(RemoteError, match=r"was cancelled\. forget"):
        there.job(slow, 0.1, str(tmp_path / "diary"))
    jobs.forget(key)
    assert there.job(slow, 0.1, str(tmp_path / "diary")) == there.n_layers


CLIENT = """
import sys
import interventions as iv
from interventions.remote import Jobs
from test_jobs import slow

model = iv.load("tiny/llama", remote=True)
model.jobs = Jobs(sys.argv[1])
print(model.job(slow, 6.0, sys.argv[2]))
"""


def test_a_killed_client_picks_its_job_up(there: iv.Model, tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    client = subprocess.Popen(
        [sys.executable, "-c", CLIENT, str(tmp_path / "jobs"), str(diary)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.DEVNULL,
    )
    until(lambda: runs(diary))
    client.send_signal(signal.SIGKILL)
    client.wait()
    assert only(there).state == "sent"
    assert there.job(slow, 6.0, str(diary)) == there.n_layers
    assert only(there).sent == 1
    assert len(runs(diary)) == 1


def test_a_client_killed_between_sending_and_noting_it(there: iv.Model, tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    jobs = there.jobs
    assert jobs is not None
    key = jobs.submit(there, slow, 3.0, str(diary))
    path = tmp_path / "jobs" / f"{key}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "state": "packed"}))
    until(lambda: runs(diary))
    assert there.job(slow, 3.0, str(diary)) == there.n_layers
    assert len(runs(diary)) == 1


def test_an_api_that_is_killed_and_comes_back(there: iv.Model, tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    jobs = there.jobs
    assert jobs is not None
    key = jobs.submit(there, slow, 5.0, str(diary))
    until(lambda: runs(diary))
    api = json.loads((SERVER / "pids.json").read_text())["api"]
    os.killpg(api, signal.SIGKILL)
    assert jobs.wait(there, key) == there.n_layers
    assert len(runs(diary)) == 1
    assert len(only(there).ids) == 1


def test_a_model_that_is_killed_is_asked_again(there: iv.Model, tmp_path: Path) -> None:
    diary = tmp_path / "diary"
    jobs = there.jobs
    assert jobs is not None
    key = jobs.submit(there, slow, 5.0, str(diary))
    until(lambda: runs(diary))
    os.kill(runs(diary)[0], signal.SIGKILL)
    assert jobs.wait(there, key) == there.n_layers
    assert len(runs(diary)) == 2
    assert (SERVER / "pids.json").exists()


def test_a_server_out_of_reach(there: iv.Model, tmp_path: Path) -> None:
    there.remote = "http://127.0.0.1:9"
    try:
        assert there.jobs is not None
        there.jobs.time_limit = 1.0
        with pytest.raises(RemoteError, match=r"cannot be reached.*The job is kept in"):
            there.job(slow, 0.0, str(tmp_path / "diary"))
        there.jobs = None
        with pytest.raises(RemoteError, match=r"cannot be reached.*Check the address"):
            there.job(slow, 0.0, str(tmp_path / "diary"))
    finally:
        there.remote = True


def test_a_model_that_is_not_hosted(there: iv.Model) -> None:
    model = iv.load("tiny/weightless", remote=True)
    with pytest.raises(RemoteError, match=r"'tiny/weightless' is not hosted.*tiny/llama"):
        model.job(noise, 1)


def test_keys_are_nowhere(
    there: iv.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setattr("nnsight.CONFIG.API.APIKEY", SECRET)
    monkeypatch.setattr("nnsight.CONFIG.APP.DEBUG", True)
    with pytest.raises(JobError) as error:
        there.job(broken)
    there.job(noise, 1)
    shown = capfd.readouterr()
    kept = b"".join(path.read_bytes() for path in (tmp_path / "jobs").iterdir())
    assert SECRET not in str(error.value) + shown.out + shown.err
    assert SECRET.encode() not in kept
