"""Which entity is read off a state: probes of a model's own, and probes that were fitted on names.

A *plain* probe is fitted on the VLM's states of other pictures: can the entity be told at all? A
*transfer* probe is fitted on the backbone's states at names and applied to another model's states:
is the entity there in the form that the backbone's recall reads? It is applied as it is, and
*centred*: a vector that all states of a modality share, which a probe takes for evidence, is taken
off and the mean of the names is put in its place. That vector is the mean over all entities of
states at the same place and layer in the contexts that are not tested: no label enters it. Its
null is the same probe fitted on the names of permuted entities.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from interventions.probing.ridge import Probe, fit_probes
from twohop.stages.resolution.picture_maps import Axis

TRANSFERS = ("transfer", "transfer_centred")
"""Ways to apply a transfer probe."""
NULLS = {"transfer": "transfer_null", "transfer_centred": "transfer_null_centred"}
"""The null of each."""
PLAIN = ("plain", "shuffled")
"""A probe of the VLM's own, and its null: the same on shuffled labels."""


@dataclass(frozen=True)
class NameProbes:
    """A transfer probe for every layer and its null.

    Attributes
    ----------
    own, null : Probe
    """

    own: Probe
    null: Probe

    def hits(
        self, states: torch.Tensor, labels: torch.Tensor, *, middle: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Whether each state is read right by each kind of transfer, [layer, row] each.

        Parameters
        ----------
        states : Tensor [layer, row, d_model]
        labels : Tensor [row]
        middle : Tensor [layer, 1, d_model]
            What the states share.
        """
        right = {}
        for way, probe in ((TRANSFERS, self.own), (NULLS.values(), self.null)):
            # The state less its middle plus the mean. Where a picture says nothing yet, all states
            # are their middle: then scores are the offset to the last bit, not by their rounding.
            centred = probe.scores(states.double() - middle + probe.mean)
            # As scores are linear in the state.
            raw = centred + (probe.scores(middle) - probe.scores(probe.mean))
            for kind, scores in zip(way, (raw, centred), strict=True):
                right[kind] = scores.argmax(-1) == labels
        return right

    def between(self, own: int, other: int, *, middle: torch.Tensor) -> Axis:
        """What tells two entities apart in a state, of the probe and its null.

        Parameters
        ----------
        own, other : int
            Entities.
        middle : Tensor [layer, 1, d_model]
            What the states share.
        """
        parts = []
        for probe in (self.own, self.null):
            offset = probe.offset.expand(len(probe.mean), 1, -1)[:, 0]
            direction = (probe.weight[..., own] - probe.weight[..., other]) / probe.scale[:, 0]
            shared = (middle[:, 0] * direction).sum(-1)
            parts.append((direction, offset[:, own] - offset[:, other] - shared))
        directions, offsets = zip(*parts, strict=True)
        return Axis(torch.stack(directions).float(), torch.stack(offsets))


def fit_on_names(
    named: Sequence[torch.Tensor],
    labels: Sequence[torch.Tensor],
    *,
    n_classes: int,
    ridge: float,
    seed: int,
) -> NameProbes:
    """Fit transfer probes on states at names, and their null.

    The null has the entities' labels permuted, not the rows': under it, nothing ties a name to its
    entity, while the rows of one still go together.

    Parameters
    ----------
    named : sequence of Tensor [layer, row, d_model]
        One per prompt.
    labels : sequence of Tensor [row]
        The entities in each.
    n_classes : int
    ridge : float
    seed : int
    """
    own = torch.cat([*labels])
    order = torch.randperm(n_classes, generator=torch.Generator().manual_seed(seed))
    rows = torch.cat([*named], dim=1)
    return NameProbes(*fit_probes(rows, [own, order[own]], n_classes=n_classes, ridge=ridge))


def plain_hits(
    fitted: torch.Tensor,
    fit_labels: torch.Tensor,
    tested: torch.Tensor,
    labels: torch.Tensor,
    *,
    ridge: float,
    generator: torch.Generator,
) -> dict[str, torch.Tensor]:
    """Whether a probe of the VLM's own reads each state right, and its null, [layer, row] each."""
    mixed = fit_labels[torch.randperm(len(fit_labels), generator=generator)]
    probes = fit_probes(fitted, [fit_labels, mixed], n_classes=len(labels), ridge=ridge)
    return {
        kind: probe.predict(tested) == labels for kind, probe in zip(PLAIN, probes, strict=True)
    }


def mean_of_entities(
    named: Sequence[torch.Tensor], labels: Sequence[torch.Tensor], *, n_classes: int
) -> torch.Tensor:
    """Mean over prompts of each entity's states at its name, [layer, entity, d_model]."""
    where = torch.cat([*labels])
    rows = torch.cat([*named], dim=1).float()
    total = torch.zeros(len(rows), n_classes, rows.shape[-1]).index_add_(1, where, rows)
    return total / torch.bincount(where, minlength=n_classes)[:, None]


def nearest_form(
    states: torch.Tensor, names: torch.Tensor, *, middle: torch.Tensor
) -> torch.Tensor:
    """The backbone's layer whose state of the same entity is most like each state.

    By the cosine of what tells an entity from the others: states less their ``middle``, names less
    the mean over entities.

    Parameters
    ----------
    states : Tensor [layer, entity, d_model]
    names : Tensor [backbone_layer, entity, d_model]
    middle : Tensor [layer, 1, d_model]

    Returns
    -------
    Tensor of int [layer, entity]
    """
    own = torch.nn.functional.normalize(states.float() - middle, dim=-1)
    told = torch.nn.functional.normalize(names - names.mean(1, keepdim=True), dim=-1)
    return torch.einsum("led,sed->les", own, told).argmax(-1)


def read_by_either(hits: Mapping[str, torch.Tensor], *, null: bool = False) -> torch.Tensor:
    """Whether a state is read as it is or centred, of hits by kind; or by the nulls of these."""
    first, second = (hits[NULLS[kind] if null else kind] for kind in TRANSFERS)
    return first | second
