"""The protocol: one set of numbers, checked, that every stage reads and nothing else holds."""

import ast
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import twohop
from interventions.attribution.estimates import METHODS as ENGINE_METHODS
from twohop.allowed import Documented
from twohop.ask.on_server import Progress
from twohop.cli import main, parser
from twohop.errors import ProtocolError
from twohop.protocol import DEFAULT, LEAST_RESAMPLES, METHODS, Protocol, documented
from twohop.report.protocol_options import options
from twohop.running.study import Settings, run_study, study_of
from twohop.stages.run import run_stage, run_stages
from twohop.stages.table import STAGES
from twohop.statistics import cluster_sums

FIELDS = documented()
SIZES = [one for one in FIELDS if one.flag]
MORE = st.integers(0, 10**6)
SHARES = st.floats(0, 1)
KINDS: dict[type, st.SearchStrategy[Any]] = {int: MORE, float: SHARES}


def values(one: Documented) -> st.SearchStrategy[Any]:
    """Values that a field may have, its default left out."""
    default = one.default
    if not isinstance(default, tuple):
        found = KINDS[type(default)]
    elif isinstance(default[0], str):
        found = st.lists(st.sampled_from(METHODS), min_size=1, unique=True)
    else:
        found = st.lists(KINDS[type(default[0])], min_size=1, max_size=5, unique=True)
    return found.filter(lambda value: allows(one.name, value) != default)


def allows(name: str, value: Any) -> Any:
    """What a field is with this value; its default, if it is refused."""
    try:
        return getattr(Protocol(**{name: value}), name)
    except ProtocolError:
        return getattr(DEFAULT, name)


def changes() -> st.SearchStrategy[tuple[str, Any]]:
    return st.sampled_from(FIELDS).flatmap(lambda one: st.tuples(st.just(one.name), values(one)))


@settings(max_examples=200, deadline=None)
@given(changes())
def test_a_protocol_is_the_same_after_it_was_stored(change: tuple[str, Any]) -> None:
    name, value = change
    made = Protocol(**{name: value})
    assert Protocol.of({"protocol": made.as_settings()}) == made
    assert made != DEFAULT
    assert [*made.changed()] == [name]


def nonsense(one: Documented) -> st.SearchStrategy[Any]:
    kinds = [st.sampled_from([None, "24", "", math.nan, math.inf, -math.inf, True, (), {}, b"1"])]
    if isinstance(one.default, int):
        kinds += [st.integers(max_value=-1), st.floats(0.1, 0.9), st.sampled_from([24.0, [24]])]
    elif isinstance(one.default, float):
        kinds += [st.floats(max_value=-1.001), st.sampled_from([[0.5], 0.5j])]
    else:
        kinds += [st.integers(), st.just([one.default[0]] * 2), st.just([-1.5]), st.just([None])]
    return st.one_of(kinds)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(FIELDS).flatmap(lambda one: st.tuples(st.just(one), nonsense(one))))
def test_nonsense_is_refused_and_named(change: tuple[Documented, Any]) -> None:
    one, value = change
    with pytest.raises(ProtocolError, match=rf"^protocol\.{one.name}: got .*; expected "):
        Protocol(**{one.name: value})


def test_numbers_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ProtocolError, match="test_view: got 1, which is one of"):
        Protocol(test_view=1)
    with pytest.raises(ProtocolError, match="later_layers"):
        Protocol(later_layers=(0.1,), earlier_layers=(0.1, 0.2))
    with pytest.raises(ProtocolError, match="no protocol"):
        Protocol.of({"seed": 0})
    with pytest.raises(ProtocolError, match="lost_itmes, which"):
        Protocol.of({"protocol": {"lost_itmes": 3}})
    study = replace(
        study_of("micro-late", Settings(limit=2)),
        protocol=Protocol(later_layers=(0.05,), earlier_layers=(0.01,)),
    )
    with pytest.raises(ProtocolError, match="of 8 layers"):
        run_stages(["recovery"], study)


def test_numbers_of_numpy_are_plain_ones() -> None:
    given_numbers: dict[str, Any] = {"lost_items": np.int64(7), "fit_views": np.array([2])}
    made = Protocol(**given_numbers, window_keeps=np.float64(0.5))
    assert made == Protocol(lost_items=7, window_keeps=0.5, fit_views=(2,))
    assert type(made.lost_items) is int
    assert {type(one) for one in made.fit_views} == {int}


def test_every_number_says_what_it_is() -> None:
    assert {*METHODS} == {*ENGINE_METHODS} - {"ig-activations"}
    for one in FIELDS:
        assert one.says
        assert one.allowed.read(one.default) == one.default
        assert one.unit or not isinstance(one.default, int) or one.name == "test_view"


# What the stages read

SMALL: dict[str, Any] = {
    **{"lost_items": 3, "kept_items": 2, "random_seeds": 3},
    **{"back_items": 2, "back_parts": 1, "back_tokens": 1, "span_places": 1},
    **{"window_items": 4, "map_items": 2, "map_windows": 3, "lens_entities": 2, "resamples": 50},
    **{"agreement_resamples": 40, "image_places": 2, "question_places": 3, "top_cells": 4},
    **{"later_layers": (0.5,), "earlier_layers": (0.0,), "fit_views": (3,), "test_view": 2},
    **{"attribution_methods": ("relp",), "answer_folds": 3, "spare_tokens": 0},
    **{"picture_entities": 2, "picture_maps": 1, "picture_regions": 2, "picture_windows": 3},
}


@pytest.fixture(scope="module")
def small() -> dict[str, xr.Dataset]:
    asked = Settings(limit=8, protocol=Protocol(**SMALL))
    expected: list[int] = []
    ticks: list[int] = []
    told = Progress(expected.append, ticks.append)
    study = replace(study_of("micro-late", asked), progress=told)
    done: dict[str, xr.Dataset] = {}
    for stage in STAGES:
        done[stage] = run_stage(stage, study, done)
        assert sum(ticks) == sum(expected), stage
    return done


def test_every_stage_reads_the_studys_protocol(small: dict[str, xr.Dataset]) -> None:
    recovery, maps = small["recovery"], small["map_image"]
    assert recovery.sizes["tried"] == 3 < recovery.sizes["lost"]
    assert recovery.sizes["kept"] <= 2
    random = recovery["recovered"].sel(arm="span_random").values
    assert {*np.round(random * 3, 9)} <= {0.0, 1.0, 2.0, 3.0}
    assert recovery.attrs["random_seeds"] == 3
    assert recovery.sizes["searched"] == 2
    assert {*recovery["later"].values} == {4}
    assert {*recovery["earlier"].values} == {0}
    assert recovery["back_place"].values.tolist() == [
        "all image tokens",
        "question token -1",
        "last token",
    ]
    assert recovery.sizes["place"] == 2 + 3 + 1, "of the image, of the question, the last token"
    ends = recovery["chosen_span_ends"].values
    assert (ends[:, 0] == ends[:, 1]).all(), "of one place"
    assert small["windows"].sizes["item"] == 4
    groups = maps["map_group"].values.tolist()
    assert max(groups.count("right"), groups.count("lost")) == 2
    assert maps.sizes["window"] == 3
    assert small["attribution_image"].attrs["method"] == "relp"
    assert np.atleast_1d(small["resolution"].attrs["fit_views"]).tolist() == [3]
    assert small["resolution"].attrs["test_view"] == 2


def test_the_least_of_everything_is_a_study_too(tmp_path: Path) -> None:
    least: dict[str, Any] = {one.name: 1 for one in SIZES}
    least |= {one.name: LEAST_RESAMPLES for one in SIZES if one.unit == "resamples"}
    least |= {"map_windows": 1, "image_places": 1, "question_places": 1, "fit_views": (1,)}
    protocol = Protocol(**least)
    found = run_study("micro-late", out=tmp_path, settings=Settings(limit=3, protocol=protocol))
    assert found["protocol"] == protocol.as_settings()
    page = (tmp_path / "micro-late" / "report.html").read_text()
    assert "<td>1 (default: 400)</td>" in page


@settings(max_examples=30, deadline=None)
@given(st.integers(LEAST_RESAMPLES, 80))
def test_intervals_take_as_many_resamples(resamples: int) -> None:
    values = np.random.default_rng(0).integers(0, 2, 20).astype(float)
    protocol = Protocol(resamples=resamples)
    sums, counts = cluster_sums(values, [str(i) for i in range(20)], seed=3, protocol=protocol)
    assert len(sums) == len(counts) == resamples


# Nowhere else

PACKAGE = Path(twohop.__file__).parent
MODELS_OF_OURS = ("flags", "micro", "published")  # how they are made, not how they are measured
NOT_OF_THE_PROTOCOL = {
    "how fast: rows and bytes at a time": (
        *("ANSWER_ROWS", "GROUP_ROWS", "ROWS", "RAGGED_ROWS"),
        *("BATCH_TOKENS", "BATCH", "BLOCK", "REQUEST_BYTES", "CHUNK", "SHARD_ROWS"),
        *("AHEAD", "ON_A_CPU", "CARD_SPARE", "POSTED_BYTES", "MB", "CONTEXT", "MOST_ON_A_CARD"),
        *("ROUNDING",),
    ),
    "when a stage is given up": ("MOST_LOST", "LEAVING", "ANSWERING"),
    "blocks among which timetable_layers are never thinned": ("DENSE",),
    "which comes first, of panels and of stages": ("ALL_ARMS", "TABLE"),
    "what the word interval means, in every table": ("TAIL",),
    "how tests by permutation are made, and of how few pairs": (
        *("PERMUTATIONS", "EXACT_UP_TO", "DRAWS", "LEAST_PAIRS", "LEAST_SHOWN"),
    ),
    "how wide a table of relations is": ("MOST_RELATIONS",),
    "what is no study, or no picture": ("LEAST_ENTITIES", "LEAST_SIDE", "LONGEST_TO_SHORTEST"),
    "of how few items a run is not worth its hours": ("LEAST_KNOWN", "OF_FEW"),
    "which differences are rounding": ("LAST_BITS",),
    "what a check of data points out and shows": ("ALIKE", "SHOWN"),
    "what a plan counts by, which measures nothing": (
        *("GB", "MB", "MINUTE", "HOUR", "DAY", "HALF", "WHY", "CARDS", "COUNTS", "NAMED", "NAME"),
        *("ANSWER", "BEGINNINGS", "PIXELS", "TRIES", "UNEVEN", "PACKED", "PICTURES", "TILED"),
        *("FORWARD", "READINGS", "EARLY", "GRADIENT", "LOOKS"),
    ),
    "what memory has room for": ("SPARE", "SHARE", "COPIES", "READ", "HELD", "HELD_INNER"),
    "entities of a data set that are fetched, where no number is given": ("SAMPLE",),
    "names, and a number that is none": ("ARMS", "KINDS", "NEVER", "NOT_MEASURED"),
    "how many names are read, and signs flipped": ("READ_ROWS", "FLIPS"),
    "what the words alike, shown, power, chance and most mean": (
        *("LEAST_ICC", "LEVEL", "POWER", "BY_CHANCE", "MOST"),
    ),
    "rules of docs/scoring.md: how far words reach, and what numbers are called": (
        *("_REACH", "_JOINED", "_JOINED_IF_DIVIDED", "_SHORT", "_LONGEST"),
        *("SCALES", "_SCALES_BEHIND_DIGITS", "_SCALE_LETTERS"),
        *("MONTHS", "ROMAN", "_ROMAN_DIGITS", "_MARK"),
    ),
}
DRAWN = ("report/comparison_figures.py", "report/comparison_scatter.py", "report/console.py")
DRAWN += ("report/examples.py", "report/figures.py", "report/maps.py", "report/style.py")
DRAWN += ("report/timetable.py", "report/picture_lens.py", "report/picture_drawing.py")
DRAWN += ("report/picture_panels.py",)
NOT_SHARES = ("report/layers", "report/estimates", "items/pictures", "report/pairs", "pairs")
NOT_SHARES += ("ask/residence", "items/popvqa_hub")
"""Places on a page, altered pictures (which are hashed as they come out), gigabytes, an order."""
ROUNDING = 1e-8


def sources() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if name.split("/")[0] not in MODELS_OF_OURS and name not in (*DRAWN, "protocol.py"):
            yield name, ast.parse(path.read_text(encoding="utf-8"))


def numbers(node: ast.AST) -> list[float]:
    constants = (one.value for one in ast.walk(node) if isinstance(one, ast.Constant))
    return [one for one in constants if isinstance(one, int | float) and not isinstance(one, bool)]


def test_no_number_of_the_protocol_is_a_constant_of_a_module() -> None:
    known = {name for names in NOT_OF_THE_PROTOCOL.values() for name in names}
    for source, module in sources():
        for line in module.body:
            if not isinstance(line, ast.Assign | ast.AnnAssign) or line.value is None:
                continue
            targets = line.targets if isinstance(line, ast.Assign) else [line.target]
            names = {one.id for it in targets for one in ast.walk(it) if isinstance(one, ast.Name)}
            assert names <= known or not numbers(line.value), f"{source}: {names}"


def test_no_share_is_written_into_a_function_that_measures() -> None:
    for source, module in sources():
        if source.startswith(NOT_SHARES):
            continue
        # Constants of a module are known by their names, or refused, above.
        of_functions = (line for line in module.body if not isinstance(line, ast.Assign))
        for one in (one for line in of_functions for one in ast.walk(line)):
            if isinstance(one, ast.Constant) and isinstance(one.value, float):
                known = one.value in (0.0, 1.0, 0.025) or abs(one.value) < ROUNDING
                assert known, f"{source}:{one.lineno}: {one.value}"


def test_every_call_hands_the_protocol_on() -> None:
    """The default is for notebooks: within the package, no call may fall back on it."""
    takes = {
        source: {
            line.name
            for line in module.body
            if isinstance(line, ast.FunctionDef)
            and "protocol" in [argument.arg for argument in line.args.kwonlyargs]
        }
        for source, module in sources()
    }
    assert {"ends_of", "lateness", "longest_answer"} <= set().union(*takes.values())
    for source, module in sources():
        known = set(takes[source])
        for line in ast.walk(module):
            if isinstance(line, ast.ImportFrom):
                path = (line.module or "").removeprefix("twohop.").replace(".", "/") + ".py"
                known |= takes.get(path, set()) & {name.name for name in line.names}
        for call in ast.walk(module):
            if isinstance(call, ast.Call) and getattr(call.func, "id", None) in known:
                given_names = [one.arg for one in call.keywords]
                assert "protocol" in given_names or None in given_names, f"{source}:{call.lineno}"


def test_every_number_is_read_somewhere() -> None:
    read = {
        one.attr
        for _, module in sources()
        for one in ast.walk(module)
        if isinstance(one, ast.Attribute)
    }
    assert {one.name for one in FIELDS} <= read


# On the command line


def test_sample_sizes_are_options(capsys: pytest.CaptureFixture[str]) -> None:
    given_sizes: dict[str, Any] = {one.name: 100 + i for i, one in enumerate(SIZES)}
    command = ["study", "micro-late"]
    for one in SIZES:
        command += [one.flag, str(given_sizes[one.name])]
    read = parser().parse_args(command)
    assert {one.name: getattr(read, one.name) for one in SIZES} == given_sizes
    assert options(Protocol(**given_sizes)) == command[2:]
    with pytest.raises(SystemExit):
        main(["study", "--help"])
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    for one in SIZES:
        assert f"{one.flag} N" in text
        both = one.quick == one.default
        assert (f"({one.default})" if both else f"full: {one.default}, quick: {one.quick}") in text
        assert one.says.split(",")[0] in text


@pytest.mark.parametrize("one", SIZES, ids=lambda one: one.name)
@pytest.mark.parametrize("value", ["-1", "0", "2.5", "many", "", "nan"])
def test_nonsense_on_the_command_line_is_a_message(
    one: Documented, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["study", "micro-late", one.flag, value])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert f"argument {one.flag}: " in said
    assert "expected a whole number" in said
    assert "Traceback" not in said


def test_the_command_line_needs_no_torch_to_be_read() -> None:
    code = "import sys; import twohop.cli; twohop.cli.parser(); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_study_on_the_command_line_is_bound_to_its_sizes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["study", "micro-late", "--limit", "2", "--stage", "windows", "--out", str(tmp_path)]
    assert main([*command, "--window-items", "2"]) == 0
    capsys.readouterr()
    assert main([*command, "--window-items", "3", "--kept", "5"]) == 2
    said = capsys.readouterr().err
    assert "protocol.window_items: stored 2, asked 3" in said
    assert "protocol.kept_items: stored 200, asked 5" in said
    assert main([*command, "--window-items", "2"]) == 0
