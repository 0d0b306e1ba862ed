import shutil
import time
from collections import Counter

import pytest
from tests.fakes.nih import LINES, write_fake_nih

from cleft.config import DataConfig
from cleft.data import read_dataset
from cleft.data.nih import scan_nih
from cleft.data.splits import split_records
from cleft.errors import DataError


def config(root, **settings):
    return DataConfig(dataset="nih", root=root, **settings)


def reasons(root):
    return [fault.reason for fault in scan_nih(config(root)).faults]


def test_a_record_says_what_the_table_does(tmp_path):
    record = read_dataset(config(write_fake_nih(tmp_path))).records[1]
    assert (record.id, record.patient, record.view, record.sex, record.age) == (
        "00000001_001.png",
        "1",
        "PA",
        "Male",
        58,
    )
    assert {name for name, value in record.labels.items() if value == 1} == {"Cardiomegaly", "Emphysema"}
    assert sum(record.labels.values()) == 2
    assert record.caption == "this is a chest x ray of a patient with cardiomegaly emphysema"
    assert record.image.parts[-3:] == ("images_002", "images", "00000001_001.png")


def test_patients_are_people_of_nih(tmp_path):
    reading = read_dataset(config(write_fake_nih(tmp_path)))
    assert reading.people == "nih"
    assert [record.patient for record in reading.records] == ["1", "1", "2", "13"]


def test_the_official_lists_make_the_split(tmp_path):
    reading = read_dataset(config(write_fake_nih(tmp_path), val_fraction=0.3))
    splits = split_records(reading, config(tmp_path, val_fraction=0.3))
    assert splits.recipe == "given"
    assert [record.id for record in splits.test] == ["00000013_000.png"]
    assert len(splits.train) + len(splits.val) == 3
    assert not {record.patient for record in splits.train} & {record.patient for record in splits.val}


def test_without_the_lists_the_split_asks_for_them(tmp_path):
    reading = read_dataset(config(write_fake_nih(tmp_path, lists=False)))
    assert any("the official split is not known" in note for note in reading.notes)
    with pytest.raises(DataError, match="official lists"):
        split_records(reading, config(tmp_path))


def test_half_of_the_lists_is_refused(tmp_path):
    (write_fake_nih(tmp_path) / "test_list.txt").unlink()
    with pytest.raises(DataError, match=r"copy test_list\.txt"):
        read_dataset(config(tmp_path))


def test_an_image_in_both_lists_is_refused(tmp_path):
    (write_fake_nih(tmp_path) / "test_list.txt").write_text("00000001_000.png\n")
    with pytest.raises(DataError, match="stands in both"):
        read_dataset(config(tmp_path))


def test_impossible_ages_are_unknown_and_counted(tmp_path):
    reading = read_dataset(config(write_fake_nih(tmp_path)))
    assert reading.records[-1].age is None
    assert any("1 rows with an age outside" in note for note in reading.notes)


def test_ages_of_the_first_release_carry_their_unit(tmp_path):
    lines = [LINES[0].replace(",57,", ",058Y,"), LINES[2].replace(",80,", ",006M,")]
    reading = read_dataset(config(write_fake_nih(tmp_path, lines, name="2017")))
    assert [record.age for record in reading.records] == [58, 0.5]


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("Cardiomegaly|Emphysema", "Cardiomegaly|Infiltrate", "label"),
        ("00000001_001.png", "../00000001_001.png", "path"),
        ("1,1,58", "1,,58", "patient"),
    ],
)
def test_a_cell_that_is_not_as_published_is_a_fault_with_its_line(tmp_path, old, new, reason):
    lines = [line.replace(old, new) for line in LINES]
    scan = scan_nih(config(write_fake_nih(tmp_path, lines, lists=False)))
    assert (scan.faults[0].reason, list(scan.faults[0].lines)) == (reason, [3])


def test_a_torn_header_is_named(tmp_path):
    root = write_fake_nih(tmp_path)
    table = root / "Data_Entry_2017_v2020.csv"
    table.write_text(table.read_text().replace("Finding Labels", "Labels"))
    with pytest.raises(DataError, match="no column 'Finding Labels'"):
        scan_nih(config(root))


def test_images_that_are_not_there_are_counted(tmp_path):
    root = write_fake_nih(tmp_path)
    (root / "images_001" / "images" / "00000001_000.png").unlink()
    assert reasons(root) == ["missing"]
    assert len(read_dataset(config(root, max_bad=0.5)).records) == 3


def test_the_real_table_is_read_whole_in_seconds(shared, tmp_path):
    shutil.copy(shared / "data/tables/nih_Data_Entry_2017_v2020.csv.gz", tmp_path / "Data_Entry_2017_v2020.csv.gz")
    start = time.perf_counter()
    reading = scan_nih(config(tmp_path), check_files=False).reading
    assert time.perf_counter() - start < 30
    counts = Counter(name for record in reading.records for name, value in record.labels.items() if value == 1)
    assert (len(reading.records), len({record.patient for record in reading.records})) == (112_120, 30_805)
    assert counts == {
        "No Finding": 60_361,
        "Infiltration": 19_894,
        "Effusion": 13_317,
        "Atelectasis": 11_559,
        "Nodule": 6_331,
        "Mass": 5_782,
        "Pneumothorax": 5_302,
        "Consolidation": 4_667,
        "Pleural Thickening": 3_385,
        "Cardiomegaly": 2_776,
        "Emphysema": 2_516,
        "Edema": 2_303,
        "Fibrosis": 1_686,
        "Pneumonia": 1_431,
        "Hernia": 227,
    }
    assert Counter(record.view for record in reading.records) == {"PA": 67_310, "AP": 44_810}
    assert Counter(record.sex for record in reading.records) == {"Male": 63_340, "Female": 48_780}
