"""One experiment on several prompts: here, by several processes, or on a server as one request.

What runs is a plain function of a model, a prompt and numbers. It makes its own patches where the
model is, so that only prompts go there and only what was measured comes back.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch

from interventions import Model
from twohop.ask.residence import at_home
from twohop.ask.shards import HANDS

REQUEST_BYTES = 2**26
Tick = Callable[[int], None]
Task = tuple[Any, ...]


def no_tick(_rows: int) -> None:
    """Report progress to nobody."""


@dataclass(frozen=True)
class Progress:
    """How a stage tells how far it is.

    Attributes
    ----------
    expect : callable
        Told the number of rows that are to come, beside those told of before: those of one set of
        questions, before they are sent.
    tick : callable
        Told the number of rows done since it was last told.
    """

    expect: Tick
    tick: Tick


SILENT = Progress(no_tick, no_tick)


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
        hands = HANDS.get()
        if hands is not None:
            return hands.on_each(model, function, tasks, tick=tick)
        at_home(model)
        return [function(model, *task, tick=tick) for task in tasks]
    from interventions.remote import carry

    carry("twohop")
    results: list[Any] = []
    for request in _requests(tasks):
        of_request, rows = model.job(_called, function, request)
        results += of_request
        tick(rows)
    return results


def _called(model: Model, function: Callable[..., Any], tasks: list[Task]) -> tuple[list[Any], int]:
    """Run the tasks of one request; also how many rows they were."""
    rows: list[int] = []
    return [function(model, *task, tick=rows.append) for task in tasks], sum(rows)


def _requests(tasks: Iterable[Task]) -> Iterator[list[Task]]:
    """Tasks in groups that are no larger than one request should be."""
    group: list[Task] = []
    held: dict[int, torch.Tensor] = {}
    for task in tasks:
        mine = {id(tensor): tensor for tensor in _tensors(task)}
        if group and _bytes(held | mine) > REQUEST_BYTES:
            yield group
            group, held = [], {}
        group.append(task)
        held |= mine
    if group:
        yield group


def _bytes(tensors: dict[int, torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors that a task holds."""
    if isinstance(value, torch.Tensor):
        yield value
        return
    if is_dataclass(value) and not isinstance(value, type):
        value = [getattr(value, field.name) for field in fields(value)]
    elif isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return
    for part in value:
        yield from _tensors(part)
