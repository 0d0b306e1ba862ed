"""Writes a user's own table with its images."""

from collections.abc import Sequence
from pathlib import Path

from tests.fakes.chexpert import write_image

HEADER = "image,patient,view,sex,age,caption,No Finding,Edema,_remark"
LINES = (
    "images/a1.png,a,PA,F,61,,1,,healthy",
    'images/a2.png,a,AP,f,62,"Small effusion, left.",,1,',
    "images/b.png,b,,Male,,,,-1,",
    "images/c.png,c,AP,,,,,0,",
)


def write_fake_manifest(folder: Path, lines: Sequence[str] = LINES, *, header: str = HEADER) -> Path:
    """Writes `manifest.csv` and an image for every path below `images/`; returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.csv").write_text("\n".join([header, *lines]) + "\n")
    for line in lines:
        image = line.partition(",")[0]
        if image.startswith("images/"):
            write_image(folder / image)
    return folder
