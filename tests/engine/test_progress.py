"""A bar that comes late, and only where there is something to draw on."""

import io
from typing import Any

import pytest
from rich.console import Console

from interventions import progress
from interventions.progress import LateBar


def drawn(monkeypatch: pytest.MonkeyPatch, **console: Any) -> str:
    """What a bar leaves on a console, shown at once."""
    page = io.StringIO()
    monkeypatch.setattr(progress, "SHOW_AFTER_S", -1.0)
    monkeypatch.setattr(progress, "Console", lambda stderr: Console(file=page, **console))
    with LateBar("sweep", 2.0, shown=True, transient=False) as bar:
        bar.update(1.0)
        bar.update(2.0)
    return page.getvalue()


def test_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "100%" in drawn(monkeypatch, force_terminal=True)


def test_a_notebook_without_widgets_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "find_spec", lambda _: None)
    assert drawn(monkeypatch, force_jupyter=True) == ""  # rich would warn, which is an error here
