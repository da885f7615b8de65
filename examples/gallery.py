"""Makes the pictures of ``docs/gallery.md``: one function each, whose lines the page shows.

``python examples/gallery.py`` writes all of them to ``docs/gallery``; with names, such as
``patched rollout``, only these, and with ``--out FOLDER`` elsewhere. A new picture is a function in
PICTURES, between two marks, and a section of the page.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

import interventions as iv
from twohop import find_pair

OUT = Path(__file__).parents[1] / "docs" / "gallery"
DPI = 80

# --8<-- [start:scene]
pair = find_pair("flags-naming")
benchmark = pair.benchmark()
vlm, llm = iv.load(pair.vlm()), iv.load(pair.backbone())

flag, other = benchmark.view("CN", 0), benchmark.view("BR", 0)
which = benchmark.naming.fill("<image>")  # "... Which country is <image>? ..."
shown, swapped = vlm.prompt(which, images=flag), vlm.prompt(which, images=other)
contrast: dict[str, Any] = {"answers": "China", "foils": "Brazil"}

micro = find_pair("micro-late")  # its backbone's circuit is known
small, ask = iv.load(micro.backbone()), micro.benchmark().templates["capital"]
known = {item.entity.name: item.answers[0] for item in micro.benchmark().items[:24:3]}
facts = small.prompt([ask.fill(name) for name in known])
others = facts.select([*range(1, len(known)), 0])
right = [*known.values()]
capitals: dict[str, Any] = {"answers": right, "foils": [*right[1:], right[0]]}
# --8<-- [end:scene]


def patched() -> Figure:
    """Exact patching of every image token at some layers."""
    # --8<-- [start:patched]
    swept = iv.sweep(
        vlm,
        shown,
        swapped,
        **contrast,
        metrics="logit_diff",
        roles=["image"],
        each=True,
        layers=[0, 8, 16, 20, 22, 24],
    )
    figure = iv.heatmap(swept, over=flag, title="Brazil's value put in")
    # --8<-- [end:patched]
    return figure


def page() -> iv.PictureMap:
    """The same at every layer, as a page with a slider."""
    # --8<-- [start:page]
    swept = iv.sweep(
        vlm, shown, swapped, **contrast, metrics="logit_diff", roles=["image"], each=True
    )
    drawing = iv.overlay(swept, flag, title="Brazil's value put into the flag of China")
    # --8<-- [end:page]
    return drawing


def attributed() -> Figure:
    """An estimate of that from gradients."""
    # --8<-- [start:attributed]
    scores = iv.attribute(
        vlm, shown, swapped, **contrast, components=["resid_post"], roles=["image"], each=True
    )
    some = scores.sel(layer=[0, 8, 16, 20, 22, 24])
    figure = iv.heatmap(some, over=flag)
    # --8<-- [end:attributed]
    return figure


def probed() -> Figure:
    """Where a linear probe reads the country."""
    # --8<-- [start:probed]
    countries, views = benchmark.entities[::6], range(6)
    rows = [
        {"text": which, "images": benchmark.view(country.code, view)}
        for country in countries
        for view in views
    ]
    layers = [0, 8, 16, 20, 24, 29]
    tokens = {f"token{k}": iv.RoleSite("resid_post", layers, "image", k) for k in range(4)}
    with tempfile.TemporaryDirectory() as folder:
        states = iv.collect(vlm, rows, tokens, out=Path(folder) / "states", progress=False).load()
    codes = [country.code for country in countries for _ in views]
    probes = iv.probe(states, codes, method="ridge", splits=3, n_controls=1)
    read = probes[["accuracy"]].mean("seed")
    read = read.assign_coords(role=[f"image[{k}]" for k in range(4)])
    figure = iv.heatmap(read, "accuracy", over=flag, grid=shown, title="held-out accuracy")
    # --8<-- [end:probed]
    return figure


def attention() -> Figure:
    """Where heads of the last token look."""
    # --8<-- [start:attention]
    seen = iv.attention_map(vlm, shown, roles=["image"], heads=[0, 4], layers=[16, 20, 21, 23])
    figure = iv.heatmap(seen, over=flag, title="attention of the last token")
    # --8<-- [end:attention]
    return figure


def rollout() -> Figure:
    """Attention followed down to the input."""
    # --8<-- [start:rollout]
    mixed = iv.attention_map(vlm, shown, roles=["image"], rollout=True)
    some = mixed.sel(layer=[0, 8, 16, 20, 24, 29])
    figure = iv.heatmap(some, over=flag, title="share in the last token, by attention rollout")
    # --8<-- [end:rollout]
    return figure


def lens() -> Figure:
    """The logit lens at every token of a question in text."""
    # --8<-- [start:lens]
    question = benchmark.templates["capital"]
    named = llm.prompt(question.fill("China"), spans={"entity": question.span("China")})
    seen = iv.lens_map(llm, named, "Beijing", roles=["question"])
    figure = iv.heatmap(seen, "reciprocal_rank", title="“Beijing” by the model's own head")
    # --8<-- [end:lens]
    return figure


def traced() -> Figure:
    """Exact patching of sublayers in text."""
    # --8<-- [start:traced]
    question = benchmark.templates["capital"]
    china, italy = (
        llm.prompt(question.fill(name), spans={"entity": question.span(name)})
        for name in ("China", "Italy")
    )
    swept = iv.sweep(
        llm,
        italy,
        china,
        answers="Beijing",
        foils="Rome",
        metrics="logit_diff",
        components=["attn_out", "mlp_out", "resid_post"],
        roles=["entity[-1]", "last"],
    )
    figure = iv.heatmap(swept, title="China's value put in where Italy is asked about")
    # --8<-- [end:traced]
    return figure


def cut() -> Figure:
    """What is lost when tokens may not see each other any more."""
    # --8<-- [start:cut]
    countries = benchmark.entities[::12]
    flags = [benchmark.view(country.code, 0) for country in countries]
    curves = iv.knockout_curves(
        vlm,
        vlm.prompt([which] * len(flags), images=flags),
        ["image -> question", "image -> last", "question -> last"],
        answers=[country.name for country in countries],
        layers=slice(0, None, 3),
        window=3,
    )
    figure = iv.lineplot(curves, title="attention cut in windows of 3 layers")
    # --8<-- [end:cut]
    return figure


def circuit() -> Figure:
    """Edges of a model whose circuit is known."""
    # --8<-- [start:circuit]
    edges = iv.attribute_edges(small, facts, others, method="ig", **capitals)
    figure = edges.circuit(40).draw(title="a capital, recalled")
    # --8<-- [end:circuit]
    return figure


def faithful() -> Figure:
    """Whether such circuits do what the model does."""
    # --8<-- [start:faithful]
    edges = iv.attribute_edges(small, facts, others, method="ig", **capitals)
    kept = iv.faithfulness(small, edges, facts, others, n_random=5, **capitals)
    figure = kept.draw()
    # --8<-- [end:faithful]
    return figure


PICTURES: tuple[Callable[[], Figure | iv.PictureMap], ...] = (
    *(patched, page, attributed, probed, attention, rollout),
    *(lens, traced, cut, circuit, faithful),
)


def save(drawing: Figure | iv.PictureMap, name: str, out: Path) -> Path:
    """Write a figure as a small PNG, and a map on a picture as a page."""
    if isinstance(drawing, iv.PictureMap):
        return drawing.save(out / f"{name}.html")
    path = out / f"{name}.png"
    drawing.savefig(path, dpi=DPI)
    with Image.open(path) as picture:
        picture.convert("RGB").save(path, optimize=True)
    return path


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the pictures that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    known = {picture.__name__: picture for picture in PICTURES}
    parser.add_argument("names", nargs="*", choices=[[], *known], help="default: all")
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args(arguments)
    asked.out.mkdir(parents=True, exist_ok=True)
    for name in asked.names or known:
        path = save(known[name](), name, asked.out)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")  # noqa: T201 - a command


if __name__ == "__main__":
    main()
