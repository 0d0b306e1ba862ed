from dataclasses import replace

import pytest
from tests.fakes.nih import HEADER, nih_row, odd_rows, write_fake_nih

from cleft.config import DataConfig
from cleft.data import read_dataset
from cleft.data.images.decode import read_gray
from cleft.data.readers.nih import FINDINGS, read_nih
from cleft.data.splits.recipes import split_records
from cleft.errors import DataError

IMAGES = [row.partition(",")[0] for row in odd_rows()]


def config(root, **changes):
    return DataConfig(dataset="nih", root=root, **changes)


def present(record):
    return [name for name, value in record.labels.items() if value == 1]


def test_rows_become_records_with_every_finding_present_or_absent(tmp_path):
    reading = read_nih(config(write_fake_nih(tmp_path))).checked()
    assert [record.id for record in reading.records] == IMAGES
    assert [present(record) for record in reading.records] == [
        ["Cardiomegaly"],
        ["Cardiomegaly", "Effusion"],
        ["No Finding"],
        ["Pneumonia", "Pleural Thickening"],
        ["Hernia"],
    ]
    fourth = reading.records[3]
    assert fourth.labels["Edema"] == 0
    assert (fourth.patient, fourth.study, fourth.view, fourth.sex, fourth.age) == ("13", "13/4", "PA", "Female", 0)
    assert reading.findings == (*FINDINGS, "No Finding")
    assert reading.patient_dataset == "nih"
    assert reading.notes[:2] == (
        "Data_Entry_2017_v2020.csv holds 5 images of 3 patients (published: 112,120 images of 30,805 patients)",
        "edition of the labels: v2020",
    )


def test_images_may_be_in_twelve_folders(tmp_path):
    whole = read_nih(config(write_fake_nih(tmp_path / "a"))).checked()
    apart = read_nih(config(write_fake_nih(tmp_path / "b", batches=True))).checked()
    assert {record.image.parent.parent.name for record in apart.records} == {f"images_00{n}" for n in range(1, 6)}
    for one, other in zip(whole.records, apart.records, strict=True):
        assert (read_gray(one.image) == read_gray(other.image)).all()


def test_the_root_may_be_the_parent(tmp_path):
    write_fake_nih(tmp_path / "CXR8", batches=True)
    assert len(read_nih(config(tmp_path)).checked().records) == 5


def test_the_first_edition_is_read_and_named(tmp_path):
    rows = [f"{row}," for row in (nih_row(1, 0, age="058Y"), nih_row(2, 0, age="018M"), nih_row(3, 0, age="414Y"))]
    root = write_fake_nih(tmp_path, rows, header=f"{HEADER},", table="Data_Entry_2017.csv")
    reading = read_nih(config(root)).checked()
    assert [record.age for record in reading.records] == [58, 1.5, None]
    assert "edition of the labels: 2017 (ages with a unit)" in reading.notes
    assert "1 row with an age outside 0 to 120 counts as unknown" in reading.notes


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([nih_row(1, 0, "Pneumona")], r"line 2: column 'Finding Labels' names 'Pneumona', nearest to .* 'Pneumonia'"),
        ([nih_row(1, 0, "No Finding|Mass")], "line 2: 'No Finding' is combined with a finding"),
        ([nih_row(1, 0, "")], "line 2: column 'Finding Labels' names ''"),
        ([nih_row(1, 0).replace("00000001_000", "1")], "line 2: column 'Image Index' holds no file name"),
        ([nih_row(1, 0).replace(",1,58", ",one,58")], "line 2: column 'Patient ID' holds no number"),
        ([nih_row(1, 0).replace(",1,58", ",2,58")], "line 2: 'Image Index' and 'Patient ID' name two patients"),
        ([nih_row(1, 0), nih_row(1, 0, "Mass")], "lines 2, 3: two rows of the same image disagree"),
        ([nih_row(1, 0).replace(",2682,2749", ',"2682,2749"')], "line 2: 10 cells where the header has 11"),
    ],
)
def test_faulty_rows_are_refused_with_their_lines(tmp_path, rows, message):
    root = write_fake_nih(tmp_path, [*rows, nih_row(9, 0)])
    with pytest.raises(DataError, match=message):
        read_nih(config(root)).checked()


def test_equal_rows_of_an_image_are_merged_and_counted(tmp_path):
    reading = read_nih(config(write_fake_nih(tmp_path, [*odd_rows(), nih_row(2, 0)]))).checked()
    assert len(reading.records) == 5
    assert reading.rejected == {"duplicate": ["line 7"]}


def test_another_header_is_refused(tmp_path):
    root = write_fake_nih(tmp_path, header=HEADER.replace("Finding Labels", "Labels"))
    with pytest.raises(DataError, match="no column 'Finding Labels'"):
        read_nih(config(root)).checked()


def test_missing_images_are_counted_and_too_many_are_an_error(tmp_path):
    root = write_fake_nih(tmp_path, missing=[IMAGES[1]])
    assert read_nih(config(root, max_invalid=0.5)).checked().rejected == {"missing": [IMAGES[1]]}
    with pytest.raises(DataError, match="1 of 5 images is not on disk"):
        read_nih(config(root)).checked()


def test_without_any_image_the_error_names_the_folders(tmp_path):
    root = write_fake_nih(tmp_path, missing=IMAGES)
    with pytest.raises(DataError, match=r"none of 5 images is on disk; looked in .*/images"):
        read_nih(config(root)).checked()
    assert len(read_nih(config(root), check_files=False).checked().records) == 5


def test_the_default_split_follows_the_official_lists(tmp_path):
    root = write_fake_nih(tmp_path, lists=([*IMAGES[:2], IMAGES[2]], IMAGES[3:]))
    reading = read_dataset(config(root))
    assert "official lists: train 3 images (published: 86,524), test 2 images (published: 25,596)" in reading.notes
    assert {"train_val_list.txt", "test_list.txt"} <= set(reading.sources)
    splits = split_records(reading, config(root, val_fraction=0.3))
    assert splits.recipe == "given"
    assert [[record.id for record in part] for part in splits[:3]] == [IMAGES[:2], [IMAGES[2]], IMAGES[3:]]


def test_without_lists_the_note_names_the_alternative(tmp_path):
    root = write_fake_nih(tmp_path)
    reading = read_nih(config(root)).checked()
    assert any(note.startswith("no train_val_list.txt and no test_list.txt") for note in reading.notes)
    assert {record.split for record in reading.records} == {None}
    with pytest.raises(DataError, match=r"set data\.split=patients"):
        split_records(reading, config(root))
    assert split_records(reading, config(root, split="patients")).recipe == "patients"


def test_one_list_without_the_other_is_refused(tmp_path):
    root = write_fake_nih(tmp_path, lists=(IMAGES, ()))
    (root / "test_list.txt").unlink()
    with pytest.raises(DataError, match=r"no test_list\.txt; copy it next to the other"):
        read_nih(config(root)).checked()


def test_images_outside_the_lists_or_in_both_are_noted(tmp_path):
    root = write_fake_nih(tmp_path, lists=([*IMAGES[:2], "00009999_000.png"], IMAGES[3:]))
    notes = read_nih(config(root)).checked().notes
    assert "1 image of the official lists is not in the table" in notes
    assert "1 image is in neither official list; data.split=given leaves it out" in notes
    write_fake_nih(tmp_path, lists=(IMAGES[:4], IMAGES[3:]))
    with pytest.raises(DataError, match=f"1 image is in both official lists, such as {IMAGES[3]}"):
        read_nih(config(root)).checked()


def test_all_faults_are_collected(tmp_path):
    rows = [nih_row(1, 0, "Pneumona"), nih_row(2, 0).replace(",2,58", ",3,58"), nih_row(4, 0, "Mass")]
    scan = read_nih(config(write_fake_nih(tmp_path, rows)))
    assert [fault.reason for fault in scan.faults] == ["patient", "label"]


def test_the_real_table_has_the_published_counts_and_is_read_in_seconds(shared):
    real = config(shared / "data/tables", table="nih_Data_Entry_2017_v2020.csv.gz", split="patients")
    reading = read_nih(real, check_files=False).checked()
    assert len(reading.records) == 112_120
    assert len({record.patient for record in reading.records}) == 30_805
    counts = {name: sum(record.labels[name] == 1 for record in reading.records) for name in reading.findings}
    assert counts == {
        "Atelectasis": 11_559,
        "Cardiomegaly": 2_776,
        "Consolidation": 4_667,
        "Edema": 2_303,
        "Effusion": 13_317,
        "Emphysema": 2_516,
        "Fibrosis": 1_686,
        "Hernia": 227,
        "Infiltration": 19_894,
        "Mass": 5_782,
        "Nodule": 6_331,
        "Pleural Thickening": 3_385,
        "Pneumonia": 1_431,
        "Pneumothorax": 5_302,
        "No Finding": 60_361,
    }
    assert [sum(r.view == view for r in reading.records) for view in ("PA", "AP")] == [67_310, 44_810]
    assert [sum(r.sex == sex for r in reading.records) for sex in ("Male", "Female")] == [63_340, 48_780]
    assert reading.notes[1] == "edition of the labels: v2020"
    assert reading.rejected == {}
    splits = split_records(reading, replace(real, test_fraction=0.2, val_fraction=0.05))
    assert [len(part) for part in splits[:3]] == [85_211, 4_485, 22_424]
    assert splits.shared_patients == 0
