"""One experiment on several prompts: here one after the other, on a server as one request.

What runs is a plain function of a model, a prompt and numbers. It makes its own patches where the
model is, so that only prompts go there and only what was measured comes back.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch

from interventions import Model

REQUEST_BYTES = 2**26
Tick = Callable[[int], None]
Task = tuple[Any, ...]


def no_tick(_rows: int) -> None:
    """Report progress to nobody."""


def on_each(
    model: Model, function: Callable[..., Any], tasks: Iterable[Task], *, tick: Tick = no_tick
) -> list[Any]:
    """Call ``function(model, *task, tick=...)`` for every task, where the model runs.

    Parameters
    ----------
    model : Model
    function : callable
        Of this package, at the top of its module, so that a server can be told its name.
    tasks : iterable of tuple
        What it is given after the model: prompts, positions, patches, tensors, numbers, text, or
        containers of them. Made one by one, when their turn comes. On a server, as many go into a
        request as have :data:`REQUEST_BYTES` of tensors.
    tick : callable
        Told the number of rows done.

    Returns
    -------
    list
        What the function returned, per task: tensors, arrays, numbers, text, or containers of them.
    """
    if not model.remote:
        return [function(model, *task, tick=tick) for task in tasks]
    from interventions.remote import carry

    carry("twohop")
    found: list[Any] = []
    for some in _requests(tasks):
        results, rows = model.job(_called, function, some)
        found += results
        tick(rows)
    return found


def _called(model: Model, function: Callable[..., Any], tasks: list[Task]) -> tuple[list[Any], int]:
    """Run the tasks of one request; also how many rows they were."""
    rows: list[int] = []
    return [function(model, *task, tick=rows.append) for task in tasks], sum(rows)


def _requests(tasks: Iterable[Task]) -> Iterator[list[Task]]:
    """Tasks in groups that are no larger than one request should be."""
    some: list[Task] = []
    held: dict[int, torch.Tensor] = {}
    for task in tasks:
        mine = {id(one): one for one in _tensors(task)}
        if some and _bytes(held | mine) > REQUEST_BYTES:
            yield some
            some, held = [], {}
        some.append(task)
        held |= mine
    if some:
        yield some


def _bytes(tensors: dict[int, torch.Tensor]) -> int:
    return sum(one.numel() * one.element_size() for one in tensors.values())


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors that a task holds."""
    if isinstance(value, torch.Tensor):
        yield value
        return
    if is_dataclass(value) and not isinstance(value, type):
        value = [getattr(value, one.name) for one in fields(value)]
    elif isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return
    for one in value:
        yield from _tensors(one)
