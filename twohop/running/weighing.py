"""How much memory models and their rows take, and whether a machine has it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from interventions import Model
from interventions.architectures.blueprints import default_device
from interventions.architectures.packed_sizes import packed_weights
from interventions.running.budget import free_bytes
from twohop.ask.residence import held_on
from twohop.ask.room import row_needs, rows_in
from twohop.running.loading import Loading
from twohop.stages.asked import Scope
from twohop.stages.work import Asked, Role, Work

GB = 10**9
CONTEXT = GB
"""Bytes of a GPU that no tensor has: kernels, and what the allocator cannot join."""
UNEVEN = 0.9
"""Part of several GPUs' memory that can be used: whole blocks are dealt out."""
PACKED = {"nf4": 0.56, "int8": 1.02, "fp8": 1.02}
"""Bytes of a packed parameter, its share of the scales included."""


@dataclass(frozen=True)
class Weights:
    """A model's weights.

    Attributes
    ----------
    parameters : int
    whole : int
        Of those, embeddings and head, which packing leaves as they are.
    n_bytes : int
        Of a number.
    packing : str, optional
        A key of :data:`PACKED`.
    stored : int, optional
        Bytes of all but the whole ones in a checkpoint that is packed already.
    """

    parameters: int
    whole: int
    n_bytes: int = 2
    packing: str | None = None
    stored: int | None = None

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        each = self.n_bytes if self.packing is None else PACKED[self.packing]
        packed = int((self.parameters - self.whole) * each) if self.stored is None else self.stored
        return packed + self.whole * self.n_bytes

    @classmethod
    def of(cls, model: Model, loading: Loading, *, on_cpu: bool) -> "Weights":
        """Return those of a model that was built without them."""
        module = model.module
        head = [module.get_input_embeddings(), module.get_output_embeddings()]
        ends = torch.nn.ModuleList([part for part in head if part is not None])
        dtype = getattr(torch, loading.dtype or "", None)
        if dtype is None:
            dtype = torch.float32 if on_cpu and not torch.cuda.is_available() else model.dtype
        parameters = sum(parameter.numel() for parameter in module.parameters())
        n_bytes = torch.empty(0, dtype=dtype).element_size()
        device = loading.device_map or (loading.device[0] if loading.device else default_device())
        packed = packed_weights(module, blocks=model.anatomy.blocks, device=device)
        if packed is not None:
            return cls(parameters, parameters - packed.parameters, n_bytes, stored=packed.nbytes)
        ends_whole = sum(parameter.numel() for parameter in ends.parameters())
        return cls(parameters, ends_whole, n_bytes, loading.quantization)


@dataclass(frozen=True)
class Machine:
    """Memory that can be had.

    Attributes
    ----------
    kind : str
        Of device, such as ``"cuda"``.
    free : tuple of int
        Bytes of each of its devices.
    names : tuple of str
        Theirs.
    spread : bool
        Whether a model's blocks are spread over all of them; else each model is on one: on the
        same, or each on its own where there are two.
    """

    kind: str
    free: tuple[int, ...]
    names: tuple[str, ...]
    spread: bool = False

    @classmethod
    def here(cls, loading: Loading) -> "Machine":
        """Return what is free here, where models are to be loaded."""
        asked = loading.devices or (default_device(),)
        chosen = [
            torch.device(device) if device == "cpu" or ":" in device else torch.device(device, 0)
            for device in dict.fromkeys(asked)
        ]
        if loading.device_map is not None and torch.cuda.is_available():
            chosen = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
        return cls(
            chosen[0].type,
            tuple(free_bytes(device) + held_on(device) for device in chosen),
            tuple(map(str, chosen)),
            loading.device_map is not None and len(chosen) > 1,
        )

    @classmethod
    def of(cls, gigabytes: int, *, count: int = 1) -> "Machine":
        """Return a GPU of so many GB, or several over which blocks are spread."""
        names = tuple(f"cuda:{i}" for i in range(count))
        return cls("cuda", (gigabytes * GB,) * count, names, count > 1)

    def part(self, processes: int) -> "Machine":
        """Return what each of several processes has of it."""
        return replace(self, free=tuple(free // processes for free in self.free))

    def room(self, role: Role) -> int:
        """Bytes where a model goes."""
        context = CONTEXT if self.kind == "cuda" else 0
        if self.spread:
            return int(UNEVEN * sum(free - context for free in self.free))
        return self.free[0 if role == "vlm" else -1] - context

    @property
    def shared(self) -> bool:
        """Whether both models are on the same devices."""
        return self.spread or len(self.free) == 1

    def where(self, roles: Sequence[Role]) -> str:
        """The devices that these are on."""
        if self.spread:
            return "+".join(self.names)
        return ",".join(dict.fromkeys(self.names[0 if role == "vlm" else -1] for role in roles))


@dataclass(frozen=True)
class Height:
    """What a stage takes at its height.

    Attributes
    ----------
    peak : int
        Bytes, with the batches that there is room for.
    least : int
        Bytes, one row at a time: less is not enough.
    both : bool
        Whether both models are there.
    """

    peak: int
    least: int
    both: bool


def needed(scope: Scope, work: Work) -> int:
    """Bytes of one of a work's rows."""
    asked = scope.vlm if work.role == "vlm" else scope.backbone
    return row_needs(asked.sizes, work.kind, width=work.width, before=work.before)


def height(
    scope: Scope, works: Sequence[Work], weights: Mapping[Role, Weights], machine: Machine
) -> Height:
    """How much memory a stage takes on a machine: both models if there is room, else one by one.

    Parameters
    ----------
    scope : Scope
    works : sequence of Work
    weights : mapping of str to Weights
        Of both models; of one alone, where both are the same.
    machine : Machine
    """
    sizes = {role: of.nbytes for role, of in weights.items()}
    together = machine.shared and len(sizes) > 1
    peaks, least = [0], [0]
    total = sum(sizes.values())
    both = (
        together
        and len(works) > 0
        and all(total + needed(scope, work) <= machine.room(work.role) for work in works)
    )
    for work in works:
        role: Role = work.role if work.role in sizes else "vlm"
        held, each = total if both else sizes[role], needed(scope, work)
        room = machine.room(role)
        peaks.append(held + each * rows_in(max(0, room - held), each, max(1, work.rows)))
        least.append(sizes[role] + each)
    return Height(max(peaks), max(least), both)


def fits(
    scope: Scope,
    works: Sequence[Work],
    weights: Mapping[Role, Weights],
    machine: Machine,
) -> bool:
    """Whether every work fits, one model and one row at a time."""
    sizes = {role: of.nbytes for role, of in weights.items()}
    return all(
        sizes.get(work.role, max(sizes.values())) + needed(scope, work) <= machine.room(work.role)
        for work in works
    )


def in_format(scope: Scope, weights: Mapping[Role, Weights]) -> Scope:
    """Return the scope with numbers as wide as the weights'."""

    def wide(asked: Asked) -> Asked:
        n_bytes = weights.get(asked.role, weights["vlm"]).n_bytes
        return replace(asked, sizes=replace(asked.sizes, n_bytes=n_bytes))

    return replace(scope, vlm=wide(scope.vlm), backbone=wide(scope.backbone))
