"""What numbers are in is said by the variable that holds them, as CF has it, and by the map."""

from pathlib import Path
from typing import Any

import pytest
import xarray as xr
from floors import NAMES

import interventions as iv

MEASURED = {"logprob": "nats", "logit_diff": "nats", "kl": "nats", "changed": "share"}


@pytest.fixture(scope="module")
def swapped(llm: iv.Model, named: iv.Prompt) -> tuple[iv.Model, iv.Prompt, iv.Prompt]:
    names = [NAMES[1], NAMES[0], NAMES[3], NAMES[2]]
    texts = [f"Question : What is the capital of {name} ? Answer :" for name in names]
    return llm, named, llm.prompt(texts, spans={"entity": names})


@pytest.fixture(scope="module")
def swept(swapped: Any) -> xr.Dataset:
    metrics: Any = [*MEASURED]
    return iv.sweep(
        *swapped, answers="Marlow", foils="Brenn", metrics=metrics, layers=[0, 3], roles=["last"]
    )


@pytest.fixture(scope="module")
def attributed(swapped: Any) -> xr.Dataset:
    arguments: Any = {"answers": "Marlow", "foils": "Brenn", "layers": [0, 3], "verify": 2}
    return iv.attribute(*swapped, roles=["last"], components=["head_out"], **arguments)


def colours(dataset: xr.Dataset, variable: str, item: int | None) -> str:
    """What the bar of colours is called."""
    [bar] = [axes for axes in iv.heatmap(dataset, variable, item=item).axes if axes.get_label()]
    return bar.get_ylabel()


def test_every_measured_variable_of_a_sweep_says_its_units(swept: xr.Dataset) -> None:
    for metric, units in MEASURED.items():
        for name in {metric, f"clean_{metric}", f"source_{metric}"} & {*swept.data_vars}:
            assert swept[name].attrs == {"units": units}


def test_every_number_of_an_attribution_says_its_units(attributed: xr.Dataset) -> None:
    for name in ("score", "head_score", "run_metric", "source_metric"):
        assert attributed[name].attrs == {"units": "nats"}


def test_no_dataset_says_them_in_another_way(swept: xr.Dataset, attributed: xr.Dataset) -> None:
    for dataset in (swept, attributed):
        holders = [dataset.attrs, *(variable.attrs for variable in dataset.variables.values())]
        assert not any("unit" in holder for holder in holders)
        assert "units" not in dataset.attrs  # a Dataset may hold numbers of several


@pytest.mark.parametrize("item", [None, 0])
def test_a_map_says_them_of_one_item_and_of_the_mean(
    swept: xr.Dataset, attributed: xr.Dataset, item: int | None
) -> None:
    assert colours(attributed, "score", item) == "score (nats)"
    assert colours(swept, "logit_diff", item) == "change of logit_diff (nats)"
    assert colours(swept, "changed", item) == "changed (share)"


def test_a_map_of_a_file_says_them_too(attributed: xr.Dataset, tmp_path: Path) -> None:
    attributed.to_netcdf(tmp_path / "scores.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "scores.nc", engine="h5netcdf") as stored:
        assert colours(stored.load(), "score", None) == "score (nats)"
