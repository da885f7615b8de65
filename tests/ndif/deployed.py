"""The models on the server, and the same models here."""

from functools import cache

from families import Case, case_of

import interventions as iv


@cache
def remote(name: str) -> iv.Model:
    return iv.load(f"tiny/{name}", remote=True)


def pair_of(name: str) -> tuple[iv.Model, Case]:
    """The model on the server, and the same here with a prompt."""
    return remote(name), case_of(name, attn="sdpa")
