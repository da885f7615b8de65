"""Each arm of the recovery is declared once, with all that is said of it."""

from pathlib import Path

import pytest

from twohop.protocol import Protocol
from twohop.published import PUBLISHED
from twohop.report.comparison_figures import N_PANELS, PANELS
from twohop.report.figures import arm_colour
from twohop.report.style import GREY
from twohop.running.published_plans import published_scope
from twohop.stages import costs
from twohop.stages.recovery.arms import (
    ALL_ARMS,
    ARMS,
    FOLLOW,
    GROUPS,
    WITHOUT_IMAGE_TOKENS,
    arm_groups,
    arm_label,
)
from twohop.stages.recovery.back_patching import ARMS_OF_IT
from twohop.stages.recovery.chains import ABOUT_NAME, WITHOUT_NAME
from twohop.stages.recovery.recovery import SPAN_VALUES
from twohop.stages.recovery.transplants import WHOLE_ARMS

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


def test_every_arm_that_is_run_is_of_one_way_to_run_it() -> None:
    chosen = ("place_resid", "place_random", "span_random")
    names = [*WHOLE_ARMS, *ABOUT_NAME, *WITHOUT_NAME, *SPAN_VALUES, *ARMS_OF_IT, *chosen]
    assert sorted([*names, *WITHOUT_IMAGE_TOKENS.values()]) == sorted(ARMS)


@pytest.mark.parametrize("declared", ["whole", "about the name", "without it"])
def test_a_plan_counts_the_arms_that_are_declared(
    declared: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tokens() -> int:
        protocol = Protocol()
        scope = published_scope(PUBLISHED["llava-1.5-7b"], protocol)
        return sum(work.tokens for work in costs.recovery(scope, protocol))

    before = tokens()
    if declared == "whole":
        monkeypatch.setitem(WHOLE_ARMS, "another", WHOLE_ARMS["mean_entity"])
    else:
        name = "ABOUT_NAME" if declared == "about the name" else "WITHOUT_NAME"
        monkeypatch.setattr(costs, name, (*getattr(costs, name), "another"))
    assert tokens() > before
