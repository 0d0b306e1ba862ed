"""Image files to load: those of the small release, or synthetic ones at detector size, which need no dataset."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

from cleft.data.phantoms.chest import ChestAnatomy, ChestExposure, draw_frontal

FULL_SIZE = (2320, 2828)
"""Height and width of a common detector, in pixels."""
SMALL_SIZE = (320, 390)


class Files(NamedTuple):
    """Files of one kind."""

    name: str
    paths: list[Path]
    size: tuple[int, int]
    """Height and width of the first, in pixels."""
    megabytes: float
    """Mean size of a file."""


def real_jpegs(folder: Path, count: int) -> Files:
    """Returns the first `count` JPEG below a folder, by name."""
    paths = sorted(folder.rglob("*.jpg"))[:count]
    with Image.open(paths[0]) as image:
        width, height = image.size
    return Files("small release", paths, (height, width), _megabytes(paths))


def synthetic_jpegs(folder: Path, count: int, size: tuple[int, int] = SMALL_SIZE) -> Files:
    """Writes gray JPEG of quality 92."""
    return _draw(
        "small release, synthetic" if size == SMALL_SIZE else "full size, JPEG",
        folder,
        count,
        size,
        lambda pixels, path: Image.fromarray((pixels >> 4).astype(np.uint8)).save(path.with_suffix(".jpg"), quality=92),
    )


def synthetic_dicoms(folder: Path, count: int) -> Files:
    """Writes uncompressed DICOM files of 12 bits in 16, with a window."""
    return _draw("full size, 12-bit DICOM", folder, count, FULL_SIZE, _write_dicom)


def _draw(
    name: str, folder: Path, count: int, size: tuple[int, int], write: Callable[[NDArray[np.uint16], Path], None]
) -> Files:
    folder.mkdir(parents=True)
    for number in range(count):
        rng = np.random.default_rng(number)
        drawn = draw_frontal(SMALL_SIZE, ChestAnatomy(), ChestExposure(noise=0), {"Edema": rng.random()}, rng)
        smooth = cv2.resize(drawn, size[::-1], interpolation=cv2.INTER_CUBIC).astype(np.float32) * 16
        noise = rng.standard_normal(size, dtype=np.float32) * 20
        write(np.clip(smooth + noise, 0, 4095).astype(np.uint16), folder / str(number))
    paths = sorted(folder.iterdir())
    return Files(name, paths, size, _megabytes(paths))


def _megabytes(paths: list[Path]) -> float:
    return sum(path.stat().st_size for path in paths) / len(paths) / 1e6


def _write_dicom(pixels: NDArray[np.uint16], path: Path) -> None:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = DigitalXRayImageStorageForPresentation, UID(f"1.2.3.{path.name}")
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.WindowCenter, dataset.WindowWidth = 2000, 3600
    dataset.PixelData = pixels.tobytes()
    dataset.save_as(path.with_suffix(".dcm"), enforce_file_format=True)
