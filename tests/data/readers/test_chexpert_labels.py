"""Labels of other programs, matched by path: whatever the order, the prefix and the number of their rows."""

import hashlib

import pytest
from tests.fakes.chexpert import (
    FINDINGS,
    SMALL,
    chexpert_row,
    odd_rows,
    write_csv,
    write_fake_chexpert,
    write_full_chexpert,
    write_labels_of,
)

from cleft.config import DataConfig
from cleft.data.readers.chexpert import read_chexpert
from cleft.errors import ConfigError, DataError

IMAGES = [row["Path"].partition("train/")[2] for row in odd_rows()]
OTHERS = {image: {FINDINGS[number]: "1.0", "Fracture": "-1.0"} for number, image in enumerate(IMAGES)}
"""One finding of its own for each image, so that a row in the wrong place cannot hide."""


def read(root, **settings):
    return read_chexpert(DataConfig(root=root, **settings))


def labels_of(reading):
    return {record.id.removeprefix("train/"): record.labels for record in reading.records}


def wanted(kept):
    return {
        image: {name: float(code) for name, code in OTHERS[image].items()}
        for image in (record.id.removeprefix("train/") for record in kept.records)
    }


def test_labels_go_to_the_image_they_name_and_not_to_the_row_they_stand_in(tmp_path):
    root = write_fake_chexpert(tmp_path)
    table = write_labels_of(root / SMALL, "train_cheXbert.csv", odd_rows(), OTHERS)
    plain = read(root)
    reading = read(root, labels="chexbert")
    assert labels_of(reading) == wanted(plain)
    assert [(r.id, r.view, r.sex, r.age, r.patient) for r in reading.records] == [
        (r.id, r.view, r.sex, r.age, r.patient) for r in plain.records
    ]
    assert reading.sources == {
        **plain.sources,
        "train_cheXbert.csv": hashlib.sha256(table.read_bytes()).hexdigest(),
    }
    assert any(note.startswith("labels are those of train_cheXbert.csv, matched by path") for note in reading.notes)


@pytest.mark.parametrize("place", ["CheXpert-v1.0 batch 1 (validate & csv)", ""])
def test_the_full_release_has_them_in_its_first_batch_or_beside_the_batches(tmp_path, place):
    root = write_full_chexpert(tmp_path)
    write_labels_of(root / place, "train_visualCheXbert.csv", odd_rows(), OTHERS, rest="0.0")
    reading = read(root, labels="visualchexbert")
    assert list(reading.sources) == ["train.csv", "train_visualCheXbert.csv"]
    assert reading.records[0].labels == {**dict.fromkeys(FINDINGS, 0.0), "No Finding": 1.0, "Fracture": -1.0}


def test_an_image_without_a_row_of_labels_is_left_out_and_counted(tmp_path):
    root = write_fake_chexpert(tmp_path)
    some = {image: labels for image, labels in OTHERS.items() if image != IMAGES[2]}
    write_labels_of(root / SMALL, "train_cheXbert.csv", odd_rows(), some)
    reading = read(root, labels="chexbert")
    assert IMAGES[2] not in labels_of(reading)
    assert labels_of(reading) == wanted(reading)
    assert reading.rejected["no-label"] == [f"train/{IMAGES[2]}"]
    assert any(note.startswith("1 image of the image list is not in train_cheXbert.csv") for note in reading.notes)


def test_a_row_of_labels_without_an_image_is_counted(tmp_path):
    rows = odd_rows()
    root = write_fake_chexpert(tmp_path, rows[1:])
    write_labels_of(root / SMALL, "train_cheXbert.csv", rows, OTHERS)
    reading = read(root, labels="chexbert")
    assert labels_of(reading) == wanted(reading)
    assert "1 image of train_cheXbert.csv is not in the image list and is not used" in reading.notes
    assert "no-label" not in reading.rejected


def test_tables_that_share_no_image_are_refused(tmp_path):
    root = write_fake_chexpert(tmp_path)
    row = chexpert_row("patient09999/study1/view1_frontal.jpg")
    write_csv(root / SMALL / "train_cheXbert.csv", [row])
    with pytest.raises(
        DataError, match=r"train_cheXbert\.csv: none of its images is in the image list; .*data\.labels"
    ):
        read(root, labels="chexbert")


def test_rows_of_one_image_must_agree(tmp_path):
    root = write_fake_chexpert(tmp_path)
    rows = odd_rows()
    write_csv(root / SMALL / "train_cheXbert.csv", [*rows, rows[0]])
    assert len(read(root, labels="chexbert").records) == 6
    write_csv(root / SMALL / "train_cheXbert.csv", [*rows, {**rows[0], "Edema": "1"}])
    with pytest.raises(DataError, match=r"train_cheXbert\.csv lines 2, 10: two rows of the same image disagree"):
        read(root, labels="chexbert")


def test_what_is_wrong_with_the_labels_is_told_with_their_table_and_line(tmp_path):
    root = write_fake_chexpert(tmp_path)
    rows = odd_rows()
    rows[3]["Edema"] = "maybe"
    write_csv(root / SMALL / "train_cheXbert.csv", rows)
    with pytest.raises(DataError, match=r"train_cheXbert\.csv line 5: column 'Edema' holds"):
        read(root, labels="chexbert")


def test_the_image_list_needs_no_findings_of_its_own_then(tmp_path):
    root = write_fake_chexpert(tmp_path)
    rows = odd_rows()
    write_labels_of(root / SMALL, "train_cheXbert.csv", rows, OTHERS)
    write_csv(root / SMALL / "train.csv", [{name: row[name] for name in ("Path", "Sex", "AP/PA")} for row in rows])
    reading = read(root, labels="chexbert")
    assert labels_of(reading) == wanted(reading)


def test_binary_labels_that_are_not_binary_are_told(tmp_path):
    root = write_fake_chexpert(tmp_path)
    write_labels_of(root / SMALL, "train_visualCheXbert.csv", odd_rows(), OTHERS, rest="0.0")
    assert any(
        "8 rows of train_visualCheXbert.csv hold -1" in note for note in read(root, labels="visualchexbert").notes
    )
    binary = {image: {"Edema": "1.0"} for image in IMAGES}
    write_labels_of(root / SMALL, "train_visualCheXbert.csv", odd_rows(), binary, rest="0.0")
    assert not any("hold -1" in note for note in read(root, labels="visualchexbert").notes)


def test_a_table_of_labels_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no train_cheXbert\.csv in .*; or set data\.labels=table"):
        read(write_fake_chexpert(tmp_path), labels="chexbert")


def test_labels_of_chexpert_are_for_chexpert():
    with pytest.raises(ConfigError, match=r"data\.labels=chexbert is for data\.dataset=chexpert, not manifest"):
        DataConfig(dataset="manifest", labels="chexbert")
