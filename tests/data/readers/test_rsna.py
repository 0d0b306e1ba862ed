import pytest
from tests.fakes.chexpert import write_csv
from tests.fakes.dicom import LEAKS
from tests.fakes.rsna import (
    BOX,
    name_of,
    odd_rows,
    rsna_row,
    write_fake_rsna,
    write_matches,
    write_official,
    write_people,
)

from cleft.config import DataConfig
from cleft.data import read_dataset
from cleft.data.readers.rsna import read_rsna
from cleft.data.splits.recipes import split_records
from cleft.errors import ConfigError, DataError

PEOPLE = {1: 13, 2: 13, 3: 7, 4: 20001}


def config(root, **changes):
    return DataConfig(dataset="rsna", root=root, cache=root / "cache", **changes)


def test_an_image_with_two_boxes_is_one_record_with_fields_of_its_header(tmp_path):
    reading = read_rsna(config(write_fake_rsna(tmp_path))).checked()
    assert [record.id for record in reading.records] == [name_of(number) for number in (1, 2, 3, 4)]
    assert [record.labels["Pneumonia"] for record in reading.records] == [1, 0, 1, 0]
    assert [record.labels["No Pneumonia"] for record in reading.records] == [0, 1, 0, 1]
    first = reading.records[0]
    assert (first.view, first.sex, first.age) == ("AP", "Female", 45)
    assert first.image.is_file()
    assert reading.findings == ("No Pneumonia", "Pneumonia")
    assert reading.notes[0].startswith("stage_2_train_labels.csv holds 4 images, 2 positive with 3 boxes")


@pytest.mark.parametrize("inner", ["", "RSNA Pneumonia"])
@pytest.mark.parametrize("end", ["", ".gz"])
def test_the_root_may_be_the_download_or_its_parent(tmp_path, inner, end):
    import gzip

    write_fake_rsna(tmp_path, inner=inner)
    table = tmp_path / inner / "stage_2_train_labels.csv"
    if end:
        table.with_name(f"{table.name}.gz").write_bytes(gzip.compress(table.read_bytes()))
        table.unlink()
    assert len(read_rsna(config(tmp_path)).checked().records) == 4


def test_detailed_classes_give_the_finding_normal(tmp_path):
    root = write_fake_rsna(tmp_path)
    classes = {1: "Lung Opacity", 2: "Normal", 3: "Lung Opacity", 4: "No Lung Opacity / Not Normal"}
    details = [{"patientId": name_of(n), "class": name} for n, name in [*classes.items(), (1, "Lung Opacity")]]
    write_csv(root / "stage_2_detailed_class_info.csv", details)
    reading = read_rsna(config(root)).checked()
    assert [record.labels["Normal"] for record in reading.records] == [0, 1, 0, 0]
    assert "stage_2_detailed_class_info.csv" in reading.sources
    write_csv(root / "stage_2_detailed_class_info.csv", details[:3])
    reading = read_rsna(config(root)).checked()
    assert "Normal" not in reading.records[3].labels
    assert "does not list 1 image;" in " ".join(reading.notes)


@pytest.mark.parametrize(
    ("number", "name", "message"),
    [(2, "Lung Opacity", "line 2: the class of an image contradicts"), (2, "normal", "line 2: 'class' is not one of")],
)
def test_detailed_classes_that_contradict_the_table_are_refused(tmp_path, number, name, message):
    root = write_fake_rsna(tmp_path)
    write_csv(root / "stage_2_detailed_class_info.csv", [{"patientId": name_of(number), "class": name}])
    with pytest.raises(DataError, match=message):
        read_rsna(config(root)).checked()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([rsna_row(1, "1"), rsna_row(1)], "lines 2, 3: rows of the same image disagree on Target"),
        ([rsna_row(1, "yes"), rsna_row(2)], "line 2: column 'Target' holds 'yes'; allowed are 1 and 0"),
        ([rsna_row(1), rsna_row(2, "-1")], "line 3: 'Target' is neither 0 nor 1"),
        ([rsna_row(1, "1", ("1", "2", "", "4"))], "line 2: a box is not four numbers"),
        ([rsna_row(1, "1", ("1", "2", "wide", "4"))], "line 2: a box is not four numbers"),
        ([rsna_row(1, "0", BOX)], "line 2: a box where Target is 0"),
        ([{**rsna_row(1), "patientId": "../1"}], "line 2: 'patientId' is not a valid file name"),
    ],
)
def test_faulty_rows_are_refused_with_their_lines(tmp_path, rows, message):
    root = write_fake_rsna(tmp_path, [*rows, rsna_row(9)])
    with pytest.raises(DataError, match=message):
        read_rsna(config(root)).checked()


def test_repeated_rows_are_counted_once(tmp_path):
    root = write_fake_rsna(tmp_path, [*odd_rows(), rsna_row(1, "1"), rsna_row(2)])
    reading = read_rsna(config(root)).checked()
    assert len(reading.records) == 4
    assert reading.rejected == {"duplicate": ["line 7", "line 8"]}
    assert "3 boxes" in reading.notes[0]


def test_a_missing_image_is_counted_and_too_many_are_an_error(tmp_path):
    root = write_fake_rsna(tmp_path, missing=[3])
    reading = read_rsna(config(root, max_invalid=0.5)).checked()
    assert reading.rejected == {"missing": [name_of(3)]}
    with pytest.raises(DataError, match=r"1 of 4 images is not on disk .*; complete the download"):
        read_rsna(config(root)).checked()


def test_without_any_image_the_error_names_the_folders(tmp_path):
    root = write_fake_rsna(tmp_path, missing=[1, 2, 3, 4])
    with pytest.raises(DataError, match=r"none of 4 images probed is on disk; .*stage_2_train_images"):
        read_rsna(config(root)).checked()
    assert len(read_rsna(config(root), check_files=False).checked().records) == 4


def test_impossible_ages_are_unknown_and_counted(tmp_path):
    headers = {1: {"PatientAge": "151"}, 3: {"PatientAge": "7"}, 4: {"PatientSex": "O", "ViewPosition": ""}}
    reading = read_rsna(config(write_fake_rsna(tmp_path, headers=headers))).checked()
    assert [record.age for record in reading.records] == [None, 45, 7, 45]
    assert (reading.records[3].sex, reading.records[3].view) == (None, None)
    assert any(note.startswith("1 image has an age outside 0 to 120") for note in reading.notes)


def test_headers_are_read_once(tmp_path, monkeypatch):
    root = write_fake_rsna(tmp_path)
    before = read_rsna(config(root)).checked()

    def fail(*_):
        raise AssertionError("a header was read again")

    monkeypatch.setattr("cleft.data.images.dicom_headers.read_header", fail)
    assert read_rsna(config(root)).checked().records == before.records
    kept = (root / "cache" / "headers-rsna.parquet").read_bytes()
    assert not any(leak.encode() in kept for leak in LEAKS)


def test_unlabelled_images_are_counted(tmp_path):
    root = write_fake_rsna(tmp_path)
    folder = root / "stage_2_test_images"
    folder.mkdir()
    for name in ("a.dcm", "b.dcm", "._a.dcm"):
        (folder / name).write_bytes(b"")
    assert (
        "2 images in stage_2_test_images are without labels and are not read" in read_rsna(config(root)).checked().notes
    )


def test_without_a_mapping_every_image_is_a_patient_and_a_caution_says_so(tmp_path):
    reading = read_rsna(config(write_fake_rsna(tmp_path))).checked()
    assert [record.patient for record in reading.records] == [record.id for record in reading.records]
    assert reading.patient_dataset == ""
    assert len(reading.cautions) == 1
    assert "leakage: unknown" in reading.cautions[0]
    assert reading.cautions[0] in reading.notes


@pytest.mark.parametrize("write", [write_people, write_official], ids=["table", "official"])
def test_a_mapping_gives_the_patients(tmp_path, write):
    root = write_fake_rsna(tmp_path / "rsna")
    path = write(tmp_path / ("map.json" if write is write_official else "map.csv"), PEOPLE)
    reading = read_rsna(config(root, patient_mapping=path)).checked()
    assert [record.patient for record in reading.records] == ["13", "13", "7", "20001"]
    assert (reading.patient_dataset, reading.cautions) == ("nih", ())
    assert f"{path.name} names 3 patients of NIH for 4 images" in reading.notes
    assert f"{path.name} (patients)" in reading.sources


def test_doubtful_matches_are_counted(tmp_path):
    root = write_fake_rsna(tmp_path)
    path = write_matches(tmp_path / "matches.csv", {n: (p, 7.5 if n == 4 else 0.9) for n, p in PEOPLE.items()})
    reading = read_rsna(config(root, patient_mapping=path)).checked()
    assert [record.patient for record in reading.records] == ["13", "13", "7", "20001"]
    assert "1 of these matches is doubtful (pixel_mse above 5)" in reading.notes


def test_a_mapping_in_the_root_is_found_and_the_official_one_preferred(tmp_path):
    root = write_fake_rsna(tmp_path, inner="RSNA Pneumonia")
    write_people(root / "RSNA Pneumonia" / "nih_patients.csv", dict.fromkeys(PEOPLE, 1))
    assert {record.patient for record in read_rsna(config(root)).checked().records} == {"1"}
    write_official(root / "pneumonia-challenge-dataset-mappings_2018.json", dict.fromkeys(PEOPLE, 2))
    assert {record.patient for record in read_rsna(config(root)).checked().records} == {"2"}


def test_images_missing_from_the_mapping_are_left_out_and_too_many_are_an_error(tmp_path):
    root = write_fake_rsna(tmp_path)
    path = write_people(tmp_path / "map.csv", {n: p for n, p in PEOPLE.items() if n != 2})
    reading = read_rsna(config(root, patient_mapping=path, max_invalid=0.25)).checked()
    assert reading.rejected == {"no-patient": [name_of(2)]}
    with pytest.raises(
        DataError, match=r"1 of 4 images is not in map\.csv \(25\.0%.*; set data.patient_mapping to a mapping of these"
    ):
        read_rsna(config(root, patient_mapping=path)).checked()


def test_a_mapping_of_other_images_is_refused(tmp_path):
    root = write_fake_rsna(tmp_path)
    path = write_people(tmp_path / "map.csv", {n + 100: p for n, p in PEOPLE.items()})
    with pytest.raises(DataError, match=r"all 4 images are not in map\.csv"):
        read_rsna(config(root, patient_mapping=path)).checked()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", r"map\.csv line 1: no columns 'patientId' and 'nih_patient'; found \['a', 'b'\]"),
        ("patientId,nih_patient\nx,1\nx,2\n", "line 3: 1 image has two patients, such as x"),
        ("patientId,nih_patient\nx,one\n", "line 2: column 'nih_patient' holds no number"),
        ("patientId,nih_image\nx,13.png\n", "line 2: '13.png' is not a file of ChestX-ray14"),
        ("patientId,nih_image,nih_patient\nx,00000013_000.png,14\n", "line 2: .* name two patients"),
    ],
)
def test_a_table_that_is_not_a_mapping_is_refused(tmp_path, text, message):
    root = write_fake_rsna(tmp_path / "rsna")
    path = tmp_path / "map.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_rsna(config(root, patient_mapping=path)).checked()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ('[{"id": 1}]', "is not a list of records with subset_img_id and img_id"),
        ('[{"subset_img_id": "x", "img_id": "y"}]', "'y' is not a file of ChestX-ray14, such as record 0"),
    ],
)
def test_a_file_that_is_not_rsnas_mapping_is_refused(tmp_path, text, message):
    root = write_fake_rsna(tmp_path / "rsna")
    path = tmp_path / "map.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_rsna(config(root, patient_mapping=path)).checked()
    with pytest.raises(DataError, match=r"set data\.patient_mapping"):
        read_rsna(config(root, patient_mapping=tmp_path / "absent.json")).checked()


def test_a_mapping_is_refused_for_other_datasets(tmp_path):
    with pytest.raises(ConfigError, match=r"is for data\.dataset=rsna"):
        DataConfig(patient_mapping=tmp_path)


def test_all_faults_are_collected(tmp_path):
    root = write_fake_rsna(tmp_path, [rsna_row(1, "1"), rsna_row(1), rsna_row(2, "yes"), rsna_row(3), rsna_row(4)])
    scan = read_rsna(config(root))
    assert {fault.reason for fault in scan.faults} == {"duplicate", "label"}
    assert [record.id for record in scan.reading.records] == [name_of(3), name_of(4)]


def test_the_default_split_is_balanced_and_negatives_are_not_captioned_normal(tmp_path):
    rows = [rsna_row(n, "1" if n % 4 == 0 else "0") for n in range(1, 81)]
    root = write_fake_rsna(tmp_path, rows, size=8)
    reading = read_dataset(config(root))
    assert {record.caption.partition(" with ")[2] for record in reading.records} == {"pneumonia", "no pneumonia"}
    splits = split_records(reading, config(root, val_fraction=0.1))
    assert splits.recipe == "rsna-balanced"
    assert [len(part) for part in splits[:3]] == [25, 3, 12]
