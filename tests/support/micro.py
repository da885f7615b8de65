"""The micro pair, trained and tiny: what the engine's tests borrow from the study."""

from twohop.micro.folders import micro_folder
from twohop.micro.world import EVALUATION_START, answers, view

__all__ = ["EVALUATION_START", "answers", "micro_folder", "view"]
