"""Pixtral in Mistral's own layout: what is converted is the model it was; else nothing is left."""

import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from mistral_format import write

import interventions as iv
from interventions.architectures import mistral_layout
from interventions.architectures.mistral_layout import convert
from interventions.cli import main
from interventions.errors import LoadError


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def assert_same_weights(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    mine, its = dict(ours.named_parameters()), dict(theirs.named_parameters())
    assert mine.keys() == its.keys()
    for name, value in mine.items():
        assert torch.equal(value, its[name]), name


@pytest.mark.parametrize("pieces", [1, 3])
def test_a_converted_checkpoint_gives_equal_logits(pieces: int, tmp_path: Path) -> None:
    module, processor = write(tmp_path / "raw", pieces=pieces)
    assert main(["convert", str(tmp_path / "raw"), str(tmp_path / "new")]) == 0
    model = iv.load(tmp_path / "new", attn_implementation="eager")
    assert model.processor is not None
    longest = model.processor.image_processor.size
    assert longest["longest_edge"] == module.config.vision_config.image_size
    processor.image_processor.size = longest  # the tiny one makes smaller pictures
    here = iv.load(module, processor=processor)
    text = f"Q: what is {here.image_token} to France? A:"
    one, other = (m.prompt(text, images=tiny.picture((40, 30))) for m in (model, here))
    assert set(one.inputs) == set(other.inputs)
    for key, value in one.inputs.items():
        assert torch.equal(value, other.inputs[key]), key
    assert_same_weights(model.module, module)
    # Matrix products round by where in memory a weight begins: a file's lie anywhere.
    for part in (*model.module.parameters(), *module.parameters()):
        part.data = part.data.clone()
    ours, theirs = iv.run(model, one).logits, iv.run(here, other).logits
    assert ours is not None
    assert theirs is not None
    assert torch.equal(ours, theirs)
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    said = model.processor.apply_chat_template(chat, tokenize=False)
    assert said == "<s>[INST][IMG]What?[/INST]"
    assert left(tmp_path) == ["new", "raw"]


def test_weights_are_written_in_shards_of_a_size(tmp_path: Path) -> None:
    module, _ = write(tmp_path / "raw", pieces=2)
    folder = convert(tmp_path / "raw", tmp_path / "new", shard_bytes=60_000)
    files = sorted(folder.glob("model-*.safetensors"))
    assert len(files) > 3
    assert all(file.stat().st_size < 80_000 for file in files)
    opened = iv.load(folder)
    for name, value in module.state_dict().items():
        assert torch.equal(opened.module.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("lost", "named"),
    [
        ("consolidated-00002-of-00003.safetensors", "consolidated-00002-of-00003.safetensors"),
        ("params.json", "params.json"),
        ("tekken.json", "tekken.json"),
    ],
)
def test_a_missing_file_is_named(lost: str, named: str, tmp_path: Path) -> None:
    write(tmp_path / "raw", pieces=3)
    (tmp_path / "raw" / lost).unlink()
    with pytest.raises(LoadError, match=f"no whole checkpoint.*{named} missing"):
        convert(tmp_path / "raw", tmp_path / "new")
    assert left(tmp_path) == ["raw"]


def test_a_weight_that_no_file_has_is_named(tmp_path: Path) -> None:
    write(tmp_path / "raw", pieces=3)
    (tmp_path / "raw" / "consolidated-00002-of-00003.safetensors").rename(tmp_path / "aside")
    for i in (1, 3):
        file = tmp_path / "raw" / f"consolidated-{i:05}-of-00003.safetensors"
        file.rename(file.with_name(f"consolidated-{min(i, 2):05}-of-00002.safetensors"))
    with pytest.raises(LoadError, match=r"\d+ weights are in none of the 2 files, such as"):
        convert(tmp_path / "raw", tmp_path / "new")
    assert left(tmp_path) == ["aside", "raw"]


def test_a_disk_without_room_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "raw")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(LoadError, match=r"GB are needed there and 0\.0 GB are free"):
        convert(tmp_path / "raw", tmp_path / "new")
    assert left(tmp_path) == ["raw"]


def test_a_disk_that_fills_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "raw")
    plain = mistral_layout.save_file

    def full(weights: Any, path: Path, **more: Any) -> None:
        plain(weights, path, **more)
        if path.name == "part-2":
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(mistral_layout, "save_file", full)
    with pytest.raises(LoadError, match=r"could not be written.*No space left.*Nothing is left"):
        convert(tmp_path / "raw", tmp_path / "new", shard_bytes=60_000)
    assert left(tmp_path) == ["raw"]


WITH_FILES_OF = """
import resource, signal, sys
from interventions.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(main(["convert", *sys.argv[2:]]))
"""


@pytest.mark.parametrize("room", [100, 2_000, 60_000])
def test_a_file_that_cannot_be_written_whole_leaves_nothing(room: int, tmp_path: Path) -> None:
    """As on a disk that fills: whichever file it is that has no room."""
    write(tmp_path / "raw")
    command = [sys.executable, "-c", WITH_FILES_OF, str(room)]
    done = subprocess.run(
        [*command, str(tmp_path / "raw"), str(tmp_path / "new")], capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr[-1000:]
    assert "could not be written" in done.stderr
    assert "File too large" in done.stderr
    assert "Nothing is left of it." in done.stderr
    assert left(tmp_path) == ["raw"]


def test_what_cannot_be_written_last_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokenizer's library raises a class of its own making."""
    write(tmp_path / "raw")

    def full(*_: Any) -> Any:
        raise Exception("No space left on device (os error 28)")

    monkeypatch.setattr(mistral_layout, "_processor", full)
    with pytest.raises(LoadError, match=r"No space left.*Nothing is left"):
        convert(tmp_path / "raw", tmp_path / "new")
    assert left(tmp_path) == ["raw"]


def test_two_that_write_one_folder_do_not_touch_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "raw")
    plain, said = mistral_layout.save_file, []

    def meanwhile(*args: Any, **more: Any) -> None:
        plain(*args, **more)
        monkeypatch.setattr(mistral_layout, "save_file", plain)
        command = [sys.executable, "-m", "interventions", "convert"]
        done = subprocess.run(
            [*command, str(tmp_path / "raw"), str(tmp_path / "new")], capture_output=True, text=True
        )
        said.append((done.returncode, done.stderr))

    monkeypatch.setattr(mistral_layout, "save_file", meanwhile)
    convert(tmp_path / "raw", tmp_path / "new", shard_bytes=60_000)
    [(status, error)] = said
    assert status == 2
    assert "is being written by another process" in error
    assert iv.load(tmp_path / "new").n_layers
    assert left(tmp_path) == ["new", "raw"]


def test_what_a_killed_one_left_is_removed(tmp_path: Path) -> None:
    write(tmp_path / "raw")
    (tmp_path / ".new.partial" / "deep").mkdir(parents=True)
    (tmp_path / ".new.partial" / "part-7").write_bytes(b"half")
    folder = convert(tmp_path / "raw", tmp_path / "new")
    assert not {"part-7", "deep"} & {*left(folder)}
    assert left(tmp_path) == ["new", "raw"]


def test_a_folder_that_appears_meanwhile_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "raw")
    plain = mistral_layout.save_file

    def meanwhile(*args: Any, **more: Any) -> None:
        plain(*args, **more)
        (tmp_path / "new").mkdir(exist_ok=True)

    monkeypatch.setattr(mistral_layout, "save_file", meanwhile)
    with pytest.raises(LoadError, match="is there already"):
        convert(tmp_path / "raw", tmp_path / "new")
    assert left(tmp_path) == ["new", "raw"]
    assert left(tmp_path / "new") == []


@pytest.mark.parametrize("beside", ["consolidated-0000{}-of-00002", "model-0000{}-of-00002"])
def test_weights_that_are_there_twice_are_read_once(
    beside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, _ = write(tmp_path / "raw")
    write(tmp_path / "more", pieces=2)
    for i, file in enumerate(sorted((tmp_path / "more").glob("*.safetensors")), 1):
        shutil.copy(file, tmp_path / "raw" / f"{beside.format(i)}.safetensors")
    names: list[str] = []
    plain = mistral_layout.new_name
    monkeypatch.setattr(mistral_layout, "new_name", lambda name: names.append(name) or plain(name))
    folder = convert(tmp_path / "raw", tmp_path / "new")
    assert len(names) == len({*names}) == len(module.state_dict())
    opened = iv.load(folder).module.state_dict()
    assert all(torch.equal(opened[name], value) for name, value in module.state_dict().items())


def test_pieces_of_two_sets_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "raw", pieces=2)
    write(tmp_path / "more", pieces=3)
    for file in (tmp_path / "more").glob("*.safetensors"):
        shutil.copy(file, tmp_path / "raw")
    with pytest.raises(LoadError, match=r"more than one set of weights: .*of-00002.*of-00003"):
        convert(tmp_path / "raw", tmp_path / "new")
    assert left(tmp_path) == ["more", "raw"]


def test_a_file_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "raw")
    file = tmp_path / "raw" / "consolidated.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(LoadError, match="could not be written"):
        convert(tmp_path / "raw", tmp_path / "new")
    assert left(tmp_path) == ["raw"]


def test_other_models_and_taken_names_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "raw")
    with pytest.raises(LoadError, match="is there already"):
        convert(tmp_path / "raw", tmp_path / "raw")
    path = tmp_path / "raw" / "params.json"
    params = json.loads(path.read_text())
    path.write_text(json.dumps({**params, "dim": 2 * params["dim"]}))
    with pytest.raises(LoadError, match=r"is of shape .* which params\.json does not tell of"):
        convert(tmp_path / "raw", tmp_path / "new")
    del params["vision_encoder"]
    path.write_text(json.dumps(params))
    with pytest.raises(LoadError, match="has no vision encoder, so it is no Pixtral"):
        convert(tmp_path / "raw", tmp_path / "new")
    assert left(tmp_path) == ["raw"]


def test_a_converted_checkpoint_says_what_its_code_says(tmp_path: Path) -> None:
    """The class's defaults are another tower's."""
    write(tmp_path / "raw")
    config = json.loads((convert(tmp_path / "raw", tmp_path / "new") / "config.json").read_text())
    assert config["vision_config"]["hidden_act"] == "silu"
    assert config["dtype"] == "float32"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"sliding_window": 4096}, "has sliding_window, which is not converted"),
        ({"rope_scaling": {"factor": 2}}, "has rope_scaling, which is not converted"),
        ({"rope_theta": None}, "does not say 'rope_theta'"),
        ({"vision_encoder": {"spatial_merge_size": 2}}, "has spatial_merge_size"),
    ],
)
def test_what_would_give_other_numbers_is_refused(
    changed: dict[str, Any], said: str, tmp_path: Path
) -> None:
    write(tmp_path / "raw")
    path = tmp_path / "raw" / "params.json"
    params = json.loads(path.read_text())
    for key, value in changed.items():
        if value is None:
            del params[key]
        elif isinstance(params.get(key), dict):
            params[key] |= value
        else:
            params[key] = value
    path.write_text(json.dumps(params))
    with pytest.raises(LoadError, match=said):
        convert(tmp_path / "raw", tmp_path / "new")
    path.write_text("{")
    with pytest.raises(LoadError, match=r"params\.json .* cannot be read"):
        convert(tmp_path / "raw", tmp_path / "new")
    assert left(tmp_path) == ["raw"]


def test_loading_it_as_it_is_names_the_command(tmp_path: Path) -> None:
    write(tmp_path / "raw")
    with pytest.raises(LoadError, match="converted with `interventions convert FOLDER NEW`"):
        iv.load(tmp_path / "raw")
