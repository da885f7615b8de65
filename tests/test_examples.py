"""The notebooks run, and say what their text says they do."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parent.parent / "examples"


def outputs(notebook: Any) -> str:
    return "\n".join(
        output.get("text", "")
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_first_patch() -> None:
    notebook = nbformat.read(EXAMPLES / "first_patch.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute(cwd=str(EXAMPLES))
    said = outputs(notebook)
    assert "backbone, from the name: ['Paris']" in said
    assert "VLM, from the flag:      ['Paris']" not in said
    assert "VLM, after the patch:    [' Paris" in said
    assert "Japan   ['Tokyo']" in said
    assert "noise   ['Paris']" not in said
