"""The published VLM-backbone pairs: what they are, how large, and where they could run."""

from twohop.published.registry import PUBLISHED, Count, PublishedPair

__all__ = ["PUBLISHED", "Count", "PublishedPair"]
