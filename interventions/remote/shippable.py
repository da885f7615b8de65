"""Whether a user's own function can be sent: constructs that break or change meaning on the way.

nnsight sends functions of a script or notebook one by one, as source text that is compiled anew.
What hangs on more than the text of a function is lost then, some of it without a word.
"""

import ast
import inspect
import textwrap
import types
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

from interventions.errors import RemoteError
from interventions.remote.shipping import LUGGAGE

DECORATORS = {
    "wraps": "what it wraps is dropped",
    "singledispatch": "only the first version is sent",
    "lru_cache": "its cache cannot be sent",
    "cache": "its cache cannot be sent",
    "cached_property": "its cache cannot be sent",
    "contextmanager": "generators behind a decorator cannot be sent; write a class",
    "no_grad": "write 'with torch.no_grad():' in the body",
    "inference_mode": "write 'with torch.inference_mode():' in the body",
}
"""Decorators that do not survive, by the last part of their name, and why or what to do."""


def troubles(source: str) -> Iterator[tuple[int, str]]:
    """Constructs in a function's or class's source that do not survive, with their lines.

    Parameters
    ----------
    source : str
        As :func:`inspect.getsource` gives it.
    """
    tree = ast.parse(textwrap.dedent(source))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            for decorator in node.decorator_list:
                name = _last_name(decorator.func if isinstance(decorator, ast.Call) else decorator)
                if name in DECORATORS:
                    yield decorator.lineno, f"@{ast.unparse(decorator)}: {DECORATORS[name]}"
        elif isinstance(node, ast.Nonlocal):
            yield node.lineno, "nonlocal: a function is sent without the variables around it"
        elif isinstance(node, ast.Call) and not node.args and _last_name(node.func) == "super":
            yield node.lineno, "super() without arguments: name the class and self"
        elif isinstance(node, ast.Attribute) and _is_private(node):
            yield node.lineno, f"{ast.unparse(node)}: names with two underscores are changed"


def _last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _is_private(node: ast.Attribute) -> bool:
    on_self = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
    return on_self and node.attr.startswith("__") and not node.attr.endswith("__")


def check_travels(function: Any) -> None:
    """Refuse a function that would not be on the server what it is here.

    Functions and classes of installed packages, and of packages that travel as a whole, are left
    alone; those that it names in its own module and others like it are looked at too.

    Raises
    ------
    RemoteError
        With the line and what to do.
    """
    seen: set[int] = set()
    waiting = [function]
    while waiting:
        candidate = waiting.pop()
        # A decorator that kept what it wraps is itself what does not survive.
        if id(candidate) in seen or not _sent_alone(candidate):
            continue
        seen.add(id(candidate))
        plain = inspect.unwrap(candidate) if callable(candidate) else candidate
        try:
            source, start = inspect.getsourcelines(plain)
        except (OSError, TypeError):
            continue  # made on the fly: nnsight sends its bytecode
        text = "".join(source)
        try:
            problems = list(troubles(text))
        except SyntaxError:
            continue  # a lambda in the middle of a line
        if plain is not candidate:
            problems.append((1, "a decorator with functools.wraps: what it wraps is dropped"))
        if problems:
            line, what = problems[0]
            raise RemoteError(
                f"{getattr(candidate, '__qualname__', candidate)} cannot be sent to a server. Line "
                f"{start + line - 1} of {inspect.getsourcefile(plain)}: {what}. Change it, or put "
                "it in a package and name that to interventions.remote.carry."
            )
        if isinstance(plain, types.FunctionType):
            named = {*plain.__code__.co_names, *plain.__code__.co_freevars}
            around = inspect.getclosurevars(plain)
            scope = {**around.globals, **around.nonlocals}
            waiting += [scope[name] for name in named if name in scope]


def functions_in(value: Any) -> Iterator[Any]:
    """Functions that arguments of an operation hold: in containers, dataclasses and partials."""
    if isinstance(value, types.FunctionType | types.MethodType):
        yield value
    elif isinstance(value, partial):
        for part in (value.func, value.args, value.keywords):
            yield from functions_in(part)
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from functions_in(entry)
    elif isinstance(value, list | tuple | set | frozenset):
        for entry in value:
            yield from functions_in(entry)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from functions_in(getattr(value, field.name))


def _sent_alone(value: Any) -> bool:
    """Whether a value is a function or class that is sent by its own source."""
    value = inspect.unwrap(value) if callable(value) else value
    if not isinstance(value, type | types.FunctionType):
        return False
    if (value.__module__ or "").split(".")[0] in LUGGAGE.folders:
        return False
    try:
        file = inspect.getsourcefile(value) or ""
    except TypeError:
        return False  # built in
    return not any(part in file for part in ("site-packages", "dist-packages", "/lib/python"))
