"""Linear probes: logistic regression fitted by L-BFGS, metrics of classifiers, defaults of the protocols.

The fit is deterministic: the same features give the same probe.

Shapes: `N` images, `C` classes, `D` width of the features.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Collection, Mapping
from types import MappingProxyType
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

from cleft.config import ClassifyConfig, OptimConfig
from cleft.errors import ConfigError, NumericsError
from cleft.grammar import count


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Returns the mean cross-entropy in nats, a scalar; log(C) or log(2) if all logits are equal.

    Args:
        logits: One column per class, `[N, C]`.
        targets: Class of each image, `[N]` int64; or findings, `[N, C]`: 1, 0, or NaN if unknown, which is ignored.
    """
    if targets.ndim == 1:
        return F.cross_entropy(logits, targets)
    known = ~targets.isnan()
    return F.binary_cross_entropy_with_logits(logits[known], targets[known])


def mean_auc(logits: Tensor, targets: Tensor) -> float | None:
    """Returns the mean AUC over classes (one versus rest) or findings.

    Args:
        logits: One column per class, `[N, C]`.
        targets: As for `cross_entropy`.

    Returns:
        A fraction in [0, 1]; None if no class has both positive and negative images.
    """
    if targets.ndim == 1:
        present = F.one_hot(targets, logits.shape[1]).to(logits.dtype)
        # The log-odds of a class rank images as its probability does, but do not round to 1.
        scores = torch.stack(
            [logits[:, c] - _other_columns(logits, c).logsumexp(dim=1) for c in range(logits.shape[1])], dim=1
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


def _other_columns(logits: Tensor, column: int) -> Tensor:
    return torch.cat([logits[:, :column], logits[:, column + 1 :]], dim=1)


PENALTIES = tuple(float(f"{10 ** (half / 2):.3g}") for half in range(-10, 3))
"""Grid of L2 penalties, 1e-5 to 10 in half decades. The objective is the mean cross-entropy plus the penalty times half
the squared norm of the weights, so its meaning does not depend on the number of images."""
_MAX_ITERATIONS, _TOLERANCE = 10_000, 1e-7


class Probe(NamedTuple):
    """A fitted linear probe."""

    weight: Tensor
    """`[C, D]` float32, for unscaled features."""
    bias: Tensor
    """`[C]` float32."""
    penalty: float
    """Selected penalty."""
    score: float
    """Its validation cross-entropy or AUC."""
    scores: dict[float, float]
    """Validation cross-entropy or AUC of each penalty; the larger penalty wins a tie."""


def fit_probe(
    features: Tensor, targets: Tensor, val_features: Tensor, val_targets: Tensor, *, classes: int, select_by: str
) -> Probe:
    """Fits a logistic regression for every penalty of the grid and returns the best on validation.

    Features are standardised over the training images. Classes are fitted together, with a softmax; findings one by
    one, on the images where the finding is known, with a common penalty.

    Args:
        features: Features of the training images, `[N, D]`.
        targets: Their classes `[N]` int64, or findings `[N, C]` with 1, 0 and NaN.
        val_features: Features of the validation images.
        val_targets: As `targets`.
        classes: Number of classes, `C`.
        select_by: `loss` or `auc`.

    Raises:
        NumericsError: If a feature is not finite, or the solver does not converge.

    Source:
        Linear probe of CLIP (Radford et al. 2021, appendix A.3): L-BFGS, and a sweep of the penalty on validation.
    """
    scaler = StandardScaler().fit(_finite(features))
    scaled, val_scaled = (np.asarray(scaler.transform(_finite(each)), np.float64) for each in (features, val_features))
    shift, scale = np.asarray(scaler.mean_), np.asarray(scaler.scale_)
    heads: dict[float, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
    scores: dict[float, float] = {}
    models: list[Any] = [_model() for _ in range(1 if targets.ndim == 1 else classes)]
    for penalty in sorted(PENALTIES, reverse=True):  # strongest first; each fit starts from the previous one
        heads[penalty] = _fit_all(models, scaled, targets.numpy(), penalty, classes)
        logits = torch.from_numpy(val_scaled @ heads[penalty][0].T + heads[penalty][1])
        scores[penalty] = _measure(logits, val_targets, select_by)
    best = (max if select_by == "auc" else min)(scores, key=lambda penalty: scores[penalty])
    weight, bias = heads[best]
    weight = weight / scale
    return Probe(
        weight=torch.from_numpy(weight).float(),
        bias=torch.from_numpy(bias - weight @ shift).float(),
        penalty=best,
        score=scores[best],
        scores=scores,
    )


def _model() -> LogisticRegression:
    return LogisticRegression(tol=_TOLERANCE, max_iter=_MAX_ITERATIONS, warm_start=True)


def _fit_all(
    models: list[Any], features: NDArray[np.float64], targets: NDArray[Any], penalty: float, classes: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns weights `[C, D]` and biases `[C]` for standardised features."""
    if targets.ndim == 1:
        model = _fit(models[0], features, targets, penalty)
        weight, bias = np.asarray(model.coef_), np.asarray(model.intercept_)
        # With two classes, scikit-learn returns the log-odds of the second.
        return (weight, bias) if classes > 2 else (np.concatenate([-weight, weight]) / 2, np.r_[-bias, bias] / 2)
    for column, model in enumerate(models):
        known = ~np.isnan(targets[:, column])
        _fit(model, features[known], targets[known, column], penalty)
    return np.concatenate([model.coef_ for model in models]), np.concatenate([model.intercept_ for model in models])


def _fit(model: Any, features: NDArray[np.float64], targets: NDArray[Any], penalty: float) -> Any:
    model.set_params(C=1 / (penalty * len(features)))
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            return model.fit(features, targets)
        except ConvergenceWarning as error:
            raise NumericsError(
                f"the linear probe with penalty {penalty:g} did not converge in {count(_MAX_ITERATIONS, 'iteration')}; "
                f"check the features, or use classify.protocol=paper"
            ) from error


def _measure(logits: Tensor, targets: Tensor, select_by: str) -> float:
    if select_by == "auc":
        area = mean_auc(logits, targets)
        return 0.5 if area is None else area
    return cross_entropy(logits, targets.to(torch.int64 if targets.ndim == 1 else logits.dtype)).item()


def _finite(features: Tensor) -> NDArray[np.float64]:
    values = features.double().numpy()
    if not np.isfinite(values).all():
        raise NumericsError("a feature is not finite; check the weights and the images")
    return values


_PAPER: Mapping[str, Any] = MappingProxyType(
    {"select_by": "last", "batch_size": 36, "steps": 8_000, "lr": 5e-4, "weight_decay": 1e-3}
)
_DEFAULTS: Mapping[tuple[str, str], Mapping[str, Any]] = MappingProxyType(
    {
        ("linear-probe", "standard"): {"select_by": "loss"},
        ("linear-probe", "paper"): {**_PAPER, "augment": False},
        ("fine-tune", "paper"): {**_PAPER, "augment": True, "layer_decay": 1.0},
        ("fine-tune", "standard"): {
            "select_by": "loss",
            "batch_size": 36,
            "steps": 2_000,
            "lr": 2e-4,
            "weight_decay": 0.05,
            "augment": True,
            "layer_decay": 0.75,
        },
    }
)
"""Mode and protocol to the defaults of settings that are null; settings not named there have no effect.

Source:
    The paper gives cross-entropy, batches of 36, a learning rate of 5e-4, 8,000 steps and a weight decay of 1e-3, for
    linear probes and for fine-tuning; for everything else see docs/decisions/0101.
"""
_STEP_SETTINGS = ("batch_size", "steps", "warmup_steps", "lr", "weight_decay", "layer_decay", "augment")


def uses_solver(config: ClassifyConfig) -> bool:
    """Returns whether the classifier is fitted by a solver (L-BFGS) instead of being trained in steps."""
    return config.mode == "linear-probe" and config.protocol == "standard"


def uses_fixed_features(config: ClassifyConfig) -> bool:
    """Returns whether the image features are the same at every step: frozen encoder, no augmentation.

    Args:
        config: As returned by `apply_protocol`.
    """
    return config.mode == "linear-probe" and not config.augment


def drop_unused(config: ClassifyConfig, typed: Collection[str] = ()) -> ClassifyConfig:
    """Resets settings of a preset that have no effect with this mode and protocol, such as `steps` with a solver.

    Args:
        config: As read from a preset or a run.
        typed: Names of settings that the user typed: these are kept, so that `apply_protocol` refuses them.
    """
    return dataclasses.replace(config, **{name: None for name in _unused(config) if name not in typed})


def apply_protocol(config: ClassifyConfig) -> ClassifyConfig:
    """Replaces settings that are null by the defaults of mode and protocol.

    Raises:
        ConfigError: If a setting has no effect there, or contradicts another.
    """
    where = f"classify.mode={config.mode}, classify.protocol={config.protocol}"
    defaults = _DEFAULTS[config.mode, config.protocol]
    given = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    steps = given["steps"] or defaults.get("steps")
    known = {**defaults, "warmup_steps": steps // 10} if steps else defaults
    for name in _unused(config):
        if given[name] is not None:
            raise ConfigError(f"classify.{name}={given[name]} does nothing with {where}; leave it out")
    if uses_solver(config) and config.select_by == "last":
        raise ConfigError(f"classify.select_by=last does nothing with {where}: there are no steps; leave it out")
    if uses_solver(config) and config.logits == "unit":
        raise ConfigError(
            f"classify.logits=unit does nothing with {where}: the solver fits a logistic regression; set "
            f"classify.protocol=paper"
        )
    filled = dataclasses.replace(config, **{name: value for name, value in known.items() if given[name] is None})
    if filled.steps is not None and filled.warmup_steps is not None and filled.warmup_steps >= filled.steps:
        raise ConfigError(
            f"classify.warmup_steps={filled.warmup_steps} leaves no step for the decay: classify.steps={filled.steps}; "
            f"lower the first or raise the second"
        )
    return filled


def _unused(config: ClassifyConfig) -> list[str]:
    """Returns the step settings that have no effect with this mode and protocol."""
    read = _DEFAULTS[config.mode, config.protocol]
    warms_up = "steps" in read
    return [name for name in _STEP_SETTINGS if name not in read and not (name == "warmup_steps" and warms_up)]


def optimizer_settings(config: ClassifyConfig) -> OptimConfig:
    """Returns optimiser and schedule settings of a classifier that is trained in steps.

    Args:
        config: As returned by `apply_protocol`.
    """
    assert config.lr is not None
    assert config.weight_decay is not None
    assert config.steps is not None
    assert config.warmup_steps is not None
    return OptimConfig(
        lr=config.lr, weight_decay=config.weight_decay, steps=config.steps, warmup_steps=config.warmup_steps
    )
