"""Edges between parts of a model: their attribution, circuits of them, and exact patching."""
