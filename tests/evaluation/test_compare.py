"""Two models on the same images, with predictions made by hand."""

import json
from dataclasses import replace

import numpy as np
import pytest
from tests.fakes.fake_runs import evaluation
from tests.tools.replacing import replace_keeping_size_and_time

from cleft.errors import DataError
from cleft.evaluation import Bootstrap
from cleft.evaluation.compare import compare, compare_seeds, comparison_lines, write_comparison
from cleft.evaluation.metrics import accuracy, auc, intervals, value_of
from cleft.evaluation.result_files import anonymise, predictions_path, write_predictions
from cleft.evaluation.scoring import Predictions
from cleft.results import Comparison, from_json, to_json
from cleft.studies.reproduce import compare_results

CLASSES = ("Edema", "Pneumonia")
IMAGES = 80
IDS = [f"image {i}" for i in range(IMAGES)]
TRUTH = (np.arange(IMAGES) % 2).astype(float)
FEW = Bootstrap(resamples=200)


def logits(wrong, *, noise=0):
    """Logits of two classes; the first images are classified wrongly."""
    generator = np.random.default_rng(noise)
    predicted = np.where(np.arange(IMAGES) < wrong, 1 - TRUTH, TRUTH).astype(int)
    scores = generator.random((IMAGES, 2)) / 10
    scores[np.arange(IMAGES), predicted] += 1
    return scores


def write(folder, name, scores, *, truth=TRUTH, **changes):
    """A run of one result, as an evaluation leaves it."""
    found = evaluation(0.6 + len(name) / 100, classes=CLASSES, **changes)
    path = folder / name / "results" / "zero-shot.json"
    path.parent.mkdir(parents=True)
    path.write_text(to_json(found))
    patients = [f"patient {i // 2}" for i in range(IMAGES)]
    write_predictions(anonymise(Predictions(scores, truth, patients), IDS), path, found)
    return path


def by_metric(comparison):
    return {each.metric: each for each in comparison.differences}


def test_difference_is_first_minus_second(tmp_path):
    one, other = logits(8, noise=1), logits(24, noise=2)
    found = compare(write(tmp_path, "good", one), write(tmp_path, "worse", other), bootstrap=FEW)
    hits = by_metric(found)["accuracy"]
    assert (hits.first, hits.second) == (72 / 80, 56 / 80)
    assert hits.difference == pytest.approx(16 / 80)
    assert hits.interval[0] < 0.2 < hits.interval[1]
    assert (hits.images, hits.patients) == (80, 40)
    area = by_metric(found)["auc/Edema"]
    odds = (one[:, 0] - one[:, 1]).astype(np.float32)
    assert area.first == pytest.approx(value_of(auc(odds, TRUTH == 0), IMAGES), abs=1e-3)
    assert (found.first, found.second, found.first_result) == ("good", "worse", "zero-shot.json")
    assert (found.classes, found.scoring, found.resamples) == (CLASSES, "multi-class", 200)


def test_a_model_does_not_differ_from_itself(tmp_path):
    path = write(tmp_path, "one", logits(20))
    for each in compare(path, path, bootstrap=FEW).differences:
        assert (each.difference, each.interval, each.p_value) == (0.0, (0.0, 0.0), 1.0)


def test_p_value_is_small_for_a_large_difference_only(tmp_path):
    good, worse = write(tmp_path, "good", logits(4)), write(tmp_path, "worse", logits(40))
    near = write(tmp_path, "nearly", logits(5))
    assert by_metric(compare(good, worse, bootstrap=FEW))["accuracy"].p_value == pytest.approx(2 / 201)
    small = by_metric(compare(good, near, bootstrap=FEW))["accuracy"]
    assert small.p_value > 0.05
    assert small.interval[0] <= 0 <= small.interval[1]


def test_difference_over_seeds_is_the_mean_with_common_resamples(tmp_path):
    good = [write(tmp_path, f"good-{seed}", logits(4 + 4 * seed, noise=seed)) for seed in range(3)]
    worse = [write(tmp_path, f"worse-{seed}", logits(12 + 6 * seed, noise=seed)) for seed in range(3)]
    hits, area = compare_seeds(good, worse, bootstrap=FEW)
    assert (hits.metric, area.metric) == ("accuracy", "auc")
    assert (hits.first, hits.second) == pytest.approx((72 / 80, 62 / 80))
    assert hits.difference == pytest.approx(10 / 80)
    assert hits.interval[0] < 10 / 80 < hits.interval[1]
    [alone, _] = compare_seeds(good[:1], worse[:1], bootstrap=FEW)
    assert alone == by_metric(compare(good[0], worse[0], bootstrap=FEW))["accuracy"]
    [thrice, _] = compare_seeds(good[:1] * 3, worse[:1] * 3, bootstrap=FEW)
    assert thrice.interval == pytest.approx(alone.interval)


def test_seeds_of_other_images_are_refused(tmp_path):
    good, other = write(tmp_path, "good", logits(4)), write(tmp_path, "other", logits(4), ids_digest="f" * 16)
    with pytest.raises(DataError, match="another split"):
        compare_seeds([good, other], [good, other], bootstrap=FEW)


def test_swapping_the_models_changes_only_the_sign(tmp_path):
    good, worse = write(tmp_path, "good", logits(4)), write(tmp_path, "worse", logits(12))
    one, other = (by_metric(compare(*pair, bootstrap=FEW))["accuracy"] for pair in ((good, worse), (worse, good)))
    assert one.difference == -other.difference
    assert one.p_value == other.p_value
    assert one.interval == pytest.approx((-other.interval[1], -other.interval[0]))


def test_paired_interval_is_narrower_than_separate_intervals(tmp_path):
    # Both models fail on the same patients, so that what differs is three images.
    found = compare(write(tmp_path, "one", logits(40)), write(tmp_path, "two", logits(43)), bootstrap=FEW)
    low, high = by_metric(found)["accuracy"].interval
    patients = [f"patient {i // 2}" for i in range(IMAGES)]
    [(bounds, _)] = intervals([accuracy(np.arange(IMAGES) >= 40)], patients)
    assert high - low < (bounds[1] - bounds[0]) / 2


def test_findings_are_compared_on_images_labelled_for_them(tmp_path):
    labels = np.stack([TRUTH, np.where(np.arange(IMAGES) < 60, 1 - TRUTH, np.nan)], axis=1)
    scores = np.where(np.nan_to_num(labels) == 1, 1.0, -1.0)
    options = {"truth": labels, "scoring": "present-absent"}
    found = by_metric(
        compare(write(tmp_path, "one", scores, **options), write(tmp_path, "two", -scores, **options), bootstrap=FEW)
    )
    assert (found["accuracy/Edema"].images, found["accuracy/Pneumonia"].images) == (80, 60)
    assert found["accuracy"].difference == pytest.approx(1.0)
    assert found["auc/Pneumonia"].difference == pytest.approx(1.0)


def test_results_on_other_images_are_refused_with_both_digests(tmp_path):
    one = write(tmp_path, "one", logits(1), ids_digest="a" * 16)
    other = write(tmp_path, "other", logits(1), ids_digest="b" * 16)
    with pytest.raises(
        DataError,
        match=f"results of another split: one/zero-shot.json was measured on the images {'a' * 16}, "
        f"other/zero-shot.json on {'b' * 16}",
    ):
        compare(one, other)


def test_other_labels_scoring_or_classes_are_refused(tmp_path):
    one = write(tmp_path, "one", logits(1))
    with pytest.raises(DataError, match="on the same images with other labels"):
        compare(one, write(tmp_path, "two", logits(1), truth=1 - TRUTH))
    other = write(tmp_path, "three", logits(1), scoring="present-absent")
    with pytest.raises(
        DataError, match=r"one/zero-shot\.json has scoring multi-class, three/zero-shot\.json has present-absent"
    ):
        compare(one, other)
    found = json.loads(one.read_text())
    other.write_text(to_json(replace(from_json(json.dumps(found), type(evaluation()), where=""), classes=("A", "B"))))
    with pytest.raises(DataError, match=r"has classes Edema, Pneumonia, three/zero-shot\.json has A, B"):
        compare(one, other)


def test_a_result_without_predictions_is_refused(tmp_path):
    one, other = write(tmp_path, "one", logits(1)), write(tmp_path, "other", logits(2))
    predictions_path(other).unlink()
    with pytest.raises(DataError, match=r"zero-shot\.json has no predictions next to it"):
        compare(one, other)


def test_a_comparison_is_written_into_the_first_run(tmp_path):
    found = compare(write(tmp_path, "one", logits(1)), write(tmp_path, "two", logits(9)), bootstrap=FEW)
    path = write_comparison(found, tmp_path / "one")
    assert path == write_comparison(found, tmp_path / "one")
    assert path.parent == tmp_path / "one" / "comparisons"
    assert path.name.startswith("zero-shot-against-two-")
    assert from_json(path.read_text(), Comparison, where="") == found
    assert comparison_lines(found)[0].startswith("accuracy one 0.988, two 0.887: difference +0.100 [+0.0")


def test_a_replaced_result_of_equal_size_and_time_is_read_again(tmp_path):
    good, worse = write(tmp_path, "good", logits(8, noise=1)), write(tmp_path, "worse", logits(24, noise=2))
    assert by_metric(compare(good, worse, bootstrap=FEW))["accuracy"].second == 56 / 80
    better = write(tmp_path, "other", logits(16, noise=3))
    replace_keeping_size_and_time(predictions_path(worse), predictions_path(better).read_bytes())
    assert by_metric(compare(good, worse, bootstrap=FEW))["accuracy"].second == 64 / 80


def test_a_study_compares_a_replaced_result_again(tmp_path):
    good, worse = write(tmp_path, "good", logits(8, noise=1)), write(tmp_path, "worse", logits(24, noise=2))
    before = {each.metric: each for each in compare_results((good,), (worse,), 200)}
    assert before["accuracy"].second == 56 / 80
    better = write(tmp_path, "other", logits(16, noise=3))
    replace_keeping_size_and_time(predictions_path(worse), predictions_path(better).read_bytes())
    after = {each.metric: each for each in compare_results((good,), (worse,), 200)}
    assert after["accuracy"].second == 64 / 80
