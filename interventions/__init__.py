"""Read and write the activations of vision-language models and their language backbones."""

import importlib
from typing import TYPE_CHECKING, Any

from interventions.collecting.batches import RoleSite
from interventions.model.loading import load
from interventions.model.model import Model
from interventions.model.pairing import ModelPair, pair
from interventions.model.sites import Site
from interventions.prompt.pictures import as_picture
from interventions.prompt.positions import Positions
from interventions.prompt.prompt import Prompt
from interventions.running.complete import Completion, complete
from interventions.running.edits import ablated, embedding_noise, frozen, steering
from interventions.running.knockout import Knockout, knockout
from interventions.running.lens import lens, patchscope
from interventions.running.patches import Patch
from interventions.running.run import Run, read, run
from interventions.running.transplant import transplant
from interventions.sweeping.replay import replay
from interventions.sweeping.sources import FromLayers, FromModel, Noise

if TYPE_CHECKING:
    from interventions.attribution.agreement import verify
    from interventions.attribution.attribute import attribute
    from interventions.collecting.collect import collect
    from interventions.collecting.folder import open_collection
    from interventions.probing.probe import probe
    from interventions.sweeping.attention_map import attention_map
    from interventions.sweeping.heatmap import heatmap
    from interventions.sweeping.lens_map import lens_map
    from interventions.sweeping.overlay import PictureMap, overlay
    from interventions.sweeping.sweep import sweep

__all__ = [
    "Completion",
    "FromLayers",
    "FromModel",
    "Knockout",
    "Model",
    "ModelPair",
    "Noise",
    "Patch",
    "PictureMap",
    "Positions",
    "Prompt",
    "RoleSite",
    "Run",
    "Site",
    "ablated",
    "as_picture",
    "attention_map",
    "attribute",
    "collect",
    "complete",
    "embedding_noise",
    "frozen",
    "heatmap",
    "knockout",
    "lens",
    "lens_map",
    "load",
    "open_collection",
    "overlay",
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
    "attention_map": "sweeping.attention_map",
    "attribute": "attribution.attribute",
    "collect": "collecting.collect",
    "PictureMap": "sweeping.overlay",
    "heatmap": "sweeping.heatmap",
    "lens_map": "sweeping.lens_map",
    "open_collection": "collecting.folder",
    "overlay": "sweeping.overlay",
    "probe": "probing.probe",
    "sweep": "sweeping.sweep",
    "verify": "attribution.agreement",
}


def __getattr__(name: str) -> Any:
    if name not in LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"interventions.{LATER[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
