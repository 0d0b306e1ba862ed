import subprocess
import sys

import pytest
from tests.fakes.chexpert import write_fake_chexpert
from tests.fakes.manifest import write_fake_manifest

from cleft.config import DataConfig
from cleft.data import DATASETS, read_dataset
from cleft.errors import ConfigError

OPENING = "this is a chest x ray of a patient with"


def test_a_dataset_comes_with_labels_decided_and_captions_written(tmp_path):
    record = read_dataset(DataConfig(root=write_fake_chexpert(tmp_path))).records[1]
    assert record.labels == {"Cardiomegaly": 0.0, "Lung Opacity": 1.0, "Edema": 0.0}
    assert record.uncertain == ("Edema",)
    assert record.caption == f"{OPENING} lung opacity"


def test_the_policy_reaches_the_caption(tmp_path):
    reading = read_dataset(DataConfig(root=write_fake_chexpert(tmp_path), uncertain="ones", negatives=True))
    assert reading.records[1].caption == f"{OPENING} lung opacity edema but this image has no cardiomegaly"


def test_an_own_table_keeps_its_sentences(tmp_path):
    reading = read_dataset(DataConfig(dataset="manifest", root=write_fake_manifest(tmp_path)))
    assert [record.caption for record in reading.records] == [
        f"{OPENING} no finding",
        "small effusion left",
        OPENING,
        OPENING,
    ]


@pytest.mark.parametrize("dataset", sorted(DATASETS))
def test_every_reader_asks_for_a_root(dataset):
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
