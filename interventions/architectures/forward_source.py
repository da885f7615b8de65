"""What the code of a module's forward says of the order and the names of what it computes.

Only what a block's children cannot tell is read here: where the residual stream between attention
and MLP is, whether queries have their heads in front when a norm sees them, what a block gives, and
whether attention is given keys as they are in the cache.
"""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import nn

from interventions.architectures.wrapping import original

HEADS_FIRST = "transpose(1, 2)"
INTERFACE = "attention_interface"
OF_TENSORS = ("to", "view", "reshape", "type_as")
KEYS, VALUES = 2, 3  # which of its arguments, behind the module and the queries


@dataclass(frozen=True)
class Written:
    """One assignment to a name, in the order of the lines.

    Attributes
    ----------
    name : str
        The variable; where several are assigned at once, the first.
    value : ast.expr
    beside : str
        The second, where there is one.
    """

    name: str
    value: ast.expr
    beside: str = ""


@dataclass(frozen=True)
class Code:
    """A forward, as assignments, calls and what it returns, in the order of its lines."""

    written: tuple[Written, ...]
    calls: tuple[ast.Call, ...]
    returned: tuple[ast.expr | None, ...] = ()

    def called(self, child: str) -> ast.Call | None:
        """The first call of a child module, ``self.child(...)``; None if there is none."""
        return next((call for call in self.calls if _child_of(call.func) == child), None)

    def before(self, name: str, place: ast.AST) -> list[Written]:
        """Assignments to a variable on the lines above a place, the last one first."""
        top = getattr(place, "lineno", 0)
        above = [line for line in self.written if line.name == name and line.value.lineno < top]
        return above[::-1]


def code_of(module: nn.Module) -> Code | None:
    """Return what a module's forward says; None where its code cannot be had."""
    return _code_of(type(original(module)))


@cache
def _code_of(kind: Any) -> Code | None:
    try:
        text = textwrap.dedent(inspect.getsource(inspect.unwrap(kind.forward)))
        tree = ast.parse(text)
    except (OSError, TypeError, SyntaxError, AttributeError):
        return None
    nodes = sorted(
        (node for node in ast.walk(tree) if isinstance(node, ast.Assign | ast.Call | ast.Return)),
        key=lambda node: (node.lineno, node.col_offset),
    )
    return Code(
        tuple(line for node in nodes for line in _written(node)),
        tuple(node for node in nodes if isinstance(node, ast.Call)),
        tuple(node.value for node in nodes if isinstance(node, ast.Return)),
    )


def _written(node: ast.AST) -> Iterator[Written]:
    if isinstance(node, ast.Assign):
        target = node.targets[0]
        targets = target.elts if isinstance(target, ast.Tuple) and target.elts else [target]
        names = [part.id if isinstance(part, ast.Name) else "" for part in targets]
        if names[0]:
            yield Written(names[0], node.value, names[1] if len(names) > 1 else "")


def _child_of(func: ast.expr) -> str | None:
    if isinstance(func, ast.Attribute) and isinstance(func.value, ast.Name):
        return func.attr if func.value.id == "self" else None
    return None


def _variable(expression: ast.expr) -> str | None:
    """The variable that an expression is a view or a transposition of."""
    while isinstance(expression, ast.Attribute | ast.Call):
        expression = expression.func if isinstance(expression, ast.Call) else expression.value
    return expression.id if isinstance(expression, ast.Name) else None


def interface_calls(code: Code) -> list[ast.Call]:
    """Calls of transformers' interchangeable attention functions."""
    return [call for call in code.calls if _variable(call.func) == INTERFACE]


def attends_as_cached(code: Code) -> bool:
    """Whether such a function is given keys and values just as the cache gives them.

    Latent attention (DeepSeek's) keeps something narrower and makes both of it first; others pad,
    or take values apart.
    """
    calls = interface_calls(code)
    if len(calls) != 1 or len(calls[0].args) <= VALUES:
        return False
    given = [part.id if isinstance(part, ast.Name) else "" for part in calls[0].args]
    keys, values = given[KEYS], given[VALUES]
    above = [
        line
        for line in code.written
        if line.value.lineno < calls[0].lineno and {line.name, line.beside} & {keys, values}
    ]
    last = above[-1] if above else None
    return (
        last is not None
        and (last.name, last.beside) == (keys, values)
        and isinstance(last.value, ast.Call)
        and getattr(last.value.func, "attr", "") == "update"
    )


def n_given(code: Code) -> int | None:
    """How many things a block gives in a tuple: the residual stream, and its attention's weights.

    Returns
    -------
    int or None
        0: no tuple, but the stream itself. None where it cannot be told, or where what else there
        is may be needed by later blocks.
    """
    numbers = {_n_of(code, value) for value in code.returned}
    return numbers.pop() if len(numbers) == 1 else None


def _n_of(code: Code, value: ast.expr | None) -> int | None:
    if isinstance(value, ast.Name):
        above = code.before(value.id, value)
        value = above[0].value if above else None
    if isinstance(value, ast.Tuple):
        others = [ast.unparse(other) for other in value.elts[1:]]
        return 1 + len(others) if all("attn" in other for other in others) else None
    if isinstance(value, ast.Call) and getattr(value.func, "attr", "") in OF_TENSORS:
        return 0
    return 0 if isinstance(value, ast.BinOp) and not _has_tuple(value) else None


def _has_tuple(value: ast.expr) -> bool:
    return any(isinstance(part, ast.Tuple) for part in ast.walk(value))


def heads_first(code: Code, norm: str) -> bool:
    """Whether a norm of queries or keys sees them as [row, head, position, width]."""
    call = code.called(norm)
    if call is None or not call.args:
        return False
    shown = call.args[0]
    if HEADS_FIRST in ast.unparse(shown):
        return True
    above = code.before(_variable(shown) or "", call)
    return bool(above) and HEADS_FIRST in ast.unparse(above[0].value)


def between(code: Code, mlp: str) -> str | None:
    """The child of a block that is given the residual stream between attention and MLP.

    It is the norm in front of the MLP, or the MLP, where the block's code adds the attention's
    part, keeps the very same tensor as the residual, and then calls that child on it. So what is
    written into that tensor goes both ways.

    Returns
    -------
    str or None
        None where the code does something else, as in blocks whose sublayers are parallel.
    """
    call = code.called(mlp)
    child = mlp
    while call is not None and len(call.args) == 1 and isinstance(call.args[0], ast.Name):
        variable = call.args[0].id
        above = code.before(variable, call)
        if not above:
            return None
        value = above[0].value
        if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add):
            kept = [
                line
                for line in code.written
                if isinstance(line.value, ast.Name)
                and line.value.id == variable
                and value.lineno < line.value.lineno <= call.lineno
            ]
            return child if kept else None
        inner = _child_of(value.func) if isinstance(value, ast.Call) else None
        if inner is None or not isinstance(value, ast.Call):
            return None
        call, child = value, inner
    return None
