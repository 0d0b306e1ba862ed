"""A split file of version 0.1 is still read."""

import json
from pathlib import Path

from cleft.config import DataConfig
from cleft.data import read_dataset
from cleft.data.phantoms.chest import write_phantoms
from cleft.data.splits.recipes import split_records

FILE = Path(__file__).with_name("split-0.1.0.json")
"""Written for 24 synthetic patients with seed 0."""


def test_split_file_of_an_earlier_version_is_followed(tmp_path):
    root = write_phantoms(tmp_path / "phantoms", patients=24, seed=0, size=64)
    config = DataConfig(root=root, split_file=FILE)
    splits = split_records(read_dataset(config), config)
    written = json.loads(FILE.read_text())
    assert splits.digest == written["digest"]
    sizes = [len(part) for part in (splits.train, splits.val, splits.test)]
    assert sizes == [written["images"][name] for name in ("train", "val", "test")]
    assert splits.notes == ("the split is read from split-0.1.0.json",)
