"""Pixels are mapped: workers share them, and one image costs its own bytes, not the cache's."""

import multiprocessing
import re
import time
import zlib
from pathlib import Path

import numpy as np
import pytest

from cleft.config import DataConfig, ImagesConfig, Settings
from cleft.data.batches import eval_loader
from cleft.data.images.cache import PreparedImages
from cleft.data.images.cache_files import PixelRows
from cleft.types import Record

SIDE, ROWS = 256, 512
MEGABYTE = 2**20


@pytest.fixture
def rows(tmp_path):
    """32 MB of prepared images in two parts."""
    if not Path("/proc/self/smaps").is_file():
        pytest.skip("this system does not tell which memory is shared")
    rng = np.random.default_rng(0)
    files, checks = [], []
    for part in range(2):
        pixels = rng.integers(0, 256, (ROWS // 2, SIDE, SIDE), dtype=np.uint8)
        checks += [zlib.crc32(row.data) for row in pixels]
        files.append(tmp_path / f"part-{part}.u8")
        pixels.tofile(files[-1])
    places = np.array([divmod(number, ROWS // 2) for number in range(ROWS)])
    return PixelRows(tuple(files), (ROWS // 2,) * 2, SIDE, places, np.array(checks, np.uint32))


def mapped(process):
    """Bytes that a process holds of the parts: all of them, and its share where others hold them too."""
    text = Path(f"/proc/{process}/smaps").read_text()
    parts = [block for block in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", text) if ".u8" in block.partition("\n")[0]]

    def total(name):
        return sum(1024 * int(re.search(rf"^{name}: +(\d+)", part, re.MULTILINE)[1]) for part in parts)

    return total("Rss"), total("Pss")


def anonymous(process):
    return 1024 * int(re.search(r"Anonymous: +(\d+)", Path(f"/proc/{process}/smaps_rollup").read_text())[1])


def test_two_workers_hold_the_pixels_once_between_them(rows, tmp_path):
    records = [Record(id=str(n), image=Path(str(n)), labels={}, patient=str(n), caption="c") for n in range(ROWS)]
    prepared = PreparedImages(
        folder=tmp_path, digest="", rows=rows, numbers={str(n): n for n in range(ROWS)}, rejected={}
    )
    settings = Settings(images=ImagesConfig(stored_size=SIDE, size=32), data=DataConfig(workers=2))
    # Workers take turns; moved by one batch, the second half shows each of them what the other has seen.
    loader = eval_loader(records + records[8:] + records[:8], prepared, (), settings, batch_size=8)
    for _ in loader:
        pass
    workers = [child.pid for child in multiprocessing.active_children()]
    assert len(workers) == 2
    before = [anonymous(worker) for worker in workers]
    for _ in loader:
        pass
    held = [mapped(worker) for worker in workers]
    after = [anonymous(worker) for worker in workers]
    del loader
    size = ROWS * SIDE * SIDE
    assert all(rss >= 0.95 * size for rss, _ in held)  # Each has read everything,
    assert sum(share for _, share in held) <= 1.01 * size  # together they hold it once,
    assert all(late - early < 2 * MEGABYTE for early, late in zip(before, after, strict=True))  # and nobody a copy.


def test_one_of_a_million_images_is_read_without_the_others(tmp_path):
    many = 10**6
    with (tmp_path / "part.u8").open("wb") as file:
        file.truncate(many * SIDE * SIDE)  # A hole of 65 GB.
    check = zlib.crc32(bytes(SIDE * SIDE))
    places = np.stack([np.zeros(many, np.int64), np.arange(many)], axis=1)
    rows = PixelRows((tmp_path / "part.u8",), (many,), SIDE, places, np.full(many, check, np.uint32))
    start = time.process_time()
    assert not any(rows[number].any() for number in (0, many - 1, many // 3))
    assert time.process_time() - start < 0.1
