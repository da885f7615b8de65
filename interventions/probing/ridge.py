"""Linear probes for all layers at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from interventions.errors import ProbeError
from interventions.given import number, several, whole
from interventions.given_arrays import class_indices, tensor_of


@dataclass(frozen=True)
class Probe:
    """A linear classifier per layer.

    Attributes
    ----------
    weight : Tensor [layer, d_model, class]
        Of features that are centred and scaled.
    mean, scale : Tensor [layer, 1, d_model]
        Of the rows it was fitted on.
    offset : Tensor [class] or [layer, 1, class]
        Of a ridge probe, the share of each class among the rows.
    gradient : Tensor [layer], optional
        What is left of the gradient of a logistic probe's loss; see :func:`fit_logistic`.
    """

    weight: torch.Tensor
    mean: torch.Tensor
    scale: torch.Tensor
    offset: torch.Tensor
    gradient: torch.Tensor | None = None

    def scores(self, hidden: torch.Tensor) -> torch.Tensor:
        """Class scores of ``hidden`` [layer, row, d_model], as [layer, row, class].

        Of a logistic probe they are logits: their softmax is the probability of each class.
        """
        return (hidden.double() - self.mean) / self.scale @ self.weight + self.offset

    def predict(self, hidden: torch.Tensor) -> torch.Tensor:
        """Class of each row of ``hidden`` [layer, row, d_model], as [layer, row]."""
        return self.scores(hidden).argmax(-1)


def scaling(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation [layer, 1, d_model] of the features of [layer, row, d_model].

    Features that hardly vary are not blown up.
    """
    mean = rows.mean(1, keepdim=True)
    scale = rows.std(1, keepdim=True, correction=0)
    return mean, scale.clamp(min=1e-6).maximum(1e-3 * scale.mean(-1, keepdim=True))


def checked_rows(
    hidden: torch.Tensor, label_sets: Sequence[torch.Tensor], n_classes: int
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return activations [layer, row, d_model] and class numbers that fit them, as int64.

    Raises
    ------
    ProbeError
        If shapes do not fit, numbers are not finite, or a label is no class.
    """
    rows = tensor_of(hidden, "activations", error=ProbeError).detach()
    if rows.ndim != 3 or 0 in rows.shape or not bool(torch.isfinite(rows).all()):
        raise ProbeError(
            f"activations of shape {tuple(rows.shape)}. Expected finite [layer, row, d_model]."
        )
    n_classes = whole(n_classes, "n_classes", least=1, error=ProbeError)
    sets = several(label_sets, "label_sets", error=ProbeError)
    if not sets:
        raise ProbeError("label_sets is empty. Give one set of labels, or more.")
    return rows, [
        class_indices(labels, rows.shape[1], n_classes, error=ProbeError) for labels in sets
    ]


def fit_probe(
    hidden: torch.Tensor, labels: torch.Tensor, *, n_classes: int, ridge: float = 1e-2
) -> Probe:
    """Fit a ridge classifier for every layer; :func:`fit_probes` for one set of labels."""
    [probe] = fit_probes(hidden, [labels], n_classes=n_classes, ridge=ridge)
    return probe


def fit_probes(
    hidden: torch.Tensor, label_sets: Sequence[torch.Tensor], *, n_classes: int, ridge: float = 1e-2
) -> list[Probe]:
    """Fit ridge classifiers for every layer, in closed form and float64.

    Several sets of labels of the same rows, such as shuffled ones, share most of the work.

    Features are centred and scaled by their standard deviation; the penalty is ``ridge`` times
    the mean eigenvalue of their Gram matrix, so that it means the same at every layer.

    Parameters
    ----------
    hidden : Tensor [layer, row, d_model]
    label_sets : sequence of Tensor [row]
        Class indices.
    n_classes : int
    ridge : float

    Returns
    -------
    list of Probe
        One per set of labels.

    Examples
    --------
    >>> rows = torch.eye(3)[None].repeat(1, 4, 1)
    >>> labels = torch.arange(3).repeat(4)
    >>> [probe] = fit_probes(rows, [labels], n_classes=3)
    >>> bool((probe.predict(rows)[0] == labels).all())
    True
    """
    ridge = number(ridge, "ridge", above=0, error=ProbeError)
    hidden, label_sets = checked_rows(hidden, label_sets, n_classes)
    rows = hidden.double()
    mean, scale = scaling(rows)
    x = (rows - mean) / scale
    n, d = x.shape[1:]
    # The smaller of the two Gram matrices: with the same penalty both give the same classifier.
    primal = d < n
    gram = x.mT @ x if primal else x @ x.mT
    total = gram.diagonal(dim1=1, dim2=2).sum(-1)[:, None, None]
    # Rows can all be equal: then every score is a tie.
    penalty = ridge * (total / n).clamp(min=1e-9)
    identity = torch.eye(len(gram[0]), dtype=gram.dtype, device=gram.device)
    factor = torch.linalg.cholesky(gram + penalty * identity)
    probes = []
    for labels in label_sets:
        y = torch.nn.functional.one_hot(labels.to(rows.device), n_classes).double()
        offset = y.mean(0)
        target = (x.mT @ (y - offset)) if primal else (y - offset).expand(len(x), -1, -1)
        solved = torch.cholesky_solve(target, factor)
        weight = solved if primal else x.mT @ solved
        probes.append(Probe(weight, mean, scale, offset))
    return probes
