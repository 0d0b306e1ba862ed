"""Whether probabilities mean what they say: of the answers given with 80 %, are 80 % right?

What is a probability here is the softmax over the classes of a multi-class question, whose highest one is the
confidence of the answer; of a present-absent question it is each finding's own. A single number, the temperature, is
fitted on validation images and divides the logits: it changes no answer and no ranking, only how sure they sound.

Shapes: `N` images, `C` classes or findings, `M` probabilities that can come true, `K` bins.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, logsumexp, softmax

from cleft.evaluation.metrics import Floats, Statistic
from cleft.evaluation.scoring import USUAL_DRAWS, Bootstrap, Measure, Predictions, estimate
from cleft.grammar import count
from cleft.results import Calibration, ReliabilityBin, Result

BINS = 10
"""Points of a reliability curve; fewer where a bin would hold fewer than ten probabilities."""
MIN_VALIDATION_IMAGES = 20
"""Validation images below which no temperature is fitted."""
TEMPERATURE_BOUNDS = (0.01, 100.0)
"""Between which temperatures one is looked for."""


class _Claims(NamedTuple):
    """Probabilities, and whether what they speak of is so."""

    predicted: Floats
    """`[M]`."""
    true: Floats
    """1 or 0, `[M]`."""
    image: NDArray[np.intp]
    """Which image each is about, `[M]`."""
    bin: NDArray[np.intp]
    """Which bin each falls in, `[M]`."""


def calibrate(
    scored: Predictions, validation: Predictions | None, *, reason: str | None = None, draws: Bootstrap = USUAL_DRAWS
) -> Calibration:
    """Measures how far probabilities lie from what comes true, before and after a temperature.

    Args:
        scored: Answers to the test images.
        validation: Answers to the validation images of the same data, or None.
        reason: Why there are none.
        draws: How intervals are drawn.

    Source:
        Guo et al. 2017, "On Calibration of Modern Neural Networks", equations 3 and 9; but the bins hold equally many
        answers in place of being equally wide (docs/decisions/0105).
    """
    before = _claims(scored, 1.0)
    temperature, doubt = (None, reason) if validation is None else fit_temperature(validation)
    after = None if temperature is None else _claims(scored, temperature)
    return Calibration(
        bins=_curve(before, scored),
        ece=_measure("ece", before, scored, draws),
        temperature=temperature,
        fitted_on=len(validation.truth) if validation is not None and temperature is not None else 0,
        bins_after=() if after is None else _curve(after, scored),
        ece_after=None if after is None else _measure("ece-after-temperature", after, scored, draws),
        reason=doubt,
    )


def fit_temperature(scored: Predictions) -> tuple[float | None, str | None]:
    """Finds what logits must be divided by so that the truth is least surprising.

    Args:
        scored: Answers to validation images.

    Returns:
        The temperature; or None, and why there is none.
    """
    if len(scored.truth) < MIN_VALIDATION_IMAGES:
        return None, f"no temperature: {count(len(scored.truth), 'validation image')}, needs {MIN_VALIDATION_IMAGES}"
    if _all_right(scored):  # the smaller the better, without an end
        return None, "no temperature: every validation image is answered rightly, so that no certainty is too great"
    lowest, highest = np.log(TEMPERATURE_BOUNDS)
    found = minimize_scalar(
        lambda log: negative_log_likelihood(scored, float(np.exp(log))), bounds=(lowest, highest), method="bounded"
    )
    place = float(found.x)
    if highest - place < 0.01:
        return None, "no temperature: validation images are answered no better than by guessing"
    return float(np.exp(place)), None


def negative_log_likelihood(scored: Predictions, temperature: float) -> float:
    """Mean negative log-likelihood of the truth, in nats, when logits are divided by a temperature."""
    scores = scored.scores / temperature
    if scored.multi_class:
        truth = scored.truth.astype(np.intp)
        return float((np.asarray(logsumexp(scores, axis=1)) - scores[np.arange(len(truth)), truth]).mean())
    known = ~np.isnan(scored.truth)
    return float(np.logaddexp(0, np.where(scored.truth[known] == 1, -scores[known], scores[known])).mean())


def _all_right(scored: Predictions) -> bool:
    if scored.multi_class:
        return bool((scored.scores.argmax(axis=1) == scored.truth).all())
    known = ~np.isnan(scored.truth)
    return bool(((scored.scores[known] > 0) == (scored.truth[known] == 1)).all())


def calibration_error(predicted: Floats, true: Floats, image: NDArray[np.intp], bins: NDArray[np.intp]) -> Statistic:
    """Mean distance of what was predicted from what came true, bin by bin, weighed by the claims of each bin.

    Args:
        predicted: Probabilities, `[M]`.
        true: Whether what they speak of is so, 1 or 0, `[M]`.
        image: Which image each is about, `[M]`.
        bins: Which bin each falls in, `[M]`.
    """
    images, kinds = int(image.max(initial=-1)) + 1, int(bins.max(initial=-1)) + 1
    surplus, claims = np.zeros((images, kinds)), np.zeros((images, kinds))
    np.add.at(surplus, (image, bins), predicted - true)
    np.add.at(claims, (image, bins), 1.0)

    def statistic(counts: Floats) -> Floats:
        asked = counts[:, :images]
        whole = (asked @ claims).sum(axis=1)
        apart = np.abs(asked @ surplus).sum(axis=1)
        return np.divide(apart, whole, out=np.full(apart.shape, np.nan), where=whole > 0)

    return statistic


def _claims(scored: Predictions, temperature: float) -> _Claims:
    scores = scored.scores / temperature
    if scored.multi_class:
        predicted = softmax(scores, axis=1).max(axis=1)
        true, image = (scores.argmax(axis=1) == scored.truth).astype(np.float64), np.arange(len(predicted))
    else:
        image, column = np.nonzero(~np.isnan(scored.truth))
        predicted, true = expit(scores[image, column]), scored.truth[image, column]
    return _Claims(predicted, true, image, _bins(predicted))


def _bins(predicted: Floats) -> NDArray[np.intp]:
    """Bins of equally many; equal probabilities share one, so that the order of images decides nothing."""
    count = min(BINS, max(1, len(predicted) // BINS))
    edges = np.quantile(predicted, np.arange(1, count) / count) if len(predicted) else np.zeros(0)
    places = np.searchsorted(edges, predicted, side="right")
    return np.unique(places, return_inverse=True)[1]


def _curve(claims: _Claims, scored: Predictions) -> tuple[ReliabilityBin, ...]:
    points: list[ReliabilityBin] = []
    for number in range(int(claims.bin.max(initial=-1)) + 1):
        inside = claims.bin == number
        points.append(
            ReliabilityBin(
                predicted=float(claims.predicted[inside].mean()),
                observed=float(claims.true[inside].mean()),
                images=int(inside.sum()),
                patients=len({scored.patients[image] for image in claims.image[inside]}),
            )
        )
    return tuple(points)


def _measure(metric: str, claims: _Claims, scored: Predictions, draws: Bootstrap) -> Result:
    rows = np.zeros(len(scored.truth), dtype=bool)
    rows[claims.image] = True
    place = np.cumsum(rows) - 1  # among the images that are asked about
    statistic = calibration_error(claims.predicted, claims.true, place[claims.image], claims.bin)
    return estimate([Measure(metric, statistic, rows)], scored.patients, draws)[0]
