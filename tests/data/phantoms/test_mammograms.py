"""Drawn mammograms: the layout and the oddities of EMBED's tables, signs and densities that the pixels show."""

import csv
import hashlib
from collections import Counter, defaultdict

import numpy as np
import pytest
from pydicom import dcmread

from cleft.config import DataConfig
from cleft.data import read_dataset
from cleft.data.phantoms.mammogram_patients import LETTERS, ODDITIES, Shares, invent_patient
from cleft.data.phantoms.mammograms import CODES, write_mammograms
from cleft.data.tables.paths import PHANTOMS_FILE
from cleft.errors import DataError

SIZE = 64
PATIENTS = len(ODDITIES) + 6


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_mammograms(tmp_path_factory.mktemp("drawn") / "embed", patients=PATIENTS, size=SIZE)


def table(root, name):
    with (root / "tables" / f"{name}.csv").open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def metadata(root):
    return table(root, "EMBED_OpenData_metadata")


@pytest.fixture(scope="module")
def clinical(root):
    return table(root, "EMBED_OpenData_clinical")


@pytest.fixture(scope="module")
def exams(metadata, clinical):
    """Rows of both tables by exam."""
    found = defaultdict(lambda: ([], []))
    for row in metadata:
        found[row["acc_anon"]][0].append(row)
    for row in clinical:
        found[row["acc_anon"]][1].append(row)
    return found


def on_disk(root, row):
    return root / "images" / row["anon_dicom_path"].partition("mammo/anon_dicom/")[2]


def sides(rows):
    return Counter(row["side"] for row in rows)


def bilateral(rows):
    return "bilat" in rows[0]["desc"].lower()


SEEN = {
    "blank_side": lambda images, rows: bilateral(rows) and [row["side"] for row in rows] == [""],
    "both_sides": lambda images, rows: [row["side"] for row in rows] == ["B"],
    "implied_negative": lambda images, rows: (
        bilateral(rows)
        and set(sides(rows)) in ({"L"}, {"R"})
        and {"L", "R"} == {i["ImageLateralityFinal"] for i in images}
    ),
    "worse_second": lambda images, rows: (
        [row["asses"] for row in rows][:2] == ["P", "M"] and rows[0]["side"] == rows[1]["side"]
    ),
    "several_rows": lambda images, rows: (
        max(sides(rows).values()) >= 3 and {"S", "B"} <= {row["asses"] for row in rows}
    ),
    "no_assessment": lambda images, rows: {row["asses"] for row in rows} == {"X"},
    "blank_assessment": lambda images, rows: {row["asses"] for row in rows} == {""},
    "blank_density": lambda images, rows: {row["tissueden"] for row in rows} == {""},
    "male": lambda images, rows: {row["tissueden"] for row in rows} == {"5.0"} and images[0]["PatientSex"] == "M",
    "synthetic": lambda images, rows: {"2D", "cview"} == {image["FinalImageType"] for image in images},
    "spot": lambda images, rows: {"1.0", "0.0"} <= {image["spot_mag"] for image in images},
    "special_views": lambda images, rows: (
        {"CC", "MLO", "ML", "XCCL", ""} == {image["ViewPosition"] for image in images}
    ),
    "unilateral": lambda images, rows: (
        len({image["ImageLateralityFinal"] for image in images}) == 1 and not bilateral(rows)
    ),
    "implant": lambda images, rows: images[0]["BreastImplantPresent"] == "YES" and rows[0]["implanfind"] != "",
    "two_dates": lambda images, rows: images[0]["study_date_anon"] != rows[0]["study_date_anon"],
    "two_names": lambda images, rows: images[0]["StudyDescription"] != rows[0]["desc"],
    "mixed_numbers": lambda images, rows: rows[0]["tissueden"] in ("1", "2", "3", "4"),
}
"""How each oddity is recognised in the rows of one exam."""


def test_every_oddity_has_a_test():
    assert {*SEEN, "great_ids"} == set(ODDITIES)


@pytest.mark.parametrize("oddity", SEEN)
def test_each_oddity_occurs_for_its_patient(oddity, exams, metadata):
    number = list(ODDITIES).index(oddity) + 1
    patient = invent_patient(0, number, Shares())
    assert SEEN[oddity](*exams[str(patient.exams[0].acc)])


def test_two_exams_have_ids_that_are_equal_as_floats(clinical):
    ids = defaultdict(set)
    for row in clinical:
        ids[row["empi_anon"], float(row["acc_anon"])].add(row["acc_anon"])
    twins = [accs for accs in ids.values() if len(accs) > 1]
    assert twins
    assert all(len(acc) == 16 and int(acc) > 2**53 for accs in twins for acc in accs)


def test_ids_are_integers_and_belong_to_one_patient(metadata):
    owners = defaultdict(set)
    for row in metadata:
        assert len(row["empi_anon"]) == 8
        assert len(row["acc_anon"]) == 16
        assert (row["empi_anon"] + row["acc_anon"]).isdigit()
        owners[row["acc_anon"]].add(row["empi_anon"])
    assert all(len(owner) == 1 for owner in owners.values())
    assert len({row["empi_anon"] for row in metadata}) == PATIENTS


def test_every_row_has_its_file_and_every_file_its_row(root, metadata):
    listed = [on_disk(root, row) for row in metadata]
    assert sorted(listed) == sorted(root.rglob("*.dcm"))
    assert len(set(listed)) == len(listed)


def test_paths_keep_a_foreign_mount_and_cohorts_share_no_patient(metadata):
    prefixes = {row["anon_dicom_path"].partition("cohort_")[0] for row in metadata}
    assert len(prefixes) == 2
    assert all(prefix.endswith("mammo/anon_dicom/") for prefix in prefixes)
    cohorts = [{row["empi_anon"] for row in metadata if row["cohort_num"] == number} for number in "12"]
    assert cohorts[0]
    assert cohorts[1]
    assert not cohorts[0] & cohorts[1]


def test_the_reduced_tables_have_the_same_content_with_other_names_and_order(root, metadata, clinical):
    images = table(root, "EMBED_OpenData_metadata_reduced")
    rows = table(root, "EMBED_OpenData_clinical_reduced")
    assert next(iter(images[0])) == next(iter(rows[0])) == ""
    assert [row["anon_dicom_path"] for row in images] == [row["anon_dicom_path"] for row in metadata]
    assert [float(row["num_ROI"]) for row in images] == [float(row["num_roi"]) for row in metadata]
    keys = ("acc_anon", "numfind", "asses", "side", "tissueden")
    assert [[row[key] for key in keys] for row in rows] != [[row[key] for key in keys] for row in clinical]
    assert sorted([row[key] for key in keys] for row in rows) == sorted([row[key] for key in keys] for row in clinical)
    assert {row["ETHNICITY_DESC"] for row in rows} == {row["RACE_DESC"] for row in clinical}
    assert "total_l_find" in rows[0]
    assert "total_L_find" in clinical[0]


def test_the_code_book_has_a_bom_and_padded_meanings(root, clinical):
    assert (
        (root / "tables" / "AWS_Open_Data_Clinical_Legend.csv").read_bytes().startswith(b"\xef\xbb\xbfHeader in export")
    )
    book = table(root, "AWS_Open_Data_Clinical_Legend")
    assert any(row["Meaning"] != row["Meaning"].strip() for row in book)
    known = {(row["Header in export"], row["Code"]) for row in book}
    columns = [header for header, _ in CODES if header not in ("tissueden", "path_severity")]
    assert {(column, row[column]) for row in clinical for column in columns if row[column]} <= known


def test_windows_and_bit_depths_of_all_scanners_occur(root, metadata):
    headers = [dcmread(on_disk(root, row)) for row in metadata]
    assert {"MONOCHROME1", "MONOCHROME2"} == {header.PhotometricInterpretation for header in headers}
    assert {10, 12, 14} == {header.BitsStored for header in headers}
    assert any(header["WindowCenter"].VM > 1 for header in headers)
    assert any(header.get("VOILUTFunction") == "SIGMOID" for header in headers)
    assert any(header.get("RescaleSlope", 1) != 1 for header in headers)
    assert any(header.file_meta.TransferSyntaxUID.is_implicit_VR for header in headers)
    assert all(header.pixel_array.max() < 2**header.BitsStored for header in headers)


def test_headers_and_table_agree(root, metadata):
    for row in metadata[::7]:
        header = dcmread(on_disk(root, row), stop_before_pixels=True)
        assert header.PatientID == row["empi_anon"]
        assert header.AccessionNumber == row["acc_anon"]
        assert header.ImageLaterality == row["ImageLateralityFinal"]
        assert header.SOPInstanceUID in row["anon_dicom_path"]
        assert header.ViewPosition == row["ViewPosition"] or not row["ViewPosition"]
        assert (header.Rows, header.Columns) == (SIZE, round(SIZE * 5 / 6))


def test_a_breast_touches_the_image_edge_of_its_side(root, metadata):
    for row in [row for row in metadata if row["ViewPosition"] == "CC" and row["spot_mag"] != "1.0"][:12]:
        header = dcmread(on_disk(root, row))
        pixels = header.pixel_array.astype(float)
        if header.PhotometricInterpretation == "MONOCHROME1":
            pixels = pixels.max() - pixels
        left, right = pixels[:, :8].mean(), pixels[:, -8:].mean()
        assert (left > 4 * right) if row["ImageLateralityFinal"] == "L" else (right > 4 * left)


MEANT = {"asymmetry": 0, "popcorn": 2, "rim": 2, "node": 2, "round": 3, "irregular": 4, "cluster": 4}
MEANT |= {"spiculated": 5, "clipped": 6}
GRAVITY = [1, 2, 0, 3, 4, 5, 6]


def test_the_reader_of_embed_labels_each_image_with_what_is_drawn_in_it(root):
    drawn = {}
    for patient in (invent_patient(0, number, Shares()) for number in range(1, PATIENTS + 1)):
        for exam in patient.exams:
            for side in "LR":
                signs = [found.lesion for found in exam.findings if found.lesion and found.side in (side, "B", "")]
                drawn[str(exam.acc), side] = max((MEANT[sign.kind] for sign in signs), key=GRAVITY.index, default=1)
    records = [
        record
        for record in read_dataset(DataConfig(dataset="embed", root=root)).records
        if any(name.startswith("BI-RADS") for name in record.labels)
    ]
    assert len({record.patient for record in records}) > PATIENTS - 5
    for record in records:
        assert record.labels[f"BI-RADS {drawn[record.study, record.laterality]}"] == 1
    assert {drawn[record.study, record.laterality] for record in records} == set(range(7))


def digest(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_same_seed_writes_the_same_bytes(tmp_path):
    first = digest(write_mammograms(tmp_path / "a", patients=2, seed=7, size=SIZE))
    assert first == digest(write_mammograms(tmp_path / "b", patients=2, seed=7, size=SIZE))
    assert first != digest(write_mammograms(tmp_path / "c", patients=2, seed=8, size=SIZE))


def test_a_patient_does_not_change_with_the_number_of_patients(tmp_path):
    few = digest(write_mammograms(tmp_path / "a", patients=1, size=SIZE))
    many = digest(write_mammograms(tmp_path / "b", patients=2, size=SIZE))
    images = {name: data for name, data in few.items() if name.suffix == ".dcm"}
    assert images
    assert all(many[name] == data for name, data in images.items())


def test_a_folder_with_the_same_mammograms_is_kept_and_any_other_is_refused(tmp_path):
    root = write_mammograms(tmp_path / "drawn", patients=1, size=SIZE)
    before = (root / PHANTOMS_FILE).stat().st_mtime_ns
    assert write_mammograms(root, patients=1, size=SIZE) == root
    assert (root / PHANTOMS_FILE).stat().st_mtime_ns == before
    with pytest.raises(DataError, match="holds other synthetic images"):
        write_mammograms(root, patients=1, size=SIZE, shares=Shares(density=(1, 0, 0, 0)))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="is not empty"):
        write_mammograms(tmp_path / "full", patients=1)


def test_failed_drawing_leaves_no_folder(tmp_path, monkeypatch):
    def fail(*words, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr("cleft.data.phantoms.mammograms.write_tables", fail)
    with pytest.raises(KeyboardInterrupt):
        write_mammograms(tmp_path / "drawn", patients=1, size=SIZE)
    assert not list(tmp_path.iterdir())


def test_a_dataset_needs_patients_and_pixels(tmp_path):
    with pytest.raises(DataError, match="set at least 1 patient"):
        write_mammograms(tmp_path / "drawn", patients=0)


def test_300_patients_have_every_class_in_training_and_in_test():
    patients = [invent_patient(0, number, Shares()) for number in range(1, 301)]
    order = sorted(patients, key=lambda who: hashlib.sha256(f"cleft-embed-v1|{who.empi}".encode()).hexdigest())
    for part in (order[:210], order[240:]):
        letters, densities = Counter(), Counter()
        for patient in part:
            letters.update({found.letter for exam in patient.exams for found in exam.findings})
            densities.update({exam.density for exam in patient.exams})
        assert min(letters[letter] for letter in LETTERS) >= 4
        assert min(densities[f"{density}.0"] for density in (1, 2, 3, 4)) >= 6
        assert max(letters["K"], letters["M"]) < letters["B"] < letters["N"]


def test_shares_are_as_requested():
    patients = [
        invent_patient(0, number, Shares(birads=(0, 0, 0, 0, 0, 1, 0), density=(0, 0, 0, 1)))
        for number in range(40, 60)
    ]
    plain = [exam for patient in patients for exam in patient.exams if not patient.male]
    assert {exam.density for exam in plain} <= {"4.0", "4", ""}
    assert np.mean([any(finding.letter == "M" for finding in exam.findings) for exam in plain]) > 0.8
