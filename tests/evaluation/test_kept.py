"""Answers image by image: in an order that equal images have everywhere, and without anybody's name."""

import stat

import numpy as np
import pytest
import safetensors.numpy
from tests.fakes.fake_runs import evaluation

from cleft.errors import DataError
from cleft.evaluation.kept import keep, kept_beside, read_kept, write_kept
from cleft.evaluation.scoring import Scored

IDS = ["train/a.jpg", "train/b.jpg", "train/c.jpg", "train/d.jpg"]
SCORED = Scored(np.arange(8.0).reshape(4, 2), np.array([0.0, 1.0, 0.0, 1.0]), ["ann", "bob", "ann", "eve"])


def test_the_order_of_the_images_given_does_not_matter():
    turned = Scored(SCORED.scores[::-1], SCORED.truth[::-1], SCORED.patients[::-1])
    for one, other in zip(keep(SCORED, IDS), keep(turned, IDS[::-1]), strict=True):
        assert np.array_equal(one, other)


def test_patients_are_numbered_as_they_come_up_and_stay_together():
    kept = keep(SCORED, IDS)
    assert kept.patients[0] == 0
    assert sorted(set(kept.patients.tolist())) == [0, 1, 2]
    rows = {tuple(row): number for row, number in zip(kept.scores.tolist(), kept.patients.tolist(), strict=True)}
    assert rows[0.0, 1.0] == rows[4.0, 5.0]  # both ann's
    assert len(set(rows.values())) == 3


def test_what_was_kept_is_read_back_and_names_nobody(tmp_path):
    path = tmp_path / "zero-shot.json"
    found = evaluation(synthetic=False)
    write_kept(keep(SCORED, IDS), path, found)
    back = read_kept(path, found)
    for one, other in zip(back, keep(SCORED, IDS), strict=True):
        assert np.array_equal(one, other)
    assert back.scores.dtype == np.float32
    data = kept_beside(path).read_bytes()
    assert not any(name in data for name in (b"ann", b"bob", b"eve", b"train"))
    assert set(safetensors.numpy.load(data)) == {"scores", "truth", "patients"}
    assert stat.S_IMODE(kept_beside(path).stat().st_mode) == 0o600


def test_labels_that_are_not_known_stay_so(tmp_path):
    labels = np.array([[1.0, np.nan], [0.0, 1.0], [np.nan, np.nan], [0.0, 0.0]])
    write_kept(keep(Scored(SCORED.scores, labels, SCORED.patients), IDS), tmp_path / "r.json", evaluation())
    back = read_kept(tmp_path / "r.json", evaluation()).scored()
    assert not back.multi_class
    assert np.isnan(back.truth).sum() == 3


def test_answers_that_are_missing_damaged_or_of_other_weights_are_refused(tmp_path):
    path = tmp_path / "r.json"
    with pytest.raises(DataError, match=r"r.json has no answers image by image beside it \(r.safetensors\)"):
        read_kept(path, evaluation())
    write_kept(keep(SCORED, IDS), path, evaluation(0.6))
    with pytest.raises(DataError, match=r"holds the answers of another evaluation than r\.json"):
        read_kept(path, evaluation(0.7))
    kept_beside(path).write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match=r"cannot be read .*; evaluate that run again"):
        read_kept(path, evaluation(0.6))
