"""Read and write the activations of vision-language models and their language backbones."""

from interventions.answers import Completion, complete
from interventions.loading import load
from interventions.model import Model
from interventions.patching import Patch, Run, Site, read, run
from interventions.positions import Positions
from interventions.prompts import Prompt

__all__ = [
    "Completion",
    "Model",
    "Patch",
    "Positions",
    "Prompt",
    "Run",
    "Site",
    "complete",
    "load",
    "read",
    "run",
]
