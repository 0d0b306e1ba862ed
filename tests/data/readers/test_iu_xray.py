import pytest
from tests.fakes.iu_xray import (
    Report,
    as_xml,
    image_ids,
    odd_reports,
    write_csv,
    write_fake_kaggle,
    write_fake_openi,
    write_projections,
)

from cleft.config import DataConfig
from cleft.data import read_dataset
from cleft.data.readers.iu_xray import code_terms, image_name, read_iu_xray, read_xml_reports, report_files
from cleft.data.splits.recipes import split_records
from cleft.errors import ConfigError, DataError

REPORTS = odd_reports()
FRONTAL = [image_ids(report)[0] for report in REPORTS[:4]]
BOMB = '<?xml version="1.0"?><!DOCTYPE eCitation [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]>'


def config(root, **changes):
    return DataConfig(dataset="iu-xray", root=root, **changes)


def present(record):
    return [name for name, value in record.labels.items() if value == 1]


def test_open_i_and_kaggle_give_the_same_images_and_reports(tmp_path):
    openi, kaggle = write_fake_openi(tmp_path / "openi"), write_fake_kaggle(tmp_path / "kaggle")
    write_projections(openi / "indiana_projections.csv", REPORTS)
    one, other = (read_iu_xray(config(root)).checked().records for root in (openi, kaggle))
    assert [record.id for record in one] == [record.id for record in other] == FRONTAL
    for a, b in zip(one, other, strict=True):
        assert (a.report, a.labels, a.patient, a.study, a.view) == (b.report, b.labels, b.patient, b.study, b.view)
    assert {record.view for record in one} == {"frontal"}
    assert read_iu_xray(config(openi)).checked().rejected == {
        "view-lateral": [image_ids(REPORTS[n])[1] for n in (0, 1, 3)]
    }


def test_sections_are_selected_and_empty_ones_skipped(tmp_path):
    root = write_fake_kaggle(tmp_path)
    records = read_iu_xray(config(root)).checked().records
    assert [record.report for record in records] == [
        "Normal chest x-XXXX. The heart is normal. XXXX lungs are clear.",
        "Mild cardiomegaly & haze.",
        "Streaky opacity at the base.",
        None,
    ]
    assert [r.report for r in read_iu_xray(config(root, report_sections="impression")).checked().records][2:] == [
        None,
        None,
    ]
    assert (
        read_iu_xray(config(root, report_sections="whole")).checked().records[3].report or ""
    ) == "None. Positive TB test"


def test_findings_come_from_index_terms(tmp_path):
    records = read_iu_xray(config(write_fake_openi(tmp_path), views=("frontal",))).checked().records
    by_study = {record.study: present(record) for record in records}
    assert by_study == {"1": ["No Finding"], "2": ["Cardiomegaly", "Lung Opacity"], "7": ["Atelectasis"], "11": []}
    assert records[0].labels["Edema"] == 0
    assert records[-1].labels == {}


def test_normal_alone_is_no_finding():
    codes, notes = code_terms([["normal"], ["normal", "Spine/degenerative"], ["normal", "Nodule/lung"], []])
    assert codes[:, 0].tolist() == [1, 0, 0, 2]
    assert codes[2, 4] == 1
    assert notes == [
        "1 report is not indexed; its findings are unknown",
        "1 index term matches no finding (1 time)",
    ]


def test_notes_compare_counts_with_the_published_ones(tmp_path):
    notes = read_iu_xray(config(write_fake_openi(tmp_path))).checked().notes
    assert notes[0] == "ecgen-radiology holds 5 reports with 7 images (published: 3,955 reports, 7,470 images)"
    assert "1 report names no image" in notes
    assert "5 of 7 images have a report, 3 of them distinct" in notes
    assert "1 distinct report has placeholders of de-identification" in notes


def test_without_view_positions_a_caution_says_that_laterals_are_included(tmp_path):
    reading = read_iu_xray(config(write_fake_openi(tmp_path))).checked()
    assert len(reading.records) == 7
    assert reading.cautions[0].startswith("view positions are unknown: lateral images are not excluded")


def test_dicom_headers_give_the_view_position(tmp_path):
    reading = read_iu_xray(config(write_fake_openi(tmp_path, images="dcm"), cache=tmp_path / "cache")).checked()
    assert [(record.id, record.view) for record in reading.records] == [(name, "PA") for name in FRONTAL]
    assert reading.cautions == ()
    assert reading.records[0].image.suffix == ".dcm"


def test_a_report_is_a_patient_and_both_views_are_in_one_split(tmp_path):
    reports = [Report(n, ["normal"], f"Clear lungs {n}.", "Normal chest.") for n in range(1, 30)]
    root = write_fake_kaggle(tmp_path, reports)
    both = config(root, views=("frontal", "lateral"))
    splits = split_records(read_dataset(both), both)
    assert sum(map(len, splits[:3])) == 58
    assert splits.shared_patients == 0
    assert all(len(part) % 2 == 0 for part in splits[:3])


def test_the_xml_files_may_be_elsewhere_and_the_root_above(tmp_path):
    root = write_fake_openi(tmp_path / "a" / "openi")
    moved = (root / "ecgen-radiology").rename(tmp_path / "texts")
    assert len(read_iu_xray(config(tmp_path / "a", reports=moved)).checked().records) == 7
    with pytest.raises(ConfigError, match=r"no folder .*absent; set data\.reports"):
        read_iu_xray(config(root, reports=tmp_path / "absent")).checked()
    with pytest.raises(DataError, match=r"neither ecgen-radiology/1\.xml etc\. nor indiana_reports\.csv in .*openi"):
        read_iu_xray(config(root)).checked()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (as_xml(REPORTS[0])[:-40], "1 file is damaged XML, such as 1.xml; unpack NLMCXR_reports.tgz again"),
        ("", "1 file is empty, such as 1.xml"),
        ("<html/>", "1 file is not a report of Open-i"),
        (as_xml(REPORTS[0], BOMB), "1 file declares XML entities, which no report needs"),
        (
            as_xml(REPORTS[0]).replace("CXR1_1_IM-0001-1001", "../../secret"),
            "1 file has an image name that is not a file name",
        ),
        (as_xml(REPORTS[0]).replace("<MeSH>", "<MeSH>" + " " * (1 << 20)), "1 file is larger than 1024 KiB"),
        (as_xml(REPORTS[0]).replace("1_IM-0001-1001", "2_IM-0002-1001"), "1 image is in two reports, such as 2_IM"),
    ],
)
def test_faults_of_damaged_xml_name_files_but_not_content(tmp_path, content, message):
    root = write_fake_openi(tmp_path)
    (root / "ecgen-radiology" / "1.xml").write_text(content)
    with pytest.raises(DataError, match=message) as error:
        read_iu_xray(config(root)).checked()
    assert " line" not in str(error.value)
    assert "XXXX" not in str(error.value)


def test_an_entity_is_never_expanded_nor_a_file_opened(tmp_path):
    (tmp_path / "secret.txt").write_text("SECRET")
    head = f'<?xml version="1.0"?><!DOCTYPE eCitation SYSTEM "{tmp_path}/secret.txt">'
    (tmp_path / "1.xml").write_text(as_xml(REPORTS[0], head))
    read = read_xml_reports(report_files(tmp_path))
    assert [report.sections["impression"] for report in read.reports] == ["Normal chest x-XXXX."]


def test_reports_without_any_image_are_refused(tmp_path):
    root = write_fake_openi(tmp_path, [REPORTS[4]])
    with pytest.raises(DataError, match=r"no report in .*ecgen-radiology names an image"):
        read_iu_xray(config(root)).checked()


def rows_of(path):
    return [line.split(",") for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        ("projections", lambda rows: [*rows, ["1", "../x", "Frontal"]], "column 'filename' names no image"),
        ("projections", lambda rows: [*rows, ["one", "9_IM.dcm.png", "Frontal"]], "column 'uid' holds no number"),
        (
            "projections",
            lambda rows: [*rows, ["1", "9_IM.dcm.png", "Oblique"]],
            "must be Frontal or Lateral",
        ),
        (
            "projections",
            lambda rows: [*rows, [*rows[1][:2], "Lateral"]],
            "lines 2, 9: two rows of the same image disagree",
        ),
        ("projections", lambda rows: [row[:2] for row in rows], "no column 'projection'"),
        (
            "reports",
            lambda rows: [*rows, ["", *rows[1][1:]]],
            r"indiana_reports\.csv line 7: column 'uid' holds no number",
        ),
        ("reports", lambda rows: [*rows, [*rows[1][:-1], "Other."]], "two reports of the same study differ"),
        ("reports", lambda rows: [rows[0], ["99", *rows[1][1:]]], "1 report, none of which belongs to an image"),
        ("reports", lambda rows: [row[:-1] for row in rows], "no column 'impression'"),
    ],
)
def test_faulty_tables_are_refused(tmp_path, table, change, message):
    root = write_fake_kaggle(tmp_path)
    path = root / f"indiana_{table}.csv"
    write_csv(path, change(rows_of(path)))
    with pytest.raises(DataError, match=message):
        read_iu_xray(config(root)).checked()


def test_equal_rows_are_merged_and_images_of_unknown_reports_counted(tmp_path):
    root = write_fake_kaggle(tmp_path)
    for name, change in (
        ("projections", lambda rows: [*rows, rows[1]]),
        ("reports", lambda rows: [*rows[:-2], rows[1]]),
    ):
        write_csv(root / f"indiana_{name}.csv", change(rows_of(root / f"indiana_{name}.csv")))
    reading = read_iu_xray(config(root)).checked()
    assert reading.rejected["duplicate"] == ["line 9"]
    assert "2 images belong to a report that is not in indiana_reports.csv" in reading.notes
    assert (reading.records[3].report, reading.records[3].labels) == (None, {})


def test_one_table_without_the_other_is_refused(tmp_path):
    root = write_fake_kaggle(tmp_path)
    (root / "indiana_projections.csv").unlink()
    with pytest.raises(DataError, match=r"no indiana_projections\.csv next to the other table"):
        read_iu_xray(config(root)).checked()


def test_missing_images_are_counted_and_without_any_the_paths_are_named(tmp_path):
    root = write_fake_openi(tmp_path / "a", missing=FRONTAL[:1])
    assert read_iu_xray(config(root, max_invalid=0.5)).checked().rejected["missing"] == FRONTAL[:1]
    with pytest.raises(DataError, match=r"ecgen-radiology: 1 of 7 images is not on disk"):
        read_iu_xray(config(root)).checked()
    every = [name for report in REPORTS for name in image_ids(report)]
    root = write_fake_openi(tmp_path / "b", missing=every)
    with pytest.raises(DataError, match=r"none of 7 images is on disk; looked for 1_IM-0001-1001\.png and \.dcm in"):
        read_iu_xray(config(root)).checked()
    assert len(read_iu_xray(config(root), check_files=False).checked().records) == 7


def test_the_table_setting_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.table=x\.csv does not apply to data\.dataset=iu-xray"):
        read_iu_xray(config(tmp_path, table="x.csv")).checked()


@pytest.mark.parametrize("text", ["CXR1_1_IM-0001-3001", "1_IM-0001-3001.dcm.png", "cxr12_1_IM-0001-3001.DCM"])
def test_an_image_has_one_name_in_all_spellings(text):
    assert image_name(text) == "1_IM-0001-3001"
