"""Running on an NDIF server: what is sent, how it gets there, and jobs that survive."""

from interventions.remote.package import carry

__all__ = ["Jobs", "carry"]

from interventions.remote.jobs import Jobs
