"""A page of one file that shows a map on its picture, layer by layer, without a server.

Every layer is in the page as a drawing of its own, so that it prints, and is read aloud, without
any script; the script only chooses which of them is on the screen, and tells the value of a cell.
"""

import base64
import io
import json
from html import escape

import numpy as np
from PIL import Image

from interventions.sweeping.picture_map import COLOURS, OPAQUE, WHITE, Drawing

STEPS = 20
"""Colours on either side of zero."""
DIGITS = 4


def page_of(drawing: Drawing) -> str:
    """The page, as HTML."""
    title = escape(drawing.title or drawing.label)
    n = len(drawing.layers)
    colours = _colours()
    drawn = colours if drawing.least else colours[STEPS:]
    fills = "".join(f".c{i}{{fill:{colour}}}" for i, colour in enumerate(colours))
    figures = "\n".join(_figure(drawing, k) for k in range(n))
    values = [
        [_rounded(drawing.values[c, k]) for k in range(n)] for c in range(len(drawing.components))
    ]
    data = {"x": drawing.x.tolist(), "y": drawing.y.tolist(), "values": values}
    # "</" would end the script that holds it.
    held = json.dumps(data, separators=(",", ":")).replace("</", "<\\/")
    note = f'<p class="note{" warned" if drawing.warned else ""}">{escape(drawing.note)}</p>'
    return PAGE.format(
        title=title,
        style=f"{STYLE}.cells,.bar{{opacity:{OPAQUE}}}{fills}",
        width=drawing.picture.width,
        height=drawing.picture.height,
        picture=_as_address(drawing),
        figures=figures,
        last=n - 1,
        first=f"{drawing.layers[0]:g}",
        layers=escape(json.dumps([f"{layer:g}" for layer in drawing.layers])),
        hidden=" hidden" if n == 1 else "",
        label=escape(drawing.label),
        gradient=", ".join(drawn),
        low=f"{drawing.least:.3g}",
        high=f"{drawing.most:.3g}",
        ends=_ends(drawing),
        note=note if drawing.note else "",
        data=held,
        script=SCRIPT,
    )


def _ends(drawing: Drawing) -> str:
    low = f"{drawing.least:.3g} in blue" if drawing.least else "0 in white"
    return f"from {low} to {drawing.most:.3g} in red"


def _colours() -> list[str]:
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    scale = colormaps[COLOURS]
    return [to_hex(scale(i / (2 * STEPS))) for i in range(2 * STEPS + 1)]


def _rounded(values: np.ndarray) -> list[list[float | None]]:
    """Numbers of a few digits, None where there is none."""
    return [
        [float(f"{value:.{DIGITS}g}") if np.isfinite(value) else None for value in line]
        for line in values.tolist()
    ]


def _as_address(drawing: Drawing) -> str:
    file = io.BytesIO()
    light = (np.asarray(drawing.picture.convert("L")).astype(int) + WHITE) // 2
    Image.fromarray(light.astype(np.uint8)).save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _figure(drawing: Drawing, k: int) -> str:
    """The drawings of one layer, one for each component."""
    layer = f"{drawing.layers[k]:g}"
    parts = []
    for c, name in enumerate(drawing.components):
        said = f"{name}, layer {layer}: {_in_words(drawing, c, k)}"
        caption = f"<figcaption>{escape(name)}</figcaption>" if len(drawing.components) > 1 else ""
        width, height = drawing.picture.size
        parts.append(
            f'<figure><svg role="img" aria-label="{escape(said)}" viewBox="0 0 {width} {height}" '
            f'data-component="{c}"><use href="#picture"/><g class="cells">'
            f"{_cells(drawing, c, k)}</g></svg>{caption}</figure>"
        )
    hidden = " hidden" if k else ""
    return (
        f'<section class="layer" id="layer-{k}" aria-label="layer {layer}"{hidden}>'
        f"<h2>layer {layer}</h2><div>{''.join(parts)}</div></section>"
    )


def _cells(drawing: Drawing, c: int, k: int) -> str:
    """Cells of one colour as one path, for each colour."""
    values = drawing.values[c, k]
    real = np.isfinite(values)
    steps = np.rint((np.where(real, values, 0) / drawing.most + 1) * STEPS).astype(int)
    paths = []
    for step in np.unique(steps[real]).tolist():
        moves = "".join(
            f"M{drawing.x[j]:.6g} {drawing.y[i]:.6g}H{drawing.x[j + 1]:.6g}"
            f"V{drawing.y[i + 1]:.6g}H{drawing.x[j]:.6g}z"
            for i, j in np.argwhere(real & (steps == step)).tolist()
        )
        paths.append(f'<path class="c{step}" d="{moves}"/>')
    return "".join(paths)


def _in_words(drawing: Drawing, c: int, k: int) -> str:
    """Where the largest value is."""
    values = drawing.values[c, k]
    if not np.isfinite(values).any():
        return "no values"
    i, j = np.unravel_index(int(np.nanargmax(np.abs(values))), values.shape)
    x, y = (drawing.x[j] + drawing.x[j + 1]) / 2, (drawing.y[i] + drawing.y[i + 1]) / 2
    return f"largest {values[i, j]:.3g}, at {x:.0f} pixels across and {y:.0f} down"


STYLE = """
body{font:15px/1.4 system-ui,sans-serif;margin:1.5rem auto;max-width:64rem;padding:0 1rem;
color:#1a1a1a;background:#fff}
h1{font-size:1.2rem;white-space:pre-line}h2{font-size:.95rem;margin:.3rem 0}
.controls{display:flex;gap:1rem;align-items:center;margin:1rem 0}
.controls[hidden]{display:none}
.controls input{flex:1;min-width:8rem;height:1.5rem}
.layer>div{display:flex;flex-wrap:wrap;gap:1rem}
.layer[hidden]{display:none}
figure{margin:0;flex:1 1 16rem;max-width:40rem}
figcaption{font-size:.85rem;text-align:center}
svg{display:block;width:100%;max-height:75vh}
.cells{shape-rendering:crispEdges}
.scale{display:grid;grid-template-columns:auto 1fr auto;gap:.5rem;align-items:center;
max-width:30rem;margin:1rem 0;font-size:.85rem}
.bar{height:.8rem;border:1px solid #777}
.value{min-height:1.4em;font-variant-numeric:tabular-nums}
.note{font-size:.85rem;color:#444}.warned{color:#a00000}
.hint{font-size:.85rem;color:#444}
:focus-visible{outline:3px solid #1a5fb4;outline-offset:2px}
@media print{
body{max-width:none;margin:0}
.controls,.value,.hint{display:none}
.layers{display:grid;grid-template-columns:repeat(auto-fill,minmax(42mm,1fr));gap:3mm}
.layer[hidden]{display:block}
.layer{break-inside:avoid}
figure{flex-basis:38mm}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}
}
"""
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
<noscript><style>.controls{{display:none}}.layer[hidden]{{display:block}}</style></noscript>
</head>
<body>
<main>
<h1>{title}</h1>
<svg width="0" height="0" style="position:absolute" aria-hidden="true"><defs>
<image id="picture" width="{width}" height="{height}" preserveAspectRatio="none"
 href="{picture}"/></defs></svg>
<div class="controls"{hidden}>
<label for="slider">layer</label>
<input id="slider" type="range" min="0" max="{last}" value="0" step="1"
 aria-valuetext="layer {first}" aria-describedby="hint" data-layers="{layers}">
<output for="slider" id="shown" aria-live="polite">{first}</output>
</div>
<p class="hint" id="hint"{hidden}>Arrow keys change the layer, Home and End go to its ends.</p>
<div class="layers">
{figures}
</div>
<p class="value" id="value" role="status"></p>
<div class="scale" role="img" aria-label="{label}, {ends}">
<span>{low}</span><div class="bar" style="background:linear-gradient(to right, {gradient})"></div>
<span>{high}</span></div>
<p class="hint">{label}; white is 0, grey has no value.</p>
{note}
</main>
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</body>
</html>
"""
SCRIPT = """
"use strict";
const slider = document.getElementById("slider");
const shown = document.getElementById("shown");
const value = document.getElementById("value");
const layers = JSON.parse(slider.dataset.layers);
const data = JSON.parse(document.getElementById("data").textContent);
const sections = [...document.querySelectorAll(".layer")];
function show() {
  const chosen = Number(slider.value);
  sections.forEach((section, k) => { section.hidden = k !== chosen; });
  shown.textContent = layers[chosen];
  slider.setAttribute("aria-valuetext", "layer " + layers[chosen]);
  value.textContent = "";
}
slider.addEventListener("input", show);
const moves = {ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, Home: -1e9, End: 1e9};
document.addEventListener("keydown", event => {
  if (!(event.key in moves) || event.target === slider) return;
  if (event.ctrlKey || event.metaKey || event.altKey || sections.length < 2) return;
  event.preventDefault();
  const next = Number(slider.value) + moves[event.key];
  slider.value = Math.min(Math.max(next, 0), sections.length - 1);
  show();
});
function cell(ends, at) {
  for (let i = 0; i + 1 < ends.length; i++) if (ends[i] <= at && at < ends[i + 1]) return i;
  return -1;
}
document.querySelectorAll(".layer svg").forEach(svg => {
  svg.addEventListener("pointermove", event => {
    const point = new DOMPoint(event.clientX, event.clientY)
      .matrixTransform(svg.getScreenCTM().inverse());
    const i = cell(data.y, point.y), j = cell(data.x, point.x);
    const lines = data.values[svg.dataset.component][Number(slider.value)];
    const number = i < 0 || j < 0 ? null : lines[i][j];
    value.textContent = number === null ? "" :
      number + " at " + Math.round(point.x) + ", " + Math.round(point.y);
  });
  svg.addEventListener("pointerleave", () => { value.textContent = ""; });
});
show();
"""
