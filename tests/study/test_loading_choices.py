"""How a study's models are loaded: asked for, guarded by the run's folder, and told of it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import xarray as xr

from interventions.errors import LoadError, ResultsError
from interventions.results import read_provenance, read_tree
from twohop.ask.on_server import SILENT
from twohop.cli import main, parser
from twohop.pairs import PAIRS
from twohop.report.comparison import differing
from twohop.report.settings import command, settings_rows
from twohop.running.crew.processes import Processes
from twohop.running.crew.side_by_side import run_side_by_side
from twohop.running.loading import Loading, Models
from twohop.running.options import asked_loading
from twohop.running.pair_run import PairRun, open_run
from twohop.running.study import Settings, run_study, study_of
from twohop.stages.table import Selection

MICRO = PAIRS["micro-late"]
TWO = Settings(limit=2)
ASKED = ["--dtype", "bfloat16", "--attn", "eager", "--device", "cpu"]


def study(out: Path, *options: str) -> int:
    whole = ["study", "micro-late", "--limit", "2", "--stage", "recall", "--out", str(out)]
    return main([*whole, *options])


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs of which one was begun in bfloat16, with eager attention."""
    out = tmp_path_factory.mktemp("asked")
    assert study(out, *ASKED) == 0
    return out


def test_models_are_loaded_as_asked_and_the_run_says_so(asked: Path) -> None:
    tree = read_tree(asked / "micro-late")
    for stage in ("backbone_text", "recall"):
        about = read_provenance(tree[stage])
        for role in ("vlm", "backbone"):
            assert (about[role]["dtype"], about[role]["attention"]) == ("torch.bfloat16", "eager")
            assert about[role]["device"] == "cpu"
    stored = json.loads((asked / "micro-late" / "settings.json").read_text())
    assert (stored["dtype"], stored["attention"]) == ("bfloat16", "eager")
    assert not {"device", "device_map", "quantization"} & {*stored}
    rows = dict(settings_rows(tree))
    assert (rows["dtype"], rows["attention"]) == ("bfloat16", "eager")
    expected = "twohop study micro-late --seed 0 --limit 2 --dtype bfloat16 --attn eager"
    assert command(tree, {"pair": "micro-late"}) == expected


def test_a_folder_takes_no_other_format_and_attention(
    asked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert study(asked) == 2
    said = capsys.readouterr().err
    assert "holds a run with other settings" in said
    assert "dtype: stored 'bfloat16', asked None" in said
    assert "attention: stored 'eager', asked None" in said
    assert study(asked, *ASKED, "--quantization", "nf4") == 2
    assert "quantization: stored None, asked 'nf4'" in capsys.readouterr().err


def test_what_is_usual_leaves_settings_as_they_were(tmp_path: Path) -> None:
    plain = open_run(MICRO, out=tmp_path, settings=TWO)
    usual = Loading("float32", device=("cpu", "cpu"), attention="sdpa")
    again = open_run(MICRO, out=tmp_path, settings=replace(TWO, loading=usual))
    mapped = replace(TWO, loading=Loading(device_map="auto"))
    assert open_run(MICRO, out=tmp_path, settings=mapped).own.settings == plain.own.settings
    assert (again.own.settings, again.common.folder) == (plain.own.settings, plain.common.folder)
    assert not {"dtype", "device", "attention", "quantization"} & {*plain.own.settings}
    other = open_run(MICRO, out=tmp_path / "b", settings=replace(TWO, loading=Loading("half")))
    assert other.own.settings == {**plain.own.settings, "dtype": "float16"}
    assert other.common.folder.name != plain.common.folder.name


def test_packed_models_are_packed_both_and_called_so(tmp_path: Path) -> None:
    settings = replace(TWO, loading=Loading(quantization="nf4"))
    run_study("micro-late", out=tmp_path, settings=settings, stages=["recall"])
    about = read_provenance(read_tree(tmp_path / "micro-late")["recall"])
    for role in ("vlm", "backbone"):
        assert about[role]["fingerprint"]["quantisation"] == "bitsandbytes nf4"
    assert about["settings"]["quantization"] == "nf4"
    with pytest.raises(ResultsError, match="quantization: stored 'nf4', asked 'int8'"):
        open_run(MICRO, out=tmp_path, settings=replace(TWO, loading=Loading(quantization="int8")))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--dtype", "bf16"], "dtype='bf16' is no number format of weights. Did you mean"),
        (["--device", "gpu"], "device='gpu' is not here. Expected one of cpu"),
        (["--device", "cpu,cuda:99"], "device='cuda:99' is not here. Expected one of cpu"),
        (["--device", "cpu,cpu,cpu"], "3 were given. Expected one for both models, or two"),
        (["--device", "cpu", "--device-map", "auto"], "device and device_map were both given"),
        (["--device-map", "atuo"], "device_map='atuo' is neither a way to spread a model nor"),
        (["--attn", "eagre"], "attn_implementation='eagre' is not known. Did you mean 'eager'"),
        (["--quantization", "int4"], "quantization='int4' is not known. Did you mean 'int8'"),
        (["--dtype", "float16", "--remote"], "dtype cannot be chosen with --remote"),
        (["--quantization", "fp8", "--device", "cpu"], "quantization='fp8' cannot be used here: "),
    ],
)
def test_what_cannot_be_is_one_line_and_leaves_no_folder(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert study(tmp_path, *options) == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("twohop: ")]
    assert said in line
    assert not (tmp_path / "micro-late").exists()
    assert not [*tmp_path.glob("backbones/*")]


def test_workers_leave_no_folder_either(tmp_path: Path) -> None:
    settings = replace(TWO, loading=Loading(quantization="fp8", device=("cpu",)))
    selection = Selection.of(["recall"], force=False)
    with pytest.raises(LoadError, match="quantization='fp8' cannot be used here: "):
        run_side_by_side(
            [PAIRS["micro-naming"], MICRO],
            Processes(2),
            out=tmp_path,
            settings=settings,
            selection=selection,
        )
    assert not [*tmp_path.glob("*/settings.json"), *tmp_path.glob("backbones/*")]


def test_two_gpus_have_a_model_each_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Loading().of("vlm") == Loading().of("backbone") == {}
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert Loading().of("vlm") == {"device": "cuda:0"}
    assert Loading().of("backbone") == {"device": "cuda:1"}
    assert Loading(device=("cpu",)).of("backbone") == {"device": "cpu"}
    assert Loading(device_map="auto").of("backbone") == {"device_map": "auto"}
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert Loading().of("backbone") == {}


def stored_in(dtype: str) -> xr.Dataset:
    """A stage's result that says in which number format it was computed."""
    made = {role: {"id": role, "dtype": dtype} for role in ("vlm", "backbone")}
    return xr.Dataset({"a": ("x", [1.0])}, attrs={"provenance": json.dumps(made)})


@pytest.fixture
def run(tmp_path: Path) -> PairRun:
    """A run with one stage, which another device computed in its own format."""
    opened = open_run(MICRO, out=tmp_path, settings=TWO)
    opened.own.put("resolution", stored_in("torch.float16"))
    return opened


def test_another_format_than_what_is_stored_is_refused_before_the_stage(run: PairRun) -> None:
    asked: dict[str, Any] = {"models": Models(), "progress": SILENT}
    with pytest.raises(ResultsError, match=r"backbone_text would .*float32 \(backbone\).*") as said:
        run.compute("backbone_text", {}, **asked)
    assert "Give --dtype float16 to go on" in str(said.value)
    done = {"backbone_text": run.compute("backbone_text", {}, **asked, again=["resolution"])}
    with pytest.raises(ResultsError, match=r"recall would be computed in torch.float32 \(vlm\)"):
        run.compute("recall", done, **asked)


def test_each_model_goes_where_it_is_told(tmp_path: Path) -> None:
    options = parser().parse_args(["study", "micro-late", "--device", "cuda:0,cuda:1"])
    loading = asked_loading(options)
    assert loading.of("vlm") == {"device": "cuda:0"}
    assert loading.of("backbone") == {"device": "cuda:1"}
    both = Loading(device=("cpu", "cpu:0"))
    study_ = study_of("micro-late", replace(TWO, loading=both))
    assert study_.vlm is not study_.backbone
    # One that is its own backbone is one model, where the VLM goes.
    own = replace(MICRO, backbone=MICRO.vlm)
    opened = open_run(own, out=tmp_path, settings=replace(TWO, loading=both))
    whole = opened.study("recall", models=Models())
    assert whole.vlm is whole.backbone


def test_loading_from_python_is_checked_too(tmp_path: Path) -> None:
    settings = replace(TWO, loading=Loading("float31"))
    for start in (study_of, lambda key, asked: run_study(key, out=tmp_path, settings=asked)):
        with pytest.raises(LoadError, match="dtype='float31' is no number format"):
            start("micro-late", settings)
    assert not [*tmp_path.iterdir()]


def test_a_comparison_says_that_models_were_loaded_otherwise() -> None:
    runs = [
        {"pair": pair, "n_items": 3, "settings": {"seed": 0, "protocol": {}, **more}}
        for pair, more in (("a", {}), ("b", {"dtype": "bfloat16"}))
    ]
    [said] = differing(runs)
    assert said.startswith("The runs differ in dtype (as usual: a; bfloat16: b)")
