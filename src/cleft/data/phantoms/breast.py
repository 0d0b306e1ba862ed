"""Draws mammograms: the pencil of the phantom writer for the breast.

Nothing here is a simulation of physics. A drawing is a map of brightness in [0, 1] in which air is black, fat dark gray
and glandular tissue bright, seen from above (CC) or along the pectoral muscle (MLO), with pose, exposure and noise of
its own. How much tissue there is follows the density, what else can be seen follows the signs (`lesions.py`).

Coordinates: x from 0 (the chest wall, at the left edge) rightwards, y from 0 (top) down, both in heights of the image.
A right breast is drawn like a left one and mirrored at the end, so that it stands against the right edge.

Shapes: `H`, `W` height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from cleft.data.phantoms.drawing import Map, Sheet, curve, soft
from cleft.data.phantoms.film import OBLIQUE, Breast, Film
from cleft.data.phantoms.lesions import Sign, draw_sign
from cleft.data.phantoms.tissue import draw_fat, draw_implant, draw_muscle, draw_skin, draw_strands, draw_tissue


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """What differs from one image of a breast to the next."""

    view: str = "CC"
    side: str = "L"
    synthetic: bool = False
    """Whether it is made from a tomosynthesis (C-view): smoother, with harder edges."""
    spot: bool = False
    """Whether it is a magnified view of a sign."""
    squeeze: float = 1.0
    """How far the paddle spreads the breast."""
    shift: float = 0.0
    """How far up or down the breast lies."""
    gamma: float = 1.0
    noise: float = 0.012


class Mammogram(NamedTuple):
    """An image and where its signs are."""

    image: Map
    """Brightness, `[H, W]`, float32 in [0, 1]; 0 is air."""
    boxes: list[tuple[int, int, int, int]]
    """One per sign that can be seen: top, left, bottom, right in pixels of this image."""


def draw_mammogram(
    size: tuple[int, int], breast: Breast, exposure: Exposure, signs: Sequence[Sign], rng: np.random.Generator
) -> Mammogram:
    """Draws one image of one breast.

    Args:
        size: Height and width in pixels.
        breast: Shape and tissue.
        exposure: View, side, pose.
        signs: What is to be seen in the tissue; the same in both views, each at its place.
        rng: Decides everything that chance decides in one exposure.
    """
    film = _lay_out(size, breast, exposure, rng)
    draw_fat(film)
    tissue = np.random.default_rng([breast.pattern, exposure.view in OBLIQUE])
    draw_tissue(film, breast, tissue)
    draw_strands(film, tissue)
    if breast.implant:
        draw_implant(film, breast)
    draw_skin(film)
    if exposure.view in OBLIQUE:
        draw_muscle(film, breast, exposure.view)
    boxes = [box for sign in signs if (box := draw_sign(film, sign, exposure.view)) is not None]
    return _expose(film, exposure, boxes)


def _lay_out(size: tuple[int, int], breast: Breast, exposure: Exposure, rng: np.random.Generator) -> Film:
    """Outline, nipple, and the depth of each point below the skin."""
    sheet = Sheet(size, rng, origin=(0, 0), step=(size[0], size[0]))
    reach = min(breast.depth * exposure.squeeze, 0.88 * size[1] / size[0])
    oblique = exposure.view in OBLIQUE
    middle = (0.585 if oblique else 0.5) + exposure.shift
    rows = np.arange(size[0], dtype=np.float64) / size[0]
    edge = _oblique_edge(rows, reach, middle, breast) if oblique else _round_edge(rows, reach, middle, breast.half)
    nipple = (reach, middle + (0.02 if oblique else 0.0))
    mask = ((sheet.x < edge[:, None].astype(np.float32)) | (sheet.blob(*nipple, 0.014, 0.016) > 0.5)).astype(np.uint8)
    framed = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    framed = cv2.copyMakeBorder(framed, 0, 0, size[0] // 2, 0, cv2.BORDER_REPLICATE)
    depth = cv2.distanceTransform(framed, cv2.DIST_L2, 5)[1:-1, size[0] // 2 + 1 : -1].astype(np.float32) / size[0]
    return Film(
        sheet=sheet,
        depth=depth,
        inside=soft(depth - 0.003, 0.0012) * (depth > 0),
        nipple=nipple,
        reach=reach,
        half=breast.half,
        oblique=oblique,
    )


def _round_edge(rows: NDArray[np.float64], reach: float, middle: float, half: float) -> NDArray[np.float64]:
    """From above: a dome on the chest wall."""
    out = np.abs(rows - middle) / half
    return np.where(out < 1, reach * np.clip(1 - out**2.3, 0, None) ** 0.62, -1)


def _oblique_edge(rows: NDArray[np.float64], reach: float, middle: float, breast: Breast) -> NDArray[np.float64]:
    """From the side: from the armpit out to the nipple, back to the fold below and on to the belly."""
    half = breast.half
    points = np.array(
        [
            [-0.05, 0.60 * reach],
            [0.12, 0.68 * reach],
            [middle - 0.55 * half, 0.83 * reach],
            [middle, reach],
            [middle + 0.45 * half, 0.88 * reach],
            [middle + 0.72 * half, 0.58 * reach],
            [middle + 0.88 * half, 0.24 * reach],
            [middle + 0.97 * half, 0.13 * reach],
            [1.08, 0.15 * reach],
        ]
    )
    smooth = curve(points)
    return np.interp(rows, smooth[:, 0], smooth[:, 1])


def _expose(film: Film, exposure: Exposure, boxes: list[tuple[int, int, int, int]]) -> Mammogram:
    """Magnification, sharpness, grain, side: from tissue to film."""
    image, (height, width) = film.sheet.image * film.inside, film.sheet.size
    if exposure.spot and boxes:
        image, boxes = _magnify(image, boxes)
    inside = image > 0.04
    soft_image: Map = cv2.GaussianBlur(image, (0, 0), height / 500).astype(np.float32)
    if exposure.synthetic:
        soft_image += 0.9 * (soft_image - cv2.GaussianBlur(soft_image, (0, 0), height / 90).astype(np.float32)) * inside
    bright = np.clip(soft_image, 0, 1) ** exposure.gamma
    grain = film.sheet.rng.standard_normal((height, width)).astype(np.float32)
    bright += grain * exposure.noise * (0.4 if exposure.synthetic else 1.0) * np.sqrt(bright) * inside
    if exposure.side == "R":
        bright = np.ascontiguousarray(bright[:, ::-1])
        boxes = [(top, width - right, bottom, width - left) for top, left, bottom, right in boxes]
    _letter(bright, exposure)
    return Mammogram(np.clip(bright, 0, 1).astype(np.float32), boxes)


def _magnify(
    image: Map, boxes: list[tuple[int, int, int, int]], zoom: float = 1.8
) -> tuple[Map, list[tuple[int, int, int, int]]]:
    """Enlarges around the first box."""
    height, width = image.shape
    top, left, bottom, right = boxes[0]
    row = np.clip((top + bottom) / 2, height / 2 / zoom, height - height / 2 / zoom)
    column = np.clip((left + right) / 2, width / 2 / zoom, width - width / 2 / zoom)
    move = np.array([[zoom, 0, width / 2 - zoom * column], [0, zoom, height / 2 - zoom * row]])
    larger: Map = cv2.warpAffine(image, move, (width, height), flags=cv2.INTER_CUBIC).astype(np.float32)

    def moved(value: float, axis: int, limit: int) -> int:
        return int(np.clip(zoom * value + move[axis, 2], 0, limit))

    return larger, [
        (moved(t, 1, height), moved(le, 0, width), moved(b, 1, height), moved(r, 0, width)) for t, le, b, r in boxes
    ]


def _letter(bright: Map, exposure: Exposure) -> None:
    """Side and view in the free corner, as burnt in by the machine."""
    height, width = bright.shape
    text = f"{exposure.side} {exposure.view}" if exposure.view else exposure.side
    scale = height / 900
    (wide, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    column = width - wide - round(0.03 * height) if exposure.side == "L" else round(0.03 * height)
    ink = np.zeros(bright.shape, np.uint8)
    cv2.putText(ink, text, (column, round(0.06 * height)), cv2.FONT_HERSHEY_SIMPLEX, scale, 255, 1, cv2.LINE_AA)
    bright += ink.astype(np.float32) / 255 * (0.9 - bright)
