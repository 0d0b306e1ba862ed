import random

import pytest
from tests.fakes.chexpert import write_image
from tests.fakes.manifest import HEADER, LINES, write_fake_manifest

from cleft.config import DataConfig
from cleft.data.readers.manifest import read_manifest, write_template
from cleft.data.splits.recipes import split_records
from cleft.errors import ConfigError, DataError


def read(root, **settings):
    return read_manifest(DataConfig(dataset="manifest", root=root, **settings)).checked()


def faults(root, **settings):
    return read_manifest(DataConfig(dataset="manifest", root=root, **settings)).faults


def test_a_record_has_every_field_of_the_row(tmp_path):
    reading = read(write_fake_manifest(tmp_path))
    record = reading.records[1]
    assert (record.id, record.image) == ("images/a2.png", tmp_path / "images/a2.png")
    assert (record.patient, record.view, record.sex, record.age) == ("a", "AP", "Female", 62.0)
    assert record.caption == "Small effusion, left."
    assert record.labels == {"Edema": 1.0}
    assert [other.labels for other in reading.records] == [{"No Finding": 1}, {"Edema": 1}, {"Edema": -1}, {"Edema": 0}]


def test_laterality_and_scanner_are_optional_columns(tmp_path):
    lines = ["images/a.png,left,ACME,x", "images/b.png,R,,x", "images/c.png,both,ACME,x"]
    root = write_fake_manifest(tmp_path, lines, header="image,Side,Scanner,caption")
    assert [(r.laterality, r.scanner) for r in read(root).records] == [("L", "ACME"), ("R", None), (None, "ACME")]
    assert read(root).findings == ()


def test_other_columns_are_findings(tmp_path):
    reading = read(write_fake_manifest(tmp_path))
    assert reading.findings == ("No Finding", "Edema")
    assert "ignored columns that begin with _: _remark" in reading.notes


def test_without_a_patient_column_each_image_is_a_patient_and_a_note_says_so(tmp_path):
    reading = read(write_fake_manifest(tmp_path, ["images/a.png,1", "images/b.png,0"], header="image,Edema"))
    assert [record.patient for record in reading.records] == ["images/a.png", "images/b.png"]
    assert any("no column 'patient': every image counts as a separate patient" in note for note in reading.notes)
    assert set(reading.cautions) < set(reading.notes)
    assert len(reading.cautions) == 1


def test_other_names_and_letter_cases_of_columns_are_accepted(tmp_path):
    root = write_fake_manifest(tmp_path, ["images/a.png,p,x"], header="Path,Patient_ID,Text")
    assert [(r.id, r.patient, r.caption) for r in read(root).records] == [("images/a.png", "p", "x")]


def test_a_split_column_is_read_under_its_usual_names(tmp_path):
    cells = ["Train", "training", "valid", "dev", "TEST", ""]
    lines = [f"images/{i}.png,{i},{cell},x" for i, cell in enumerate(cells)]
    root = write_fake_manifest(tmp_path, lines, header="image,patient,Split,caption")
    reading = read(root)
    assert [record.split for record in reading.records] == ["train", "train", "val", "val", "test", None]
    note_start = "column 'split' names train 2, val 2, test 1; data.split=given uses it; 1 row has none"
    assert any(note.startswith(note_start) for note in reading.notes)
    splits = split_records(reading, DataConfig(dataset="manifest", split="given"))
    assert [len(part) for part in splits[:3]] == [2, 2, 1]


def test_an_unknown_split_name_is_refused_with_its_line(tmp_path):
    root = write_fake_manifest(tmp_path, ["images/a.png,train,x", "images/b.png,fold 3,x"], header="image,split,text")
    assert [(f.what, f.lines) for f in faults(root)] == [("column 'split' holds 'fold 3'", [3])]


def test_selected_and_unknown_views_are_kept(tmp_path):
    lines = ["images/a.png,ap,x", "images/b.png,LATERAL,x", "images/c.png,,x"]
    root = write_fake_manifest(tmp_path, lines, header="image,view,caption")
    assert [record.view for record in read(root).records] == ["AP", "lateral", None]
    reading = read(root, views=("AP", "PA"))
    assert [record.view for record in reading.records] == ["AP", None]
    assert reading.rejected == {"view-lateral": ["images/b.png"]}


def test_a_table_without_a_selected_view_is_refused(tmp_path):
    root = write_fake_manifest(tmp_path, ["images/a.png,MLO,x"], header="image,view,caption")
    with pytest.raises(DataError, match=r"no row is left after leaving out view-MLO \(1\); data\.views keeps AP, PA"):
        read(root, views=("AP", "PA"))
    assert len(read(root).records) == 1


@pytest.mark.parametrize(
    "path", ["../secret.png", "/etc/passwd", "images\\a.png", "http://host/a.png", "s3://b/a.png", "C:/a.png"]
)
def test_a_path_that_leaves_the_root_is_refused_with_its_line(tmp_path, path):
    root = write_fake_manifest(tmp_path, ["images/a.png,1", f"{path},1"], header="image,Edema")
    with pytest.raises(
        DataError, match=r"line 3: image .* leaves the folder of the table; write paths below"
    ) as caught:
        read(root)
    assert caught.value.reason == "outside-root"


def test_a_link_that_leaves_the_root_is_refused_with_its_line(tmp_path):
    root = write_fake_manifest(tmp_path / "root", ["images/a.png,1"], header="image,Edema")
    (root / "images/b.png").symlink_to(write_image(tmp_path / "away.png"))
    (root / "manifest.csv").write_text("image,Edema\nimages/a.png,1\nimages/b.png,1\n")
    with pytest.raises(DataError, match=r"line 3: an image is reached by a link that leaves") as caught:
        read(root)
    assert caught.value.reason == "outside-root"


def test_equivalent_paths_are_one_image(tmp_path):
    lines = ["images/a.png,1", "./images//a.png,1"]
    reading = read(write_fake_manifest(tmp_path, lines, header="image,Edema"))
    assert [record.id for record in reading.records] == ["images/a.png"]
    assert reading.rejected == {"duplicate": ["line 3"]}


def test_rows_of_one_image_that_disagree_are_refused_with_both_lines(tmp_path):
    root = write_fake_manifest(tmp_path, ["images/a.png,1", "images/b.png,0", "images/a.png,0"], header="image,Edema")
    with pytest.raises(DataError, match="lines 2, 4: two rows of the same image disagree"):
        read(root)


def test_shuffling_the_table_changes_no_record(tmp_path):
    root = write_fake_manifest(tmp_path)
    plain = read(root).records
    lines = list(LINES)
    random.Random(1).shuffle(lines)
    (root / "manifest.csv").write_text("\n".join([HEADER, *lines]))
    shuffled = read(root).records
    assert plain != shuffled
    assert sorted(plain, key=lambda r: r.id) == sorted(shuffled, key=lambda r: r.id)


@pytest.mark.parametrize(
    ("header", "line", "message"),
    [
        ("imge,Edema", "images/a.png,1", r"no column 'image'; found \['imge', 'Edema'\].*nearest to 'image' is 'imge'"),
        ("image,Edema", ",1", r"line 2: column 'image' is empty"),
        (
            "image,patient,Edema",
            "images/a.png,,1",
            r"line 2: column 'patient' is empty; fill in a patient",
        ),
        (
            "image,comment",
            "images/a.png,fine",
            r"line 2: column 'comment' holds text that is not a label; allowed are 1, 0, -1 and empty; if.*'_comment'",
        ),
        (
            "image,path,Edema",
            "images/a.png,b,1",
            r"columns \['image', 'path'\] all mean 'image'; name one of them 'image'",
        ),
        ("image,patient", "images/a.png,p", r"no caption, report or finding"),
    ],
)
def test_faults_come_with_a_remedy(tmp_path, header, line, message):
    with pytest.raises(DataError, match=message):
        read(write_fake_manifest(tmp_path, [line], header=header))


@pytest.mark.parametrize(
    ("header", "line", "reports"),
    [
        ("image,report", '"Clear lungs.\nNo effusion."', ["Clear lungs. No effusion."] * 4),
        (
            "image,report",
            '"HISTORY: Cough.\nFINDINGS: Clear. IMPRESSION: Normal chest."',
            [
                "Normal chest. Clear.",
                "Clear. Normal chest.",
                "Normal chest.",
                "HISTORY: Cough. FINDINGS: Clear. IMPRESSION: Normal chest.",
            ],
        ),
        (
            "image,Findings,Impression",
            "Clear.,Normal.",
            ["Normal. Clear.", "Clear. Normal.", "Normal.", "Clear. Normal."],
        ),
        ("image,findings,impression", "Clear.,", ["Clear.", "Clear.", None, "Clear."]),
        ("image,report,caption", "HISTORY: Cough.,a", ["HISTORY: Cough."] * 4),
        ("image,report,caption", ",a", [None] * 4),
    ],
)
def test_a_report_is_one_column_or_its_sections(tmp_path, header, line, reports):
    root = write_fake_manifest(tmp_path, [f"images/a.png,{line}"], header=header)
    choices = ("both", "as-written", "impression", "whole")
    assert [read(root, report_sections=choice).records[0].report for choice in choices] == reports


def test_reports_are_counted_and_need_neither_caption_nor_finding(tmp_path):
    root = write_fake_manifest(
        tmp_path, ["images/a.png,p,Clear lungs.", "images/b.png,q,"], header="image,patient,report"
    )
    assert "1 of 2 images has a report" in read(root).notes
    assert "report" not in read(root).findings


def test_equal_images_with_other_reports_are_refused(tmp_path):
    root = write_fake_manifest(tmp_path, ["images/a.png,Clear.", "images/a.png,Normal."], header="image,report")
    assert [fault.reason for fault in faults(root)] == ["duplicate"]


def test_a_missing_image_is_counted_or_an_error(tmp_path):
    root = write_fake_manifest(tmp_path)
    (root / "images/b.png").unlink()
    assert [fault.reason for fault in faults(root)] == ["missing"]
    assert read(root, max_invalid=0.3).rejected == {"missing": ["images/b.png"]}


def test_e12_an_image_with_another_spelling_on_disk_is_found(tmp_path):
    root = write_fake_manifest(tmp_path, ["images/a.png,1", "images/B.PNG,0"], header="image,Edema")
    (root / "images/a.png").rename(root / "images/A.png")
    (root / "images").rename(root / "Images")
    reading = read(root)
    assert [(r.id, r.image) for r in reading.records] == [
        ("images/a.png", root / "Images/A.png"),
        ("images/B.PNG", root / "Images/B.PNG"),
    ]
    assert any("2 images have another spelling on disk" in note and "(lines 2, 3)" in note for note in reading.notes)


def test_a_missing_root_setting_is_an_error():
    with pytest.raises(ConfigError, match=r"set --data\.root"):
        read(None)


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no manifest\.csv in"):
        read(tmp_path)


def test_the_template_is_a_table_that_can_be_read_once_its_images_are_there(tmp_path):
    table = write_template(tmp_path / "new")
    assert (tmp_path / "new/MANIFEST.md").read_text().startswith("# Your own table")
    assert [fault.reason for fault in faults(table.parent)] == ["missing"]
    for line in table.read_text().splitlines()[1:]:
        path = table.parent / line.partition(",")[0]
        path.parent.mkdir(exist_ok=True)
        path.touch()
    reading = read(table.parent)
    assert [record.patient for record in reading.records] == ["p1", "p1", "p2", "p3"]
    assert reading.findings == ("No Finding", "Edema", "Pleural Effusion", "Support Devices")
    assert reading.records[3].caption == "Small left effusion, no edema."


def test_the_template_overwrites_nothing(tmp_path):
    (tmp_path / "manifest.csv").write_text("mine")
    with pytest.raises(ConfigError, match=r"manifest\.csv exists and was not written by cleft"):
        write_template(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.csv"]
