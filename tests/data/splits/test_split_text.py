"""What a terminal shows of a split."""

from pathlib import Path

from cleft.config import DataConfig
from cleft.data.splits.text import label_source, split_lines
from cleft.types import Reading, Record, Splits


def record(number, **labels):
    return Record(id=f"i{number}", image=Path("x"), labels=labels, patient=f"p{number}", study=f"s{number}")


TRAIN = [record(i, Edema=float(i % 2)) for i in range(10)]
VAL = [record(i, Edema=1.0) for i in range(10, 15)]
TEST = [record(i, Edema=1.0) for i in range(15, 18)]
READING = Reading(
    dataset="chexpert",
    records=[*TRAIN, *VAL, *TEST, record(99)],
    findings=("Edema",),
    sources={"train.csv": "ab" * 32, "train_cheXbert.csv": "cd" * 32},
)


def splits(**changes):
    whole = {"train": TRAIN, "val": VAL, "test": TEST, "recipe": "patients", "digest": "d1", "shared_patients": 0}
    return Splits(**{**whole, **changes})


def test_a_split_is_told_with_its_salts_sources_sizes_and_shares_side_by_side():
    assert split_lines(splits(), READING, DataConfig(labels="chexbert")) == [
        "split patients (digest d1); salts: test cleft-test-v1, val cleft-val-v1",
        "labels: train_cheXbert.csv",
        f"SHA-256 of train.csv: {'ab' * 32}",
        f"SHA-256 of train_cheXbert.csv: {'cd' * 32}",
        "",
        "             train       val      test",
        "images          10         5         3",
        "patients        10         5         3",
        "Edema       50.0 %   100.0 %         –",
        "1 image is in no part",
    ]


def test_notes_and_leaks_stand_above_the_table():
    lines = split_lines(
        splits(test=TRAIN[:6], notes=("a note",), shared_patients=6), READING, DataConfig(split_file=Path("split.json"))
    )
    assert lines[0] == "split patients (digest d1)"
    assert lines[4:6] == [
        "a note",
        "Beware: all 6 test patients are also in train, with 6 other images, 6 of them from a study that test shows "
        "too (split patients); numbers on test are too good.",
    ]


def test_labels_are_those_of_the_table_unless_another_is_named():
    assert label_source(READING, DataConfig()) == "train.csv"
    assert label_source(READING, DataConfig(labels="visualchexbert")) == "train_visualCheXbert.csv"
