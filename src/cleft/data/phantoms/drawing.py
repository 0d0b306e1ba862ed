"""Drawing of synthetic radiographs: soft shapes, random texture and strokes in a map of brightness.

Shapes: `H`, `W` height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Map = NDArray[np.floating[Any]]


class Drawing:
    """A drawing in progress: brightness `[H, W]`, about 0 to 1, with coordinates x to the right and y down.

    Args:
        size: Height and width in pixels.
        rng: Source of all randomness of the drawing.
        origin: Pixel position of x = 0 and y = 0.
        step: Pixels per unit of x and y.
    """

    def __init__(
        self, size: tuple[int, int], rng: np.random.Generator, *, origin: tuple[float, float], step: tuple[float, float]
    ) -> None:
        height, width = size
        self.size = size
        self.height = size[0]
        """Height of the complete image, also in a part of it; sizes are shares of it."""
        self.rng = rng
        self.origin = origin
        self.step = step
        rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
        self.x: Map = (columns - origin[0]) / step[0]
        self.y: Map = (rows - origin[1]) / step[1]
        self.image: Map = np.zeros(size, np.float32)

    def blob(self, x: float, y: float, rx: float, ry: float, edge: float = 0.3) -> Map:
        """Soft ellipse; `edge` is the share of the radius over which it fades."""
        distance = np.sqrt(((self.x - x) / rx) ** 2 + ((self.y - y) / ry) ** 2)
        return soft(1 - distance, edge / 4)

    def clouds(self, scale: float, rng: np.random.Generator | None = None) -> Map:
        """Smooth random texture with mean 0 and standard deviation 1; `scale` is its grain as a share of the height."""
        step = max(2, int(scale * self.height))
        coarse = (
            (rng or self.rng).standard_normal((self.size[0] // step + 3, self.size[1] // step + 3)).astype(np.float32)
        )
        fine: Map = cv2.resize(coarse, (self.size[1], self.size[0]), interpolation=cv2.INTER_CUBIC).astype(np.float32)
        return (fine - fine.mean()) / (fine.std() + 1e-6)

    def brighten(self, where: Map, amount: float) -> None:
        """Add density, less where it is high already, as film does."""
        self.image += amount * where * (1 - self.image)

    def darken(self, where: Map, amount: float) -> None:
        """Remove density."""
        self.image -= amount * where * self.image

    def stroke(
        self, points: NDArray[np.float64], thickness: float, amount: float, *, within: Map | None = None
    ) -> None:
        """Draw a bright line through points (x, y), dark for a negative amount; thickness as a share of the height."""
        where = self._ink([(points, thickness, 1.0)]) * (1.0 if within is None else within)
        if amount > 0:
            self.brighten(where, amount)
        else:
            self.darken(where, -amount)

    def strokes(
        self, lines: Iterable[tuple[NDArray[np.float64], float, float]], *, within: Map | None = None, blur: float = 0.0
    ) -> None:
        """Draw many bright lines, each with points, thickness and amount; at a crossing the last one is kept.

        Args:
            lines: As for `stroke`.
            within: Mask of the lines.
            blur: Standard deviation of a blur, as a share of the height.
        """
        where = self._ink(lines)
        if blur > 0:
            where = cv2.GaussianBlur(where, (0, 0), blur * self.height).astype(np.float32)
        self.brighten(where * (1.0 if within is None else within), 1.0)

    def part(self, x: float, y: float, reach: float) -> Drawing:
        """The square around a point as a drawing that shares its pixels; faster for small shapes."""
        (height, width), (column, row) = (
            self.size,
            (x * self.step[0] + self.origin[0], y * self.step[1] + self.origin[1]),
        )
        across, down = reach * self.step[0], reach * self.step[1]
        left, right = (int(np.clip(value, 0, width)) for value in (column - across, column + across + 1))
        top, bottom = (int(np.clip(value, 0, height)) for value in (row - down, row + down + 1))
        piece = copy(self)
        piece.origin = (self.origin[0] - left, self.origin[1] - top)
        piece.x, piece.y = self.x[top:bottom, left:right], self.y[top:bottom, left:right]
        piece.image = self.image[top:bottom, left:right]
        piece.size = (bottom - top, right - left)
        return piece

    def _ink(self, lines: Iterable[tuple[NDArray[np.float64], float, float]]) -> Map:
        """A map of lines, each with its amount, 0 to 1."""
        ink = np.zeros(self.size, np.uint8)
        for points, thickness, amount in lines:
            line = ((points * self.step + self.origin) * 16).round().astype(np.int32)[:, None]
            width = max(1, round(thickness * self.height))
            cv2.polylines(ink, [line], False, round(255 * amount), width, cv2.LINE_AA, shift=4)
        return ink.astype(np.float32) / 255


def soft(distance: Map, edge: float) -> Map:
    """1 where a signed distance is well above zero, 0 well below, smooth in between."""
    return (1 / (1 + np.exp(-np.clip(distance / edge, -30, 30)))).astype(np.float32)


def curve(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """A smooth curve through points: Catmull-Rom, ten steps per segment."""
    padded = np.concatenate([points[:1], points, points[-1:]])
    t = np.linspace(0, 1, 10)[:, None]
    pieces = [
        0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
        for a, b, c, d in zip(padded, padded[1:], padded[2:], padded[3:], strict=False)
    ]
    return np.concatenate(pieces)
