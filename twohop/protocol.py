"""Every number that decides what a study measures, in one place, and what each may be."""

from collections.abc import Mapping, Sequence
from dataclasses import Field, asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from twohop.allowed import Allowed, Documented, number, positive, several, share, whole, words
from twohop.allowed import numbered as _set

if TYPE_CHECKING:
    from twohop.errors import ProtocolError

Attribution = Literal["ig", "relp", "patching"]
METHODS: tuple[Attribution, ...] = get_args(Attribution)
"""Ways to attribute, best agreement first. Integrated gradients need runs that correspond token by
token and images that only enter with the embeddings; RelP needs a rule for each part; patching
needs a gradient."""
Preset = Literal["quick", "full"]
PRESETS: tuple[Preset, ...] = get_args(Preset)
"""Names of the sample sizes that belong together."""
LEAST_RESAMPLES = 40
"""With fewer, not one is beyond each end of an interval of 95 %."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The numbers of a study; every result belongs to those it was measured with.

    They are part of a run's settings, so that a folder of results takes no others. What each is,
    its unit and what it may be: :func:`documented`. Numbers that change how fast results come,
    but not which, such as the rows of a batch, are not here.

    Raises
    ------
    ProtocolError
        If a number is none, or makes no sense.

    Examples
    --------
    >>> Protocol(lost_items=48).changed()
    {'lost_items': 48}
    >>> Protocol(lost_items=0)  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    ProtocolError: protocol.lost_items: got 0; expected a whole number of items, 1 or more.
    """

    # How many are tried
    lost_items: int = _set(
        400,
        whole("items"),
        "lost items: every arm of the recovery is tried on the same ones",
        flag="--lost",
        quick=60,
    )
    kept_items: int = _set(
        200,
        whole("items"),
        "items right from the image, on which the harm of every arm is measured",
        flag="--kept",
        quick=40,
    )
    random_seeds: int = _set(
        20,
        whole("draws"),
        "draws of random places, or of random spans, for each item",
        flag="--random-seeds",
    )
    window_items: int = _set(
        200,
        whole("items"),
        "items on which the recall windows are measured",
        flag="--window-items",
        quick=60,
    )
    timetable_items: int = _set(
        200,
        whole("items"),
        "items on which the recall timetable is measured",
        flag="--timetable-items",
        quick=60,
    )
    map_items: int = _set(
        60,
        whole("items"),
        "items on which each map is measured: so many answered right, and so many lost",
        flag="--map-items",
        quick=24,
    )
    lens_entities: int = _set(
        24, whole("entities"), "entities whose states the lens reads", flag="--lens-entities"
    )
    picture_entities: int = _set(
        24,
        whole("entities"),
        "entities whose pictures the lens reads token by token, for the report's examples",
        flag="--picture-entities",
    )
    picture_maps: int = _set(
        8,
        whole("entities"),
        "entities, of those, whose pictures are patched, cut off and attributed to as well",
        flag="--picture-maps",
        quick=4,
    )
    picture_regions: int = _set(4, whole("regions"), "regions along either side of such a picture")
    picture_windows: int = _set(
        6,
        whole("windows"),
        "windows of blocks in which such regions are patched or cut off, at most",
    )
    resamples: int = _set(
        2000,
        whole("resamples", least=LEAST_RESAMPLES),
        "resamples of the entities behind an interval of layers or correlations",
        flag="--resamples",
    )
    agreement_resamples: int = _set(
        500,
        whole("resamples", least=LEAST_RESAMPLES),
        "resamples, of those, behind the intervals of the agreement of maps, where a rank "
        "correlation of each takes time",
        flag="--agreement-resamples",
    )
    gate_resamples: int = _set(
        500,
        whole("resamples", least=LEAST_RESAMPLES),
        "resamples of the entities on which the whole diagnosis is made again, its tests included",
        flag="--gate-resamples",
    )

    # Answers
    spare_tokens: int = _set(
        1,
        whole("tokens", least=0),
        "tokens that an answer may be longer than the longest known one: room for the stop",
    )
    sentence_tokens: int = _set(
        32,
        whole("tokens"),
        "tokens that an answer of a chat, which may be a sentence, has room for at least",
    )

    # Recall windows of the backbone
    window_keeps: float = _set(
        0.9,
        share(above=0),
        "share of its accuracy at which the backbone no longer needs MLPs: the enrichment window "
        "ends",
    )
    window_blocks: int = _set(
        32,
        whole("blocks"),
        "blocks, at most, that are ablated alone, up to which MLPs are restored, and after which "
        "states are swapped",
        quick=8,
    )
    readout_follows: float = _set(
        0.1,
        share(),
        "share of its maximum below which answers no longer follow a swap: the read-out window "
        "ends",
    )
    transplant_share: float = _set(
        0.5,
        share(),
        "share of what all MLPs give that the blocks give in which transplants are written",
    )
    timetable_layers: int = _set(
        16,
        whole("blocks", least=4),
        "blocks of the recall timetable, at most: the first three, the last, and between them "
        "steps that grow",
        quick=8,
    )
    predicted_lost: float = _set(
        0.5,
        share(above=0),
        "probability of an answer, by the timetable, below which an item is predicted lost",
    )
    calibration_bins: int = _set(
        5, whole("bins", least=2), "bins of that probability in which it is held against answers"
    )

    # Maps
    map_windows: int = _set(10, whole("windows"), "windows of blocks of an exact map, at most")
    least_span: float = _set(
        0.1,
        number("logits", least=0),
        "difference between the two runs of a map, in logits: shares of it are given where its "
        "interval begins above this",
    )
    attribution_methods: tuple[Attribution, ...] = _set(
        METHODS, words(METHODS), "ways to attribute: the first that a model allows is taken"
    )
    attribution_steps: int = _set(
        3, whole("steps"), "steps of integrated gradients; of an odd number one is halfway"
    )
    top_cells: int = _set(
        10, whole("cells"), "strongest cells of two maps of which the common ones are counted"
    )
    least_agreement: float = _set(
        0.5,
        number("correlation", least=-1, most=1),
        "correlation with the exact map below which a map by attribution is doubtful",
    )
    least_reliability: float = _set(
        0.5,
        share(above=0),
        "reliability of both maps from which on their similarity is also given without noise",
    )

    # Probes
    test_view: int = _set(0, whole("", least=0), "picture of an entity that probes are tested on")
    fit_views: tuple[int, ...] = _set(
        (1, 2),
        several(whole("", least=0), distinct=True),
        "pictures of an entity that plain probes are fitted on",
    )
    probe_ridge: float = _set(
        1e-2, positive("of the mean variance"), "penalty of the probes for the entity"
    )
    answer_ridge: float = _set(
        1e-1, positive("of the mean variance"), "penalty of the probe for the answer"
    )
    answer_folds: int = _set(
        2, whole("parts", least=2), "parts of the entities in fitting and testing that probe"
    )
    onset_layers: int = _set(
        2,
        whole("layers"),
        "layers in a row at which a probe must read an entity, at least: one can be luck",
    )
    onset_share: float = _set(
        0.15,
        share(),
        "the same as a share of the model's layers, where that is more: in many layers two in a "
        "row are luck",
    )

    # Recovery
    later_layers: tuple[float, ...] = _set(
        (0.3, 0.4, 0.5, 0.6, 0.7, 0.8),
        several(share(below=1), distinct=True),
        "layers that back-patching takes states from, as shares of the depth",
        quick=(0.4, 0.6, 0.8),
    )
    earlier_layers: tuple[float, ...] = _set(
        (0.0, 0.05, 0.1, 0.2),
        several(share(below=1), distinct=True),
        "layers that back-patching writes them into, as shares of the depth",
        quick=(0.0, 0.1),
    )
    back_items: int = _set(
        120,
        whole("items", least=2),
        "lost items on which the grid of back-patching is searched, of both halves of the "
        "entities; what is chosen is tried on all",
        quick=60,
    )
    back_parts: int = _set(
        3,
        whole("parts"),
        "parts of the image at which back-patching is tried, beside all of it; 1: all of it alone",
        quick=1,
    )
    back_tokens: int = _set(
        4,
        whole("tokens"),
        "tokens of the question, from its end, at which back-patching is tried, beside the last "
        "token of all",
        quick=2,
    )
    image_places: int = _set(
        8, whole("places"), "places of the image at which a transplant is tried"
    )
    question_places: int = _set(
        8, whole("places"), "tokens of the question, from its end, at which it is", quick=4
    )
    span_places: int = _set(
        4,
        whole("places"),
        "neighbouring places that the span of the transplant of MLP outputs reaches over, at most",
    )

    # What is tested, and what a reader is told to be careful about
    equivalent_points: float = _set(
        5.0,
        number("points", least=0),
        "points: a difference whose interval ends below it is shown not to matter",
    )
    least_clusters: int = _set(
        5, whole("entities"), "entities below which a difference is not tested"
    )
    caution_scorers: float = _set(
        5.0, number("points", least=0), "points between both scorers' gaps that are pointed out"
    )
    caution_recognised: float = _set(
        0.5, share(), "share of entities named below which it is pointed out"
    )
    caution_blank_items: int = _set(
        10, whole("items"), "wrong answers from which on they are compared with the blank image's"
    )
    caution_blank_share: float = _set(
        0.3, share(), "share of them word for word the same that is pointed out"
    )
    caution_plain: float = _set(
        0.9, share(), "share of its maximum that the plain probe has at layer 0 to be pointed out"
    )
    caution_transfer: float = _set(
        0.5, share(), "share of entities read below which the transfer probe is called weak"
    )
    caution_unexplained: int = _set(
        5, whole("items"), "unexplained items from which on their reasons are looked at"
    )
    caution_random: float = _set(
        0.8, share(), "share of a transplant's effect that random positions have to be pointed out"
    )
    caution_mean_entity: float = _set(
        0.1, share(), "lower end of what the mean over entities gives back to be pointed out"
    )
    other_splits: int = _set(
        200,
        whole("ways"),
        "other ways to halve the entities in which the cells of back-patching are chosen again",
    )
    caution_splits: float = _set(
        0.9,
        share(),
        "share of other ways to halve the entities that show of back-patching what these do, below "
        "which it is pointed out",
    )
    caution_lost: int = _set(20, whole("items"), "lost items below which shares are called rough")

    def __post_init__(self) -> None:
        for entry in fields(self):
            object.__setattr__(self, entry.name, _checked(entry, getattr(self, entry.name)))
        if self.test_view in self.fit_views:
            raise _refusal(
                f"protocol.test_view: got {self.test_view}, which is one of protocol.fit_views "
                f"{self.fit_views}; expected a picture that probes were not fitted on."
            )
        if max(self.later_layers) <= min(self.earlier_layers):
            raise _refusal(
                f"protocol.later_layers: got {self.later_layers}, none of them later than one of "
                f"protocol.earlier_layers {self.earlier_layers}; expected at least one that is."
            )

    @classmethod
    def preset(cls, name: Preset) -> Self:
        """Return the numbers of a preset.

        ``"full"``, the default, has samples that can decide; ``"quick"`` has the fewest that say
        anything, for a first look: its report says what it cannot decide.

        Examples
        --------
        >>> Protocol.preset("quick").lost_items, Protocol.preset("full") == Protocol()
        (60, True)
        """
        if name not in PRESETS:
            raise _refusal(f"protocol: got the preset {name!r}; expected {' or '.join(PRESETS)}.")
        if name == "full":
            return cls()
        return cls(**{entry.name: entry.metadata["quick"] for entry in fields(cls)})

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """Return the protocol that settings have under ``protocol``, as they are stored.

        Raises
        ------
        ProtocolError
            If there is none, or it has numbers that are not known here.
        """
        stored = settings.get("protocol")
        if not isinstance(stored, Mapping):
            raise _refusal(
                f"these settings have no protocol: {sorted(settings)}. They are of an older "
                "version: run the study again."
            )
        known = {entry.name for entry in fields(cls)}
        if unknown := sorted({*stored} - known):
            raise _refusal(
                f"the stored protocol has {', '.join(unknown)}, which this version does not know."
            )
        return cls(**stored)

    def as_settings(self) -> dict[str, Any]:
        """The numbers in JSON types, by name."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

    def changed(self) -> dict[str, Any]:
        """The numbers that are not the default ones, by name."""
        return {
            entry.name: value
            for entry in fields(self)
            if (value := getattr(self, entry.name)) != entry.default
        }


def documented() -> Sequence[Documented]:
    """Every field of :class:`Protocol`, in order.

    Examples
    --------
    >>> documented()[0].flag
    '--lost'
    """
    return [
        Documented(name=entry.name, default=entry.default, **entry.metadata)
        for entry in fields(Protocol)
    ]


def _refusal(message: str) -> "ProtocolError":
    # What the error derives from brings torch, which takes seconds to import.
    from twohop.errors import ProtocolError

    return ProtocolError(message)


def _checked(entry: Field[Any], value: Any) -> Any:
    allowed: Allowed = entry.metadata["allowed"]
    try:
        return allowed.read(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise _refusal(
            f"protocol.{entry.name}: got {value!r}; expected {allowed.expected}."
        ) from error


DEFAULT = Protocol()
