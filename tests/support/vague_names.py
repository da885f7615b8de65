"""Names that tell nothing of what they hold: ``one`` of which, ``found`` what."""

import ast
from collections.abc import Iterator

VAGUE = frozenset(
    {"one", "two", "found", "got", "thing", "things", "made", "some", "something", "stuff"}
)
VAGUE_START = "each_"


def vague_names(source: str) -> list[tuple[int, str]]:
    """Line and name of whatever Python source binds under a name that tells nothing of it.

    Targets of loops, comprehensions, assignments, ``with``, ``except``, ``import`` and ``match``,
    parameters, functions and classes. Names that are only read, attributes, keywords of calls and
    text are none of them.
    """
    return [
        (line, name)
        for line, name in sorted(_bound(ast.parse(source)))
        if name in VAGUE or name.startswith(VAGUE_START)
    ]


def _bound(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and name of everything that a module binds, anywhere in it."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store(), lineno=line):
                yield line, name
            case ast.arg(arg=name, lineno=line):
                yield line, name
            case (
                ast.FunctionDef(name=name, lineno=line)
                | ast.AsyncFunctionDef(name=name, lineno=line)
                | ast.ClassDef(name=name, lineno=line)
                | ast.ExceptHandler(name=str(name), lineno=line)
                | ast.MatchAs(name=str(name), lineno=line)
                | ast.MatchStar(name=str(name), lineno=line)
                | ast.MatchMapping(rest=str(name), lineno=line)
            ):
                yield line, name
            case ast.alias(name=imported, asname=known_as, lineno=line):
                yield line, known_as or imported.split(".")[0]
            case _:
                pass
