"""Prepared images by number, mapped from disk. Shapes: `N` images, `S` stored side."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cleft.data.images.parts import open_pixels
from cleft.errors import DataError


@dataclass(eq=False)
class PixelRows:
    """Prepared images by number, `[S, S]` uint8 each.

    A copy sent to another process carries names and numbers alone; the pixels are mapped anew there.
    """

    files: tuple[Path, ...]
    lengths: tuple[int, ...]
    """Rows of each file."""
    side: int
    places: NDArray[np.int64]
    """File and row in it of each image, `[N, 2]`."""
    checks: NDArray[np.uint32]
    """CRC-32 of each image, `[N]`."""
    _maps: dict[int, NDArray[np.uint8]] = field(default_factory=dict[int, NDArray[np.uint8]], repr=False)

    def __len__(self) -> int:
        return len(self.checks)

    def __getitem__(self, number: int) -> NDArray[np.uint8]:
        """Returns an image, read-only.

        Raises:
            DataError: With reason `cache`, if its bytes are not those that were written.
        """
        file, row = self.places[number].tolist()
        if file not in self._maps:
            self._maps[file] = open_pixels(self.files[file], self.lengths[file], self.side)
        pixels = self._maps[file][row]
        if zlib.crc32(pixels.data) != self.checks[number]:
            raise DataError(
                f"{self.files[file]}: row {row} is not as it was written; start again, which makes it anew, "
                "and have the disk checked",
                reason="cache",
            )
        return pixels

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}
