"""Models that share a device where there is room for one of them: the others wait on the CPU.

What a model computes is the same wherever it has waited: its weights come back bit by bit.
"""

import gc
from collections.abc import Iterator
from dataclasses import dataclass
from weakref import WeakKeyDictionary, WeakSet

import psutil
import torch

from interventions import Model
from interventions.architectures.quantisation import quantisation_of
from interventions.running.budget import free_bytes
from twohop.ask.memory import MemoryTooSmall

SPARE = 0.5
"""Part of a running model's weights that is to be free for its rows; else the others leave."""


@dataclass
class Home:
    """Where a model's weights belong.

    Attributes
    ----------
    device : device
    n_bytes : int
        Of its weights.
    away : bool
        Whether they wait on the CPU.
    """

    device: torch.device
    n_bytes: int
    away: bool = False


HOMES: WeakKeyDictionary[Model, Home] = WeakKeyDictionary()
"""Of the models that may leave: each is whole, on one device other than the CPU."""
LOADED: WeakSet[Model] = WeakSet()
"""Every model that a study has loaded, as long as it is there."""


def held_on(device: torch.device) -> int:
    """Bytes of a device that models of a study have: these can leave, or are those asked for."""
    return sum(
        tensor.nbytes for model in LOADED for tensor in _tensors(model) if tensor.device == device
    )


def settle(model: Model) -> None:
    """Let a model that was loaded leave its device when another needs the room, if it can.

    One that is packed, or spread over several devices, stays.
    """
    if model.remote:
        return
    LOADED.add(model)
    if quantisation_of(model.module) is not None:
        return
    devices = {tensor.device for tensor in _tensors(model)}
    if len(devices) == 1 and (device := devices.pop()).type not in ("cpu", "meta"):
        HOMES[model] = Home(device, sum(tensor.nbytes for tensor in _tensors(model)))


def home_of(model: Model) -> torch.device:
    """Where a model runs, also while it waits elsewhere."""
    return HOMES[model].device if model in HOMES else model.device


def at_home(model: Model) -> None:
    """Bring a model to its device, if it is away, and let others leave that take up the room.

    Raises
    ------
    MemoryTooSmall
        If there is no memory for one that has to wait.
    """
    home = HOMES.get(model)
    if home is None:
        return
    needed = int(home.n_bytes * SPARE) + (home.n_bytes if home.away else 0)
    if free_bytes(home.device) < needed:
        try:
            leave(home.device, but=model)
        except MemoryTooSmall:
            if home.away:  # else it is there: fewer rows run beside the others
                raise
    if home.away:
        _move(model, home.device)
        home.away = False


def leave(device: torch.device | None = None, *, but: Model | None = None) -> bool:
    """Let the models on a device, or on any, wait on the CPU; return whether any left.

    Raises
    ------
    MemoryTooSmall
        If the CPU has no memory for one.
    """
    gone = False
    for model, home in [*HOMES.items()]:
        if model is but or home.away or device not in (None, home.device):
            continue
        if psutil.virtual_memory().available < home.n_bytes:
            raise MemoryTooSmall(
                f"{model.name} has to leave {home.device} for the other model, and its "
                f"{home.n_bytes / 1e9:.1f} GB do not fit into the memory of this machine. Give "
                "--device-map auto, or pack both: --quantization nf4."
            )
        _move(model, torch.device("cpu"))
        home.away = gone = True
    if gone:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return gone


def _move(model: Model, device: torch.device) -> None:
    moved: dict[int, torch.nn.Parameter] = {}  # tied weights stay one
    for part in model.module.modules():
        for name, parameter in part._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in moved:
                value = parameter.detach().to(device)
                new = torch.nn.Parameter(value, requires_grad=parameter.requires_grad)
                moved[id(parameter)] = moved[id(new)] = new
            part._parameters[name] = moved[id(parameter)]
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = buffer.to(device)


def _tensors(model: Model) -> Iterator[torch.Tensor]:
    yield from model.module.parameters()
    yield from model.module.buffers()
