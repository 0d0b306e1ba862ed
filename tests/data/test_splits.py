import hashlib
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cleft.config import DataConfig
from cleft.data.splits import (
    CLASSES_5X200,
    SPLITS,
    draw_5x200,
    ids_digest,
    order_key,
    refuse_shared,
    shared_patients,
    split_records,
    take_patients,
)
from cleft.errors import DataError
from cleft.types import Reading, Record


def record(name, patient, labels=None, *, view="AP", uncertain=()):
    return Record(id=name, image=Path(name), labels=labels or {}, patient=patient, view=view, uncertain=uncertain)


def people(sizes):
    """Patients p0, p1, … with that many images each."""
    return [record(f"p{p}-{i}", f"p{p}") for p, size in enumerate(sizes) for i in range(size)]


def reading(records):
    return Reading(dataset="t", records=list(records), findings=())


def exclusive(count):
    """As many images per class that show it alone, two to a patient."""
    return [
        record(f"{name}{i}", f"{name}{i // 2}", {name: 1.0, "Fracture": 0.0})
        for name in CLASSES_5X200
        for i in range(count)
    ]


def ids(records):
    return {record.id for record in records}


def test_the_order_is_that_of_a_salted_hash():
    assert order_key("salt", "patient00001") == hashlib.sha256(b"salt|patient00001").hexdigest()
    assert ids_digest(["b", "a"]) == hashlib.sha256(b"a\nb").hexdigest()[:16]


def test_fractions_are_of_images_and_patients_stay_whole():
    splits = split_records(reading(people([2] * 100)), DataConfig(test_fraction=0.2, val_fraction=0.05))
    assert (len(splits.train), len(splits.val), len(splits.test)) == (152, 8, 40)
    assert splits.shared_patients == 0
    assert splits.recipe == "patients"


def test_a_patient_who_would_overshoot_is_passed_over():
    records = people([5, 5, 1, 5, 1])
    assert take_patients(records, 2, "salt") == {"p2-0", "p4-0"}


def test_a_split_that_was_asked_for_gets_the_smallest_patient_at_least():
    assert take_patients(people([5, 3, 4]), 1, "salt") == {"p1-0", "p1-1", "p1-2"}
    assert take_patients(people([5, 3, 4]), 0, "salt") == set()


def test_no_fraction_is_no_split():
    splits = split_records(reading(people([1] * 9)), DataConfig(test_fraction=0, val_fraction=0))
    assert (len(splits.train), len(splits.val), len(splits.test)) == (9, 0, 0)


@pytest.mark.parametrize("patients", [1, 2])
def test_too_few_patients_are_refused(patients):
    with pytest.raises(DataError, match=r"leave none for .*; a split needs a patient of its own"):
        split_records(reading(people([4] * patients)), DataConfig())


def test_three_patients_are_enough():
    splits = split_records(reading(people([4] * 3)), DataConfig())
    assert [len(part) for part in splits[:3]] == [4, 4, 4]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 6), min_size=4, max_size=40), st.integers(0, 9))
def test_splits_part_the_images_and_do_not_depend_on_their_order(sizes, seed):
    records = people(sizes)
    plain = split_records(reading(records), DataConfig())
    random.Random(seed).shuffle(records)
    shuffled = split_records(reading(records), DataConfig())
    assert plain.digest == shuffled.digest
    parts = [ids(part) for part in plain[:3]]
    assert set.union(*parts) == ids(records)
    assert sum(len(part) for part in parts) == len(records)
    assert shared_patients({str(i): part for i, part in enumerate(plain[:3])}) == []


def test_the_digest_tells_which_split_an_image_is_in():
    config = DataConfig()
    one = split_records(reading(people([1] * 20)), config)
    other = split_records(reading(people([1] * 20)), replace(config, val_fraction=0.2))
    assert ids(one.test) == ids(other.test)
    assert one.digest != other.digest


def test_5x200_takes_images_that_show_one_finding_alone():
    records = exclusive(201)
    sure = {name: set(members) for name, members in draw_5x200(records).items()}
    assert all(len(members) == 200 for members in sure.values())
    spoilers = [
        record("two", "x", {"Edema": 1.0, "Fracture": 1.0}),
        record("unsure", "x", {"Edema": 1.0, "Fracture": 0.0}, uncertain=("Fracture",)),
        record("raw", "x", {"Edema": 1.0, "Fracture": -1.0}),
        record("decided", "x", {"Edema": 1.0}, uncertain=("Edema",)),
        record("lateral", "x", {"Edema": 1.0}, view="lateral"),
        record("other", "x", {"Fracture": 1.0}),
    ]
    assert {name: set(members) for name, members in draw_5x200([*records, *spoilers]).items()} == sure


def test_no_finding_is_not_looked_at_as_in_the_rule_of_the_field():
    records = [replace(r, labels={**r.labels, "No Finding": 1.0}) for r in exclusive(200)]
    assert len(draw_5x200(records)["Edema"]) == 200


def test_too_small_a_pool_is_refused_with_its_size():
    with pytest.raises(DataError, match=r"found Atelectasis 199, .*; set data\.split=patients"):
        draw_5x200(exclusive(199))


def test_strict_leaves_the_other_images_of_test_patients_out():
    records = exclusive(300)
    strict = split_records(reading(records), DataConfig(split="5x200-strict"))
    assert strict.shared_patients == 0
    assert len(strict.test) == 1000
    assert len(strict.train) + len(strict.val) + len(strict.test) < len(records)


def test_paper_removes_images_alone_and_says_how_many_patients_it_shares():
    records = exclusive(300)
    paper = split_records(reading(records), DataConfig(split="5x200-paper"))
    assert len(paper.train) + len(paper.val) == 500
    parts = {"train": paper.train, "val": paper.val, "test": paper.test}
    assert paper.shared_patients == len(shared_patients(parts)) > 0
    assert not shared_patients({"train": paper.train, "val": paper.val})


def test_every_recipe_of_the_settings_exists():
    assert {DataConfig(split=name).split for name in SPLITS} == set(SPLITS)


def test_a_patient_in_two_splits_is_refused_with_a_count_and_three_examples():
    shared = shared_patients({"train": people([1] * 5), "test": people([1] * 4)})
    with pytest.raises(DataError, match=r"4 patients stand in two splits of the recipe 'mine', such as p0, p1, p2; "):
        refuse_shared(shared, "mine")


def test_a_recipe_that_breaks_its_promise_is_stopped(monkeypatch):
    monkeypatch.setitem(SPLITS, "patients", SPLITS["5x200-images"])
    with pytest.raises(DataError, match=r"patients stand in two splits"):
        split_records(reading(exclusive(300)), DataConfig())
