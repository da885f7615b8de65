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


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_patch_your_own() -> None:
    notebook = nbformat.read(EXAMPLES / "patch_your_own.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute(cwd=str(EXAMPLES))
    said = outputs(notebook)
    right = "['Marlow .', 'Port Mira .']"
    assert f"backbone, from the names: {right}" in said
    assert f"VLM, from the flags:      {right}" not in said
    assert "equal to a plain hook: True" in said
    assert "SiteError - resid_post of block 1 was touched too late" in said
    assert f"transplant       {right}" in said
    assert "another country  ['Port Mira .', 'Marlow .']" in said
    assert f"random vector    {right}" not in said
    assert "blocks 0-2: log-probability of the answer" in said
    assert f"0.0 {right}" in said
    assert "1.0 ['Port Mira ." in said
    assert "0, 0, 0, 0, 0]  North Umbra:" in said
    assert f"edit in the prefill: {right}" in said
    assert "edit on step 1:      ['Tessin" in said
