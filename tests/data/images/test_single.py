"""One image by itself is read as it is in an evaluation."""

import cv2
import numpy as np
import pytest
import torch
from tests.fakes.dicom import write_dicom

from cleft.config import DataConfig, ImagesConfig, Settings
from cleft.data.batches import eval_loader
from cleft.data.images.prepared import prepare_images
from cleft.data.images.single import load_image
from cleft.errors import DataError
from cleft.types import Record


def test_a_single_image_equals_the_same_image_in_a_batch(tmp_path):
    path = tmp_path / "chest.png"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (90, 70), dtype=np.uint8))
    config = ImagesConfig(stored_size=64, size=56)
    record = Record(id="a", image=path, labels={}, patient="p", caption="a chest x ray")
    prepared = prepare_images([record], config, tmp_path / "cache", progress=False)
    batch = next(iter(eval_loader([record], prepared, (), Settings(images=config, data=DataConfig()), batch_size=1)))
    alone = load_image(path, config)
    assert alone.dtype == torch.uint8
    assert torch.equal(alone, batch.images)


def test_a_dicom_file_is_shown_by_the_settings_of_the_run(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 4096, (64, 64), dtype=np.uint16)
    path = write_dicom(tmp_path / "scan", pixels, bits=12, WindowCenter=900, WindowWidth=500)
    shown, released = (
        load_image(path, ImagesConfig(stored_size=64, size=64, dicom=dicom)) for dicom in ("voi", "released")
    )
    assert (shown == 255).float().mean() > 0.6
    assert torch.equal(released[0, 0], torch.from_numpy(np.rint(pixels * (255 / pixels.max())).astype(np.uint8)))


def test_what_is_no_image_is_refused(tmp_path):
    path = tmp_path / "thesis.png"
    path.write_text("chapter one")
    with pytest.raises(DataError, match=r"thesis\.png"):
        load_image(path, ImagesConfig())
