"""The report of a real micro run, and of runs with nothing in them."""

import base64
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from PIL import Image
from published_configs import vlm_config
from rich.console import Console

from interventions.errors import ResultsError
from interventions.results import read_tree
from twohop.pairs import find_pair
from twohop.published import PUBLISHED
from twohop.published.architecture import architecture_of
from twohop.report.compare import read_summary, write_comparison
from twohop.report.comparison import labels
from twohop.report.console import print_comparison, print_summary
from twohop.report.estimates import NOT_MEASURED, written
from twohop.report.examples import examples
from twohop.report.page import unbroken, write_report
from twohop.report.sentence import verdict_sentence
from twohop.report.settings import command, command_note, flat, settings_rows
from twohop.report.style import spread
from twohop.report.summary import summarise
from twohop.report.table import at
from twohop.report.tables import all_tables
from twohop.report.timetable import timetable_figure
from twohop.stages.recovery.arms import WITHOUT_IMAGE_TOKENS
from twohop.statistics import as_json

FIGURES = ("gates", "outcomes", "resolution", "windows", "timetable", "calibration", "map")
FIGURES += ("recovery",)
VOID = {"meta", "img", "br", "link", "hr", "input"}


class Page(HTMLParser):
    """Reads a page; collects its cells and what it loads, and checks that tags are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.keyed: list[tuple[str, str]] = []
        self.loaded: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.text: list[str] = []
        self._key = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        if found.get("id"):
            self.ids.append(str(found["id"]))
        self.loaded += [str(found[name]) for name in ("src", "href", "data") if found.get(name)]
        if tag == "img":
            self.images.append(found)
        self._key = found.get("data-key") or ""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self._key = ""

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if self._key:
            self.keyed.append((self._key, data))


@pytest.fixture(scope="module")
def run(studied: Callable[..., Path]) -> Path:
    return studied("micro-naming") / "micro-naming"


@pytest.fixture(scope="module")
def tree(run: Path) -> xr.DataTree:
    return read_tree(run)


@pytest.fixture(scope="module")
def summary(run: Path) -> dict:
    return json.loads((run / "summary.json").read_text())


@pytest.fixture(scope="module")
def page(run: Path) -> Page:
    return Page((run / "report.html").read_text(encoding="utf-8"))


CORRELATIONS = ("attribution_agreement", "map_similarity", "prediction/auc")
AS_THEY_ARE = ("gap_points", "windows", "lateness/blocks", "prediction/calibration")
"""Points and blocks."""


def expected(summary: dict, key: str) -> str:
    """What the page must say of a number, written here anew from ``summary.json``."""
    found = at(summary, key)
    if isinstance(found, dict):
        if found["value"] is None:
            return NOT_MEASURED
        if key.startswith(CORRELATIONS) and key[-3:] != "top":
            value, low, high = (f"{found[name]:.2f}" for name in ("value", "low", "high"))
            return f"{value} [{low}, {high}]"
        scale = 1 if key.startswith(AS_THEY_ARE) else 100
        sign = "" if key.startswith((*AS_THEY_ARE, "contrasts")) else " %"
        value, low, high = (round(found[name] * scale) for name in ("value", "low", "high"))
        return f"{value}{sign} [{low}, {high}]"
    if key.startswith("map_similarity"):
        return "–" if found is None else f"{found:.2f}"
    return str(found)


def test_page_needs_nothing_else(run: Path, page: Page) -> None:
    assert (run / "report.html").stat().st_size < 2e6
    assert all(one.startswith(("data:image/", "#")) for one in page.loaded)
    assert not {"script", "link", "iframe", "object"} & page.tags
    assert {one[1:] for one in page.loaded if one.startswith("#")} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))


def test_page_does_not_name_this_machine(run: Path) -> None:
    text = (run / "report.html").read_text(encoding="utf-8")
    text = re.sub(r"data:image/[^\"]+", "", text)
    for path in (str(run.parent), str(Path.home()), "/tmp/", str(Path(__file__).parents[2])):
        assert path not in text
    assert "url(" not in text
    assert "@import" not in text


def test_page_speaks_to_everyone(run: Path, page: Page) -> None:
    assert (run / "report.html").read_text().lstrip().startswith("<!doctype html>")
    assert all(image["alt"] for image in page.images)
    drawn = [one for one in page.images if str(one["src"]).startswith("data:image/svg")]
    assert len(drawn) == len(FIGURES)


def test_every_number_shown_is_the_summarys(page: Page, summary: dict) -> None:
    assert len(page.keyed) > 80
    for key, said in page.keyed:
        said = said.replace("\u00a0", " ").replace("−", "-").split(" (n ")[0]
        if key.endswith("best_constant"):
            assert said.split()[0] == str(round(100 * at(summary, key)))
        elif "[" in said or at(summary, key) is None or not isinstance(at(summary, key), dict):
            assert said == expected(summary, key), key
        else:
            assert expected(summary, key).startswith(said), key
    shown = {key for key, _ in page.keyed}
    for group in ("recovered", "followed", "diagnosis", "outcomes", "forced"):
        for name in summary[group]:
            key = f"{group}/{name}"
            assert (key in shown) != (key in summary["not_available"])
    for arm, effect in summary["net"].items():
        there = effect["accuracy"]["value"] is not None
        for key in (f"net/{arm}/accuracy", f"net/{arm}/closed", f"still_right/{arm}"):
            assert (key in shown) == there
    assert {f"contrasts/{name}/difference" for name in summary["contrasts"]} < shown
    assert {f"evidence/{name}/estimate" for name in summary["evidence"]} < shown
    for group in ("windows", "windows_vlm"):
        blocks = {name for name, number in summary[group].items() if isinstance(number, dict)}
        assert {f"{group}/{name}" for name in blocks} < shown
    assert {f"lateness/{name}" for name in ("early", "between", "late", "never", "blocks")} < shown


def test_page_leads_with_the_verdict(page: Page, summary: dict) -> None:
    words = "".join(page.text)
    assert words.index(unbroken(summary["verdict"])) < words.index("Is there a gap?")
    assert "not public" in words
    assert find_pair("micro-naming").benchmark().notes in words


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_in_both_formats(run: Path, name: str) -> None:
    svg = (run / "figures" / f"{name}.svg").read_text()
    assert svg.count("<svg") == 1
    with Image.open(run / "figures" / f"{name}.png") as picture:
        assert picture.width == 960
    embedded = base64.b64encode(svg.encode()).decode()
    assert embedded in (run / "report.html").read_text()


def test_report_is_the_same_when_made_again(
    run: Path, tree: xr.DataTree, summary: dict, tmp_path: Path
) -> None:
    benchmark = find_pair("micro-naming").benchmark()
    again = write_report(tmp_path, tree, summary, benchmark)
    assert again.read_bytes() == (run / "report.html").read_bytes()


def changed(tree: xr.DataTree, **stages: xr.Dataset) -> xr.DataTree:
    """A tree with some stages replaced."""
    return xr.DataTree.from_dict(
        {name: stages.get(name, node.to_dataset()) for name, node in tree.children.items()}
    )


def test_what_models_say_is_escaped(tree: xr.DataTree, summary: dict, tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>"
    gates = tree["recall"].to_dataset().copy(deep=True)
    gates["text"] = xr.full_like(gates["text"].astype(object), evil)
    benchmark = find_pair("micro-naming").benchmark()
    items = tuple(replace(i, entity=replace(i.entity, name=f"A & {evil}")) for i in benchmark.items)
    named = {**summary, "pair": evil}
    written_to = write_report(
        tmp_path, changed(tree, recall=gates), named, replace(benchmark, items=items, notes=evil)
    )
    page = Page(written_to.read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert evil in page.text


def test_run_without_lost_items(tree: xr.DataTree, tmp_path: Path) -> None:
    gates = tree["recall"].to_dataset().copy(deep=True)
    gates["right"][:] = True
    gates["outcome"] = xr.full_like(gates["outcome"], "right")
    recovery = (
        tree["recovery"]
        .to_dataset()
        .isel(lost=slice(0), tried=slice(0), searched=slice(0), kept=slice(0), follow_arm=slice(0))
        .assign_attrs(n_lost=0)
    )
    diagnosis = tree["diagnosis"].to_dataset().copy(deep=True)
    diagnosis["verdict"] = xr.full_like(diagnosis["verdict"], "right")
    empty = changed(tree, recall=gates, recovery=recovery, diagnosis=diagnosis)
    assert "no item was lost" in text_of(empty, tmp_path)


def test_run_in_which_nothing_is_recognised(tree: xr.DataTree, tmp_path: Path) -> None:
    gates = tree["recall"].to_dataset().copy(deep=True)
    gates["right"][:] = False
    gates["choice_right"][:] = False
    recovery = (
        tree["recovery"]
        .to_dataset()
        .isel(lost=slice(0), tried=slice(0), searched=slice(0), kept=slice(0))
    )
    recovery.attrs.update(n_lost=0, n_kept=0)
    windows = tree["windows"].to_dataset().isel(item=slice(0))
    windows.attrs.update(enrichment_end=-1, readout_end=-1)
    maps = {
        name: tree[name].to_dataset().isel(map_item=slice(0)) for name in ("map_text", "map_image")
    }
    empty = changed(tree, recall=gates, recovery=recovery, windows=windows, **maps)
    text = text_of(empty, tmp_path)
    assert "no item was recognised" in text
    assert "no block needed" not in text, "that takes an item on which it was looked at"


def test_run_that_needs_no_block(tree: xr.DataTree, tmp_path: Path) -> None:
    windows = tree["windows"].to_dataset().copy()
    windows.attrs.update(enrichment_end=-1, enrichment_end_low=-1, enrichment_end_high=-1)
    assert "no block needed" in text_of(changed(tree, windows=windows), tmp_path)


def test_windows_that_no_item_shows_are_not_measured(tree: xr.DataTree, tmp_path: Path) -> None:
    """Each item is the only one of its relation that is known: nothing to replace an MLP by."""
    windows = tree["windows"].to_dataset().copy(deep=True)
    for name in ("enrichment", "alone", "sufficiency", "half_point", "half_low", "half_high"):
        windows[name] = windows[name].astype(float) * np.nan
    n, reason = windows.sizes["item"], "no other entity is known"
    windows.attrs.update(
        enrichment_end=-1,
        enrichment_end_low=np.nan,
        enrichment_end_high=np.nan,
        left_out=n,
        left_out_reason=reason,
    )
    lonely = changed(tree, windows=windows)
    found = summarise(lonely, pair="micro", seed=0)["windows"]
    assert not found["enrichment_end"].measured
    assert found["enrichment_end"].n == found["necessity_half"].n == 0
    assert found["readout_end"].n == n
    text = text_of(lonely, tmp_path)
    assert "no block needed" not in text
    assert f"On {n} of {n} items no enrichment window was measured: {reason}" in text
    assert "in the first block alone" in text


def test_the_timetable_shown_is_the_one_that_is_used(tree: xr.DataTree) -> None:
    def title(same: int) -> str:
        own = tree["timetable_vlm"].to_dataset().assign_attrs(same_as_backbone=same)
        figure = timetable_figure(changed(tree, timetable_vlm=own))
        return figure.axes[0].get_title(loc="left")

    assert "of the backbone" in title(1)
    assert "of the VLM's own text" in title(0)


def test_the_verdict_says_which_way_a_forecast_goes_and_of_how_many_items(summary: dict) -> None:
    def area(value: float) -> dict[str, float | int]:
        return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 60}

    def told(value: float, *, same: bool) -> str:
        windows = {**summary["windows_vlm"], "same_as_backbone": same}
        prediction = {**summary["prediction"], "auc": area(value)}
        return verdict_sentence({**summary, "prediction": prediction, "windows_vlm": windows})

    assert "The backbone's recall timetable, fitted to no answer from an image, tells lost" in told(
        0.9, same=True
    )
    assert "Its own text's recall timetable" in told(0.9, same=False)
    assert "has it the wrong way round: it tells lost items" in told(0.2, same=True)
    assert "AUC" not in told(0.5, same=True)

    shares = dict.fromkeys(("early", "between", "late", "never", "unknown"), area(0.0))
    came = {**summary["lateness"], **shares, "late": area(0.6), "unknown": area(0.4)}
    said = verdict_sentence({**summary, "lateness": came})
    assert "and never in 0 % [-10, 10] of 60; it cannot be told of 40 % [30, 50] read in a" in (
        said.replace("−", "-")
    )

    part = {"value": 0.5, "low": 0.4, "high": 0.6}
    shown = {"first": "a", "second": "b", "p": 0, "p_holm": 0, "smallest": 0.1, "shown": True}
    contrasts = {
        "transplant": {**shown, "difference": {**part, "n": 40}},
        "place": {**shown, "difference": {**part, "n": 55}},
        "span": {**shown, "difference": {**part, "n": 90}, "shown": False},
    }
    assert "On 40 to 55 lost items it is shown" in verdict_sentence(
        {**summary, "contrasts": contrasts}
    )


def test_what_attribution_is_worth_is_said(
    tree: xr.DataTree, summary: dict, tmp_path: Path
) -> None:
    assert set(summary["attribution_agreement"]) == {"text", "image"}
    why = "this server lets no gradients through"
    refused = tree["attribution_text"].to_dataset().copy(deep=True)
    for name in ("effect", "score", "agreement", "agreement_low", "agreement_high"):
        refused[name] = xr.full_like(refused[name], np.nan)
    refused.attrs.update(method="", method_name="none", refused=why)
    poor = tree["attribution_image"].to_dataset().copy(deep=True)
    poor["agreement_low"].loc[{"measure": "attn_out"}] = -0.25
    poor["agreement_low"].loc[{"measure": "mlp_out"}] = 0.7
    poor["agreement_low"].loc[{"measure": "resid_post"}] = 0.7
    changed_tree = changed(tree, attribution_text=refused, attribution_image=poor)
    text = text_of(changed_tree, tmp_path)
    assert f"There is no map by attribution (Backbone, text), only the exact one: {why}" in text
    assert f"Not available: {why}" in text
    value = float(poor["agreement"].sel(measure="attn_out"))
    said = f"does not clearly agree with exact patching (correlation: attention {value:.2f} [−0.25"
    assert said in text
    assert "Do not trust it there; the exact map stands." in text
    assert "By attribution: VLM, image: integrated gradients" in text
    found = as_json(summarise(changed_tree, pair="micro-naming", seed=0))
    assert found["attribution_agreement"]["text"]["all"]["value"] is None
    assert found["not_available"]["attribution_agreement/text/all"] == why


def text_of(tree: xr.DataTree, folder: Path) -> str:
    """Summarise a tree, write its report and give the words on the page."""
    found = as_json(summarise(tree, pair="micro-naming", seed=0))
    found["verdict"] = verdict_sentence(found)
    json.dumps(found, allow_nan=False)
    path = write_report(folder, tree, found, find_pair("micro-naming").benchmark())
    print_summary(found, Console(file=io.StringIO(), width=80))
    return "".join(Page(path.read_text(encoding="utf-8")).text)


def test_examples_show_each_class(tree: xr.DataTree) -> None:
    shown = examples(tree, find_pair("micro-naming").benchmark())
    assert 1 < len(shown) <= 8
    assert len({one.item for one in shown}) == len(shown)
    assert len({one.verdict for one in shown}) == len(
        set(tree["diagnosis"].to_dataset()["verdict"].values)
    )


def test_console_fits_80_columns_and_ends_with_the_verdict(summary: dict) -> None:
    out = io.StringIO()
    print_summary(summary, Console(file=out, width=200))
    lines = out.getvalue().rstrip().splitlines()
    assert max(map(len, lines)) <= 80
    assert " ".join(out.getvalue().split()).endswith(" ".join(summary["verdict"].split()))


def copied(run: Path, folder: Path, *, summary: dict, **settings: object) -> Path:
    """A run's folder again, with another summary, and other settings."""
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(summary))
    mine = {**json.loads((run / "settings.json").read_text()), **settings}
    (folder / "settings.json").write_text(json.dumps(mine))
    return folder


def by_cross_attention(summary: dict) -> dict:
    """A summary as a model gives it whose image has no tokens, and that loses nothing."""
    none = {"value": None, "low": None, "high": None, "n": 0}
    gone = dict.fromkeys((f"recovered/{arm}" for arm in WITHOUT_IMAGE_TOKENS), "no image tokens")
    empty = {
        "recovered": dict.fromkeys(summary["recovered"], none),
        "lateness": {**summary["lateness"], "late": none},
        "prediction": {**summary["prediction"], "expected_loss": none},
    }
    other = {"pair": "crossing", "architecture": "cross-attention", "not_available": gone}
    return {**summary, **empty, **other, "verdict": "crossing: a sentence of its own."}


def compared(folders: list[Path], out: Path) -> tuple[Page, list[dict], str]:
    """The page, the runs in compare.json and the console's words, each checked."""
    page = Page(write_comparison(folders, out).read_text(encoding="utf-8"))
    assert all(one.startswith(("data:image/", "#")) for one in page.loaded)
    assert {one[1:] for one in page.loaded if one.startswith("#")} <= set(page.ids)
    assert all(image["alt"] for image in page.images)
    assert "script" not in page.tags
    runs = json.loads((out / "compare.json").read_text())["runs"]
    for key, said in page.keyed:
        i, _, rest = key.partition("/")
        if said == "not available":
            assert rest in runs[int(i)]["not_available"]
        elif at(runs[int(i)], rest) is None:
            assert said in (NOT_MEASURED, "0"), key
        else:
            said = said.replace("\u00a0", " ").replace("−", "-").split(" (n ")[0]
            assert said == expected(runs[int(i)], rest), key
    text = io.StringIO()
    print_comparison(runs, Console(file=text, width=80))
    assert max(map(len, text.getvalue().splitlines())) <= 80
    return page, runs, text.getvalue()


def test_comparison_by_class(run: Path, summary: dict, tmp_path: Path) -> None:
    assert summary["architecture"] == "llava"
    crossing = copied(run, tmp_path / "crossing", summary=by_cross_attention(summary), limit=12)
    page, runs, text = compared([crossing, run], tmp_path / "out")
    assert [one["pair"] for one in runs] == ["crossing", "micro-naming"]
    words = "".join(page.text)
    lead = "2 of 2 pairs clearly lose recall from the image (LLaVA-style 1 of 1, cross-attention"
    assert lead in words
    assert "late is not claimed: 1 pair, and fewer than 5 cannot say" in words
    assert "loss is not claimed: 1 pair, and fewer than 5 cannot say" in words
    assert "The runs differ in limit (12: crossing; all: micro-naming)" in words
    assert "1/recovered/transplant_all_image" in dict(page.keyed)
    assert "0/recovered/transplant_question" in dict(page.keyed)
    assert words.index("1  micro-naming") < words.index("2  crossing")
    assert lead in " ".join(text.split())
    for name in ("gap", "against", "lateness", "recovery"):
        for kind in ("png", "svg"):
            assert (tmp_path / "out" / "figures" / f"compare-{name}.{kind}").exists()


def test_comparison_of_one_run_and_of_many(run: Path, summary: dict, tmp_path: Path) -> None:
    compared([run], tmp_path / "one")
    evil = "<script>alert(1)</script> $a_b$ " + "a-very-long-name " * 6
    named = {**summary, "pair": evil, "verdict": evil, "architecture": "invented since"}
    none = {"value": None, "low": None, "high": None, "n": 0}
    folders = [copied(run, tmp_path / "0", summary={**named, "gap_points": none})]
    for i in range(1, 16):
        late = {"value": i / 20, "low": i / 20 - 0.05, "high": i / 20 + 0.05, "n": 24}
        measured = {"lateness": {"late": late}, "prediction": {"expected_loss": late}}
        gap = {"value": 20 + 3 * i, "low": 10 + 3 * i, "high": 30 + 3 * i, "n": 60}
        other = {**named, **measured, "gap_points": gap, "pair": f"{evil}{i // 2}"}
        folders.append(copied(run, tmp_path / f"{i}", summary=other, seed=i // 4))
    page, _, text = compared(folders, tmp_path / "many")
    assert evil in "".join(page.text)
    assert "(2)" in text  # two runs of one pair with the same settings
    assert "Over 8 pairs the gap grows with the share of entities late" in "".join(page.text)


def test_runs_of_one_pair_are_told_apart_by_their_settings() -> None:
    runs = [{"pair": "a", "settings": {"seed": seed, "limit": None}} for seed in (0, 1, 1)]
    assert labels([*runs, {"pair": "b"}]) == ["a, seed 0", "a, seed 1 (1)", "a, seed 1 (2)", "b"]


@pytest.mark.parametrize("key", PUBLISHED)
def test_a_class_is_known_of_a_folder_as_of_a_registered_pair(key: str) -> None:
    pair = PUBLISHED[key]
    tokens = pair.architecture != "cross-attention"
    for vlm, backbone in ((pair.vlm, pair.backbone), ("my/vlm", "my/llm")):
        kind = vlm_config(pair).model_type
        found = architecture_of(vlm, backbone, model_type=kind, image_tokens=tokens)
        told = vlm == pair.vlm or kind != "internvl"  # which was made both ways
        assert found == (pair.architecture if told else "other")


def test_a_class_that_a_type_does_not_tell() -> None:
    assert architecture_of("a", "b", model_type="internvl", image_tokens=True) == "other"
    assert architecture_of("a", "a", model_type=None, image_tokens=True) == "native"
    assert architecture_of("a", "b", model_type=None, image_tokens=False) == "cross-attention"


def test_comparison_refuses_what_it_cannot_compare(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="one or more"):
        write_comparison([], tmp_path)
    with pytest.raises(ResultsError, match="twohop study unfinished"):
        write_comparison([run, tmp_path / "unfinished"], tmp_path)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "summary.json").write_text("{")
    with pytest.raises(ResultsError, match="cannot be read"):
        read_summary(broken)


def test_settings_are_shown_with_the_command(tree: xr.DataTree, summary: dict) -> None:
    rows = dict(settings_rows(tree))
    assert rows["seed"] == "0"
    assert "torch" in rows["versions"]
    assert "float32" in rows["vlm"]
    assert "float32" in rows["backbone"]
    assert command(tree, summary) == "twohop study micro-naming --seed 0 --preset quick"
    assert not command_note(tree, summary)
    model = {"id": "toy", "dtype": "torch.float32", "revision": None}
    assert flat({"vlm": model, "limit": None}) == {"vlm": "toy (torch.float32)", "limit": "all"}


@pytest.mark.parametrize(
    ("pair", "vlm", "expected"),
    [
        ("vlm-items", "/m/my vlm", "--vlm '/m/my vlm' --backbone /m/llm --data FILE"),
        ("llava-1.5-7b-items", "llava-hf/llava-1.5-7b-hf", "llava-1.5-7b --data FILE"),
        ("llava-1.5-7b-flags", "llava-hf/llava-1.5-7b-hf", "llava-1.5-7b --data flags"),
    ],
)
def test_the_command_of_a_pair_with_items_of_a_file(
    pair: str, vlm: str, expected: str, tree: xr.DataTree
) -> None:
    settings = {"pair": pair, "vlm": vlm, "backbone": "/m/llm", "seed": 3}
    items = pair.rpartition("-")[2]
    stage = tree["recall"].to_dataset()
    stage.attrs["provenance"] = {"settings": {**settings, "benchmark": f"{items} 0123", "limit": 9}}
    run = xr.DataTree.from_dict({"recall": stage})
    summary = {"pair": pair}
    assert command(run, summary) == f"twohop study {expected} --seed 3 --limit 9"
    of_a_file = "the table of items called items." in command_note(run, summary)
    assert of_a_file == (items == "items")


def test_numbers_are_written_plainly() -> None:
    number = {"value": -0.004, "low": -0.2, "high": 0.17, "n": 16}
    assert written(number).replace("\u00a0", " ") == "0 % [−20, 17]"
    assert written({"value": None, "low": None, "high": None, "n": 0}) == NOT_MEASURED
    assert written(None) == NOT_MEASURED


def test_labels_do_not_overlap() -> None:
    placed = spread([0.5, 0.5, 0.52, 0.0], gap=0.1)
    assert np.diff(sorted(placed)).min() >= 0.1 - 1e-9
    assert placed[3] == 0.0


def test_tables_name_their_keys(summary: dict) -> None:
    for table in all_tables(summary).values():
        assert all(len(row) == len(table.columns) for row in table.rows)
