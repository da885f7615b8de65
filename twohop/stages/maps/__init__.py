"""Where recall happens: exact maps, attributed ones, and how far they agree."""
