import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from cleft.config import ImagesConfig
from cleft.data.census.twins import contents_of, refuse_twins, shared_contents
from cleft.data.images.cache import prepare_images
from cleft.errors import DataError
from cleft.types import Record

IMAGES = ImagesConfig(size=32, stored_size=32)


def record(folder, name, patient="p", **labels):
    return Record(id=name, image=folder / name, labels=labels, patient=patient)


@pytest.fixture
def folder(tmp_path):
    """Two pictures; the first once more as it is, and once stored in another way."""
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        Image.fromarray(rng.integers(0, 255, (40, 40), np.uint8)).save(tmp_path / name)
    shutil.copy(tmp_path / "a.png", tmp_path / "copy.png")
    Image.open(tmp_path / "a.png").save(tmp_path / "again.png", compress_level=1, pnginfo=None)
    return tmp_path


def contents(records, folder):
    return contents_of(prepare_images(records, IMAGES, folder / "cache"))


def test_copies_and_other_files_of_one_picture_are_the_same_picture(folder):
    assert (folder / "a.png").read_bytes() != (folder / "again.png").read_bytes()
    records = [record(folder, name) for name in ("a.png", "b.png", "copy.png", "again.png")]
    found = contents(records, folder)
    assert found["a.png"] == found["copy.png"] == found["again.png"]
    assert found["b.png"] != found["a.png"]


def test_equal_checksums_alone_are_not_the_same_picture(folder):
    records = [record(folder, name) for name in ("a.png", "b.png")]
    prepared = prepare_images(records, IMAGES, folder / "cache")
    whole = prepared.rows

    class Colliding:
        places, checks = whole.places, np.zeros_like(whole.checks)

        def __getitem__(self, number):
            return whole[number]

    assert len(set(contents_of(replace(prepared, rows=Colliding())).values())) == 2


def test_a_picture_in_two_splits_is_named_with_both(folder):
    parts = {
        "train": [record(folder, "a.png"), record(folder, "b.png")],
        "val": [record(folder, "again.png", "q", Edema=1)],
        "test": [record(folder, "copy.png")],
    }
    (twins,) = shared_contents(parts, contents([r for part in parts.values() for r in part], folder))
    assert twins == (("a.png", "again.png", "copy.png"), ("train", "val", "test"), 2, False)


def test_d16_a_test_picture_in_training_stops(folder):
    parts = {"train": [record(folder, "a.png")], "test": [record(folder, "copy.png", "q")]}
    twins = shared_contents(parts, {"a.png": 1, "copy.png": 1})
    with pytest.raises(DataError, match="1 image of the test split is in another split too") as caught:
        refuse_twins(twins)
    assert caught.value.reason == "shared-images"
    assert ".png" not in str(caught.value)


def test_what_is_harmless_is_not_told_and_what_is_doubtful_is_counted(folder):
    same = [record(folder, "a.png", Edema=1), record(folder, "copy.png", Edema=1)]
    assert refuse_twins(shared_contents({"train": same}, dict.fromkeys(["a.png", "copy.png"], 0))) == []
    parts = {"train": same[:1], "val": [record(folder, "copy.png", "q", Edema=0)]}
    told = refuse_twins(shared_contents(parts, dict.fromkeys(["a.png", "copy.png"], 0)))
    assert [sentence.split()[0] for sentence in told] == ["1", "1", "1"]
    assert "in training and in validation" in told[0]


def test_what_has_no_known_content_is_passed_over(folder):
    assert shared_contents({"train": [record(folder, "a.png"), record(folder, "b.png")]}, {"a.png": 1}) == []
