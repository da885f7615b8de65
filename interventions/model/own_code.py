"""What of a class no library wrote, or was put by hand in the place of a library's code.

Every attribute of every base is looked at, and every function that a library's methods call: some
ten milliseconds for the classes of one model. So what was found is remembered, together with all
that it hangs on, and is looked for again when any of that is another object.
"""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import repeat
from operator import attrgetter, is_
from types import FunctionType
from typing import Any

import torch

from interventions.digests import named_globals, names_in, of_library

FIXED = (FunctionType, property, classmethod, staticmethod)  # have always the same inside
MOST = 4096  # classes remembered; a program that makes more of them begins anew


@dataclass(frozen=True)
class Names:
    """What some names stood for in a namespace: the attributes of a class, or a module's globals.

    Objects are held, so that no other can come to lie where one of them was.
    """

    space: Mapping[str, Any]
    names: tuple[str, ...]
    values: tuple[Any, ...]

    def same(self) -> bool:
        """Whether they still do."""
        return all(map(is_, self.values, _values(self.space, self.names)))


@dataclass(frozen=True)
class Found:
    """What was found of a class, and what that hangs on."""

    written: dict[str, Any]
    kind: type
    bases: tuple[type, ...]
    n_attributes: tuple[tuple[Mapping[str, Any], int], ...]
    names: tuple[Names, ...]
    functions: tuple[FunctionType, ...]
    code: tuple[Any, ...]
    descriptors: tuple[Any, ...]
    within: tuple[Any, ...]

    def holds(self) -> bool:
        """Whether it would be found again."""
        return (
            self.bases == self.kind.__mro__
            and all(len(space) == n for space, n in self.n_attributes)
            and all(names.same() for names in self.names)
            and all(map(is_, self.code, map(attrgetter("__code__"), self.functions)))
            and all(map(is_, self.within, map(_inner, self.descriptors)))
        )


_FOUND: dict[type, Found] = {}


def own_code(kind: type) -> dict[str, Any]:
    """Attributes of a class that no library wrote, by name, and functions put into a library's.

    Numbers and tensors count whoever wrote them. The values are those that are there now; what
    is in them is the caller's to look at.

    Parameters
    ----------
    kind : type

    Returns
    -------
    dict
        Not to be changed.
    """
    known = _FOUND.get(kind)
    if known is None or not known.holds():
        known = _found(kind)
        if of_library(kind.__module__):  # another may be made anew for every model, and go with it
            if len(_FOUND) >= MOST:
                _FOUND.clear()
            _FOUND[kind] = known
    return known.written


def is_number(value: Any) -> bool:
    """Whether a value is a number, and not merely true or false."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _found(kind: type) -> Found:
    written: dict[str, Any] = {}
    walked: list[FunctionType] = []
    wrapping: list[Names] = []
    descriptors: list[Any] = []
    for base in kind.__mro__:
        for key, value in vars(base).items():
            inner = _inner(value)
            if type(value) not in FIXED and (hasattr(value, "fget") or hasattr(value, "__func__")):
                descriptors.append(value)
            if key.startswith("__") and not inspect.isfunction(inner):
                continue
            maker = getattr(inner, "__module__", None) if callable(inner) else base.__module__
            number = is_number(inner) or torch.is_tensor(inner)
            if number or not of_library(base.__module__, maker) or key in written:
                written.setdefault(key, inner)
            elif inspect.isfunction(inner) and not of_library(inner.__module__):
                written.setdefault(key, inner)  # put in the place of the library's own
            elif inspect.isfunction(inner) and not base.__module__.startswith("torch."):
                replaced = _replaced(inner, walked, wrapping)
                written |= {f"{key}: {name}": function for name, function in replaced.items()}
    spaces = [vars(base) for base in kind.__mro__]
    return Found(
        written=written,
        kind=kind,
        bases=kind.__mro__,
        n_attributes=tuple((space, len(space)) for space in spaces),
        names=(*(_names(space, space) for space in spaces), *_globals(walked), *wrapping),
        functions=tuple(walked),
        code=tuple(function.__code__ for function in walked),
        descriptors=tuple(descriptors),
        within=tuple(map(_inner, descriptors)),
    )


def _inner(value: Any) -> Any:
    """What a property or method of a class has inside; any other value itself."""
    return getattr(value, "fget", None) or getattr(value, "__func__", value)


def _replaced(
    method: FunctionType, walked: list[FunctionType], wrapping: list[Names]
) -> dict[str, FunctionType]:
    """Functions that no library wrote, in the place of those that a library's method calls.

    Those that were looked into are added to ``walked``, and what others wrap to ``wrapping``.
    """
    replaced: dict[str, FunctionType] = {}
    pending, seen = [_unwrapped(method, wrapping)], set()
    while pending:
        plain = pending.pop()
        walked.append(plain)
        for name, value in named_globals(plain).items():
            if not inspect.isfunction(value) or name in seen:
                continue
            seen.add(name)
            if not of_library(value.__module__):
                replaced[name] = value
            elif value.__module__ == plain.__module__:  # which may call more of them
                pending.append(_unwrapped(value, wrapping))
    return replaced


def _unwrapped(function: FunctionType, wrapping: list[Names]) -> FunctionType:
    """The function that decorators are around; what each of them wraps can be put elsewhere."""
    plain: Any = inspect.unwrap(function)
    outer: Any = function
    while outer is not plain:
        wrapping.append(_names(vars(outer), ("__wrapped__",)))
        outer = outer.__wrapped__
    return plain


def _globals(walked: Iterable[FunctionType]) -> list[Names]:
    """What functions name in their modules; a name that is not there yet counts too."""
    spaces: dict[int, Mapping[str, Any]] = {}
    named: dict[int, set[str]] = {}
    for function in walked:
        space = function.__globals__
        spaces[id(space)] = space
        named.setdefault(id(space), set()).update(names_in(function.__code__))
    return [_names(space, named[at]) for at, space in spaces.items()]


def _names(space: Mapping[str, Any], names: Iterable[str]) -> Names:
    kept = tuple(names)
    return Names(space, kept, tuple(_values(space, kept)))


def _values(space: Mapping[str, Any], names: Iterable[str]) -> Iterator[Any]:
    return map(space.get, names, repeat(_FOUND))  # which stands for nothing in any namespace
