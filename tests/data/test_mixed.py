"""A table with DICOM, PNG and JPEG images is one dataset, whatever the file names."""

import numpy as np
import pytest
from tests.fakes.mixed import KINDS, scene, write_kind, write_mixed

from cleft.config import DataConfig, ImagesConfig
from cleft.data import read_dataset
from cleft.data.census.check import CheckOptions, check_dataset
from cleft.data.images.cache import prepare_images
from cleft.data.images.decode import read_gray
from cleft.data.images.preprocess import prepare_image

IMAGES = ImagesConfig(size=56, stored_size=64)


@pytest.mark.parametrize("kind", KINDS)
def test_c4_a_scene_is_the_same_pixels_however_it_is_stored(tmp_path, kind):
    path = write_kind(tmp_path / "noending", kind, scene(3))
    pixels = prepare_image(read_gray(path), IMAGES)
    plain = prepare_image(scene(3), IMAGES)
    assert np.abs(pixels.astype(int) - plain).max() <= (3 if kind == "jpeg" else 1)


def test_a_mixed_table_is_checked_and_prepared_as_one(tmp_path):
    root = write_mixed(tmp_path / "mixed", patients=14)
    config = DataConfig(dataset="manifest", root=root)
    census = check_dataset(config, IMAGES, CheckOptions(decode=None)).census
    assert (census.images, census.patients, census.faults, census.undecodable) == (28, 14, (), ())
    looks = {tally.name: dict(tally.counts) for tally in census.file_tallies}
    assert looks["format"] == {"DICOM": 16, "PNG": 8, "JPEG": 4}
    assert looks["pixels"] == {
        "12-bit MONOCHROME2": 12,
        "12-bit MONOCHROME1": 4,
        "8-bit gray": 8,
        "16-bit gray": 4,
    }
    assert set(looks["transfer syntax"].values()) == {4, 8}
    prepared = prepare_images(read_dataset(config).records, IMAGES, tmp_path / "cache")
    assert (len(prepared), prepared.rejected) == (28, {})
