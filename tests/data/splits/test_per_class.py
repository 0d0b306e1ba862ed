from collections import Counter
from pathlib import Path

import pytest

from cleft.data.splits.draws import ids_digest
from cleft.data.splits.per_class import balanced, class_patients
from cleft.errors import DataError
from cleft.types import Record


def record(number, patient, name, other=None):
    labels = {"A": 0.0, "B": 0.0, name: 1.0} if name else {}
    if other:
        labels[other] = 1.0
    return Record(id=f"{number}.png", image=Path("x.png"), labels=labels, patient=patient)


def many(images=60, patients=20):
    return [record(i, f"p{i % patients}", "A" if i % 3 else "B") for i in range(images)]


def classes_of(records):
    return Counter(name for record in records for name, value in record.labels.items() if value == 1)


def test_every_class_has_as_many_images_in_the_order_given():
    drawn = balanced(many(), ["A", "B"], 10)
    assert classes_of(drawn) == {"A": 10, "B": 10}
    assert [int(record.id[:-4]) for record in drawn] == sorted(int(record.id[:-4]) for record in drawn)


def test_no_patient_has_more_than_his_share_of_a_class():
    records = [record(i, "busy", "A") for i in range(30)] + [record(100 + i, f"p{i}", "A") for i in range(10)]
    drawn = balanced(records, ["A"], 12, per_patient=2)
    assert Counter(record.patient for record in drawn)["busy"] == 2


def test_the_draw_does_not_depend_on_row_order_and_is_this_one():
    drawn = {record.id for record in balanced(many(), ["A", "B"], 10)}
    assert {record.id for record in balanced(many()[::-1], ["B", "A"], 10)} == drawn
    assert ids_digest(drawn) == "7872e1ed57da2f00"  # pragma: allowlist secret


def test_another_class_changes_none_of_the_others():
    alone = {record.id for record in balanced(many(), ["A"], 10)}
    assert alone < {record.id for record in balanced(many(), ["A", "B"], 10)}


def test_a_smaller_set_lies_within_a_larger_one():
    smaller, larger = ({record.id for record in balanced(many(), ["A", "B"], n)} for n in (5, 10))
    assert smaller < larger


def test_an_image_of_no_class_or_of_two_is_not_drawn():
    records = [*many(), record(100, "q", None), record(101, "q", "A", "B")]
    assert {"100.png", "101.png"}.isdisjoint(record.id for record in balanced(records, ["A", "B"], 20))


def test_too_few_images_are_refused_with_counts_and_a_remedy():
    with pytest.raises(DataError, match=r"B 20 \(of 20 images of 20 patients\); set --per-class 20, allow more"):
        balanced(many(), ["A", "B"], 25)


def test_the_remedy_is_what_the_rarest_class_has():
    records = [*many(), *(record(200 + i, f"r{i}", "C") for i in range(3))]
    with pytest.raises(DataError, match=r"B 20 .*C 3 .*; set --per-class 3, allow more"):
        balanced(records, ["B", "C"], 25)


def test_too_few_patients_are_refused_too():
    records = [record(i, f"p{i % 2}", "A") for i in range(30)]
    with pytest.raises(DataError, match=r"at most 4 of a patient, cannot be had: A 8 \(of 30 images of 2 patients\)"):
        balanced(records, ["A"], 10)
    assert len(balanced(records, ["A"], 10, per_patient=5)) == 10


def test_a_class_without_an_image_is_named():
    with pytest.raises(DataError, match=r"C 0 \(of 0 images of 0 patients\); take other images"):
        balanced(many(), ["A", "C"], 5)


def test_patients_are_counted_by_class():
    records = [record(1, "p", "A"), record(2, "p", "A"), record(3, "q", "B"), record(4, "q", None)]
    assert class_patients(records, ["A", "B"]) == {"A": (2, 1), "B": (1, 1)}
