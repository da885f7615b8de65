"""The commands: ``interventions doctor``, ``remote``, ``convert`` and ``families``."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from interventions.architectures.doctor import Part, Report
    from interventions.remote.preflight import Preflight


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    top = argparse.ArgumentParser(
        prog="interventions",
        description="Read and write the activations of vision-language models and their backbones.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    doctor = commands.add_parser(
        "doctor", help="show what is understood of a model, without its weights"
    )
    doctor.add_argument("model", metavar="MODEL", help="a repo id, or a folder with config.json")
    doctor.add_argument("--revision", help="branch, tag or commit on the hub")
    doctor.add_argument("--json", action="store_true", help="print the report as JSON")
    remote = commands.add_parser(
        "remote", help="ask an NDIF server about a model: versions, state, round trip"
    )
    remote.add_argument("model", metavar="MODEL", help="a repo id")
    remote.add_argument("--host", help="address of the server; default: NDIF_HOST, or NDIF's own")
    remote.add_argument("--revision", help="branch, tag or commit on the hub")
    remote.add_argument("--json", action="store_true", help="print the answer as JSON")
    remote.add_argument("--verbose", action="store_true", help="show the size of each request")
    convert = commands.add_parser(
        "convert", help="write a Pixtral of Mistral's own layout as a folder that opens here"
    )
    convert.add_argument("source", metavar="FOLDER", help="with params.json and tekken.json")
    convert.add_argument("target", metavar="NEW", help="a folder that is not there yet")
    commands.add_parser("families", help="print the table of tested families (Markdown)")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status, 2 for a user's mistake or a refused model."""
    options = parser().parse_args(argv)
    from interventions.errors import InterventionsError

    try:
        return COMMANDS[options.command](options)
    except InterventionsError as error:
        sys.stderr.write(f"interventions: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130


def doctor(options: argparse.Namespace) -> int:
    """``interventions doctor``.

    With ``--json``, an object whose keys are the attributes of
    :class:`interventions.architectures.doctor.Report`.
    """
    from interventions.architectures.doctor import examine
    from interventions.progress import quiet_libraries

    quiet_libraries()
    report = examine(options.model, revision=options.revision)
    if options.json:
        sys.stdout.write(json.dumps(report.record(), indent=2) + "\n")
        return 0
    from rich.console import Console

    print_report(report, Console(highlight=False))
    return 0


def remote(options: argparse.Namespace) -> int:
    """``interventions remote``; status 1 if the model does not answer.

    With ``--json``, an object whose keys are the attributes of
    :class:`interventions.remote.preflight.Preflight`.
    """
    from nnsight import CONFIG

    from interventions.model.loading import load
    from interventions.progress import quiet_libraries
    from interventions.remote.preflight import preflight

    quiet_libraries()
    CONFIG.APP.REMOTE_LOGGING = False
    report = preflight(load(options.model, revision=options.revision, remote=options.host or True))
    if options.json:
        sys.stdout.write(json.dumps(report.record(), indent=2) + "\n")
        return int(report.problem is not None)
    from rich.console import Console

    print_preflight(report, Console(highlight=False))
    return int(report.problem is not None)


def print_preflight(report: "Preflight", console: "Console") -> None:
    """Print what a server said, readable at 80 columns."""
    from rich.markup import escape

    facts = _grid()
    facts.add_row("server", f"{report.host}, answers in {report.round_trip_ms:.0f} ms")
    facts.add_row(
        "model", f"{escape(report.model)}: {report.level} {report.state.lower()}".rstrip()
    )
    for difference in report.differences:
        facts.add_row(
            difference.package,
            f"[yellow]{difference.here} here, {difference.there} there[/]: {difference.why}",
        )
    if not report.differences:
        facts.add_row("versions", "no difference that matters")
    if report.problem is not None:
        facts.add_row("[red]problem[/]", escape(report.problem))
    else:
        facts.add_row("weights", f"{report.dtype}")
        none = "none: use an exact sweep in the place of attribution"
        facts.add_row("gradients", "yes" if report.gradients else none)
        facts.add_row("a request", f"takes {report.request_ms:.0f} ms")
    console.print(facts)


def convert(options: argparse.Namespace) -> int:
    """``interventions convert``."""
    from interventions.architectures import mistral_layout
    from interventions.progress import quiet_libraries

    quiet_libraries()
    folder = mistral_layout.convert(options.source, options.target)
    sys.stdout.write(f"{folder} is written. See: interventions doctor {folder}\n")
    return 0


def families(options: argparse.Namespace) -> int:
    """``interventions families``."""
    from interventions.architectures.family_table import markdown

    sys.stdout.write(markdown() + "\n")
    return 0


def print_report(report: "Report", console: "Console") -> None:
    """Print a report, readable at 80 columns."""
    from rich.markup import escape

    def heading(text: str) -> None:
        console.print(f"\n[bold]{text}[/]")

    sizes = report.sizes
    console.print(f"[bold]{escape(report.source)}[/]", soft_wrap=True)
    facts = _grid()
    facts.add_row("what it is", f"{report.architecture} ({report.model_type})")
    facts.add_row("tested", _understood(report))
    if report.broken:
        facts.add_row("[red]broken[/]", escape(report.broken))
    facts.add_row(
        "sizes",
        f"{sizes['n_layers']} blocks, d_model {sizes['d_model']}, {sizes['n_heads']} heads of "
        f"{sizes['head_dim']} ({sizes['n_kv_heads']} for keys and values), vocabulary "
        f"{sizes['vocab']:,}, {_amount(sizes['parameters'])} parameters",
    )
    for name, value in _image_facts(report):
        facts.add_row(name, escape(value))
    facts.add_row("identity", escape(report.identity))
    console.print(facts)

    heading("Where the parts are (L is the block's index)")
    parts = _grid()
    for part in report.parts:
        if not _said_already(report, part):
            parts.add_row(_title(report, part), _described(part, base=_base(report, part)))
    console.print(parts)

    if report.special or report.notes:
        from interventions.architectures.abilities import listed

        heading("What is special")
        special = _grid()
        for item in report.special:
            special.add_row(item.what, f"blocks {listed(list(item.layers))}: {escape(item.note)}")
        for note in report.notes:
            special.add_row("note", escape(note))
        console.print(special)

    heading("What works")
    works = _grid(3)
    marks = {"yes": "[green]yes[/]", "partly": "[yellow]partly[/]", "no": "[red]no[/]"}
    for ability in report.abilities:
        works.add_row(escape(ability.name), marks[ability.state], escape(ability.note))
    console.print(works)


def _grid(columns: int = 2) -> "Table":
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(min_width=13, max_width=22)
    for _ in range(columns - 1):
        table.add_column(overflow="fold")
    return table


def _understood(report: "Report") -> str:
    if report.tested:
        return "yes, the conformance suite covers this architecture"
    return (
        "no, its parts were found through its structure; load() checks with the weights that they "
        "add up, and refuses if not"
    )


def _image_facts(report: "Report") -> Iterator[tuple[str, str]]:
    if report.images == "tokens":
        known = report.image_token_id is not None
        token = f"token {report.image_token_id}" if known else "a token that the tokenizer names"
        if report.image_token:
            token += f", {report.image_token!r}"
        yield "images", f"take the place of {token}"
    elif report.images:
        yield "images", "are read by cross-attention blocks; no token is replaced"
    else:
        yield "images", "none: a text-only model"
    if report.placeholder:
        yield "in prompts", f"one image is written {report.placeholder!r} (model.image_token)"
    if report.prompts_missing:
        yield "prompts", f"NOT AVAILABLE HERE: {report.prompts_missing}"


OUTPUTS = {"attention": "attn_out", "mlp": "mlp_out"}


def _twin(report: "Report", part: "Part", name: str) -> bool:
    """Whether the part of another name is the same module."""
    return any(
        (twin.name, twin.path, twin.layers) == (name, part.path, part.layers)
        for twin in report.parts
    )


def _said_already(report: "Report", part: "Part") -> bool:
    return any(
        part.name == output and _twin(report, part, name) for name, output in OUTPUTS.items()
    )


def _title(report: "Report", part: "Part") -> str:
    if not part.layers or part.name.endswith("block"):
        return part.name
    output = OUTPUTS.get(part.name, "")
    return f"  {part.name}" + (f", {output}" if _twin(report, part, output) else "")


def _base(report: "Report", part: "Part") -> str:
    """The path of the block that a part is in, which is not said again."""
    blocks = [block.path for block in report.parts if block.name.endswith("block")]
    return blocks[0] if part.layers and part.path != blocks[0] else ""


def _described(part: "Part", base: str) -> str:
    from rich.markup import escape

    from interventions.architectures.abilities import listed

    path = (part.path.removeprefix(base) if base else part.path).replace("{L}", "L")
    if not base and part.layers:
        path += f"   (L = {listed(list(part.layers))})"
    if part.name == "head_out":
        path += "   (its input)"
    size = "" if part.weight is None else f", weight {list(part.weight)}"
    if part.weight is None and part.parameters:
        size = f", {_amount(part.parameters)} parameters"
    return f"{escape(path)}\n[dim]{escape(part.kind + size)} -> {escape(part.output)}[/]"


def _amount(n: int) -> str:
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if n >= size:
            return f"{n / size:.3g} {letter}"
    return str(n)


COMMANDS = {"doctor": doctor, "remote": remote, "convert": convert, "families": families}

if __name__ == "__main__":
    sys.exit(main())
