"""Classes of this package that a job may return, and that a folder of jobs may hold.

A stored result is data: opening it makes objects of these, of tensors, arrays and plain values,
and of nothing else. Each class says so itself, so that what sends jobs knows none of them.
"""

from typing import TypeVar

AnyClass = TypeVar("AnyClass", bound=type)
RETURNABLE: list[type] = []


def returnable(kind: AnyClass) -> AnyClass:
    """Let a job return objects of a class: a decorator.

    Its fields must be tensors, arrays, plain values, containers of these, or returnable.
    """
    RETURNABLE.append(kind)
    return kind
