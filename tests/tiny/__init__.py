"""Tiny models of every supported family: random, seeded, offline, with working processors."""

from tiny.building import FAMILIES, TEXT, VLMS, build, save
from tiny.pictures import picture
from tiny.processors import tiny_processor
from tiny.shrinking import shrink

__all__ = ["FAMILIES", "TEXT", "VLMS", "build", "picture", "save", "shrink", "tiny_processor"]
