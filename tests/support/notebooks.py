"""Notebooks are run, and what they say is beside what they kept."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[2] / "examples"


def said(notebook: Any) -> str:
    """What each cell prints, one text however often it was flushed, and what it shows as text."""
    return "\n".join(
        told
        for cell in notebook.cells
        if cell.cell_type == "code"
        for told in (
            "".join(
                output["text"]
                for output in cell.outputs
                if output.output_type == "stream" and output["name"] == "stdout"
            ),
            *(output.get("data", {}).get("text/plain", "") for output in cell.outputs),
        )
        if told
    )


def kept_and_said(
    name: str, folder: Path, *, settings: Mapping[str, str] | None = None
) -> tuple[str, str]:
    """The outputs in the file, and those of running it in a folder, with environment settings."""
    notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
    kept = said(notebook)
    client = NotebookClient(notebook, timeout=300, kernel_name="python3")
    client.execute(cwd=str(folder), env={**os.environ, **(settings or {})})
    return kept, said(notebook)
