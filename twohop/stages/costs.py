"""What each stage lets go through the models, by the numbers that it works with itself.

Counted before it is run: what depends on answers, such as how many items are lost, is the most that
it can be, or what a stage that is done has counted (:class:`twohop.stages.asked.Counts`). Numbers
of blocks, cells, places and rows are those of the stages' own functions.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

from twohop.ask.shards import SHARD_ROWS
from twohop.protocol import Protocol
from twohop.stages.ablation import READ_ROWS, Grid
from twohop.stages.asked import Relation, Scope
from twohop.stages.maps.attributed import ROWS as ATTRIBUTED_ROWS
from twohop.stages.maps.exact import window_edges
from twohop.stages.patched import ANSWER_ROWS
from twohop.stages.recovery.back_patching import ARMS_OF_IT, SOURCES, layer_pairs
from twohop.stages.recovery.chains import ABOUT_NAME, WITHOUT_NAME
from twohop.stages.recovery.recovery import SPAN_VALUES
from twohop.stages.recovery.spans import ROWS as SPAN_ROWS
from twohop.stages.recovery.transplants import WHOLE_ARMS
from twohop.stages.resolution.beside import windows_of
from twohop.stages.resolution.picture_maps import AGAINST, CUT
from twohop.stages.resolution.states import BATCH_TOKENS, RAGGED_ROWS, spread_rows
from twohop.stages.timetable import thinned
from twohop.stages.work import Asked, Lengths, Work

Cost = Callable[[Scope, Protocol], list[Work]]
FORWARD = 2
"""Passes of an attribution that need no gradients: one of either side."""


def backbone_text(scope: Scope, protocol: Protocol) -> list[Work]:
    """Every item in text, and every relation about nothing."""
    return _text_gate(scope, scope.backbone)


def _text_gate(scope: Scope, asked: Asked) -> list[Work]:
    works = []
    for relation in scope.relations:
        nothing = Lengths((relation.unnamed,), 0, 0, 1)
        works += [
            asked.answering(nothing, steps=scope.steps, most=1, beginnings=relation.beginnings),
            _answered(scope, asked, relation, relation.named),
        ]
    return works


def _answered(scope: Scope, asked: Asked, relation: Relation, lengths: Lengths) -> Work:
    """Free answers and forced choices: most beginnings were gone through, or are ruled out."""
    return asked.answering(
        lengths, steps=scope.steps, most=SHARD_ROWS, beginnings=min(1, relation.beginnings)
    )


def recall(scope: Scope, protocol: Protocol) -> list[Work]:
    """Every entity's name, every item from its picture, and from a blank one."""
    vlm, naming = scope.vlm, scope.naming
    works = [vlm.answering(naming, steps=scope.steps, most=SHARD_ROWS)]
    for relation in scope.relations:
        blank = relation.shown.sample(1)
        works += [
            vlm.answering(blank, steps=scope.steps, most=1, beginnings=relation.beginnings),
            _answered(scope, vlm, relation, relation.shown),
        ]
    return works + ([] if scope.same else _text_gate(scope, vlm))


def windows(scope: Scope, protocol: Protocol) -> list[Work]:
    """Ablation, restoration and swaps at the name's last token."""
    return _windows(scope, protocol, scope.backbone, scope.counts.known)


def windows_vlm(scope: Scope, protocol: Protocol) -> list[Work]:
    """The same of the VLM, unless its decoder is the backbone's."""
    return [] if scope.same else _windows(scope, protocol, scope.vlm, scope.counts.both_known)


def _windows(scope: Scope, protocol: Protocol, asked: Asked, known: int) -> list[Work]:
    n = asked.blocks
    grid = Grid.of(n, protocol.window_blocks)
    works = [asked.reading(part, most=READ_ROWS) for _, part in scope.sampled(known, "cut")]
    for relation, part in scope.sampled(min(known, protocol.window_items), "named"):
        edges = [edge + 1 for edge in range(n)] + [block + 1 for block in grid.alone]
        starts = [(min(block, n), part.behind) for block in edges]
        starts += [(0, part.behind)] * len(grid.edges)
        swaps = [(min(block + 1, n), part.behind) for block in grid.swapped]
        works += [
            asked.reading(part),
            asked.cells(part, starts, answer=relation.answer),
            asked.reading(part),
            asked.cells(part, swaps, answer=relation.answer, bare=False),
        ]
    return works


def timetable(scope: Scope, protocol: Protocol) -> list[Work]:
    """Every form of the name's states in every later block."""
    return _timetable(scope, protocol, scope.backbone, scope.counts.known)


def timetable_vlm(scope: Scope, protocol: Protocol) -> list[Work]:
    """The same of the VLM, unless its decoder is the backbone's."""
    return [] if scope.same else _timetable(scope, protocol, scope.vlm, scope.counts.both_known)


def _timetable(scope: Scope, protocol: Protocol, asked: Asked, known: int) -> list[Work]:
    layers = thinned(asked.blocks, protocol.timetable_layers)
    works = []
    for relation, part in scope.sampled(min(known, protocol.timetable_items), "named"):
        longest = part.rows[-1] - part.ahead
        starts = [(block, longest) for form in layers for block in layers if block >= form]
        works += [asked.reading(part), asked.cells(part, starts, answer=relation.answer)]
    return works


def map_text(scope: Scope, protocol: Protocol) -> list[Work]:
    """The exact map of the backbone."""
    return _map(scope, protocol, scope.backbone, "named", [scope.counts.known])


def map_image(scope: Scope, protocol: Protocol) -> list[Work]:
    """The exact map of the VLM, of items that are right and of those that are lost."""
    return _map(scope, protocol, scope.vlm, "shown", [scope.counts.right, scope.counts.lost])


def _map(
    scope: Scope, protocol: Protocol, asked: Asked, kind: str, groups: list[int]
) -> list[Work]:
    works = []
    for _, part in scope.sampled(_mapped(protocol, groups), kind):
        n = asked.layers(part)
        edges = window_edges(n, most=protocol.map_windows).tolist()
        whole = part.rows[-1] - part.ahead if part.pictured else part.behind
        roles = [whole, part.behind - 1, 1] if part.behind > 2 else [whole, 1]
        starts = [
            (min(block, n), length)
            for first, stop in pairwise(edges)
            for block in (first, first + 1, stop)  # of attention, of MLPs, of the last output
            for length in roles
        ]
        works += [
            asked.reading(part),
            asked.cells(part, []),
            asked.cells(part, starts),
        ]
    return works


def _mapped(protocol: Protocol, groups: list[int]) -> int:
    return sum(min(group, protocol.map_items) for group in groups)


def attribution_text(scope: Scope, protocol: Protocol) -> list[Work]:
    """Gradients on the items of the backbone's map."""
    return _attributed(scope, protocol, scope.backbone, "named", [scope.counts.known])


def attribution_image(scope: Scope, protocol: Protocol) -> list[Work]:
    """Gradients on the items of the VLM's map."""
    return _attributed(scope, protocol, scope.vlm, "shown", [scope.counts.right, scope.counts.lost])


def _attributed(
    scope: Scope, protocol: Protocol, asked: Asked, kind: str, groups: list[int]
) -> list[Work]:
    return [
        asked.gradients(
            part, most=ATTRIBUTED_ROWS, forward=FORWARD, backward=protocol.attribution_steps
        )
        for _, part in scope.sampled(_mapped(protocol, groups), kind)
    ]


def resolution(scope: Scope, protocol: Protocol) -> list[Work]:
    """States at every place of the pictures, and at the names."""
    shown = scope.relations[scope.probed].marked
    views = [protocol.test_view, *protocol.fit_views]
    pictures = shown.sample(len(scope.naming.rows))
    works = [scope.vlm.reading(pictures, most=_states(pictures)) for _ in views]
    if pictures.path != "plain":
        drawn = pictures.sample(len(spread_rows(len(pictures.rows), protocol.picture_entities)))
        works.append(scope.vlm.reading(drawn, most=max(1, BATCH_TOKENS // drawn.rows[-1])))
        mapped = drawn.sample(len(spread_rows(len(drawn.rows), protocol.picture_maps)))
        works += [
            work
            for row in mapped.rows
            for work in _on_picture(scope.vlm, replace(mapped, rows=(row,)), protocol)
        ]
    names = [relation.cut for relation in scope.relations] + [scope.named]
    for asked in [scope.backbone] + ([] if scope.same else [scope.vlm]):
        works += [asked.reading(part, most=_states(part)) for part in names]
    whole = scope.relations[scope.probed].named
    return [*works, scope.backbone.reading(whole, most=_states(whole))]


def _on_picture(vlm: Asked, picture: Lengths, protocol: Protocol) -> list[Work]:
    """Every map of one picture: read for attention, rollout and probe, and from two others."""
    windows = windows_of(vlm.sizes.n_layers, protocol)
    text = picture.behind - 1
    image = picture.rows[-1] - picture.ahead - text
    across = protocol.picture_regions
    lines = [image * (k // across) // across for k in range(across**2)]
    regions = lines if image >= across**2 else [*range(image)]
    firsts = [blocks[0] for blocks in windows]
    patched = [(first, image - ahead + text) for first in firsts for ahead in regions]
    cut = [(first, text) for first in firsts for _ in regions]
    attributed = vlm.gradients(
        picture, most=1, forward=FORWARD, backward=protocol.attribution_steps
    )
    below = firsts[-1] / vlm.sizes.n_layers
    return [
        *[attributed] * len(AGAINST),
        *[vlm.reading(picture)] * LOOKS,
        *[vlm.reading(picture, share=below)] * len(AGAINST),
        vlm.cells(picture, patched * len(AGAINST)),
        vlm.cells(picture, cut * len(CUT)),
    ]


LOOKS = 3
"""For attention, for its rollout, and for the probe."""


def _states(lengths: Lengths) -> int:
    most = max(1, BATCH_TOKENS // max(lengths.rows, default=1))
    return most if len({*lengths.rows}) == 1 else min(most, RAGGED_ROWS)


def recovery(scope: Scope, protocol: Protocol) -> list[Work]:
    """Every arm on the lost and the kept items, and back-patching's grid on the lost ones."""
    vlm, counts = scope.vlm, scope.counts
    lost = min(counts.gone, protocol.lost_items)
    tried = lost + min(counts.kept, protocol.kept_items)
    works = []
    for _, part in scope.sampled(tried, "named"):
        works += [scope.backbone.reading(part, share=EARLY) for _ in range(READINGS)]
    places = protocol.question_places + 1
    for _, part in scope.sampled(tried, "shown"):
        inside = protocol.image_places if part.pictured and part.path != "plain" else 0
        starts = part.rows[-1] - part.ahead - part.behind + 1 + min(part.behind, places)
        random = min(protocol.random_seeds, starts) + 1
        arms = (len(WHOLE_ARMS), places + inside, random, len(SPAN_VALUES) - 1)
        for tries in (*arms, *([1] * len(ARMS_OF_IT))):
            works.append(vlm.answering(part, steps=scope.steps, most=ANSWER_ROWS, tries=tries))
        works += [vlm.reading(part), vlm.reading(part)]
    for share in filter(None, scope.spread(tried)):
        works += [
            vlm.answering(scope.chained.sample(arms * share), steps=scope.steps, most=SHARD_ROWS)
            for arms in (len(ABOUT_NAME), len(WITHOUT_NAME))
        ]
    for _, part in scope.sampled(lost, "shown"):
        works.append(vlm.gradients(part, most=SPAN_ROWS, forward=0, backward=1))
    pairs = layer_pairs(vlm.sizes.n_layers, protocol=protocol)
    for relation, part in scope.sampled(min(lost, protocol.back_items), "shown"):
        starts = [(earlier, length) for _, earlier in pairs for length in _groups(part, protocol)]
        works += [vlm.reading(part), vlm.reading(part)]
        works += [vlm.cells(part, starts, answer=relation.answer, bare=False)] * len(SOURCES)
    return works


READINGS = 4
"""Of the backbone: the entity's values, another's, and the entity's in two other questions."""
EARLY = 0.5
"""Part of the blocks up to which values are read, about: the enrichment window ends there."""


def _groups(part: Lengths, protocol: Protocol) -> list[int]:
    """Tokens, from the end, that back-patching changes at each of its groups."""
    asked = [1 + min(place + 1, part.behind - 1) for place in range(protocol.back_tokens)]
    image = part.rows[-1] - part.ahead
    n = image - part.behind + 1
    parts = protocol.back_parts if protocol.back_parts > 1 else 0
    if part.path == "plain":
        return [*asked, 1]
    return [image, *(image - n * which // parts for which in range(parts)), *asked, 1]


def nothing(scope: Scope, protocol: Protocol) -> list[Work]:
    """Nothing is asked: the results of other stages are put together."""
    return []


COSTS: dict[str, Cost] = {
    "backbone_text": backbone_text,
    "recall": recall,
    "windows": windows,
    "timetable": timetable,
    "map_text": map_text,
    "attribution_text": attribution_text,
    "windows_vlm": windows_vlm,
    "timetable_vlm": timetable_vlm,
    "resolution": resolution,
    "map_image": map_image,
    "attribution_image": attribution_image,
    "recovery": recovery,
    "prediction": nothing,
    "diagnosis": nothing,
}
"""What each stage costs."""
