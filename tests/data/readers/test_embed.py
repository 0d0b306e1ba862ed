import time
from pathlib import Path

import pytest
from tests.fakes.chexpert import write_csv
from tests.fakes.embed import DIAGNOSTIC, SCREENING, both_breasts, file_row, finding_row, write_fake_embed

from cleft.config import DataConfig, load_settings
from cleft.data.readers.embed import read_embed
from cleft.data.readers.embed_captions import BIRADS_CLASSES, DENSITY_CLASSES
from cleft.errors import ConfigError, DataError

GREAT, GREATER = "9007199254740993", "9007199254740995"  # equal as floats: 2^53 + 1 and 2^53 + 3 are rounded


def read(root, **settings):
    return read_embed(DataConfig(dataset="embed", root=root, **settings)).checked()


def present(record):
    return sorted(name for name, value in record.labels.items() if value == 1)


def scores(reading):
    """BI-RADS class of each image, by file name."""
    return {
        record.image.stem: next((name for name in present(record) if name in BIRADS_CLASSES), None)
        for record in reading.records
    }


def note(reading, part):
    [found] = [text for text in reading.notes if part in text]
    return found


def test_a_record_has_every_field_of_the_table(tmp_path):
    record = read(write_fake_embed(tmp_path)).records[0]
    assert record.id == "cohort_1/10000001/1.2.3/1.2.4/left.dcm"
    assert record.image == tmp_path / "images" / record.id
    assert (record.patient, record.study) == ("10000001", "1234567890123456")
    assert (record.view, record.laterality, record.sex, record.age) == ("CC", "L", "Female", 57.9)
    assert (record.scanner, record.split) == ("HOLOGIC", None)
    assert present(record) == ["BI-RADS 1", "Density B"]
    assert record.labels == {
        name: float(name in ("BI-RADS 1", "Density B")) for name in (*BIRADS_CLASSES, *DENSITY_CLASSES)
    }
    assert record.caption == (
        "this is a breast 2d full field digital mammogram of a patient with breast tissue density 2 scattered "
        "fibroglandular densities with birads score 1 negative"
    )


@pytest.mark.parametrize("inner", ["", "tables"])
def test_the_root_may_be_the_folder_of_tables_or_its_parent(tmp_path, inner):
    assert len(read(write_fake_embed(tmp_path) / inner).records) == 2


def test_the_full_tables_come_before_the_reduced_ones_and_the_notes_say_which(tmp_path):
    write_fake_embed(tmp_path)
    write_fake_embed(tmp_path, [file_row("left")], suffix="_reduced")
    reading = read(tmp_path)
    assert len(reading.records) == 2
    assert list(reading.sources) == ["EMBED_OpenData_metadata.csv", "EMBED_OpenData_clinical.csv"]
    assert "EMBED_OpenData_metadata.csv holds 2 files" in note(reading, "holds")


def test_the_reduced_tables_are_enough(tmp_path):
    reading = read(write_fake_embed(tmp_path, suffix="_reduced"))
    assert len(reading.records) == 2
    assert "EMBED_OpenData_clinical_reduced.csv" in reading.sources


def test_a_part_of_the_metadata_table_can_be_named(tmp_path):
    write_fake_embed(tmp_path)
    write_csv(tmp_path / "tables" / "mine.csv", [file_row("left")])
    assert list(scores(read(tmp_path, table="mine.csv"))) == ["left"]
    assert list(scores(read(tmp_path, table="tables/mine.csv"))) == ["left"]


def test_a_table_outside_the_root_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="leads out of"):
        read(write_fake_embed(tmp_path), table="../mine.csv")


def test_a_missing_table_is_named_with_the_folders(tmp_path):
    write_fake_embed(tmp_path)
    (tmp_path / "tables" / "EMBED_OpenData_clinical.csv").unlink()
    (tmp_path / "tables" / "AWS_Open_Data_Clinical_Legend.csv").write_text("Code,Meaning\nA,0\n")
    with pytest.raises(DataError, match=r"no EMBED_OpenData_clinical\.csv or EMBED_OpenData_clinical_reduced\.csv"):
        read(tmp_path)


def test_a_missing_column_is_named_with_the_nearest(tmp_path):
    files = [
        {("LateralityFinal" if key == "ImageLateralityFinal" else key): row[key] for key in row}
        for row in both_breasts()
    ]
    with pytest.raises(DataError, match=r"no column 'ImageLateralityFinal'.*nearest to .* is 'LateralityFinal'"):
        read(write_fake_embed(tmp_path, files))


def test_columns_may_have_other_spellings_which_are_noted(tmp_path):
    findings = [{key.upper().replace("RACE_DESC", "ethnicity_desc"): value for key, value in finding_row().items()}]
    reading = read(write_fake_embed(tmp_path, findings=findings), caption="natural")
    assert "caucasian or white" in (reading.records[0].caption or "")
    assert "EMBED_OpenData_clinical.csv names the column RACE_DESC ethnicity_desc" in reading.notes


def test_ids_keep_all_their_digits(tmp_path):
    files = [file_row("one", exam=GREAT), file_row("two", exam=GREATER)]
    findings = [finding_row("N", exam=GREAT), finding_row("M", exam=GREATER, desc=DIAGNOSTIC)]
    reading = read(write_fake_embed(tmp_path, files, findings))
    assert float(GREAT) + 2 != float(GREATER) or int(float(GREAT)) != int(GREAT)
    assert scores(reading) == {"one": "BI-RADS 1", "two": "BI-RADS 5"}
    assert [record.study for record in reading.records] == [GREAT, GREATER]


@pytest.mark.parametrize("spoilt", ["1.23456789012346e+15", "9007199254740994.0", "1E16", "12.5"])
def test_an_id_that_lost_digits_is_refused(tmp_path, spoilt):
    files = [file_row("one"), file_row("two", exam=spoilt)]
    with pytest.raises(DataError, match=r"line 3: acc_anon holds '.*': it was saved as a number and lost digits"):
        read(write_fake_embed(tmp_path, files))


def test_a_damaged_id_names_the_clinical_table_and_line(tmp_path):
    findings = [finding_row(), finding_row(exam="1e16")]
    with pytest.raises(DataError, match=r"EMBED_OpenData_clinical\.csv line 3: acc_anon holds"):
        read(write_fake_embed(tmp_path, findings=findings))


def test_a_trailing_point_zero_of_an_id_is_dropped(tmp_path):
    reading = read(write_fake_embed(tmp_path, findings=[finding_row(patient="10000001.0")]))
    assert [record.patient for record in reading.records] == ["10000001"] * 2
    assert "writes 1 id in empi_anon with a trailing .0" in note(reading, ".0")


def test_an_empty_id_is_refused(tmp_path):
    with pytest.raises(DataError, match="line 2: empi_anon is empty"):
        read(write_fake_embed(tmp_path, [file_row("one", patient="", prefix="cohort_1/"), file_row("two")]))


@pytest.mark.parametrize("prefix", ["", "./images/", "/mnt/NAS2/mammo/anon_dicom/", "D:\\mammo\\anon_dicom\\"])
def test_the_path_before_the_cohort_is_dropped(tmp_path, prefix):
    write_fake_embed(tmp_path)
    write_csv(tmp_path / "tables" / "EMBED_OpenData_metadata.csv", both_breasts(prefix=prefix))
    assert read(tmp_path).records[0].id == "cohort_1/10000001/1.2.3/1.2.4/left.dcm"


def test_the_first_cohort_of_a_path_counts(tmp_path):
    path = "/old/mammo/anon_dicom/cohort_1/10000001/cohort_2/left.dcm"
    reading = read_embed(
        DataConfig(dataset="embed", root=write_fake_embed(tmp_path, [file_row("left", anon_dicom_path=path)])),
        check_files=False,
    ).reading
    assert reading.records[0].id == "cohort_1/10000001/cohort_2/left.dcm"


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("/mnt/left.dcm", "line 2: anon_dicom_path holds '/mnt/left.dcm'"),
        ("cohort_1/../../left.dcm", "leaves the folder"),
    ],
)
def test_a_path_without_a_cohort_is_refused(tmp_path, path, sentence):
    with pytest.raises(DataError, match=sentence):
        read(write_fake_embed(tmp_path, [file_row("left", anon_dicom_path=path), file_row("right")]))


def test_cohorts_may_be_next_to_the_tables(tmp_path):
    write_fake_embed(tmp_path)
    (tmp_path / "images" / "cohort_1").rename(tmp_path / "cohort_1")
    assert all(record.image.is_file() for record in read(tmp_path).records)


def test_a_root_without_images_names_the_folders_tried(tmp_path):
    write_fake_embed(tmp_path)
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"no folder cohort_1 or cohort_2 in .*images or "):
        read(tmp_path)


def test_missing_images_above_the_limit_are_an_error(tmp_path):
    root = write_fake_embed(tmp_path, missing=["left"])
    with pytest.raises(DataError, match="1 of 2 images is not on disk"):
        read(root)
    assert list(scores(read(root, max_invalid=0.5))) == ["right"]


def test_only_2d_images_are_kept_and_others_counted(tmp_path):
    files = [file_row("a"), file_row("b", kind="cview"), file_row("c", kind="C-view"), file_row("d", kind="")]
    reading = read(write_fake_embed(tmp_path, files))
    assert {reason: len(ids) for reason, ids in reading.rejected.items()} == {"type-cview": 2, "type-unknown": 1}


def test_a_file_without_a_row_differs_from_one_that_was_left_out(tmp_path):
    root = write_fake_embed(tmp_path, [file_row("a"), file_row("b", kind="cview"), file_row("c", exam="7")])
    scan = read_embed(DataConfig(dataset="embed", root=root))
    assert len(scan.reading.records) == 1
    assert [Path(path).stem for path in scan.images] == ["a", "b", "c"]


def test_an_image_of_neither_breast_is_counted(tmp_path):
    reading = read(write_fake_embed(tmp_path, [file_row("a"), file_row("b", side="")]))
    assert {reason: len(ids) for reason, ids in reading.rejected.items()} == {"no-side": 1}


def test_an_image_whose_exam_has_no_finding_is_counted(tmp_path):
    reading = read(write_fake_embed(tmp_path, [file_row("a"), file_row("b", exam="7")]))
    assert {reason: len(ids) for reason, ids in reading.rejected.items()} == {"no-exam": 1}


def test_an_exam_belongs_to_one_patient(tmp_path):
    files = [file_row("a"), file_row("b", patient="10000002")]
    reading = read(write_fake_embed(tmp_path, files, [finding_row()]))
    assert list(scores(reading)) == ["a"]
    assert note(reading, "another patient").startswith("1 file names an exam")


def test_a_finding_represents_the_breast_of_its_side(tmp_path):
    findings = [finding_row("A", "L"), finding_row("N", "R")]
    assert scores(read(write_fake_embed(tmp_path, findings=findings))) == {"left": "BI-RADS 0", "right": "BI-RADS 1"}


@pytest.mark.parametrize("side", ["", "B", "b"])
def test_a_finding_of_both_sides_or_none_represents_both_breasts(tmp_path, side):
    reading = read(write_fake_embed(tmp_path, findings=[finding_row("B", side)]))
    assert scores(reading) == {"left": "BI-RADS 2", "right": "BI-RADS 2"}


def test_the_unmentioned_breast_of_a_bilateral_exam_is_negative_and_counted(tmp_path):
    reading = read(write_fake_embed(tmp_path, findings=[finding_row("A", "L", "3")]))
    assert scores(reading) == {"left": "BI-RADS 0", "right": "BI-RADS 1"}
    assert present(reading.records[1]) == ["BI-RADS 1", "Density C"]
    assert note(reading, "implied").startswith("implied-negative: 1 image has BI-RADS 1")


def test_the_unmentioned_breast_of_a_unilateral_exam_is_left_out(tmp_path):
    reading = read(write_fake_embed(tmp_path, findings=[finding_row("A", "L", desc="MG Diagnostic Left")]))
    assert scores(reading) == {"left": "BI-RADS 0"}
    assert {reason: len(ids) for reason, ids in reading.rejected.items()} == {"other-breast": 1}


def test_a_row_without_a_side_implies_no_negative_breast(tmp_path):
    findings = [finding_row("A", "L"), finding_row("B", "")]
    assert scores(read(write_fake_embed(tmp_path, findings=findings))) == {"left": "BI-RADS 0", "right": "BI-RADS 2"}


def test_a_row_of_an_unknown_side_makes_no_breast_negative(tmp_path):
    findings = [finding_row("A", "L"), finding_row("M", "Q")]
    reading = read(write_fake_embed(tmp_path, findings=findings))
    assert scores(reading) == {"left": "BI-RADS 0"}
    assert "1 finding has a side other than L, R, B and blank; it is assigned to no breast" in reading.notes


def test_the_metadata_table_describes_exams_without_a_clinical_description(tmp_path):
    reading = read(write_fake_embed(tmp_path, findings=[finding_row("A", "L", desc="")]))
    assert scores(reading)["right"] == "BI-RADS 1"
    told = [finding_row("A", "L", desc="MG Diagnostic Left")]
    assert "right" not in scores(read(write_fake_embed(tmp_path, findings=told)))


def test_a_clinical_table_without_descriptions_is_read(tmp_path):
    findings = [{key: value for key, value in finding_row("A", "L").items() if key != "desc"}]
    assert scores(read(write_fake_embed(tmp_path, findings=findings)))["right"] == "BI-RADS 1"


@pytest.mark.parametrize(
    ("letters", "desc", "rule", "score"),
    [
        ("PM", DIAGNOSTIC, "severity", 5),
        ("PM", DIAGNOSTIC, "first", 3),
        ("MP", DIAGNOSTIC, "highest", 5),
        ("AS", DIAGNOSTIC, "severity", 4),
        ("AP", DIAGNOSTIC, "severity", 3),
        ("AP", SCREENING, "severity", 0),
        ("AP", SCREENING, "highest", 3),
        ("NBA", SCREENING, "severity", 0),
        ("NBA", SCREENING, "first", 1),
        ("NBA", SCREENING, "highest", 0),
        ("NB", SCREENING, "highest", 2),
        ("BN", SCREENING, "severity", 2),
        ("KM", DIAGNOSTIC, "severity", 6),
        ("AM", SCREENING, "severity", 5),
        ("XN", SCREENING, "first", 1),
        ("XN", SCREENING, "severity", 1),
        ("NX", SCREENING, "highest", 1),
    ],
)
def test_the_rule_selects_one_of_several_findings(tmp_path, letters, desc, rule, score):
    findings = [finding_row(letter, "L", desc=desc) for letter in letters]
    reading = read(write_fake_embed(tmp_path, [file_row("left")], findings), breast_label=rule)
    assert scores(reading) == {"left": f"BI-RADS {score}"}
    assert f"1 image has several findings of its breast; data.breast_label={rule} selected one" in reading.notes


def test_without_an_assessment_the_density_is_kept(tmp_path):
    for letter in ("X", ""):
        record = read(write_fake_embed(tmp_path, findings=[finding_row(letter, density="4")])).records[0]
        assert record.labels == {name: float(name == "Density D") for name in DENSITY_CLASSES}
        assert (record.caption or "").endswith("of a patient with breast tissue density 4 extremely dense")


def test_without_a_density_the_assessment_is_kept(tmp_path):
    record = read(write_fake_embed(tmp_path, findings=[finding_row("S", density="")])).records[0]
    assert record.labels == {name: float(name == "BI-RADS 4") for name in BIRADS_CLASSES}
    assert (record.caption or "").endswith("of a patient with birads score 4 suspicious abnormality")


def test_images_with_neither_are_left_out_and_counted(tmp_path):
    findings = [finding_row("X", "L", ""), finding_row("N", "R", "")]
    assert {k: len(v) for k, v in read(write_fake_embed(tmp_path, findings=findings)).rejected.items()} == {
        "no-label": 1
    }


def test_the_most_frequent_density_of_an_exam_is_used(tmp_path):
    findings = [finding_row("N", "L", "3"), finding_row("N", "R", "2.0"), finding_row("B", "R", "2")]
    reading = read(write_fake_embed(tmp_path, findings=findings))
    assert [present(record)[1] for record in reading.records] == ["Density B", "Density B"]
    assert "1 exam has rows with several densities: the most frequent counts" in reading.notes


def test_every_image_of_a_man_is_left_out_and_counted(tmp_path):
    files = [file_row("a"), file_row("b", exam="7"), file_row("c", exam="8", patient="10000002")]
    findings = [
        finding_row("N", density="5"),
        finding_row("N", density="", exam="7"),
        finding_row("N", exam="8", patient="10000002"),
    ]
    reading = read(write_fake_embed(tmp_path, files, findings))
    assert list(scores(reading)) == ["c"]
    assert {reason: len(ids) for reason, ids in reading.rejected.items()} == {"male": 2}


def test_unknown_codes_are_counted_as_missing(tmp_path):
    reading = read(write_fake_embed(tmp_path, findings=[finding_row("Z", density="9"), finding_row("n", density="1")]))
    assert present(reading.records[0]) == ["BI-RADS 1", "Density A"]
    assert "1 finding has an assessment that is not in the code book" in reading.notes
    assert "1 finding has a density that is not in the code book" in reading.notes


def test_special_views_are_kept_and_counted_and_can_be_left_out(tmp_path):
    files = [
        file_row("a"),
        file_row("b", spot_mag="1.0"),
        file_row("c", view="XCCL"),
        file_row("d", view="", spot_mag="1"),
        file_row("e", view="", spot_mag="0"),
    ]
    root = write_fake_embed(tmp_path, files)
    assert [record.view for record in read(root).records] == ["CC", "CC spot", "XCCL", "spot", None]
    assert "2 compressed or magnified views, and XCCL 1" in note(read(root), "special")
    assert list(scores(read(root, views=("CC", "MLO")))) == ["a", "e"]


def test_implants_are_kept_and_counted(tmp_path):
    files = [file_row("a", BreastImplantPresent="YES"), file_row("b")]
    reading = read(write_fake_embed(tmp_path, files))
    assert len(reading.records) == 2
    assert "1 image shows an implant; it is kept" in reading.notes


def test_a_repeated_file_is_read_once(tmp_path):
    reading = read(write_fake_embed(tmp_path, [file_row("a"), file_row("a")]))
    assert (list(scores(reading)), {k: len(v) for k, v in reading.rejected.items()}) == (["a"], {"duplicate": 1})


def test_a_file_with_two_sides_is_refused(tmp_path):
    with pytest.raises(DataError, match="two rows of the same image disagree"):
        read(write_fake_embed(tmp_path, [file_row("a"), file_row("a", side="R")]))


def test_no_remaining_image_is_a_fault_with_the_reasons(tmp_path):
    with pytest.raises(DataError, match=r"no row is left \(type-cview \(1\), no-exam \(1\)\)"):
        read(write_fake_embed(tmp_path, [file_row("a", kind="cview"), file_row("b", exam="7")]))


def test_a_clinical_table_with_only_damaged_ids_is_a_fault(tmp_path):
    with pytest.raises(DataError, match="lost digits"):
        read(write_fake_embed(tmp_path, findings=[finding_row(exam="1e15")]))


@pytest.mark.parametrize("style", ["sided", "natural", "structured"])
def test_captions_with_sides_forbid_horizontal_flips(style):
    with pytest.raises(
        ConfigError, match=f"turns left breasts into right ones, but captions with data.caption={style}"
    ):
        load_settings(
            "tiny", ["--data.dataset=embed", f"--data.caption={style}", "--images.augment.horizontal_flip=0.5"]
        )
    words = ["--data.dataset=embed", f"--data.caption={style}", "--text.max_tokens=144"]
    assert load_settings("tiny", words).data.caption == style


@pytest.mark.parametrize(("style", "tokens"), [("natural", 58), ("structured", 70)])
def test_captions_too_long_for_the_text_encoder_are_refused(style, tokens):
    words = ["--data.dataset=embed", f"--data.caption={style}", f"--text.max_tokens={tokens}"]
    with pytest.raises(
        ConfigError,
        match=rf"text\.max_tokens={tokens} truncates captions of data\.caption={style}, .* set text\.max_tok",
    ):
        load_settings("tiny", words)


def test_settings_of_mammograms_are_refused_for_other_datasets():
    with pytest.raises(ConfigError, match=r"--data\.breast_label does nothing here: data\.dataset is 'chexpert'"):
        load_settings("tiny", ["--data.breast_label=first"])


@pytest.mark.benchmark
def test_the_tables_of_the_complete_release_are_read_in_seconds(tmp_path):
    files, findings = [], []
    for patient in range(20_000):
        for exam in range(3):
            ids = {"patient": str(10_000_000 + patient), "exam": str(9_007_199_254_740_000 + patient * 3 + exam)}
            for side in "LR":
                for view in ("CC", "MLO"):
                    files.append(file_row(f"{exam}{side}{view}", side=side, view=view, **ids))
                    files.append(file_row(f"{exam}{side}{view}c", side=side, view=view, kind="cview", **ids))
            findings.append(finding_row("NABP"[patient % 4], ("", "L", "R", "B")[exam], **ids))
    write_csv(tmp_path / "tables" / "EMBED_OpenData_metadata.csv", files)
    write_csv(tmp_path / "tables" / "EMBED_OpenData_clinical.csv", findings)
    started = time.perf_counter()
    reading = read_embed(DataConfig(dataset="embed", root=tmp_path, caption="natural"), check_files=False).reading
    assert time.perf_counter() - started < 40  # 8 seconds on an idle machine
    assert len(reading.records) == 240_000
