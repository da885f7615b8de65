"""The tables of a report: made once from the summary, shown by the page and by the console."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from twohop.protocol import Protocol
from twohop.report import wording
from twohop.report.estimates import measured, p_value, written
from twohop.report.map_tables import attribution_table, similarity_table
from twohop.report.summary import AT_IMAGE_TOKENS
from twohop.report.table import Cell, Summary, Table, count, number, row
from twohop.stages.evidence import EVIDENCE
from twohop.stages.recovery.arms import arm_groups, arm_label
from twohop.statistics import estimates


def forced_key(summary: Summary, rule: str, gate: str) -> str:
    """Where the forced choice of a gate is in the summary; that of the default rule has two."""
    default = rule == summary["forced_default"]
    return f"forced/{gate}" if default else f"forced_by_rule/{rule}/{gate}"


def gates_table(summary: Summary) -> Table:
    """Accuracy at every gate, under both scorers."""
    rows = [
        row(
            label,
            number(summary, gate),
            *(
                number(summary, forced_key(summary, rule, gate)) if gate in gates else Cell("–")
                for rule, gates in summary["forced_by_rule"].items()
            ),
            count(summary, gate),
        )
        for gate, label in wording.GATES.items()
    ]
    return Table(
        "gates",
        "Accuracy at each gate",
        ("asked", "free answer", *(wording.RULES[rule] for rule in summary["forced_by_rule"]), "n"),
        tuple(rows),
        f"All items but {summary['n_surface']} whose answer starts as the entity's name does. "
        "“VLM names the entity” counts an entity once per question about it. "
        f"{wording.FORCED}",
    )


def gap_table(summary: Summary) -> Table:
    """The gap in every form it is measured in."""
    lines = (
        ("free answers, points", "gap_points"),
        ("forced choice, points", "gap_points_forced"),
        ("against the VLM's own text, points", "gap_points_vlm_text"),
        ("relative to the backbone's accuracy", "gap_relative"),
    )
    test = summary["mcnemar"]
    rows = [row(label, number(summary, key), count(summary, key)) for label, key in lines]
    return Table(
        "gap",
        "Gap: text minus image, on recognised items",
        ("gap", "value [95 %]", "n"),
        tuple(rows),
        f"Right in text only: {test['only_text']} items; right from the image only: "
        f"{test['only_image']} (McNemar, {p_value(test['p'])}).",
    )


def relations_table(summary: Summary) -> Table:
    """Each relation beside the best that a constant answer can do."""
    rows = []
    for name, numbers in summary["by_relation"].items():
        key = f"by_relation/{name}"
        flag = "" if numbers["above_constant"] else "  (text not clearly above it)"
        rows.append(
            row(
                name,
                number(summary, f"{key}/backbone_text"),
                number(summary, f"{key}/vlm_image"),
                Cell(f"{numbers['best_constant'] * 100:.0f}\u00a0%{flag}", f"{key}/best_constant"),
                count(summary, f"{key}/vlm_image"),
            )
        )
    return Table(
        "relations",
        "By relation",
        ("relation", "backbone, text", "VLM, image", "best constant", "n"),
        tuple(rows),
        "All items of the relation, recognised or not.",
    )


def windows_table(summary: Summary) -> Table:
    """The recall windows: of the backbone, and of the VLM's own text."""
    last = summary["n_layers"] - 1
    lines = (
        ("enrichment: last block that is needed", "enrichment_end", True),
        ("enrichment: half-point of what is needed", "necessity_half", False),
        ("enrichment: half-point of what suffices", "sufficiency_half", False),
        ("read-out: last block", "readout_end", True),
    )
    rows = []
    for label, key, whole_blocks in lines:
        cells = []
        for side in ("windows", "windows_vlm"):
            window = summary[side][key]
            if not window.measured or (whole_blocks and window.value < 0):
                text = "no block needed" if whole_blocks and window.measured else "not measured"
            else:
                text = written(window, "layers")
            cells.append(Cell(text, f"{side}/{key}"))
        rows.append(row(label, *cells))
    same = summary["windows_vlm"]["same_as_backbone"]
    return Table(
        "windows",
        "Recall windows",
        (f"blocks 0–{last}", "backbone [95 %]", "VLM, its own text [95 %]"),
        tuple(rows),
        "Of so many blocks on the answer is what it would be. "
        + ("The VLM's decoder is bit for bit the backbone's, so its text is too." if same else ""),
    )


def lateness_table(summary: Summary) -> Table:
    """When the entities come, against the deadline of the form they have."""
    rows = [
        row(label, number(summary, f"lateness/{key}"), Cell(meaning))
        for key, (label, meaning) in wording.TIMES.items()
    ]
    came = summary["lateness"]
    why = f"No median: {came['reason']}. " if came["reason"] else ""
    return Table(
        "lateness",
        "When the entity comes",
        ("entities", "share [95 %]", "meaning"),
        tuple(rows),
        f"{why}Of probes on shuffled labels, {written(came['null_early'])} are in time and "
        f"{written(came['null_late'])} too late.",
    )


def evidence_table(summary: Summary) -> Table:
    """What was shown of the pair as a whole, which the verdicts rest on."""
    rows = [
        row(
            label,
            Cell(written(shown["estimate"]), f"evidence/{name}/estimate"),
            Cell(wording.EVIDENCE_STATES[shown["state"]]),
            count(summary, f"evidence/{name}/estimate"),
        )
        for name, label in EVIDENCE.items()
        if (shown := summary["evidence"].get(name))
    ]
    points = Protocol.of(summary).equivalent_points
    return Table(
        "evidence",
        "What the verdicts rest on",
        ("of the pair as a whole", "difference, or share [95 %]", "", "n"),
        tuple(rows),
        f"Shown: the whole interval is above nothing. Shown not to matter: it ends below "
        f"{points:g} points. Else so many items cannot tell, and no verdict rests on it.",
    )


def prediction_table(summary: Summary) -> Table:
    """How well the timetable tells lost items from the others."""
    lines = (
        ("AUC: a lost item is held likelier lost than another", "auc"),
        ("the same by the onset alone, whatever the form", "auc_onset_alone"),
        ("expected to be lost", "expected_loss"),
        ("lost", "lost"),
        ("expected minus lost", "calibration"),
    )
    rows = [
        row(label, number(summary, f"prediction/{key}", n=True))
        for label, key in lines
        if key in summary["prediction"]
    ]
    return Table(
        "prediction",
        "What the timetable predicts",
        ("", "value [95 %]"),
        tuple(rows),
        "From when each entity is read in the VLM and in which form, through the backbone's recall "
        "timetable; nothing is fitted to the VLM's answers. Items that the VLM names and the "
        "backbone knows.",
    )


def _sorted_into(
    summary: Summary, name: str, title: str, kinds: Mapping[str, tuple[str, str]], *, head: str
) -> Table:
    """The share of each kind of item, and what is meant by it."""
    rows = [
        row(label, number(summary, f"{name}/{key}"), Cell(meaning))
        for key, (label, meaning) in kinds.items()
    ]
    return Table(name, title, (head, "share [95 %]", "meaning"), tuple(rows))


def outcomes_table(summary: Summary) -> Table:
    """What is said of images, by class."""
    title, n = "What the VLM says of the image", summary["outcomes"]["right"].n
    table = _sorted_into(summary, "outcomes", title, wording.OUTCOMES, head="said")
    return replace(table, note=f"Free answers on {n} recognised items.")


def diagnosis_table(summary: Summary) -> Table:
    """Why items are lost."""
    table = _sorted_into(summary, "diagnosis", "Diagnosis", wording.VERDICTS, head="verdict")
    note = f"All {summary['n_items']} items; the first that holds, in this order."
    return replace(table, note=note)


def recovery_table(summary: Summary) -> Table:
    """Every arm, with how often the answer follows what was put in."""
    rows = []
    absent = summary["not_available"]
    shown = [
        arm for arm in summary["recovered"] if absent.get(f"recovered/{arm}") != AT_IMAGE_TOKENS
    ]
    for title, arms in arm_groups(shown):
        rows.append(row(title, Cell(""), Cell(""), Cell("")))
        rows += [
            row(
                f"  {label}",
                number(summary, f"recovered/{arm}"),
                number(summary, f"followed/{arm}") if arm in summary["followed"] else Cell("–"),
                count(summary, f"recovered/{arm}"),
            )
            for arm, label in arms.items()
        ]
    reasons = {absent[f"recovered/{arm}"] for arm in shown if f"recovered/{arm}" in absent}
    none = "".join(f"Not available: {why}. " for why in sorted(reasons))
    return Table(
        "recovery",
        "Lost items that come back",
        ("arm", "recovered", "follows", "n"),
        tuple(rows),
        "All arms are tried on the same lost items. “Follows”: the answer is that of the wrong "
        "entity put in. " + none + ("" if any_lost(summary) else "Not measured: no item was lost."),
    )


def contrasts_table(summary: Summary) -> Table:
    """Paired differences between arms on the same lost items."""
    rows = [
        row(
            f"{arm_label(sides['first'])} − {arm_label(sides['second'])}",
            Cell(
                written(sides["difference"].scaled(100), "points"), f"contrasts/{name}/difference"
            ),
            Cell("–" if sides["p_holm"] is None else p_value(sides["p_holm"])),
            Cell("–" if sides["smallest"] is None else f"{100 * sides['smallest']:.0f}"),
            Cell("yes" if sides["shown"] else "no"),
            count(summary, f"contrasts/{name}/difference"),
        )
        for name, sides in summary["contrasts"].items()
    ]
    return Table(
        "contrasts",
        "Arms against each other, on the same lost items",
        ("first − second", "points [95 %]", "p, Holm", "would show", "shown", "n"),
        tuple(rows),
        "p: signs of whole entities flipped, corrected by Holm for all of these. “Would show”: the "
        "smallest difference, in points, that so many items show with a power of 80 %, if it is "
        "the first that the correction looks at."
        + ("" if rows else " Not measured: no item was lost."),
    )


def net_table(summary: Summary) -> Table:
    """What each arm does to all items that are recognised and known."""
    rows = [
        row(
            arm_label(arm),
            number(summary, f"net/{arm}/accuracy"),
            number(summary, f"net/{arm}/closed"),
            number(summary, f"still_right/{arm}"),
            count(summary, f"net/{arm}/accuracy"),
        )
        for arm, effect in summary["net"].items()
        if effect["accuracy"].measured
    ]
    n_lost, n_kept = summary["n_lost"], summary["n_kept"]
    before = n_kept / max(n_lost + n_kept, 1)
    return Table(
        "net",
        "Net effect, harm included",
        ("arm", "right afterwards", "of the gap", "right ones that stay right", "n"),
        tuple(rows),
        f"On items recognised and known: {n_lost} lost and {n_kept} right from the image "
        f"({100 * before:.0f} % right before). Less than 0 % of the gap: the arm spoils more than "
        "it gives back." + ("" if rows else " Not measured: no item was lost."),
    )


def any_lost(summary: Summary) -> bool:
    """Whether there was anything to give back."""
    return any(measured(share) for share in summary["recovered"].values())


def all_tables(summary: Summary) -> dict[str, Table]:
    """Every table of a run, by name."""
    summary = estimates(summary)
    makers: Sequence = (
        gates_table,
        gap_table,
        relations_table,
        windows_table,
        lateness_table,
        prediction_table,
        outcomes_table,
        diagnosis_table,
        evidence_table,
        recovery_table,
        contrasts_table,
        net_table,
        attribution_table,
        similarity_table,
    )
    return {table.name: table for table in (make(summary) for make in makers)}
