"""Patients in two parts, counted by hand."""

from pathlib import Path

from cleft.data.splits.leaks import Leak, leak_notes, measure_leaks
from cleft.types import Record, Splits


def record(name, patient, study=None):
    return Record(id=name, image=Path(name), labels={}, patient=patient, study=study)


def splits(train, val, test, shared):
    return Splits(train, val, test, recipe="mine", digest="", shared_patients=shared)


LEAKY = splits(
    [record("a", "p", "p/1"), record("b", "p", "p/2"), record("c", "q", "q/1"), record("d", "r", "r/1")],
    [record("e", "r", "r/1"), record("f", "s", "s/1")],
    [record("g", "p", "p/1"), record("h", "s", "s/2"), record("i", "t", "t/1"), record("j", "p", "p/3")],
    3,
)


def test_every_pair_of_parts_is_counted_by_patients_images_and_studies():
    assert measure_leaks(LEAKY) == [
        Leak("test", "train", patients=1, of_patients=3, images=2, same_study=1),
        Leak("test", "val", patients=1, of_patients=3, images=1, same_study=0),
        Leak("val", "train", patients=1, of_patients=2, images=1, same_study=1),
    ]


def test_notes_say_it_in_numbers_for_the_part_that_is_asked_about():
    assert leak_notes(LEAKY, "test") == [
        "Beware: 1 of 3 test patients is also in train, with 2 other images, 1 of them from a study that test shows "
        "too (split mine); numbers on test are too good.",
        "Beware: 1 of 3 test patients is also in val, with 1 other image (split mine); numbers on test are too good.",
    ]
    assert len(leak_notes(LEAKY)) == 3


def test_studies_of_different_patients_are_different_whatever_their_name():
    crossed = splits([record("a", "p", "1"), record("b", "q", "2")], [], [record("c", "p", "2")], 1)
    assert [leak.same_study for leak in measure_leaks(crossed)] == [0]


def test_a_study_nobody_named_is_no_study():
    nameless = splits([record("a", "p")], [], [record("b", "p")], 1)
    assert [(leak.images, leak.same_study) for leak in measure_leaks(nameless)] == [(1, 0)]


def test_nothing_shared_is_nothing_to_say():
    apart = splits([record("a", "p")], [record("b", "q")], [record("c", "r")], 0)
    assert measure_leaks(apart) == []
    assert leak_notes(apart) == []
