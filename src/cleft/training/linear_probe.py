"""A linear probe solved exactly: logistic regression on features on disk, its regularisation chosen by validation.

Nothing in it is drawn: the same features give the same head.

Shapes: `N` images, `C` classes, `D` width of the features.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn import functional as F

from cleft.errors import NumericsError
from cleft.grammar import count


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats; log(C) or log(2) where all logits are equal.

    Args:
        logits: One column per class, `[N, C]`.
        targets: Class of each image, `[N]` int64; or one column per finding, `[N, C]`: 1, 0, or NaN where it is not
            known, which does not count.

    Returns:
        A scalar: the mean over images, or over what is known of each image and finding.
    """
    if targets.ndim == 1:
        return F.cross_entropy(logits, targets)
    known = ~targets.isnan()
    return F.binary_cross_entropy_with_logits(logits[known], targets[known])


def mean_auc(logits: Tensor, targets: Tensor) -> float | None:
    """Mean over the classes of how often an image that shows one outscores an image that does not.

    Args:
        logits: One column per class, `[N, C]`.
        targets: As for `cross_entropy`.

    Returns:
        A fraction in [0, 1]; None where no class is both shown and not shown.
    """
    if targets.ndim == 1:
        present = F.one_hot(targets, logits.shape[1]).to(logits.dtype)
        # The log-odds of a class against all others rank images as its probability does, without rounding to 1.
        scores = torch.stack(
            [logits[:, c] - _others(logits, c).logsumexp(dim=1) for c in range(logits.shape[1])], dim=1
        )
    else:
        present, scores = targets, logits
    areas: list[float] = []
    for column in range(scores.shape[1]):
        known = ~present[:, column].isnan()
        truth = present[known, column]
        if 0 < truth.sum() < len(truth):
            areas.append(float(roc_auc_score(truth.cpu().numpy(), scores[known, column].double().cpu().numpy())))
    return sum(areas) / len(areas) if areas else None


def _others(logits: Tensor, column: int) -> Tensor:
    return torch.cat([logits[:, :column], logits[:, column + 1 :]], dim=1)


STRENGTHS = tuple(float(f"{10 ** (half / 2):.3g}") for half in range(-10, 3))
"""Weights of the penalty that are tried, 1e-5 to 10 in half decades: half the squared norm of the weights times this is
added to the mean cross-entropy of an image, so that it means the same for few images and for many."""
_STEPS, _TOLERANCE = 10_000, 1e-7


class Probe(NamedTuple):
    """A linear head, and how it came about."""

    weight: Tensor
    """`[C, D]` float32, for features as they are: the scaling is multiplied in."""
    bias: Tensor
    """`[C]` float32."""
    strength: float
    """The penalty that was chosen."""
    value: float
    """Its cross-entropy or AUC on validation."""
    tried: dict[float, float]
    """What each strength reached on validation; the higher strength wins a tie."""


def solve_probe(
    features: Tensor, targets: Tensor, val_features: Tensor, val_targets: Tensor, *, classes: int, choose: str
) -> Probe:
    """Solves the head for every strength of the grid and keeps the best on validation.

    Features are scaled to mean 0 and deviation 1 over the training images. Several classes are one problem, with the
    softmax over them; findings are one problem each, over the images where the finding is known, with one strength for
    all of them.

    Args:
        features: Of the training images, `[N, D]`.
        targets: Their classes `[N]` int64, or findings `[N, C]` with 1, 0 and NaN.
        val_features: Of the validation images.
        val_targets: As `targets`.
        classes: How many there are, `C`.
        choose: `loss` or `auc`.

    Raises:
        NumericsError: If a feature is not finite, or the solution is not reached.

    Source:
        The linear probe of CLIP (Radford et al. 2021, appendix A.3): lbfgs, and a sweep of the penalty on validation.
    """
    scaler = StandardScaler().fit(_finite(features))
    scaled, val_scaled = (np.asarray(scaler.transform(_finite(each)), np.float64) for each in (features, val_features))
    shift, scale = np.asarray(scaler.mean_), np.asarray(scaler.scale_)
    heads: dict[float, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
    tried: dict[float, float] = {}
    models: list[Any] = [_model() for _ in range(1 if targets.ndim == 1 else classes)]
    for strength in sorted(STRENGTHS, reverse=True):  # from stiff to loose, each begun where the one before ended
        heads[strength] = _solve(models, scaled, targets.numpy(), strength, classes)
        logits = torch.from_numpy(val_scaled @ heads[strength][0].T + heads[strength][1])
        tried[strength] = _measure(logits, val_targets, choose)
    best = (max if choose == "auc" else min)(tried, key=lambda strength: tried[strength])
    weight, bias = heads[best]
    weight = weight / scale
    return Probe(
        weight=torch.from_numpy(weight).float(),
        bias=torch.from_numpy(bias - weight @ shift).float(),
        strength=best,
        value=tried[best],
        tried=tried,
    )


def _model() -> LogisticRegression:
    return LogisticRegression(tol=_TOLERANCE, max_iter=_STEPS, warm_start=True)


def _solve(
    models: list[Any], features: NDArray[np.float64], targets: NDArray[Any], strength: float, classes: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights `[C, D]` and biases `[C]` on scaled features."""
    if targets.ndim == 1:
        model = _fit(models[0], features, targets, strength)
        weight, bias = np.asarray(model.coef_), np.asarray(model.intercept_)
        # Of two classes the library keeps the log-odds of the second.
        return (weight, bias) if classes > 2 else (np.concatenate([-weight, weight]) / 2, np.r_[-bias, bias] / 2)
    for column, model in enumerate(models):
        known = ~np.isnan(targets[:, column])
        _fit(model, features[known], targets[known, column], strength)
    return np.concatenate([model.coef_ for model in models]), np.concatenate([model.intercept_ for model in models])


def _fit(model: Any, features: NDArray[np.float64], targets: NDArray[Any], strength: float) -> Any:
    model.set_params(C=1 / (strength * len(features)))
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            return model.fit(features, targets)
        except ConvergenceWarning as error:
            raise NumericsError(
                f"the probe of strength {strength:g} is not solved after {count(_STEPS, 'step')}; look at the "
                f"features, or use classify.protocol=paper"
            ) from error


def _measure(logits: Tensor, targets: Tensor, choose: str) -> float:
    if choose == "auc":
        area = mean_auc(logits, targets)
        return 0.5 if area is None else area
    return cross_entropy(logits, targets.to(torch.int64 if targets.ndim == 1 else logits.dtype)).item()


def _finite(features: Tensor) -> NDArray[np.float64]:
    values = features.double().numpy()
    if not np.isfinite(values).all():
        raise NumericsError("a feature is not finite; check the weights and the images")
    return values
