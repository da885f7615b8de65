"""Errors of the protocol; apart from it, so that the command line can be read without torch."""

from interventions.errors import InterventionsError


class ProtocolError(InterventionsError):
    """A number that a study cannot be run with."""
