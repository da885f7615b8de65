"""Which workers a study is given to."""

import os
from collections.abc import Callable, Sequence

import torch

from interventions.errors import InterventionsError
from twohop.pairs import PAIRS, Pair
from twohop.running.crew.on_ray import CARD_SPARE, ON_A_CPU, OnRay, share_of_card
from twohop.running.crew.processes import Processes
from twohop.running.crew.transport import Crew
from twohop.running.loading import Loading
from twohop.running.pair_run import PairRun, Settings
from twohop.running.planning import plan_of_rest

RAY = "ray"


def crew_of(
    where: str | None, workers: int | None, pairs: Sequence[Pair], settings: Settings
) -> Crew | None:
    """The workers that ``--on`` and ``--workers`` ask for; None: this process alone.

    Parameters
    ----------
    where : str, optional
        ``"processes"``, ``"ray"`` or ``"ray://HOST:PORT"``. Default: two processes for several
        built-in pairs on a CPU, else none.
    workers : int, optional
    pairs : sequence of Pair
    settings : Settings

    Raises
    ------
    InterventionsError
        For anything else, or where workers are no help.
    RayMissing
        If Ray is not installed or does not answer.
    """
    if where is None and workers is not None:
        if settings.remote:
            raise InterventionsError("--workers and --remote were both given. Give one of them.")
        where = "processes"
    if where is None:
        return Processes(ON_A_CPU) if worth_sharing(pairs, settings) else None
    if settings.remote:
        raise InterventionsError(
            f"--on {where} and --remote were both given: a server has workers of its own. Give one."
        )
    if where == "processes":
        told = settings.loading.device or settings.loading.device_map is not None
        gpus = [] if told else visible_gpus()
        return Processes(workers or len(gpus) or ON_A_CPU, gpus=gpus, keep=built_in(pairs))
    if where == RAY or where.startswith(f"{RAY}://"):
        return OnRay(None if where == RAY else where, workers=workers)
    raise InterventionsError(f"--on {where}: expected processes, ray or ray://HOST:PORT.")


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES has for them."""
    count = torch.cuda.device_count()
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [*map(str, range(count))] if given is None else given.split(",")
    return [name.strip() for name in names[:count]]


def worth_sharing(pairs: Sequence[Pair], settings: Settings) -> bool:
    """Whether to share unasked: several built-in pairs, small enough to be loaded twice."""
    here = not (settings.remote or torch.cuda.is_available())
    return len(pairs) > 1 and built_in(pairs) and here and torch.get_num_threads() >= ON_A_CPU


def built_in(pairs: Sequence[Pair]) -> bool:
    """Whether all come with this package, and are so small that a worker can keep them."""
    return all(PAIRS.get(pair.key) is pair for pair in pairs)


def share_of(crew: Crew) -> Callable[[PairRun, Sequence[str]], float] | None:
    """How much of a cluster's GPUs stages of a run take, by their plan; None without GPUs."""
    card = crew.card if isinstance(crew, OnRay) else None
    if card is None:
        return None
    machines = crew.machines(Loading())

    def share(run: PairRun, stages: Sequence[str]) -> float:
        plan, room = plan_of_rest(run, stages, machines[:1]), int(card * CARD_SPARE)
        needed = room if plan is None else max(plan.least, min(plan.peak, room))
        return share_of_card(needed, card)

    return share
