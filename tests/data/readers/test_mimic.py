import csv
import gzip

import pytest
from tests.fakes.mimic import (
    Study,
    final,
    image_id,
    odd_studies,
    text_path,
    write_fake_mimic,
    write_sectioned,
    write_table,
)

from cleft.config import DataConfig
from cleft.data import read_dataset
from cleft.data.readers.mimic import FINDINGS, read_mimic
from cleft.data.splits.recipes import split_records
from cleft.data.splits.split_file import label_source
from cleft.errors import ConfigError, DataError

STUDIES = odd_studies()
FRONTAL = [image_id(STUDIES[s], v) for s, v in ((0, 0), (1, 0), (2, 0), (3, 0), (4, 0), (4, 1), (5, 0))]
COUNTS = (
    "mimic-cxr-2.0.0-metadata.csv.gz holds 9 images of 6 studies of 4 patients "
    "(published: 377,110 images of 227,835 studies of 65,379 patients)"
)


def config(root, **changes):
    return DataConfig(dataset="mimic", root=root, **changes)


def test_images_have_the_labels_and_the_report_of_their_study(tmp_path):
    reading = read_mimic(config(write_fake_mimic(tmp_path))).checked()
    assert [record.id for record in reading.records] == FRONTAL
    second = reading.records[1]
    assert second.labels == {"Cardiomegaly": 1.0, "Edema": -1.0, "Pneumothorax": 0.0}
    assert (second.patient, second.study, second.view, second.split) == ("10000101", "50000102", "AP", "train")
    assert second.image.relative_to(tmp_path).parts[:4] == ("files", "p10", "p10000101", "s50000102")
    assert reading.findings == FINDINGS
    assert reading.notes[0] == COUNTS
    assert reading.rejected == {"view-lateral": [image_id(STUDIES[0], 1), image_id(STUDIES[2], 1)]}


def test_reports_are_read_whatever_their_headings(tmp_path):
    records = read_mimic(config(write_fake_mimic(tmp_path))).checked().records
    assert [record.report for record in records] == [
        "No acute process. Lungs are clear. Heart size is 3.5 units.",
        "Enlarged heart. Possible edema.",
        "Small left effusion. Otherwise unchanged.",
        "Follow up in ___. Small nodule.",
        None,
        None,
        "Tube in place as before.",
    ]
    assert "cough" in read_mimic(config(tmp_path, report_sections="whole")).checked().records[0].report
    assert read_mimic(config(tmp_path, report_sections="impression")).checked().records[0].report == "No acute process."


def test_missing_labels_and_reports_are_counted(tmp_path):
    notes = read_mimic(config(write_fake_mimic(tmp_path))).checked().notes
    assert "mimic-cxr-2.0.0-chexpert.csv.gz labels 5 studies (published: 227,827)" in notes
    assert "1 study has no labels there; its findings are unknown" in notes
    assert "reports from 5 text files" in notes
    assert "1 of 6 studies has no report" in notes
    assert "7 of 9 images have a report, 5 of them distinct" in notes
    impression = read_mimic(config(tmp_path, report_sections="findings")).checked().notes
    assert "1 report does not have the sections that data.report_sections chooses" in impression


def test_views_come_from_the_position_or_the_code_and_unknown_ones_are_kept(tmp_path):
    records = read_mimic(config(write_fake_mimic(tmp_path), views=("PA", "AP", "lateral"))).checked().records
    assert [record.view for record in records] == ["PA", "lateral", "AP", None, "lateral", "PA", "AP", "PA", "AP"]


def test_the_default_split_is_the_official_one(tmp_path):
    reading = read_dataset(config(write_fake_mimic(tmp_path)))
    assert "official split: train 3, val 2, test 4" in reading.notes
    splits = split_records(reading, config(tmp_path))
    assert (splits.recipe, [len(part) for part in splits[:3]], splits.shared_patients) == ("given", [2, 1, 4], 0)


def test_labels_of_negbio_can_be_selected(tmp_path):
    root = write_fake_mimic(tmp_path)
    reading = read_mimic(config(root, label_source="negbio")).checked()
    assert reading.records[1].labels["Edema"] == 0
    assert label_source(reading, config(root, label_source="negbio")) == "mimic-cxr-2.0.0-negbio.csv.gz"
    assert label_source(read_mimic(config(root)).checked(), config(root)) == "mimic-cxr-2.0.0-chexpert.csv.gz"
    with pytest.raises(ConfigError, match=r"data\.label_source=negbio is for data\.dataset=mimic, not nih"):
        DataConfig(dataset="nih", label_source="negbio")


def test_the_table_of_sections_gives_the_same_reports(tmp_path):
    root = write_fake_mimic(tmp_path, reports="sectioned")
    reading = read_mimic(config(root)).checked()
    assert reading.records[0].report == "No change since before. Findings of 101."
    assert reading.records[4].report is None
    assert "mimic_cxr_sectioned.csv" in reading.sources
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (root / "mimic_cxr_sectioned.csv").rename(elsewhere / "sections.csv")
    assert read_mimic(config(root, reports=elsewhere / "sections.csv")).checked().records == reading.records


def test_reports_may_be_in_another_folder(tmp_path):
    root = write_fake_mimic(tmp_path / "jpg", reports="")
    for study in STUDIES[:2]:
        path = tmp_path / "texts" / "mimic-cxr-reports" / "files" / text_path(study)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(study.report)
    assert {record.report for record in read_mimic(config(root)).checked().records} == {None}
    found = read_mimic(config(root, reports=tmp_path / "texts")).checked().records
    assert [record.report is not None for record in found] == [True, True, *[False] * 5]


def test_the_dicom_release_is_read_with_or_without_the_jpg_tables(tmp_path):
    both = read_mimic(config(write_fake_mimic(tmp_path / "a", images="dcm"))).checked()
    assert {record.image.suffix for record in both.records} == {".dcm"}
    assert [record.id for record in both.records] == FRONTAL
    alone = config(write_fake_mimic(tmp_path / "b", images="dcm", tables=["records"]), cache=tmp_path / "cache")
    reading = read_mimic(alone).checked()
    assert [record.view for record in reading.records] == ["PA", "AP", None, None, None, "AP", "PA", "AP"]
    assert all(record.labels == {} for record in reading.records)
    assert any(note.startswith("no mimic-cxr-2.0.0-chexpert.csv") for note in reading.notes)
    assert any(note.startswith("no mimic-cxr-2.0.0-split.csv") for note in reading.notes)


def test_the_root_may_be_the_parent_and_tables_uncompressed(tmp_path):
    write_fake_mimic(tmp_path / "2.0.0", packed=False)
    assert len(read_mimic(config(tmp_path)).checked().records) == 7


def test_captions_come_from_labels_or_else_from_the_report(tmp_path):
    captions = [record.caption for record in read_dataset(config(write_fake_mimic(tmp_path))).records]
    assert captions[1] == "this is a chest x ray of a patient with cardiomegaly"
    assert captions[3] == "follow up in ___ small nodule"


def test_images_without_a_report_are_kept_or_left_out(tmp_path):
    root = write_fake_mimic(tmp_path)
    assert len(read_dataset(config(root)).records) == 7
    dropped = read_dataset(config(root, missing_report="drop"))
    assert len(dropped.records) == 5
    assert dropped.rejected["no-report"] == [FRONTAL[4], FRONTAL[5]]


def test_one_word_reports_are_left_out_with_the_missing_ones(tmp_path):
    studies = [Study("10000101", "1", ("PA",), {}, final("IMPRESSION:  Normal.")), STUDIES[5]]
    dropped = read_dataset(config(write_fake_mimic(tmp_path, studies), missing_report="drop"))
    assert dropped.rejected["no-text"] == [image_id(studies[0], 0)]


def test_missing_reports_are_noted_and_dropping_all_images_is_refused(tmp_path):
    root = write_fake_mimic(tmp_path, reports="")
    assert any(
        note.startswith("no reports: neither mimic_cxr_sectioned.csv")
        for note in read_mimic(config(root)).checked().notes
    )
    with pytest.raises(DataError, match="none of 7 images of mimic has a report that can be read"):
        read_dataset(config(root, missing_report="drop"))
    (root / "mimic-cxr-reports.zip").write_bytes(b"PK\x03\x04")
    assert any(
        note.startswith("mimic-cxr-reports.zip is not unpacked") for note in read_mimic(config(root)).checked().notes
    )


def test_sections_of_another_release_are_refused_and_single_mismatches_counted(tmp_path):
    root = write_fake_mimic(tmp_path, reports="")
    strangers = [study._replace(study=f"9{study.study}") for study in STUDIES]
    write_sectioned(root / "mimic_cxr_sectioned.csv", strangers)
    with pytest.raises(
        DataError, match=r"names 5 studies, none of which is among the 6 of the images; is it from another"
    ):
        read_mimic(config(root)).checked()
    write_sectioned(root / "mimic_cxr_sectioned.csv", [*strangers[:2], *STUDIES])
    assert "2 studies of mimic_cxr_sectioned.csv have no image here" in read_mimic(config(root)).checked().notes


def rewrite(path, change):
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", newline="") as file:
        rows = list(csv.reader(file))
    write_table(path, change(rows))


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        (
            "mimic_cxr_sectioned.csv",
            lambda rows: [*rows, [*rows[1][:1], "Other.", "", "", ""]],
            "two reports of the same",
        ),
        (
            "mimic_cxr_sectioned.csv",
            lambda rows: [["id", *rows[0][1:]], *rows[1:]],
            r"no column 'study'.*made by create",
        ),
        ("mimic_cxr_sectioned.csv", lambda rows: [row[:1] for row in rows], "no column 'findings', 'impression'"),
        (
            "mimic-cxr-2.0.0-chexpert.csv.gz",
            lambda rows: [*rows, [*rows[1][:2], *["1"] * 14]],
            "two rows of the same study",
        ),
        (
            "mimic-cxr-2.0.0-chexpert.csv.gz",
            lambda rows: [rows[0], *([*row[:2], "2", *row[3:]] for row in rows[1:])],
            "'2'",
        ),
        (
            "mimic-cxr-2.0.0-chexpert.csv.gz",
            lambda rows: [rows[0], *([row[0], "7", *row[2:]] for row in rows[1:2])],
            "none of",
        ),
        ("mimic-cxr-2.0.0-chexpert.csv.gz", lambda rows: [row[:-1] for row in rows], "no column 'Support Devices'"),
        ("mimic-cxr-2.0.0-split.csv.gz", lambda rows: [*rows, [*rows[1][:3], "test"]], "an image is in two splits"),
        ("mimic-cxr-2.0.0-split.csv.gz", lambda rows: [rows[0], [*rows[1][:3], "tset"]], "column 'split' holds 'tset'"),
        (
            "mimic-cxr-2.0.0-metadata.csv.gz",
            lambda rows: [rows[0], ["../x", *rows[1][1:]], *rows[2:]],
            "'dicom_id' holds no",
        ),
        (
            "mimic-cxr-2.0.0-metadata.csv.gz",
            lambda rows: [rows[0], [*rows[1][:2], "x", *rows[1][3:]], *rows[2:]],
            "'study_id'",
        ),
        (
            "mimic-cxr-2.0.0-metadata.csv.gz",
            lambda rows: [*rows, ["a-b", "9", *rows[1][2:]]],
            "a study belongs to two patients",
        ),
        ("mimic-cxr-2.0.0-metadata.csv.gz", lambda rows: [row[1:] for row in rows], "no column 'dicom_id'"),
    ],
)
def test_faulty_tables_are_refused_by_name(tmp_path, table, change, message):
    root = write_fake_mimic(tmp_path, reports="sectioned")
    rewrite(root / table, change)
    with pytest.raises(DataError, match=message) as error:
        read_mimic(config(root)).checked()
    assert table.removesuffix(".gz") in str(error.value)


def test_images_outside_the_official_split_are_counted(tmp_path):
    root = write_fake_mimic(tmp_path)
    rewrite(root / "mimic-cxr-2.0.0-split.csv.gz", lambda rows: rows[:-2])
    assert any(
        note.startswith("2 images are not in mimic-cxr-2.0.0-split.csv.gz")
        for note in read_mimic(config(root)).checked().notes
    )


def test_an_oversized_report_and_a_folder_without_reports_are_refused(tmp_path):
    root = write_fake_mimic(tmp_path)
    (root / "files" / text_path(STUDIES[0])).write_text("word " * 20_000)
    with pytest.raises(DataError, match=r"1 report is larger than 64 KiB, such as s50000101\.txt"):
        read_mimic(config(root)).checked()
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match=r"no report of a study in .*nothing; it should contain p10/p10000032"):
        read_mimic(config(root, reports=tmp_path / "nothing")).checked()
    with pytest.raises(ConfigError, match=r"no reports at .*absent; set data\.reports"):
        read_mimic(config(root, reports=tmp_path / "absent")).checked()
    with pytest.raises(ConfigError, match=r"data\.reports=x is for data\.dataset=mimic or iu-xray, not rsna"):
        DataConfig(dataset="rsna", reports="x")


def test_missing_images_are_counted_and_without_any_the_paths_are_named(tmp_path):
    root = write_fake_mimic(tmp_path / "a", missing=FRONTAL[:1])
    assert read_mimic(config(root, max_invalid=0.5)).checked().rejected["missing"] == FRONTAL[:1]
    with pytest.raises(DataError, match="1 of 7 images is not on disk"):
        read_mimic(config(root)).checked()
    every = [image_id(study, number) for study in STUDIES for number in range(2)]
    root = write_fake_mimic(tmp_path / "b", missing=every)
    with pytest.raises(DataError, match=r"none of 9 images probed is on disk; looked for p10/p10000101/s50000101/"):
        read_mimic(config(root)).checked()
    assert len(read_mimic(config(root), check_files=False).checked().records) == 7


def test_without_a_list_of_images_the_expected_tables_are_named(tmp_path):
    root = write_fake_mimic(tmp_path, tables=["split"])
    with pytest.raises(
        DataError, match=r"no mimic-cxr-2\.0\.0-metadata\.csv\.gz in .*there are mimic-cxr-2\.0\.0-split"
    ):
        read_mimic(config(root)).checked()
