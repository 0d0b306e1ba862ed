from pathlib import Path

import pytest

from cleft.data.labels import apply_uncertain, single_class
from cleft.types import Record

LABELS = {"Atelectasis": -1.0, "Cardiomegaly": -1.0, "Fracture": -1.0, "Edema": 1.0, "Pneumonia": 0.0}


def record(labels):
    return Record(id="a", image=Path("a.png"), labels=labels, patient="p")


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("zeros", {"Atelectasis": 0, "Cardiomegaly": 0, "Fracture": 0, "Edema": 1, "Pneumonia": 0}),
        ("ones", {"Atelectasis": 1, "Cardiomegaly": 1, "Fracture": 1, "Edema": 1, "Pneumonia": 0}),
        ("mixed", {"Atelectasis": 1, "Cardiomegaly": 0, "Fracture": 0, "Edema": 1, "Pneumonia": 0}),
        ("ignore", {"Edema": 1, "Pneumonia": 0}),
    ],
)
def test_each_policy_decides_uncertain_labels_and_no_others(policy, expected):
    (decided,) = apply_uncertain([record(LABELS)], policy)
    assert decided.labels == expected
    assert decided.uncertain == ("Atelectasis", "Cardiomegaly", "Fracture")


def test_a_record_without_uncertain_labels_is_handed_on():
    sure = record({"Edema": 1.0})
    assert apply_uncertain([sure], "ones")[0] is sure


def test_the_labels_of_the_table_are_not_touched():
    unsure = record({"Edema": -1.0})
    apply_uncertain([unsure, unsure], "ones")
    assert unsure.labels == {"Edema": -1.0}


def test_deciding_twice_changes_nothing():
    once = apply_uncertain([record(LABELS)], "mixed")
    assert apply_uncertain(once, "ones") == once


@pytest.mark.parametrize(
    ("labels", "expected"),
    [({"B": 1.0}, 1), ({}, None), ({"A": 0.0, "B": 0.0}, None), ({"A": 1.0, "B": 1.0}, None), ({"A": -1.0}, None)],
)
def test_only_a_single_present_class_is_an_answer(labels, expected):
    assert single_class(labels, ["A", "B"]) == expected
