"""Estimates of what patches would do, and their agreement with exact patching."""
