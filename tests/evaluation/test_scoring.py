"""Results of scores and labels, and of subgroups, by hand."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cleft.errors import NumericsError
from cleft.evaluation import Bootstrap
from cleft.evaluation.predictions import class_baselines
from cleft.evaluation.scoring import (
    Predictions,
    classification_measures,
    estimate,
    score_classes,
    score_findings,
    subgroup_results,
)
from cleft.types import Record

CLASSES = ("Atelectasis", "Edema", "Pneumonia")
SCORES = np.array([[3.0, 1, 0], [2, 1, 0], [0, 1, 0], [4, 3, 0]])
TRUTH = np.array([0, 0, 1, 1])
PATIENTS = ["a", "b", "c", "d"]


def by_metric(results):
    return {result.metric: result for result in results}


def test_h1_a_class_that_does_not_occur_is_none_and_named():
    results = by_metric(score_classes(SCORES, TRUTH, CLASSES, PATIENTS))
    assert results["auc/Pneumonia"].value is None
    assert results["auc/Pneumonia"].reason == "no image shows Pneumonia"


def test_mean_names_the_number_of_classes():
    mean = by_metric(score_classes(SCORES, TRUTH, CLASSES, PATIENTS))["auc"]
    assert mean.value == pytest.approx((0.5 + 0.75) / 2)  # Edema: 1 beats neither, ties both; 3 beats both
    assert mean.reason.startswith("mean over 2 of 3 classes: no image shows Pneumonia")


def test_accuracy_counts_the_highest_score():
    assert by_metric(score_classes(SCORES, TRUTH, CLASSES, PATIENTS))["accuracy"].value == 0.75


def test_a_mean_without_any_class_is_none():
    only = by_metric(score_classes(SCORES[:, :1], np.zeros(4, dtype=int), ("Edema",), PATIENTS))
    assert only["auc"].value is None
    assert only["auc"].reason == "every image shows Edema"


def test_h2_one_nan_among_the_scores_is_refused():
    with pytest.raises(NumericsError, match="not finite"):
        score_classes(np.where(SCORES == 4, np.nan, SCORES), TRUTH, CLASSES, PATIENTS)


@settings(max_examples=50, derandomize=True, deadline=None)
@given(st.permutations(range(3)), st.integers(0, 1000))
def test_h3_the_order_of_classes_changes_no_number(order, seed):
    generator = np.random.default_rng(seed)
    scores, truth = generator.random((12, 3)), generator.integers(3, size=12)
    patients, draws = [str(i) for i in range(12)], Bootstrap(resamples=1)
    place = np.argsort(order)
    one = by_metric(score_classes(scores, truth, CLASSES, patients, draws))
    other = by_metric(score_classes(scores[:, order], place[truth], [CLASSES[i] for i in order], patients, draws))
    assert one.keys() == other.keys()
    for metric, result in one.items():
        assert other[metric].value == pytest.approx(result.value, nan_ok=True)
        assert dataclasses.replace(other[metric], value=None, reason=None) == dataclasses.replace(
            result, value=None, reason=None
        )


def test_a_finding_is_scored_on_images_labelled_for_it():
    scores = np.array([[1.0, -1], [-1, 1], [1, 1], [1, 1]])
    labels = np.array([[1.0, np.nan], [0, np.nan], [0, np.nan], [np.nan, np.nan]])
    results = by_metric(score_findings(scores, labels, ("Edema", "Pneumonia"), ["a", "b", "b", "c"]))
    edema = results["accuracy/Edema"]
    assert (edema.value, edema.images, edema.patients) == (pytest.approx(2 / 3), 3, 2)
    assert results["auc/Edema"].value == 0.75
    assert results["auc/Pneumonia"].reason == "no image is labelled for Pneumonia"
    assert results["accuracy"].value == pytest.approx(2 / 3)
    assert results["accuracy"].reason.startswith("mean over 1 of 2 classes: no image is labelled for Pneumonia")


def test_intervals_contain_their_values():
    generator = np.random.default_rng(0)
    truth = generator.integers(3, size=300)
    scores = generator.random((300, 3)) + np.eye(3)[truth] / 2
    for result in score_classes(scores, truth, CLASSES, [str(i // 2) for i in range(300)], Bootstrap(resamples=200)):
        assert result.interval[0] < result.value < result.interval[1]
        assert (result.images, result.patients) == (300, 150)


def test_mean_of_findings_has_an_interval_over_all_their_images():
    generator = np.random.default_rng(0)
    labels = generator.integers(2, size=(100, 2)).astype(float)
    labels[:50, 0] = np.nan
    mean = by_metric(score_findings(generator.normal(size=(100, 2)), labels, ("a", "b"), [str(i) for i in range(100)]))
    assert mean["auc"].interval[0] < mean["auc"].value < mean["auc"].interval[1]
    assert mean["auc"].images == 100
    assert mean["auc/a"].images == 50


def test_baseline_of_auprc_is_the_prevalence():
    truth = np.array([0, 0, 1, 2])
    baselines = by_metric(class_baselines(truth, ["AP"] * 4, CLASSES, PATIENTS))
    assert [baselines[f"majority-class/auprc/{name}"].value for name in CLASSES] == [0.5, 0.25, 0.25]
    assert baselines["majority-class/auprc"].value == pytest.approx(1 / 3)


def test_every_ranking_metric_has_classes_and_mean():
    results = by_metric(score_classes(SCORES, TRUTH, CLASSES, PATIENTS))
    assert list(results)[:6] == ["accuracy", "auc", *(f"auc/{name}" for name in CLASSES), "auprc"]
    # Atelectasis: positives 3 and 2 among 0 and 4; from above a negative, then both.
    assert results["auprc/Atelectasis"].value == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert results["sensitivity@0.90/Atelectasis"].value == 0
    assert results["sensitivity@0.90/Edema"].value == 0.5


def test_findings_on_the_same_images_equal_separate_scoring():
    generator = np.random.default_rng(4)
    scores, labels = generator.normal(size=(40, 2)), (generator.random((40, 2)) < 0.5).astype(float)
    labels[:5, 1] = np.nan
    patients, draws = [str(i) for i in range(40)], Bootstrap(resamples=40)
    both = by_metric(score_findings(scores, labels, CLASSES[:2], patients, draws))
    for column, name in enumerate(CLASSES[:2]):
        alone = by_metric(score_findings(scores[:, [column]], labels[:, [column]], (name,), patients, draws))
        for metric in ("accuracy", "auc", "auprc", "sensitivity@0.95"):
            assert both[f"{metric}/{name}"] == alone[f"{metric}/{name}"]


FEW = Bootstrap(resamples=100)
TWO_CLASSES = ("Edema", "Pneumonia")


def record(number, **known):
    return Record(id=f"r{number}", image=Path(f"r{number}.png"), labels={}, patient=f"p{number}", **known)


def predictions(correct):
    """Predictions of two classes in turn, some of them correct."""
    truth = np.arange(len(correct)) % 2
    given = np.where(correct, truth, 1 - truth)
    scores = np.zeros((len(correct), 2))
    scores[np.arange(len(correct)), given] = 1 + np.arange(len(correct)) / 100
    return Predictions(scores, truth.astype(float), [f"p{i}" for i in range(len(correct))])


def named(groups):
    return {group.name: group for group in groups.groups}


def test_results_by_sex_and_their_gap():
    # 30 women, 24 correct; 30 men, 15 correct; one without sex.
    correct = np.array(([1] * 4 + [0]) * 6 + [1, 1, 0, 0] * 7 + [1, 0] + [1], dtype=bool)
    records = [record(i, sex="F" if i < 30 else "M" if i < 60 else None) for i in range(61)]
    [sexes] = subgroup_results(predictions(correct), records, TWO_CLASSES, FEW)
    assert (sexes.by, sexes.unknown, sexes.left_out) == ("sex", 1, 0)
    women, men = named(sexes)["F"], named(sexes)["M"]
    assert (women.images, women.patients, men.images) == (30, 30, 30)
    assert [result.metric for result in women.results] == ["accuracy", "auc"]
    assert women.results[0].value == pytest.approx(24 / 30)
    assert men.results[0].value == pytest.approx(15 / 30)
    assert women.results[0].images == 30
    gap = sexes.gaps[0]
    assert gap.metric == "accuracy"
    assert gap.value == pytest.approx(9 / 30)
    assert gap.reason == "best F, worst M"
    assert gap.interval[0] < 0.3 < gap.interval[1]
    assert gap.images == 60


def test_a_group_of_four_patients_is_left_out_unless_images_are_synthetic():
    records = [record(i, view="AP" if i < 10 else "PA" if i < 20 else "LL") for i in range(24)]
    [views] = subgroup_results(predictions(np.ones(24, bool)), records, TWO_CLASSES, FEW)
    assert list(named(views)) == ["AP", "PA"]
    assert views.left_out == 4
    [synthetic] = subgroup_results(predictions(np.ones(24, bool)), records, TWO_CLASSES, FEW, min_patients=1)
    assert list(named(synthetic)) == ["AP", "PA", "LL"]


def test_a_single_group_is_left_out():
    assert (
        subgroup_results(predictions(np.ones(10, bool)), [record(i, sex="F") for i in range(10)], TWO_CLASSES, FEW)
        == ()
    )


def test_age_bands_are_in_order():
    ages = [85.0] * 12 + [40.0] * 6 + [59.9] * 5 + [12.0] * 7
    [bands] = subgroup_results(
        predictions(np.ones(30, bool)), [record(i, age=age) for i, age in enumerate(ages)], TWO_CLASSES, FEW
    )
    assert [(group.name, group.images) for group in bands.groups] == [("<40", 7), ("40-60", 11), ("80+", 12)]


def test_groups_of_fewer_than_twenty_patients_have_no_gap():
    records = [record(i, scanner="A" if i < 25 else "B") for i in range(40)]
    [scanners] = subgroup_results(predictions(np.arange(40) % 3 > 0), records, TWO_CLASSES, FEW)
    assert len(scanners.groups) == 2
    assert [gap.value for gap in scanners.gaps] == [None, None]
    assert scanners.gaps[0].reason == "fewer than two groups have 20 patients"


def test_a_group_without_a_class_is_left_out_of_the_gap_in_auc():
    truth = np.r_[np.zeros(25), np.arange(25) % 2]
    scored = Predictions(np.random.default_rng(0).normal(size=(50, 2)), truth, [f"p{i}" for i in range(50)])
    records = [record(i, sex="F" if i < 25 else "M") for i in range(50)]
    [sexes] = subgroup_results(scored, records, TWO_CLASSES, FEW)
    accuracy, area = sexes.gaps
    assert accuracy.value is not None
    assert area.value is None
    assert area.reason == "fewer than two groups have positives and negatives of every class"


def test_subgroups_of_findings_use_labelled_images():
    labels = np.array([[1.0], [0.0], [np.nan]] * 10 + [[0.0], [1.0]] * 5)
    scored = Predictions(np.tile([[1.0], [-1.0], [1.0]], (14, 1))[:40], labels, [f"p{i}" for i in range(40)])
    records = [record(i, sex="F" if i < 30 else "M") for i in range(40)]
    [sexes] = subgroup_results(scored, records, ("Edema",), FEW)
    women = named(sexes)["F"]
    assert women.results[0].value == 1.0
    assert (women.images, women.results[0].images) == (30, 20)


def test_results_of_a_group_equal_those_of_its_images():
    generator = np.random.default_rng(3)
    patients = [f"p{i}" for i in range(60)]
    scored = Predictions(generator.normal(size=(60, 3)), generator.integers(3, size=60).astype(float), patients)
    classes = ("A", "B", "C")
    [sexes] = subgroup_results(scored, [record(i, sex="F" if i < 30 else "M") for i in range(60)], classes, FEW)
    alone = Predictions(scored.scores[:30], scored.truth[:30], patients[:30])
    expected = {
        result.metric: result for result in estimate(classification_measures(alone, classes), alone.patients, FEW)
    }
    for result in named(sexes)["F"].results:
        assert result == expected[result.metric]
