"""Writes a folder in the layout of NIH ChestX-ray14."""

from collections.abc import Sequence
from pathlib import Path

from tests.fakes.chexpert import write_image

HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
LINES = (
    "00000001_000.png,Cardiomegaly,0,1,57,M,PA,2682,2749,0.143,0.143",
    "00000001_001.png,Cardiomegaly|Emphysema,1,1,58,M,PA,2894,2729,0.143,0.143",
    "00000002_000.png,No Finding,0,2,80,F,AP,2500,2048,0.171,0.171",
    "00000013_000.png,Pleural_Thickening|Infiltration,0,13,148,F,AP,2500,2048,0.171,0.171",
)


def write_fake_nih(folder: Path, lines: Sequence[str] = LINES, *, lists: bool = True, name: str = "v2020") -> Path:
    """Writes table, images spread over two archives' folders, and the official lists; returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    table = "Data_Entry_2017_v2020.csv" if name == "v2020" else "Data_Entry_2017.csv"
    (folder / table).write_text("\n".join([HEADER, *lines]) + "\n")
    names = [line.partition(",")[0] for line in lines]
    for number, image in enumerate(dict.fromkeys(names)):
        if image.endswith(".png") and "/" not in image:
            write_image(folder / f"images_{1 + number % 2:03}" / "images" / image)
    if lists:
        (folder / "train_val_list.txt").write_text("\n".join(names[:-1]))
        (folder / "test_list.txt").write_text(names[-1] + "\n")
    return folder
