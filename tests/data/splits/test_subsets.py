"""Subsets: nested fractions by patient and class, and equal numbers per class."""

import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cleft.data.splits.subsets import (
    Leakage,
    class_sizes,
    draw_per_class,
    ids_digest,
    leakage_notes,
    measure_leakage,
    take_fraction,
)
from cleft.errors import ConfigError, DataError
from cleft.types import Record, Splits

CLASSES = ("Edema", "Fracture")


def record(name, patient, *present):
    return Record(
        id=name,
        image=Path(name),
        labels={**dict.fromkeys(CLASSES, 0.0), **dict.fromkeys(present, 1.0)},
        patient=patient,
    )


def people(sizes, each=lambda patient: CLASSES[patient % 2 :][:1]):
    """Patients p0, p1, … with the given numbers of images."""
    return [record(f"p{p}-{i}", f"p{p}", *each(p)) for p, size in enumerate(sizes) for i in range(size)]


def ids(records):
    return {record.id for record in records}


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 6), min_size=60, max_size=120), st.integers(0, 9))
def test_fractions_are_nested_and_patients_are_not_split(sizes, seed):
    records = people(sizes)
    nested = [take_fraction(records, fraction, CLASSES, seed=seed) for fraction in (0.2, 0.3, 0.35, 0.9, 1.0)]
    assert all(ids(small) <= ids(large) for small, large in pairwise(nested))
    assert nested[-1] == records
    images = Counter(record.patient for record in records)
    for taken in nested:
        assert all(images[patient] == count for patient, count in Counter(r.patient for r in taken).items())


def test_a_fraction_does_not_depend_on_the_order_of_the_records_but_keeps_it():
    records = people([3] * 100)
    plain = take_fraction(records, 0.1, CLASSES)
    assert [r.id for r in plain] == [r.id for r in records if r.id in ids(plain)]
    random.Random(1).shuffle(records)
    assert ids(take_fraction(records, 0.1, CLASSES)) == ids(plain)


def test_every_class_gives_its_share_to_within_a_patient():
    rare = people([2] * 500, lambda patient: ("Fracture",) if patient % 50 == 0 else ("Edema",) if patient % 2 else ())
    for seed in range(5):
        taken = take_fraction(rare, 0.1, CLASSES, seed=seed)
        shown = Counter(name for r in taken for name in CLASSES if r.labels[name] == 1)
        assert (len(taken), shown["Fracture"], shown["Edema"]) == (100, 2, 50)


def test_a_patient_belongs_to_the_rarest_class_of_any_image():
    both = [record("a", "p", "Edema"), record("b", "p", "Fracture"), *people([1] * 40, lambda _: ("Edema",))]
    # The only patient with a fracture is at the middle of that class, whatever the other class.
    assert {"a", "b"} <= ids(take_fraction(both, 0.51, CLASSES))
    with pytest.raises(DataError, match=r"leaves none for Fracture \(1 image in all\)"):
        take_fraction(both, 0.5, CLASSES)


def test_another_seed_selects_other_patients():
    records = people([1] * 200)
    assert len({frozenset(ids(take_fraction(records, 0.1, CLASSES, seed=seed))) for seed in range(4)}) == 4


def test_a_class_that_is_left_empty_is_named_with_its_size():
    records = people([1] * 300, lambda patient: ("Fracture",) if patient < 3 else ("Edema",))
    with pytest.raises(
        DataError, match=r"^0\.01 of 300 training images leaves none for Fracture \(3 images in all\); "
    ):
        take_fraction(records, 0.01, CLASSES)
    assert len(take_fraction(records, 0.01, ("Edema",))) == 3


@pytest.mark.parametrize("fraction", [0, -0.1, 1.01])
def test_a_fraction_outside_its_range_is_refused(fraction):
    with pytest.raises(ConfigError, match=r"must be above 0 and at most 1"):
        take_fraction(people([1] * 9), fraction, CLASSES)


def test_the_digest_of_a_fraction_is_known():
    assert ids_digest(r.id for r in take_fraction(people([1, 2, 3] * 50), 0.1, CLASSES)) == "01ea0db0931cbabf"


def of_class(number, patient, name, other=None):
    labels = {"A": 0.0, "B": 0.0, name: 1.0} if name else {}
    if other:
        labels[other] = 1.0
    return Record(id=f"{number}.png", image=Path("x.png"), labels=labels, patient=patient)


def many(images=60, patients=20):
    return [of_class(i, f"p{i % patients}", "A" if i % 3 else "B") for i in range(images)]


def classes_of(records):
    return Counter(name for of_class in records for name, value in of_class.labels.items() if value == 1)


def test_every_class_has_as_many_images_in_the_order_given():
    drawn = draw_per_class(many(), ["A", "B"], 10)
    assert classes_of(drawn) == {"A": 10, "B": 10}
    assert [int(of_class.id[:-4]) for of_class in drawn] == sorted(int(of_class.id[:-4]) for of_class in drawn)


def test_no_patient_exceeds_the_maximum_per_class():
    records = [of_class(i, "busy", "A") for i in range(30)] + [of_class(100 + i, f"p{i}", "A") for i in range(10)]
    drawn = draw_per_class(records, ["A"], 12, per_patient=2)
    assert Counter(of_class.patient for of_class in drawn)["busy"] == 2


def test_the_draw_does_not_depend_on_row_order():
    drawn = {of_class.id for of_class in draw_per_class(many(), ["A", "B"], 10)}
    assert {of_class.id for of_class in draw_per_class(many()[::-1], ["B", "A"], 10)} == drawn
    assert ids_digest(drawn) == "7872e1ed57da2f00"  # pragma: allowlist secret


def test_another_class_does_not_change_the_draw_of_the_others():
    alone = {of_class.id for of_class in draw_per_class(many(), ["A"], 10)}
    assert alone < {of_class.id for of_class in draw_per_class(many(), ["A", "B"], 10)}


def test_smaller_draws_are_part_of_larger_ones():
    smaller, larger = ({of_class.id for of_class in draw_per_class(many(), ["A", "B"], n)} for n in (5, 10))
    assert smaller < larger


def test_an_image_of_no_class_or_of_two_is_not_drawn():
    records = [*many(), of_class(100, "q", None), of_class(101, "q", "A", "B")]
    assert {"100.png", "101.png"}.isdisjoint(of_class.id for of_class in draw_per_class(records, ["A", "B"], 20))


def test_too_few_images_are_refused_with_counts_and_a_remedy():
    with pytest.raises(DataError, match=r"B 20 \(of 20 images of 20 patients\); set --per-class 20, allow more"):
        draw_per_class(many(), ["A", "B"], 25)


def test_the_remedy_names_the_size_of_the_rarest_class():
    records = [*many(), *(of_class(200 + i, f"r{i}", "C") for i in range(3))]
    with pytest.raises(DataError, match=r"B 20 .*C 3 .*; set --per-class 3, allow more"):
        draw_per_class(records, ["B", "C"], 25)


def test_too_few_patients_are_refused_too():
    records = [of_class(i, f"p{i % 2}", "A") for i in range(30)]
    with pytest.raises(
        DataError, match=r"at most 4 per patient, are not available: A 8 \(of 30 images of 2 patients\)"
    ):
        draw_per_class(records, ["A"], 10)
    assert len(draw_per_class(records, ["A"], 10, per_patient=5)) == 10


def test_a_class_without_an_image_is_named():
    with pytest.raises(DataError, match=r"C 0 \(of 0 images of 0 patients\); take other images"):
        draw_per_class(many(), ["A", "C"], 5)


def test_patients_are_counted_by_class():
    records = [of_class(1, "p", "A"), of_class(2, "p", "A"), of_class(3, "q", "B"), of_class(4, "q", None)]
    assert class_sizes(records, ["A", "B"]) == {"A": (2, 1), "B": (1, 1)}


def image(name, patient, study=None):
    return Record(id=name, image=Path(name), labels={}, patient=patient, study=study)


def parts(train, val, test, shared):
    return Splits(train, val, test, recipe="mine", digest="", shared_patients=shared)


LEAKY = parts(
    [image("a", "p", "p/1"), image("b", "p", "p/2"), image("c", "q", "q/1"), image("d", "r", "r/1")],
    [image("e", "r", "r/1"), image("f", "s", "s/1")],
    [image("g", "p", "p/1"), image("h", "s", "s/2"), image("i", "t", "t/1"), image("j", "p", "p/3")],
    3,
)


def test_every_pair_of_parts_is_counted_by_patients_images_and_studies():
    assert measure_leakage(LEAKY) == [
        Leakage("test", "train", patients=1, of_patients=3, images=2, same_study=1),
        Leakage("test", "val", patients=1, of_patients=3, images=1, same_study=0),
        Leakage("val", "train", patients=1, of_patients=2, images=1, same_study=1),
    ]


def test_leakage_notes_are_limited_to_one_part():
    assert leakage_notes(LEAKY, "test") == [
        "Beware: 1 of 3 test patients is also in train, with 2 other images, 1 of them from a study that is also in "
        "test (split mine); metrics on test are too optimistic.",
        "Beware: 1 of 3 test patients is also in val, with 1 other image (split mine); metrics on test are "
        "too optimistic.",
    ]
    assert len(leakage_notes(LEAKY)) == 3


def test_studies_of_different_patients_are_different_whatever_their_name():
    crossed = parts([image("a", "p", "1"), image("b", "q", "2")], [], [image("c", "p", "2")], 1)
    assert [leak.same_study for leak in measure_leakage(crossed)] == [0]


def test_records_without_a_study_share_none():
    nameless = parts([image("a", "p")], [], [image("b", "p")], 1)
    assert [(leak.images, leak.same_study) for leak in measure_leakage(nameless)] == [(1, 0)]


def test_without_shared_patients_there_are_no_notes():
    apart = parts([image("a", "p")], [image("b", "q")], [image("c", "r")], 0)
    assert measure_leakage(apart) == []
    assert leakage_notes(apart) == []
