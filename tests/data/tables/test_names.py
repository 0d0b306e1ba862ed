"""Columns under their usual names are what they are called, and never findings."""

import pytest
from tests.fakes.manifest import write_fake_manifest

from cleft.config import DataConfig
from cleft.data.readers.manifest import scan_manifest
from cleft.data.tables.names import USUAL, plain_name, usual_columns

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


def scan(folder, header, *lines):
    return scan_manifest(DataConfig(dataset="manifest", root=write_fake_manifest(folder, lines, header=header)))


@pytest.mark.parametrize("name", PATIENTS)
def test_a_patient_column_under_a_usual_name_keeps_the_grouping(name, tmp_path):
    found = scan(tmp_path, f"image,{name},Edema", "images/a.png,0,1", "images/b.png,1,0", "images/c.png,0,0")
    assert found.faults == []
    assert found.reading.findings == ("Edema",)
    assert [record.patient for record in found.reading.records] == ["0", "1", "0"]
    assert found.reading.cautions == ()
    notes = [note for note in found.reading.notes if "call it 'patient'" in note]
    assert bool(notes) == (name.casefold() != "patient_id")


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_column_under_a_usual_name_is_read(name, tmp_path):
    found = scan(tmp_path, f"patient,{name},Edema".replace("patient,", "", 1) + ",patient", "images/a.png,1,p")
    assert found.faults == []
    assert [record.id for record in found.reading.records] == ["images/a.png"]
    assert found.reading.findings == ("Edema",)


@pytest.mark.parametrize("name", OTHERS)
def test_view_age_sex_and_study_under_usual_names_are_read(name, tmp_path):
    meaning, cell, value = OTHERS[name]
    found = scan(tmp_path, f"image,patient,{name},Edema", f"images/a.png,p,{cell},1")
    assert found.faults == []
    assert found.reading.findings == ("Edema",)
    assert getattr(found.reading.records[0], meaning) == value


@pytest.mark.parametrize(
    "name",
    ["case_id", "Case", "PatientName", "patient_ref", "study_subject", "record_id", "client_id", "clientID", "Hosp nr"],
)
def test_a_column_that_may_name_patients_is_a_fault_and_no_finding(name, tmp_path):
    found = scan(tmp_path, f"image,{name},Edema", "images/a.png,0,1", "images/b.png,1,0")
    assert f"column {name!r} may say who the patient is" in found.faults[0].what
    assert "call it 'patient'" in found.faults[0].remedy
    assert found.reading.findings == ("Edema",)


@pytest.mark.parametrize("name", ["index", "fold", "ID", "Year", "rows"])
def test_a_column_that_is_no_finding_by_its_name_is_a_fault(name, tmp_path):
    found = scan(tmp_path, f"image,patient,{name},Edema", "images/a.png,p,0,1")
    assert f"call it '_{name}' to leave it out" in found.faults[0].remedy
    assert found.reading.findings == ("Edema",)


def test_of_several_usual_names_the_user_chooses(tmp_path):
    found = scan(tmp_path / "a", "image,subject_id,mrn,Edema", "images/a.png,1,0,1")
    assert "['subject_id', 'mrn'] all mean 'patient'" in found.faults[0].what
    found = scan(tmp_path / "b", "image,patient,mrn,filename,Edema", "images/a.png,p,0,1,1")
    assert found.faults == []
    assert found.reading.findings == ("Edema",)
    assert any(note.endswith("as they are no findings: filename, mrn") for note in found.reading.notes)


def test_a_column_that_begins_with_an_underscore_stays_out(tmp_path):
    found = scan(tmp_path, "image,patient,_subject_id,Edema", "images/a.png,p,0,1")
    assert found.faults == []
    assert found.reading.findings == ("Edema",)


def test_no_usual_name_has_two_meanings():
    every = [name for names in USUAL.values() for name in names]
    assert len(every) == len(set(every))
    assert all(name == plain_name(name) for name in every)
    assert usual_columns("image", ["Path", "_path", "Edema"]) == ["Path"]


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
def test_a_missing_image_is_hinted_at_where_it_is(files, named, near, tmp_path):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "manifest.csv").write_text(f"image,Edema\n{named},1\n")
    [fault] = scan_manifest(DataConfig(dataset="manifest", root=tmp_path)).faults
    assert fault.remedy == f"{named} is not there, but {near} is: write names as they are on disk"


@pytest.mark.parametrize("files", [[], ["a/00.png", "b/00.png"], ["images/01.png"]])
def test_nothing_is_hinted_at_where_it_is_not_sure(files, tmp_path):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "manifest.csv").write_text("image,Edema\nimages/00,1\n")
    [fault] = scan_manifest(DataConfig(dataset="manifest", root=tmp_path)).faults
    assert fault.remedy.startswith("complete the download")


@pytest.mark.parametrize("case", ["t13", "t13c"])
def test_the_shared_tables_keep_their_patients(case, shared):
    found = scan_manifest(DataConfig(dataset="manifest", root=shared / "cases" / case))
    assert found.faults == []
    assert found.reading.findings == ("Edema", "Pneumonia")
    assert len({record.patient for record in found.reading.records}) < len(found.reading.records)
    assert any("call it 'patient'" in note for note in found.reading.notes)


def test_the_shared_table_without_endings_is_told_of_the_files(shared):
    [fault] = scan_manifest(DataConfig(dataset="manifest", root=shared / "cases" / "t06b")).faults
    assert fault.remedy.startswith("images/00 is not there, but images/00.png is; the same holds for 30 of 30")
