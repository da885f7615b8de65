"""Read and write the activations of vision-language models and their language backbones."""

from interventions.agreement import verify
from interventions.alignment import ModelPair, pair
from interventions.answers import Completion, complete
from interventions.attribution import attribute
from interventions.batches import RoleSite
from interventions.collecting import collect
from interventions.collection import open_collection
from interventions.edits import ablated, embedding_noise, frozen, steering
from interventions.heatmaps import heatmap
from interventions.knockout import Knockout, knockout
from interventions.lens import lens, patchscope
from interventions.loading import load
from interventions.model import Model
from interventions.patching import Patch, Run, Site, read, run
from interventions.positions import Positions
from interventions.prompts import Prompt
from interventions.replay import replay
from interventions.selectivity import probe
from interventions.sources import FromLayers, FromModel, Noise
from interventions.sweep import sweep
from interventions.transplant import transplant

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
