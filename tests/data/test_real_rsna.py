"""Reference numbers of RSNA's real tables and headers."""

from dataclasses import replace

import pytest

from cleft.config import DataConfig
from cleft.data.readers.rsna import read_rsna
from cleft.data.splits.recipes import split_records
from cleft.data.splits.subsets import ids_digest
from cleft.data.tables.csv import read_table
from cleft.evaluation.predictions import is_ap, positive_class, view_rule

CONFIG = DataConfig(dataset="rsna", table="rsna_stage_2_train_labels.csv.gz", val_fraction=0)


@pytest.fixture(scope="module")
def tables():
    from tests.conftest import SHARED

    if not SHARED.is_dir():
        pytest.skip("the folder of real data and reference values is not beside the checkout")
    return SHARED / "data/tables"


@pytest.fixture(scope="module")
def config(tables):
    return replace(CONFIG, root=tables, patient_mapping=tables / "rsna_nih_match.csv.gz")


@pytest.fixture(scope="module")
def reading(config):
    return read_rsna(config, check_files=False).checked()


def test_the_table_has_the_published_counts(reading):
    assert len(reading.records) == 26_684
    assert sum(record.labels["Pneumonia"] == 1 for record in reading.records) == 6_012
    assert sum(record.labels["No Pneumonia"] == 1 for record in reading.records) == 20_672
    assert "with 9,555 boxes (published" in reading.notes[0]
    assert len({record.patient for record in reading.records}) == 11_439
    assert reading.patient_dataset == "nih"
    assert "99 of these matches are doubtful (pixel_mse above 5)" in reading.notes
    assert reading.rejected == {}


def test_the_balanced_split_has_its_golden_digests(reading, config):
    splits = split_records(reading, config)
    assert splits.recipe == "rsna-balanced"
    assert (len(splits.test), len(splits.train)) == (3_538, 8_486)
    assert [sum(r.labels["Pneumonia"] == 1 for r in part) for part in (splits.test, splits.train)] == [1_769, 4_243]
    assert ids_digest(record.id for record in splits.test) == "3dda56e161938e96"
    assert ids_digest(record.id for record in splits.train) == "6c721a7b755e1930"
    assert splits.shared_patients == 0
    held = split_records(reading, replace(config, val_fraction=0.05))
    assert ids_digest(record.id for record in held.test) == "3dda56e161938e96"
    assert len(held.train) + len(held.val) == 8_486
    assert len(held.val) == round(0.05 * 8_486)


def test_the_view_rule_is_right_for_seven_of_ten(reading, config, tables):
    header = read_table(tables / "rsna_headers.csv.gz")[0].columns
    views = dict(zip(header["PatientID"].texts(), header["ViewPosition"].texts(), strict=True))
    test = split_records(reading, config).test
    sick = [record.labels["Pneumonia"] == 1 for record in test]
    right = sum(is_ap(views[record.id]) == ill for record, ill in zip(test, sick, strict=True)) / len(test)
    assert right == pytest.approx(0.697, abs=0.0005)
    classes = ("No Pneumonia", "Pneumonia")
    assert positive_class(classes) == 1
    rule = view_rule([int(ill) for ill in sick], [views[record.id] for record in test], classes)
    assert (rule.scores.argmax(axis=1) == sick).mean() == right


def test_the_small_copy_is_read_with_its_headers_and_its_patients(shared, tmp_path):
    root = shared / "data/rsna-mini"
    reading = read_rsna(DataConfig(dataset="rsna", root=root, cache=tmp_path)).checked()
    assert len(reading.records) == 238
    assert {record.view for record in reading.records} == {"AP", "PA"}
    assert None not in {record.age for record in reading.records} | {record.sex for record in reading.records}
    assert reading.patient_dataset == "nih"
    assert all(record.patient.isdecimal() for record in reading.records)
