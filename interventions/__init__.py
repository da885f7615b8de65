"""Read and write the activations of vision-language models and their language backbones."""

from interventions.loading import load
from interventions.model import Model
from interventions.positions import Positions
from interventions.prompts import Prompt

__all__ = ["Model", "Positions", "Prompt", "load"]
