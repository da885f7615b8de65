"""Tiny models of every supported family: random, seeded, offline, with working processors."""

from tiny.building import FAMILIES, TEXT, VLMS, build, build_model, save, save_model
from tiny.pictures import picture
from tiny.processors import tiny_processor
from tiny.quirks import QUIRKS, WITHOUT_SDPA, Quirks
from tiny.shrinking import shrink
from tiny.videoless import open_processor

__all__ = [
    "FAMILIES",
    "QUIRKS",
    "TEXT",
    "VLMS",
    "WITHOUT_SDPA",
    "Quirks",
    "build",
    "build_model",
    "open_processor",
    "picture",
    "save",
    "save_model",
    "shrink",
    "tiny_processor",
]
