"""Linear probes for all layers at once."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Probe:
    """A ridge classifier per layer, fitted to one-hot labels.

    Attributes
    ----------
    weight : Tensor [layer, d_model, class]
    mean, scale : Tensor [layer, 1, d_model]
        Of the rows it was fitted on.
    offset : Tensor [class]
        Share of each class among them.
    """

    weight: torch.Tensor
    mean: torch.Tensor
    scale: torch.Tensor
    offset: torch.Tensor

    def scores(self, hidden: torch.Tensor) -> torch.Tensor:
        """Class scores of ``hidden`` [layer, row, d_model], as [layer, row, class]."""
        return (hidden.double() - self.mean) / self.scale @ self.weight + self.offset

    def predict(self, hidden: torch.Tensor) -> torch.Tensor:
        """Class of each row of ``hidden`` [layer, row, d_model], as [layer, row]."""
        return self.scores(hidden).argmax(-1)


def fit_probe(
    hidden: torch.Tensor, labels: torch.Tensor, *, n_classes: int, ridge: float = 1e-2
) -> Probe:
    """Fit a ridge classifier for every layer, in closed form and float64.

    Features are centred and scaled by their standard deviation; the penalty is ``ridge`` times
    the mean eigenvalue of their Gram matrix, so that it means the same at every layer.

    Parameters
    ----------
    hidden : Tensor [layer, row, d_model]
    labels : Tensor [row]
        Class indices.
    n_classes : int
    ridge : float

    Returns
    -------
    Probe

    Examples
    --------
    >>> rows = torch.eye(3)[None].repeat(1, 4, 1)
    >>> labels = torch.arange(3).repeat(4)
    >>> bool((fit_probe(rows, labels, n_classes=3).predict(rows)[0] == labels).all())
    True
    """
    rows = hidden.double()
    mean = rows.mean(1, keepdim=True)
    scale = rows.std(1, keepdim=True, correction=0)
    scale = scale.clamp(min=1e-6).maximum(1e-3 * scale.mean(-1, keepdim=True))
    x = (rows - mean) / scale
    y = torch.nn.functional.one_hot(labels.to(rows.device), n_classes).double()
    offset = y.mean(0)
    gram = x @ x.transpose(1, 2)  # rows are fewer than, or about as many as, features
    n = gram.shape[-1]
    size = gram.diagonal(dim1=1, dim2=2).mean(-1)[:, None, None]
    penalty = ridge * size.clamp(min=1e-9)  # rows can all be equal: then every score is a tie
    dual = torch.linalg.solve(
        gram + penalty * torch.eye(n, dtype=gram.dtype, device=gram.device), y - offset
    )
    return Probe(x.transpose(1, 2) @ dual, mean, scale, offset)
