"""What one training image costs on one core, from the disk to a normalised, augmented batch.

    python benchmarks/data_path.py [--images <folder of small JPEG>]

For files of three kinds, three ways take turns in one process:

- the long way: everything for every sample, as the released code does it (`long_way.py`);
- ours without the cache: decode and prepare each time, then augment;
- ours: read the mapped cache, check its digest, augment.

Both of ours end in one-channel floats here, though in a run the tower makes them of bytes, on its own device. Before
anything is timed, the way with the cache must give the same batches as the way without to the bit, and the long way
the same stored pixels as recipe `released`. The time is the process's own CPU time.
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

import long_way
from cleft.config import ImagesConfig
from cleft.data.batches import Views
from cleft.data.images.cache import prepare_images
from cleft.data.images.decode import read_gray
from cleft.data.images.preprocess import augment, prepare_image
from cleft.types import Record
from radiographs import FULL_SIZE, Files, drawn_dicoms, drawn_jpegs, real_jpegs

BATCH = 72
BATCHES = 8
"""One after the other, as a loader makes them: a single one would be timed in what decoding has left of the caches."""
LIMIT_MS = 0.3
"""What an image may cost on one core; on one that is slower than `YARDSTICK_MS`, as much more."""
YARDSTICK_MS = 2.5
"""Least time seen for turning a picture of 1024 x 1024, most of what a view costs, on a core shared with others."""
LIMIT_MB = 4.0
"""What a batch may weigh on its way to the device."""
GAINS = {"small release": 10.0, "full size, JPEG": 60.0, "full size, 12-bit DICOM": 60.0}
"""How many times faster ours must be than the long way, by what the files' name begins with. DICOM files that are not
compressed cost the long way less."""
YARDS = 40
"""How often it is turned."""
STEPS_MS = {"RTX A5000": (107, 220), "RTX 4090": (72, 150), "H200": (15.3, 30)}
"""Milliseconds of a training step of 72 images: limit by arithmetic, and goal."""


class Costs(NamedTuple):
    """Seconds of processor time per image, for each round."""

    files: Files
    long: list[float]
    uncached: list[float]
    ours: list[float]
    again: list[float]
    bytes: list[float]
    """Ours up to bytes, as it leaves a loader."""
    read: list[float]
    """Reading and checking alone, in random order."""
    preparing: list[float]
    """Bringing a file into the cache, once."""
    opening: list[float]
    """Looking an image up when a run begins, and checking its bytes."""
    yardstick: list[float]
    """The same work always, which tells how fast the core is."""
    megabytes: float
    """Of a batch as it leaves a loader."""

    @property
    def gain(self) -> float:
        """Long way over ours, the median of the rounds."""
        return statistics.median(long / ours for long, ours in zip(self.long, self.ours, strict=True))


def measure(files: Files, folder: Path, rounds: int) -> Costs:
    """Times every way of getting a batch of some files.

    Raises:
        SystemExit: If ways that must agree do not.
    """
    config = ImagesConfig()
    records = [Record(id=str(n), image=path, labels={}, patient="", caption="") for n, path in enumerate(files.paths)]
    prepared = prepare_images(records, config, folder / "cache", progress=False)
    views = Views(records, prepared, (), config, 0)
    rows = [row % len(records) for row in range(BATCH)]
    positions = [(0, row) for row in rows]
    _agree(files, views, config)
    rng = np.random.default_rng(0)
    caches = (folder / f"round-{number}" for number in range(rounds))

    def the_long_way() -> None:
        torch.stack([long_way.sample(path, rng) for path in files.paths])

    def uncached() -> None:
        _normalised(_without_cache(files, range(len(files.paths)), config))

    def ours() -> None:
        for _ in range(BATCHES):
            _normalised(views.__getitems__(positions).images)

    picture = rng.integers(0, 256, (1024, 1024), dtype=np.uint8)
    turn = cv2.getRotationMatrix2D((512, 512), 7, 1.1)

    def yardstick() -> None:
        for _ in range(YARDS):
            cv2.warpAffine(picture, turn, (1024, 1024), flags=cv2.INTER_LINEAR)

    works: dict[str, tuple[Callable[[], object], int]] = {
        "long": (the_long_way, len(records)),
        "uncached": (uncached, len(records)),
        "ours": (ours, BATCH * BATCHES),
        "again": (ours, BATCH * BATCHES),
        "bytes": (lambda: [views.__getitems__(positions) for _ in range(BATCHES)], BATCH * BATCHES),
        "read": (lambda: [prepared.rows[int(row)] for row in rng.permutation(rows * BATCHES)], BATCH * BATCHES),
        "preparing": (lambda: prepare_images(records, config, next(caches), progress=False), len(records)),
        "opening": (lambda: prepare_images(records, config, folder / "cache", progress=False), len(records)),
        "yardstick": (yardstick, YARDS),
    }
    for name, (work, _) in works.items():
        if name != "preparing":
            work()
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, (work, images) in works.items():
            start = time.process_time()
            work()
            taken[name].append((time.process_time() - start) / images)
    return Costs(files=files, megabytes=views.__getitems__(positions).images.nbytes / 1e6, **taken)


def compare(folder: Path, rounds: int, images: Path | None) -> list[Costs]:
    """Measures files of every kind."""
    small = real_jpegs(images, BATCH) if images else drawn_jpegs(folder / "small", BATCH)
    kinds = [small, drawn_jpegs(folder / "full", 6, FULL_SIZE), drawn_dicoms(folder / "dicom", 6)]
    return [measure(files, folder / f"{number}", rounds) for number, files in enumerate(kinds)]


def is_busy() -> bool:
    """Whether more wants to run than there are cores: two on one core are each about half as fast as one."""
    return os.getloadavg()[0] > (os.cpu_count() or 1)


def broken(costs: list[Costs], *, busy: bool) -> list[str]:
    """Returns a sentence for every limit that does not hold.

    A busy machine says nothing about milliseconds, and blurs ratios: a fifth is let pass there.
    """
    faults: list[str] = []
    # Ours is the same work whatever the files were, and what else runs on the machine only adds to a time: the least of
    # all rounds is nearest to the truth.
    ours = min(seconds for cost in costs for seconds in (*cost.ours, *cost.again)) * 1e3
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


def tell(costs: list[Costs]) -> None:
    """Prints what was measured, and what follows from it."""
    print(f"python {platform.python_version()}, numpy {np.__version__}, OpenCV {cv2.__version__}, Pillow", end=" ")
    print(
        f"{PIL.__version__}, pydicom {pydicom.__version__}, torch {torch.__version__}; one thread, process CPU", end=" "
    )
    print(f"time, load {os.getloadavg()[0]:.1f}\n")
    print("| ms per image: median (least to most) | " + " | ".join(_title(cost.files) for cost in costs) + " |")
    print("| --- |" + " ---: |" * len(costs))
    for name, label in _LABELS.items():
        print(f"| {label} | " + " | ".join(_spread(getattr(cost, name)) for cost in costs) + " |")
    print("| **long way / ours** | " + " | ".join(f"**{cost.gain:.1f}**" for cost in costs) + " |")
    print(f"\na batch of {BATCH} leaves the loader with {costs[0].megabytes:.1f} MB\n")
    _tell_cores(costs)
    _tell_preparing(costs)


_LABELS = {
    "long": "the long way, three channels",
    "uncached": "ours without the cache",
    "ours": "**ours**",
    "again": "ours, once more",
    "bytes": "ours, as bytes",
    "read": "of which reading and checking",
    "preparing": "preparing, once",
    "opening": "looking up, once a run",
    "yardstick": "yardstick: a picture of 1024 x 1024, turned",
}


def _tell_cores(costs: list[Costs]) -> None:
    """Cores = 72 images x milliseconds per image / milliseconds per step."""
    print(
        f"| cores that keep a card busy (limit, goal of a step of {BATCH}) | long way, "
        + ", ".join(_LONG)
        + " | ours |"
    )
    print("| --- | ---: | ---: |")
    longs = [statistics.median(cost.long) * 1e3 for cost in costs]
    ours = max(statistics.median(cost.ours) * 1e3 for cost in costs)
    for card, steps in STEPS_MS.items():
        for kind, step in zip(("limit", "goal"), steps, strict=True):
            there = ", ".join(f"{BATCH * long / step:.1f}" for long in longs)
            print(f"| {card}, {kind} {step:g} ms | {there} | {BATCH * ours / step:.2f} |")


_LONG = ("small", "full JPEG", "full DICOM")


def _tell_preparing(costs: list[Costs]) -> None:
    """Extrapolated: images x seconds per image."""
    small, full, dicom = (statistics.median(cost.preparing) for cost in costs)
    opening = statistics.median(costs[0].opening)
    print("\nextrapolated, preparing once:")
    for name, images, each in (
        ("CheXpert, small release", 191_010, small),
        ("CheXpert, full size", 191_010, full),
        ("EMBED, if its files are as the DICOM here", 364_515, dicom),
    ):
        minutes = images * each / 60
        disk = " / ".join(f"{images * side**2 / 1e9:.1f} GB at {side}" for side in (256, 518))
        print(
            f"- {name}: {images:,} x {each * 1e3:.2f} ms = {minutes:.0f} core-minutes, {minutes / 16:.1f} on 16; {disk}"
        )
    print(f"- opening a whole cache of 191,010: x {opening * 1e3:.3f} ms = {191_010 * opening:.0f} s, from memory")


def _title(files: Files) -> str:
    return f"{files.name}, {files.size[0]} x {files.size[1]}, {files.megabytes:.2g} MB"


def _spread(seconds: list[float]) -> str:
    low, middle, high = (value * 1e3 for value in (min(seconds), statistics.median(seconds), max(seconds)))
    digits = 3 if middle < 1 else 2 if middle < 10 else 1
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _agree(files: Files, views: Views, config: ImagesConfig) -> None:
    rows = range(min(3, len(files.paths)))
    if not torch.equal(views.__getitems__([(0, row) for row in rows]).images, _without_cache(files, rows, config)):
        raise SystemExit("the cache changes pixels; no time is worth measuring")
    theirs = ImagesConfig(recipe="released", dicom="released")
    for path in files.paths[:3]:
        ours = prepare_image(read_gray(path, images=theirs), theirs)
        if not np.array_equal(np.asarray(long_way.prepared(path))[:, :, 0], ours):
            raise SystemExit(f"{path.name}: the long way is not that of the released code; its time means nothing")


def _without_cache(files: Files, rows: range, config: ImagesConfig) -> torch.Tensor:
    squares = ((row, prepare_image(read_gray(files.paths[row], images=config), config)) for row in rows)
    views = [augment(square, config.augment, config.size, seed=(0, 0, row)) for row, square in squares]
    return torch.from_numpy(np.stack(views)[:, None])


def _normalised(images: torch.Tensor) -> torch.Tensor:
    return images.float().mul_(2 / 255).sub_(1)


def main() -> int:
    parser = argparse.ArgumentParser(description="what one training image costs on one core")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=Path, help="folder of JPEG as small as CheXpert's; by default some are drawn")
    options = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        costs = compare(Path(folder), options.rounds, options.images)
    busy = is_busy()
    tell(costs)
    faults = broken(costs, busy=busy)
    print(f"\nthe machine is busy: {LIMIT_MS} ms per image is not judged" * busy)
    print("\n" + ("\n".join(f"BROKEN: {fault}" for fault in faults) or "all limits hold"))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
