"""Activations on disk: equal to plain forward passes, whole after any kill, honest about losses."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from floors import FLOOR32, NAMES, relative

import interventions as iv
from interventions.collecting import folder as collection
from interventions.errors import PromptError, ResultsError, SiteError

LAYERS = 4
SITES = {"name": iv.RoleSite("resid_post", slice(0, LAYERS), "entity", -1)}


def rows_of(n: int) -> list[dict[str, Any]]:
    names = [NAMES[i % len(NAMES)] for i in range(n)]
    return [
        {"text": f"Question : What is the capital of {one} ? Answer :", "spans": {"entity": one}}
        for one in names
    ]


def files(folder: Path) -> dict[str, bytes]:
    """Contents by name; a kill can leave a temporary file, whose name begins with a dot."""
    return {one.name: one.read_bytes() for one in folder.iterdir() if one.name[0] != "."}


def test_values_are_those_of_plain_forward_passes(llm: iv.Model, tmp_path: Path) -> None:
    rows = rows_of(10)
    sites = {
        "name": iv.RoleSite("resid_post", [0, 2], "entity", -1),
        "last": iv.RoleSite("resid_pre", [1, 3], "last"),
        "pair": iv.RoleSite("resid_post", [0, 2], "question", slice(-3, -1)),
        "mean": iv.RoleSite("resid_post", [0, 2], "entity", mean=True),
    }
    found = iv.collect(llm, rows, sites, out=tmp_path / "out", batch_rows=3)
    assert found["name"].dims == ("layer:name", "row", "d_model")
    assert found["pair"].dims == ("layer:pair", "row", "position", "d_model")
    assert found["layer:last"].values.tolist() == [1, 3]
    for i, row in enumerate(rows):
        prompt = llm.prompt(row["text"], spans=row["spans"])
        with torch.no_grad():
            hidden = llm.module(**prompt.inputs, output_hidden_states=True).hidden_states
        entity = prompt.roles[0]["entity"]
        question = prompt.roles[0]["question"]
        expected = {
            "name": torch.stack([hidden[1][0, entity[-1]], hidden[3][0, entity[-1]]]),
            "last": torch.stack([hidden[1][0, -1], hidden[3][0, -1]]),
            "pair": torch.stack([hidden[1][0, question[-3:-1]], hidden[3][0, question[-3:-1]]]),
            "mean": torch.stack([hidden[1][0, entity].mean(0), hidden[3][0, entity].mean(0)]),
        }
        for name, value in expected.items():
            assert relative(torch.from_numpy(found[name].values[:, i]), value) < FLOOR32


def test_heads_and_equal_layers_share_their_dimensions(llm: iv.Model, tmp_path: Path) -> None:
    sites = {
        "heads": iv.RoleSite("head_out", [1, 2], "last"),
        "one": iv.RoleSite("head_out", [1, 2], "last", heads=1),
        "mlp": iv.RoleSite("mlp_out", [1, 2], "last"),
    }
    found = iv.collect(llm, rows_of(5), sites, out=tmp_path / "out")
    assert found["heads"].dims == ("layer", "row", "head", "head_dim")
    assert found["one"].dims == ("layer", "row", "head_dim")
    np.testing.assert_array_equal(found["heads"].sel(head=1).values, found["one"].values)
    prompt = llm.prompt(
        [row["text"] for row in rows_of(5)], spans={"entity": [NAMES[i % 4] for i in range(5)]}
    )
    [mlp] = iv.read(llm, prompt, [iv.Site("mlp_out", [1, 2], prompt.at("last"))])
    np.testing.assert_array_equal(found["mlp"].values, mlp.numpy())


def test_images_are_read_and_a_broken_one_is_set_aside(
    vlm: iv.Model, pictures: list[Any], tmp_path: Path
) -> None:
    text = f"Question : What is the capital of {vlm.image_token} ? Answer :"
    paths = []
    for i, picture in enumerate(pictures):
        paths.append(tmp_path / f"{i}.png")
        picture.save(paths[-1])
    paths[1].write_bytes(paths[1].read_bytes()[:60])
    paths[2].unlink()
    rows: list[Any] = [{"text": text, "images": path} for path in paths]
    rows.append("Question : and without a picture ? Answer :")
    sites = {
        "image": iv.RoleSite("resid_post", [1, 2], "image"),
        "shown": iv.RoleSite("resid_post", [1, 2], "last_image"),
    }
    found = iv.collect(
        vlm, rows, sites, out=tmp_path / "out", batch_rows=2, coords={"file": [*"abcde"]}
    )
    assert found.row.values.tolist() == [0, 3]
    assert found.file.values.tolist() == ["a", "d"]
    assert found.set_aside.values.tolist() == [1, 2, 4]
    assert "Error" in found.reason.values[0]
    assert found.reason.values[1].startswith("PictureError")
    assert f"there is no {paths[2]}" in found.reason.values[1]
    assert "no token of role 'image'" in found.reason.values[2]
    prompt = vlm.prompt([text, text], images=[pictures[0], pictures[3]])
    [image] = iv.read(vlm, prompt, [iv.Site("resid_post", [1, 2], prompt.at("image"))])
    assert found["image"].dims == ("layer", "row", "position", "d_model")
    assert relative(torch.from_numpy(found["image"].values), image) < FLOOR32
    assert (found["image"][:, :, -1] == found["shown"]).all()
    one = found["image"].sel(row=3)[1, 2:5, 7].values  # gathered from disk, axis by axis
    np.testing.assert_array_equal(one, found["image"].values[1, 1, 2:5, 7])


def test_rows_with_other_numbers_of_tokens_or_without_the_span_are_set_aside(
    llm: iv.Model, tmp_path: Path
) -> None:
    rows = [*rows_of(4), "no span here", {"text": "x", "spnas": {}}]
    sites = {"name": iv.RoleSite("resid_post", [0], "entity")}
    found = iv.collect(llm, rows, sites, out=tmp_path / "out")
    reasons = dict(zip(found.set_aside.values.tolist(), found.reason.values, strict=True))
    sizes = [
        len(llm.prompt(row["text"], spans=row["spans"]).roles[0]["entity"]) for row in rows_of(4)
    ]
    others = [i for i in range(4) if sizes[i] != sizes[0]]
    assert others, "names of different length are needed"
    assert sorted(reasons) == [*others, 4, 5]
    assert f"the first row has {sizes[0]}" in reasons[others[0]]
    assert "no span 'entity'" in reasons[4]
    assert "Did you mean 'spans'" in reasons[5]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_dtypes_round_once_and_bfloat16_is_stored_as_its_bits(
    llm: iv.Model, tmp_path: Path, dtype: Any
) -> None:
    wide = iv.collect(llm, rows_of(6), SITES, out=tmp_path / "wide")
    narrow = iv.collect(llm, rows_of(6), SITES, out=tmp_path / "narrow", dtype=dtype)
    expected = torch.from_numpy(wide["name"].values).to(getattr(torch, dtype))
    np.testing.assert_array_equal(
        narrow["name"].values.astype(np.float32), expected.float().numpy()
    )
    raw = np.load(tmp_path / "narrow" / "name.npy", allow_pickle=False)
    if dtype == "bfloat16":
        assert torch.equal(torch.from_numpy(raw).view(torch.bfloat16), expected)
        assert narrow["name"].dtype == np.float32
    assert raw.dtype.itemsize == 2


def test_the_dataset_is_lazy_and_goes_into_a_probe(llm: iv.Model, tmp_path: Path) -> None:
    rows = rows_of(40)
    found = iv.collect(
        llm,
        rows,
        SITES,
        out=tmp_path / "out",
        coords={"entity": [one["spans"]["entity"] for one in rows]},
    )
    again = iv.open_collection(tmp_path / "out")
    assert "values with dtype=float32" in repr(again["name"].variable)  # and none of them shown
    probed = iv.probe(again, "entity", splits=2)
    alone = iv.probe(again["name"].rename(layer="layer:name"), "entity", splits=2)
    np.testing.assert_array_equal(alone.accuracy.values, probed.accuracy.values[0])
    xr.testing.assert_identical(found, again)
    assert probed.role.values.tolist() == ["name"]
    assert float(probed.accuracy.min()) == 1.0  # the name itself is read


RUN = """
import sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
import interventions as iv
from interventions.collecting import folder as collection
from test_collecting import SITES, rows_of
from micro import micro_folder
collection.SAVE_EVERY_S = 0.0
class Slow(list):
    def __getitem__(self, i):
        if i == 21:
            raise OSError("this row is not there")
        time.sleep(0.01)
        return super().__getitem__(i)
model = iv.load(micro_folder("micro-backbone"))
iv.collect(model, Slow(rows_of(60)), SITES, out=Path(sys.argv[1]), batch_rows=4)
"""


def test_killed_at_any_moment_it_goes_on_and_ends_with_the_same_bytes(
    llm: iv.Model, tmp_path: Path
) -> None:
    class Lacking(list[Any]):
        def __getitem__(self, i: Any) -> Any:
            if i == 21:
                raise OSError("this row is not there")
            return super().__getitem__(i)

    rows = Lacking(rows_of(60))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    iv.collect(llm, rows, SITES, out=whole, batch_rows=4)
    where = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1] / "support"), *sys.path]),
    }
    seen = []
    for target in (4, 32):
        running = subprocess.Popen([sys.executable, "-c", RUN, str(killed)], env=where)
        deadline = time.monotonic() + 120
        while running.poll() is None and time.monotonic() < deadline:
            path = killed / "progress.json"
            if path.exists() and json.loads(path.read_text())["rows"] >= target:
                running.send_signal(signal.SIGKILL)
                break
            time.sleep(0.002)
        assert running.wait(120) == -signal.SIGKILL
        seen.append(json.loads((killed / "progress.json").read_text())["rows"])
    assert 0 < seen[0] < seen[1] < 60
    assert len(iv.open_collection(killed).row) == seen[1] - 1  # what there is can be read
    iv.collect(llm, rows, SITES, out=killed, batch_rows=4)
    assert files(killed) == files(whole)
    assert iv.open_collection(whole).set_aside.values.tolist() == [21]


def test_an_error_keeps_what_was_read_and_finished_work_is_not_done_again(
    llm: iv.Model, tmp_path: Path
) -> None:
    def until(stop: int) -> Any:
        def make(numbers: list[int]) -> iv.Prompt:
            if numbers[-1] >= stop:
                raise KeyboardInterrupt
            asked = [rows_of(12)[i] for i in numbers]
            texts = [one["text"] for one in asked]
            return llm.prompt(texts, spans={"entity": [one["spans"]["entity"] for one in asked]})

        return make

    settings: Any = {"out": tmp_path / "out", "n_rows": 12, "batch_rows": 4}
    with pytest.raises(KeyboardInterrupt):
        iv.collect(llm, until(8), SITES, **settings)
    part = iv.open_collection(tmp_path / "out")
    assert len(part.row) == 8
    assert not part.attrs["complete"]
    done = iv.collect(llm, until(99), SITES, **settings)
    assert done.attrs["complete"]
    np.testing.assert_array_equal(part["name"].values, done["name"].values[:, :8])
    ran = []
    handle = llm.module.register_forward_pre_hook(lambda *_: ran.append(1))
    iv.collect(llm, until(99), SITES, **settings)
    handle.remove()
    assert not ran


def test_the_forward_pass_stops_behind_the_deepest_site(llm: iv.Model, tmp_path: Path) -> None:
    ran = []
    blocks = llm.module.get_submodule(llm.anatomy.blocks)
    handles = [
        block.register_forward_pre_hook(lambda *_, i=i: ran.append(i))
        for i, block in enumerate(blocks)
    ]
    iv.collect(llm, rows_of(4), SITES, out=tmp_path / "out")
    for handle in handles:
        handle.remove()
    assert max(ran) == LAYERS - 1


def test_other_settings_rows_or_weights_are_refused_with_the_difference(
    llm: iv.Model, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    rows = rows_of(8)
    iv.collect(llm, rows, SITES, out=out, batch_rows=4)
    with pytest.raises(ResultsError, match="batch_rows: stored 4, asked 2"):
        iv.collect(llm, rows, SITES, out=out, batch_rows=2)
    deeper = {"name": iv.RoleSite("resid_post", [1], "entity", -1)}
    with pytest.raises(ResultsError, match=r"sites\.name\.layers: stored"):
        iv.collect(llm, rows, deeper, out=out, batch_rows=4)
    with pytest.raises(ResultsError, match="first_row: stored"):
        iv.collect(llm, rows[1:] + rows[:1], SITES, out=out, batch_rows=4)
    with pytest.raises(ResultsError, match="other rows: some of 4 to 7 differ"):
        iv.collect(llm, [*rows[:7], rows[0]], SITES, out=out, batch_rows=4)
    head = llm.module.get_output_embeddings().weight
    with torch.no_grad():
        head[0, 0] += 1
        try:
            with pytest.raises(ResultsError, match="weights: stored"):
                iv.collect(llm, rows, SITES, out=out, batch_rows=4)
        finally:
            head[0, 0] -= 1


def test_a_row_of_nan_is_set_aside_with_its_layer(llm: iv.Model, tmp_path: Path) -> None:
    mlp = llm.module.get_submodule(f"{llm.anatomy.blocks}.1.mlp")

    def spoil(_module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        if len(output) > 2:
            output[2] = torch.nan
        return output

    handle = mlp.register_forward_hook(spoil)
    try:
        found = iv.collect(llm, rows_of(4), SITES, out=tmp_path / "out")
    finally:
        handle.remove()
    assert found.row.values.tolist() == [0, 1, 3]
    assert found.reason.values.tolist() == ["NaN or infinite values in 'name', first in layer 1"]


def test_values_beyond_float16_are_an_error_and_not_infinite(llm: iv.Model, tmp_path: Path) -> None:
    mlp = llm.module.get_submodule(f"{llm.anatomy.blocks}.1.mlp")
    handle = mlp.register_forward_hook(lambda _module, _args, output: output * 1e7)
    try:
        with pytest.raises(ResultsError, match="which float16 cannot hold"):
            iv.collect(llm, rows_of(4), SITES, out=tmp_path / "out", dtype="float16")
    finally:
        handle.remove()


def mounted(folder: Path, size: str) -> bool:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_a_full_disk_is_an_error_that_keeps_what_was_read(
    llm: iv.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    if os.name != "posix" or not mounted(disk, "512k"):
        pytest.skip("needs the right to mount a small disk")
    monkeypatch.setattr(collection, "SAVE_EVERY_S", 0.0)
    try:
        with pytest.raises(ResultsError, match="GB of activations are to come"):
            iv.collect(llm, rows_of(4000), SITES, out=disk / "much", n_rows=4000)

        class Filling(list[Any]):
            def __getitem__(self, i: Any) -> Any:
                if i == 40:
                    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize
                    (disk / "filler").write_bytes(b"x" * free)
                return super().__getitem__(i)

        settings: Any = {"out": disk / "some", "batch_rows": 20}
        with pytest.raises(ResultsError, match=r"is full.*Rows before [24]0 are kept"):
            iv.collect(llm, Filling(rows_of(100)), SITES, **settings)
        kept = len(iv.open_collection(disk / "some").row)
        assert kept in (20, 40)
        (disk / "filler").unlink()
        found = iv.collect(llm, rows_of(100), SITES, **settings)
        whole = iv.collect(llm, rows_of(100), SITES, out=tmp_path / "whole", batch_rows=20)
        np.testing.assert_array_equal(found["name"].values, whole["name"].values)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(
    ("rows", "sites", "settings", "error", "message"),
    [
        (iter("ab"), SITES, {}, PromptError, "cannot be gone on with"),
        ([], SITES, {}, PromptError, "there are no rows"),
        (print, SITES, {}, PromptError, "say how many by n_rows"),
        (["a"], {"a/b": SITES["name"]}, {}, SiteError, "cannot name a site"),
        (["a"], {"n": iv.RoleSite("resid", 0, "last")}, {}, SiteError, "no component"),  # type: ignore[arg-type]
        (["a"], {"n": iv.RoleSite("mlp_out", 99, "last")}, {}, SiteError, "no layer 99"),
        (["a"], {"n": iv.RoleSite("mlp_out", 0, "last", heads=1)}, {}, SiteError, "Use head_out"),
        (["a"], SITES, {"coords": {"k": [1, 2]}}, PromptError, "with 2 values for 1 rows"),
        (["a"], SITES, {"dtype": "int8"}, ResultsError, "int8 cannot be stored"),
        (["a", "b"], SITES, {}, ResultsError, "none of the first 2 rows can be read: row 0"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    llm: iv.Model, tmp_path: Path, rows: Any, sites: Any, settings: Any, error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        iv.collect(llm, rows, sites, out=tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_refused(tmp_path: Path, llm: iv.Model) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(ResultsError, match="is not empty"):
        iv.collect(llm, rows_of(2), SITES, out=tmp_path)
    with pytest.raises(ResultsError, match="holds no activations"):
        iv.open_collection(tmp_path)
