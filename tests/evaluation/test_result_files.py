"""Result files and stored predictions: complete, private with images of patients, replaced by the same evaluation."""

import dataclasses
import json
import os
import stat

import numpy as np
import pytest
import safetensors.numpy
from tests.fakes.fake_runs import evaluation

from cleft.errors import DataError, ResourceError
from cleft.evaluation.result_files import (
    anonymise,
    predictions_path,
    read_evaluation,
    read_predictions,
    result_name,
    write_evaluation,
    write_predictions,
)
from cleft.evaluation.scoring import Predictions
from cleft.results import Evaluation, Result

EVALUATION = Evaluation(
    task="zero-shot",
    dataset="chexpert",
    split="test",
    split_recipe="5x200-strict",
    split_digest="a" * 16,
    ids_digest="b" * 16,
    checkpoint="c" * 16,
    scoring="multi-class",
    prompts="handwritten",
    classes=("Atelectasis", "Edema", "Cardiomegaly", "Pleural Effusion", "Consolidation"),
    class_prompts=("a", "e", "ca", "p", "co"),
    results=(Result(metric="accuracy", value=0.5),),
    baselines=(),
)


def test_a_written_evaluation_is_read_back(tmp_path):
    path = write_evaluation(EVALUATION, tmp_path / "results")
    assert read_evaluation(path) == EVALUATION
    assert path.name.startswith("zero-shot-chexpert-test-5-classes-handwritten-")


def test_the_same_evaluation_replaces_its_file(tmp_path):
    write_evaluation(EVALUATION, tmp_path)
    path = write_evaluation(dataclasses.replace(EVALUATION, results=()), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert read_evaluation(path).results == ()


@pytest.mark.parametrize(
    "change",
    [
        {"prompts": "context"},
        {"classes": ("A", "B", "C", "D", "E")},
        {"ids_digest": "d" * 16},
        {"scoring": "present-absent"},
        {"class_names": "released"},
    ],
)
def test_another_evaluation_has_another_file(change):
    assert result_name(dataclasses.replace(EVALUATION, **change)) != result_name(EVALUATION)


@pytest.mark.parametrize(
    "change", [{"protocol": "paper"}, {"training_fraction": 0.01}, {"training_fraction": 0.001}, {"training_seed": 2}]
)
def test_another_training_of_a_classifier_has_another_file(change):
    head = dataclasses.replace(EVALUATION, task="linear-probe", prompts="none", class_prompts=(), protocol="standard")
    assert result_name(head).startswith("linear-probe-chexpert-test-5-classes-standard-100-percent-seed-0-")
    assert result_name(dataclasses.replace(head, **change)) != result_name(head)


def test_files_of_class_names_with_one_name_have_two_results():
    other = dataclasses.replace(EVALUATION, class_names="other")
    assert result_name(other) != result_name(dataclasses.replace(other, class_prompts=("b", "e", "ca", "p", "co")))


def test_a_result_without_later_fields_is_read(tmp_path):
    path = write_evaluation(EVALUATION, tmp_path)
    tree = json.loads(path.read_text())
    del tree["class_names"], tree["overlap_left_out"]
    path.write_text(json.dumps(tree))
    assert read_evaluation(path) == EVALUATION


def test_h6_a_failed_write_leaves_the_earlier_file_and_no_other(tmp_path, monkeypatch):
    path = write_evaluation(EVALUATION, tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match="No space left on device"):
        write_evaluation(dataclasses.replace(EVALUATION, results=()), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert read_evaluation(path) == EVALUATION


@pytest.mark.parametrize(("synthetic", "mode"), [(True, 0o644), (False, 0o600)])
def test_results_with_images_of_patients_are_readable_by_the_owner_only(tmp_path, synthetic, mode):
    with_image = dataclasses.replace(EVALUATION, synthetic=synthetic, examples=({"image": ""},))
    assert stat.S_IMODE(write_evaluation(with_image, tmp_path).stat().st_mode) == mode


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(DataError, match="evaluate the run again"):
        read_evaluation(tmp_path / "none.json")


IDS = ["train/a.jpg", "train/b.jpg", "train/c.jpg", "train/d.jpg"]
PREDICTIONS = Predictions(np.arange(8.0).reshape(4, 2), np.array([0.0, 1.0, 0.0, 1.0]), ["ann", "bob", "ann", "eve"])


def test_stored_predictions_do_not_depend_on_the_order_of_images():
    flipped = Predictions(PREDICTIONS.scores[::-1], PREDICTIONS.truth[::-1], PREDICTIONS.patients[::-1])
    for one, other in zip(anonymise(PREDICTIONS, IDS), anonymise(flipped, IDS[::-1]), strict=True):
        assert np.array_equal(one, other)


def test_patients_are_numbered_by_first_appearance():
    stored = anonymise(PREDICTIONS, IDS)
    assert stored.patients[0] == 0
    assert sorted(set(stored.patients.tolist())) == [0, 1, 2]
    rows = {tuple(row): number for row, number in zip(stored.scores.tolist(), stored.patients.tolist(), strict=True)}
    assert rows[0.0, 1.0] == rows[4.0, 5.0]  # both ann's
    assert len(set(rows.values())) == 3


def test_stored_predictions_are_read_back_and_hold_no_names(tmp_path):
    path = tmp_path / "zero-shot.json"
    found = evaluation(synthetic=False)
    write_predictions(anonymise(PREDICTIONS, IDS), path, found)
    back = read_predictions(path, found)
    for one, other in zip(back, anonymise(PREDICTIONS, IDS), strict=True):
        assert np.array_equal(one, other)
    assert back.scores.dtype == np.float32
    data = predictions_path(path).read_bytes()
    assert not any(name in data for name in (b"ann", b"bob", b"eve", b"train"))
    assert set(safetensors.numpy.load(data)) == {"scores", "truth", "patients"}
    assert stat.S_IMODE(predictions_path(path).stat().st_mode) == 0o600


def test_unknown_labels_are_stored_as_nan(tmp_path):
    labels = np.array([[1.0, np.nan], [0.0, 1.0], [np.nan, np.nan], [0.0, 0.0]])
    write_predictions(
        anonymise(Predictions(PREDICTIONS.scores, labels, PREDICTIONS.patients), IDS), tmp_path / "r.json", evaluation()
    )
    back = read_predictions(tmp_path / "r.json", evaluation()).predictions()
    assert not back.multi_class
    assert np.isnan(back.truth).sum() == 3


def test_predictions_that_are_missing_damaged_or_of_other_weights_are_refused(tmp_path):
    path = tmp_path / "r.json"
    with pytest.raises(DataError, match=r"r.json has no predictions next to it \(r.safetensors\)"):
        read_predictions(path, evaluation())
    write_predictions(anonymise(PREDICTIONS, IDS), path, evaluation(0.6))
    with pytest.raises(DataError, match=r"holds the predictions of another evaluation than r\.json"):
        read_predictions(path, evaluation(0.7))
    predictions_path(path).write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match=r"cannot be read .*; evaluate that run again"):
        read_predictions(path, evaluation(0.6))
