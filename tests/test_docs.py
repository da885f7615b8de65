"""The pages of the documentation: their code runs, their commands are known, none is left out."""

import shlex
from pathlib import Path
from typing import Any

import pages
import pytest

import interventions.cli
import twohop.cli

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = [ROOT / "README.md", *PAGES, *sorted((ROOT / "twohop").rglob("README.md"))]
PARSERS = {"interventions": interventions.cli.parser, "twohop": twohop.cli.parser}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", TEXTS, ids=name_of)
@pytest.mark.usefixtures("desk")
def test_the_code_of_a_page_gives_what_it_shows(page: Path, day: dict[str, Any]) -> None:
    pages.run(page, day)


@pytest.mark.parametrize("page", TEXTS, ids=name_of)
def test_the_commands_of_a_page_are_known(page: Path) -> None:
    for block in pages.blocks(page.read_text(encoding="utf-8")):
        if block["language"] == "console":
            for line in block["body"].replace("\\\n", " ").splitlines():
                program, *arguments = shlex.split(line, comments=True) or [""]
                if program in PARSERS:
                    PARSERS[program]().parse_args(arguments)
