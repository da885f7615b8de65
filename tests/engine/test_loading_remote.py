"""Remote models: config and processor come from the hub, and no weight does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from hub import serve
from original_llava import write

import interventions as iv
from interventions.errors import LoadError

NAMES = ("llama", "llava", "llava_next", "qwen2_5_vl", "mllama", "gemma3")

CLIENT = """
import sys
import tiny, torch
import interventions as iv
from families import model_of
from nnsight.intervention.backends.remote import RemoteBackend
from interventions.errors import LoadError

for name in sys.argv[1].split(","):
    for remote in (True, "http://127.0.0.1:1"):
        model = iv.load(f"tiny/{name}", remote=remote)
        here = model_of(name)
        assert {one.device.type for one in model.module.parameters()} == {"meta"}, name
        assert model.anatomy == here.anatomy, name
        assert str(model.device) == "cpu"
        text, pictures = "what is it", None
        if model.anatomy.is_vlm:
            text, pictures = f"{model.image_token}what is it", tiny.picture((40, 30))
        ours, theirs = (one.prompt(text, images=pictures) for one in (model, here))
        assert set(ours.inputs) == set(theirs.inputs)
        for key, value in ours.inputs.items():
            assert torch.equal(value, theirs.inputs[key]), (name, key)
        tracer = model.trace(ours)
        backend = tracer.backend
        assert isinstance(backend, RemoteBackend), backend
        assert f"tiny/{name}" in backend.model_key
        assert ("127.0.0.1:1" in backend.host) == (remote is not True)
try:
    iv.load("tiny/original", remote=True)
except LoadError as error:
    assert "original layout" in str(error) and "a server cannot run it" in str(error)
else:
    raise AssertionError("the original layout was not refused")
try:
    iv.load("tiny/absent", remote=True)
except LoadError as error:
    assert "cannot be loaded" in str(error)
else:
    raise AssertionError("an absent repo was loaded")
original = iv.load("tiny/original")  # read here, it works from a repo too
assert original.anatomy.is_vlm
print("all is well")
"""


def test_remote_models_read_no_weights(tmp_path: Path) -> None:
    repos = {f"tiny/{name}": tiny.save(name, tmp_path / name) for name in NAMES}
    for folder in repos.values():
        for file in folder.glob("*.safetensors*"):
            file.unlink()
    write(tmp_path / "original")
    with serve({**repos, "tiny/original": tmp_path / "original"}) as (address, asked):
        done = subprocess.run(
            [sys.executable, "-W", "error::UserWarning", "-c", CLIENT, ",".join(NAMES)],
            env={
                **{k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORM"))},
                "HF_ENDPOINT": address,
                "HF_HOME": str(tmp_path / "cache"),
                "HF_HUB_DISABLE_TELEMETRY": "1",
                "NO_PROXY": "127.0.0.1",
                "PYTHONPATH": os.pathsep.join(
                    [str(Path(__file__).parents[1] / "support"), *sys.path[1:]]
                ),
            },
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "all is well" in done.stdout
    weights = [one for one in asked if "safetensors" in one and "original" not in one]
    assert not weights


def test_what_a_server_would_not_do_is_refused(tmp_path: Path) -> None:
    folder = tiny.save("llama", tmp_path / "llama")
    for remote in (True, "http://127.0.0.1:1"):
        with pytest.raises(LoadError, match=r"is a folder on this machine.* Give the id"):
            iv.load(folder, remote=remote)
    with pytest.raises(LoadError, match=r"device and dtype cannot be chosen with remote="):
        iv.load("tiny/llama", remote=True, device="cpu", dtype="float32")
    with pytest.raises(LoadError, match=r"device_map cannot be chosen with remote="):
        iv.load("tiny/llama", remote=True, device_map="auto")


def test_a_dry_run_of_the_remote_path(tmp_path: Path) -> None:
    folder = tiny.save("llama", tmp_path / "llama")
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    model = iv.load(folder, remote="local")
    assert {one.device.type for one in model.module.parameters()} == {"meta"}
    assert model.n_layers == 4
    tracer = model.trace(model.prompt("what is it"))
    assert type(tracer.backend).__name__ == "LocalSimulationBackend"
