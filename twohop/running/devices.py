"""A device that fails while a study runs: a GPU that is gone, or an error that ends its context."""

from collections.abc import Iterator, Sequence

import torch

from interventions.errors import InterventionsError
from twohop.ask.memory import ran_out

SAYING = (
    *("CUDA error", "HIP error", "device-side assert", "fallen off the bus", "device lost"),
    *("CUBLAS_STATUS", "CUDNN_STATUS", "CUSOLVER_STATUS", "NVML_SUCCESS", "Command buffer failed"),
)
"""What is in the messages of errors that torch gives no class of their own."""
OWN: type[Exception] | tuple[()] = getattr(torch, "AcceleratorError", ())
"""The class that newer torch gives them."""


class DeviceFailed(InterventionsError):
    """A device failed while it computed: nothing can be run on it until the process begins anew."""


def failed(error: BaseException) -> bool:
    """Whether an error, or one that it came of, says that a device has failed.

    Memory that runs out is no failure: less may be asked at once.
    """
    return failure_in(error) is not None


def failure_in(error: BaseException) -> BaseException | None:
    """Return the device's error, of those that an error came of."""
    for cause in _causes(error):
        if ran_out(cause):
            return None
        if isinstance(cause, OWN) or (isinstance(cause, RuntimeError) and _says(str(cause))):
            return cause
    return None


def _says(text: str) -> bool:
    return any(phrase in text for phrase in SAYING)


def failing(devices: Sequence[torch.device]) -> list[torch.device]:
    """Return those of some devices that cannot add two numbers any more."""
    return [device for device in dict.fromkeys(devices) if not _adds(device)]


def explained(error: BaseException, devices: Sequence[torch.device]) -> str:
    """What was said, of which of the devices that a study is on, and what a user can do about it.

    Parameters
    ----------
    error : BaseException
    devices : sequence of device
        Those that its models are on.
    """
    cause = failure_in(error) or error
    lines = str(cause).strip().splitlines() or [type(cause).__name__]
    said = next(filter(_says, lines), lines[0])
    named = failing(devices) or [*dict.fromkeys(devices)]
    on = " or ".join(map(str, named))
    return (
        f"{f'It was on {on}. ' if on else ''}It was said: {said.strip()[:200]}\n"
        "The stages before it are stored, and the same command goes on behind them. If the device "
        "is gone (nvidia-smi does not list it), leave it out: CUDA_VISIBLE_DEVICES, or another "
        "--device. If it fails in the same place again, CUDA_LAUNCH_BLOCKING=1 shows where."
    )


def _adds(device: torch.device) -> bool:
    try:
        return bool(torch.ones(1, device=device).add(1).eq(2).cpu())
    except RuntimeError:
        return False


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, and those that it came of."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__
