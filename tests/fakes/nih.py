"""Writes the folder structure of ChestX-ray14 with invented patients.

It has the oddities of the real data: a header with commas inside brackets, several labels in a cell, images in
twelve folders, the official lists, an image in RGBA.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
TABLE = "Data_Entry_2017_v2020.csv"


def nih_row(patient: int, visit: int, labels: str = "No Finding", *, age: str = "58", sex: str = "M", view: str = "PA"):
    """One row as it is published: eleven cells."""
    return f"{patient:08d}_{visit:03d}.png,{labels},{visit},{patient},{age},{sex},{view},2682,2749,0.143,0.143"


def odd_rows() -> list[str]:
    """Five images of three patients."""
    return [
        nih_row(1, 0, "Cardiomegaly"),
        nih_row(1, 1, "Cardiomegaly|Effusion", view="AP"),
        nih_row(2, 0),
        nih_row(13, 4, "Pneumonia|Pleural_Thickening", sex="F", age="0"),
        nih_row(13, 5, "Hernia", view="AP"),
    ]


def write_fake_nih(
    folder: Path,
    rows: Sequence[str] | None = None,
    *,
    header: str = HEADER,
    table: str = TABLE,
    batches: bool = False,
    lists: tuple[Iterable[str], Iterable[str]] | None = None,
    missing: Iterable[str] = (),
    size: int = 64,
) -> Path:
    """Writes the table, images and lists; returns `folder`.

    Args:
        folder: Root of the download.
        rows: As `nih_row` makes them; by default `odd_rows()`.
        header: First line of the table.
        table: Its name.
        batches: Whether images lie in `images_001/images`, …, as the archives unpack, or in `images`.
        lists: Images of `train_val_list.txt` and of `test_list.txt`.
        missing: Names of images that the download lost.
        size: Side of the images in pixels.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = odd_rows() if rows is None else rows
    (folder / table).write_text("\n".join([header, *rows]) + "\n")
    names = sorted({row.partition(",")[0] for row in rows} - set(missing))
    for number, name in enumerate(names):
        home = folder / (f"images_{number % 12 + 1:03d}/images" if batches else "images")
        home.mkdir(parents=True, exist_ok=True)
        gray = np.random.default_rng(number).integers(0, 256, (size, size), dtype=np.uint8)
        Image.fromarray(gray).convert("RGBA" if number == 0 else "L").save(home / name)
    for name, images in zip(("train_val_list.txt", "test_list.txt"), lists or (), strict=False):
        (folder / name).write_text("\n".join(images) + "\n")
    return folder
