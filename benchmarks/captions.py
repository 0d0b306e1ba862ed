"""Captions with realistic repetition, which determines the number of tree nodes of a batch.

By default findings are drawn independently with their frequencies among CheXpert's frontal training images. Real
findings are correlated, which changes the mean number of nodes by 6 to 9 %; `--label-sets` takes a table of real sets
of findings with their numbers of images.
"""

from __future__ import annotations

import csv
import random
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from cleft.data.text.captions import write_caption

# Positive share among the 191,010 AP and PA training images. "No finding" occurs alone or with support devices.
SHARES = {
    "Enlarged Cardiomediastinum": 0.0481,
    "Cardiomegaly": 0.1224,
    "Lung Opacity": 0.4932,
    "Lung Lesion": 0.0369,
    "Edema": 0.2601,
    "Consolidation": 0.0680,
    "Pneumonia": 0.0245,
    "Atelectasis": 0.1556,
    "Pneumothorax": 0.0926,
    "Pleural Effusion": 0.4026,
    "Pleural Other": 0.0131,
    "Fracture": 0.0389,
    "Support Devices": 0.5611,
}
NO_FINDING = 0.0888
DRAWS = 50_000


class Captions(NamedTuple):
    """Distinct captions and the number of images of each."""

    texts: list[str]
    images: list[int]
    origin: str
    """Description of the source."""


def read_label_sets(path: Path) -> Captions:
    """Reads a table with a column per finding, 1 or 0, and a column `images`."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    images = [int(row.pop("images")) for row in rows]
    texts = [write_caption({name: float(value) for name, value in row.items()}) for row in rows]
    origin = f"{len(texts):,} real label sets of {sum(images):,} images"
    return Captions(texts, images, origin)


def independent_findings(seed: int = 0) -> Captions:
    """Draws findings independently with CheXpert's frequencies."""
    draw = random.Random(seed)
    sets = Counter(_draw_findings(draw) for _ in range(DRAWS))
    counted = {write_caption(dict.fromkeys(present, 1.0)): images for present, images in sets.items()}
    origin = f"{len(counted):,} synthetic label sets: findings drawn independently with CheXpert's frequencies"
    return Captions(list(counted), list(counted.values()), origin)


def draw_batch(captions: Captions, size: int, seed: int) -> list[str]:
    """Draws the captions of a batch, with repetitions."""
    return random.Random(seed).choices(captions.texts, captions.images, k=size)


def _draw_findings(draw: random.Random) -> tuple[str, ...]:
    if draw.random() < NO_FINDING:
        devices = "Support Devices"
        return (devices, "No Finding") if draw.random() < SHARES[devices] else ("No Finding",)
    return tuple(name for name, share in SHARES.items() if draw.random() < share)
