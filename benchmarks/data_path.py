"""Measures the cost of a training image on one core, from the disk to a normalised, augmented batch.

    python benchmarks/data_path.py [--images <folder of small JPEG>]

For files of three kinds, three variants are interleaved in one process:

- the released code: everything for every sample (`released_code.py`);
- cleft without the cache: decode and preprocess each time, then augment;
- cleft: read the memory-mapped cache, check its digest, augment.

Both variants of cleft end in one-channel floats here; in a run the encoder converts bytes on its device. Before
timing, the cache must give bitwise the same batches as decoding, and the released code the stored pixels of recipe
`released`. The time is process CPU time.
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
from typing import NamedTuple

import cv2
import numpy as np
import PIL
import pydicom
import torch

import released_code
from cleft.config import ImagesConfig
from cleft.data.batches import Views
from cleft.data.images.cache import PrepareOptions, prepare_images
from cleft.data.images.decode import read_gray
from cleft.data.images.preprocess import augment, prepare_image
from cleft.types import Record
from radiographs import FULL_SIZE, Files, real_jpegs, synthetic_dicoms, synthetic_jpegs

BATCH = 72
BATCHES = 8
"""Batches in a row, as a loader makes them: a single one would be timed with the CPU caches that decoding left."""
LIMIT_MS = 0.3
"""Limit per image on one core; in proportion on a core that is slower than `YARDSTICK_MS`."""
YARDSTICK_MS = 2.5
"""Shortest time measured for rotating an image of 1024 x 1024, most of the cost of augmentation, on a shared core."""
LIMIT_MB = 4.0
"""Limit of a batch on its way to the device."""
GAINS = {"small release": 10.0, "full size, JPEG": 60.0, "full size, 12-bit DICOM": 60.0}
"""Required speed-up over the released code, by the beginning of the name of the files. Uncompressed DICOM files cost
the released code less."""
YARDS = 40
"""Rotations per measurement."""
STEPS_MS = {"RTX A5000": (107, 220), "RTX 4090": (72, 150), "H200": (15.3, 30)}
"""Milliseconds of a training step of 72 images: theoretical minimum, and target."""


class Costs(NamedTuple):
    """Seconds of processor time per image, for each round."""

    files: Files
    released: list[float]
    uncached: list[float]
    cleft: list[float]
    again: list[float]
    bytes: list[float]
    """cleft up to bytes, as a batch leaves a loader."""
    read: list[float]
    """Reading and checking only, in random order."""
    preparing: list[float]
    """Preprocessing a file into the cache, once."""
    opening: list[float]
    """Looking up an image when a run begins, and checking its bytes."""
    yardstick: list[float]
    """A fixed amount of work, to measure the speed of the core."""
    megabytes: float
    """Size of a batch as it leaves a loader."""

    @property
    def gain(self) -> float:
        """Time of the released code over that of cleft, median of the rounds."""
        return statistics.median(theirs / ours for theirs, ours in zip(self.released, self.cleft, strict=True))


def measure(files: Files, folder: Path, rounds: int) -> Costs:
    """Times every variant on some files.

    Raises:
        SystemExit: If variants that must agree do not.
    """
    config = ImagesConfig()
    records = [Record(id=str(n), image=path, labels={}, patient="", caption="") for n, path in enumerate(files.paths)]
    quiet = PrepareOptions(progress=False)
    prepared = prepare_images(records, config, folder / "cache", quiet)
    views = Views(records, prepared, (), config, 0)
    rows = [row % len(records) for row in range(BATCH)]
    positions = [(0, row) for row in rows]
    _agree(files, views, config)
    rng = np.random.default_rng(0)
    caches = (folder / f"round-{number}" for number in range(rounds))

    def released() -> None:
        torch.stack([released_code.sample(path, rng) for path in files.paths])

    def uncached() -> None:
        _normalised(_without_cache(files, range(len(files.paths)), config))

    def cached() -> None:
        for _ in range(BATCHES):
            _normalised(views.__getitems__(positions).images)

    image = rng.integers(0, 256, (1024, 1024), dtype=np.uint8)
    turn = cv2.getRotationMatrix2D((512, 512), 7, 1.1)

    def yardstick() -> None:
        for _ in range(YARDS):
            cv2.warpAffine(image, turn, (1024, 1024), flags=cv2.INTER_LINEAR)

    works: dict[str, tuple[Callable[[], object], int]] = {
        "released": (released, len(records)),
        "uncached": (uncached, len(records)),
        "cleft": (cached, BATCH * BATCHES),
        "again": (cached, BATCH * BATCHES),
        "bytes": (lambda: [views.__getitems__(positions) for _ in range(BATCHES)], BATCH * BATCHES),
        "read": (lambda: [prepared.rows[int(row)] for row in rng.permutation(rows * BATCHES)], BATCH * BATCHES),
        "preparing": (lambda: prepare_images(records, config, next(caches), quiet), len(records)),
        "opening": (lambda: prepare_images(records, config, folder / "cache", quiet), len(records)),
        "yardstick": (yardstick, YARDS),
    }
    for name, (work, _) in works.items():
        if name != "preparing":
            work()
    timed: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, (work, images) in works.items():
            start = time.process_time()
            work()
            timed[name].append((time.process_time() - start) / images)
    return Costs(files=files, megabytes=views.__getitems__(positions).images.nbytes / 1e6, **timed)


def compare(folder: Path, rounds: int, images: Path | None) -> list[Costs]:
    """Measures files of every kind."""
    small = real_jpegs(images, BATCH) if images else synthetic_jpegs(folder / "small", BATCH)
    kinds = [small, synthetic_jpegs(folder / "full", 6, FULL_SIZE), synthetic_dicoms(folder / "dicom", 6)]
    return [measure(files, folder / f"{number}", rounds) for number, files in enumerate(kinds)]


def is_busy() -> bool:
    """Returns whether more processes want to run than there are cores."""
    return os.getloadavg()[0] > (os.cpu_count() or 1)


def exceeded_limits(costs: list[Costs], *, busy: bool) -> list[str]:
    """Returns a message for every limit that is exceeded.

    On a busy machine milliseconds are not checked, and ratios have a tolerance of a fifth.
    """
    faults: list[str] = []
    # cleft does the same work whatever the files were, and other load only adds time: the minimum is most accurate.
    ours = min(seconds for cost in costs for seconds in (*cost.cleft, *cost.again)) * 1e3
    core = statistics.median(seconds for cost in costs for seconds in cost.yardstick) * 1e3 / YARDSTICK_MS
    limit = LIMIT_MS * max(core, 1)
    if ours > limit and not busy:
        faults.append(f"{ours:.3f} ms per image, more than {limit:.3g}")
    for cost in costs:
        needed = next(gain for name, gain in GAINS.items() if cost.files.name.startswith(name)) * (0.8 if busy else 1)
        if cost.gain < needed:
            faults.append(f"{cost.files.name}: {cost.gain:.1f} times faster, less than {needed:g}")
        if cost.megabytes > LIMIT_MB:
            faults.append(f"{cost.megabytes:.1f} MB per batch, more than {LIMIT_MB:g}")
    return faults


def print_report(costs: list[Costs]) -> None:
    """Prints the measurements and what follows from them."""
    print(f"python {platform.python_version()}, numpy {np.__version__}, OpenCV {cv2.__version__}, Pillow", end=" ")
    print(
        f"{PIL.__version__}, pydicom {pydicom.__version__}, torch {torch.__version__}; one thread, process CPU", end=" "
    )
    print(f"time, load {os.getloadavg()[0]:.1f}\n")
    print("| ms per image: median (least to most) | " + " | ".join(_title(cost.files) for cost in costs) + " |")
    print("| --- |" + " ---: |" * len(costs))
    for name, label in _LABELS.items():
        print(f"| {label} | " + " | ".join(_spread(getattr(cost, name)) for cost in costs) + " |")
    print("| **released / cleft** | " + " | ".join(f"**{cost.gain:.1f}**" for cost in costs) + " |")
    print(f"\na batch of {BATCH} is {costs[0].megabytes:.1f} MB when it leaves the loader\n")
    _print_cores(costs)
    _print_preprocessing(costs)


_LABELS = {
    "released": "released code, three channels",
    "uncached": "cleft without the cache",
    "cleft": "**cleft**",
    "again": "cleft (again)",
    "bytes": "cleft, as bytes",
    "read": "of which reading and checking",
    "preparing": "preprocessing, once",
    "opening": "look-up, once per run",
    "yardstick": "reference: rotation of an image of 1024 x 1024",
}


def _print_cores(costs: list[Costs]) -> None:
    """Prints cores = 72 images x milliseconds per image / milliseconds per step."""
    print(
        f"| cores that keep a GPU busy (minimum, target of a step of {BATCH}) | released code, "
        + ", ".join(_KINDS)
        + " | cleft |"
    )
    print("| --- | ---: | ---: |")
    released = [statistics.median(cost.released) * 1e3 for cost in costs]
    ours = max(statistics.median(cost.cleft) * 1e3 for cost in costs)
    for gpu, steps in STEPS_MS.items():
        for kind, step in zip(("minimum", "target"), steps, strict=True):
            there = ", ".join(f"{BATCH * theirs / step:.1f}" for theirs in released)
            print(f"| {gpu}, {kind} {step:g} ms | {there} | {BATCH * ours / step:.2f} |")


_KINDS = ("small", "full JPEG", "full DICOM")


def _print_preprocessing(costs: list[Costs]) -> None:
    """Prints extrapolations: images x seconds per image."""
    small, full, dicom = (statistics.median(cost.preparing) for cost in costs)
    opening = statistics.median(costs[0].opening)
    print("\nextrapolated, preprocessing once:")
    for name, images, each in (
        ("CheXpert, small release", 191_010, small),
        ("CheXpert, full size", 191_010, full),
        ("EMBED, if its files are like the DICOM here", 364_515, dicom),
    ):
        minutes = images * each / 60
        disk = " / ".join(f"{images * side**2 / 1e9:.1f} GB at {side}" for side in (256, 518))
        print(
            f"- {name}: {images:,} x {each * 1e3:.2f} ms = {minutes:.0f} core-minutes, {minutes / 16:.1f} on 16; {disk}"
        )
    print(
        f"- look-up of a complete cache of 191,010: x {opening * 1e3:.3f} ms = {191_010 * opening:.0f} s, from memory"
    )


def _title(files: Files) -> str:
    return f"{files.name}, {files.size[0]} x {files.size[1]}, {files.megabytes:.2g} MB"


def _spread(seconds: list[float]) -> str:
    low, middle, high = (value * 1e3 for value in (min(seconds), statistics.median(seconds), max(seconds)))
    digits = 3 if middle < 1 else 2 if middle < 10 else 1
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _agree(files: Files, views: Views, config: ImagesConfig) -> None:
    rows = range(min(3, len(files.paths)))
    if not torch.equal(views.__getitems__([(0, row) for row in rows]).images, _without_cache(files, rows, config)):
        raise SystemExit("the cache changes pixels; nothing was timed")
    theirs = ImagesConfig(recipe="released", dicom="released")
    for path in files.paths[:3]:
        ours = prepare_image(read_gray(path, images=theirs), theirs)
        if not np.array_equal(np.asarray(released_code.prepared(path))[:, :, 0], ours):
            raise SystemExit(f"{path.name}: released_code.py differs from recipe released; nothing was timed")


def _without_cache(files: Files, rows: range, config: ImagesConfig) -> torch.Tensor:
    squares = ((row, prepare_image(read_gray(files.paths[row], images=config), config)) for row in rows)
    views = [augment(square, config.augment, config.size, seed=(0, 0, row)) for row, square in squares]
    return torch.from_numpy(np.stack(views)[:, None])


def _normalised(images: torch.Tensor) -> torch.Tensor:
    return images.float().mul_(2 / 255).sub_(1)


def main() -> int:
    parser = argparse.ArgumentParser(description="cost of a training image on one core")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--images", type=Path, help="folder of small JPEG such as CheXpert's; by default synthetic ones"
    )
    options = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        costs = compare(Path(folder), options.rounds, options.images)
    busy = is_busy()
    print_report(costs)
    faults = exceeded_limits(costs, busy=busy)
    print(f"\nthe machine is busy: {LIMIT_MS} ms per image is not checked" * busy)
    print("\n" + ("\n".join(f"EXCEEDED: {fault}" for fault in faults) or "all limits hold"))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
