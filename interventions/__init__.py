"""Read and write the activations of vision-language models and their language backbones."""

import importlib
from typing import TYPE_CHECKING, Any

from interventions.alignment import ModelPair, pair
from interventions.answers import Completion, complete
from interventions.collecting.batches import RoleSite
from interventions.edits import ablated, embedding_noise, frozen, steering
from interventions.knockout import Knockout, knockout
from interventions.lens import lens, patchscope
from interventions.loading import load
from interventions.model import Model
from interventions.patches import Patch
from interventions.patching import Run, read, run
from interventions.pictures import as_picture
from interventions.positions import Positions
from interventions.prompts import Prompt
from interventions.sites import Site
from interventions.sources import FromLayers, FromModel, Noise
from interventions.sweeping.replay import replay
from interventions.transplant import transplant

if TYPE_CHECKING:
    from interventions.attribution.agreement import verify
    from interventions.attribution.attribute import attribute
    from interventions.collecting.collect import collect
    from interventions.collecting.collection import open_collection
    from interventions.heatmaps import heatmap
    from interventions.probing.selectivity import probe
    from interventions.sweeping.sweeps import sweep

__all__ = [
    "Completion",
    "FromLayers",
    "FromModel",
    "Knockout",
    "Model",
    "ModelPair",
    "Noise",
    "Patch",
    "Positions",
    "Prompt",
    "RoleSite",
    "Run",
    "Site",
    "ablated",
    "as_picture",
    "attribute",
    "collect",
    "complete",
    "embedding_noise",
    "frozen",
    "heatmap",
    "knockout",
    "lens",
    "load",
    "open_collection",
    "pair",
    "patchscope",
    "probe",
    "read",
    "replay",
    "run",
    "steering",
    "sweep",
    "transplant",
    "verify",
]

# These give Datasets: xarray and pandas are imported when one is first used.
LATER = {
    "attribute": "attribution.attribute",
    "collect": "collecting.collect",
    "heatmap": "heatmaps",
    "open_collection": "collecting.collection",
    "probe": "probing.selectivity",
    "sweep": "sweeping.sweeps",
    "verify": "attribution.agreement",
}


def __getattr__(name: str) -> Any:
    if name not in LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"interventions.{LATER[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
