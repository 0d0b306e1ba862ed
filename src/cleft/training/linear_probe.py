"""A linear probe solved exactly: logistic regression on features on disk, its regularisation chosen by validation.

Nothing in it is drawn: the same features give the same head.

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
"""Weights of the penalty that are tried, 1e-5 to 10 in half decades: half the squared norm of the weights times this is
added to the mean cross-entropy of an image, so that it means the same for few images and for many."""
_STEPS, _TOLERANCE = 10_000, 1e-7


class Probe(NamedTuple):
    """A linear head, and how it came about."""

    weight: Tensor
    """`[C, D]` float32, for features as they are: the scaling is multiplied in."""
    bias: Tensor
    """`[C]` float32."""
    penalty: float
    """The penalty that was chosen."""
    score: float
    """Its cross-entropy or AUC on validation."""
    scores: dict[float, float]
    """What each strength reached on validation; the higher strength wins a tie."""


def fit_probe(
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
    for strength in sorted(PENALTIES, reverse=True):  # from stiff to loose, each begun where the one before ended
        heads[strength] = _fit_all(models, scaled, targets.numpy(), strength, classes)
        logits = torch.from_numpy(val_scaled @ heads[strength][0].T + heads[strength][1])
        tried[strength] = _measure(logits, val_targets, choose)
    best = (max if choose == "auc" else min)(tried, key=lambda strength: tried[strength])
    weight, bias = heads[best]
    weight = weight / scale
    return Probe(
        weight=torch.from_numpy(weight).float(),
        bias=torch.from_numpy(bias - weight @ shift).float(),
        penalty=best,
        score=tried[best],
        scores=tried,
    )


def _model() -> LogisticRegression:
    return LogisticRegression(tol=_TOLERANCE, max_iter=_STEPS, warm_start=True)


def _fit_all(
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
"""Mode and protocol to what a setting becomes that was left null; what is not named here does nothing there."""
_STEP_SETTINGS = ("batch_size", "steps", "warmup_steps", "lr", "weight_decay", "layer_decay", "augment")


def uses_solver(config: ClassifyConfig) -> bool:
    """Whether the head is solved for, and not trained in steps."""
    return config.mode == "linear-probe" and config.protocol == "standard"


def uses_fixed_features(config: ClassifyConfig) -> bool:
    """Whether a tower that stands still sees the same pixels at every step, so that it need read each image once.

    Give it what `follow_protocol` returned.
    """
    return config.mode == "linear-probe" and not config.augment


def drop_unused(config: ClassifyConfig, typed: Collection[str] = ()) -> ClassifyConfig:
    """Returns settings without those of a preset that do nothing with this mode and protocol, such as steps of a solve.

    Args:
        config: As read from a preset or a run.
        typed: Names of settings that somebody typed: these stay, so that `follow_protocol` refuses them.
    """
    return dataclasses.replace(config, **{name: None for name in _unused(config) if name not in typed})


def apply_protocol(config: ClassifyConfig) -> ClassifyConfig:
    """Fills in what mode and protocol say wherever a setting was left null.

    Raises:
        ConfigError: If a setting was given that does nothing there, or contradicts another.
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
            f"classify.logits=unit does nothing with {where}: a solved probe is a logistic regression; take "
            f"classify.protocol=paper"
        )
    filled = dataclasses.replace(config, **{name: value for name, value in known.items() if given[name] is None})
    if filled.steps is not None and filled.warmup_steps is not None and filled.warmup_steps >= filled.steps:
        raise ConfigError(
            f"classify.warmup_steps={filled.warmup_steps} leaves no step to decay in: classify.steps={filled.steps}; "
            f"lower the first or raise the second"
        )
    return filled


def _unused(config: ClassifyConfig) -> list[str]:
    """Settings of steps that do nothing with this mode and protocol."""
    read = _DEFAULTS[config.mode, config.protocol]
    warms_up = "steps" in read
    return [name for name in _STEP_SETTINGS if name not in read and not (name == "warmup_steps" and warms_up)]


def optimizer_settings(config: ClassifyConfig) -> OptimConfig:
    """Returns optimiser and schedule of a head that is trained in steps; give it what `follow_protocol` returned."""
    assert config.lr is not None
    assert config.weight_decay is not None
    assert config.steps is not None
    assert config.warmup_steps is not None
    return OptimConfig(
        lr=config.lr, weight_decay=config.weight_decay, steps=config.steps, warmup_steps=config.warmup_steps
    )
