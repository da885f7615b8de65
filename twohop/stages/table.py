"""The stages of a study, each declared once: what it needs, what it asks, and how it is run.

Nothing heavy is imported before a stage is run, so that a command line can name them all.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import xarray as xr

    from twohop.ask.study import Study

    Done = Mapping[str, xr.Dataset]
    Runner = Callable[[Study, Done], xr.Dataset]


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes
    ----------
    name : str
    says : str
        What it measures.
    run : callable
        ``run(study, done)`` gives its result, of a study and the results of what it needs.
    needs : tuple of str
        The stages whose results it is given.
    of_backbone : bool
        Whether it asks the backbone alone, so that pairs on one backbone share it.
    turn : int
        Which goes first where several could run: what others wait for, and what takes long.
    """

    name: str
    says: str
    run: "Runner"
    needs: tuple[str, ...] = ()
    of_backbone: bool = False
    turn: int = 0


def _backbone_text(study: "Study", done: "Done") -> "xr.Dataset":
    from twohop.stages.recall import text_gate

    gate = text_gate(study, study.backbone, gate="backbone_text")
    gate.attrs["n_layers"] = study.backbone.n_layers
    return gate


def _windows(study: "Study", done: "Done") -> "xr.Dataset":
    from twohop.stages.windows import in_circuit, windows

    return windows(study, in_circuit(done["backbone_text"]))


def _windows_vlm(study: "Study", done: "Done") -> "xr.Dataset":
    from twohop.stages.windows import windows_vlm

    return windows_vlm(study, done)


def _map_text(study: "Study", done: "Done") -> "xr.Dataset":
    from twohop.stages.maps.exact import patching_map
    from twohop.stages.windows import in_circuit

    known = in_circuit(done["backbone_text"])
    return patching_map(study, study.backbone, {"right": known}, shown=False)


def _attribution_text(study: "Study", done: "Done") -> "xr.Dataset":
    from twohop.stages.maps.attributed import attribution_map

    return attribution_map(study, study.backbone, done["map_text"], shown=False)


def _timetable(study: "Study", done: "Done") -> "xr.Dataset":
    from twohop.stages.timetable import timetable
    from twohop.stages.windows import in_circuit

    return timetable(study, in_circuit(done["backbone_text"]))


def _recall(study: "Study", done: "Done") -> "xr.Dataset":
    from twohop.stages.recall import recall

    return recall(study, done["backbone_text"])


def _resolution(study: "Study", done: "Done") -> "xr.Dataset":
    from twohop.stages.resolution.resolution import resolution

    return resolution(study)


def _map_image(study: "Study", done: "Done") -> "xr.Dataset":
    from twohop.stages.maps.exact import patching_map
    from twohop.stages.windows import in_circuit

    right = done["recall"]["right"]
    known = in_circuit(done["backbone_text"]) & right.sel(gate="recognised").values
    answered = right.sel(gate="vlm_image").values
    groups = {"right": known & answered, "lost": known & ~answered}
    return patching_map(study, study.vlm, groups, shown=True)


def _attribution_image(study: "Study", done: "Done") -> "xr.Dataset":
    from twohop.stages.maps.attributed import attribution_map

    return attribution_map(study, study.vlm, done["map_image"], shown=True)


def _recovery(study: "Study", done: "Done") -> "xr.Dataset":
    from twohop.stages.recovery.recovery import recovery

    ends = done["windows"].attrs
    return recovery(
        study,
        done["recall"],
        last_block=int(ends["enrichment_half"]),
        last_mlp=int(ends["enrichment_end"]),
    )


def _timetable_vlm(study: "Study", done: "Done") -> "xr.Dataset":
    from twohop.stages.timetable import timetable_vlm

    return timetable_vlm(study, done)


def _prediction(study: "Study", done: "Done") -> "xr.Dataset":
    from twohop.stages.prediction import prediction

    return prediction(study, done["recall"], done["resolution"], done["timetable_vlm"])


def _diagnosis(study: "Study", done: "Done") -> "xr.Dataset":
    from twohop.stages.diagnosis import diagnosis

    return diagnosis(
        done["recall"],
        done["resolution"],
        done["recovery"],
        done["timetable_vlm"],
        seed=study.seed,
        protocol=study.protocol,
    )


TABLE: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            "backbone_text",
            "what the backbone answers about named entities",
            _backbone_text,
            of_backbone=True,
            turn=0,
        ),
        Stage(
            "recall",
            "what the VLM names and answers, from pictures and in text",
            _recall,
            ("backbone_text",),
            turn=1,
        ),
        Stage(
            "windows",
            "where the backbone recalls, and until when it reads",
            _windows,
            ("backbone_text",),
            of_backbone=True,
            turn=2,
        ),
        Stage(
            "timetable",
            "by when, and in which form, the backbone must have the entity",
            _timetable,
            ("backbone_text",),
            of_backbone=True,
            turn=3,
        ),
        Stage(
            "map_text",
            "which sublayers carry the fact in the backbone, by patching",
            _map_text,
            ("backbone_text", "windows"),
            of_backbone=True,
            turn=5,
        ),
        Stage(
            "attribution_text",
            "the same estimated from gradients, block by block",
            _attribution_text,
            ("map_text",),
            of_backbone=True,
            turn=7,
        ),
        Stage(
            "windows_vlm",
            "where the VLM's own language model recalls, in text",
            _windows_vlm,
            ("recall", "windows"),
            turn=4,
        ),
        Stage(
            "timetable_vlm",
            "by when its own language model must have the entity, in text",
            _timetable_vlm,
            ("recall", "timetable"),
            turn=4,
        ),
        Stage(
            "resolution",
            "from which layer on probes read the entity and the answer",
            _resolution,
            turn=4,
        ),
        Stage(
            "map_image",
            "which sublayers carry the fact in the VLM, by patching",
            _map_image,
            ("backbone_text", "windows", "recall"),
            turn=6,
        ),
        Stage(
            "attribution_image",
            "the same estimated from gradients, block by block",
            _attribution_image,
            ("map_image",),
            turn=8,
        ),
        Stage(
            "recovery",
            "what gives lost facts back: transplants, back-patching, naming first",
            _recovery,
            ("backbone_text", "windows", "recall"),
            turn=3,
        ),
        Stage(
            "prediction",
            "which items the timetable says are lost, and whether they are",
            _prediction,
            ("recall", "resolution", "timetable_vlm"),
            turn=9,
        ),
        Stage(
            "diagnosis",
            "why each item is lost",
            _diagnosis,
            ("recall", "timetable_vlm", "resolution", "recovery"),
            turn=9,
        ),
    )
}
"""Every stage, in the order in which they run: what is recognised and known before all else."""

STAGES: tuple[str, ...] = tuple(TABLE)
"""Names of the stages, in order."""
NEEDS: dict[str, tuple[str, ...]] = {stage.name: stage.needs for stage in TABLE.values()}
"""The stages that each stage is given."""
BACKBONE_STAGES: tuple[str, ...] = tuple(
    stage.name for stage in TABLE.values() if stage.of_backbone
)
"""Stages that ask the backbone alone, which stands in for the VLM there."""


def with_needs(stages: Iterable[str]) -> list[str]:
    """Stages and all that they need, in the order in which they run."""
    wanted = set(stages)
    for stage in reversed(STAGES):
        if stage in wanted:
            wanted.update(NEEDS[stage])
    return [stage for stage in STAGES if stage in wanted]


def derived(stage: str) -> list[str]:
    """The stages that were given a stage's result, or the result of one that was."""
    return [other for other in STAGES if other != stage and stage in with_needs([other])]


@dataclass(frozen=True)
class Selection:
    """Which stages are to be there in the end, and which of them are computed again.

    Attributes
    ----------
    stages, force : tuple of str
    """

    stages: tuple[str, ...] = STAGES
    force: tuple[str, ...] = ()

    @classmethod
    def of(cls, stages: Sequence[str] | None, force: bool | Sequence[str]) -> "Selection":
        """Return the selection that these names make.

        Parameters
        ----------
        stages : sequence of str, optional
            Default: all.
        force : bool or sequence of str
            True: the ``stages``.

        Raises
        ------
        InterventionsError
            If there is no stage of a name.
        """
        from interventions.errors import InterventionsError, did_you_mean

        asked = STAGES if stages is None else tuple(stages)
        again = (asked if force else ()) if isinstance(force, bool) else tuple(force)
        for name in (*asked, *again):
            if name not in STAGES:
                raise InterventionsError(f"no stage {name!r}. {did_you_mean(name, STAGES)}")
        return cls(asked, again)

    def usable(self, stored: Collection[str]) -> list[str]:
        """Which of the stored stages are used as they are.

        Not those forced, nor any whose needs are not usable: they were derived from what is gone.
        """
        usable: list[str] = []
        for stage in STAGES:
            if stage in stored and stage not in self.force and {*NEEDS[stage]} <= {*usable}:
                usable.append(stage)
        return usable

    def wanted(self) -> list[str]:
        """The stages selected and all that they need, in order."""
        return with_needs((*self.stages, *self.force))

    def to_run(self, stored: Collection[str]) -> list[str]:
        """The stages to be computed, in order, where some are stored."""
        usable = self.usable(stored)
        return [stage for stage in self.wanted() if stage not in usable]
