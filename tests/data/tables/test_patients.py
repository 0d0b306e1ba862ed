"""Ids in several spellings, lists of excluded patients, and usual column names."""

import dataclasses
from pathlib import Path

import pytest
from tests.fakes.embed import file_row, finding_row, write_fake_embed
from tests.fakes.manifest import write_fake_manifest
from tests.fakes.nih import nih_row, write_fake_nih
from tests.fakes.rsna import name_of, rsna_row, write_fake_rsna

from cleft.config import DataConfig
from cleft.data import read_dataset
from cleft.data.readers.manifest import read_manifest
from cleft.data.tables.csv import read_table
from cleft.data.tables.patients import (
    COLUMN_SYNONYMS,
    canonical_patient,
    clean_id,
    columns_for,
    exclude_patients,
    id_key,
    is_rounded,
    plain_name,
    read_patient_list,
    spelling_faults,
)
from cleft.errors import DataError
from cleft.strict_json import write_json
from cleft.training.provenance import seen_patients, split_record
from cleft.types import Reading, Record

SAME = ["12", "012", "12.0", " 12", "12\u200b", "1.2e1", "\uff11\uff12", "+12", "12,0"]
ELSE = ["13", "12a", "1-2", "120", "12.5", "1.2", "12,5", "-12", "NA"]


def table(folder, patients):
    patients = [f'"{patient}"' if "," in patient else patient for patient in patients]
    lines = [f"images/{number}.png,{patient},1" for number, patient in enumerate(patients)]
    return write_fake_manifest(folder, lines, header="image,patient,Edema")


def scan(root):
    return read_manifest(DataConfig(dataset="manifest", root=root))


def test_spellings_of_an_id_share_a_key():
    assert {id_key(text) for text in SAME} == {"12"}
    assert len({id_key(text) for text in ELSE}) == len(ELSE)
    assert "12" not in {id_key(text) for text in ELSE}
    assert id_key("P-007") == id_key("p-7") == id_key(" P-7 ")
    assert id_key("1,234") == id_key("1234")
    assert id_key("a01b") != id_key("a1b")
    assert id_key("1.2345678901234567e+16") != id_key("12345678901234568")


@pytest.mark.parametrize(
    ("text", "whole", "rounded"),
    [
        ("12.0", "12", False),
        ("12.", "12", False),
        ("12.000", "12", False),
        ("12.5", "12.5", False),
        ("9007199254740992.0", "9007199254740992", False),
        ("9007199254740993.0", "9007199254740993.0", True),
        ("1.23457E+15", "1.23457E+15", True),
        ("1e+15", "1e+15", True),
        ("1e5", "1e5", False),
        ("3.14.15", "3.14.15", False),
    ],
)
def test_ids_from_a_column_of_numbers_are_restored(text, whole, rounded):
    assert (clean_id(text), is_rounded(text)) == (whole, rounded)


@pytest.mark.parametrize("other", [text for text in SAME[1:] if text not in ("12.0", " 12", "1.2e1")])
def test_an_id_in_two_spellings_is_a_fault_that_names_them_and_their_lines(tmp_path, other):
    found = scan(table(tmp_path, ["7", "12", other, "8", "12"]))
    [fault] = [fault for fault in found.faults if fault.reason == "patient"]
    assert repr("12") in fault.what
    assert repr(other) in fault.what
    assert list(fault.lines) == [3, 4, 6]
    with pytest.raises(DataError, match="two spellings of one patient"):
        read_dataset(DataConfig(dataset="manifest", root=tmp_path))


@pytest.mark.parametrize("other", ["12.0", " 12", '"12 "', "12."])
def test_ids_with_and_without_point_zero_are_one_patient(tmp_path, other):
    found = scan(table(tmp_path, ["12", other, "13.0"]))
    assert found.faults == []
    assert [record.patient for record in found.reading.records] == ["12", "12", "13"]


def test_ids_that_lost_digits_are_a_fault(tmp_path):
    found = scan(table(tmp_path, ["1.23457E+15", "1.23457E+15", "7"]))
    [fault] = found.faults
    assert "saved as a number and lost digits" in fault.what
    assert list(fault.lines) == [2, 3]


def test_letter_case_of_patients_is_a_fault_but_not_of_image_paths(tmp_path):
    found = scan(table(tmp_path / "a", ["p1", "P1"]))
    assert "'P1' and 'p1'" in found.faults[0].what
    root = write_fake_manifest(tmp_path / "b", ["images/A1.png,1", "images/a01.png,0"], header="image,Edema")
    assert scan(root).faults == []


def test_many_ids_in_two_spellings_are_counted():
    patients = [f"{number}" for number in range(9)] + [f"0{number}" for number in range(9)]
    [fault] = spelling_faults(patients, range(18), range(2, 20))
    assert fault.what.endswith("and 6 more")
    assert len(fault.lines) == 18
    assert spelling_faults(patients, range(9), range(2, 11)) == []


def test_other_readers_accept_point_zero_or_report_it(tmp_path):
    rows = [nih_row(1, 0), nih_row(2, 0)]
    rows[1] = rows[1].replace(",2,58", ",2.0,58")
    nih = read_dataset(DataConfig(dataset="nih", root=write_fake_nih(tmp_path / "nih", rows)))
    assert [record.patient for record in nih.records] == ["1", "2"]
    files = [file_row("a", patient="10000001"), file_row("b", patient="010000001", side="R")]
    findings = [finding_row(patient="10000001"), finding_row(patient="010000001")]
    root = write_fake_embed(tmp_path / "embed", files, findings)
    with pytest.raises(DataError, match=r"'010000001' and '10000001'"):
        read_dataset(DataConfig(dataset="embed", root=root))
    rsna = write_fake_rsna(tmp_path / "rsna", [rsna_row(1, "1"), rsna_row(2)])
    (rsna / "nih_patients.csv").write_text(f"patientId,nih_patient\n{name_of(1)},13.0\n{name_of(2)},13\n")
    assert {record.patient for record in read_dataset(DataConfig(dataset="rsna", root=rsna)).records} == {"13"}


@pytest.mark.parametrize("listed", ["12", "12.0", "012", "12\u200b"])
@pytest.mark.parametrize("column", ["patient", "subject_id", "MRN", "Patient ID"])
def test_a_list_of_excluded_patients_may_use_another_spelling(tmp_path, listed, column):
    root = table(tmp_path / "data", ["12", "13", "13"])
    (tmp_path / "out.csv").write_text(f"{column}\n{listed}\n", encoding="utf-8")
    reading = read_dataset(DataConfig(dataset="manifest", root=root, exclude_patients=tmp_path / "out.csv"))
    assert [record.patient for record in reading.records] == ["13", "13"]
    note = reading.notes[-1]
    assert "the only patient in out.csv is here" in note
    assert ("spelled differently" in note) == (clean_id(listed) != "12")


def test_overlap_with_training_patients_is_found_in_any_spelling(tmp_path):
    facts = split_record(people="x", recipe="patients", digest="d", counts={}, patients=["P-007", "12"], before=None)
    write_json(tmp_path / "split.json", {name: value for name, value in facts.items() if name != "before"})
    patients = ["p-7", "P-007", "012", "12.0", "13"]
    assert seen_patients(tmp_path, "x", patients) == set(patients) - {"13"}


@pytest.mark.parametrize("case", ["t12"])
def test_the_shared_case_is_one_patient_in_both_spellings(shared, case):
    found = scan(shared / "cases" / case)
    assert found.faults == []
    assert len({record.patient for record in found.reading.records}) == 15


def reading(*patients, people=""):
    records = [Record(id=f"{i}", image=Path(f"{i}"), labels={}, patient=name) for i, name in enumerate(patients)]
    return Reading(dataset="chexpert", records=records, findings=(), patient_dataset=people)


def listed(folder, text):
    path = folder / "out.csv"
    path.write_text(text)
    return path


@pytest.mark.parametrize("spelled", ["13", "00000013", "patient00013", "Patient13"])
def test_a_patient_of_nih_has_one_canonical_id(spelled):
    assert canonical_patient("nih", spelled) == "13"
    assert canonical_patient("chexpert", spelled) == spelled


def test_other_ids_are_unchanged():
    assert canonical_patient("nih", "0004cfab-14fd-4e49-80ba-63a80b6bddd6") == "0004cfab-14fd-4e49-80ba-63a80b6bddd6"
    assert canonical_patient("nih", "000") == "0"


def test_a_setting_changes_the_population_but_not_the_ids():
    settled = exclude_patients(reading("patient00013"), DataConfig(patient_dataset="nih"))
    assert settled.patient_dataset == "nih"
    assert settled.records[0].patient == "patient00013"
    assert exclude_patients(reading("a", people="nih"), DataConfig()).patient_dataset == "nih"


@pytest.mark.parametrize("column", ["patient", "patient_id", "Patient ID", "nih_patient"])
def test_excluded_patients_are_left_out_and_counted(tmp_path, column):
    path = listed(tmp_path, f"patientId,{column}\nuuid-1,13\nuuid-2,13\nuuid-3,99\n")
    before = reading("patient00013", "patient00014", "patient00013")
    settled = exclude_patients(before, DataConfig(patient_dataset="nih", exclude_patients=path))
    assert [record.patient for record in settled.records] == ["patient00014"]
    assert settled.rejected == {"excluded": ["0", "2"]}
    assert settled.notes == ("1 of 2 patients in out.csv is here; 2 images excluded from all splits",)
    assert settled.sources == {"out.csv (excluded)": read_table(path)[0].sha256}


def test_a_list_without_any_patient_of_the_dataset_is_questioned(tmp_path):
    path = listed(tmp_path, "patient\n13\n")
    settled = exclude_patients(reading("patient00013"), DataConfig(exclude_patients=path))
    assert len(settled.records) == 1
    assert settled.rejected == {}
    assert settled.notes[0].endswith("check that its ids are those of this dataset and data.patient_dataset is right")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("patientId\n13\n", r"out\.csv line 1: no column of patients; found \['patientId'\]"),
        ("patient,nih_patient\n13,13\n", r"columns \['patient', 'nih_patient'\] all identify patients"),
        ("patient,x\n13,1\n,2\n", r"out\.csv line 3: column 'patient' is empty"),
    ],
)
def test_a_list_without_one_patient_column_is_refused(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_patient_list(listed(tmp_path, text), "nih")
    with pytest.raises(DataError, match=r"set data\.exclude_patients"):
        read_patient_list(tmp_path / "absent.csv", "nih")


def test_excluding_every_patient_is_refused(tmp_path):
    config = dataclasses.replace(DataConfig(), exclude_patients=listed(tmp_path, "patient\na\n"))
    with pytest.raises(DataError, match="no patient is left"):
        exclude_patients(reading("a", "a"), config)


PATIENTS = (
    *("subject_id", "patientId", "PatientID", "patient_id", "Patient Id", "PATIENT-ID", "empi_anon", "pid", "PID"),
    *("mrn", "MRN", "subject", "Subject ID", "participant", "participant_id", "person_id", "PatientNumber", "pt_id"),
)
IMAGES = (
    "Path",
    "image_path",
    "ImagePath",
    "filename",
    "File Name",
    "file",
    "image_id",
    "img_name",
    "dicom_path",
    "Image Index",
)
OTHERS = {
    "ViewPosition": ("view", "AP", "AP"),
    "View Position": ("view", "pa", "PA"),
    "projection": ("view", "ap", "AP"),
    "AP/PA": ("view", "AP", "AP"),
    "patient_age": ("age", "61", 61.0),
    "Patient Age": ("age", "61", 61.0),
    "age_at_study": ("age", "61", 61.0),
    "Age (years)": ("age", "61", 61.0),
    "gender": ("sex", "F", "Female"),
    "PatientSex": ("sex", "male", "Male"),
    "Patient Gender": ("sex", "M", "Male"),
    "AccessionNumber": ("study", "77", "77"),
    "StudyInstanceUID": ("study", "1.2.3", "1.2.3"),
}


def scan_columns(folder, header, *lines):
    return read_manifest(DataConfig(dataset="manifest", root=write_fake_manifest(folder, lines, header=header)))


@pytest.mark.parametrize("name", PATIENTS)
def test_a_patient_column_under_a_usual_name_groups_images(name, tmp_path):
    found = scan_columns(tmp_path, f"image,{name},Edema", "images/a.png,0,1", "images/b.png,1,0", "images/c.png,0,0")
    assert found.faults == []
    assert found.reading.findings == ("Edema",)
    assert [record.patient for record in found.reading.records] == ["0", "1", "0"]
    assert found.reading.cautions == ()
    notes = [note for note in found.reading.notes if "name it 'patient'" in note]
    assert bool(notes) == (name.casefold() != "patient_id")


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_column_under_a_usual_name_is_read(name, tmp_path):
    found = scan_columns(tmp_path, f"patient,{name},Edema".replace("patient,", "", 1) + ",patient", "images/a.png,1,p")
    assert found.faults == []
    assert [record.id for record in found.reading.records] == ["images/a.png"]
    assert found.reading.findings == ("Edema",)


@pytest.mark.parametrize("name", OTHERS)
def test_view_age_sex_and_study_under_usual_names_are_read(name, tmp_path):
    meaning, cell, value = OTHERS[name]
    found = scan_columns(tmp_path, f"image,patient,{name},Edema", f"images/a.png,p,{cell},1")
    assert found.faults == []
    assert found.reading.findings == ("Edema",)
    assert getattr(found.reading.records[0], meaning) == value


@pytest.mark.parametrize(
    "name",
    ["case_id", "Case", "PatientName", "patient_ref", "study_subject", "record_id", "client_id", "clientID", "Hosp nr"],
)
def test_a_column_that_may_identify_patients_is_a_fault(name, tmp_path):
    found = scan_columns(tmp_path, f"image,{name},Edema", "images/a.png,0,1", "images/b.png,1,0")
    assert f"column {name!r} may identify patients" in found.faults[0].what
    assert "name it 'patient'" in found.faults[0].remedy
    assert found.reading.findings == ("Edema",)


@pytest.mark.parametrize("name", ["index", "fold", "ID", "Year", "rows"])
def test_a_column_that_is_not_a_finding_by_its_name_is_a_fault(name, tmp_path):
    found = scan_columns(tmp_path, f"image,patient,{name},Edema", "images/a.png,p,0,1")
    assert f"name it '_{name}' to ignore it" in found.faults[0].remedy
    assert found.reading.findings == ("Edema",)


def test_several_columns_with_one_meaning_are_a_fault(tmp_path):
    found = scan_columns(tmp_path / "a", "image,subject_id,mrn,Edema", "images/a.png,1,0,1")
    assert "['subject_id', 'mrn'] all mean 'patient'" in found.faults[0].what
    found = scan_columns(tmp_path / "b", "image,patient,mrn,filename,Edema", "images/a.png,p,0,1,1")
    assert found.faults == []
    assert found.reading.findings == ("Edema",)
    assert any(note.endswith("that are not findings: filename, mrn") for note in found.reading.notes)


def test_columns_that_begin_with_an_underscore_are_ignored(tmp_path):
    found = scan_columns(tmp_path, "image,patient,_subject_id,Edema", "images/a.png,p,0,1")
    assert found.faults == []
    assert found.reading.findings == ("Edema",)


def test_no_usual_name_has_two_meanings():
    every = [name for names in COLUMN_SYNONYMS.values() for name in names]
    assert len(every) == len(set(every))
    assert all(name == plain_name(name) for name in every)
    assert columns_for("image", ["Path", "_path", "Edema"]) == ["Path"]


@pytest.mark.parametrize(
    ("files", "named", "near"),
    [
        (["images/00.png"], "images/00", "images/00.png"),
        (["images/00.jpeg"], "images/00.jpg", "images/00.jpeg"),
        (["images/00"], "images/00.dcm", "images/00"),
        (["images/00.nii.gz"], "images/00", "images/00.nii.gz"),
        (["deep/images/00.png"], "images/00.png", "deep/images/00.png"),
        (["images/00.png"], "00.png", "images/00.png"),
        (["images/00.png"], "old/00.PNG", "images/00.png"),
        (["a/images/00.png", "b/pictures/00.png"], "x/images/00.png", "a/images/00.png"),
    ],
)
def test_a_missing_image_gets_a_hint_at_a_similar_file(files, named, near, tmp_path):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "manifest.csv").write_text(f"image,Edema\n{named},1\n")
    [fault] = read_manifest(DataConfig(dataset="manifest", root=tmp_path)).faults
    assert fault.remedy == f"{named} does not exist, but {near} does: write names as they are on disk"


@pytest.mark.parametrize("files", [[], ["a/00.png", "b/00.png"], ["images/01.png"]])
def test_ambiguous_similar_files_give_no_hint(files, tmp_path):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "manifest.csv").write_text("image,Edema\nimages/00,1\n")
    [fault] = read_manifest(DataConfig(dataset="manifest", root=tmp_path)).faults
    assert fault.remedy.startswith("complete the download")


@pytest.mark.parametrize("case", ["t13", "t13c"])
def test_the_shared_tables_keep_their_patients(case, shared):
    found = read_manifest(DataConfig(dataset="manifest", root=shared / "cases" / case))
    assert found.faults == []
    assert found.reading.findings == ("Edema", "Pneumonia")
    assert len({record.patient for record in found.reading.records}) < len(found.reading.records)
    assert any("name it 'patient'" in note for note in found.reading.notes)


def test_paths_without_extension_get_a_hint_at_the_files(shared):
    [fault] = read_manifest(DataConfig(dataset="manifest", root=shared / "cases" / "t06b")).faults
    assert fault.remedy.startswith("images/00 does not exist, but images/00.png does; likewise for 30 of 30")
