"""A study from its settings to its folder: stages stored as they are done."""
