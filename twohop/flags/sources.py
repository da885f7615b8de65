"""Remake the committed table and pictures from the packages they come from.

``python -m twohop.flags.sources --flag-icons DIR --countries DIR --iso-flags DIR``, where the
folders are the unpacked npm packages ``flag-icons`` 7.5.0 and ``countries-list`` 3.4.1 and the
PNG folder of Debian's ``iso-flags-png-320x240`` 1.0.2-2. Needs ``resvg-py``.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.progress import track

SIZE = (128, 96)
ISO_FLAGS_MARGIN = 26
"""Transparent pixels around every picture of iso-flags-png-320x240."""

UN_MEMBERS = """
    AD AE AF AG AL AM AO AR AT AU AZ BA BB BD BE BF BG BH BI BJ BN BO BR BS BT BW BY BZ CA CD CF
    CG CH CI CL CM CN CO CR CU CV CY CZ DE DJ DK DM DO DZ EC EE EG ER ES ET FI FJ FM FR GA GB GD
    GE GH GM GN GQ GR GT GW GY HN HR HT HU ID IE IL IN IQ IR IS IT JM JO JP KE KG KH KI KM KN KP
    KR KW KZ LA LB LC LI LK LR LS LT LU LV LY MA MC MD ME MG MH MK ML MM MN MR MT MU MV MW MX MY
    MZ NA NE NG NI NL NO NP NR NZ OM PA PE PG PH PK PL PT PW PY QA RO RS RU RW SA SB SC SD SE SG
    SI SK SL SM SN SO SR SS ST SV SY SZ TD TG TH TJ TL TM TN TO TR TT TV TZ UA UG US UY UZ VC VE
    VN VU WS YE ZA ZM ZW
"""

_HERE = Path(__file__).parent


def facts_table(countries: Path) -> list[dict[str, Any]]:
    """Rows of ``facts.json`` from countries-list, with ``corrections.json`` laid over them."""

    def read(name: str) -> dict[str, Any]:
        return json.loads((countries / f"{name}.min.json").read_text(encoding="utf-8"))

    listed, continents, languages = read("countries"), read("continents"), read("languages")
    fix = json.loads((_HERE / "corrections.json").read_text(encoding="utf-8"))
    rows = []
    for code in UN_MEMBERS.split():
        if code in fix["dropped"]:
            continue
        country = listed[code]
        name = fix["names"].get(code, country["name"])
        aliases = fix["aliases"].get(code, [])
        if country["name"] not in (name, *aliases):
            aliases = [country["name"], *aliases]
        on = [country["continent"]]
        on += [other for other in country.get("continents", []) if other not in on]
        rows.append(
            {
                "code": code,
                "name": name,
                "aliases": aliases,
                "capital": fix["capital"].get(code, [country["capital"]]),
                "continent": fix["continent"].get(
                    code, [continents[continent] for continent in on]
                ),
                "language": fix["language"].get(
                    code, [languages[language]["name"] for language in country["languages"]]
                ),
            }
        )
    return rows


def drawn(svg: Path) -> Image.Image:
    """A flag-icons SVG (4:3), rendered at twice the stored size and reduced to it."""
    import resvg_py

    png = bytes(resvg_py.svg_to_bytes(svg_path=str(svg), width=2 * SIZE[0], background="#ffffff"))
    return Image.open(io.BytesIO(png)).convert("RGB").resize(SIZE, Image.Resampling.BOX)


def trimmed(png: Path) -> Image.Image:
    """An iso-flags picture without its transparent margin, on white, at the stored size."""
    picture = Image.open(png).convert("RGBA")
    width, height = picture.size
    margin = ISO_FLAGS_MARGIN
    picture = picture.crop((margin, margin, width - margin, height - margin))
    white = Image.new("RGBA", picture.size, "white")
    return (
        Image.alpha_composite(white, picture).convert("RGB").resize(SIZE, Image.Resampling.LANCZOS)
    )


def save(picture: Image.Image, path: Path) -> None:
    """Write a picture as a 64-colour palette PNG, which keeps a flag's colours in 1-3 kB."""
    path.parent.mkdir(parents=True, exist_ok=True)
    few = picture.quantize(64, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    few.save(path, optimize=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flag-icons", type=Path, required=True, help="unpacked npm package")
    parser.add_argument("--countries", type=Path, required=True, help="unpacked npm package")
    parser.add_argument("--iso-flags", type=Path, required=True, help="folder of PNG files")
    asked = parser.parse_args()

    rows = facts_table(asked.countries)
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (_HERE / "facts.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    for row in track(rows, description="pictures"):
        name = row["code"].lower()
        icon = asked.flag_icons / "flags" / "4x3" / f"{name}.svg"
        save(drawn(icon), _HERE / "images" / "flag-icons" / f"{name}.png")
        save(
            trimmed(asked.iso_flags / f"{name}.png"), _HERE / "images" / "iso-flags" / f"{name}.png"
        )
    Console().print(f"{len(rows)} countries written to {_HERE}")


if __name__ == "__main__":
    main()
