"""Small synthetic images with visible findings, and settings of a tiny model for them."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from cleft.config import load_settings

CLASSES = ("Edema", "Fracture", "Cardiomegaly")


def write_drawings(root: Path, patients: int = 60) -> Path:
    """Writes images with vertical or horizontal stripes or a bright third; every fourth has two, every tenth none."""
    draw = np.random.default_rng(0)
    lines = ["image,patient,view,Edema,Fracture,Cardiomegaly"]
    root.mkdir(parents=True)
    for number in range(patients):
        shown = {number % 3} | ({(number + 1) % 3} if number % 4 == 3 else set())
        shown = set() if number % 10 == 9 else shown
        pixels = draw.integers(40, 80, (64, 64), dtype=np.uint8)
        for place in shown:
            third = pixels[21 * place : 21 * place + 21]
            (third[:, ::4], third[::4], third)[place][...] = 230
        Image.fromarray(pixels).save(root / f"{number}.png")
        labels = ",".join("1" if place in shown else "0" for place in range(3))
        lines.append(f"{number}.png,p{number:03},AP,{labels}")
    (root / "manifest.csv").write_text("\n".join(lines) + "\n")
    return root


def copy_drawings(root: Path, folder: Path, change: Callable[[dict[str, str]], dict[str, str]]) -> Path:
    """Copies the images to `folder` with `change` applied to each row of the table; returns `folder`."""
    shutil.copytree(root, folder)
    with (root / "manifest.csv").open() as file:
        rows = [change(row) for row in csv.DictReader(file)]
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return folder


def tiny_settings(root: Path, *more: str):
    """Returns the preset `tiny` for a folder of these images; `more` are dotted settings."""
    words = ["--data.dataset=manifest", f"--data.root={root}", f"--data.cache={root.parent / 'cache'}"]
    fixed = ["--data.val_fraction=0.3", "--train.accelerator=cpu", f"--classes=[{', '.join(CLASSES)}]"]
    return load_settings("tiny", [*words, *fixed, *more])


def log_of(run: Path) -> list[dict[str, str]]:
    """Returns the log of a run without its times."""
    with (run / "logs" / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{key: value for key, value in row.items() if not key.endswith(_TIMES)} for row in rows]


_TIMES = ("seconds_per_step", "save_seconds")
