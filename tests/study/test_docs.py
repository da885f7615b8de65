"""The pages of the documentation: their code runs, their commands are known, none is left out."""

import ast
import re
import shlex
from pathlib import Path
from typing import Any

import pages
import pytest
import yaml

import interventions as iv
import interventions.cli
import twohop.cli
from twohop.protocol import documented

ROOT = Path(iv.__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = [ROOT / "README.md", *PAGES, *sorted((ROOT / "twohop").rglob("README.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
NOT_RUN = {"console", "json", "toml"}
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


@pytest.mark.parametrize("page", TEXTS, ids=name_of)
def test_blocks_of_a_page_are_run_or_no_python(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    fenced = pages.blocks(text)
    assert {block["language"] for block in fenced} <= {"python", "text", *NOT_RUN}
    shown = [block for block in fenced if block["language"] == "text"]
    assert len(shown) == sum(cell.shown is not None for cell in pages.cells(text))


@pytest.mark.parametrize(
    ("page", "got"),
    [
        ("```python\n1 + 1\n```\n\n```text\n3\n```\n", "it gives\n2"),
        ("```python\nprint(5)\n```\n\n```text\nValueError: no\n```\n", "it gives\n5"),
        ("```python\nx = 1\n```\n\n```python\nx\n```\n\n```text\n2\n```\n", "it gives\n1"),
    ],
)
def test_a_page_that_shows_something_else_is_found(page: str, got: str, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(page)
    with pytest.raises(AssertionError, match=got):
        pages.run(tmp_path / "page.md", {})


def test_an_error_that_a_page_does_not_show_is_raised(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("```python\n1 / 0\n```\n\n```text\nNameError: no\n```\n")
    with pytest.raises(ZeroDivisionError):
        pages.run(tmp_path / "page.md", {})


@pytest.mark.parametrize("page", TEXTS, ids=name_of)
def test_links_of_a_page_lead_to_files(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if not target.startswith(("http:", "https:", "#")):
            assert (page.parent / target.split("#")[0]).is_file(), target


def test_the_contents_name_every_page_once() -> None:
    contents = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    assert sorted(in_contents(contents)) == sorted(
        name.removeprefix("docs/") for name in map(name_of, PAGES)
    )


def in_contents(entry: Any) -> list[str]:
    """The pages of a part of the contents, in order."""
    if isinstance(entry, str):
        return [entry]
    return [
        page
        for part in (entry.values() if isinstance(entry, dict) else entry)
        for page in in_contents(part)
    ]


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 90


def test_every_public_name_is_in_the_reference() -> None:
    shown = "".join(page.read_text(encoding="utf-8") for page in (DOCS / "reference").glob("*.md"))
    named = re.findall(r"^::: interventions\.(\w+)$", shown, re.MULTILINE)
    assert sorted(named) == sorted(iv.__all__)


def protocol_table() -> str:
    """The table of ``docs/study/protocol.md``."""
    head = "| number | full | quick | what it is | may be | option |"
    lines = [head, "|---|---|---|---|---|---|"]
    for number in documented():
        option = f"`{number.flag}`" if number.flag else ""
        quick = f"`{number.quick}`" if number.quick != number.default else ""
        cells = (f"`{number.name}`", f"`{number.default}`", quick, number.says)
        lines.append(f"| {' | '.join((*cells, number.allowed.expected, option))} |")
    return "\n".join(lines)


def test_the_page_on_the_protocol_has_every_number() -> None:
    text = (DOCS / "study" / "protocol.md").read_text(encoding="utf-8")
    assert f"<!-- protocol -->\n{protocol_table()}\n<!-- /protocol -->" in text


def errors_of(package: str) -> set[str]:
    """Names of the classes that derive from the base of all errors, or are in ``errors.py``."""
    bases: dict[str, set[str]] = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                bases[node.name] = {base.id for base in node.bases if isinstance(base, ast.Name)}
    known = {"InterventionsError", "LoadError", "PatchError", "PromptError", "RemoteError"}
    roots = {*known, "UserWarning", "KeyboardInterrupt"}
    return {name for name, above in bases.items() if above & roots} | (known & {*bases})


def test_every_error_has_a_page() -> None:
    written = {page.stem for page in (DOCS / "errors").glob("*.md")} - {"index"}
    assert written == errors_of("interventions") | errors_of("twohop")
    index = (DOCS / "errors" / "index.md").read_text(encoding="utf-8")
    for name in written:
        assert f"{name}.md" in index
        text = (DOCS / "errors" / f"{name}.md").read_text(encoding="utf-8")
        assert re.findall(r"^## (\w+)$", text, re.MULTILINE) == ["Symptom", "Cause", "Fix"]


def test_no_example_is_skipped() -> None:
    for package in ("interventions", "twohop"):
        for path in sorted((ROOT / package).rglob("*.py")):
            assert "doctest: +SKIP" not in path.read_text(encoding="utf-8"), path
