"""What stands in the library is called there, in an example or on a page; not in tests alone."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from import_graph import PACKAGES, ROOT

WORD = re.compile(r"[A-Za-z_]\w*")
WRITTEN = (
    "README.md",
    "docs/**/*.md",
    "examples/**/*.ipynb",
    "examples/**/*.py",
    "twohop/**/*.jinja",
)
Definition = ast.FunctionDef | ast.ClassDef


@cache
def sources(package: str) -> list[tuple[Path, ast.Module]]:
    paths = sorted((ROOT / package).rglob("*.py"))
    return [(path, ast.parse(path.read_text(encoding="utf-8"))) for path in paths]


@cache
def used() -> set[str]:
    """Every name that some line of the library takes up, and every word of examples and pages."""
    found: set[str] = set()
    for package in PACKAGES:
        for _, module in sources(package):
            for node in ast.walk(module):
                if isinstance(node, ast.Name):
                    found.add(node.id)
                elif isinstance(node, ast.Attribute):
                    found.add(node.attr)
                elif isinstance(node, ast.Constant) and str(node.value).isidentifier():
                    found.add(str(node.value))  # of what is looked up by its name
    for pattern in WRITTEN:
        for path in ROOT.glob(pattern):
            found.update(WORD.findall(path.read_text(encoding="utf-8")))
    return found


@cache
def public() -> set[str]:
    """Classes on pages of the reference: whoever uses the library may call their methods."""
    pages = (path.read_text(encoding="utf-8") for path in (ROOT / "docs/reference").glob("*.md"))
    return {name for page in pages for name in re.findall(r"^::: [\w.]+\.(\w+)$", page, re.M)}


def definitions(module: ast.Module) -> Iterator[Definition]:
    for node in module.body:
        if isinstance(node, Definition):
            yield node
        if isinstance(node, ast.ClassDef) and node.name not in public():
            yield from (method for method in node.body if isinstance(method, ast.FunctionDef))


@pytest.mark.parametrize("package", PACKAGES)
def test_what_tests_alone_call_is_in_the_tests(package: str) -> None:
    without = {
        f"{path.relative_to(ROOT)}: {node.name}"
        for path, module in sources(package)
        for node in definitions(module)
        if node.name not in used() and not node.name.startswith("__")
    }
    assert without == set()
