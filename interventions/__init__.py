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
from interventions.running.fitted_lens import FittedLens
from interventions.running.generation import generate
from interventions.running.knockout import Knockout, knockout
from interventions.running.lens import lens, patchscope
from interventions.running.patches import Patch
from interventions.running.run import Run, read, run
from interventions.running.transplant import transplant
from interventions.subspaces.dictionary import Dictionary, feature_acts
from interventions.subspaces.sae_lens import load_sae
from interventions.subspaces.subspace import Subspace
from interventions.sweeping.own_metrics import Direction
from interventions.sweeping.replay import replay
from interventions.sweeping.sources import FromLayers, FromModel, Noise

if TYPE_CHECKING:
    from interventions.attribution.agreement import verify
    from interventions.attribution.attribute import attribute
    from interventions.circuits.edges import attribute_edges, path_patch, verify_edges
    from interventions.circuits.faithful import Faithfulness, faithfulness
    from interventions.circuits.scores import Circuit, EdgeScores
    from interventions.collecting.collect import collect
    from interventions.collecting.folder import open_collection
    from interventions.directions.contrast_vectors import contrast_vectors
    from interventions.lenses.jacobian import jacobian_lens
    from interventions.lenses.tuned import tuned_lens
    from interventions.probing.probe import probe
    from interventions.subspaces.das import Alignment, das
    from interventions.sweeping.attention_map import attention_map
    from interventions.sweeping.cell_statistics import cell_statistics
    from interventions.sweeping.heatmap import heatmap
    from interventions.sweeping.knockout_curves import knockout_curves
    from interventions.sweeping.lens_map import lens_map
    from interventions.sweeping.lineplot import lineplot
    from interventions.sweeping.overlay import PictureMap, overlay
    from interventions.sweeping.sweep import sweep

__all__ = [
    "Alignment",
    "Circuit",
    "Completion",
    "Dictionary",
    "Direction",
    "EdgeScores",
    "Faithfulness",
    "FittedLens",
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
    "Subspace",
    "ablated",
    "as_picture",
    "attention_map",
    "attribute",
    "attribute_edges",
    "cell_statistics",
    "collect",
    "complete",
    "contrast_vectors",
    "das",
    "embedding_noise",
    "faithfulness",
    "feature_acts",
    "frozen",
    "generate",
    "heatmap",
    "jacobian_lens",
    "knockout",
    "knockout_curves",
    "lens",
    "lens_map",
    "lineplot",
    "load",
    "load_sae",
    "open_collection",
    "overlay",
    "pair",
    "patchscope",
    "path_patch",
    "probe",
    "read",
    "replay",
    "run",
    "steering",
    "sweep",
    "transplant",
    "tuned_lens",
    "verify",
    "verify_edges",
]

# These give Datasets: xarray and pandas are imported when one is first used.
LATER = {
    "jacobian_lens": "lenses.jacobian",
    "tuned_lens": "lenses.tuned",
    "Alignment": "subspaces.das",
    "attention_map": "sweeping.attention_map",
    "attribute": "attribution.attribute",
    "cell_statistics": "sweeping.cell_statistics",
    "attribute_edges": "circuits.edges",
    "Circuit": "circuits.scores",
    "EdgeScores": "circuits.scores",
    "Faithfulness": "circuits.faithful",
    "faithfulness": "circuits.faithful",
    "path_patch": "circuits.edges",
    "verify_edges": "circuits.edges",
    "das": "subspaces.das",
    "collect": "collecting.collect",
    "contrast_vectors": "directions.contrast_vectors",
    "PictureMap": "sweeping.overlay",
    "heatmap": "sweeping.heatmap",
    "knockout_curves": "sweeping.knockout_curves",
    "lineplot": "sweeping.lineplot",
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
