"""Tables of the maps: how far attribution agrees with them, and how alike they are."""

from twohop.protocol import Protocol
from twohop.report import wording
from twohop.report.estimates import hundredths, p_value
from twohop.report.table import Cell, Summary, Table, at, number, row


def attribution_table(summary: Summary) -> Table:
    """How far the maps by attribution agree with the exact ones."""
    protocol = Protocol.of(summary)
    lines = (
        ("all cells", "all"),
        *((f"  {label}", name) for name, label in wording.COMPONENTS.items()),
        ("all cells, rank correlation", "rank"),
        (f"strongest {protocol.top_cells} cells in common", "top"),
    )
    maps = summary["attribution_agreement"]
    rows = [
        row(
            label,
            *(number(summary, f"attribution_agreement/{medium}/{key}") for medium in maps),
        )
        for label, key in lines
    ]
    absent = summary["not_available"]
    reasons = {absent[key] for key in absent if key.startswith("attribution_agreement/")}
    none = "".join(f" Not available: {why}" for why in sorted(reasons))
    return Table(
        "attribution",
        "Agreement of attribution with exact patching",
        ("correlation over cells", *(wording.MAPS[medium] for medium in maps)),
        tuple(rows),
        "Over the cells of the exact map (component, window, role), means over its items. Blocks "
        "of a window are added up. Do not trust a component whose interval reaches below "
        f"{protocol.least_agreement}: it is crossed out above. Trust the exact map.{none}",
    )


def similarity_table(summary: Summary) -> Table:
    """How alike the backbone's map in text and the VLM's maps with images are."""
    protocol = Protocol.of(summary)

    def plain(key: str) -> Cell:
        value = at(summary, key)
        return Cell("–" if value is None else hundredths(value), key)

    rows = []
    for group, numbers in summary["map_similarity"].items():
        items = f"VLM {numbers['n_image']}, backbone {numbers['n_text']}, both"
        title = f"{wording.MAP_GROUPS[group]} (items: {items} {numbers['n_common']})"
        rows.append(row(title, *(Cell("") for _ in range(6))))
        for name, label in wording.SIMILARITIES.items():
            key = f"map_similarity/{group}/{name}"
            numbers_shown = ("as_measured", "reliability_image", "reliability_text", "null_high")
            p = at(summary, f"{key}/p")
            rows.append(
                row(
                    label,
                    number(summary, f"{key}/correlation"),
                    *(plain(f"{key}/{shown}") for shown in numbers_shown),
                    Cell("–" if p is None else p_value(p).removeprefix("p = ").removeprefix("p ")),
                )
            )
    return Table(
        "similarity",
        "Similarity of the VLM’s map to the backbone’s, correlation over cells",
        ("cells", "without noise", "as measured", "VLM", "backbone", "by chance", "p"),
        tuple(rows),
        "Without noise: of the means over all entities there might be; brackets: 95 %, over the "
        "entities of both maps; not measured where a map’s reliability (columns VLM and backbone: "
        f"the part of its variance that is not noise) is below {protocol.least_reliability}. By "
        "chance: 95 % of correlations are lower if windows and roles are renamed at random; p: of "
        "these. The residual stream leads from the entity to the last token in any model that "
        "answers: attention and MLPs tell more.",
    )
