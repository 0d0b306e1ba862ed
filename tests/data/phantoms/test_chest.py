"""Phantoms: CheXpert's layout, findings that can be measured in the pixels, the same bytes for the same seed."""

import csv

import cv2
import numpy as np
import pytest

from cleft.config import DataConfig
from cleft.data import read_dataset
from cleft.data.phantoms.chest import DRAWERS, ChestAnatomy, ChestExposure, draw_frontal, write_phantoms
from cleft.data.tables.paths import PHANTOMS_FILE
from cleft.errors import DataError


def draw(severity, seed=0, view="PA"):
    return draw_frontal(
        (160, 195), ChestAnatomy(), ChestExposure(view=view), severity, np.random.default_rng(seed)
    ).astype(float)


def digest(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_same_seed_writes_the_same_bytes(tmp_path):
    first = write_phantoms(tmp_path / "a", patients=3, seed=7, size=64)
    second = write_phantoms(tmp_path / "b", patients=3, seed=7, size=64)
    other = write_phantoms(tmp_path / "c", patients=3, seed=8, size=64)
    assert digest(first) == digest(second)
    assert digest(first) != digest(other)


def test_a_patient_does_not_change_with_the_number_of_patients(tmp_path):
    few = digest(write_phantoms(tmp_path / "a", patients=2, size=64))
    many = digest(write_phantoms(tmp_path / "b", patients=3, size=64))
    assert all(many[name] == data for name, data in few.items() if name.suffix == ".jpg")


def test_the_reader_of_chexpert_reads_them(tmp_path):
    root = write_phantoms(tmp_path / "phantoms", patients=12, size=64)
    reading = read_dataset(DataConfig(root=root))
    assert len({record.patient for record in reading.records}) == 12
    assert all(record.view in ("AP", "PA") and record.image.is_file() for record in reading.records)
    assert cv2.imread(str(reading.records[0].image), cv2.IMREAD_UNCHANGED).shape == (64, 78)


def test_the_table_has_the_labels_of_the_real_one(tmp_path):
    root = write_phantoms(tmp_path / "phantoms", patients=60, size=32)
    with next(root.rglob("train.csv")).open() as file:
        rows = list(csv.DictReader(file))
    assert {row[finding] for row in rows for finding in DRAWERS} == {"", "1.0", "0.0", "-1.0"}
    alone = [row for row in rows if sum(row[name] == "1.0" for name in list(rows[0])[5:]) == 1]
    for finding in ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion"):
        assert sum(row[finding] == "1.0" for row in alone) >= 3


def test_a_folder_with_the_same_images_is_kept_and_any_other_is_refused(tmp_path):
    root = write_phantoms(tmp_path / "phantoms", patients=1, size=32)
    before = (root / PHANTOMS_FILE).stat().st_mtime_ns
    assert write_phantoms(root, patients=1, size=32) == root
    assert (root / PHANTOMS_FILE).stat().st_mtime_ns == before
    with pytest.raises(DataError, match="holds other synthetic images"):
        write_phantoms(root, patients=2, size=32)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="is not empty"):
        write_phantoms(tmp_path / "full", patients=1)


def test_a_draft_left_by_a_killed_run_is_replaced(tmp_path):
    (tmp_path / ".phantoms.draft" / "old").mkdir(parents=True)
    (tmp_path / ".phantoms.draft" / ".cleft-draft").touch()
    root = write_phantoms(tmp_path / "phantoms", patients=1, size=32)
    assert not list(tmp_path.rglob("old"))
    assert (root / PHANTOMS_FILE).is_file()


def test_a_dataset_needs_patients_and_pixels(tmp_path):
    with pytest.raises(DataError, match="set at least 1 patient"):
        write_phantoms(tmp_path / "phantoms", patients=0)


def test_cardiomegaly_widens_the_heart():
    row = slice(105, 110)
    assert draw({"Cardiomegaly": 1.0})[row].mean() > draw({})[row].mean() + 8


def test_an_effusion_whitens_the_base_of_a_lung():
    base = draw({"Pleural Effusion": 1.0})[118:128, 30:165].mean()
    assert base > draw({})[118:128, 30:165].mean() + 8


def test_a_pneumothorax_is_darker_than_the_lung_it_displaces():
    apex = np.s_[28:60, 40:155]
    assert np.percentile(draw({"Pneumothorax": 1.0})[apex], 5) < np.percentile(draw({})[apex], 5)


@pytest.mark.parametrize("finding", [*DRAWERS, "Cardiomegaly", "Enlarged Cardiomediastinum"])
def test_every_finding_changes_the_image(finding):
    plain = cv2.GaussianBlur(draw({}), (0, 0), 2)
    changed = cv2.GaussianBlur(draw({finding: 1.0}), (0, 0), 2)
    assert np.abs(plain - changed).max() > 12
