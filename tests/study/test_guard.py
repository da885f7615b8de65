"""A folder of results takes nothing that was measured otherwise, and says what is otherwise."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_protocol import changes

import interventions as iv
from interventions.errors import ResultsError
from interventions.results import differences, read_tree
from twohop.items.digest import asked_parts
from twohop.items.items import Benchmark, Template
from twohop.micro.folders import MICRO_KEYS, MicroKey, micro_folder
from twohop.pairs import PAIRS, Pair, own_pair
from twohop.protocol import Protocol
from twohop.report.cautions import cautions
from twohop.report.comparison import differing, labels
from twohop.report.settings import command, command_note, protocol_rows, settings_rows
from twohop.report.summary import summarise
from twohop.running.checkpoints import SIDECAR, Digests, kind_of
from twohop.running.crew.processes import Processes
from twohop.running.crew.side_by_side import run_side_by_side
from twohop.running.pair_run import Models, PairRun, open_run
from twohop.running.study import Settings, run_study, study_of
from twohop.stages.provenance import check_same_models
from twohop.stages.run import run_stage
from twohop.stages.table import Selection
from twohop.statistics import as_json

MICRO = PAIRS["micro-late"]
TWO = Settings(limit=2)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs that was begun with default settings."""
    out = tmp_path_factory.mktemp("runs")
    open_run(MICRO, out=out, settings=TWO)
    return out


def refused(out: Path, pair: Pair = MICRO, asked: Settings = TWO) -> list[str]:
    """What a folder says is otherwise, a line each."""
    before = sorted(out.rglob("*"))
    with pytest.raises(ResultsError, match="holds a run with other settings") as caught:
        open_run(pair, out=out, settings=asked)
    assert sorted(out.rglob("*")) == before
    return [line.strip() for line in str(caught.value).split("\n")[1:-1]]


# The protocol


@settings(max_examples=100, deadline=None)
@given(changes())
def test_a_folder_of_another_protocol_is_refused(old: Path, change: tuple[str, Any]) -> None:
    name, value = change
    protocol = Protocol(**{name: value})
    stored, asked = (one.as_settings()[name] for one in (Protocol(), protocol))
    lines = refused(old, asked=replace(TWO, protocol=protocol))
    assert f"protocol.{name}: stored {stored!r}, asked {asked!r}" in lines
    assert [one for one in lines if one.startswith("protocol")] == lines[-1:]
    # Pictures that are shown besides are asked besides.
    assert len(lines) == 1 or name in ("test_view", "fit_views")


def test_the_same_settings_are_taken(old: Path) -> None:
    again = replace(TWO, protocol=Protocol(lost_items=400, fit_views=[1, 2]))  # type: ignore[arg-type]
    assert open_run(MICRO, out=old, settings=again).stored() == []
    stored = json.loads((old / "micro-late" / "settings.json").read_text())
    [common] = (old / "backbones").iterdir()
    shared = json.loads((common / "settings.json").read_text())
    assert stored["protocol"] == shared["protocol"] == Protocol().as_settings()


def test_a_run_from_before_there_was_a_protocol_is_refused(old: Path, tmp_path: Path) -> None:
    shutil.copytree(old / "micro-late", tmp_path / "micro-late")
    path = tmp_path / "micro-late" / "settings.json"
    stored = json.loads(path.read_text())
    for key in ("protocol", "asked", "vlm_checkpoint", "backbone_checkpoint"):
        del stored[key]
    path.write_text(json.dumps(stored))
    assert "protocol: not recorded with what is stored" in refused(tmp_path)


JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.text(max_size=3), JSON, max_size=4), st.data())
def test_differences_name_every_leaf(stored: dict[str, Any], data: st.DataObject) -> None:
    asked = json.loads(json.dumps(stored))
    assert differences(stored, asked) == []
    if not stored:
        return
    here, path = asked, []
    while True:
        key = data.draw(st.sampled_from(sorted(here)))
        path.append(key)
        if not isinstance(here[key], dict) or not here[key]:
            break
        here = here[key]
    here[path[-1]] = "changed"
    [line] = differences(stored, asked)
    assert line.startswith(f"{'.'.join(path)}: stored ")
    assert line.endswith("asked 'changed'")


# What is asked


def benchmark_with(**changed: Any) -> Pair:
    made = replace(MICRO.benchmark(), **changed)
    return replace(MICRO, benchmark=lambda: made)


def _item(benchmark: Benchmark, **changed: Any) -> Benchmark:
    last = benchmark.items[-1]
    return replace(benchmark, items=(*benchmark.items[:-1], replace(last, **changed)))


def _entity(benchmark: Benchmark, **changed: Any) -> Benchmark:
    return _item(benchmark, entity=replace(benchmark.items[-1].entity, **changed))


def _template(benchmark: Benchmark, **changed: Any) -> Benchmark:
    relation = benchmark.relations[-1]
    one = replace(benchmark.templates[relation], **changed)
    return replace(benchmark, templates={**benchmark.templates, relation: one})


def _chain(benchmark: Benchmark, write: Callable[[Template], Template]) -> Benchmark:
    last = benchmark.relations[-1]

    def chain(relation: str, name: str) -> Template:
        found = benchmark.chain(relation, name)
        return write(found) if relation == last else found

    return replace(benchmark, chain=chain)


def _view(benchmark: Benchmark, which: int) -> Benchmark:
    last = benchmark.entities[-1].code

    def view(code: str, index: int) -> Image.Image:
        found = benchmark.view(code, index)
        if (code, index) == (last, which):
            found = found.copy()
            found.putpixel((0, 0), (1, 2, 3))
        return found

    return replace(benchmark, view=view)


OTHERWISE: dict[str, tuple[str, Callable[[Benchmark, str], Benchmark]]] = {
    "an item's id": ("items", lambda b, x: _item(b, id=b.items[-1].id + x)),
    "a relation": ("items", lambda b, x: _item(b, relation=b.items[0].relation)),
    "answers": ("items", lambda b, x: _item(b, answers=(*b.items[-1].answers, x))),
    "a canonical answer": ("answer_sets", lambda b, x: _item(b, answers=(x,))),
    "a code": ("items", lambda b, x: _entity(b, code=b.items[-1].entity.code)),
    "a name": ("items", lambda b, x: _entity(b, name=x)),
    "aliases": ("items", lambda b, x: _entity(b, aliases=(x,))),
    "order": ("items", lambda b, x: replace(b, items=b.items[::-1])),
    "universe": ("universe", lambda b, x: replace(b, universe=(*b.items, b.items[0]))),
    "answer set": (
        "answer_sets",
        lambda b, x: replace(b, answer_sets={b.relations[0]: (x, *b.answer_set(b.relations[0]))}),
    ),
    "prefix": ("templates", lambda b, x: _template(b, prefix=x)),
    "question": ("templates", lambda b, x: _template(b, question="{entity}" + x)),
    "image question": ("templates", lambda b, x: _template(b, image_question="{image}" + x)),
    "naming": ("naming", lambda b, x: replace(b, naming=replace(b.naming, image_question=x))),
    "stop": ("stop", lambda b, x: replace(b, stop=b.stop + x)),
    "end": ("end", lambda b, x: replace(b, end=x)),
    "chain's prefix": (
        "chain",
        lambda b, x: _chain(b, lambda t: replace(t, prefix=t.prefix + x)),
    ),
    "chain's question": (
        "chain",
        lambda b, x: _chain(b, lambda t: replace(t, question=t.question + x)),
    ),
    "chain about a picture": (
        "chain",
        lambda b, x: _chain(b, lambda t: replace(t, image_question="{image}" + x)),
    ),
    "the picture asked about": ("pictures", lambda b, x: _view(b, 0)),
    "a picture of the probes": ("pictures", lambda b, x: _view(b, 2)),
    "what pictures there are": ("pictures", lambda b, x: replace(b, pictures=x)),
    "the blank picture": (
        "blank",
        lambda b, x: replace(b, blank=lambda: Image.new("RGB", b.blank().size, "red")),
    ),
}
del OTHERWISE["a code"], OTHERWISE["a relation"]  # which make two items of one
TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
WORD = TEXT.map(lambda text: f"w{text}")  # of at least one letter, as an answer must have


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([*OTHERWISE]), WORD)
def test_anything_else_that_is_asked_is_refused_and_named(
    asked: Path, what: str, text: str
) -> None:
    part, change = OTHERWISE[what]
    made = change(MICRO.benchmark(), text)
    assert asked_parts(made) != asked_parts(MICRO.benchmark())
    lines = refused(asked, replace(MICRO, benchmark=lambda: made), Settings())
    assert any(line.startswith(f"asked.{part}: stored ") for line in lines), lines
    assert any(line.startswith("benchmark: stored 'micro ") for line in lines)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("asked")
    open_run(MICRO, out=out, settings=Settings())
    return out


def test_the_same_questions_are_the_same() -> None:
    assert asked_parts(MICRO.benchmark()) == asked_parts(MICRO.benchmark())


# Checkpoints


@pytest.fixture
def own(tmp_path: Path) -> Pair:
    """A pair of folders of the user's."""
    for name, key in (("vlm", "micro-late"), ("llm", "micro-backbone")):
        known: dict[str, MicroKey] = {one: one for one in MICRO_KEYS}
        shutil.copytree(micro_folder(known[key]), tmp_path / name)
    made = own_pair(tmp_path / "vlm", tmp_path / "llm")
    return replace(made, benchmark=MICRO.benchmark)


def changed_weights(folder: str) -> None:
    """Other weights of the same size, written at the same time as the ones before."""
    path = Path(folder) / "model.safetensors"
    about, data = path.stat(), bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


def test_other_weights_under_one_name_are_refused(own: Pair, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    open_run(own, out=out, settings=TWO)
    for role in ("vlm", "backbone"):
        folder = str(own.places()[role])
        kept = shutil.copytree(folder, tmp_path / f"kept {role}")
        changed_weights(folder)
        [line] = refused(out, own)
        assert line.startswith(f"{role}_checkpoint.weights: stored '")
        shutil.copytree(kept, folder, dirs_exist_ok=True)
        open_run(own, out=out, settings=TWO)


def test_a_model_in_memory_is_not_taken_for_the_weights_that_replaced_it(
    own: Pair, tmp_path: Path
) -> None:
    models = Models()

    def loaded(name: str) -> iv.Model:
        run = open_run(own, out=tmp_path / name, settings=TWO)
        return run.study("backbone_text", models=models).backbone

    before = loaded("one")
    assert loaded("one") is before
    changed_weights(str(own.backbone()))
    assert loaded("two") is not before


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("config.json", "config"),
        ("tokenizer.json", "tokenizer"),
        ("processor_config.json", "processor"),
        ("adapter_config.json", "adapter"),
        ("chat_template.jinja", "tokenizer"),
        ("additional_chat_templates/tool.jinja", "tokenizer"),
        ("pytorch_model.bin", "weights"),
        ("modeling_own.py", "code"),
    ],
)
def test_any_file_that_loading_reads_counts(
    own: Pair, tmp_path: Path, name: str, kind: str
) -> None:
    out, path = tmp_path / "runs", Path(own.places()["vlm"]) / name
    open_run(own, out=out, settings=TWO)
    path.parent.mkdir(exist_ok=True)
    if name == "config.json":
        config = json.loads(path.read_text())
        path.write_text(json.dumps({**config, "image_seq_length": 5}))
    else:
        path.write_text(path.read_text() + " " if path.exists() else "{}")
    [line] = refused(out, own)
    assert line.startswith(f"vlm_checkpoint.{kind}: stored ")


def test_what_loading_does_not_read_does_not_count(own: Pair, tmp_path: Path) -> None:
    out, folder = tmp_path / "runs", Path(own.places()["vlm"])
    open_run(own, out=out, settings=TWO)
    for name in ("README.md", "optimizer.pt", "trainer_state.json", ".gitattributes", "note.txt~"):
        (folder / name).write_text("new")
    config = json.loads((folder / "config.json").read_text())
    config["transformers_version"] = "9.0"
    (folder / "config.json").write_text(json.dumps(config))
    for path in folder.iterdir():
        os.utime(path)
    open_run(own, out=out, settings=TWO)


def test_a_checkpoint_is_read_once_and_again_when_it_was_touched(own: Pair, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    open_run(own, out=out, settings=TWO)
    known = json.loads((out / SIDECAR).read_text())
    weights = str(Path(own.places()["vlm"]) / "model.safetensors")
    known[weights][-1] = "not what it holds"
    (out / SIDECAR).write_text(json.dumps(known))
    [line] = refused(out, own)  # so it was not read
    assert line.startswith("vlm_checkpoint.weights: ")
    os.utime(weights)
    open_run(own, out=out, settings=TWO)
    (out / SIDECAR).write_text('{"broken')
    open_run(own, out=out, settings=TWO)
    assert json.loads((out / SIDECAR).read_text())[weights]


@pytest.mark.parametrize("key", MICRO_KEYS)
def test_a_model_of_ours_is_the_same_each_time_it_is_made(key: MicroKey, tmp_path: Path) -> None:
    made = [micro_folder(key, cache=tmp_path / name) for name in ("one", "two")]
    one, two = (Digests(tmp_path / "runs").of(folder) for folder in made)
    assert one == two
    assert {"config", "weights", "tokenizer"} <= {*one}


def test_kinds_of_files() -> None:
    named = ("model.safetensors.index.json", "vocab.json", "preprocessor_config.json", "merges.txt")
    assert [kind_of(one) for one in named] == ["weights", "tokenizer", "processor", "tokenizer"]


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub's cache with one repo."""
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repo = cache / "models--some--llm"
    for commit in ("a" * 40, "b" * 40):
        (repo / "snapshots" / commit).mkdir(parents=True)
        (repo / "snapshots" / commit / "config.json").write_text("{}")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("a" * 40)
    return repo


def test_another_commit_of_a_repo_is_refused(own: Pair, cached: Path, tmp_path: Path) -> None:
    out, pair = tmp_path / "runs", replace(own, backbone=lambda: "some/llm")
    run = open_run(pair, out=out, settings=TWO)
    assert run.checkpoints["backbone"] == {"commit": "a" * 40}
    open_run(pair, out=out, settings=TWO)
    (cached / "refs" / "main").write_text("b" * 40)
    [line] = refused(out, pair)
    expected = f"stored '{'a' * 40}', asked '{'b' * 40}'"
    assert line == f"backbone_checkpoint.commit: {expected}"
    unknown = replace(own, backbone=lambda: "some/other")
    made = open_run(unknown, out=tmp_path / "more", settings=TWO)
    assert made.own.settings["backbone_checkpoint"] == {"revision": "main"}


def test_what_is_on_a_server_is_not_looked_for_here(tmp_path: Path) -> None:
    run = open_run(MICRO, out=tmp_path, settings=replace(TWO, remote=True))
    assert "vlm_checkpoint" not in run.own.settings
    assert run.own.settings["vlm"] == "twohop/micro-late"


# Models as they are in memory


def stage_of(**fingerprints: Any) -> xr.Dataset:
    """A stage's result that carries what its models are."""
    made = {role: {"id": role, "fingerprint": one} for role, one in fingerprints.items()}
    return xr.Dataset({"a": ("x", [1.0])}, attrs={"provenance": json.dumps(made)})


SOUND = {"weights": "w0", "dtype": "float32", "adapters": {"lora": "l0"}}
PARTS = {"weights": "w1", "dtype": "bfloat16", "adapters": {"lora": "l1"}}


@pytest.fixture
def run(tmp_path: Path) -> PairRun:
    made = open_run(MICRO, out=tmp_path, settings=TWO)
    made.keep("resolution", stage_of(vlm=SOUND, backbone=SOUND))
    return made


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("role", ["vlm", "backbone"])
def test_a_stage_of_other_models_is_not_put_beside_the_others(
    run: PairRun, role: str, part: str
) -> None:
    other = {"vlm": SOUND, "backbone": SOUND, role: {**SOUND, part: PARTS[part]}}
    leaf = f"{part}.lora" if part == "adapters" else part
    with pytest.raises(ResultsError, match=rf"{role} {leaf}: stored '.*', found '"):
        run.keep("recall", stage_of(**other))
    assert run.own.stages() == ["resolution"]
    run.keep("recall", stage_of(**other), again=["resolution"])
    assert run.own.stages() == ["recall", "resolution"]


def test_the_backbone_stands_in_for_no_vlm_in_its_own_stages(run: PairRun) -> None:
    run.keep("backbone_text", stage_of(vlm=PARTS, backbone=SOUND))
    run.keep("windows", stage_of(backbone=SOUND))
    with pytest.raises(ResultsError, match=r"map_text and the stored .* not of the same models"):
        run.keep("map_text", stage_of(vlm=SOUND, backbone=PARTS))


def test_a_backbones_stage_that_another_pair_stored_is_checked_too(
    run: PairRun, tmp_path: Path
) -> None:
    other = open_run(PAIRS["micro-naming"], out=tmp_path, settings=TWO)
    other.keep("backbone_text", stage_of(backbone=PARTS))
    with pytest.raises(ResultsError, match="backbone weights: stored 'w0', found 'w1'"):
        run.stored()


def test_stages_that_say_nothing_of_their_models_are_taken(run: PairRun) -> None:
    run.keep("recall", xr.Dataset({"a": ("x", [1.0])}))
    run.keep("map_image", stage_of(vlm=SOUND))
    assert len(run.own.stages()) == 3


# In a notebook


def test_a_stage_takes_no_results_of_another_study() -> None:
    study = study_of("micro-late", TWO)
    done = {"backbone_text": run_stage("backbone_text", study)}
    about = json.loads(done["backbone_text"].attrs["provenance"])
    assert about["settings"]["protocol"] == study.protocol.as_settings()
    assert about["versions"]["torch"]
    run_stage("windows", study, done)
    others = {
        "protocol.window_items: stored 200, asked 3": replace(
            study, protocol=Protocol(window_items=3)
        ),
        "seed: stored 0, asked 1": replace(study, seed=1),
        "asked.items: stored": replace(study, benchmark=MICRO.benchmark().limited(3)),
    }
    for line, other in others.items():
        with pytest.raises(ResultsError, match=line):
            run_stage("windows", other, done)
    about["backbone"]["fingerprint"] = {"weights": "others"}
    made = {"backbone": {"fingerprint": {"weights": "w0"}}}
    with pytest.raises(ResultsError, match="backbone weights: stored 'others', found 'w0'"):
        check_same_models("windows", made, {"backbone_text": about})


# Shown


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[xr.DataTree, dict[str, Any]]:
    out = tmp_path_factory.mktemp("finished")
    asked = Settings(limit=3, protocol=Protocol(lost_items=5, window_keeps=0.8))
    found = run_study("micro-late", out=out, settings=asked)
    return read_tree(out / "micro-late"), found


def test_a_report_says_what_the_protocol_was(
    finished: tuple[xr.DataTree, dict[str, Any]],
) -> None:
    tree, summary = finished
    assert summary["protocol"]["lost_items"] == 5
    assert as_json(summarise(tree, pair="micro-late", seed=0)).items() <= summary.items()
    assert command(tree, summary) == "twohop study micro-late --seed 0 --limit 3 --lost 5"
    assert "Protocol(window_keeps=0.8, ...)" in command_note(tree, summary)
    rows = {name: value for name, value, _ in protocol_rows(Protocol(lost_items=5))}
    assert rows["lost_items"] == "5 (default: 400)"
    assert rows["later_layers"] == "0.3, 0.4, 0.5, 0.6, 0.7, 0.8"
    assert "protocol" not in dict(settings_rows(tree))


def test_other_versions_are_a_caution(finished: tuple[xr.DataTree, dict[str, Any]]) -> None:
    tree, summary = finished
    assert not any("versions" in one for one in cautions(tree, summary))
    stage = tree["recovery"].to_dataset()
    about = json.loads(stage.attrs["provenance"])
    about["versions"]["torch"] = "9.9"
    stage.attrs["provenance"] = json.dumps(about)
    later = tree.assign({"recovery": xr.DataTree(stage)})
    [said] = [one for one in cautions(later, summary) if "versions" in one]
    assert "different versions of torch" in said
    assert "9.9 (recovery)" in said


def test_a_comparison_says_that_protocols_differ() -> None:
    runs = [
        {
            "pair": "a",
            "n_items": 3,
            "settings": {"seed": 0, "protocol": Protocol(lost_items=n).as_settings()},
        }
        for n in (24, 48)
    ]
    assert labels(runs) == ["a, lost_items 24", "a, lost_items 48"]
    [said] = differing(runs)
    assert said.startswith(
        "The runs differ in protocol.lost_items (24: a, lost_items 24; 48: a, lost_items 48)"
    )
    older = [runs[0], {"pair": "b", "n_items": 3, "settings": {"seed": 0}}]
    [said] = differing(older)
    assert said.startswith("By which protocol b was measured is not recorded")


def test_workers_measure_by_the_protocol(tmp_path: Path) -> None:
    pairs = [PAIRS["micro-naming"], MICRO]
    asked = Settings(limit=3, protocol=Protocol(window_items=2))
    selection = Selection.of(["windows"], force=False)
    run_side_by_side(pairs, Processes(2), out=tmp_path, settings=asked, selection=selection)
    for pair in pairs:
        assert read_tree(tmp_path / pair.key)["windows"].sizes["item"] == 2
