"""What other libraries put around a model and its modules: seen through, or refused by name.

An adapter (PEFT) holds the module that it changes as ``base_layer`` or ``original_module``, in the
place where that was; so every path into the model inside the wrapper stays what it is.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

HELD = ("base_layer", "original_module")


@dataclass(frozen=True)
class Adapter:
    """One adapter that a model carries.

    Attributes
    ----------
    name : str
    kind : str
        As PEFT calls it, such as ``"LORA"``.
    modules, active, merged : int
        How many modules have it; in how many it acts; in how many it is merged into the weights.
    scales : tuple of float
        What its output is multiplied by, each value once; empty where its kind has none.
    """

    name: str
    kind: str
    modules: int
    active: int
    merged: int
    scales: tuple[float, ...]


def original(part: nn.Module) -> nn.Module:
    """Return the module in whose place an adapter's layer stands; any other as it is."""
    while True:
        held = [part._modules[key] for key in HELD if part._modules.get(key) is not None]
        if not held or held[0] is None:
            return part
        part = held[0]


def adapters_of(module: nn.Module) -> tuple[Adapter, ...]:
    """Return the adapters that a model carries, and whether they act; empty without any.

    Parameters
    ----------
    module : torch.nn.Module
        A transformers model, out of its wrapper.
    """
    configs: dict[str, Any] = getattr(module, "peft_config", None) or {}
    if not configs:
        return ()
    holders: list[Any] = adapter_layers(module)
    adapters = []
    for name, config in configs.items():
        having = [part for part in holders if name in part._get_available_adapters()]
        acting = [
            part for part in having if name in part.active_adapters and not part._disable_adapters
        ]
        scalings = [part.__dict__.get("scaling") for part in having]
        kind = getattr(config, "peft_type", "")
        adapters.append(
            Adapter(
                name=name,
                kind=str(getattr(kind, "value", kind)),
                modules=len(having),
                active=len(acting),
                merged=sum(name in part.merged_adapters for part in having),
                scales=tuple(
                    sorted({float(s[name]) for s in scalings if isinstance(s, dict) and name in s})
                ),
            )
        )
    return tuple(adapters)


def adapter_layers(module: nn.Module) -> list[nn.Module]:
    """PEFT's own layers in a model; the model itself has some of their methods too."""
    return [
        part
        for part in module.modules()
        if hasattr(type(part), "_get_available_adapters") and hasattr(type(part), "merged_adapters")
    ]
