"""What a study will take, said before it is begun: tokens, hours, memory, downloads, requests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from interventions.errors import InterventionsError
from twohop.ask.on_server import REQUEST_BYTES
from twohop.protocol import Protocol
from twohop.running.rates import Rate
from twohop.running.weighing import (
    GB,
    Height,
    Machine,
    Weights,
    fits,
    height,
    in_format,
)
from twohop.stages.asked import Scope
from twohop.stages.costs import COSTS
from twohop.stages.table import STAGES
from twohop.stages.work import Role, Work


class TooLarge(InterventionsError):
    """A study does not fit where it is to run."""


@dataclass(frozen=True)
class StagePlan:
    """What one stage takes.

    Attributes
    ----------
    stage : str
    roles : tuple of str
        The models that run.
    tokens : dict of str to int
        Tokens through blocks, by model.
    passes : int
        Forward passes.
    seconds : float
    height : Height
        Of memory.
    where : str
        The devices.
    requests, sent : int
        On a server: requests, and bytes of prompts.
    """

    stage: str
    roles: tuple[Role, ...]
    tokens: Mapping[Role, int]
    passes: int
    seconds: float
    height: Height
    where: str
    requests: int
    sent: int


@dataclass(frozen=True)
class Plan:
    """What a study takes.

    Attributes
    ----------
    pair : str
    stages : list of StagePlan
    machine : Machine
    weights : dict of str to Weights
        By model.
    timed : bool
        Whether forward passes were timed here.
    exact : bool
        Whether items were counted, or are the most there can be.
    remote : bool
        Whether it runs on a server, which has the weights.
    remedy : str
        What to change where it does not fit; empty where it does.
    downloads : dict of str to int
        Bytes that are fetched, by repo id.
    sure : bool
        Whether the weights take what is counted, and have to be on these devices.
    notes : sequence of str
        What else is to be known of the numbers.
    """

    pair: str
    stages: Sequence[StagePlan]
    machine: Machine
    weights: Mapping[Role, Weights]
    timed: bool
    exact: bool
    remote: bool = False
    remedy: str = ""
    downloads: Mapping[str, int] = field(default_factory=dict)
    sure: bool = True
    notes: Sequence[str] = ()

    @property
    def seconds(self) -> float:
        """Of all stages."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def peak(self) -> int:
        """Bytes of the stage that takes most."""
        return max((stage.height.peak for stage in self.stages), default=0)

    @property
    def least(self) -> int:
        """Bytes without which some stage cannot be run at all."""
        return max((stage.height.least for stage in self.stages), default=0)

    @property
    def hopeless(self) -> bool:
        """Whether the weights of one of the models alone are more than is free."""
        free = self.machine.free
        return self.sure and any(
            of.nbytes > (sum(free) if self.machine.spread else free[0 if role == "vlm" else -1])
            for role, of in self.weights.items()
            if any(role in stage.roles for stage in self.stages)
        )

    def doubts(self) -> str:
        """Why it does not fit by this count, and the smallest change that does; empty if it fits.

        What rows take is estimated; only what :attr:`hopeless` says is certain.
        """
        if not self.remedy:
            return ""
        worst = max(self.stages, key=lambda stage: stage.height.least)
        free = " + ".join(f"{free / GB:.1f} GB" for free in self.machine.free)
        return (
            f"{self.pair} does not fit on {', '.join(self.machine.names)}: {worst.stage} takes "
            f"{worst.height.least / GB:.1f} GB at least, one model and one row at a time, and "
            f"{free} are free. {self.remedy}"
        )

    def check(self) -> None:
        """Refuse a study that does not fit.

        Raises
        ------
        TooLarge
            With the smallest change that fits.
        """
        if doubts := self.doubts():
            raise TooLarge(doubts)


def planned(
    pair: str,
    scope: Scope,
    weights: Mapping[Role, Weights],
    machine: Machine,
    *,
    protocol: Protocol,
    stages: Sequence[str] = STAGES,
    rates: Mapping[Role, Rate] | None = None,
    spare: Machine | None = None,
    remote: bool = False,
) -> Plan:
    """Plan stages on a machine.

    Parameters
    ----------
    pair : str
        What it is called.
    scope : Scope
    weights : mapping of str to Weights
        By model; the VLM's alone, where it is its own backbone.
    machine : Machine
    protocol : Protocol
    stages : sequence of str
    rates : mapping of str to Rate, optional
        By model, as timed. Default: the kind of device's.
    spare : Machine, optional
        All GPUs of the machine, where fewer are to be used.
    remote : bool
        Whether it runs on a server.
    """
    scope = in_format(scope, weights)
    works = {stage: COSTS[stage](scope, protocol) for stage in stages}
    usual = Rate.usual(machine.kind)
    rates = rates or {}
    plans = []
    for stage, of_stage in works.items():
        roles: dict[Role, int] = {}
        seconds = 0.0
        for work in of_stage:
            asked = scope.vlm if work.role == "vlm" else scope.backbone
            roles[work.role] = roles.get(work.role, 0) + work.tokens
            seconds += rates.get(work.role, usual).seconds(asked, work)
        sent = sum(work.sent for work in of_stage)
        asks = len(of_stage) // len(scope.relations)  # each sends every relation's at once
        plans.append(
            StagePlan(
                stage,
                tuple(roles),
                roles,
                sum(work.passes for work in of_stage),
                seconds,
                height(scope, of_stage, weights, machine),
                machine.where(tuple(roles)) if roles else "",
                max(asks, -(-sent // REQUEST_BYTES)) if of_stage else 0,
                sent,
            )
        )
    every = [work for of_stage in works.values() for work in of_stage]
    remedy = ""
    if not remote and not fits(scope, every, weights, machine):
        remedy = _remedy(scope, every, weights, machine, spare)
    timed = bool(rates) and all(rate.timed for rate in rates.values())
    return Plan(pair, plans, machine, weights, timed, scope.counts.exact, remote, remedy)


def _remedy(
    scope: Scope,
    works: Sequence[Work],
    weights: Mapping[Role, Weights],
    machine: Machine,
    spare: Machine | None,
) -> str:
    """The smallest change by which all works fit."""

    def changed(**how: object) -> Mapping[Role, Weights]:
        return {role: replace(of, **how) for role, of in weights.items()}  # type: ignore[arg-type]

    wide = any(of.n_bytes > 2 for of in weights.values())
    tries: list[tuple[str, Mapping[Role, Weights], Machine]] = []
    if spare is not None and len(spare.free) > len(machine.free):
        tries.append((f"--device-map auto, over {len(spare.free)} GPUs", weights, spare))
    if wide:
        tries.append(("--dtype bfloat16", changed(n_bytes=2), machine))
    if machine.kind != "cpu" and all(of.stored is None for of in weights.values()):
        for packing in ("int8", "nf4"):
            how = changed(n_bytes=2, packing=packing)
            tries.append((f"--quantization {packing}", how, machine))
            if spare is not None and len(spare.free) > len(machine.free):
                tries.append((f"--quantization {packing} --device-map auto", how, spare))
    for said, how, on in tries:
        if fits(in_format(scope, how), works, how, on):
            return f"What fits: {said}. Or run it on NDIF: --remote."
    least = 0
    for work in works:
        least = max(least, height(scope, [work], weights, machine).least)
    return (
        f"Nothing here makes it fit: a device with {least / GB:.0f} GB free does, several "
        "(--device-map auto), or NDIF: --remote. Sample sizes (--preset) do not change it."
    )
