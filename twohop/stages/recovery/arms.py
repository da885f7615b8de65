"""The arms of the recovery: each declared once, with its words, its group and its place.

An arm is an intervention that is tried on lost items. Those of `WRITTEN` put the backbone's values
at fixed tokens, see :mod:`twohop.stages.recovery.transplants`; the summary derives some more from
back-patching.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Group = Literal["transplant", "control", "back_patching", "chain"]
GROUPS: dict[str, str] = {
    "transplant": "Transplant: the backbone's entity",
    "control": "Controls: what should not help",
    "back_patching": "Back-patching: the VLM's own later state",
    "chain": "Chain of thought: name it, then ask",
}
"""Titles of the groups, in the order in which they are shown."""


@dataclass(frozen=True)
class Arm:
    """One arm.

    Attributes
    ----------
    name : str
        In results and in ``summary.json``.
    group : str
        One of :data:`GROUPS`.
    label : str
        What it is called under its group's title.
    says : str
        What is written, or said, and where.
    control : bool
        Whether it should not help: its bar is grey.
    in_place_of : str
        Name of the arm at image tokens whose place it takes where an image has none; empty for
        most.
    panel : (int, str), optional
        Place and title of its panel in the comparison of runs; places count row by row.
    verdict : str
        What the verdict calls it; empty if it is not in it.
    derived : bool
        Whether it is no run of its own: the summary computes it from back-patching.
    """

    name: str
    group: Group
    label: str
    says: str
    control: bool = False
    in_place_of: str = ""
    panel: tuple[int, str] | None = None
    verdict: str = ""
    derived: bool = False


WHOLE, LAST, WHOLE_MLP = "transplant_all_image", "transplant_last_image", "transplant_all_image_mlp"
ALL_ARMS = (
    Arm(
        WHOLE,
        "transplant",
        "into all image tokens",
        "block outputs, into every image token",
        panel=(0, "transplant, all image\n(or question's) tokens"),
        verdict="transplanting the backbone's entity gives back",
    ),
    Arm(
        LAST,
        "transplant",
        "into the last image token",
        "the same, into the last image token only",
    ),
    Arm(
        WHOLE_MLP,
        "transplant",
        "MLP outputs only, all image tokens",
        "MLP outputs only, into every image token",
        panel=(2, "transplant, MLP outputs\nonly, all those tokens"),
    ),
    Arm(
        "transplant_question",
        "transplant",
        "into the question's tokens",
        "block outputs, into the question's tokens, where an image has none",
        in_place_of=WHOLE,
        verdict="transplanting it into the question's tokens gives back",
    ),
    Arm(
        "transplant_last_token",
        "transplant",
        "into the last token",
        "the same, into the last token of the prompt",
        in_place_of=LAST,
    ),
    Arm(
        "transplant_question_mlp",
        "transplant",
        "MLP outputs only, question's tokens",
        "MLP outputs only, into the question's tokens",
        in_place_of=WHOLE_MLP,
    ),
    Arm(
        "transplant_heuristic",
        "transplant",
        "at the token chosen on other entities",
        "block outputs, into the one token where that raises the answer's probability most on "
        "other entities",
        panel=(1, "transplant, token chosen\non other entities"),
    ),
    Arm(
        "transplant_random_position",
        "control",
        "same values, random text tokens",
        "block outputs, into as many random text tokens",
        control=True,
        panel=(3, "control: same values,\nrandom text tokens"),
        verdict="at random positions",
    ),
    Arm(
        "wrong_entity",
        "control",
        "another entity's values",
        "another entity's values, into every image token",
        control=True,
        panel=(4, "control: another\nentity's values"),
    ),
    Arm(
        "mean_entity",
        "control",
        "mean over the other entities",
        "the mean over the other entities, into every image token",
        control=True,
    ),
    Arm(
        "norm_matched",
        "control",
        "random vector, same norm",
        "random vectors of the same norm, into every image token",
        control=True,
        panel=(5, "control: random vector,\nsame norm"),
    ),
    Arm(
        "back_patching",
        "back_patching",
        "layers fixed on other entities",
        "the VLM's own later state, into an earlier layer",
        panel=(6, "back-patching, layers\nfixed on other entities"),
        verdict="back-patching",
    ),
    Arm(
        "back_patching_null",
        "back_patching",
        "same, another picture (null)",
        "the same search with another picture's states",
        control=True,
        panel=(7, "back-patching null:\nanother picture"),
    ),
    Arm(
        "back_patching_grid_mean",
        "back_patching",
        "mean over all layer pairs",
        "back-patching, the mean over all pairs of layers",
        derived=True,
    ),
    Arm(
        "back_patching_oracle",
        "back_patching",
        "best pair per item (oracle)",
        "back-patching, right by any pair of layers",
        derived=True,
    ),
    Arm(
        "back_patching_null_oracle",
        "back_patching",
        "best pair per item, null",
        "its null, right by any pair of layers",
        control=True,
        derived=True,
    ),
    Arm(
        "cot_named",
        "chain",
        "the VLM's own name",
        "the VLM says its own name for it, then is asked",
        panel=(8, "chain of thought:\nthe VLM's own name"),
        verdict="naming it first",
    ),
    Arm("cot_gold", "chain", "the right name given", "the same with the right name"),
    Arm("cot_wrong", "chain", "a wrong name given", "the same with a wrong one", control=True),
)
"""Every arm, in the order in which they are stored and shown."""

ARMS: tuple[str, ...] = tuple(arm.name for arm in ALL_ARMS if not arm.derived)
"""Names of the arms that are run, in the order of results."""
WRITTEN: tuple[str, ...] = (WHOLE, LAST, WHOLE_MLP, "wrong_entity", "mean_entity", "norm_matched")
"""Names of the arms that write the backbone's values at fixed tokens."""
WITHOUT_IMAGE_TOKENS: dict[str, str] = {
    arm.in_place_of: arm.name for arm in ALL_ARMS if arm.in_place_of
}
"""The arms that take the place of those at image tokens, where an image has none."""
KNOWN: dict[str, Arm] = {arm.name: arm for arm in ALL_ARMS}


def arm_groups(names: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """Groups of the arms of these names, in order, as titles and labels; unknown ones come last."""
    groups = [
        (
            title,
            {arm.name: arm.label for arm in ALL_ARMS if arm.group == key and arm.name in names},
        )
        for key, title in GROUPS.items()
    ]
    rest = {name: name.replace("_", " ") for name in names if name not in KNOWN}
    return [(title, labels) for title, labels in (*groups, ("Other arms", rest)) if labels]


def arm_label(name: str) -> str:
    """Full name of an arm, to be read on its own.

    Examples
    --------
    >>> arm_label("cot_gold")
    'Chain of thought: the right name given'
    """
    if name not in KNOWN:
        return name.replace("_", " ")
    arm = KNOWN[name]
    return f"{GROUPS[arm.group].split(':')[0].removesuffix('s')}: {arm.label}"
