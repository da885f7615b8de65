"""Directions found by contrast, and whether they steer."""
