"""Several processes, on one machine or on many, that share the stages of studies."""
