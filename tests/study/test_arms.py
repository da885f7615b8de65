"""Each arm of the recovery is declared once, with all that is said of it."""

from pathlib import Path

from twohop.report.comparison_figures import N_PANELS, PANELS
from twohop.report.figures import arm_colour
from twohop.report.style import GREY
from twohop.stages.recovery.arms import (
    ALL_ARMS,
    ARMS,
    FOLLOW,
    GROUPS,
    WITHOUT_IMAGE_TOKENS,
    arm_groups,
    arm_label,
)

PAGE = Path(__file__).parents[2] / "docs" / "study" / "index.md"


def test_an_arm_is_there_once_and_has_all_its_words() -> None:
    names = [arm.name for arm in ALL_ARMS]
    assert len({*names}) == len(names)
    assert {arm.group for arm in ALL_ARMS} == {*GROUPS}
    assert all(arm.label and arm.says for arm in ALL_ARMS)
    assert {*FOLLOW} | {*WITHOUT_IMAGE_TOKENS.values()} < {*ARMS}
    for label in (arm_label(name) for name in names):
        assert label.count(": ") == 1
    documented = PAGE.read_text(encoding="utf-8")
    assert all(f"`{name}`" in documented for name in ARMS)


def test_what_should_not_help_is_grey() -> None:
    for arm in ALL_ARMS:
        assert (arm_colour(arm.name) == GREY) == arm.control
    assert arm_colour("of_another_version") != GREY


def test_groups_keep_the_order_and_take_in_what_they_do_not_know() -> None:
    names = [arm.name for arm in ALL_ARMS]
    groups = arm_groups([*reversed(names), "of_another_version"])
    assert [name for _, labels in groups[:-1] for name in labels] == names
    assert groups[-1] == ("Other arms", {"of_another_version": "of another version"})


def test_panels_fill_the_lines_of_the_figure() -> None:
    assert [arm.panel[0] for arm in PANELS if arm.panel] == [*range(len(PANELS))]
    assert len(PANELS) % N_PANELS == 0
