"""Calibration: expected calibration error, reliability curve and temperature scaling.

In multi-class evaluation the probability is the softmax of the predicted class; in present-absent evaluation it is the
probability of each finding. The temperature is one number, fitted on validation images, that divides the logits: it
changes no prediction and no ranking, only probabilities.

Shapes: `N` images, `C` classes or findings, `M` probabilities, `K` bins.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, logsumexp, softmax

from cleft.evaluation import Bootstrap
from cleft.evaluation.metrics import Floats, Statistic
from cleft.evaluation.scoring import Measure, Predictions, estimate
from cleft.grammar import count
from cleft.results import Calibration, ReliabilityBin, Result

BINS = 10
"""Bins of a reliability curve; fewer if a bin would hold fewer than ten probabilities."""
MIN_VALIDATION_IMAGES = 20
"""With fewer validation images no temperature is fitted."""
TEMPERATURE_BOUNDS = (0.01, 100.0)


class _Probabilities(NamedTuple):
    """Predicted probabilities and outcomes."""

    predicted: Floats
    """`[M]`."""
    outcome: Floats
    """1 or 0, `[M]`."""
    image: NDArray[np.intp]
    """Image of each probability, `[M]`."""
    bin: NDArray[np.intp]
    """Bin of each probability, `[M]`."""


def calibrate(
    predictions: Predictions, validation: Predictions | str, bootstrap: Bootstrap = Bootstrap()
) -> Calibration:
    """Measures calibration before and after temperature scaling.

    Args:
        predictions: Predictions on the test images.
        validation: Predictions on validation images of the same data, or the reason why there are none.
        bootstrap: How intervals are estimated.

    Source:
        Guo et al. 2017, "On Calibration of Modern Neural Networks", equations 3 and 9; but the bins hold equally many
        predictions instead of having equal width (docs/decisions/0105).
    """
    before = _probabilities(predictions, 1.0)
    temperature = validation if isinstance(validation, str) else fit_temperature(validation)
    if isinstance(temperature, str):
        return Calibration(
            bins=_curve(before, predictions), ece=_ece("ece", before, predictions, bootstrap), reason=temperature
        )
    after = _probabilities(predictions, temperature)
    return Calibration(
        bins=_curve(before, predictions),
        ece=_ece("ece", before, predictions, bootstrap),
        temperature=temperature,
        validation_images=0 if isinstance(validation, str) else len(validation.truth),
        bins_after=_curve(after, predictions),
        ece_after=_ece("ece-after-temperature", after, predictions, bootstrap),
    )


def fit_temperature(predictions: Predictions) -> float | str:
    """Returns the temperature that minimises the negative log-likelihood, or why there is none.

    Args:
        predictions: Predictions on validation images.
    """
    images = len(predictions.truth)
    if images < MIN_VALIDATION_IMAGES:
        return f"no temperature: {count(images, 'validation image')}, needs {MIN_VALIDATION_IMAGES}"
    if _all_correct(predictions):  # the likelihood rises without limit as the temperature falls
        return "no temperature: every validation image is classified correctly, so that none minimises the loss"
    lowest, highest = np.log(TEMPERATURE_BOUNDS)
    found = minimize_scalar(
        lambda log: negative_log_likelihood(predictions, float(np.exp(log))), bounds=(lowest, highest), method="bounded"
    )
    if highest - float(found.x) < 0.01:
        return "no temperature: validation images are classified no better than by chance"
    return float(np.exp(float(found.x)))


def negative_log_likelihood(predictions: Predictions, temperature: float) -> float:
    """Mean negative log-likelihood in nats, with logits divided by a temperature."""
    scores = predictions.scores / temperature
    if predictions.multi_class:
        truth = predictions.truth.astype(np.intp)
        return float((np.asarray(logsumexp(scores, axis=1)) - scores[np.arange(len(truth)), truth]).mean())
    known = ~np.isnan(predictions.truth)
    return float(np.logaddexp(0, np.where(predictions.truth[known] == 1, -scores[known], scores[known])).mean())


def _all_correct(predictions: Predictions) -> bool:
    if predictions.multi_class:
        return bool((predictions.scores.argmax(axis=1) == predictions.truth).all())
    known = ~np.isnan(predictions.truth)
    return bool(((predictions.scores[known] > 0) == (predictions.truth[known] == 1)).all())


def calibration_error(predicted: Floats, outcome: Floats, image: NDArray[np.intp], bins: NDArray[np.intp]) -> Statistic:
    """Expected calibration error: mean |predicted - observed| over bins, weighted by their number of probabilities.

    Args:
        predicted: Probabilities, `[M]`.
        outcome: 1 or 0, `[M]`.
        image: Image of each probability, `[M]`.
        bins: Bin of each probability, `[M]`.
    """
    images, number = int(image.max(initial=-1)) + 1, int(bins.max(initial=-1)) + 1
    surplus, sizes = np.zeros((images, number)), np.zeros((images, number))
    np.add.at(surplus, (image, bins), predicted - outcome)
    np.add.at(sizes, (image, bins), 1.0)

    def statistic(counts: Floats) -> Floats:
        weights = counts[:, :images]
        total = (weights @ sizes).sum(axis=1)
        error = np.abs(weights @ surplus).sum(axis=1)
        return np.divide(error, total, out=np.full(error.shape, np.nan), where=total > 0)

    return statistic


def _probabilities(predictions: Predictions, temperature: float) -> _Probabilities:
    scores = predictions.scores / temperature
    if predictions.multi_class:
        predicted = softmax(scores, axis=1).max(axis=1)
        outcome, image = (scores.argmax(axis=1) == predictions.truth).astype(np.float64), np.arange(len(predicted))
    else:
        image, column = np.nonzero(~np.isnan(predictions.truth))
        predicted, outcome = expit(scores[image, column]), predictions.truth[image, column]
    return _Probabilities(predicted, outcome, image, _quantile_bins(predicted))


def _quantile_bins(predicted: Floats) -> NDArray[np.intp]:
    """Bins of equal size; equal probabilities share one, so that the order of images has no effect."""
    number = min(BINS, max(1, len(predicted) // BINS))
    edges = np.quantile(predicted, np.arange(1, number) / number) if len(predicted) else np.zeros(0)
    places = np.searchsorted(edges, predicted, side="right")
    return np.unique(places, return_inverse=True)[1]


def _curve(probabilities: _Probabilities, predictions: Predictions) -> tuple[ReliabilityBin, ...]:
    points: list[ReliabilityBin] = []
    for number in range(int(probabilities.bin.max(initial=-1)) + 1):
        inside = probabilities.bin == number
        points.append(
            ReliabilityBin(
                predicted=float(probabilities.predicted[inside].mean()),
                observed=float(probabilities.outcome[inside].mean()),
                images=int(inside.sum()),
                patients=len({predictions.patients[image] for image in probabilities.image[inside]}),
            )
        )
    return tuple(points)


def _ece(metric: str, probabilities: _Probabilities, predictions: Predictions, bootstrap: Bootstrap) -> Result:
    rows = np.zeros(len(predictions.truth), dtype=bool)
    rows[probabilities.image] = True
    place = np.cumsum(rows) - 1  # row among the scored images
    statistic = calibration_error(
        probabilities.predicted, probabilities.outcome, place[probabilities.image], probabilities.bin
    )
    return estimate([Measure(metric, statistic, rows)], predictions.patients, bootstrap)[0]
