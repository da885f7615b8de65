"""Benchmarks: everyone on the same work in one process, numbers compared. Run by ``make bench``."""
