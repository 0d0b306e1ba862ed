"""How well logits fit right answers: what a head is trained by, and what the best of several is chosen by.

Shapes: `N` images, `C` classes.
"""

from __future__ import annotations

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional as F


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
