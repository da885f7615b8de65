"""Items, and where they come from."""
