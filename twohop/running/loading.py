"""The two models of a study: how they are loaded, and those that are."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from interventions import Model, load
from interventions.architectures.quantised_loading import FORMATS
from interventions.errors import LoadError, did_you_mean
from interventions.model.placement import (
    checked_attention,
    checked_device,
    checked_dtype,
    checked_map,
)
from twohop.ask.memory import MemoryTooSmall, ran_out, remedy
from twohop.ask.residence import home_of, leave, settle

Role = Literal["vlm", "backbone"]
TWO_GPUS = ("cuda:0", "cuda:1")
USUAL = {"dtype": "float32", "attention": "sdpa"}
"""What models are by default where they can be: no setting of its own."""


@dataclass(frozen=True)
class Loading:
    """What :func:`interventions.load` is told of both models.

    Attributes
    ----------
    dtype : str, optional
        Such as ``"bfloat16"``. Default: float32 on a CPU, what the checkpoint says elsewhere.
    device : tuple of str
        One for both models, or the VLM's and the backbone's. Default: the first two GPUs, the only
        one, or the CPU.
    device_map : str, optional
        ``"auto"`` spreads the blocks of each model over the GPUs.
    attention : str, optional
        ``"sdpa"``, ``"eager"`` or others of transformers.
    quantization : {"nf4", "int8", "fp8"}, optional
        Pack the weights of both while they are read.

    Examples
    --------
    >>> Loading(device=("cuda:0", "cuda:1")).of("backbone")
    {'device': 'cuda:1'}
    """

    dtype: str | None = None
    device: tuple[str, ...] = ()
    device_map: str | None = None
    attention: str | None = None
    quantization: str | None = None

    def of(self, role: Role) -> dict[str, Any]:
        """Arguments of :func:`interventions.load` for one of the models."""
        given = {
            "dtype": self.dtype,
            "device": self._device_of(role),
            "device_map": self.device_map,
            "attn_implementation": self.attention,
            "quantization": self.quantization,
        }
        return {key: value for key, value in given.items() if value is not None}

    def _device_of(self, role: Role) -> str | None:
        devices = self.devices
        if not devices:
            return None
        return devices[0] if role == "vlm" else devices[-1]

    @property
    def devices(self) -> tuple[str, ...]:
        """Those asked for; if none were, a GPU for each model, where there are two."""
        asked = self.device or self.device_map is not None
        if asked or not torch.cuda.is_available() or torch.cuda.device_count() < len(TWO_GPUS):
            return self.device
        return TWO_GPUS

    def check(self, *, remote: bool | str = False) -> None:
        """Refuse what cannot be here, before anything is read or written.

        Raises
        ------
        LoadError
            With what was got, and what is expected.
        """
        if remote and (given := self.of("vlm")):
            raise LoadError(
                f"{' and '.join(given)} cannot be chosen with --remote: the server holds the "
                "models as it was told to. Leave it out."
            )
        if self.device and self.device_map is not None:
            raise LoadError("device and device_map were both given. Give one of them.")
        if len(self.device) > len(("vlm", "backbone")):
            raise LoadError(
                f"device={','.join(self.device)}: {len(self.device)} were given. Expected one for "
                "both models, or two: the VLM's and the backbone's."
            )
        if self.dtype is not None:
            checked_dtype(self.dtype)
        for device in self.device:
            checked_device(device)
        if self.device_map is not None:
            checked_map(self.device_map)
        checked_attention(self.attention)
        if self.quantization is not None and self.quantization not in FORMATS:
            raise LoadError(
                f"quantization={self.quantization!r} is not known. "
                f"{did_you_mean(self.quantization, FORMATS)}"
            )

    def as_settings(self) -> dict[str, str]:
        """What results depend on, for a run's settings: not where the models are.

        What is usual is left out, so that a run that was begun on a CPU can go on on a GPU in
        float32; results in another format than the stored ones are refused when models are there.

        Examples
        --------
        >>> Loading("bfloat16", device=("cpu",)).as_settings()
        {'dtype': 'bfloat16'}
        >>> Loading("float32").as_settings()
        {}
        """
        given = {
            "dtype": self.dtype
            and str(getattr(torch, self.dtype, self.dtype)).removeprefix("torch."),
            "attention": self.attention,
            "quantization": self.quantization,
        }
        return {key: value for key, value in given.items() if value not in (None, USUAL.get(key))}


class Models:
    """Models that are loaded when a stage first needs them, and kept for the next pair.

    Attributes
    ----------
    results : dict
        What they gave that the next pair will ask for again.
    sound : set of Model
        Those that were seen to compute numbers.
    loads : int
        How many were loaded so far, those that are gone included.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[Any, ...], Model] = {}
        self.results: dict[Any, Any] = {}
        self.sound: set[Model] = set()
        self.loads = 0

    def get(
        self,
        folder: Path | str,
        *,
        remote: bool | str = False,
        checkpoint: Mapping[str, str] | None = None,
        loading: Mapping[str, Any] | None = None,
    ) -> Model:
        """Return the model of a folder or repo, or the one that a server calls so.

        Parameters
        ----------
        folder : Path or str
        remote : bool or str
        checkpoint : mapping, optional
            What is there, by :class:`twohop.running.checkpoints.Digests`: of a repo, its commit is
            loaded, and a folder whose files are others than before is loaded again.
        loading : mapping, optional
            Other arguments of :func:`interventions.load`.
        """
        content, others = dict(checkpoint or {}), dict(loading or {})
        asked = (folder, remote, *sorted(content.items()), *sorted(others.items()))
        if asked not in self._kept:
            others["revision"] = content.get("commit")
            self._kept[asked] = loaded_where_there_is_room(folder, remote=remote, **others)
            self.loads += 1
        return self._kept[asked]

    def devices(self) -> list[torch.device]:
        """Where those that run here belong, the CPU left out."""
        places = {
            device: None
            for (_, remote, *_), model in self._kept.items()
            if not remote
            for device in (home_of(model), *(weight.device for weight in model.module.parameters()))
        }
        return [device for device in places if device.type not in ("cpu", "meta")]

    def drop(self, folder: Path | str) -> None:
        """Forget a model, wherever it runs."""
        gone = {model for asked, model in self._kept.items() if asked[0] == folder}
        self._kept = {asked: model for asked, model in self._kept.items() if asked[0] != folder}
        self.sound -= gone


def loaded_where_there_is_room(folder: Path | str, **how: Any) -> Model:
    """Load a model; where it finds no room, the others leave their devices for it.

    Raises
    ------
    MemoryTooSmall
        If there is no room for it alone.
    """
    try:
        model = load(folder, **how)
    except LoadError as error:
        if error.__cause__ is None or not ran_out(error.__cause__):
            raise
        said = remedy(error.__cause__)
    else:
        settle(model)
        return model
    # Only now is the error gone, and with it what its frames kept alive.
    if not leave():
        raise MemoryTooSmall(f"{folder} does not fit where it is to be loaded. {said}")
    model = load(folder, **how)
    settle(model)
    return model
