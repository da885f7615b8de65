"""Plans of published pairs on GPUs that are not here, from what is published: nothing is fetched.

The pairs are asked about flags in a chat; how long their prompts are is about what it is in all of
them (:data:`NAMED`, :data:`SHOWN`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

from interventions.sweeping.schedule import Path
from interventions.sweeping.sizes import Sizes
from twohop.items.items import Item
from twohop.pairs import PUBLISHED, PublishedPair, flags_checked
from twohop.protocol import Protocol
from twohop.running.plan import Plan, planned
from twohop.running.weighing import Machine, Weights, fits, height
from twohop.stages.asked import TILED, Counts, Relation, Scope
from twohop.stages.costs import COSTS
from twohop.stages.work import Asked, Lengths, Role, Work

CARDS = (24, 48, 80, 141)
"""GB of the GPUs that pairs are planned on: as of an L4, an L40S, an A100 or H100, an H200."""
COUNTS = (1, 2, 4, 8)
NAMED = Lengths((), before=24, ahead=4, behind=12)
"""A question in a chat: what is shared, what is ahead of the name, what comes behind it."""
NAME = 3
SHOWN = Lengths((), before=12, ahead=1, behind=20, pictured=True)
ANSWER = 3
BEGINNINGS = 120
PIXELS = 3 * 4 * 336 * 336


@cache
def flags_asked() -> tuple[tuple[str, int], ...]:
    """The relations of the flags, and how many items each has; entities are counted as one more."""
    items: Sequence[Item] = flags_checked("flags").items
    relations = dict.fromkeys(item.relation for item in items)
    counts = [(name, sum(item.relation == name for item in items)) for name in relations]
    return (*counts, ("", len({item.entity.code for item in items})))


def published_scope(pair: PublishedPair, protocol: Protocol) -> Scope:
    """What a published pair is asked about flags."""
    shape = pair.shape
    *relations, (_, entities) = flags_asked()
    text: Path = "rows" if shape.recurrent else "plain" if shape.windowed else "suffix"
    image: Path = {"itself": "suffix", "image": "rows", "all": "plain"}[shape.sees]  # type: ignore[assignment]
    width = SHOWN.ahead + SHOWN.behind + max(0, shape.picture - 1)
    named = replace(NAMED, rows=(NAMED.ahead + NAME + NAMED.behind - 1,), path=text)
    cut = replace(named, rows=(NAMED.ahead + NAME,), behind=1)
    shown = replace(SHOWN, rows=(width,), path=image, sent=PIXELS)
    chained = replace(shown, rows=(width + NAMED.behind + 2 * NAME,))
    items = sum(count for _, count in relations)
    sizes = sizes_of(pair)
    crossed = replace(sizes, n_layers=shape.n_layers + shape.crossing)
    vision = pair.vlm_parameters.value - pair.backbone_parameters.value
    vision -= shape.crossing * shape.block
    return Scope(
        Asked("vlm", crossed, "cuda", shape.n_layers, max(0, vision), shape.picture or TILED),
        Asked("backbone", sizes, "cuda", shape.n_layers),
        tuple(
            Relation(
                named.sample(count),
                cut.sample(count),
                shown.sample(count),
                shown.sample(count),
                sum(named.rows) + named.before,
                ANSWER,
                BEGINNINGS,
            )
            for _, count in relations
        ),
        shown.sample(entities),
        cut.sample(entities),
        chained,
        0,
        protocol.sentence_tokens - 1,
        Counts.most(items, protocol),
        pair.same_weights,
    )


def sizes_of(pair: PublishedPair) -> Sizes:
    """Sizes of a pair's language model in 16 bits."""
    shape = pair.shape
    return Sizes(
        shape.n_layers,
        shape.d_model,
        shape.n_heads,
        shape.n_kv_heads,
        shape.head_dim,
        shape.vocab,
        shape.inner,
        2,
        shape.block,
    )


def published_weights(
    pair: PublishedPair, packing: str | None = None, n_bytes: int = 2
) -> dict[Role, Weights]:
    """Weights of both models; of one, where both are the same."""
    ends = pair.shape.ends
    parameters = pair.vlm_parameters.value
    weights: dict[Role, Weights] = {"vlm": Weights(parameters, ends, n_bytes, packing)}
    if not pair.same_weights:
        weights["backbone"] = Weights(pair.backbone_parameters.value, ends, n_bytes, packing)
    return weights


def published_plan(
    key: str,
    machine: Machine,
    *,
    protocol: Protocol,
    packing: str | None = None,
    n_bytes: int = 2,
    spare: Machine | None = None,
    remote: bool = False,
) -> Plan:
    """Plan a published pair's study of flags on a machine."""
    pair = PUBLISHED[key]
    weights = published_weights(pair, packing, n_bytes)
    scope = published_scope(pair, protocol)
    return planned(key, scope, weights, machine, protocol=protocol, spare=spare, remote=remote)


@dataclass(frozen=True)
class Fit:
    """The least that a pair needs of cards of one size.

    Attributes
    ----------
    count : int
        Cards.
    packing : str or None
        Of the weights.
    least : int
        Bytes without which some stage cannot be run.
    """

    count: int
    packing: str | None
    least: int


@cache
def every_work(key: str, protocol: Protocol) -> tuple[Scope, list[Work]]:
    """What goes through a pair's models in all stages."""
    scope = published_scope(PUBLISHED[key], protocol)
    return scope, [work for cost in COSTS.values() for work in cost(scope, protocol)]


def fit_on(key: str, gigabytes: int, *, protocol: Protocol) -> list[Fit]:
    """How a pair fits on cards of so many GB: in 16 bits, and packed where that takes fewer."""
    ways: list[Fit] = []
    scope, works = every_work(key, protocol)
    for packing in (None, "int8", "nf4"):
        weights = published_weights(PUBLISHED[key], packing)
        for count in COUNTS:
            machine = Machine.of(gigabytes, count=count)
            if fits(scope, works, weights, machine):
                if not ways or count < ways[-1].count:
                    least = height(scope, works, weights, machine).least
                    ways.append(Fit(count, packing, least))
                break
    return ways
