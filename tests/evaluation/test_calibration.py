"""Calibration of answers laid out by hand."""

import numpy as np
import pytest
from scipy.special import logit

from cleft.evaluation import Bootstrap
from cleft.evaluation.calibration import calibrate, calibration_error, fit_temperature, negative_log_likelihood
from cleft.evaluation.metrics import value_of
from cleft.evaluation.scoring import Predictions

FEW = Bootstrap(resamples=50)


def sure(probability, right, images):
    """Answers between two classes, all equally sure, of which some are right."""
    scores = np.tile([logit(probability), 0.0], (images, 1))
    truth = np.r_[np.zeros(right), np.ones(images - right)]
    return Predictions(scores, truth, [f"p{i}" for i in range(images)])


def test_answers_given_with_ninety_percent_of_which_sixty_are_right_are_off_by_thirty():
    found = calibrate(sure(0.9, 24, 40), "the data have no validation split", FEW)
    assert found.ece.value == pytest.approx(0.3)
    [point] = found.bins
    assert (point.predicted, point.observed) == (pytest.approx(0.9), pytest.approx(0.6))
    assert (point.images, point.patients) == (40, 40)
    assert found.ece.interval[0] < 0.3 < found.ece.interval[1]
    assert (found.temperature, found.ece_after, found.reason) == (None, None, "the data have no validation split")


def test_the_temperature_makes_the_confidence_the_share_of_right_answers():
    temperature = fit_temperature(sure(0.9, 24, 40))
    assert temperature == pytest.approx(logit(0.9) / logit(0.6), rel=1e-3)
    found = calibrate(sure(0.9, 24, 40), sure(0.9, 24, 40), bootstrap=FEW)
    assert found.ece_after.value == pytest.approx(0, abs=1e-3)
    assert found.validation_images == 40
    assert found.bins_after[0].predicted == pytest.approx(0.6, abs=1e-3)


def test_a_temperature_changes_no_answer_and_the_best_one_surprises_least():
    generator = np.random.default_rng(0)
    truth = generator.integers(4, size=200)
    scores = 3 * generator.normal(size=(200, 4))
    scores[np.arange(200), truth] += 2
    scored = Predictions(scores, truth.astype(float), [str(i) for i in range(200)])
    temperature = fit_temperature(scored)
    assert negative_log_likelihood(scored, temperature) < min(
        negative_log_likelihood(scored, each) for each in (0.9 * temperature, 1.1 * temperature)
    )
    reference = -np.log(np.exp(scores / 2)[np.arange(200), truth] / np.exp(scores / 2).sum(axis=1)).mean()
    assert negative_log_likelihood(scored, 2.0) == pytest.approx(reference)


def test_present_absent_counts_every_known_pair():
    nan = np.nan
    scored = Predictions(
        logit(np.array([[0.8, 0.5], [0.8, 0.5], [0.8, 0.5]])),
        np.array([[1.0, nan], [1.0, 0.0], [0.0, nan]]),
        ["a", "a", "b"],
    )
    found = calibrate(scored, "no temperature", bootstrap=FEW)
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


def test_bins_hold_equally_many_and_equal_probabilities_share_one():
    generator = np.random.default_rng(1)
    scores = np.c_[generator.normal(size=200), np.zeros(200)]
    scores[:50] = [0.3, 0.0]
    scored = Predictions(scores, generator.integers(2, size=200).astype(float), [str(i) for i in range(200)])
    found = calibrate(scored, "no temperature", bootstrap=FEW)
    turned = Predictions(scores[::-1], scored.truth[::-1], scored.patients[::-1])
    for point, other in zip(found.bins, calibrate(turned, "no temperature", bootstrap=FEW).bins, strict=True):
        assert (point.images, point.predicted) == (other.images, pytest.approx(other.predicted))
    assert len(found.bins) <= 10
    assert sum(point.images for point in found.bins) == 200
    assert [point.predicted for point in found.bins] == sorted(point.predicted for point in found.bins)


def test_the_error_equals_the_long_way_for_any_counts():
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
    ("scored", "reason"),
    [
        (sure(0.9, 5, 19), "no temperature: 19 validation images, needs 20"),
        (sure(0.9, 20, 20), "every validation image is classified correctly"),
        (sure(0.9, 10, 20), "no better than by chance"),
    ],
)
def test_where_no_temperature_fits_it_says_why(scored, reason):
    assert reason in fit_temperature(scored)
