"""How modules import each other: ``python tests/support/import_graph.py [PACKAGE ...]``.

Prints, for each package, its modules, the arrows between them, and its circles: the strongly
connected components of more than one module; and the same of its rooms. Every import statement
counts, also one inside a function or under ``TYPE_CHECKING``. ``import a.b`` and
``from a.b import c`` are arrows to the module that holds what is named, not to the packages around
it, whose ``__init__`` only says what is public.
"""

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.console import Console

Graph = Mapping[str, set[str]]
"""Module to the modules that it imports."""

say = Console(highlight=False, soft_wrap=True).print
ROOT = Path(__file__).parents[2]
PACKAGES = ("interventions", "twohop")


def import_graph(package: str, root: Path = ROOT) -> dict[str, set[str]]:
    """Every module of a package, and which others of it each imports."""
    paths = {_module_of(path, root): path for path in sorted((root / package).rglob("*.py"))}
    graph: dict[str, set[str]] = {}
    for module, path in paths.items():
        within = module if path.name == "__init__.py" else module.rpartition(".")[0]
        named = names_in(path, within)
        found = {_holder(name, paths) for name in named}
        graph[module] = {name for name in found if name is not None} - {module}
    return graph


def rooms(graph: Graph) -> dict[str, set[str]]:
    """The same between rooms: the folders and files that lie directly in a package."""
    room = {module: ".".join(module.split(".")[:2]) for module in graph}
    between: dict[str, set[str]] = {}
    for module, imported in graph.items():
        there = {room[other] for other in imported} - {room[module]}
        between.setdefault(room[module], set()).update(there)
    return between


def _module_of(path: Path, root: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def names_in(path: Path, within: str = "") -> Iterator[str]:
    """What a file's import statements name, in full; ``within`` is the package that holds it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = within.split(".")[: len(within.split(".")) - node.level + 1]
            base = ".".join(
                [*(above if node.level else ()), *([node.module] if node.module else [])]
            )
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _holder(name: str, modules: Mapping[str, Path]) -> str | None:
    """The module of the package that a name is, or is in."""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name or None


def arrows(graph: Graph) -> int:
    """How many modules import how many others."""
    return sum(len(imported) for imported in graph.values())


def circles(graph: Graph) -> list[list[str]]:
    """Strongly connected components of more than one module, the largest first."""
    reach = {module: _reached(graph, module) for module in graph}
    found = {
        tuple(sorted(other for other in reach[module] if module in reach[other]))
        for module in graph
        if module in reach[module]
    }
    return sorted((list(circle) for circle in found), key=lambda circle: (-len(circle), circle))


def _reached(graph: Graph, start: str) -> set[str]:
    seen: set[str] = set()
    waiting = [*graph[start]]
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            waiting += graph[module]
    return seen


def main(packages: list[str]) -> None:
    """Print the graph of each package."""
    for package in packages or PACKAGES:
        graph = import_graph(package)
        for kind, of in (("modules", graph), ("rooms", rooms(graph))):
            closed = circles(of)
            say(f"{package}: {len(of)} {kind}, {arrows(of)} arrows, {len(closed)} circles")
            for circle in closed:
                say(f"  circle of {len(circle)}: {', '.join(circle)}")


if __name__ == "__main__":
    main(sys.argv[1:])
