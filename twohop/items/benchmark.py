"""Items of a file as a benchmark that a study can run."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from PIL import Image

from twohop.items.formats import Writer
from twohop.items.items import Benchmark
from twohop.items.pictures import Picture, altered
from twohop.items.rows import DataError
from twohop.items.validation import Checked

ALTERED = (
    "Of entities with fewer pictures than the probes need, altered copies (cropped, turned, lit "
    "differently) stand in. Where an entity has one picture, the plain probe is fitted on copies "
    "of the picture it is tested on, so its accuracy is an upper bound. The transfer probe is not "
    "affected: it is fitted on names."
)


@dataclass(frozen=True)
class Views:
    """Pictures of entities by number: 0 is asked about, the others are what probes are fitted on.

    Attributes
    ----------
    pictures : dict of str to tuple of Picture
        By the entity's code.
    alter : bool
        Whether altered copies stand in for pictures that there are not.
    """

    pictures: Mapping[str, tuple[Picture, ...]]
    alter: bool = False

    def __call__(self, code: str, index: int) -> Image.Image:
        """Return a picture of an entity.

        Raises
        ------
        DataError
            If there are fewer.
        """
        own = self.pictures[code]
        if index < len(own):
            return own[index].open()
        if not self.alter:
            raise DataError(
                f"picture {index + 1} of {code!r} was asked for, and there are {len(own)}. Give "
                "more rows with pictures of it, or --alter-views."
            )
        seed = int.from_bytes(hashlib.sha256(f"{code} {index}".encode()).digest()[:8])
        # Not of the picture that is asked about, if there is another.
        others = own[1:] or own
        return altered(others[index % len(others)].open(), seed=seed)


def check_views(checked: Checked, *, needed: int) -> None:
    """Say what is missing if entities have fewer pictures than the probes need.

    Raises
    ------
    DataError
        With how many entities have too few, and what to do.
    """
    few = [code for code, several in checked.pictures.items() if len(several) < needed]
    if few:
        raise DataError(
            f"{checked.report.source}: the stage `resolution` fits probes on {needed - 1} pictures "
            f"of every entity and tests them on another, so {needed} different pictures each are "
            f"needed; {len(few)} of {len(checked.pictures)} entities have fewer, such as "
            f"{few[0]!r} with {len(checked.pictures[few[0]])}. Give more rows with pictures of "
            "them, or --alter-views, which makes altered copies and says so in the report."
        )


def data_benchmark(checked: Checked, writer: Writer, *, alter_views: bool = False) -> Benchmark:
    """Make a benchmark of checked items.

    Parameters
    ----------
    checked : Checked
        From :func:`twohop.items.validation.check`.
    writer : Writer
        Writes the prompts in the pair's format.
    alter_views : bool
        Let altered copies stand in for pictures that there are not.

    Raises
    ------
    DataError
        If no item is usable.

    Examples
    --------
    >>> from twohop.items.formats import QA
    >>> from twohop.items.validation import check
    >>> checked = check("items.jsonl")
    >>> data_benchmark(checked, Writer(QA)).templates["capital"].fill("France")
    'Question: What is the capital of France?\\nAnswer:'
    """
    report = checked.needed().report
    wordings, naming = checked.wordings, checked.map.naming
    views = Views(checked.pictures, alter=alter_views)
    format = writer.format
    notes = [f"Items from {report.source}: {report.usable} of {report.rows} rows are used."]
    notes += [f"Every question ends with: “{format.brief}”"] if format.brief else []
    notes += [ALTERED] if alter_views else []
    size = next(iter(checked.pictures.values()))[0].open().size
    return Benchmark(
        name=report.source,
        items=checked.items,
        templates={relation: writer.template(wording) for relation, wording in wordings.items()},
        naming=writer.template(naming),
        stop=format.stop,
        end=writer.end,
        chain=lambda relation, name: writer.chain(naming, wordings[relation], name),
        unnamed_chain=lambda relation, name: writer.chain(
            naming, wordings[relation], name, unnamed=True
        ),
        one_turn=lambda relation: writer.one_turn(naming, wordings[relation]),
        view=views,
        blank=lambda: Image.new("RGB", size, "white"),
        notes=" ".join(notes),
        chat=format.kind == "chat",
        answer_sets={**checked.answer_sets},
        pictures=_digest(checked.pictures, alter=alter_views),
    )


def _digest(pictures: Mapping[str, tuple[Picture, ...]], *, alter: bool) -> str:
    """Short hash of all pictures."""
    hasher = hashlib.sha256(f"altered {alter}".encode())
    for code, several in pictures.items():
        hasher.update(" ".join((code, *(picture.digest for picture in several))).encode())
    return hasher.hexdigest()[:12]
