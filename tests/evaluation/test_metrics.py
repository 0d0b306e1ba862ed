"""Metrics against values computed by hand, and against scikit-learn on random cases of hypothesis."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, confusion_matrix, roc_auc_score, roc_curve

from cleft.errors import NumericsError
from cleft.evaluation.metrics import (
    Interval,
    accuracy,
    auc,
    cache_last,
    confusion,
    intervals,
    mean_of,
    paired_intervals,
    ranking_statistics,
    roc_points,
    value_of,
)


def average_precision(scores, positive):
    return ranking_statistics(scores, positive)["auprc"]


def sensitivity_at(scores, positive, specificity):
    return ranking_statistics(scores, positive)[f"sensitivity@{specificity:.2f}"]


SCORES = st.one_of(st.integers(-3, 3).map(float), st.floats(-1e6, 1e6))
IMAGES = st.lists(st.tuples(SCORES, st.booleans()), min_size=1, max_size=60)
push = settings(max_examples=50, derandomize=True, deadline=None)


def auc_value(scores, positive):
    return value_of(auc(scores, positive), len(scores))


def test_auc_counts_ties_as_half():
    # Positives 3 and 1 against negatives 2 and 1: won, won, lost, tied.
    assert auc_value([3, 1, 2, 1], [True, True, False, False]) == pytest.approx(2.5 / 4)


def test_auc_of_equal_scores_is_a_half():
    assert auc_value([7, 7, 7], [True, False, False]) == 0.5


@pytest.mark.parametrize("positive", [[True, True], [False, False]])
def test_h1_auc_of_one_class_is_none(positive):
    assert auc_value([0.1, 0.9], positive) is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_h2_a_score_that_is_not_finite_is_refused(bad):
    with pytest.raises(NumericsError, match="1 of 2 scores is not finite"):
        auc([0.5, bad], [True, False])


def test_accuracy_of_three_correct_in_four():
    assert value_of(accuracy([1, 1, 1, 0]), 4) == 0.75


def test_value_without_images_is_none():
    assert value_of(accuracy([]), 0) is None


def test_a_mean_with_an_undefined_part_is_undefined():
    assert value_of(mean_of([auc([1, 2], [True, False]), auc([1, 2], [True, True])]), 2) is None


@push
@given(IMAGES)
def test_q12_auc_equals_the_reference_and_is_none_where_that_is_undefined(images):
    scores, positive = zip(*images, strict=True)
    if len(set(positive)) < 2:
        assert auc_value(scores, positive) is None
    else:
        assert auc_value(scores, positive) == pytest.approx(roc_auc_score(positive, scores))


@push
@given(IMAGES, st.randoms(use_true_random=False))
def test_q12_order_of_images_changes_nothing(images, random):
    shuffled = random.sample(images, len(images))
    assert auc_value(*zip(*images, strict=True)) == pytest.approx(auc_value(*zip(*shuffled, strict=True)), nan_ok=True)


@push
@given(st.lists(st.tuples(st.integers(-20, 20), st.booleans()), min_size=1, max_size=60))
def test_q12_a_monotonic_map_of_the_scores_changes_nothing(images):
    scores, positive = zip(*images, strict=True)
    assert auc_value(np.exp(np.array(scores) / 2.0), positive) == auc_value(scores, positive)


@push
@given(IMAGES)
def test_q12_curve_and_area_agree(images):
    scores, positive = zip(*images, strict=True)
    points = roc_points(scores, positive, most=10_000)
    area = auc_value(scores, positive)
    if area is None:
        assert points == []
    else:
        x, y = np.array(points).T
        assert np.trapezoid(y, x) == pytest.approx(area)
        assert (np.diff(x) >= 0).all()
        assert (np.diff(y) >= 0).all()


def test_a_thinned_curve_keeps_both_ends():
    generator = np.random.default_rng(0)
    points = roc_points(generator.random(5_000), generator.random(5_000) < 0.3, most=50)
    assert len(points) == 50
    assert points[0] == (0.0, 0.0)
    assert points[-1] == (1.0, 1.0)


def test_curve_of_a_perfect_ranking_has_one_vertex():
    assert roc_points([4, 3, 2, 1], [True, True, False, False]) == [(0, 0), (0, 1), (1, 1)]


@push
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=50))
def test_q12_confusion_equals_the_reference(pairs):
    truth, predicted = zip(*pairs, strict=True)
    assert np.array_equal(confusion(truth, predicted, 4), confusion_matrix(truth, predicted, labels=range(4)))


def test_rows_of_the_confusion_matrix_are_true_classes():
    assert confusion([0, 0, 1], [1, 1, 1], 2) == ((0, 2), (0, 1))


def test_interval_resamples_patients_not_images():
    # One patient with 100 hits among 20 patients with one miss each: drawn or not, never half.
    patients = ["a"] * 100 + [f"b{i}" for i in range(20)]
    hits = [1] * 100 + [0] * 20
    (low, high), reason = intervals([accuracy(hits)], patients, seed=1)[0]
    assert low == 0.0
    assert high > 0.9
    assert reason is None


def test_every_patient_is_drawn_equally_often():
    # The number of draws of one patient among 50 in a resample is Binomial(50, 1/50): mean 1, variance 0.98.
    patients, resamples = [f"p{i:02}" for i in range(50)], 4_000
    drawn = []

    def record(counts):
        drawn.append(counts)
        return counts[:, 0]

    intervals([record], patients, resamples=resamples)
    counts = np.concatenate(drawn)
    assert counts.shape == (resamples, 50)
    assert (counts.sum(axis=1) == 50).all()
    assert np.abs(counts.mean(axis=0) - 1).max() < 5 * np.sqrt(0.98 / resamples)
    assert counts.var(axis=0) == pytest.approx(0.98, rel=0.2)


def test_statistics_of_the_same_resamples_share_one_computation():
    computed = []
    shared = cache_last(lambda counts: computed.append(counts) or counts.sum())
    one, other = np.ones(3), np.ones(3)
    assert [shared(one), shared(one), shared(other), shared(one)] == [3, 3, 3, 3]
    assert [each is one for each in computed] == [True, False, True]


def test_a_zero_difference_has_p_value_one():
    [found] = paired_intervals([lambda counts: np.zeros(len(counts))], [str(i) for i in range(30)], resamples=50)
    assert found == (Interval((0.0, 0.0), None), 1.0)


def test_interval_of_only_correct_predictions_has_no_width():
    assert intervals([accuracy([1] * 20)], [str(i) for i in range(20)])[0].bounds == (1.0, 1.0)


def test_h9_fewer_than_twenty_patients_have_no_interval():
    bounds, reason = intervals([accuracy([1] * 40)], [str(i % 19) for i in range(40)])[0]
    assert bounds is None
    assert reason == "no interval: 19 patients, needs 20"


def test_h9_resamples_without_a_class_are_counted():
    positive = [True] + [False] * 29  # the one positive is missing from about 36 % of the resamples
    bounds, reason = intervals([auc(range(30), positive)], [str(i) for i in range(30)], resamples=200)[0]
    assert bounds is None
    assert 50 < int(reason.split()[2]) < 100
    assert reason.endswith("of 200 resamples lack a class")


def test_few_resamples_without_a_class_are_left_out_and_counted():
    positive = [True] * 5 + [False] * 95  # all five missing in about 0.6 % of the resamples
    bounds, reason = intervals([auc(range(100), positive)], [str(i) for i in range(100)], resamples=1_000)[0]
    assert bounds is not None
    assert reason is not None
    assert reason.endswith("were left out")


def test_equal_seeds_give_equal_intervals_and_other_seeds_others():
    generator = np.random.default_rng(3)
    statistic, patients = accuracy(generator.random(200) < 0.6), [str(i // 2) for i in range(200)]
    first, again, other = (intervals([statistic], patients, seed=seed)[0] for seed in (5, 5, 6))
    assert first == again != other


def test_interval_width_is_that_of_the_binomial():
    generator = np.random.default_rng(0)
    hits = generator.random(400) < 0.5
    (low, high), _ = intervals([accuracy(hits)], [str(i) for i in range(400)], resamples=2_000)[0]
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / 20, rel=0.1)


def test_blocks_of_resamples_do_not_change_the_interval(monkeypatch):
    generator = np.random.default_rng(0)
    statistic, patients = accuracy(generator.random(50) < 0.5), [str(i) for i in range(50)]
    at_once = intervals([statistic], patients, resamples=100)
    monkeypatch.setattr("cleft.evaluation.metrics._CELLS", 50 * 7)
    assert intervals([statistic], patients, resamples=100) == at_once


@pytest.mark.benchmark
def test_intervals_of_a_thousand_images_and_five_classes_take_seconds():
    generator = np.random.default_rng(0)
    scores, truth = generator.random((1_000, 5)), generator.integers(5, size=1_000)
    statistics = [auc(scores[:, c], truth == c) for c in range(5)]
    start = time.perf_counter()
    intervals([*statistics, mean_of(statistics)], [str(i) for i in range(1_000)])
    assert time.perf_counter() - start < 10


def test_average_precision_is_the_mean_precision_at_the_positives():
    # From above: positive (1 of 1), negative, positive (2 of 3).
    assert value_of(average_precision([3, 2, 1], [True, False, True]), 3) == pytest.approx((1 + 2 / 3) / 2)


def test_average_precision_of_equal_scores_is_the_share_of_positives():
    assert value_of(average_precision([7, 7, 7, 7], [True, False, False, False]), 4) == 0.25


def test_average_precision_without_a_positive_is_none():
    assert value_of(average_precision([1, 2], [False, False]), 2) is None


def test_sensitivity_uses_a_threshold_among_the_scores():
    # Of ten negatives one may be above the threshold: two of three positives are above the second highest one.
    negatives, positives = list(range(10)), [9.5, 8.5, 0.5]
    scores, shown = [*negatives, *positives], [False] * 10 + [True] * 3
    assert value_of(sensitivity_at(scores, shown, 0.9), 13) == pytest.approx(2 / 3)
    assert value_of(sensitivity_at(scores, shown, 0.95), 13) == pytest.approx(1 / 3)


def test_sensitivity_of_equal_scores_is_zero():
    assert value_of(sensitivity_at([7, 7, 7], [True, False, False], 0.9), 3) == 0


@pytest.mark.parametrize("positive", [[True, True], [False, False]])
def test_sensitivity_of_one_class_is_none(positive):
    assert value_of(sensitivity_at([0.1, 0.9], positive, 0.9), 2) is None


@push
@given(IMAGES)
def test_average_precision_and_sensitivity_equal_the_reference(images):
    scores, positive = zip(*images, strict=True)
    if any(positive):
        expected = average_precision_score(positive, scores)
        assert value_of(average_precision(scores, positive), len(images)) == pytest.approx(expected)
    if any(positive) and not all(positive):
        false, true, _ = roc_curve(positive, scores, drop_intermediate=False)
        for specificity in (0.9, 0.95):
            expected = true[false <= 1 - specificity + 1e-9].max()
            assert value_of(sensitivity_at(scores, positive, specificity), len(images)) == pytest.approx(expected)


@push
@given(st.lists(st.tuples(SCORES, st.booleans(), st.integers(0, 3)), min_size=1, max_size=30))
def test_an_image_counted_twice_is_two_images(images):
    scores, positive, times = (np.array(column) for column in zip(*images, strict=True))
    repeated = np.repeat(np.arange(len(images)), times)
    if not len(repeated):
        return
    counted = ranking_statistics(scores, positive)
    written = ranking_statistics(scores[repeated], positive[repeated])
    for metric, statistic in counted.items():
        expected = value_of(written[metric], len(repeated))
        found = float(statistic(times[None].astype(float))[0])
        assert found == pytest.approx(np.nan if expected is None else expected, nan_ok=True)


def test_ranking_statistics_do_not_depend_on_being_computed_together():
    generator = np.random.default_rng(2)
    scores, positive = generator.random(40), generator.random(40) < 0.4
    together = ranking_statistics(scores, positive)
    apart = [ranking_statistics(scores, positive)[name] for name in together]
    patients = [str(i) for i in range(40)]
    assert intervals(list(together.values()), patients, resamples=60) == intervals(apart, patients, resamples=60)
