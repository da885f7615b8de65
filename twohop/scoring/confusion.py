"""How the scorer agrees with people: ``python -m twohop.scoring.confusion ANSWERS.jsonl``.

The tables of ``docs/scoring.md``, from answers that people judged by hand.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from twohop.scoring.verdicts import OUTCOMES, Outcome, outcome


@dataclass(frozen=True)
class Labelled:
    """An answer and what people say it is.

    Attributes
    ----------
    answer : str
        What a model said.
    accepted, names, others : tuple of str
        Accepted answers, the entity's names, and the answers of the relation.
    verdict : str
        What it is, by hand.
    before : str
        What the first scorer said, in which the first known name decided.
    kind : str
        Kind of difficulty.
    """

    answer: str
    accepted: tuple[str, ...]
    names: tuple[str, ...]
    others: tuple[str, ...]
    verdict: Outcome
    before: Outcome
    kind: str

    def scored(self) -> Outcome:
        """What the scorer says."""
        return outcome(self.answer, answers=self.accepted, names=self.names, answer_set=self.others)


def read_labelled(path: Path) -> list[Labelled]:
    """Read labelled answers, one JSON object to a line."""
    labelled = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        row |= {key: tuple(row[key]) for key in ("accepted", "names", "others")}
        labelled.append(Labelled(**row))
    return labelled


def tables(rows: Sequence[Labelled]) -> str:
    """Return the tables in Markdown: the scorer's verdicts, the earlier ones', and by kind."""
    now = [(row.verdict, row.scored()) for row in rows]
    before = [(row.verdict, row.before) for row in rows]
    kinds: Counter[str] = Counter(row.kind for row in rows)
    right = Counter(row.kind for row, pair in zip(rows, now, strict=True) if pair[0] == pair[1])
    was = Counter(row.kind for row in rows if row.verdict == row.before)
    by_kind = ["| kind | answers | agreed | agreed before |", "|---|---|---|---|"]
    by_kind += [f"| {kind} | {n} | {right[kind]} | {was[kind]} |" for kind, n in kinds.items()]
    return "\n\n".join(
        [
            _counted("The scorer", now),
            _counted("The scorer before: the first known name decided", before),
            "By kind of difficulty:",
            "\n".join(by_kind),
        ]
    )


def _counted(title: str, pairs: Iterable[tuple[str, str]]) -> str:
    counts = Counter(pairs)
    agreed = sum(n for (wanted, said), n in counts.items() if wanted == said)
    lines = [
        f"{title}: {agreed} of {counts.total()} agree.",
        "",
        f"| people say | {' | '.join(OUTCOMES)} |",
        "|---|" + "---|" * len(OUTCOMES),
    ]
    for wanted in OUTCOMES:
        cells = [str(counts[wanted, said]) for said in OUTCOMES]
        lines.append(f"| {wanted} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("answers", type=Path, help="labelled answers, JSON Lines")
    sys.stdout.write(tables(read_labelled(parser.parse_args().answers)) + "\n")


if __name__ == "__main__":
    main()
