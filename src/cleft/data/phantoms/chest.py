"""Synthetic chest radiographs with labels, in the layout of CheXpert-v1.0-small, for the demo, the tutorial and tests.

No pixel comes from a patient, every finding in the table is visible, and the same seed writes the same bytes. Nothing
is a simulation of physics: a drawing is a map of brightness in [0, 1] in which lungs are dark, bone and fluid bright,
with its own pose, exposure and noise; each finding changes it as described in radiology textbooks.

Coordinates: x from -1 (the patient's right, on the image's left) to 1, y from 0 (top) to 1, for any size.
Shapes: `H`, `W` height and width in pixels.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from cleft.data.counts import progress_bar
from cleft.data.phantoms import write_once
from cleft.data.phantoms.drawing import Drawing, Map, curve, soft
from cleft.data.readers.chexpert import FINDINGS
from cleft.data.sampling import Stream, philox_generator
from cleft.errors import DataError, ResourceError
from cleft.grammar import count

RIGHT, LEFT = -1.0, 1.0
"""The patient's sides; the right one is drawn on the image's left."""


@dataclass(frozen=True, kw_only=True)
class ChestAnatomy:
    """Properties common to all images of a patient."""

    width: float = 0.9
    """Half width of the chest."""
    lung_top: float = 0.13
    heart: float = 0.27
    """Half width of the heart; about 0.3 of the half width of the chest is normal."""
    ribs: int = 9


@dataclass(frozen=True, kw_only=True)
class ChestExposure:
    """Properties of one image."""

    view: str = "PA"
    degrees: float = 0.0
    scale: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)
    gamma: float = 1.0
    noise: float = 0.02
    breath: float = 0.0
    """Shift of the diaphragm: positive is deeper inspiration."""


class ChestDrawing(Drawing):
    """A chest in progress, with the positions that findings need.

    Args:
        size: Height and width in pixels.
        body: The patient.
        shot: The exposure.
        rng: Source of all randomness of the drawing.
    """

    def __init__(
        self, size: tuple[int, int], body: ChestAnatomy, shot: ChestExposure, rng: np.random.Generator
    ) -> None:
        height, width = size
        super().__init__(size, rng, origin=((width - 1) / 2, 0), step=(height / 2, height - 1))
        self.body = body
        self.shot = shot
        self.diaphragm = {side: 0.80 + shot.breath + (0.03 if side == LEFT else 0.0) for side in (RIGHT, LEFT)}
        self.lungs = {side: self.lung(side) for side in (RIGHT, LEFT)}

    def lung(self, side: float) -> Map:
        """Soft mask of one lung: a tall dome over a curved diaphragm."""
        across = (self.x * side - 0.42 * self.body.width) / (0.40 * self.body.width)  # -1 at the middle, 1 at the side
        top = self.body.lung_top + 0.10 * np.clip(across + 0.1, -1, 1.2) ** 2 * (1 + 0.8 * (across > 0))
        base = self.diaphragm[side] - 0.10 * np.sqrt(np.clip(1 - (across * 0.75 + 0.25) ** 2, 0, 1)) + 0.09
        narrow = 0.22 * np.clip(0.42 - self.y, 0, 1) ** 1.2
        inside = (1 - np.abs(across) - narrow) * 0.35
        return soft(np.minimum(np.minimum(self.y - top, base - self.y), inside), 0.012)

    def across(self, side: float) -> Map:
        """Lateral position in a lung: 0 at the midline, 1 at the chest wall."""
        return np.clip(self.x * side / (0.82 * self.body.width), 0, 1.2)


def draw_frontal(
    size: tuple[int, int],
    body: ChestAnatomy,
    shot: ChestExposure,
    severity: Mapping[str, float],
    rng: np.random.Generator,
) -> NDArray[np.uint8]:
    """Draw a frontal chest image.

    Args:
        size: Height and width in pixels.
        body: The patient.
        shot: View, pose and exposure.
        severity: CheXpert finding to its severity, 0 to 1; others are not drawn.
        rng: Source of sides, positions and noise.

    Returns:
        The image, `[H, W]` uint8.
    """
    grown = replace(
        body,
        heart=body.heart * (1 + 0.55 * severity.get("Cardiomegaly", 0)) * (1.12 if shot.view == "AP" else 1.0),
    )
    canvas = ChestDrawing(size, grown, shot, rng)
    if "Atelectasis" in severity:
        _lose_volume(canvas)
    _draw_thorax(canvas, widened=severity.get("Enlarged Cardiomediastinum", 0))
    for finding, draw in DRAWERS.items():
        if severity.get(finding, 0) > 0:
            draw(canvas, severity[finding])
    return _expose(canvas)


def draw_lateral(
    size: tuple[int, int], body: ChestAnatomy, shot: ChestExposure, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Draw a lateral chest image without findings, `[H, W]` uint8."""
    canvas = ChestDrawing(size, body, shot, rng)
    trunk = canvas.blob(0.0, 0.55, 0.72, 0.62, 0.2)
    canvas.brighten(trunk, 0.62)
    lung = canvas.blob(-0.08, 0.42, 0.48, 0.34, 0.25) * soft(0.78 - 0.25 * canvas.x - canvas.y, 0.015)
    canvas.darken(lung, 0.72)
    canvas.brighten(canvas.blob(-0.24, 0.60, 0.27 * body.heart / 0.27, 0.17, 0.3), 0.45)
    for step in range(11):
        canvas.brighten(canvas.blob(0.42 + 0.02 * np.sin(step), 0.12 + 0.075 * step, 0.10, 0.031, 0.35), 0.40)
    canvas.image += 0.02 * canvas.clouds(0.03) * trunk
    return _expose(canvas)


def _draw_thorax(canvas: ChestDrawing, *, widened: float) -> None:
    body, rng, ap = canvas.body, canvas.rng, canvas.shot.view == "AP"
    shoulders = 0.16 * np.clip(0.30 - canvas.y, 0, 1) ** 1.4 * 4
    trunk = soft(1.12 * body.width + 0.10 * canvas.y - shoulders * 0.6 - np.abs(canvas.x), 0.03)
    neck = soft(0.22 - np.abs(canvas.x), 0.03) * soft(0.2 - canvas.y, 0.05)
    shoulder = soft(canvas.y - 0.03 - 0.16 * np.abs(canvas.x) ** 2, 0.02)
    canvas.image[:] = 0.03
    canvas.brighten(np.maximum(trunk * shoulder, neck), 0.60)
    canvas.brighten(soft(canvas.y - 0.84, 0.05) * trunk, 0.18)  # belly
    for side in (RIGHT, LEFT):
        canvas.darken(canvas.lungs[side], 0.76 if not ap else 0.68)
    _draw_vessels(canvas)
    _draw_ribs(canvas)
    middle = 0.105 + (0.02 if ap else 0.0) + 0.13 * widened * soft(0.48 - canvas.y, 0.06)
    mediastinum = soft(middle + 0.03 * np.sin(canvas.y * 9) - np.abs(canvas.x + 0.012), 0.016) * soft(
        canvas.y - 0.02, 0.02
    )
    canvas.brighten(mediastinum, 0.60)
    canvas.brighten(canvas.blob(0.115 + 0.10 * widened, 0.30, 0.085 * (1 + 0.5 * widened), 0.055, 0.25), 0.40)  # aorta
    canvas.stroke(np.array([[0.0, 0.02], [0.005, 0.16], [0.0, 0.33]]), 0.022, -0.20)  # trachea
    heart = canvas.blob(0.10 + 0.34 * (body.heart - 0.2), canvas.diaphragm[LEFT] - 0.155, body.heart, 0.165, 0.16)
    canvas.brighten(heart, 0.60)
    for level in range(14):  # spine behind everything
        canvas.brighten(canvas.blob(0.0, 0.06 + 0.068 * level, 0.065, 0.026, 0.5), 0.05)
    for side in (RIGHT, LEFT):  # collar bones
        bend = np.array([[0.06, 0.165], [0.25, 0.135], [0.50, 0.145 - 0.03 * rng.random()], [0.80, 0.085]])
        canvas.stroke(curve(bend * [side * body.width, 1]), 0.022, 0.22)
        if ap:  # the scapulae project over the lungs in AP views
            canvas.brighten(canvas.blob(side * 0.78 * body.width, 0.30, 0.10, 0.17, 0.4) * trunk, 0.16)


def _draw_ribs(canvas: ChestDrawing) -> None:
    rng, width = canvas.rng, canvas.body.width
    for side in (RIGHT, LEFT):
        for rib in range(canvas.body.ribs):
            y = 0.12 + 0.074 * rib
            out = width * (0.50 + 0.34 * np.sin(min(1.0, (rib + 1.6) / 6) * np.pi / 2))
            back = np.array([[0.08, y], [0.30, y - 0.028], [0.62 * out + 0.1, y + 0.012], [out, y + 0.085]])
            front = np.array([[out, y + 0.085], [0.72 * out, y + 0.155], [0.42 * out, y + 0.195]])
            wobble = 0.004 * rng.standard_normal()
            canvas.stroke(curve(back + np.array([0, wobble])) * [side, 1], 0.019, 0.13)
            canvas.stroke(curve(front + np.array([0, wobble])) * [side, 1], 0.015, 0.055)


def _draw_vessels(canvas: ChestDrawing, strength: float = 1.0) -> None:
    """Vessels that branch from the hilum and taper towards the chest wall."""
    rng = canvas.rng
    for side in (RIGHT, LEFT):
        hilum = np.array([0.15 * side, 0.44 + (0.0 if side == LEFT else 0.02)])
        canvas.brighten(canvas.blob(hilum[0] + 0.03 * side, hilum[1], 0.075, 0.075, 0.8), 0.28 * strength)
        for _ in range(11):
            angle = rng.uniform(-1.25, 1.35)
            _branch(canvas, hilum, angle, side, length=rng.uniform(0.16, 0.27), thickness=0.013, strength=strength)


def _branch(
    canvas: ChestDrawing,
    start: NDArray[np.float64],
    angle: float,
    side: float,
    *,
    length: float,
    thickness: float,
    strength: float,
) -> None:
    bend = angle + canvas.rng.normal(0, 0.25)
    middle = start + 0.5 * length * np.array([side * np.cos(angle) * 1.5, np.sin(angle)])
    end = middle + 0.5 * length * np.array([side * np.cos(bend) * 1.5, np.sin(bend)])
    canvas.stroke(curve(np.stack([start, middle, end])), thickness, 0.11 * strength, within=canvas.lungs[side])
    if thickness > 0.005:
        for fork in (-0.35, 0.4):
            turned = bend + fork + canvas.rng.normal(0, 0.12)
            _branch(canvas, end, turned, side, length=0.62 * length, thickness=0.62 * thickness, strength=strength)


def _side(canvas: ChestDrawing) -> float:
    return RIGHT if canvas.rng.random() < 0.5 else LEFT


def _effusion(canvas: ChestDrawing, severity: float) -> None:
    """Fluid at the base with a meniscus; the costophrenic angle is blunted."""
    sides = (RIGHT, LEFT) if canvas.rng.random() < 0.3 else (_side(canvas),)
    for side in sides:
        height = 0.07 + 0.26 * severity * canvas.rng.uniform(0.8, 1.1)
        out = canvas.across(side)
        level = canvas.diaphragm[side] + 0.05 - height * (0.30 + 0.70 * np.clip(out, 0, 1) ** 2.6)
        chest = soft(canvas.x * side - 0.03, 0.012) * soft(0.81 * canvas.body.width - canvas.x * side, 0.012)
        canvas.brighten(soft(canvas.y - level, 0.010) * chest * soft(1.02 - canvas.y, 0.02), 0.62)


def _consolidation(canvas: ChestDrawing, severity: float) -> None:
    """A white lobe with a sharp fissure and air bronchograms."""
    side, rng = _side(canvas), canvas.rng
    upper = rng.random() < 0.5
    fissure = 0.47 + rng.uniform(-0.03, 0.03)
    lobe = canvas.lungs[side] * soft((fissure - canvas.y) if upper else (canvas.y - fissure), 0.008)
    reach = soft(0.12 + 0.42 * severity - np.abs(canvas.y - fissure) + 0.03 * canvas.clouds(0.08), 0.02)
    canvas.brighten(lobe * reach, 0.60 + 0.12 * severity)
    for _ in range(6):
        start = np.array([0.17 * side, 0.45])
        angle = rng.uniform(-1.1, -0.2) if upper else rng.uniform(0.2, 1.1)
        end = start + 0.28 * np.array([side * 1.5 * np.cos(angle), np.sin(angle)])
        canvas.stroke(
            curve(np.stack([start, (start + end) / 2 + rng.normal(0, 0.01, 2), end])), 0.008, -0.22, within=lobe
        )


def _pneumonia(canvas: ChestDrawing, severity: float) -> None:
    """Fluffy patches, mostly on one side."""
    side, rng = _side(canvas), canvas.rng
    for _ in range(2 + round(3 * severity)):
        x, y = side * rng.uniform(0.22, 0.60), rng.uniform(0.36, 0.72)
        patch = canvas.blob(x, y, rng.uniform(0.10, 0.20), rng.uniform(0.06, 0.11), 1.0)
        fluffy = np.clip(patch + 0.22 * patch * canvas.clouds(0.035), 0, 1)
        canvas.brighten(fluffy * canvas.lungs[side], 0.30 + 0.22 * severity)


def _opacity(canvas: ChestDrawing, severity: float) -> None:
    """One hazy area in which vessels remain visible."""
    side, rng = _side(canvas), canvas.rng
    haze = canvas.blob(side * rng.uniform(0.32, 0.48), rng.uniform(0.30, 0.68), 0.30, 0.20, 1.4)
    canvas.brighten(haze * canvas.lungs[side], 0.26 + 0.20 * severity)


def _edema(canvas: ChestDrawing, severity: float) -> None:
    """Both lungs: perihilar haze, thick vessels, Kerley lines."""
    rng = canvas.rng
    _draw_vessels(canvas, strength=0.7 + 0.9 * severity)
    for side in (RIGHT, LEFT):
        wing = canvas.blob(0.30 * side, 0.46, 0.34, 0.24, 1.3)
        canvas.brighten(
            np.clip(wing + 0.12 * wing * canvas.clouds(0.05), 0, 1) * canvas.lungs[side], 0.28 + 0.26 * severity
        )
        for _ in range(6):
            y = rng.uniform(0.58, 0.78)
            wall = side * 0.80 * canvas.body.width
            canvas.stroke(
                np.array([[wall - 0.10 * side, y], [wall, y + 0.004]]), 0.004, 0.30, within=canvas.lungs[side]
            )


def _lose_volume(canvas: ChestDrawing) -> None:
    """Raise the diaphragm of the side with volume loss."""
    side = _side(canvas)
    canvas.diaphragm[side] -= 0.09
    canvas.lungs[side] = canvas.lung(side)


def _atelectasis(canvas: ChestDrawing, severity: float) -> None:
    """Plate-like lines above the raised diaphragm."""
    side = min(canvas.diaphragm, key=lambda which: canvas.diaphragm[which])
    rng = canvas.rng
    for line in range(2 + round(2 * severity)):
        y = canvas.diaphragm[side] - 0.05 - 0.038 * line + rng.normal(0, 0.006)
        start, end = 0.20 + 0.05 * rng.random(), 0.58 + 0.16 * rng.random()
        plate = np.array([[start, y + 0.012], [(start + end) / 2, y - 0.008], [end, y - 0.002]]) * [side, 1]
        canvas.stroke(curve(plate), 0.005 + 0.004 * severity, 0.34 + 0.12 * severity, within=canvas.lungs[side])
    base = canvas.lungs[side] * soft(canvas.y - canvas.diaphragm[side] + 0.13, 0.03)
    canvas.brighten(base, 0.12 + 0.12 * severity)


def _pneumothorax(canvas: ChestDrawing, severity: float) -> None:
    """Dark without markings outside a thin white line, the edge of the collapsed lung."""
    side = _side(canvas)
    gap = 0.05 + 0.15 * severity
    lung = (canvas.lungs[side] > 0.5).astype(np.uint8)
    depth: Map = cv2.distanceTransform(lung, cv2.DIST_L2, 5).astype(np.float32) / canvas.size[0] * 2
    apical = 0.45 + 0.75 * soft(0.36 - canvas.y, 0.10)
    outer = soft(canvas.x * side - 0.20, 0.03)
    margin = gap * apical
    free = soft(margin - depth, 0.006) * canvas.lungs[side] * outer
    smooth: Map = cv2.GaussianBlur(canvas.image, (0, 0), canvas.size[0] * 0.02).astype(np.float32)
    canvas.image += free * (0.42 * smooth - canvas.image) * 0.92
    edge = np.exp(-(((depth - margin) / 0.007) ** 2)).astype(np.float32) * canvas.lungs[side] * outer
    canvas.brighten(edge, 0.42)


def _lesion(canvas: ChestDrawing, severity: float) -> None:
    """One or two round nodules."""
    rng = canvas.rng
    for _ in range(1 + (rng.random() < 0.3)):
        side, radius = _side(canvas), 0.022 + 0.035 * severity
        nodule = canvas.blob(side * rng.uniform(0.30, 0.58), rng.uniform(0.28, 0.66), 2 * radius, radius, 0.35)
        canvas.brighten(nodule, 0.50)


def _pleural_other(canvas: ChestDrawing, severity: float) -> None:
    """Pleural thickening along the chest wall with calcification."""
    side = _side(canvas)
    lung = (canvas.lungs[side] > 0.5).astype(np.uint8)
    depth: Map = cv2.distanceTransform(lung, cv2.DIST_L2, 5).astype(np.float32) / canvas.size[0] * 2
    rind = soft(0.035 + 0.03 * severity - depth, 0.008) * canvas.lungs[side] * soft(canvas.x * side - 0.35, 0.03)
    rind *= soft(canvas.y - 0.30, 0.02)
    canvas.brighten(rind, 0.45)
    canvas.brighten(rind * soft(canvas.clouds(0.02) - 1.0, 0.2), 0.55)


def _fracture(canvas: ChestDrawing, severity: float) -> None:
    """A rib fracture: a dark gap with displaced ends."""
    side, rng = _side(canvas), canvas.rng
    x, y = side * 0.62 * canvas.body.width, rng.uniform(0.32, 0.60)
    shift = 0.018 + 0.016 * severity
    for direction, lift in ((-1, -shift), (1, shift)):
        end = np.array([[x, y + lift], [x + direction * 0.13, y + lift + direction * side * 0.02]])
        canvas.stroke(end, 0.024, 0.42)
    canvas.stroke(np.array([[x, y - 0.035], [x + 0.008, y + 0.035]]), 0.008, -0.55)


def _devices(canvas: ChestDrawing, severity: float) -> None:
    """A pacemaker with a lead, or a tube and a central line with electrodes."""
    rng = canvas.rng
    if rng.random() < 0.5:
        x, y = 0.56 * canvas.body.width, 0.215
        canvas.brighten(canvas.blob(x, y, 0.115, 0.050, 0.12), 0.85)
        lead = np.array([[x - 0.08, y], [0.16, 0.20], [0.03, 0.33], [-0.02, 0.52], [0.14, 0.66]])
        canvas.stroke(curve(lead), 0.007, 0.80)
        return
    canvas.stroke(curve(np.array([[0.02, 0.0], [0.0, 0.16], [0.005, 0.33]])), 0.012, 0.55)
    canvas.stroke(curve(np.array([[-0.42, 0.10], [-0.14, 0.18], [-0.07, 0.34], [-0.06, 0.46]])), 0.007, 0.62)
    for _ in range(2 + round(2 * severity)):
        x, y = rng.uniform(-0.75, 0.75), rng.uniform(0.22, 0.75)
        canvas.brighten(canvas.blob(x, y, 0.026, 0.013, 0.2), 0.75)
        canvas.stroke(curve(np.array([[x, y], [x * 1.1, y + 0.16], [x * 1.25, 1.0]])), 0.005, 0.45)


DRAWERS: Mapping[str, Callable[[ChestDrawing, float], None]] = {
    "Lung Opacity": _opacity,
    "Lung Lesion": _lesion,
    "Edema": _edema,
    "Consolidation": _consolidation,
    "Pneumonia": _pneumonia,
    "Atelectasis": _atelectasis,
    "Pneumothorax": _pneumothorax,
    "Pleural Effusion": _effusion,
    "Pleural Other": _pleural_other,
    "Fracture": _fracture,
    "Support Devices": _devices,
}
"""Function that draws each finding, in the order of drawing. The two of heart and mediastinum change the anatomy."""


def _expose(canvas: ChestDrawing) -> NDArray[np.uint8]:
    """Apply pose, exposure, noise and the side marker."""
    height, width = canvas.size
    shot, rng = canvas.shot, canvas.rng
    canvas.image += 0.012 * canvas.clouds(0.02) * (canvas.image > 0.1)
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), shot.degrees, shot.scale)
    turn[:, 2] += np.array(shot.shift) * height
    posed = cv2.warpAffine(canvas.image, turn, (width, height), flags=cv2.INTER_LINEAR, borderValue=0.03)
    bright = np.clip(posed, 0, 1) ** shot.gamma
    grain = rng.standard_normal(canvas.size).astype(np.float32) * shot.noise * np.sqrt(bright + 0.05)
    pixels = (np.clip(bright + grain, 0, 1) * 255).round().astype(np.uint8)
    label = ("L", "AP") if shot.view == "AP" else ("L",)
    for line, text in enumerate(label):
        place = (round(0.91 * width), round(0.07 * height) + line * round(0.06 * height))
        cv2.putText(pixels, text, place, cv2.FONT_HERSHEY_SIMPLEX, height / 700, 235, 1, cv2.LINE_AA)
    return pixels


VERSION = 1
"""Increase when the same seed gives other pixels."""

RELEASE = "CheXpert-v1.0-small"

_ALONE = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
_OTHERS = tuple(finding for finding in FINDINGS if finding not in _ALONE and finding != "No Finding")
_COLUMNS = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *FINDINGS)


@dataclass(frozen=True)
class _Study:
    """Labels and severities of one study."""

    labels: dict[str, float]
    severity: dict[str, float]


def write_phantoms(folder: Path, *, patients: int, seed: int = 0, size: int = 320, progress: bool = True) -> Path:
    """Draw a synthetic dataset.

    About half of the studies show exactly one of the five findings of CheXpert-5x200, a sixth shows none, the rest
    several; a few labels are uncertain or absent, as in the real table. A folder that already holds the same images
    is left unchanged.

    Args:
        folder: Folder to write; used as `data.root`.
        patients: Number of patients; a patient has one to three studies, a study one or two images.
        seed: The same seed writes the same bytes.
        size: Height of an image in pixels; the width is 1.22 times that.
        progress: Whether to show a progress bar.

    Returns:
        The folder.

    Raises:
        DataError: If the folder holds something else, or the numbers are too small.
        ResourceError: If an image cannot be written.
    """
    if patients < 1 or size < 32:
        raise DataError(
            f"cannot draw {count(patients, 'patient')} with images of {count(size, 'pixel')}; set at least 1 patient "
            "and 32 pixels"
        )
    mark = {"version": VERSION, "seed": seed, "patients": patients, "size": size}
    return write_once(folder, mark, lambda draft: _draw_all(draft / RELEASE, patients, seed, size, progress=progress))


def _draw_all(release: Path, patients: int, seed: int, size: int, *, progress: bool) -> None:
    """Draw every patient, then write the table."""
    release.mkdir()
    rows: list[list[str]] = []
    with progress_bar("draw synthetic images", patients, enabled=progress) as advance:
        for patient in range(1, patients + 1):
            rows.extend(_write_patient(release, patient, seed, size))
            advance()
    with (release / "train.csv").open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(_COLUMNS)
        table.writerows(rows)


def _write_patient(release: Path, patient: int, seed: int, size: int) -> Iterator[list[str]]:
    rng = philox_generator(seed, Stream.PHANTOM, patient)
    body = ChestAnatomy(
        width=rng.uniform(0.82, 0.98),
        lung_top=rng.uniform(0.10, 0.16),
        heart=rng.uniform(0.23, 0.28),
        ribs=int(rng.integers(8, 10)),
    )
    sex, age = ("Female" if rng.random() < 0.41 else "Male"), int(np.clip(rng.normal(60, 18), 18, 90))
    for number in range(1, 1 + int(rng.choice([1, 2, 3], p=[0.65, 0.25, 0.10]))):
        study = _draw_study(rng)
        view = "AP" if rng.random() < 0.6 + 0.3 * (study.labels.get("No Finding") != 1) else "PA"
        home = f"train/patient{patient:05d}/study{number}"
        (release / home).mkdir(parents=True)
        frontal = draw_frontal((size, round(1.22 * size)), body, _shot(view, rng), study.severity, rng)
        yield _save(release, f"{home}/view1_frontal.jpg", frontal, [sex, str(age), "Frontal", view], study)
        if view == "PA" and rng.random() < 0.5:
            lateral = draw_lateral((round(1.22 * size), size), body, _shot("", rng), rng)
            yield _save(release, f"{home}/view2_lateral.jpg", lateral, [sex, str(age), "Lateral", ""], study)


def _shot(view: str, rng: np.random.Generator) -> ChestExposure:
    return ChestExposure(
        view=view,
        degrees=rng.normal(0, 2.5 if view == "AP" else 1.2),
        scale=rng.uniform(0.93, 1.05),
        shift=(rng.normal(0, 0.015), rng.normal(0, 0.015)),
        gamma=rng.uniform(0.85, 1.2),
        noise=rng.uniform(0.015, 0.035),
        breath=rng.normal(0, 0.012) - (0.02 if view == "AP" else 0.0),
    )


def _draw_study(rng: np.random.Generator) -> _Study:
    """Labels with the frequencies of the real table, and the severity of each finding."""
    kind = rng.choice(["alone", "none", "several"], p=[0.52, 0.18, 0.30])
    if kind == "none":
        labels = {"No Finding": 1.0}
        if rng.random() < 0.2:
            labels["Support Devices"] = 1.0
    elif kind == "alone":
        labels = {str(rng.choice(_ALONE)): 1.0}
    else:
        labels = {str(finding): 1.0 for finding in rng.choice(_ALONE, size=rng.integers(0, 3), replace=False)}
        labels |= {str(finding): 1.0 for finding in rng.choice(_OTHERS, size=rng.integers(1, 4), replace=False)}
    severity = {finding: float(rng.uniform(0.45, 1.0)) for finding, value in labels.items() if value == 1}
    severity.pop("No Finding", None)
    if kind == "several":
        _hedge(labels, severity, rng)
    return _Study(labels, severity)


def _hedge(labels: dict[str, float], severity: dict[str, float], rng: np.random.Generator) -> None:
    """Mark some findings as absent and some as uncertain, the latter faint or not drawn."""
    absent = [finding for finding in FINDINGS if finding not in labels and finding != "No Finding"]
    for finding in absent:
        draw = rng.random()
        if draw < 0.12:
            labels[finding] = 0.0
        elif draw < 0.18:
            labels[finding] = -1.0
            severity[finding] = float(rng.uniform(0.1, 0.25)) if rng.random() < 0.5 else 0.0


def _save(release: Path, name: str, pixels: np.ndarray, facts: list[str], study: _Study) -> list[str]:
    if not cv2.imwrite(str(release / name), pixels, [cv2.IMWRITE_JPEG_QUALITY, 90]):
        raise ResourceError(f"{release / name} could not be written; free disk space")
    cells = [f"{study.labels[finding]:.1f}" if finding in study.labels else "" for finding in FINDINGS]
    return [f"{RELEASE}/{name}", *facts, *cells]
