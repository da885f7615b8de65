"""Logistic probes: multinomial regression with L2, several sets of labels of the same rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from interventions.errors import ProbeError
from interventions.given import number, whole
from interventions.probing.ridge import Probe, checked_rows, scaling

HISTORY = 10
LINE_STEPS = 8
FLATTER = 0.2
"""A line search ends where the slope is this share of what it was."""


def fit_logistic(
    hidden: torch.Tensor,
    label_sets: Sequence[torch.Tensor],
    *,
    n_classes: int,
    C: float = 1.0,
    tol: float = 1e-5,
    max_iter: int = 1000,
) -> list[Probe]:
    """Fit logistic regressions with an L2 penalty for every layer.

    Features are centred and scaled as in :func:`fit_probes`; what is minimised is then that of
    scikit-learn's ``LogisticRegression(C=C)``: multinomial, or binary for two classes. In float32,
    or float64 for float64 rows.

    Parameters
    ----------
    hidden : Tensor [layer, row, d_model]
    label_sets : sequence of Tensor [row]
        Class indices; several sets of the same rows share much of the work.
    n_classes : int
    C : float
        Inverse strength of the penalty.
    tol : float
        A fit has converged where no component of the gradient of the mean loss is larger
        (scikit-learn's ``tol``).
    max_iter : int

    Returns
    -------
    list of Probe
        One per set of labels. Where its ``gradient`` is above ``tol``, it has not converged.

    Examples
    --------
    >>> rows = torch.eye(3)[None].repeat(1, 4, 1)
    >>> [probe] = fit_logistic(rows, [torch.arange(3).repeat(4)], n_classes=3)
    >>> bool((probe.gradient < 1e-5).all())
    True
    """
    C = number(C, "C", above=0, error=ProbeError)
    tol = number(tol, "tol", above=0, error=ProbeError)
    max_iter = whole(max_iter, "max_iter", least=1, error=ProbeError)
    hidden, label_sets = checked_rows(hidden, label_sets, n_classes)
    labels = torch.stack([labels.to(hidden.device) for labels in label_sets])
    mean, scale = scaling(hidden.double())
    fits = []
    for layer in range(len(hidden)):
        rows = ((hidden[layer].double() - mean[layer]) / scale[layer]).to(
            torch.promote_types(hidden.dtype, torch.float32)
        )
        fits.append(fit(rows, labels, n_classes=n_classes, C=C, tol=tol, max_iter=max_iter))
    return [
        Probe(
            torch.stack([layer_fit.weight[i] for layer_fit in fits]).double(),
            mean,
            scale,
            torch.stack([layer_fit.offset[i] for layer_fit in fits]).double()[:, None],
            torch.stack([layer_fit.gradient[i] for layer_fit in fits]),
        )
        for i in range(len(labels))
    ]


@dataclass(frozen=True)
class Fit:
    """Logistic regressions of one set of rows on several sets of labels.

    Attributes
    ----------
    weight : Tensor [label_set, feature, class]
    offset : Tensor [label_set, class]
    gradient : Tensor [label_set]
        Largest component, at the end, of the gradient of the mean loss.
    iterations : int
    """

    weight: torch.Tensor
    offset: torch.Tensor
    gradient: torch.Tensor
    iterations: int


def fit(
    x: torch.Tensor, labels: torch.Tensor, *, n_classes: int, C: float, tol: float, max_iter: int
) -> Fit:
    """Minimise ``C * sum of losses + |weight|^2 / 2`` as scikit-learn's LogisticRegression does.

    Two classes share one weight vector, as there: class 1 has half of it, class 0 its negative.
    Offsets carry no penalty. With more features than rows, the problem is solved in the space that
    the rows span, which has the same solution.

    Solved by L-BFGS (Liu and Nocedal, 1989) that starts from the inverse of the Hessian at zero,
    which is one small matrix for all classes and label sets. A line search costs no product with
    the rows, as the logits of a step are linear in its length.

    Parameters
    ----------
    x : Tensor [row, feature]
        Centred.
    labels : Tensor [label_set, row]
        Class indices.
    n_classes : int
    C : float
        Inverse strength of the penalty.
    tol : float
        Stop where no component of the gradient of the mean loss is larger.
    max_iter : int
    """
    if x.shape[1] <= len(x):
        return _fit(x, labels, n_classes=n_classes, C=C, tol=tol, max_iter=max_iter)
    rows = x.double()
    gram = rows @ rows.mT
    # Centred rows are dependent: without a speck on its diagonal the matrix has no factor.
    speck = 1e-10 * gram.diagonal().mean().clamp(min=1e-30)
    factor = torch.linalg.cholesky(gram + speck * torch.eye(len(gram), device=x.device).double())
    inner_fit = _fit(factor.to(x), labels, n_classes=n_classes, C=C, tol=tol, max_iter=max_iter)
    inner = inner_fit.weight.double().transpose(0, 1).flatten(1)
    weight = rows.mT @ torch.linalg.solve_triangular(factor.mT, inner, upper=True)
    shape = (x.shape[1], len(labels), n_classes)
    return Fit(
        weight.view(shape).transpose(0, 1).to(x),
        inner_fit.offset,
        inner_fit.gradient,
        inner_fit.iterations,
    )


def _fit(
    x: torch.Tensor, labels: torch.Tensor, *, n_classes: int, C: float, tol: float, max_iter: int
) -> Fit:
    n, d = x.shape
    sets = len(labels)
    # Half of the weights for each of two classes has half of their penalty.
    penalty = (2 if n_classes == 2 else 1) / (C * n)
    target = torch.nn.functional.one_hot(labels.T, n_classes).to(x)  # [row, set, class]
    across = x.mT.contiguous()
    curvature = 1 / n_classes
    hessian = (across @ x) * (curvature / n)
    speck = 10 * torch.finfo(x.dtype).eps * hessian.diagonal().sum()
    hessian.diagonal().add_(penalty + speck)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))

    def gradient(probability: torch.Tensor) -> torch.Tensor:
        residual = (probability - target) / n
        slope = torch.empty_like(weight)
        torch.mm(across, residual.flatten(1), out=slope[:d].view(d, -1))
        slope[:d].add_(weight[:d], alpha=penalty)
        slope[d] = residual.sum(0)
        return slope

    weight = x.new_zeros(d + 1, sets, n_classes)  # the last row is the offset
    share = target.mean(0).clamp(min=0.5 / n).log()  # what is best while the weights are zero
    weight[d] = share - share.mean(-1, keepdim=True)
    logits = weight[d].expand(n, -1, -1)
    slope = gradient(logits.softmax(-1))
    kept: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    iteration = 0
    while iteration < max_iter:
        running = slope.abs().amax((0, 2)) > tol
        if not bool(running.any()):
            break
        direction = _direction(slope, kept, inverse, curvature)
        along = (x @ direction[:d].view(d, -1)).view_as(logits) + direction[d]
        size = _step_size(logits, along, target, weight[:d], direction[:d], penalty) * running
        step = size[:, None] * direction
        weight = weight + step
        logits = logits + size[:, None] * along
        before, slope = slope, gradient(logits.softmax(-1))
        change = slope - before
        product = _dots(step, change)
        scale = torch.where(product > 0, 1 / product, 0)
        kept = [*kept, (step, change, scale)][-HISTORY:]
        iteration += 1
    return Fit(
        weight[:d].transpose(0, 1).contiguous(), weight[d], slope.abs().amax((0, 2)), iteration
    )


def _dots(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Inner products of [feature, set, class], by set."""
    return torch.einsum("dsk,dsk->s", a, b)


def _direction(
    slope: torch.Tensor,
    kept: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
    inverse: torch.Tensor,
    curvature: float,
) -> torch.Tensor:
    """The two loops of L-BFGS, with the inverse Hessian at zero between them."""
    d = len(inverse)
    left = slope.clone()
    shares = []
    for step, change, scale in reversed(kept):
        share = scale * _dots(step, left)
        shares.append(share)
        left.sub_(share[:, None] * change)
    direction = torch.empty_like(left)
    torch.mm(inverse, left[:d].view(d, -1), out=direction[:d].view(d, -1))
    direction[d] = left[d] / curvature
    for (step, change, scale), share in zip(kept, reversed(shares), strict=True):
        direction.add_((share - scale * _dots(change, direction))[:, None] * step)
    return direction.neg_()


def _step_size(
    logits: torch.Tensor,
    along: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor,
    direction: torch.Tensor,
    penalty: float,
) -> torch.Tensor:
    """Where the loss is about lowest along a direction, by set: Newton's method in a bracket."""
    n = len(logits)
    length = penalty * _dots(direction, direction)
    pull = penalty * _dots(weight, direction)
    size = torch.ones_like(pull)
    low, high = torch.zeros_like(size), torch.full_like(size, torch.inf)
    first = ((logits.softmax(-1) - target) * along).sum((0, 2)) / n + pull
    for _ in range(LINE_STEPS):
        probability = (logits + size[:, None] * along).softmax(-1)
        slope = ((probability - target) * along).sum((0, 2)) / n + pull + size * length
        if bool((slope.abs() <= FLATTER * first.abs()).all()):
            break
        weighted = probability * along
        bend = ((weighted * along).sum((0, 2)) - weighted.sum(-1).square().sum(0)) / n + length
        low = torch.where(slope < 0, size, low)
        high = torch.where(slope < 0, high, size)
        newton = size - slope / bend
        middle = torch.where(high.isinf(), 2 * low + 1, (low + high) / 2)
        size = torch.where((newton > low) & (newton < high), newton, middle)
    return size
