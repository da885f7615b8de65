"""Linear probes of every layer, with control tasks."""
