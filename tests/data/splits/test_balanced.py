from pathlib import Path

import pytest

from cleft.config import DataConfig
from cleft.data.splits.recipes import split_records
from cleft.errors import DataError
from cleft.types import Reading, Record

CONFIG = DataConfig(split="rsna-balanced", val_fraction=0)


def image(name, patient, sick):
    labels = {"No Pneumonia": float(not sick), "Pneumonia": float(sick)}
    return Record(id=name, image=Path(name), labels=labels, patient=patient)


def population(patients=60, sick=1, well=3):
    """Patients with that many images of either kind."""
    return [
        image(f"{kind}{p}-{i}", str(p), kind == "sick")
        for p in range(patients)
        for kind, count in (("sick", sick), ("well", well))
        for i in range(count)
    ]


def split(records, config=CONFIG):
    return split_records(Reading(dataset="rsna", records=list(records), findings=()), config)


def positives(records):
    return sum(record.labels["Pneumonia"] == 1 for record in records)


def test_both_sides_hold_all_positives_and_as_many_negatives():
    splits = split(population())
    assert positives(splits.test) == round(60 * 1769 / 6012) == 18
    assert positives(splits.train) == 60 - 18
    assert (len(splits.test), len(splits.train)) == (36, 84)
    assert splits.shared_patients == 0


def test_validation_is_held_out_of_training_by_patient():
    plain, held = split(population()), split(population(), DataConfig(split="rsna-balanced", val_fraction=0.25))
    assert held.test == plain.test
    assert {r.id for r in held.train} | {r.id for r in held.val} == {r.id for r in plain.train}
    assert len(held.val) == 21
    assert held.shared_patients == 0


def test_where_negatives_are_few_positives_are_drawn_likewise():
    splits = split(population(sick=3, well=1))
    assert positives(splits.test) * 2 == len(splits.test) > 0
    assert positives(splits.train) * 2 == len(splits.train) > 0


def test_a_patient_with_too_many_positives_for_the_test_set_is_passed_over():
    crowd = [image(f"crowd{i}", "crowd", True) for i in range(40)]
    splits = split([*population(), *crowd])
    assert "crowd" not in {record.patient for record in splits.test}
    assert positives(splits.test) == round(100 * 1769 / 6012)


def test_numbers_are_ordered_as_nih_writes_them():
    short = split(population())
    long = split([image(r.id, r.patient.zfill(8), r.labels["Pneumonia"] == 1) for r in population()])
    assert short.digest == long.digest


def test_images_without_such_labels_are_refused():
    records = [Record(id=str(i), image=Path(str(i)), labels={"Edema": 1.0}, patient=str(i)) for i in range(9)]
    with pytest.raises(DataError, match="needs images with Pneumonia and images without; found 0 and 0"):
        split(records)


def test_what_is_drawn_is_the_same_for_ever():
    splits = split(population(sick=2, well=3), DataConfig(split="rsna-balanced", val_fraction=0.2))
    assert splits.digest == "e5d0a3018559c1e4"  # pragma: allowlist secret
