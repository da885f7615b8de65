"""The stages of a study, each by what it measures."""
