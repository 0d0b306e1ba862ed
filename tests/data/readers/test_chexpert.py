"""Reader of CheXpert: layouts of the releases, and labels of other tables matched by path."""

import hashlib
import random

import pytest
from tests.fakes.chexpert import (
    FINDINGS,
    SMALL,
    chexpert_row,
    odd_rows,
    write_csv,
    write_fake_chexpert,
    write_full_chexpert,
    write_image,
    write_labels_of,
    write_test_set,
    write_valid,
)

from cleft.config import DataConfig
from cleft.data.readers.chexpert import CAPTION_ORDER, read_chexpert
from cleft.errors import ConfigError, DataError

FIRST = "patient00001/study1/view1_frontal.jpg"
KEPT = [
    "train/patient00001/study1/view1_frontal.jpg",
    "train/patient00002/study1/view1_frontal.jpg",
    "train/patient00003/study1/view1_frontal.jpg",
    "train/patient00003/study2/view1_frontal.jpg",
    "train/patient00004/study1/view1_frontal.jpg",
    "train/patient00005/study1/view1_frontal.jpg",
]


def read(root, **settings):
    return read_chexpert(DataConfig(root=root, **settings)).checked()


def ids(reading):
    return [record.id for record in reading.records]


def test_a_download_that_was_not_unpacked_is_refused(tmp_path):
    (tmp_path / "CheXpert-v1.0-small.zip").write_bytes(b"PK")
    with pytest.raises(
        DataError, match=r"no train\.csv in .*; if it is packed in CheXpert-v1\.0-small\.zip, unpack that"
    ):
        read_chexpert(DataConfig(root=tmp_path)).checked()


def test_a_record_has_every_field_of_the_table(tmp_path):
    record = read(write_fake_chexpert(tmp_path)).records[1]
    assert record.id == "train/patient00002/study1/view1_frontal.jpg"
    assert record.image == tmp_path / SMALL / record.id
    assert record.labels == {"Cardiomegaly": 0.0, "Lung Opacity": 1.0, "Edema": -1.0}
    assert (record.patient, record.study, record.view) == ("patient00002", "patient00002/study1", "PA")
    assert (record.sex, record.age, record.caption) == ("Female", 60.0, None)


@pytest.mark.parametrize("inner", ["", SMALL])
def test_the_root_may_be_the_release_or_its_parent(tmp_path, inner):
    reading = read(write_fake_chexpert(tmp_path) / inner)
    assert ids(reading) == KEPT
    assert all(record.image.is_file() for record in reading.records)


@pytest.mark.parametrize("inner", ["", "CheXpert-v1.0 batch 1 (validate & csv)"])
def test_the_full_release_is_found_in_its_batches(tmp_path, inner):
    reading = read(write_full_chexpert(tmp_path) / inner)
    assert ids(reading) == KEPT
    assert reading.records[1].image.parts[-4:-2] == ("CheXpert-v1.0 batch 2 (train 1)", "patient00002")
    assert all(record.image.is_file() for record in reading.records)


def test_the_container_of_the_full_release_is_found(tmp_path):
    write_full_chexpert(tmp_path / "chexpertchestxrays-u20210408")
    assert ids(read(tmp_path)) == KEPT


def test_lateral_and_unusual_frontal_views_are_left_out_and_counted(tmp_path):
    reading = read(write_fake_chexpert(tmp_path))
    assert reading.rejected == {
        "view-lateral": ["train/patient00001/study1/view2_lateral.jpg"],
        "view-LL": ["train/patient00002/study2/view1_frontal.jpg"],
    }
    assert any("1 lateral, 1 LL" in note for note in reading.notes)


def test_other_view_positions_can_be_selected(tmp_path):
    reading = read(write_fake_chexpert(tmp_path), views=("lateral", "ll"))
    assert [record.view for record in reading.records] == ["lateral", "LL"]


def test_unknown_sexes_are_counted_as_missing(tmp_path):
    reading = read(write_fake_chexpert(tmp_path))
    assert [record.sex for record in reading.records] == ["Female", "Female", None, "Female", "Male", "Female"]
    assert [record.age for record in reading.records] == [60, 60, 0, 60, 90, 60]
    assert "1 row with a sex other than Male or Female counts as unknown" in reading.notes


def test_mixed_path_prefixes_are_dropped_and_noted(tmp_path):
    assert any(
        "CheXpert-v1.0-small/ (7), CheXpert-v1.0/ (1)" in note for note in read(write_fake_chexpert(tmp_path)).notes
    )


def test_notes_compare_counts_with_the_published_ones(tmp_path):
    note = read(write_fake_chexpert(tmp_path)).notes[0]
    assert note.startswith(
        "train.csv holds 8 images of 5 patients (published for train: 223,414 images of 64,540 patients"
    )


def test_windows_separators_and_no_prefix_are_read(tmp_path):
    rows = [chexpert_row(FIRST, prefix="")]
    rows[0]["Path"] = rows[0]["Path"].replace("/", "\\")
    write_image(tmp_path / "train" / FIRST)
    write_csv(tmp_path / "train.csv", rows)
    assert ids(read(tmp_path)) == [f"train/{FIRST}"]


def test_demographics_and_empty_batches_are_left_alone(tmp_path):
    reading = read(write_full_chexpert(tmp_path))
    assert list(reading.sources) == ["train.csv"]
    assert not reading.rejected.keys() - {"view-lateral", "view-LL"}


@pytest.mark.parametrize("write", [lambda folder: write_valid(folder / SMALL).parent, write_full_chexpert])
def test_the_validation_table_has_its_own_images_in_both_releases(tmp_path, write):
    reading = read(write(tmp_path), table="valid.csv")
    assert ids(reading) == ["valid/patient64541/study1/view1_frontal.jpg"]
    assert reading.records[0].image.is_file()
    assert (reading.records[0].sex, reading.records[0].age, reading.records[0].view) == ("Male", 73, "AP")
    assert reading.records[0].labels["Cardiomegaly"] == 1
    assert "published for valid: 234 images of 200 patients" in reading.notes[0]


@pytest.mark.parametrize("table", ["test_labels.csv", "groundtruth.csv"])
@pytest.mark.parametrize("prefix", ["CheXpert-v1.0/", ""])
def test_the_test_set_has_its_views_from_file_names(tmp_path, table, prefix):
    reading = read(write_test_set(tmp_path, table=table, prefix=prefix), table=table)
    assert [(record.view, record.sex, record.age) for record in reading.records] == [("frontal", None, None)]
    assert list(reading.rejected) == ["view-lateral"]
    assert reading.records[0].image.is_file()


def test_the_validation_folder_of_chexlocalize_is_read_under_its_name(tmp_path):
    name = "val/patient64541/study1/view1_frontal.jpg"
    write_image(tmp_path / name)
    write_csv(tmp_path / "val_labels.csv", [{**chexpert_row("x"), "Path": f"CheXpert-v1.0/{name}", "AP/PA": ""}])
    assert ids(read(tmp_path, table="val_labels.csv")) == [name]


def test_any_table_of_the_release_can_be_chosen(tmp_path):
    write_fake_chexpert(tmp_path, table="train_cheXbert.csv")
    reading = read(tmp_path, table="train_cheXbert.csv")
    assert list(reading.sources) == ["train_cheXbert.csv"]
    with pytest.raises(DataError, match=r"no train\.csv in .*; there are train_cheXbert\.csv: set data\.table"):
        read(tmp_path)


def test_a_table_in_two_releases_is_ambiguous(tmp_path):
    write_fake_chexpert(tmp_path)
    write_csv(tmp_path / "CheXpert-v1.0" / "train.csv", odd_rows())
    with pytest.raises(DataError, match=r"train\.csv is in several folders: .*set data\.root to one"):
        read(tmp_path)


def test_a_missing_root_setting_is_an_error():
    with pytest.raises(ConfigError, match=r"set --data\.root to the folder"):
        read(None)


def test_a_root_that_is_not_a_folder_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"nowhere is not a folder; set --data\.root"):
        read(tmp_path / "nowhere")


@pytest.mark.parametrize("table", ["../train.csv", "/etc/passwd"])
def test_a_table_outside_the_root_is_refused(tmp_path, table):
    with pytest.raises(ConfigError, match=r"leads out of data\.root"):
        read(tmp_path, table=table)


def test_without_any_image_the_error_names_the_paths_tried(tmp_path):
    rows = odd_rows()
    lost = [row["Path"].partition("train/")[2] for row in rows]
    with pytest.raises(
        DataError, match=r"none of 8 images .* looked for .*CheXpert-v1\.0-small/train/patient00001"
    ) as caught:
        read(write_fake_chexpert(tmp_path, rows, missing=lost))
    assert caught.value.reason == "missing"


def test_a_missing_image_is_counted_within_what_is_allowed(tmp_path):
    root = write_fake_chexpert(tmp_path, missing=[FIRST])
    reading = read(root, max_invalid=0.2)
    assert ids(reading) == KEPT[1:]
    assert reading.rejected["missing"] == [KEPT[0]]


def test_too_many_missing_images_are_an_error(tmp_path):
    root = write_fake_chexpert(tmp_path, missing=[FIRST])
    with pytest.raises(
        DataError, match=r"line 2: 1 of 6 images is not on disk \(16\.7%, data\.max_invalid allows 1\.0%\)"
    ):
        read(root)


def test_a_missing_lateral_does_not_matter_when_frontals_are_wanted(tmp_path):
    root = write_fake_chexpert(tmp_path, missing=["patient00001/study1/view2_lateral.jpg"])
    assert ids(read(root)) == KEPT


def test_a_label_outside_its_codes_is_refused_with_every_line(tmp_path):
    rows = [chexpert_row(f"patient{i:05}/study1/view1_frontal.jpg", {"Edema": "yes"}) for i in range(23)]
    with pytest.raises(
        DataError, match=r"lines 2, 3, .*, 21 and 3 more: column 'Edema' holds 'yes'; allowed are 1, 0, -1"
    ):
        read(write_fake_chexpert(tmp_path, rows))


def test_a_misspelled_finding_is_named(tmp_path):
    rows = [{("Edemma" if key == "Edema" else key): cell for key, cell in row.items()} for row in odd_rows()]
    with pytest.raises(DataError, match=r"no column 'Edema'; .*nearest to 'Edema' is 'Edemma'"):
        read(write_fake_chexpert(tmp_path, rows))


def test_another_dataset_is_recognised_by_its_paths(tmp_path):
    rows = odd_rows()
    rows[2]["Path"] = "images/00000001_000.png"
    rows[3]["Path"] = "train/patient00001/study1/x_frontal.jpg"
    with pytest.raises(DataError, match=r"lines 4, 5: column 'Path' holds 'images/.*data\.dataset=manifest"):
        read(write_fake_chexpert(tmp_path, rows))


def test_equal_rows_are_merged_across_prefixes_and_counted(tmp_path):
    rows = [*odd_rows(), chexpert_row(FIRST, {"No Finding": "1", "Support Devices": "1"}, prefix="elsewhere")]
    reading = read(write_fake_chexpert(tmp_path, rows))
    assert ids(reading) == KEPT
    assert reading.rejected["duplicate"] == ["line 10"]


def test_rows_of_one_image_that_disagree_are_refused_with_both_lines(tmp_path):
    rows = [*odd_rows(), chexpert_row(FIRST, {"Edema": "1"})]
    with pytest.raises(DataError, match=r"lines 2, 10: two rows of the same image disagree"):
        read(write_fake_chexpert(tmp_path, rows))


def test_no_view_left_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"no row is left after leaving out .*view-lateral \(1\)"):
        read(write_fake_chexpert(tmp_path), views=("oblique",))


def test_shuffling_the_table_changes_no_record(tmp_path):
    rows = odd_rows()
    random.Random(3).shuffle(rows)
    plain = read(write_fake_chexpert(tmp_path / "here"))
    shuffled = read(write_fake_chexpert(tmp_path / "there", rows))

    def known(reading):
        return {
            record.id: (record.labels, record.patient, record.view, record.sex, record.age)
            for record in reading.records
        }

    assert ids(plain) != ids(shuffled)
    assert known(plain) == known(shuffled)


def test_a_reader_collects_every_kind_of_fault(tmp_path):
    rows = odd_rows()
    rows[0]["Edema"] = "2"
    rows[2]["Path"] = "x.png"
    root = write_fake_chexpert(tmp_path, rows, missing=["patient00004/study1/view1_frontal.jpg"])
    scan = read_chexpert(DataConfig(root=root))
    assert [fault.reason for fault in scan.faults] == ["label", "path", "missing"]
    assert len(scan.reading.records) == 4


def test_caption_order_ends_with_no_finding():
    assert sorted(CAPTION_ORDER) == sorted(FINDINGS)
    assert CAPTION_ORDER[:2] == ("Enlarged Cardiomediastinum", "Cardiomegaly")
    assert CAPTION_ORDER[-1] == "No Finding"


def test_real_radiographs_are_found(shared):
    reading = read(shared / "data/chexpert-mini")
    assert len(reading.records) == 726
    assert len({record.patient for record in reading.records}) == 503
    assert not reading.rejected


@pytest.mark.parametrize(
    "text", ["train/patient00001/../../a/view1_frontal.jpg", "train/patient00001/study1/view1.jpg"]
)
def test_a_path_of_another_form_is_a_fault(tmp_path, text):
    root = write_fake_chexpert(tmp_path)
    rows = odd_rows()
    rows[0]["Path"] = text
    write_csv(root / SMALL / "train.csv", rows)
    with pytest.raises(DataError, match=r"line 2: column 'Path' holds"):
        read(root)


IMAGES = [row["Path"].partition("train/")[2] for row in odd_rows()]
OTHERS = {image: {FINDINGS[number]: "1.0", "Fracture": "-1.0"} for number, image in enumerate(IMAGES)}
"""Each image has a different finding, so that a wrongly matched row is detected."""


def labels_of(reading):
    return {record.id.removeprefix("train/"): record.labels for record in reading.records}


def wanted(kept):
    return {
        image: {name: float(code) for name, code in OTHERS[image].items()}
        for image in (record.id.removeprefix("train/") for record in kept.records)
    }


def test_labels_are_matched_by_path_not_by_row(tmp_path):
    root = write_fake_chexpert(tmp_path)
    table = write_labels_of(root / SMALL, "train_cheXbert.csv", odd_rows(), OTHERS)
    plain = read(root)
    reading = read(root, label_source="chexbert")
    assert labels_of(reading) == wanted(plain)
    assert [(r.id, r.view, r.sex, r.age, r.patient) for r in reading.records] == [
        (r.id, r.view, r.sex, r.age, r.patient) for r in plain.records
    ]
    assert reading.sources == {
        **plain.sources,
        "train_cheXbert.csv": hashlib.sha256(table.read_bytes()).hexdigest(),
    }
    assert any(note.startswith("labels come from train_cheXbert.csv, matched by path") for note in reading.notes)


@pytest.mark.parametrize("place", ["CheXpert-v1.0 batch 1 (validate & csv)", ""])
def test_label_tables_are_found_in_the_first_batch_or_next_to_the_batches(tmp_path, place):
    root = write_full_chexpert(tmp_path)
    write_labels_of(root / place, "train_visualCheXbert.csv", odd_rows(), OTHERS, rest="0.0")
    reading = read(root, label_source="visualchexbert")
    assert list(reading.sources) == ["train.csv", "train_visualCheXbert.csv"]
    assert reading.records[0].labels == {**dict.fromkeys(FINDINGS, 0.0), "No Finding": 1.0, "Fracture": -1.0}


def test_an_image_without_a_row_of_labels_is_left_out_and_counted(tmp_path):
    root = write_fake_chexpert(tmp_path)
    some = {image: labels for image, labels in OTHERS.items() if image != IMAGES[2]}
    write_labels_of(root / SMALL, "train_cheXbert.csv", odd_rows(), some)
    reading = read(root, label_source="chexbert")
    assert IMAGES[2] not in labels_of(reading)
    assert labels_of(reading) == wanted(reading)
    assert reading.rejected["no-label"] == [f"train/{IMAGES[2]}"]
    assert any(note.startswith("1 image of the image list is not in train_cheXbert.csv") for note in reading.notes)


def test_a_row_of_labels_without_an_image_is_counted(tmp_path):
    rows = odd_rows()
    root = write_fake_chexpert(tmp_path, rows[1:])
    write_labels_of(root / SMALL, "train_cheXbert.csv", rows, OTHERS)
    reading = read(root, label_source="chexbert")
    assert labels_of(reading) == wanted(reading)
    assert "1 image of train_cheXbert.csv is not in the image list and is not used" in reading.notes
    assert "no-label" not in reading.rejected


def test_tables_that_share_no_image_are_refused(tmp_path):
    root = write_fake_chexpert(tmp_path)
    row = chexpert_row("patient09999/study1/view1_frontal.jpg")
    write_csv(root / SMALL / "train_cheXbert.csv", [row])
    with pytest.raises(
        DataError, match=r"train_cheXbert\.csv: none of its images is in the image list; .*data\.label_source"
    ):
        read(root, label_source="chexbert")


def test_rows_of_one_image_must_agree(tmp_path):
    root = write_fake_chexpert(tmp_path)
    rows = odd_rows()
    write_csv(root / SMALL / "train_cheXbert.csv", [*rows, rows[0]])
    assert len(read(root, label_source="chexbert").records) == 6
    write_csv(root / SMALL / "train_cheXbert.csv", [*rows, {**rows[0], "Edema": "1"}])
    with pytest.raises(DataError, match=r"train_cheXbert\.csv lines 2, 10: two rows of the same image disagree"):
        read(root, label_source="chexbert")


def test_faults_of_a_label_table_name_the_table_and_line(tmp_path):
    root = write_fake_chexpert(tmp_path)
    rows = odd_rows()
    rows[3]["Edema"] = "maybe"
    write_csv(root / SMALL / "train_cheXbert.csv", rows)
    with pytest.raises(DataError, match=r"train_cheXbert\.csv line 5: column 'Edema' holds"):
        read(root, label_source="chexbert")


def test_the_image_list_needs_no_findings_if_another_table_has_them(tmp_path):
    root = write_fake_chexpert(tmp_path)
    rows = odd_rows()
    write_labels_of(root / SMALL, "train_cheXbert.csv", rows, OTHERS)
    write_csv(root / SMALL / "train.csv", [{name: row[name] for name in ("Path", "Sex", "AP/PA")} for row in rows])
    reading = read(root, label_source="chexbert")
    assert labels_of(reading) == wanted(reading)


def test_other_values_in_binary_labels_are_counted(tmp_path):
    root = write_fake_chexpert(tmp_path)
    write_labels_of(root / SMALL, "train_visualCheXbert.csv", odd_rows(), OTHERS, rest="0.0")
    assert any(
        "8 rows of train_visualCheXbert.csv have -1" in note for note in read(root, label_source="visualchexbert").notes
    )
    binary = {image: {"Edema": "1.0"} for image in IMAGES}
    write_labels_of(root / SMALL, "train_visualCheXbert.csv", odd_rows(), binary, rest="0.0")
    assert not any("have -1" in note for note in read(root, label_source="visualchexbert").notes)


def test_a_missing_label_table_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no train_cheXbert\.csv in .*; or set data\.label_source=table"):
        read(write_fake_chexpert(tmp_path), label_source="chexbert")


def test_label_sources_of_chexpert_are_refused_for_other_datasets():
    with pytest.raises(ConfigError, match=r"data\.label_source=chexbert is for data\.dataset=chexpert, not manifest"):
        DataConfig(dataset="manifest", label_source="chexbert")
