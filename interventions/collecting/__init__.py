"""Activations of many prompts, collected on disk and read back."""
