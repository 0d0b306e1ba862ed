"""One id in several spellings: one person, or a fault that names the spellings and their lines."""

import pytest
from tests.fakes.embed import file_row, finding_row, write_fake_embed
from tests.fakes.manifest import write_fake_manifest
from tests.fakes.nih import nih_row, write_fake_nih
from tests.fakes.rsna import name_of, rsna_row, write_fake_rsna

from cleft.config import DataConfig
from cleft.data import read_dataset
from cleft.data.readers.manifest import scan_manifest
from cleft.data.tables.ids import id_key, is_rounded, spelling_faults, whole_id
from cleft.errors import DataError
from cleft.files import write_json
from cleft.training.run import seen_patients, split_facts

SAME = ["12", "012", "12.0", " 12", "12\u200b", "1.2e1", "\uff11\uff12", "+12", "12,0"]
ELSE = ["13", "12a", "1-2", "120", "12.5", "1.2", "12,5", "-12", "NA"]


def table(folder, patients):
    patients = [f'"{patient}"' if "," in patient else patient for patient in patients]
    lines = [f"images/{number}.png,{patient},1" for number, patient in enumerate(patients)]
    return write_fake_manifest(folder, lines, header="image,patient,Edema")


def scan(root):
    return scan_manifest(DataConfig(dataset="manifest", root=root))


def test_spellings_of_an_id_have_one_key_and_other_ids_another():
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
def test_what_a_column_of_numbers_does_to_ids(text, whole, rounded):
    assert (whole_id(text), is_rounded(text)) == (whole, rounded)


@pytest.mark.parametrize("other", [text for text in SAME[1:] if text not in ("12.0", " 12", "1.2e1")])
def test_an_id_in_two_spellings_is_a_fault_that_names_them_and_their_lines(tmp_path, other):
    found = scan(table(tmp_path, ["7", "12", other, "8", "12"]))
    [fault] = [fault for fault in found.faults if fault.reason == "patient"]
    assert repr("12") in fault.what
    assert repr(other) in fault.what
    assert list(fault.lines) == [3, 4, 6]
    with pytest.raises(DataError, match="one person in two spellings"):
        read_dataset(DataConfig(dataset="manifest", root=tmp_path))


@pytest.mark.parametrize("other", ["12.0", " 12", '"12 "', "12."])
def test_an_id_that_was_a_number_with_a_point_is_one_patient(tmp_path, other):
    found = scan(table(tmp_path, ["12", other, "13.0"]))
    assert found.faults == []
    assert [record.patient for record in found.reading.records] == ["12", "12", "13"]


def test_ids_that_lost_digits_are_a_fault(tmp_path):
    found = scan(table(tmp_path, ["1.23457E+15", "1.23457E+15", "7"]))
    [fault] = found.faults
    assert "saved as a number and lost digits" in fault.what
    assert list(fault.lines) == [2, 3]


def test_letter_case_is_a_fault_and_images_that_are_their_own_patient_are_none(tmp_path):
    found = scan(table(tmp_path / "a", ["p1", "P1"]))
    assert "'P1' and 'p1'" in found.faults[0].what
    root = write_fake_manifest(tmp_path / "b", ["images/A1.png,1", "images/a01.png,0"], header="image,Edema")
    assert scan(root).faults == []


def test_many_doubled_ids_are_counted():
    patients = [f"{number}" for number in range(9)] + [f"0{number}" for number in range(9)]
    [fault] = spelling_faults(patients, range(18), range(2, 20))
    assert fault.what.endswith("and 6 more")
    assert len(fault.lines) == 18
    assert spelling_faults(patients, range(9), range(2, 11)) == []


def test_other_readers_take_a_number_with_a_point_or_name_it(tmp_path):
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
def test_a_list_of_excluded_patients_may_spell_them_otherwise(tmp_path, listed, column):
    root = table(tmp_path / "data", ["12", "13", "13"])
    (tmp_path / "out.csv").write_text(f"{column}\n{listed}\n", encoding="utf-8")
    reading = read_dataset(DataConfig(dataset="manifest", root=root, exclude=tmp_path / "out.csv"))
    assert [record.patient for record in reading.records] == ["13", "13"]
    note = reading.notes[-1]
    assert "the only patient in out.csv is here" in note
    assert ("spelled otherwise" in note) == (whole_id(listed) != "12")


def test_a_patient_who_was_trained_on_is_known_in_any_spelling(tmp_path):
    facts = split_facts(people="x", recipe="patients", digest="d", counts={}, patients=["P-007", "12"], before=None)
    write_json(tmp_path / "split.json", {name: value for name, value in facts.items() if name != "before"})
    patients = ["p-7", "P-007", "012", "12.0", "13"]
    assert seen_patients(tmp_path, "x", patients) == set(patients) - {"13"}


@pytest.mark.parametrize("case", ["t12"])
def test_the_shared_case_is_one_patient_in_both_spellings(shared, case):
    found = scan(shared / "cases" / case)
    assert found.faults == []
    assert len({record.patient for record in found.reading.records}) == 15
