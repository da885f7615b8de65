"""The arms of the recovery: each declared once, with its words, its group and its place.

An arm is an intervention that is tried on lost items, and on kept ones for its harm. What it is
called says whether it is the paper's or ours; the summary derives some more from back-patching.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Group = Literal["transplant", "control", "back_patching", "chain"]
GROUPS: dict[str, str] = {
    "transplant": "Transplant: the backbone's entity",
    "control": "Controls: what should not help",
    "back_patching": "Back-patching: the VLM's own later state",
    "chain": "Chain of thought: name it, then answer",
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
        "span_mlp",
        "transplant",
        "MLP outputs, span found on other entities (the paper's)",
        "the paper's arm: MLP outputs of the enrichment window, into the span of tokens that "
        "attribution finds on other entities",
        panel=(0, "transplant, MLP outputs,\nspan found elsewhere"),
        verdict="transplanting the backbone's MLP outputs into a span found elsewhere gives back",
    ),
    Arm(
        "place_resid",
        "transplant",
        "block outputs, token chosen on other entities (ours)",
        "ours: block outputs, into the one token where exact patching raises the answer's "
        "probability most on other entities",
        panel=(1, "transplant, block outputs,\ntoken chosen elsewhere"),
        verdict="transplanting its block outputs at a token chosen on other entities",
    ),
    Arm(
        WHOLE,
        "transplant",
        "block outputs, all image tokens (ours)",
        "ours: block outputs, into every image token",
        panel=(2, "transplant, all image\n(or question's) tokens"),
        verdict="transplanting them into all image tokens",
    ),
    Arm(
        LAST,
        "transplant",
        "block outputs, last image token (ours)",
        "ours: the same, into the last image token only",
    ),
    Arm(
        WHOLE_MLP,
        "transplant",
        "MLP outputs, all image tokens",
        "between the two: MLP outputs only, into every image token",
    ),
    Arm(
        "transplant_question",
        "transplant",
        "block outputs, question's tokens (ours)",
        "ours: block outputs, into the question's tokens, where an image has none",
        in_place_of=WHOLE,
        verdict="transplanting them into the question's tokens",
    ),
    Arm(
        "transplant_last_token",
        "transplant",
        "block outputs, last token (ours)",
        "ours: the same, into the last token of the prompt",
        in_place_of=LAST,
    ),
    Arm(
        "transplant_question_mlp",
        "transplant",
        "MLP outputs, question's tokens",
        "between the two: MLP outputs only, into the question's tokens",
        in_place_of=WHOLE_MLP,
    ),
    Arm(
        "whole_other_question",
        "transplant",
        "read from another question",
        "ours: block outputs, into every image token, read where the backbone is asked for another "
        "fact of the entity: what stays is not the answer",
    ),
    Arm(
        "whole_naming_prompt",
        "transplant",
        "read from the naming prompt",
        "ours: the same, read where the backbone is asked for the name",
    ),
    Arm(
        "span_random",
        "control",
        "random span, as many tokens (the paper's)",
        "the paper's control: the same MLP outputs, into random spans of as many tokens, from the "
        "first candidate place to the last",
        control=True,
        panel=(3, "control: same MLP outputs,\nrandom span"),
        verdict="the same into random spans of as many tokens",
    ),
    Arm(
        "span_wrong_entity",
        "control",
        "another entity's MLP outputs, same span",
        "another entity's MLP outputs, into the same span",
        control=True,
    ),
    Arm(
        "span_mean_entity",
        "control",
        "mean over other entities, same span",
        "the mean MLP outputs of the other entities, into the same span",
        control=True,
    ),
    Arm(
        "span_norm_matched",
        "control",
        "random MLP outputs of the same norm, same span",
        "random vectors of the same norm, into the same span",
        control=True,
    ),
    Arm(
        "place_random",
        "control",
        "random one of the same places (ours)",
        "our control: the same block outputs, at a random one of the same candidate places: the "
        "exact mean over all different tokens",
        control=True,
        panel=(4, "control: same block outputs,\nrandom candidate token"),
        verdict="the same at a random candidate token",
    ),
    Arm(
        "wrong_entity",
        "control",
        "another entity's values, all image tokens",
        "another entity's block outputs, into every image token",
        control=True,
        panel=(5, "control: another\nentity's values"),
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
    ),
    Arm(
        "back_patching",
        "back_patching",
        "layers and tokens chosen on other entities",
        "the VLM's own later state, into an earlier layer; layers and tokens are chosen on other "
        "entities",
        panel=(6, "back-patching, cell chosen\non other entities"),
        verdict="back-patching",
    ),
    Arm(
        "back_patching_null",
        "back_patching",
        "same, another picture (null)",
        "the same in the same cell, with another picture's states",
        control=True,
        panel=(7, "back-patching null:\nanother picture"),
    ),
    Arm(
        "back_patching_null_change",
        "back_patching",
        "same, another picture's change (null)",
        "the same in the same cell, with the own earlier state and what another picture's state "
        "changes by from that layer to the later one",
        control=True,
    ),
    Arm(
        "back_patching_canonical",
        "back_patching",
        "by the canonical answer",
        "back-patching at the chosen cell, by the canonical answer, on the items of the grid",
        derived=True,
    ),
    Arm(
        "back_patching_grid_mean",
        "back_patching",
        "mean over all cells",
        "back-patching, the mean over all cells of the grid, by the canonical answer",
        derived=True,
    ),
    Arm(
        "back_patching_oracle",
        "back_patching",
        "best cell per item (oracle)",
        "back-patching, the canonical answer in any cell of the grid",
        derived=True,
    ),
    Arm(
        "back_patching_null_oracle",
        "back_patching",
        "best cell per item, null",
        "its null, the canonical answer in any cell of the grid",
        control=True,
        derived=True,
    ),
    Arm(
        "back_patching_null_searched",
        "back_patching",
        "best cell of another picture, null",
        "its null, the canonical answer in the cell at which other pictures' states do best on "
        "other entities",
        control=True,
        derived=True,
    ),
    Arm(
        "cot_own",
        "chain",
        "writes name and answer itself",
        "the paper's: the VLM writes the name itself and then answers; the end is scored",
        panel=(8, "chain of thought: name\nand answer, by itself"),
        verdict="naming it first by itself",
    ),
    Arm(
        "cot_unnamed",
        "chain",
        "its own name, question without it",
        "the VLM's own name is put in its mouth, and the question does not say it",
    ),
    Arm(
        "cot_named",
        "chain",
        "told its own name",
        "the VLM's own name is put in its mouth, and the question is about that name",
    ),
    Arm(
        "cot_gold",
        "chain",
        "told the right name",
        "the same with the right name",
    ),
    Arm("cot_wrong", "chain", "told a wrong name", "the same with a wrong one", control=True),
)
"""Every arm, in the order in which they are stored and shown."""

ARMS: tuple[str, ...] = tuple(arm.name for arm in ALL_ARMS if not arm.derived)
"""Names of the arms that are run, in the order of results."""
FOLLOW: tuple[str, ...] = ("wrong_entity", "span_wrong_entity", "cot_wrong")
"""Names of the arms that put another entity in, whose answer may be followed."""
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
    'Chain of thought: told the right name'
    """
    if name not in KNOWN:
        return name.replace("_", " ")
    arm = KNOWN[name]
    return f"{GROUPS[arm.group].split(':')[0].removesuffix('s')}: {arm.label}"
