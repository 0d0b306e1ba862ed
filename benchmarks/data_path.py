"""What one training image costs on one core, from the disk to an augmented batch.

    python benchmarks/data_path.py

Three ways take turns in one process, on phantoms, so that no data set is needed:

- every step the long way on three channels, as the released code does it: decode, resize, pad, crop, stretch,
  crop, jitter, blur, warp, flip, float;
- ours without the cache: decode and prepare each time, then augment;
- ours: read the mapped cache, check its digest, augment.

Before anything is timed, the last two must give the same batches to the bit. The time is the process's own CPU time.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from cleft.config import DataConfig, ImagesConfig
from cleft.data import read_dataset
from cleft.data.augment import augment
from cleft.data.batches import Views
from cleft.data.images import prepare_image, read_gray
from cleft.data.phantoms import write_phantoms
from cleft.data.prepared import prepare_images
from cleft.types import Record

BATCH = 72
LIMIT_MS = 0.3
"""What an image may cost on one core."""
LIMIT_MB = 4.0
"""What a batch of 72 may weigh on its way to the device."""


def the_long_way(path: Path, rng: np.random.Generator, size: int, stored: int) -> NDArray[np.float32]:
    """One image as the released chain makes it, `[3, size, size]` float32."""
    square = prepare_image(np.asarray(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)), ImagesConfig(recipe="released"))
    image = Image.fromarray(square).convert("RGB")
    left, top = rng.integers(0, stored - size + 1, 2).tolist()
    image = image.crop((left, top, left + size, top + size))
    if rng.random() < 0.4:
        image = ImageEnhance.Contrast(ImageEnhance.Brightness(image).enhance(rng.uniform(0.8, 1.2))).enhance(1.1)
    if rng.random() < 0.4:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
        line = torch.exp(-(torch.arange(-3.0, 4.0) ** 2) / (2 * rng.uniform(0.1, 2.0) ** 2))
        window = torch.outer(line, line)
        window = (window / window.sum()).expand(3, 1, 7, 7)
        padded = torch.nn.functional.pad(pixels, [3, 3, 3, 3], mode="reflect")
        blurred = torch.nn.functional.conv2d(padded, window, groups=3)[0].round().byte()
        image = Image.fromarray(blurred.permute(1, 2, 0).contiguous().numpy())
    turn, scale = np.radians(rng.uniform(-10, 10)), rng.uniform(0.8, 1.1)
    cos, sin, middle = np.cos(turn) / scale, np.sin(turn) / scale, size / 2
    matrix = (cos, sin, middle - cos * middle - sin * middle, -sin, cos, middle + sin * middle - cos * middle)
    image = image.transform((size, size), Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)
    image = Image.merge("RGB", [image.convert("L")] * 3)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    channels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float() / 255
    return ((channels - 0.5) / 0.5).numpy()


def batch_the_long_way(records: list[Record], rows: list[int], config: ImagesConfig) -> torch.Tensor:
    rng = np.random.default_rng(rows[0])
    images = [the_long_way(records[row].image, rng, config.size, config.stored_size) for row in rows]
    return torch.from_numpy(np.stack(images))


def batch_without_cache(records: list[Record], rows: list[int], config: ImagesConfig) -> torch.Tensor:
    squares = ((row, prepare_image(read_gray(records[row].image), config)) for row in rows)
    views = [augment(square, config.augment, config.size, seed=(0, 0, row)) for row, square in squares]
    return torch.from_numpy(np.stack(views)[:, None])


def measure(works: dict[str, Callable[[], torch.Tensor]], rounds: int) -> dict[str, list[float]]:
    """Returns seconds of CPU per image for each round; the works take turns within a round."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            start = time.process_time()
            work()
            taken[name].append((time.process_time() - start) / BATCH)
    return taken


def compare(folder: Path, rounds: int) -> int:
    """Prints the table; returns 0 if both limits hold."""
    root = write_phantoms(folder / "phantoms", patients=70, progress=False)
    records = read_dataset(DataConfig(root=root)).records
    config = ImagesConfig()
    start = time.process_time()
    prepared = prepare_images(records, config, folder / "cache", progress=False)
    preparing = (time.process_time() - start) / len(records)
    views = Views(records, prepared, (), config, 0)
    still = Views(records, prepared, (), config, None)
    rows = [row % len(records) for row in range(BATCH)]
    positions = [(0, row) for row in rows]

    if not torch.equal(views.__getitems__(positions).images, batch_without_cache(records, rows, config)):
        raise SystemExit("the cache changes pixels; no time is worth measuring")

    works: dict[str, Callable[[], torch.Tensor]] = {
        "the long way, three channels": lambda: batch_the_long_way(records, rows, config),
        "ours without the cache": lambda: batch_without_cache(records, rows, config),
        "ours": lambda: views.__getitems__(positions).images,
        "ours, once more": lambda: views.__getitems__(positions).images,
        "ours, centre crop": lambda: still.__getitems__(positions).images,
    }
    weights = {name: work().nbytes / 1e6 for name, work in works.items()}
    taken = measure(works, rounds)

    height, width = read_gray(records[0].image).shape
    print(f"{len(records)} JPEG of {height} x {width}, stored {config.stored_size}, view {config.size}, batch {BATCH}")
    print(f"python {platform.python_version()}, numpy {np.__version__}, OpenCV {cv2.__version__}, Pillow", end=" ")
    print(f"{PIL.__version__}, torch {torch.__version__}; one thread, load {os.getloadavg()[0]:.1f}")
    print(f"{'':<30}{'ms, least':>10}{'median':>9}{'most':>9}{'ratio':>8}{'MB a batch':>12}")
    ours = statistics.median(taken["ours"])
    for name, seconds in taken.items():
        middle = statistics.median(seconds)
        print(f"{name:<30}{min(seconds) * 1e3:>10.3f}{middle * 1e3:>9.3f}{max(seconds) * 1e3:>9.3f}", end="")
        print(f"{middle / ours:>8.1f}{weights[name]:>12.1f}")
    print(f"preparing, once per image: {preparing * 1e3:.2f} ms; then 65,536 bytes on disk")
    holds = ours * 1e3 <= LIMIT_MS and weights["ours"] <= LIMIT_MB
    print(f"limits of {LIMIT_MS} ms per image and {LIMIT_MB:g} MB per batch: {'hold' if holds else 'BROKEN'}")
    return 0 if holds else 1


def main() -> int:
    parser = argparse.ArgumentParser(description="what one training image costs on one core")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        return compare(Path(folder), options.rounds)


if __name__ == "__main__":
    sys.exit(main())
