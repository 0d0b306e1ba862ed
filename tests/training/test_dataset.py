"""Every image that a classifier learns from has a right answer; the others are counted."""

import pytest
import torch

from cleft.config import ClassifyConfig
from cleft.errors import ConfigError, DataError
from cleft.training.dataset import check_examples, select_examples
from cleft.types import Record

CLASSES = ("Edema", "Fracture")
ONE, EACH = ClassifyConfig(), ClassifyConfig(scoring="present-absent")


def record(number, **labels):
    known = {name: float(value) for name, value in labels.items()}
    return Record(id=f"r{number}", image=f"{number}.png", labels=known, patient=f"p{number // 2}")


RECORDS = [
    record(0, Edema=1, Fracture=0),
    record(1, Edema=1, Fracture=1),
    record(2, Edema=0, Fracture=0),
    record(3, Fracture=1),
    record(4, Edema=-1),
    record(5),
]


def test_an_all_zero_row_is_no_example_of_the_first_class():
    chosen = select_examples(RECORDS, CLASSES, ONE)
    assert [record.id for record in chosen.records] == ["r0", "r3"]
    assert chosen.targets.tolist() == [0, 1]
    assert chosen.description == "2 of 6 images (3 show none of the classes, 1 several)"
    assert chosen.patients() == 2


def test_findings_take_every_image_of_which_something_is_known():
    chosen = select_examples(RECORDS, CLASSES, EACH)
    assert [record.id for record in chosen.records] == ["r0", "r1", "r2", "r3"]
    assert chosen.targets[:3].tolist() == [[1, 0], [1, 1], [0, 0]]
    assert chosen.targets[3].isnan().tolist() == [True, False]
    assert chosen.description == "4 of 6 images (2 without a known label)"


def test_blank_and_uncertain_labels_may_count_as_absent():
    chosen = select_examples(RECORDS, CLASSES, ClassifyConfig(scoring="present-absent", blank="absent"))
    assert len(chosen.records) == 6
    assert not chosen.targets.isnan().any()
    assert chosen.targets[4].tolist() == [0, 0]


def test_no_image_is_no_example():
    assert select_examples([], CLASSES, ONE).targets.shape == (0,)
    assert select_examples([], CLASSES, EACH).targets.shape == (0, 2)


@pytest.mark.parametrize("records", [RECORDS[:1], RECORDS[:3], []])
def test_a_class_without_an_image_is_named(records):
    with pytest.raises(DataError, match=r"no training image shows (Edema or )?Fracture alone of the classes") as e:
        check_examples(select_examples(records, CLASSES, ONE), CLASSES, ONE)
    assert e.value.reason == "empty-class"


def test_a_single_class_is_refused():
    with pytest.raises(ConfigError, match=r"multi-class scoring needs two classes or more"):
        check_examples(select_examples(RECORDS, ["Edema"], ONE), ["Edema"], ONE)


def test_a_finding_that_is_never_denied_is_named_with_what_to_do():
    chosen = select_examples(RECORDS[1:2] + RECORDS[3:4], CLASSES, EACH)
    with pytest.raises(DataError, match=r"labelled to lack Edema or Fracture; .*--blank absent"):
        check_examples(chosen, CLASSES, EACH)
    with pytest.raises(DataError, match=r"labelled to show Edema or Fracture; .*--blank absent"):
        check_examples(select_examples(RECORDS[2:3], CLASSES, EACH), CLASSES, EACH)
    check_examples(select_examples(RECORDS, CLASSES, EACH), CLASSES, EACH)


def test_targets_are_of_the_types_that_losses_want():
    assert select_examples(RECORDS, CLASSES, ONE).targets.dtype == torch.int64
    assert select_examples(RECORDS, CLASSES, EACH).targets.dtype == torch.float32
