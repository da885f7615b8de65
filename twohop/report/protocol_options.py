"""How a protocol is named on the command line, so that a report says how it was asked for."""

from typing import Any

from twohop.protocol import Preset, Protocol, documented


def options(protocol: Protocol) -> list[str]:
    """Options of the command line for the numbers that were changed and have one.

    The preset from which fewest numbers were changed, and these.

    Examples
    --------
    >>> options(Protocol(lost_items=48)), options(Protocol.preset("quick"))
    (['--lost', '48'], ['--preset', 'quick'])
    """
    if _is_quick(protocol):
        return ["--preset", "quick", *_beside(protocol, "quick")]
    return _beside(protocol, "full")


def only_from_python(protocol: Protocol) -> dict[str, Any]:
    """The numbers that are not those of the preset in :func:`options`, and have no option.

    Examples
    --------
    >>> only_from_python(Protocol.preset("quick")), only_from_python(Protocol(top_cells=4))
    ({}, {'top_cells': 4})
    """
    start = Protocol.preset("quick" if _is_quick(protocol) else "full")
    return {
        entry.name: value
        for entry in documented()
        if not entry.flag and (value := getattr(protocol, entry.name)) != getattr(start, entry.name)
    }


def _beside(protocol: Protocol, preset: Preset) -> list[str]:
    """Options for the numbers that are not those of a preset."""
    start = Protocol.preset(preset)
    return [
        part
        for entry in documented()
        if entry.flag and getattr(protocol, entry.name) != getattr(start, entry.name)
        for part in (entry.flag, str(getattr(protocol, entry.name)))
    ]


def _is_quick(protocol: Protocol) -> bool:
    """Whether fewer options are needed beside the quick preset, itself counted in."""
    return len(_beside(protocol, "quick")) + 2 < len(_beside(protocol, "full"))
