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

from cleft.data.drawing import Map, Sheet, curve, soft
from cleft.data.lesions import Film, Sign, draw_sign

OBLIQUE = ("MLO", "ML", "LM")
"""Views from the side, which show the pectoral muscle."""


@dataclass(frozen=True, kw_only=True)
class Breast:
    """What stays the same in all images of one breast."""

    depth: float = 0.56
    """From chest wall to nipple, in heights of the image."""
    half: float = 0.40
    """Half of its width at the chest wall."""
    density: int = 2
    """1 almost entirely fat, 2 scattered, 3 heterogeneously dense, 4 extremely dense."""
    pattern: int = 0
    """Seed of its tissue, so that it looks alike in every exam."""
    implant: bool = False
    male: bool = False


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
    _draw_fat(film)
    tissue = np.random.default_rng([breast.pattern, exposure.view in OBLIQUE])
    _draw_tissue(film, breast, tissue)
    _draw_strands(film, breast, tissue)
    if breast.implant:
        _draw_implant(film, breast)
    _draw_skin(film)
    if exposure.view in OBLIQUE:
        _draw_muscle(film, breast, exposure.view)
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
    mask = ((sheet.x < edge[:, None].astype(np.float32)) | (sheet.blob(*nipple, 0.020, 0.017) > 0.5)).astype(np.uint8)
    framed = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    framed = cv2.copyMakeBorder(framed, 0, 0, size[0] // 2, 0, cv2.BORDER_REPLICATE)
    depth = cv2.distanceTransform(framed, cv2.DIST_L2, 5)[1:-1, size[0] // 2 + 1 : -1].astype(np.float32) / size[0]
    return Film(
        sheet=sheet,
        depth=depth,
        inside=soft(depth - 0.002, 0.0012),
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


def _draw_fat(film: Film) -> None:
    """Gray that grows with the thickness under the paddle."""
    sheet = film.sheet
    sheet.image[:] = film.inside * (0.10 + 0.17 * (1 - np.exp(-film.depth / 0.05)))
    sheet.image *= 1 + 0.05 * sheet.clouds(0.10) + 0.03 * sheet.clouds(0.03)


_BIAS = {1: -1.75, 2: -0.60, 3: 0.45, 4: 1.75, 5: -2.4}
_WHITE = {1: 0.26, 2: 0.34, 3: 0.43, 4: 0.54, 5: 0.22}


def _draw_tissue(film: Film, breast: Breast, rng: np.random.Generator) -> None:
    """Glandular tissue: a cone behind the nipple, filled as the density says, streaked towards the nipple."""
    sheet = film.sheet
    away = np.hypot(sheet.x - film.nipple[0], sheet.y - film.nipple[1])
    angle = np.arctan2(sheet.y - film.nipple[1], film.nipple[0] - sheet.x)
    streaks = _polar_noise(away, angle, rng)
    lumps = _clouds(sheet.size, 0.09, rng) + 0.6 * _clouds(sheet.size, 0.04, rng)
    field = 0.75 * streaks + 0.55 * lumps
    centre = (0.42 * film.reach, film.nipple[1] - (0.06 if film.oblique else 0.0))
    wide = 0.74 * film.half * (0.55 if breast.male else 1.0)
    out = np.hypot((sheet.x - centre[0]) / (0.62 * film.reach), (sheet.y - centre[1]) / wide)
    place = 1.1 - 1.9 * np.clip(out - 0.25, 0, 3) ** 1.5
    under = soft(film.depth - 0.035, 0.008)
    bias = _BIAS[5 if breast.male else breast.density]
    amount = soft(field + place + bias, 0.35) * under
    white = _WHITE[5 if breast.male else breast.density]
    sheet.brighten(amount * (1 + 0.10 * streaks + 0.06 * lumps), white)


def _polar_noise(away: Map, angle: Map, rng: np.random.Generator) -> Map:
    """Noise that is fine around the nipple's circle and coarse along its rays: ducts."""
    coarse = rng.standard_normal((14, 56)).astype(np.float32)
    across = ((angle / np.pi + 1) / 2 * 55).astype(np.float32)
    along = np.clip(away / 1.2 * 13, 0, 13).astype(np.float32)
    noise: Map = cv2.remap(coarse, across, along, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT).astype(np.float32)
    return noise / (noise.std() + 1e-6)


def _clouds(size: tuple[int, int], scale: float, rng: np.random.Generator) -> Map:
    """As `Sheet.clouds`, of the breast instead of the exposure; the same at any size."""
    cells = max(2, round(1 / scale))
    coarse = rng.standard_normal((cells, cells)).astype(np.float32)
    fine: Map = cv2.resize(coarse, (size[1], size[0]), interpolation=cv2.INTER_CUBIC).astype(np.float32)
    return (fine - fine.mean()) / (fine.std() + 1e-6)


def _draw_strands(film: Film, breast: Breast, rng: np.random.Generator) -> None:
    """Ligaments that arch through the fat, and a few vessels."""
    sheet = film.sheet
    within = soft(film.depth - 0.012, 0.004)
    for _ in range(26):
        x, y = rng.uniform(0.05, 0.95) * film.reach, film.nipple[1] + rng.uniform(-0.9, 0.9) * film.half
        angle = np.arctan2(film.nipple[1] - y, film.nipple[0] - x) + rng.normal(0, 0.45)
        length, bend = rng.uniform(0.05, 0.14), rng.normal(0, 0.014)
        along = np.array([np.cos(angle), np.sin(angle)])
        start = np.array([x, y])
        points = np.stack([start, start + 0.5 * length * along + bend * along[::-1], start + length * along])
        sheet.stroke(curve(points), 0.003, rng.uniform(0.05, 0.11), within=within)
    for _ in range(3):
        y = film.nipple[1] + rng.uniform(-0.7, 0.7) * film.half
        turns = np.cumsum(rng.normal(0, 0.018, 6))
        points = np.stack(
            [np.linspace(0.0, 0.85, 6) * film.reach, y + turns + np.linspace(0, 0.25, 6) * (film.nipple[1] - y)], axis=1
        )
        sheet.stroke(curve(points), 0.006, 0.10, within=within)


def _draw_skin(film: Film) -> None:
    """A fine bright line, thicker around the nipple."""
    near = np.exp(-((film.sheet.x - film.nipple[0]) ** 2 + (film.sheet.y - film.nipple[1]) ** 2) / 0.004)
    line = np.exp(-(((film.depth - 0.006) / (0.0045 + 0.006 * near)) ** 2)).astype(np.float32) * film.inside
    film.sheet.brighten(line, 0.16)
    film.sheet.brighten(film.sheet.blob(film.nipple[0] - 0.002, film.nipple[1], 0.022, 0.018, 0.6) * film.inside, 0.28)


def _draw_muscle(film: Film, breast: Breast, view: str) -> None:
    """The pectoral muscle: a bright wedge in the upper corner, with fibres along its edge."""
    sheet = film.sheet
    top, low = (0.56 * film.reach, 0.62) if view == "MLO" else (0.22 * film.reach, 0.50)
    if breast.male:
        top, low = 0.9 * top, 0.75
    across = 1 - sheet.x / top - sheet.y / low + 0.16 * np.sin(np.clip(sheet.y / low, 0, 1) * np.pi)
    wedge = soft(across, 0.02) * film.inside
    fibres = 0.05 * np.sin((sheet.x / top * 0.7 + sheet.y / low) * 55 + 2 * sheet.clouds(0.2))
    goal = 0.50 + fibres * wedge
    sheet.image += wedge * np.clip(goal - sheet.image, -0.02, 1) * 0.85


def _draw_implant(film: Film, breast: Breast) -> None:
    """A smooth bright sack before the chest wall."""
    y = film.nipple[1] + (0.03 if film.oblique else 0.0)
    sack = film.sheet.blob(0.04, y, 0.62 * film.reach, 0.66 * film.half, 0.08)
    film.sheet.image += sack * (0.80 - film.sheet.image)
    film.sheet.brighten(np.clip(film.sheet.blob(0.04, y, 0.64 * film.reach, 0.68 * film.half, 0.06) - sack, 0, 1), 0.5)


def _expose(film: Film, exposure: Exposure, boxes: list[tuple[int, int, int, int]]) -> Mammogram:
    """Magnification, sharpness, grain, side: from tissue to film."""
    image, (height, width) = film.sheet.image, film.sheet.size
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
