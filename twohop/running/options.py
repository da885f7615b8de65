"""The options of ``twohop study``, and what they ask for."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twohop.protocol import PRESETS, Protocol, documented
from twohop.stages.table import TABLE

if TYPE_CHECKING:
    from collections.abc import Callable

    from twohop.allowed import Allowed, Documented
    from twohop.running.loading import Loading

RUNS = "runs"


def natural(text: str) -> int:
    """A whole number that is not negative, from the command line."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative; expected 0 or more")
    return number


def positive(text: str) -> int:
    """A whole number above 0, from the command line."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"got {text}; expected 1 or more")
    return number


def counted(allowed: "Allowed") -> "Callable[[str], int]":
    """How a number of the protocol is read from the command line."""

    def read(text: str) -> int:
        try:
            return allowed.read(int(text))
        except (TypeError, ValueError):
            raise argparse.ArgumentTypeError(f"got {text!r}; expected {allowed.expected}") from None

    return read


def sizes_of(entry: "Documented") -> str:
    """A sample size in both presets, or in both alike."""
    if entry.quick == entry.default:
        return str(entry.default)
    return f"full: {entry.default}, quick: {entry.quick}"


def names(text: str) -> list[str]:
    """Names with commas between, from the command line."""
    return [name for name in text.split(",") if name]


def add_study(commands: Any) -> None:
    """Add ``twohop study`` to the commands."""
    study = commands.add_parser(
        "study",
        help="run the two-hop study on one or more pairs",
        epilog="stages:\n"
        + "\n".join(f"  {stage.name:<18} {stage.says}" for stage in TABLE.values()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    study.add_argument("pair", nargs="*", metavar="PAIR", help="see: twohop pairs")
    study.add_argument("--vlm", metavar="MODEL", help="your own pair: a VLM's repo id or folder,")
    study.add_argument("--backbone", metavar="MODEL", help="and that of its language model")
    study.add_argument(
        "--data",
        metavar="FILE",
        help="items to ask about, see: twohop data; or flags, flags-iso (the default of pairs that "
        "have none: flags and facts of 190 countries, in one of two drawings); or popvqa, popvqa:N "
        "(that data set of the hub, N entities of it)",
    )
    study.add_argument("--map", metavar="MAP", help="where the fields of an item are in FILE")
    study.add_argument("--format", choices=("chat", "qa", "completion"), help="of the prompts")
    study.add_argument(
        "--alter-views",
        action="store_true",
        help="altered copies stand in where FILE has too few pictures of an entity",
    )
    study.add_argument(
        "--even-if-few",
        action="store_true",
        help="go on where hardly any item is both recognised and known in text",
    )
    study.add_argument("--out", type=Path, default=Path(RUNS), help="folder of runs (%(default)s)")
    study.add_argument("--limit", type=int, metavar="N", help="use N entities only")
    study.add_argument(
        "--stage",
        type=names,
        action="extend",
        metavar="NAME[,NAME]",
        help="run these stages only, and what they need; they are listed below",
    )
    study.add_argument(
        "--force",
        nargs="*",
        action="extend",
        metavar="STAGE",
        help="compute these stages again (default: those of --stage, else all) and give up what "
        "was derived from them. Comes after the pairs; leave it out to go on after an interrupt",
    )
    study.add_argument(
        "--plan",
        action="store_true",
        help="run nothing: say of every stage what it takes, in tokens, time, memory, downloads "
        "and requests, and whether it fits here",
    )
    study.add_argument(
        "--on",
        metavar="WHERE",
        help="share the work: processes, of this machine; ray, a Ray cluster that this machine is "
        "part of (or one of this machine alone); or ray://HOST:PORT",
    )
    study.add_argument(
        "--workers",
        type=positive,
        metavar="N",
        help="how many share it (default: a GPU each, or two of a machine without, or as many as "
        "a cluster has room for)",
    )
    study.add_argument(
        "--seed", type=natural, default=0, help="of every random choice (%(default)s)"
    )
    sizes = study.add_argument_group(
        "sample sizes",
        "Part of the protocol, and of a run's settings: a folder of results takes no others. Its "
        "other numbers are set from Python, see twohop.protocol.",
    )
    sizes.add_argument(
        "--preset",
        choices=PRESETS,
        default="full",
        help="sizes that belong together: full can decide; quick is a first look, and says what it "
        "cannot decide (%(default)s). Those named beside it replace its own",
    )
    for entry in documented():
        if entry.flag:
            sizes.add_argument(
                entry.flag,
                type=counted(entry.allowed),
                dest=entry.name,
                metavar="N",
                help=f"{entry.says} ({sizes_of(entry)})",
            )
    loaded = study.add_argument_group(
        "how the models are loaded",
        "A folder of results takes no other number format, attention or packing; where the models "
        "are may change. Default: on a GPU each, or both on the only one, as the checkpoint "
        "says; else on the CPU in float32.",
    )
    loaded.add_argument("--dtype", help="number format: float32, bfloat16, float16")
    loaded.add_argument(
        "--device",
        type=names,
        metavar="DEVICE[,DEVICE]",
        help="such as cpu or cuda:1; two: the VLM's and the backbone's",
    )
    loaded.add_argument(
        "--device-map", metavar="MAP", help="auto spreads the blocks of each model over the GPUs"
    )
    loaded.add_argument("--attn", metavar="NAME", help="attention: sdpa, eager ...")
    loaded.add_argument(
        "--quantization",
        metavar="FORMAT",
        help="pack the weights of both models while they are read: nf4, int8 (bitsandbytes), fp8",
    )
    study.add_argument(
        "--remote",
        nargs="?",
        const=True,
        default=False,
        metavar="URL",
        help="run on NDIF, or on the NDIF server at URL; models go by their repo ids, and a "
        "built-in pair's by twohop/PAIR. Comes after the pairs",
    )


def asked_protocol(options: argparse.Namespace) -> Protocol:
    """The preset, and the sizes that were named beside it."""
    given = {
        entry.name: size
        for entry in documented()
        if entry.flag and (size := getattr(options, entry.name)) is not None
    }
    return replace(Protocol.preset(options.preset), **given)


def asked_loading(options: argparse.Namespace) -> "Loading":
    """How the models are to be loaded."""
    from twohop.running.loading import Loading

    return Loading(
        dtype=options.dtype,
        device=tuple(options.device or ()),
        device_map=options.device_map,
        attention=options.attn,
        quantization=options.quantization,
    )
