"""Calibration of predictions made by hand."""

import numpy as np
import pytest
from scipy.special import logit

from cleft.evaluation import Bootstrap
from cleft.evaluation.calibration import calibrate, calibration_error, fit_temperature, negative_log_likelihood
from cleft.evaluation.metrics import value_of
from cleft.evaluation.scoring import Predictions

FEW = Bootstrap(resamples=50)


def predictions(probability, correct, images):
    """Predictions of two classes with equal probability, some of them correct."""
    scores = np.tile([logit(probability), 0.0], (images, 1))
    truth = np.r_[np.zeros(correct), np.ones(images - correct)]
    return Predictions(scores, truth, [f"p{i}" for i in range(images)])


def test_ece_is_the_gap_between_confidence_and_accuracy():
    found = calibrate(predictions(0.9, 24, 40), "the data have no validation split", FEW)
    assert found.ece.value == pytest.approx(0.3)
    [point] = found.bins
    assert (point.predicted, point.observed) == (pytest.approx(0.9), pytest.approx(0.6))
    assert (point.images, point.patients) == (40, 40)
    assert found.ece.interval[0] < 0.3 < found.ece.interval[1]
    assert (found.temperature, found.ece_after, found.reason) == (None, None, "the data have no validation split")


def test_temperature_makes_the_confidence_equal_to_the_accuracy():
    temperature = fit_temperature(predictions(0.9, 24, 40))
    assert temperature == pytest.approx(logit(0.9) / logit(0.6), rel=1e-3)
    found = calibrate(predictions(0.9, 24, 40), predictions(0.9, 24, 40), bootstrap=FEW)
    assert found.ece_after.value == pytest.approx(0, abs=1e-3)
    assert found.validation_images == 40
    assert found.bins_after[0].predicted == pytest.approx(0.6, abs=1e-3)


def test_temperature_minimises_the_negative_log_likelihood():
    generator = np.random.default_rng(0)
    truth = generator.integers(4, size=200)
    scores = 3 * generator.normal(size=(200, 4))
    scores[np.arange(200), truth] += 2
    given = Predictions(scores, truth.astype(float), [str(i) for i in range(200)])
    temperature = fit_temperature(given)
    assert negative_log_likelihood(given, temperature) < min(
        negative_log_likelihood(given, each) for each in (0.9 * temperature, 1.1 * temperature)
    )
    reference = -np.log(np.exp(scores / 2)[np.arange(200), truth] / np.exp(scores / 2).sum(axis=1)).mean()
    assert negative_log_likelihood(given, 2.0) == pytest.approx(reference)


def test_present_absent_counts_every_labelled_pair():
    nan = np.nan
    given = Predictions(
        logit(np.array([[0.8, 0.5], [0.8, 0.5], [0.8, 0.5]])),
        np.array([[1.0, nan], [1.0, 0.0], [0.0, nan]]),
        ["a", "a", "b"],
    )
    found = calibrate(given, "no temperature", bootstrap=FEW)
    assert sum(point.images for point in found.bins) == 4
    # One bin, for there are few: predicted (3 x 0.8 + 0.5) / 4, and half of it came true.
    assert found.ece.value == pytest.approx((3 * 0.8 + 0.5) / 4 - 0.5)
    assert (found.ece.images, found.ece.patients) == (3, 2)


def test_present_absent_fits_one_temperature_over_all_pairs():
    scores = np.full((50, 2), logit(0.9))
    labels = np.zeros((50, 2))
    labels[:30, 0] = labels[:40, 1] = 1
    labels[40:, 1] = np.nan  # 30 of 50, and 40 of 40: together 70 of 90
    temperature = fit_temperature(Predictions(scores, labels, ["p"] * 50))
    assert temperature == pytest.approx(logit(0.9) / logit(70 / 90), rel=1e-3)


def test_bins_have_equal_size_and_equal_probabilities_share_one():
    generator = np.random.default_rng(1)
    scores = np.c_[generator.normal(size=200), np.zeros(200)]
    scores[:50] = [0.3, 0.0]
    given = Predictions(scores, generator.integers(2, size=200).astype(float), [str(i) for i in range(200)])
    found = calibrate(given, "no temperature", bootstrap=FEW)
    flipped = Predictions(scores[::-1], given.truth[::-1], given.patients[::-1])
    for point, other in zip(found.bins, calibrate(flipped, "no temperature", bootstrap=FEW).bins, strict=True):
        assert (point.images, point.predicted) == (other.images, pytest.approx(other.predicted))
    assert len(found.bins) <= 10
    assert sum(point.images for point in found.bins) == 200
    assert [point.predicted for point in found.bins] == sorted(point.predicted for point in found.bins)


def test_calibration_error_equals_a_loop_over_bins_for_any_counts():
    generator = np.random.default_rng(2)
    predicted, true = generator.random(60), generator.integers(2, size=60).astype(float)
    image, bins = generator.integers(20, size=60), generator.integers(5, size=60)
    image[0] = 19
    counts = generator.integers(3, size=20).astype(float)
    statistic = calibration_error(predicted, true, image, bins)
    weights = counts[image]
    expected = sum(abs((weights * (predicted - true))[bins == each].sum()) / weights.sum() for each in range(5))
    assert statistic(counts[None])[0] == pytest.approx(expected)
    assert value_of(statistic, 20) is not None


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (predictions(0.9, 5, 19), "no temperature: 19 validation images, needs 20"),
        (predictions(0.9, 20, 20), "every validation image is classified correctly"),
        (predictions(0.9, 10, 20), "no better than by chance"),
    ],
)
def test_reason_without_a_temperature(given, reason):
    assert reason in fit_temperature(given)
