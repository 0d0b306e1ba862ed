import dataclasses
from pathlib import Path

import pytest

from cleft.config import DataConfig
from cleft.data.tables.columns import scan_table
from cleft.data.tables.people import person, read_patients, settle_people
from cleft.errors import DataError
from cleft.types import Reading, Record


def reading(*patients, people=""):
    records = [Record(id=f"{i}", image=Path(f"{i}"), labels={}, patient=name) for i, name in enumerate(patients)]
    return Reading(dataset="chexpert", records=records, findings=(), people=people)


def listed(folder, text):
    path = folder / "out.csv"
    path.write_text(text)
    return path


@pytest.mark.parametrize("spelled", ["13", "00000013", "patient00013", "Patient13"])
def test_a_patient_of_nih_has_one_name_however_it_is_spelled(spelled):
    assert person("nih", spelled) == "13"
    assert person("chexpert", spelled) == spelled


def test_a_name_that_is_no_number_stays_as_it_is():
    assert person("nih", "0004cfab-14fd-4e49-80ba-63a80b6bddd6") == "0004cfab-14fd-4e49-80ba-63a80b6bddd6"
    assert person("nih", "000") == "0"


def test_a_setting_says_whose_patients_these_are_and_leaves_their_ids_alone():
    settled = settle_people(reading("patient00013"), DataConfig(people="nih"))
    assert settled.people == "nih"
    assert settled.records[0].patient == "patient00013"
    assert settle_people(reading("a", people="nih"), DataConfig()).people == "nih"


@pytest.mark.parametrize("column", ["patient", "patient_id", "Patient ID", "nih_patient"])
def test_excluded_patients_are_left_out_counted_and_told(tmp_path, column):
    path = listed(tmp_path, f"patientId,{column}\nuuid-1,13\nuuid-2,13\nuuid-3,99\n")
    before = reading("patient00013", "patient00014", "patient00013")
    settled = settle_people(before, DataConfig(people="nih", exclude=path))
    assert [record.patient for record in settled.records] == ["patient00014"]
    assert settled.rejected == {"excluded": ["0", "2"]}
    assert settled.notes == ("1 of 2 patients in out.csv is here, with 2 images that stay out of every split",)
    assert settled.sources == {"out.csv (excluded)": scan_table(path)[0].sha256}


def test_a_list_in_which_nobody_is_here_is_doubted(tmp_path):
    path = listed(tmp_path, "patient\n13\n")
    settled = settle_people(reading("patient00013"), DataConfig(exclude=path))
    assert len(settled.records) == 1
    assert settled.rejected == {}
    assert settled.notes[0].endswith("do its ids and data.people name the same people?")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("patientId\n13\n", r"out\.csv line 1: no column of patients; found \['patientId'\]"),
        ("patient,nih_patient\n13,13\n", r"columns \['patient', 'nih_patient'\] all name patients"),
        ("patient,x\n13,1\n,2\n", r"out\.csv line 3: column 'patient' is empty"),
    ],
)
def test_a_list_that_does_not_say_whom_it_names_is_refused(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_patients(listed(tmp_path, text), "nih")
    with pytest.raises(DataError, match=r"set data\.exclude"):
        read_patients(tmp_path / "absent.csv", "nih")


def test_a_list_of_everybody_is_refused(tmp_path):
    config = dataclasses.replace(DataConfig(), exclude=listed(tmp_path, "patient\na\n"))
    with pytest.raises(DataError, match="no patient is left"):
        settle_people(reading("a", "a"), config)
