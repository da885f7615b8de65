"""Every public result comes back from disk as it was, and says how it was made in one form."""

import copy
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from hostile import CALLS, rows_to_probe
from hypothesis import given, settings
from hypothesis import strategies as st

import interventions as iv
from interventions.errors import ResultsError
from interventions.results import read_provenance, with_provenance
from interventions.storable import storable


@pytest.fixture(autouse=True)
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("here"))
    yield
    os.chdir(before)


def back(dataset: xr.Dataset) -> xr.Dataset:
    """A Dataset as it comes back from a file."""
    path = Path("result.nc")
    dataset.to_netcdf(path, engine="h5netcdf")
    with xr.open_dataset(path, engine="h5netcdf") as stored:
        return stored.load()


def result(call: str, **changed: Any) -> xr.Dataset:
    return CALLS[call][0](**changed)


def collected(**changed: Any) -> xr.Dataset:
    result("collect", **changed)
    return iv.open_collection("collected")


def activations() -> xr.Dataset:
    dims = ("layer", "row", "d_model")
    coords = {"kind": ("row", ["a", "b"] * 4)}
    arrays = {name: (dims, rows_to_probe()) for name in ("one", "two")}
    return with_provenance(
        xr.Dataset(arrays, coords=coords), {"model": {"id": "m"}}, settings={"rows": 8}
    )


RESULTS: dict[str, Callable[[], xr.Dataset]] = {
    "sweep": lambda: result("sweep", metrics=["logprob", "kl", "rank"]),
    "sweep over tokens": lambda: result("sweep", source=0.0, roles=None),
    "sweep over heads": lambda: result("sweep", components="head_out", heads=[0, 2]),
    "sweep with noise": lambda: result("sweep", source=iv.Noise(2.0, 5)),
    "sweep of other layers": lambda: result("sweep", source=iv.FromLayers([0, 1])),
    "sweep in a folder": lambda: result("sweep", out="swept"),
    "attribute": lambda: result("attribute"),
    "attribute over tokens": lambda: result("attribute", prompt=0.0, roles=None),
    "attribute with verify": lambda: result("attribute", method="ig", prompt=0.0, verify=2),
    "verify": lambda: result("verify"),
    "collect": lambda: result("collect", coordinate=["a\0b", "é"]),
    "collect in float16": lambda: result("collect", dtype="float16", mean=True),
    "open_collection": lambda: collected(dtype="bfloat16", coordinate=[1.5, float("nan")]),
    "collect with a row set aside": lambda: result("collect", rows=["the", None, "of"]),
    "probe": lambda: result("probe"),
    "probe of texts": lambda: result("probe", labels=["a", "a\0"] * 4, method="ridge"),
    "probe of bools": lambda: result("probe", labels=[True, False] * 4, n_controls=0),
    "probe of times": lambda: result("probe", labels=np.array([0, 1] * 4, dtype="M8[D]")),
    "probe of a Dataset": lambda: result("probe", activations=activations(), labels="kind"),
}


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_comes_back_as_it_was(name: str) -> None:
    made = RESULTS[name]()
    stored = back(made)
    xr.testing.assert_identical(stored, made)
    for one in (stored, made):
        about = read_provenance(one)
        assert {"versions", "threads", "settings", "seed"} <= about.keys()
        assert about["versions"]["torch"] == torch.__version__
        assert all(not isinstance(value, dict) for value in one.attrs.values())
    if "probe" not in name:
        assert read_provenance(stored)["model"]["model_type"] == "llama"
    assert pickle.loads(pickle.dumps(made)).identical(made)
    assert copy.deepcopy(made).identical(made)
    again = {"sweep": "item", "attribute": "item", "verify": "checked"}.get(
        name.split()[0], "layer"
    )
    joined = xr.concat(
        [made, made], again, data_vars="minimal", coords="minimal", compat="override"
    )
    assert joined.attrs == made.attrs
    xr.testing.assert_identical(back(joined), joined)


def test_what_was_asked_and_drawn_is_in_the_provenance() -> None:
    noisy = read_provenance(result("sweep", source=iv.Noise(2.0, 5)))
    assert (noisy["seed"], noisy["settings"]["window"]) == (5, 1)
    assert read_provenance(result("sweep"))["seed"] is None
    checked = read_provenance(result("attribute", verify=1, seed=3))
    assert (checked["seed"], checked["settings"]["verify"]) == (3, 1)
    assert checked["settings"]["answers"] == "the"
    again = read_provenance(result("verify", seed=4, k=2))
    assert (again["seed"], again["settings"]["verify"]) == (4, 2)
    probed = read_provenance(result("probe", activations=activations(), labels="kind", seed=7))
    assert (probed["seed"], probed["model"]["id"]) == (7, "m")
    assert probed["settings"]["activations"] == {"rows": 8}
    assert probed["settings"]["tol"] == 10.0
    assert read_provenance(result("collect"))["settings"]["rows"] == 2


def test_verify_takes_what_came_back_from_disk() -> None:
    scores = result("attribute")
    ours = result("verify", scores=back(scores))
    xr.testing.assert_identical(ours, result("verify", scores=scores))


@pytest.mark.parametrize(("k", "seed"), [(1, 0), (2, 1), (5, 0)])
def test_scores_that_were_verified_are_verified_anew(k: int, seed: int) -> None:
    plain, checked = result("attribute", verify=False), result("attribute", verify=2)
    expected = result("verify", scores=plain, k=k, seed=seed)
    again = result("verify", scores=checked, k=k, seed=seed)
    xr.testing.assert_equal(again, expected)
    assert again.attrs["verified"] == expected.attrs["verified"]
    assert read_provenance(again) == read_provenance(expected)


def test_what_has_no_provenance() -> None:
    assert read_provenance(xr.Dataset()) == {}
    assert read_provenance(xr.DataTree()) == {}
    with pytest.raises(ResultsError, match="cannot be read"):
        read_provenance(xr.Dataset(attrs={"provenance": "{"}))
    with pytest.raises(ResultsError, match="Expected a Dataset or DataArray or DataTree"):
        read_provenance({})  # pyright: ignore[reportArgumentType]


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    TEXT,
    st.binary(max_size=4),
    st.integers(-9, 9).map(np.int16),
    st.booleans().map(np.bool_),
    st.just(Path("a/b")),
    st.dates(),
)
ATTRIBUTES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(TEXT, inner, max_size=3),
    ),
    max_leaves=5,
)
COLUMNS = st.one_of(
    st.lists(SCALARS, max_size=4),
    st.lists(st.one_of(TEXT, st.none()), max_size=4),
    st.lists(st.one_of(st.integers(), st.none()), max_size=4),
)


def column(values: list[Any]) -> tuple[str, np.ndarray]:
    made = np.empty(len(values), dtype=object)
    made[:] = values
    return "there/row", made


@given(
    st.dictionaries(TEXT, ATTRIBUTES, max_size=3),
    st.dictionaries(st.sampled_from(["units", "k", "_FillValue", "coordinates"]), ATTRIBUTES),
    TEXT,
    COLUMNS,
)
@settings(max_examples=100, deadline=None)
def test_whatever_is_stored_comes_back_equal(
    attrs: dict[str, Any], more: dict[str, Any], name: str, values: list[Any]
) -> None:
    dims, array = column(values)
    given = xr.Dataset({name: ((dims,), array)}, {f"{name} label": ((dims,), array)}, attrs)
    given[name].attrs = more
    made = storable(given)
    xr.testing.assert_identical(storable(made), made)
    xr.testing.assert_identical(back(made), made)
    assert len(made.attrs) == len(attrs)


def test_names_that_netcdf_does_not_have() -> None:
    index = pd.MultiIndex.from_product([["a", "b"], [0, 1]], names=("kind", "number"))
    given = xr.Dataset(
        {"a/b": ("x", np.arange(4)), 3: ("x", np.arange(4.0)), "": ("x", [True] * 4)},
        coords=xr.Coordinates.from_pandas_multiindex(index, "x"),
    )
    made = storable(given)
    xr.testing.assert_identical(back(made), made)
    assert made["a∕b"].values.tolist() == [0, 1, 2, 3]
    assert made["3"].values.tolist() == [0, 1, 2, 3]
    assert made["kind"].values.tolist() == ["a", "a", "b", "b"]
    spaced = storable(xr.Dataset(coords={"my label": ("x", [1, 2])}))
    xr.testing.assert_identical(back(spaced), spaced)
    assert spaced["my_label"].values.tolist() == [1, 2]
    two = storable(xr.Dataset({"a/b": ("x", [1]), "a∕b": ("x", [2])}))
    assert sorted(int(one.values[0]) for one in two.data_vars.values()) == [1, 2]


def test_attributes_keep_what_they_say() -> None:
    attrs = {"a": True, "b": None, "c": [1, 2], "d": {"k": [None, 1.5]}, "e": ("x", "y"), "f": [3]}
    found = back(storable(xr.Dataset(attrs=attrs))).attrs
    assert (found["a"], found["b"], found["d"], found["f"]) == (1, "null", '{"k": [null, 1.5]}', 3)
    assert (list(found["c"]), list(found["e"])) == ([1, 2], ["x", "y"])
