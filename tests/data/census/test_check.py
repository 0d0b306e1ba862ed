import pytest
from tests.fakes.chexpert import odd_rows, write_fake_chexpert
from tests.fakes.embed import write_fake_embed
from tests.fakes.manifest import write_fake_manifest
from tests.fakes.nih import write_fake_nih
from tests.fakes.rsna import write_fake_rsna

from cleft.config import DataConfig
from cleft.data.census.check import CheckOptions, census_lines, check_dataset
from cleft.errors import ConfigError
from cleft.types import Captions, Census, Excluded, Groups, Tally


def check(root, dataset="manifest", **settings):
    return check_dataset(DataConfig(dataset=dataset, root=root, **settings))


def test_every_kind_of_fault_is_reported_in_one_pass_with_line_and_remedy(tmp_path):
    lines = [
        "images/a.png,p,1,",
        "images/b.png,p,yes,1",
        "../c.png,p,1,",
        "images/d.png,p,1",
        ",p,1,",
        "images/a.png,p,0,",
        "images/e.png,,1,2",
        "images/f.png,q,1,",
    ]
    root = write_fake_manifest(tmp_path, lines, header="image,patient,Edema,Fracture")
    (root / "images/f.png").unlink()
    result = check(root)
    faults = [line.removeprefix("problem: manifest.csv ") for line in result.lines if line.startswith("problem: ")]
    assert result.faults == len(faults) == 8
    assert faults[0].startswith("line 5: 3 cells where the header has 4; fix the commas")
    assert faults[1].startswith("line 3: column 'Edema' holds 'yes'; allowed are 1, 0, -1 and empty")
    assert faults[2].startswith("line 8: column 'Fracture' holds '2'")
    assert faults[3].startswith("line 4: image '../c.png' leaves the folder of the table; write paths")
    assert faults[4].startswith("line 6: column 'image' is empty; fill in")
    assert faults[5].startswith("line 8: column 'patient' is empty; fill in")
    assert faults[6].startswith("lines 2, 7: two rows of the same image disagree")
    assert faults[7].startswith("line 9: 1 of 4 images is not on disk")


def test_a_table_without_faults_is_summarised(tmp_path):
    result = check(write_fake_manifest(tmp_path))
    assert result.faults == 0
    assert not any(line.startswith("fault") for line in result.lines)
    assert "4 images of 3 patients can be used" in result.lines
    rows = [" ".join(line.split()) for line in result.lines]
    assert "images by view AP 2, PA 1, unknown 1" in rows
    assert "sex Female 2, Male 1, unknown 1" in rows
    assert "age 60–69 2, unknown 2" in rows
    assert "files by format PNG 4" in rows
    assert "captions in the table: 1; the others are made from labels" in rows
    assert "train 2 images of 1 patient" in rows
    assert any(row.startswith("split patients: 0 patients are in two splits (digest ") for row in rows)
    assert "finding 1 0 -1 blank in train in val in test" in rows
    assert "Edema 1 1 1 1 – – –" in rows
    assert "No Finding 1 0 0 3 – – –" in rows
    assert len(result.lines) < 40


def test_what_was_left_out_is_counted_by_reason(tmp_path):
    result = check(
        write_fake_chexpert(tmp_path, missing=["patient00005/study1/view1_frontal.jpg"]), "chexpert", max_invalid=0.5
    )
    assert result.faults == 0
    assert [line.partition(", such as ")[0] for line in result.lines if line.startswith("left out,")] == [
        "left out, view-lateral: 1",
        "left out, view-LL: 1",
        "left out, missing: 1",
    ]
    assert any(
        line.endswith("missing: 1, such as train/patient00005/study1/view1_frontal.jpg") for line in result.lines
    )


def test_a_fault_does_not_hide_the_summary_of_the_rest(tmp_path):
    rows = odd_rows()
    rows[0]["Edema"] = "yes"
    result = check(write_fake_chexpert(tmp_path, rows), "chexpert")
    assert result.faults == 1
    assert "6 images of 5 patients can be used" in result.lines


@pytest.mark.parametrize(
    ("dataset", "write", "whole", "broken"),
    [
        ("chexpert", write_fake_chexpert, "/patient00002/", "/pat2/"),
        ("rsna", write_fake_rsna, ",0\n", ",2\n"),
        ("nih", write_fake_nih, "No Finding", "NoFinding"),
        ("embed", write_fake_embed, "/cohort_1/", "/cohortt1/"),
    ],
)
def test_without_any_image_the_table_is_summarised(tmp_path, dataset, write, whole, broken):
    write(tmp_path)
    for image in [path for path in tmp_path.rglob("*") if path.suffix in (".jpg", ".png", ".dcm")]:
        image.unlink()
    for folder in tmp_path.glob("images/cohort_*"):
        folder.rename(folder.with_name("elsewhere"))
    names = "train.csv stage_2_train_labels.csv Data_Entry_2017_v2020.csv EMBED_OpenData_metadata.csv".split()
    table = next(path for path in tmp_path.rglob("*.csv") if path.name in names)
    table.write_text(table.read_text().replace(whole, broken, 1))
    result = check_dataset(
        DataConfig(dataset=dataset, root=tmp_path, split="patients"), None, CheckOptions(decode=None)
    )
    printed = [line for line in result.lines if line.startswith("problem: ")]
    assert "set data.root to the folder" in printed[0]
    assert broken.strip(",\n") in printed[1]
    assert not any("decoded" in line or "no row names" in line for line in result.lines)
    assert any(line.endswith("can be used") for line in result.lines)
    assert any(line.startswith("finding ") for line in result.lines)


@pytest.mark.parametrize("content", [None, "", "image;Edema\na;1\n"])
def test_an_unreadable_table_is_one_fault(tmp_path, content):
    if content is not None:
        (tmp_path / "manifest.csv").write_text(content)
    result = check(tmp_path)
    assert result.faults == len(result.lines) == 1


def test_a_split_that_cannot_be_made_is_a_fault(tmp_path):
    result = check(write_fake_manifest(tmp_path), split="5x200-strict")
    assert result.faults == 1
    assert "5x200 needs 200 images per class" in result.lines[0]


def test_a_missing_root_names_the_setting():
    with pytest.raises(ConfigError, match=r"set --data\.root"):
        check(None)


def test_real_radiographs_have_no_faults(shared):
    result = check(shared / "data/chexpert-mini", "chexpert")
    assert result.faults == 0
    assert "726 images of 503 patients can be used" in result.lines


def lines(**changes):
    return census_lines(
        Census(**{"dataset": "manifest", "table": "manifest.csv", "faults": (), "images": 7, **changes})
    )


def test_faults_come_first_and_notes_behind_them():
    printed = lines(faults=("a b", "c d"), notes=("e f",), patients=5, sources={"manifest.csv": "ab"})
    assert printed[:4] == ["problem: a b", "problem: c d", "e f", "7 images of 5 patients can be used"]


def test_an_unreadable_dataset_has_its_fault_only():
    assert lines(faults=("no table",), images=0) == ["problem: no table"]


def test_long_lists_are_cut_with_their_count():
    printed = lines(
        tallies=(Tally(name="view", counts=tuple((f"v{i}", 20 - i) for i in range(12))),),
        labels={f"finding {i}": (i, 0, 0, 0) for i in range(40)},
        unlisted=tuple(Excluded(reason=f".e{i}", count=1) for i in range(12)),
    )
    assert "images by view  v0 20, v1 19, v2 18, v3 17, v4 16, v5 15, v6 14, v7 13 and 4 more" in printed
    assert "and 10 rarer findings" in printed
    assert [line.split()[:2] for line in printed if line.startswith("finding ")][1] == ["finding", "39"]
    assert sum(line.startswith("files that no row names") for line in printed) == 8
    assert len(printed) < 60


def test_long_names_and_captions_keep_the_part_that_differs():
    printed = lines(
        labels={"x" * 50: (1, 2, 3, 4)},
        captions=Captions(distinct=1, from_table=0, longest=40, common=(("same " * 30 + "end", 7),)),
        excluded_rows=(Excluded(reason="missing", count=1, examples=("folder/" * 60 + "a.png",)),),
    )
    assert any(line.startswith("x" * 33 + "… ") for line in printed)
    assert any(line.startswith("        7  …") and line.endswith("same end") for line in printed)
    assert max(map(len, printed)) < 240


def test_columns_are_aligned():
    splits = Groups(
        name="split",
        groups=("train", "val", "test"),
        images=(4, 1, 2),
        patients=(3, 1, 1),
        shares={"Edema": (0.5, None, 0.0)},
    )
    printed = lines(labels={"Edema": (1_234, 0, 5, 67)}, splits=splits, split_recipe="patients", split_digest="ab")
    head, row = (line for line in printed if line.startswith(("finding", "Edema")))
    assert len(head) == len(row)
    assert row.split() == ["Edema", "1,234", "0", "5", "67", "50.0", "%", "–", "0.0", "%"]
    assert "split patients: 0 patients are in two splits (digest ab)" in printed


def test_the_number_of_decoded_images_is_reported():
    assert "7 images were decoded; all can be used" in lines(decoded=7)
    printed = lines(decoded=3, undecodable=(Excluded(reason="truncated", count=1, examples=("a.png: truncated",)),))
    assert "3 of 7 images, drawn at random, were decoded; 1 cannot be used" in printed
    assert "cannot be decoded, truncated: 1, such as a.png: truncated" in printed
