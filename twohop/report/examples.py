"""A few items in full: the picture, what was said at each gate, and what each arm made of it."""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from PIL import Image

from twohop.items.items import Benchmark
from twohop.report import wording
from twohop.report.picture_lens import PictureLens, picture_lens, with_lens, with_maps
from twohop.stages.recovery.arms import arm_label

N_EXAMPLES = 8
RANDOM = ("span_random", "place_random")
"""Arms of many draws, each with words of its own."""
PICTURE_WIDTH = 150


@dataclass(frozen=True)
class Said:
    """One answer: who was asked, the words, whether they were right."""

    asked: str
    text: str
    right: bool
    choice: str = ""


@dataclass(frozen=True)
class Example:
    """An item with everything that was said about it; of an entity's, the first has the lens."""

    item: str
    entity: str
    question: str
    answers: str
    picture: str
    verdict: str
    outcome: str
    gates: tuple[Said, ...]
    arms: tuple[Said, ...]
    lens: PictureLens | None = None


def inline(picture: Image.Image) -> str:
    """Return a small picture as a data URI."""
    small = picture.convert("RGB")
    if small.width > PICTURE_WIDTH:
        height = max(1, round(small.height * PICTURE_WIDTH / small.width))
        small = small.resize((PICTURE_WIDTH, height))
    buffer = io.BytesIO()
    small.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def chosen(
    classes: Sequence[object], *, entities: Sequence[str], preferred: Sequence[int], n: int
) -> list[int]:
    """Pick rows: one of each class, the largest class first, then more of them in turn.

    Parameters
    ----------
    classes : sequence
        Class of each row.
    entities : sequence of str
        Entity of each row; one that is shown already comes last in its class.
    preferred : sequence of int
        How much there is to show of each row; those with more come first in their class.
    n : int
        Number of rows.

    Examples
    --------
    >>> chosen(["a", "a", "b"], entities=["x", "y", "x"], preferred=[False, True, True], n=2)
    [1, 2]
    """
    queues: dict[object, list[int]] = {}
    for i, kind in enumerate(classes):
        queues.setdefault(kind, []).append(i)
    waiting = sorted(queues.values(), key=len, reverse=True)
    picked: list[int] = []
    shown: set[str] = set()
    while len(picked) < n and any(waiting):
        for queue in waiting:
            if queue and len(picked) < n:
                best = min(queue, key=lambda i: (-preferred[i], entities[i] in shown, i))
                queue.remove(best)
                picked.append(best)
                shown.add(entities[best])
    return sorted(picked)


def examples(tree: xr.DataTree, benchmark: Benchmark) -> list[Example]:
    """Return a few items that show each class of diagnosis and of image answer."""
    gates = tree["recall"].to_dataset()
    recovery = tree["recovery"].to_dataset()
    known = {item.id: item for item in benchmark.items}
    diagnosed = tree["diagnosis"].to_dataset()
    verdicts = dict(zip(diagnosed["item"].values, diagnosed["verdict"].values, strict=True))
    rows = [
        i
        for i, item in enumerate(gates["item"].values)
        if item in known and not bool(gates["surface"].values[i])
    ]
    outcomes = gates["outcome"].sel(gate="vlm_image").values
    tried = set(recovery["tried"].values) | set(recovery["kept"].values)
    resolution = tree["resolution"].to_dataset()
    read, mapped = with_lens(resolution), with_maps(resolution)
    view = int(resolution.attrs.get("test_view", 0))
    picked = chosen(
        [(verdicts[gates["item"].values[i]], outcomes[i]) for i in rows],
        entities=[str(gates["entity"].values[i]) for i in rows],
        preferred=[
            3 * (gates["item"].values[i] in tried)
            + sum(gates["entity"].values[i] in those for those in (read, mapped))
            for i in rows
        ],
        n=N_EXAMPLES,
    )
    shown: list[Example] = []
    for i in (rows[j] for j in picked):
        item = known[str(gates["item"].values[i])]
        verdict, outcome = str(verdicts[item.id]), str(outcomes[i])
        template = benchmark.templates[item.relation]
        question = template.show("[image]").removeprefix(template.prefix).strip()
        shown.append(
            Example(
                item=item.id,
                entity=item.entity.name,
                question=question,
                answers=", ".join(item.answers),
                picture=inline(benchmark.view(item.entity.code, 0)),
                verdict=wording.VERDICTS.get(verdict, (verdict, ""))[0],
                outcome=wording.OUTCOMES.get(outcome, (outcome, ""))[0],
                gates=tuple(_gates_of(gates.isel(item=i))),
                arms=tuple(_arms_of(recovery, item.id)),
                lens=(
                    picture_lens(
                        resolution, item.entity.name, benchmark.view(item.entity.code, view)
                    )
                    if item.entity.name in read - {example.entity for example in shown}
                    else None
                ),
            )
        )
    return shown


def _gates_of(row: xr.Dataset) -> Iterable[Said]:
    for gate in row["gate"].values:
        here = row.sel(gate=gate)
        yield Said(
            wording.GATES.get(str(gate), str(gate)),
            str(here["text"].item()),
            bool(here["right"].item()),
            str(here["choice"].item()),
        )


def _arms_of(recovery: xr.Dataset, item: str) -> Iterable[Said]:
    if item not in recovery["tried"].values:
        return
    here = recovery[["recovered", "said"]].sel(tried=item)
    with_words = (recovery["said"] != "").any("tried")
    for arm in recovery["arm"].values:
        share = float(here["recovered"].sel(arm=arm).item())
        if np.isnan(share):
            continue
        if bool(with_words.sel(arm=arm)):
            text = str(here["said"].sel(arm=arm).item())
        elif 0 < share < 1 or arm in RANDOM:
            text = f"(right in {100 * share:.0f} % of draws)"
        else:
            text = "(only scored)"
        yield Said(arm_label(str(arm)), text, share >= 0.5)
