"""Test lists in every supported form, and lists that do not match the table."""

import pytest
from tests.fakes.chexpert import chexpert_row, write_csv, write_fake_chexpert
from tests.fakes.manifest import write_fake_manifest

from cleft.config import DataConfig
from cleft.data.readers.chexpert import read_chexpert
from cleft.data.readers.manifest import read_manifest
from cleft.errors import DataError

FIRST = "patient00001/study1/view1_frontal.jpg"
LATERAL = "patient00001/study1/view2_lateral.jpg"
PA = "patient00002/study1/view1_frontal.jpg"
LL = "patient00002/study2/view1_frontal.jpg"
FIFTH = "patient00005/study1/view1_frontal.jpg"


def read(tmp_path, text, name="list.csv", **settings):
    root = write_fake_chexpert(tmp_path / "data")
    (tmp_path / name).write_text(text)
    return read_chexpert(DataConfig(root=root, test_list=tmp_path / name, **settings)).checked()


def listed(reading):
    return {name.removeprefix("train/") for name in reading.listed_ids}


def labels_of(reading, image):
    [found] = [record.labels for record in reading.records if record.id == f"train/{image}"]
    return found


@pytest.mark.parametrize(
    "prefix", ["", "train/", "CheXpert-v1.0/train/", "/data/CheXpert-v1.0-small/train/", "..\\train\\"]
)
@pytest.mark.parametrize("header", ["", "Path\n", "image\n", "ID\n"])
def test_a_plain_list_is_read_with_any_prefix_and_with_or_without_a_header(tmp_path, prefix, header):
    if not prefix:
        prefix = "train/"
    reading = read(tmp_path, f"{header}{prefix}{FIRST}\n{prefix}{FIFTH}\n", name="list.txt")
    assert listed(reading) == {FIRST, FIFTH}
    assert "list.txt lists 2 images; they are the test set" in reading.notes
    assert [name for name in reading.sources if "test list" in name] == ["list.txt (test list)"]


def test_a_list_in_the_form_of_the_table_replaces_labels(tmp_path):
    rows = [
        {"": "0", **chexpert_row(FIRST, {"Edema": "1.0", "Fracture": "-1.0"}), "Reports": '"Edema,\nno more."'},
        {"": "1", **chexpert_row(FIFTH, {"Atelectasis": "1.0", "Edema": "0.0"}, view="PA"), "Reports": ""},
    ]
    reading = read(tmp_path, write_csv(tmp_path / "rows.csv", rows).read_text())
    assert listed(reading) == {FIRST, FIFTH}
    assert labels_of(reading, FIRST) == {"Edema": 1.0, "Fracture": -1.0}
    assert labels_of(reading, FIFTH) == {"Atelectasis": 1.0, "Edema": 0.0}
    assert "labels of 1 image come from list.csv, which differs from the table" in reading.notes
    assert labels_of(reading, PA) == {"Lung Opacity": 1.0, "Edema": -1.0, "Cardiomegaly": 0.0}


def test_a_column_of_classes_sets_these_findings_only(tmp_path):
    reading = read(tmp_path, f"path,class\ntrain/{PA},pleural_effusion\ntrain/{FIFTH},Cardiomegaly\n")
    assert labels_of(reading, PA) == {
        "Lung Opacity": 1.0,
        "Edema": -1.0,
        "Cardiomegaly": 0.0,
        "Pleural Effusion": 1.0,
    }
    assert labels_of(reading, FIFTH) == {
        "Atelectasis": 1.0,
        "Edema": 0.0,
        "Cardiomegaly": 1.0,
        "Pleural Effusion": 0.0,
    }


def test_a_plain_list_keeps_the_labels_of_the_table(tmp_path):
    plain = read_chexpert(DataConfig(root=write_fake_chexpert(tmp_path / "data"))).checked()
    reading = read(tmp_path, f"train/{FIRST}\ntrain/{PA}\n")
    assert reading.records == plain.records


def test_images_of_the_list_are_kept_whatever_their_view_and_counted(tmp_path):
    reading = read(tmp_path, f"Path\ntrain/{FIRST}\ntrain/{LATERAL}\ntrain/{LL}\n")
    kept = [record.id.removeprefix("train/") for record in reading.records]
    assert kept[:4] == [FIRST, LATERAL, PA, LL]
    assert not reading.rejected
    assert "2 images of the test list are kept although data.views excludes them: 1 lateral, 1 LL" in reading.notes


def test_other_images_of_that_view_are_left_out(tmp_path):
    reading = read(tmp_path, f"Path\ntrain/{LL}\n")
    assert reading.rejected == {"view-lateral": [f"train/{LATERAL}"]}


def test_repeated_entries_are_ignored_but_must_agree(tmp_path):
    reading = read(tmp_path, f"Path,class\ntrain/{FIRST},Edema\nCheXpert-v1.0/train/{FIRST},Edema\n")
    assert listed(reading) == {FIRST}
    assert "1 entry of list.csv repeats an earlier one and is ignored" in reading.notes
    with pytest.raises(DataError, match=r"list\.csv line 3: two entries of the same image disagree"):
        read(tmp_path, f"Path,class\ntrain/{FIRST},Edema\ntrain/{FIRST},Fracture\n")


def test_entries_missing_from_the_table_are_refused_with_lines_and_examples(tmp_path):
    absent = "train/patient09999/study1/view1_frontal.jpg"
    with pytest.raises(
        DataError, match=rf"list\.csv lines 3, 5: 2 of 4 entries are not in train\.csv, such as '{absent}'"
    ):
        read(tmp_path, f"Path\ntrain/{FIRST}\n{absent}\ntrain/{PA}\nx.png\n")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("index,name\n1,a\n", r"no column 'path' or 'image' or 'id'; found \['index', 'name'\]"),
        (f"Path,class\ntrain/{FIRST},Oedema\n", r"line 2: the class is 'Oedema'; name one of No Finding, "),
        (
            f"Path,class,Edema\ntrain/{FIRST},Edema,0\n",
            r"line 2: the class is a finding whose own column does not say 1",
        ),
        (f"Path,Edema\ntrain/{FIRST},often\n", r"line 2: column 'Edema' holds"),
        ("", "is empty"),
    ],
)
def test_an_ambiguous_list_is_refused(tmp_path, text, sentence):
    with pytest.raises(DataError, match=sentence):
        read(tmp_path, text)


def test_a_missing_list_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no list of images at .*gone\.csv; set data\.test_list"):
        read_chexpert(DataConfig(root=write_fake_chexpert(tmp_path), test_list=tmp_path / "gone.csv")).checked()


def test_a_list_of_ids_works_with_your_own_table(tmp_path):
    root = write_fake_manifest(tmp_path / "mine")
    ids = [record.id for record in read_manifest(DataConfig(dataset="manifest", root=root)).checked().records]
    (tmp_path / "list.txt").write_text(f"{ids[0]}\nelsewhere/{ids[2]}\n")
    reading = read_manifest(DataConfig(dataset="manifest", root=root, test_list=tmp_path / "list.txt")).checked()
    assert reading.listed_ids == {ids[0], ids[2]}
    assert len(reading.records) == len(ids)
