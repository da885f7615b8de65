"""Many patches of the same rows, at the cost of what each of them changes."""
