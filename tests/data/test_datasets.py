import subprocess
import sys
from pathlib import Path

import pytest
from tests.fakes.chexpert import write_fake_chexpert, write_test_set
from tests.fakes.manifest import write_fake_manifest

from cleft.config import DataConfig, Settings
from cleft.data import DATASETS, data_config, read_dataset
from cleft.data.counts import single_class
from cleft.data.datasets import apply_uncertain
from cleft.errors import ConfigError
from cleft.types import Record

OPENING = "this is a chest x ray of a patient with"


def test_a_dataset_has_resolved_labels_and_captions(tmp_path):
    record = read_dataset(DataConfig(root=write_fake_chexpert(tmp_path))).records[1]
    assert record.labels == {"Cardiomegaly": 0.0, "Lung Opacity": 1.0, "Edema": 0.0}
    assert record.uncertain == ("Edema",)
    assert record.caption == f"{OPENING} lung opacity"


def test_the_policy_reaches_the_caption(tmp_path):
    reading = read_dataset(DataConfig(root=write_fake_chexpert(tmp_path), uncertain="ones", mention_absent=True))
    assert reading.records[1].caption == f"{OPENING} lung opacity edema but this image has no cardiomegaly"


def test_a_users_table_keeps_its_captions(tmp_path):
    reading = read_dataset(DataConfig(dataset="manifest", root=write_fake_manifest(tmp_path)))
    assert [record.caption for record in reading.records] == [
        f"{OPENING} no finding",
        "small effusion left",
        OPENING,
        OPENING,
    ]


@pytest.mark.parametrize("dataset", sorted(DATASETS))
def test_every_reader_needs_a_root(dataset):
    with pytest.raises(ConfigError, match=r"set --data\.root"):
        read_dataset(DataConfig(dataset=dataset))


def test_real_radiographs_are_read(shared):
    reading = read_dataset(DataConfig(root=shared / "data/chexpert-mini"))
    assert len(reading.records) == 726
    assert len({record.patient for record in reading.records}) == 503
    assert all(record.caption and record.caption.startswith(OPENING) for record in reading.records)


def test_reading_needs_no_torch():
    code = "import sys, cleft.data; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_settings_of_a_run_are_inherited_for_another_folder_but_not_another_table_or_dataset(tmp_path):
    data = DataConfig(
        root=tmp_path,
        label_source="chexbert",
        split="5x200-paper",
        views=("PA",),
        test_list=Path("list.csv"),
        split_file=Path("split.json"),
    )
    mine = Settings(data=data)
    folder = data_config(mine, f"chexpert:{tmp_path / 'other'}")
    assert (folder.root, folder.table, folder.label_source, folder.split) == (
        tmp_path / "other",
        None,
        "chexbert",
        "5x200-paper",
    )
    assert (folder.test_list, folder.split_file, folder.views) == (Path("list.csv"), Path("split.json"), ("PA",))
    root = write_test_set(tmp_path)
    table = data_config(mine, f"chexpert:{root / 'test_labels.csv'}")
    assert (table.root, table.table, table.label_source, table.split) == (root, "test_labels.csv", "table", None)
    assert (table.test_list, table.split_file, table.views) == (None, None, ("PA",))
    assert [record.view for record in read_dataset(table).records] == ["frontal"]
    with pytest.raises(ConfigError, match=r"no data given, and the run has none.*set --data <dataset>"):
        data_config(Settings(), None)
    foreign = data_config(mine, f"manifest:{tmp_path}")
    assert (foreign.label_source, foreign.split, foreign.test_list, foreign.split_file, foreign.views) == (
        ("table", None, None, None, None)
    )


LABELS = {"Atelectasis": -1.0, "Cardiomegaly": -1.0, "Fracture": -1.0, "Edema": 1.0, "Pneumonia": 0.0}


def record(labels):
    return Record(id="a", image=Path("a.png"), labels=labels, patient="p")


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("zeros", {"Atelectasis": 0, "Cardiomegaly": 0, "Fracture": 0, "Edema": 1, "Pneumonia": 0}),
        ("ones", {"Atelectasis": 1, "Cardiomegaly": 1, "Fracture": 1, "Edema": 1, "Pneumonia": 0}),
        ("mixed", {"Atelectasis": 1, "Cardiomegaly": 0, "Fracture": 0, "Edema": 1, "Pneumonia": 0}),
        ("ignore", {"Edema": 1, "Pneumonia": 0}),
    ],
)
def test_each_policy_resolves_uncertain_labels_only(policy, expected):
    (decided,) = apply_uncertain([record(LABELS)], policy)
    assert decided.labels == expected
    assert decided.uncertain == ("Atelectasis", "Cardiomegaly", "Fracture")


def test_a_record_without_uncertain_labels_is_unchanged():
    sure = record({"Edema": 1.0})
    assert apply_uncertain([sure], "ones")[0] is sure


def test_the_labels_of_the_table_are_not_touched():
    unsure = record({"Edema": -1.0})
    apply_uncertain([unsure, unsure], "ones")
    assert unsure.labels == {"Edema": -1.0}


def test_resolving_twice_changes_nothing():
    once = apply_uncertain([record(LABELS)], "mixed")
    assert apply_uncertain(once, "ones") == once


@pytest.mark.parametrize(
    ("labels", "expected"),
    [({"B": 1.0}, 1), ({}, None), ({"A": 0.0, "B": 0.0}, None), ({"A": 1.0, "B": 1.0}, None), ({"A": -1.0}, None)],
)
def test_only_a_single_present_class_is_returned(labels, expected):
    assert single_class(labels, ["A", "B"]) == expected
