"""Sweeps: every cell equals one plain run; interrupted ones go on; bad input is refused."""

import gc
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import tiny
import torch
import xarray as xr
from families import PATHS, Case, case_of, model_of
from floors import relative

import interventions as iv
from interventions.errors import (
    PatchError,
    PromptError,
    ResultsError,
    RoleError,
    SiteError,
    SweepInterrupted,
)
from interventions.prompt.columns import columns_of
from interventions.results import read_provenance
from interventions.running.patches import Patch
from interventions.sweeping.metrics import METRICS, target
from interventions.sweeping.sources import FromLayers, FromModel, Noise
from interventions.sweeping.sweep import sweep

mpl.use("Agg")
ROLES = ["image", "entity[-1]", "last"]


@pytest.fixture(scope="module")
def case() -> Case:
    return case_of("llava", torch.float64, "sdpa")


@pytest.fixture(scope="module")
def other(case: Case) -> iv.Prompt:
    """The same questions about other pictures and another name."""
    texts = [text.replace("France", "Greece") for text in case.texts]
    pictures = [tiny.picture((40, 30), seed=5), tiny.picture((24, 60), seed=6)]
    spans = {"entity": ["Greece", "the town"]}
    return case.model.prompt(texts, images=pictures, spans=spans)


def where(prompt: iv.Prompt, role: str) -> iv.Positions:
    name, _, index = role.partition("[")
    return prompt.at(name, int(index[:-1])) if index else prompt.at(name)


def value_at(
    model: iv.Model, prompt: iv.Prompt, component: Any, layer: int, role: str
) -> tuple[torch.Tensor, iv.Positions]:
    """A component at a role, read in full by one plain run; and the role's positions."""
    at = where(prompt, role)
    [whole] = iv.read(model, prompt, [iv.Site(component, layer)])
    rows = torch.arange(len(prompt))[:, None]
    return whole[rows, at.index], at


def every_metric(
    case: Case, patches: list[Patch], answers: Any, foils: Any = None
) -> dict[str, np.ndarray]:
    """Metrics of one patched run of the prompt with its answers behind it, by ``iv.run``."""
    chosen = target(case.model, case.prompt, answers, foils)
    scored = chosen.scored(case.prompt)
    rows = [*range(len(case.prompt))] * chosen.repeats
    moved = [
        replace(one, positions=one.positions.shifted(0, scored.length))
        for one in (patch.of_rows(rows) for patch in patches)
    ]
    at = chosen.positions(scored)
    clean = iv.run(case.model, scored, logits=at).logits
    found = iv.run(case.model, scored, patches=moved, logits=at).logits
    assert clean is not None
    assert found is not None
    return {
        metric: chosen.values(metric, found, clean=clean[: len(case.prompt), 0]).numpy()
        for metric in METRICS
        if foils is not None or metric != "logit_diff"
    }


def plain(case: Case, metric: str, patches: list[Patch], answers: Any) -> np.ndarray:
    return every_metric(case, patches, answers)[metric]


def close(ours: Any, theirs: np.ndarray, floor: float = 1e-6) -> None:
    """The table is kept in float32."""
    assert relative(torch.as_tensor(np.asarray(ours)), torch.as_tensor(theirs)) < floor


def test_each_cell_and_metric_is_one_plain_run(case: Case, other: iv.Prompt) -> None:
    answers, foils = ["Paris", "the big river"], ["Madrid", "a mayor"]
    components = ["resid_pre", "head_out", "attn_out", "mlp_out", "resid_post"]
    found = sweep(
        case.model,
        case.prompt,
        other,
        answers=answers,
        foils=foils,
        metrics=METRICS,
        components=components,
        layers=[0, 3],
        roles=ROLES,
    )
    assert found.logprob.dims == ("item", "component", "layer", "role")
    assert found.component.values.tolist() == components
    assert found.layer.values.tolist() == [0, 3]
    assert found.role.values.tolist() == ROLES
    assert found.item.values.tolist() == [0, 1]
    assert found.logprob.attrs["units"] == "nats"
    assert found.attrs["path"] == "suffix"
    assert read_provenance(found)["model"]["dtype"] == "torch.float64"
    for component in components:
        for layer in (0, 3):
            for role in ROLES:
                value, at = value_at(case.model, other, component, layer, role)
                if component == "head_out":
                    assert value.shape[-2:] == (4, case.model.anatomy.head_dim)
                patch = Patch(component, layer, where(case.prompt, role), value)  # type: ignore[arg-type]
                assert at.index.shape == patch.positions.index.shape
                cell = found.sel(component=component, layer=layer, role=role)
                for metric, theirs in every_metric(case, [patch], answers, foils).items():
                    assert np.abs(cell[metric].values - theirs).max() < 2e-5, (metric, patch)
    there = Case(case.name, case.model, other, case.texts, case.pictures)
    for metric in ("logprob", "logit_diff", "rank"):
        close(found[f"clean_{metric}"], every_metric(case, [], answers, foils)[metric])
        close(found[f"source_{metric}"], every_metric(there, [], answers, foils)[metric])
    assert (found.clean_kl < 1e-6).all()
    assert (found.kl.sel(layer=0) > 1e-4).any()


def test_the_runs_own_values_change_nothing(case: Case) -> None:
    """The source is the prompt itself: not to the bit, as sums are in another order."""
    found = sweep(
        case.model,
        case.prompt,
        case.prompt,
        answers=["Paris", "the big river"],
        metrics=["logprob", "kl", "changed"],
        components=["attn_out", "mlp_out", "resid_post"],
        layers=[0, 3],
    )
    real = ~np.isnan(found.logprob)
    assert real.any()
    off = found.logprob - found.clean_logprob
    assert float(np.abs(off).max()) < 1e-5
    assert float(found.kl.max()) < 1e-6
    assert float(found.changed.max()) == 0


def test_every_token_is_a_column(case: Case, other: iv.Prompt) -> None:
    """The default; rows have none where they are padded, and each token has its role."""
    model, prompt = case.model, case.prompt
    found = sweep(model, prompt, other, answers="Paris", layers=1)
    assert found.logprob.dims == ("item", "component", "layer", "position")
    assert found.sizes["position"] == prompt.length
    assert np.array_equal(~np.isnan(found.logprob[:, 0, 0].values), case.real.numpy())
    assert set(found.role.values[:, -1]) == {"last"}
    assert (found.role == "image").sum() > 0
    position = int(prompt.at("entity", -1).index[1, 0])
    [value] = iv.read(model, other, [iv.Site("resid_post", 1)])
    at = iv.Positions(
        torch.tensor([[position]] * 2),
        torch.ones(2, 1, dtype=torch.bool),
        prompt.length,
        True,
        "one",
    )
    patch = Patch("resid_post", 1, at, value[:, position])
    close(found.logprob[:, 0, 0, position], plain(case, "logprob", [patch], "Paris"))
    ids = prompt.inputs["input_ids"][1, position]
    assert found.token.values[1, position] == model.tokenizer.decode([ids])
    means = found.logprob.groupby("role").mean()
    image = found.role.values == "image"
    assert image.any(1).all()
    close(means.sel(role="image")[0, 0], found.logprob.values[:, 0, 0][image].mean())


def test_each_token_of_a_role(case: Case, other: iv.Prompt) -> None:
    whole = sweep(case.model, case.prompt, other, answers="Paris", layers=1)
    found = sweep(
        case.model, case.prompt, other, answers="Paris", layers=1, roles=["entity"], each=True
    )
    for row, roles in enumerate(case.prompt.roles):
        for k, position in enumerate(roles["entity"]):
            close(found.logprob[row, 0, 0, k], whole.logprob[row, 0, 0, position].values)
        assert np.isnan(found.logprob[row, 0, 0, len(roles["entity"]) :]).all()
        assert set(found.role.values[row]) <= {"entity", ""}


def test_heads_and_windows(case: Case, other: iv.Prompt) -> None:
    model, prompt = case.model, case.prompt
    found = sweep(
        model,
        prompt,
        other,
        answers="Paris",
        components="head_out",
        heads=[0, 3],
        roles=["last"],
        layers=[0, 2],
        window=2,
    )
    assert found.logprob.dims == ("item", "component", "layer", "head", "role")
    for first in (0, 2):
        for head in (0, 3):
            patches = []
            for layer in range(first, first + 2):
                value, _ = value_at(model, other, "head_out", layer, "last")
                value = value[:, :, head]
                patches.append(Patch("head_out", layer, prompt.at("last"), value, heads=head))
            close(
                found.logprob.sel(layer=first, head=head)[:, 0, 0],
                plain(case, "logprob", patches, "Paris"),
            )
    last = sweep(model, prompt, other, answers="Paris", roles=["last"], window=3)
    alone = sweep(model, prompt, other, answers="Paris", roles=["last"])
    close(last.logprob[:, :, -1], alone.logprob[:, :, -1].values)  # a window at the end is shorter


def test_a_number_and_a_vector(case: Case) -> None:
    vector = torch.linspace(-1, 1, case.model.d_model, dtype=torch.float64)
    for source in (0, 0.5, vector):
        found = sweep(
            case.model,
            case.prompt,
            source,
            answers=["Paris", "the big river"],
            layers=[1],
            components=["mlp_out", "resid_pre"],
            roles=ROLES,
        )
        for component in ("mlp_out", "resid_pre"):
            for role in ROLES:
                value = torch.as_tensor(source, dtype=torch.float64)
                patch = Patch(component, 1, where(case.prompt, role), value)
                close(
                    found.logprob.sel(component=component, role=role)[:, 0],
                    plain(case, "logprob", [patch], ["Paris", "the big river"]),
                )


def test_values_of_other_layers_of_the_same_run(case: Case) -> None:
    found = sweep(
        case.model,
        case.prompt,
        FromLayers([1, 3]),
        answers="Paris",
        roles=["entity[-1]", "last"],
        read_roles=["image[-1]", "last"],
        window=2,
    )
    assert found.logprob.dims == ("item", "component", "layer", "source_layer", "role")
    n = case.model.n_layers
    assert found.source_layer.values.tolist() == [1, 3]
    for t in range(n):
        for s in (1, 3):
            for role, read in (("entity[-1]", "image[-1]"), ("last", "last")):
                patches = []
                for i in range(2):
                    if max(s, t) + i < n:
                        value, _ = value_at(case.model, case.prompt, "resid_post", s + i, read)
                        patches.append(Patch("resid_post", t + i, where(case.prompt, role), value))
                close(
                    found.logprob.sel(layer=t, source_layer=s, role=role)[:, 0],
                    plain(case, "logprob", patches, "Paris"),
                )


@pytest.mark.parametrize(("name", "text"), [("llava", "vicuna"), ("mllama", "llama")])
def test_values_of_the_backbone(name: str, text: str) -> None:
    """At the layers that correspond; cross-attention blocks have none, and are left out."""
    case = case_of(name, torch.float64, "sdpa")
    backbone = backbone_of(case, text)
    named = backbone.prompt(
        ["It is France", "The town is far"], spans={"entity": ["France", "town"]}
    )
    both = iv.pair(case.model, backbone)
    found = sweep(
        case.model,
        case.prompt,
        FromModel(both, named),
        answers="Paris",
        roles=["entity[-1]", "last"],
        read_roles=["entity[-1]", "last"],
    )
    assert found.layer.values.tolist() == list(both.layer_map)
    assert len(both.layer_map) == backbone.n_layers
    for there, here in enumerate(both.layer_map):
        value, _ = value_at(backbone, named, "resid_post", there, "entity[-1]")
        patch = Patch("resid_post", here, case.prompt.at("entity", -1), value)
        close(
            found.logprob.sel(layer=here, role="entity[-1]")[:, 0],
            plain(case, "logprob", [patch], "Paris"),
        )
    if case.model.anatomy.cross_blocks:
        with pytest.raises(SiteError, match="correspond to no layer"):
            sweep(
                case.model,
                case.prompt,
                FromModel(both, named),
                answers="Paris",
                roles=["last"],
                layers=[1],
            )


def backbone_of(case: Case, name: str) -> iv.Model:
    """A text model as wide and deep as the VLM's own self-attention blocks."""
    config: Any = case.model.module.config.get_text_config(decoder=True)
    small = tiny.build(name, dtype=torch.float64, attn_implementation="sdpa")[0].config
    small.num_hidden_layers = len(case.model.anatomy.self_blocks)
    for key in ("hidden_size", "num_attention_heads", "num_key_value_heads", "vocab_size"):
        setattr(small, key, getattr(config, key))
    module = tiny.build_model(small, dtype=torch.float64, attn_implementation="sdpa")
    return iv.load(module, tokenizer=case.model.tokenizer)


def test_noise_depends_on_the_item_and_token_alone(case: Case) -> None:
    """Not on batches, nor on what else is patched; and it is as large as said."""
    model, prompt = case.model, case.prompt
    source = Noise(scale=2.0, seed=3)
    found = sweep(model, prompt, source, answers="Paris", roles=["entity", "last"])
    small = sweep(
        model,
        prompt,
        source,
        answers="Paris",
        roles=["last"],
        layers=[2],
        components=["mlp_out", "resid_post"],
    )
    close(
        small.logprob.sel(component="resid_post", layer=2, role="last"),
        found.logprob.sel(component="resid_post", layer=2, role="last").values,
    )
    alone = sweep(model, prompt.select([0]), source, answers="Paris", roles=["entity", "last"])
    close(alone.logprob[0], found.logprob[0].values)
    again = sweep(model, prompt, source, answers="Paris", roles=["entity", "last"])
    assert np.array_equal(again.logprob, found.logprob)
    differs = sweep(model, prompt, Noise(scale=2.0, seed=4), answers="Paris", roles=["last"])
    assert np.abs(differs.logprob - found.logprob.sel(role=["last"])).min() > 1e-4
    none = sweep(model, prompt, Noise(scale=0.0), answers="Paris", roles=["entity", "last"])
    close(none.logprob.max(("layer", "role"))[:, 0], none.clean_logprob.values)


def test_items_in_another_order_or_batch_give_the_same_numbers(
    case: Case, other: iv.Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, order = ["Paris", "the big river", "a mayor"], [1, 0, 1]
    prompt, source = case.prompt.select(order), other.select(order)
    arguments: dict[str, Any] = {"roles": ROLES, "components": ["attn_out", "resid_post"]}
    one = sweep(case.model, prompt, source, answers=answers, **arguments)
    back = [2, 0, 1]
    two = sweep(
        case.model,
        prompt.select(back),
        source.select(back),
        answers=[answers[i] for i in back],
        **arguments,
    )
    close(two.logprob, one.logprob.values[back])
    monkeypatch.setattr(sys.modules["interventions.sweeping.measure"], "MOST_ROWS", 1)
    three = sweep(case.model, prompt, source, answers=answers, **arguments)
    close(three.logprob, one.logprob.values)


def test_a_sweep_under_the_smallest_budget_it_names(case: Case, other: iv.Prompt) -> None:
    arguments: dict[str, Any] = {
        "answers": ["Paris", "the big river"],
        "foils": "a mayor",
        "roles": ROLES,
    }
    with pytest.raises(PatchError, match="the run of one row needs about") as error:
        sweep(case.model, case.prompt, other, budget=1, **arguments)
    [needed] = [int(word[7:]) for word in str(error.value).split() if word.startswith("budget=")]
    with pytest.raises(PatchError, match=f"Give budget={needed} or more"):
        sweep(case.model, case.prompt, other, budget=needed - 1, **arguments)
    narrow = sweep(case.model, case.prompt, other, budget=needed, **arguments)
    close(narrow.logprob, sweep(case.model, case.prompt, other, **arguments).logprob.values)


def test_results_can_be_drawn_and_kept(case: Case, other: iv.Prompt, tmp_path: Path) -> None:
    from matplotlib import pyplot as plt

    found = sweep(
        case.model,
        case.prompt,
        other,
        answers="Paris",
        roles=ROLES,
        components=["attn_out", "mlp_out"],
    )
    drawn = found.logprob.mean("item").plot(col="component", x="layer")  # type: ignore[call-arg]
    assert len(drawn.axs.flat) == 2
    found.logprob.mean("item").sel(role="last").plot.line(x="layer")
    plt.close("all")
    found.to_netcdf(tmp_path / "found.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "found.nc", engine="h5netcdf") as kept:
        xr.testing.assert_identical(kept.load(), found)


# What is left behind


def n_tensors() -> int:
    gc.collect()
    return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())


def test_nothing_is_kept_alive(case: Case, other: iv.Prompt) -> None:
    prompt = case.prompt.select([0, 1])
    arguments: dict[str, Any] = {"answers": ["Paris", "the big river"], "roles": ["last"]}
    sweep(case.model, prompt, other, **arguments)
    before = n_tensors()
    for _ in range(20):
        sweep(case.model, prompt, other, **arguments)
    assert n_tensors() <= before
    gone = weakref.ref(prompt)
    del prompt
    gc.collect()
    assert gone() is None


# Stopping and going on


@contextmanager
def stopped_after(case: Case, n: int, error: type[BaseException] | None) -> Iterator[list[int]]:
    """Count forward passes of the whole model; raise in the n-th."""
    calls: list[int] = []

    def hook(*_: Any) -> None:
        calls.append(0)
        if error is not None and len(calls) == n:
            raise error

    handle = case.model.module.register_forward_pre_hook(hook)
    try:
        yield calls
    finally:
        handle.remove()


def long_sweep(case: Case, other: iv.Prompt, out: Path | None) -> xr.Dataset:
    return sweep(
        case.model, case.prompt, other, answers=["Paris", "the big river"], roles=ROLES, out=out
    )


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_is_done_is_kept_and_not_run_again(
    case: Case, other: iv.Prompt, tmp_path: Path, error: type[BaseException]
) -> None:
    with stopped_after(case, 0, None) as calls:
        whole = long_sweep(case, other, None)
    total = len(calls)
    stop = total - 2
    expected = SweepInterrupted if error is KeyboardInterrupt else Exception
    with stopped_after(case, stop, error), pytest.raises(expected) as caught:
        long_sweep(case, other, tmp_path / "s")
    if isinstance(caught.value, SweepInterrupted):
        part = caught.value.dataset
        done = ~np.isnan(part.logprob.values)
        assert done.any()
        assert not done.all()
        assert np.array_equal(part.logprob.values[done], whole.logprob.values[done])
        assert str(tmp_path / "s") in str(caught.value)
    with stopped_after(case, 0, None) as calls:
        again = long_sweep(case, other, tmp_path / "s")
    # The reads and the clean run once more, then the passes that were left.
    assert len(calls) == 2 + (total - stop + 1)
    xr.testing.assert_identical(again, whole)
    with stopped_after(case, 0, None) as calls:
        xr.testing.assert_identical(long_sweep(case, other, tmp_path / "s"), whole)
    assert not calls


CHILD = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, {tests!r})
torch.set_num_threads(1)
from families import case_of
from interventions.sweeping.sources import Noise
from interventions.sweeping.sweep import sweep
import interventions.sweeping.table
interventions.sweeping.table.SAVE_EVERY_S = 0.0
case = case_of("llama", torch.float32, "sdpa")
print("ready", flush=True)
for i in range({times}):
    sweep(case.model, case.prompt, Noise(seed=i), answers=["Paris", "the big river"],
          components=["attn_out", "resid_post"],
          out=Path({out!r}) / str(i), progress=False)
print("done", flush=True)
"""


def test_killed_at_any_moment_it_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    # As new as the child's: what other tests put on a model is part of what a sweep is bound to.
    model_of.cache_clear()
    case_of.cache_clear()
    case = case_of("llama", torch.float32, "sdpa")
    times = 3
    child = CHILD.format(
        tests=str(Path(__file__).parents[1] / "support"), out=str(tmp_path), times=times
    )
    rng = np.random.default_rng(0)
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline().strip() == b"ready"
        time.sleep(float(rng.uniform(0.05, 0.5)))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert any(tmp_path.iterdir())
    for i in range(times):
        arguments: dict[str, Any] = {
            "answers": ["Paris", "the big river"],
            "components": ["attn_out", "resid_post"],
        }
        whole = sweep(case.model, case.prompt, Noise(seed=i), **arguments)
        again = sweep(case.model, case.prompt, Noise(seed=i), out=tmp_path / str(i), **arguments)
        xr.testing.assert_identical(again, whole)


def test_a_store_of_other_settings_is_refused(case: Case, other: iv.Prompt, tmp_path: Path) -> None:
    long_sweep(case, other, tmp_path)
    same = {"answers": ["Paris", "the big river"], "roles": ROLES}
    changes: list[tuple[str, Any, dict[str, Any]]] = [
        ("answers", other, {"answers": "Rome"}),
        ("source", 0.0, {}),
        ("source", other.select([1, 0]), {}),
        ("axes", other, {"roles": ["last"]}),
        ("metrics", other, {"metrics": "rank"}),
    ]
    for key, source, change in changes:
        with pytest.raises(ResultsError, match=rf"{key}[.a-z]*: stored .*, asked "):
            sweep(case.model, case.prompt, source, out=tmp_path, **{**same, **change})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "cells.npz").write_bytes(b"not a table")
    with pytest.raises(ResultsError, match="not the folder of a run"):
        long_sweep(case, other, tmp_path / "other")


def test_a_damaged_table_is_said_to_be_so(case: Case, other: iv.Prompt, tmp_path: Path) -> None:
    with stopped_after(case, 4, KeyboardInterrupt), pytest.raises(SweepInterrupted):
        long_sweep(case, other, tmp_path)
    table = tmp_path / "cells.npz"
    table.write_bytes(table.read_bytes()[:100])
    with pytest.raises(ResultsError, match=r"cells\.npz cannot be read"):
        long_sweep(case, other, tmp_path)


# Bad input


def test_rows_without_a_role_are_reported_and_left_out(case: Case) -> None:
    model = case.model
    text = f"Q: what is {model.image_token} to France? A:"
    texts = [text, "Q: what is it to France? A:", text]
    pictures = [tiny.picture((40, 30)), None, tiny.picture((24, 60), seed=1)]
    prompt = model.prompt(texts, images=pictures)
    found = sweep(model, prompt, 0.0, answers="Paris", roles=["image", "last"])
    assert found.attrs["left_out"] == '{"1": "no token of role \'image\'"}'
    assert np.isnan(found.logprob[1]).all()
    rest = sweep(model, prompt.select([0, 2]), 0.0, answers="Paris", roles=["image", "last"])
    close(found.logprob[[0, 2]], rest.logprob.values)
    assert not np.isnan(rest.logprob).any()


def test_what_cannot_be_swept_is_refused_before_anything_runs(case: Case, other: iv.Prompt) -> None:
    fine: dict[str, Any] = {"answers": "Paris", "roles": ["last"]}
    nan = torch.full((case.model.d_model,), torch.nan)
    bad: list[tuple[type[Exception], str, Any, dict[str, Any]]] = [
        (SiteError, "components= is empty, so there are no cells", other, {"components": []}),
        (RoleError, "roles= is empty", other, {"roles": []}),
        (SiteError, "no layer is named", other, {"layers": []}),
        (SiteError, "no layer 99", other, {"layers": [0, 99]}),
        (SiteError, "window=0", other, {"window": 0}),
        (SiteError, "window=99", other, {"window": 99}),
        (SiteError, "no component 'resid'", other, {"components": "resid"}),
        (SiteError, "names one twice", other, {"components": ["mlp_out", "mlp_out"]}),
        (SiteError, "no head 99", other, {"components": "head_out", "heads": [99]}),
        (SiteError, 'heads= divides "head_out" alone', other, {"heads": [0]}),
        (PromptError, "no metric 'logprop'. Did you mean 'logprob'", other, {"metrics": "logprop"}),
        (PromptError, "metrics= is empty", other, {"metrics": []}),
        (PromptError, "give foils=", other, {"metrics": "logit_diff"}),
        (PromptError, "has no tokens", other, {"answers": ""}),
        (PromptError, "3 answers for 2 rows", other, {"answers": ["a", "b", "c"]}),
        (PromptError, "1 foils for 2 rows", other, {"foils": ["a"]}),
        (RoleError, "no role 'nobody'", other, {"roles": ["nobody"]}),
        (RoleError, "no row has all of", other, {"roles": ["entity[9]"]}),
        (RoleError, "Name one token", other, {"roles": ["entity"], "read_roles": ["image"]}),
        (
            RoleError,
            "tokens are written one by one, and 1 are read",
            other,
            {"roles": ["entity"], "read_roles": ["last"], "each": True},
        ),
        (PromptError, "1 roles are written, 2 are read", other, {"read_roles": ["last", "image"]}),
        (PromptError, "name the roles written", other, {"roles": None, "read_roles": ["last"]}),
        (PromptError, "the source has 1 rows, the prompt 2", other.select([0]), {}),
        (SiteError, "no layer 99", FromLayers([99]), {}),
        (PatchError, "holds NaN", nan, {}),
        (PatchError, "is no value for every cell", torch.zeros(2, 3), {}),
        (PatchError, "is no value for every cell", torch.zeros(3), {}),
    ]
    with stopped_after(case, 0, None) as calls:
        for kind, message, source, changes in bad:
            with pytest.raises(kind, match=message):
                sweep(case.model, case.prompt, source, **{**fine, **changes})
    assert not calls


def test_a_source_that_computes_nan_is_refused(case: Case, other: iv.Prompt) -> None:
    block = case.model.module.get_submodule(f"{PATHS['llava'].blocks}.1.mlp")
    handle = block.register_forward_hook(lambda _m, _a, out: out * torch.nan)
    try:
        with pytest.raises(PatchError, match="of the source holds NaN"):
            sweep(case.model, case.prompt, other, answers="Paris", roles=["last"])
    finally:
        handle.remove()


def test_cross_attention_blocks_without_an_image_are_left_out() -> None:
    model = case_of("mllama", torch.float64, "sdpa").model
    prompt = model.prompt(["The capital of France is", "Who is it"])
    found = sweep(model, prompt, FromLayers(), answers="Paris", roles=["last"])
    assert found.layer.values.tolist() == found.source_layer.values.tolist() == [0, 2, 3, 5]
    assert not np.isnan(found.logprob).any()
    own = np.stack([found.logprob.sel(layer=i, source_layer=i)[:, 0, 0] for i in (0, 2, 3, 5)])
    close(own, found.clean_logprob.values[None])
    with pytest.raises(SiteError, match="cross-attention block"):
        sweep(model, prompt, 0.0, answers="Paris", roles=["last"], window=2)


def test_columns_keep_rows_apart(case: Case) -> None:
    columns, missing = columns_of(case.prompt, ["entity", "last"], each=False)
    assert not missing
    assert columns.rows([1]).tokens[0] == [case.prompt.roles[1]["entity"]]
    assert columns.shifted(2).tokens[1][0] == [case.prompt.length - 3]
