"""Writes the real folder structure of CheXpert-v1.0 with invented patients and gray squares for images.

It has the oddities of the real data: release prefixes that differ from the folder on disk and within a
table, laterals, frontals marked LL, an unknown sex, and present, absent, uncertain and blank labels side by side.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

FINDINGS = (
    "No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,Consolidation,Pneumonia,"
    "Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
).split(",")
COLUMNS = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *FINDINGS]
SMALL = "CheXpert-v1.0-small"

Row = dict[str, str]


def chexpert_row(
    image: str,
    labels: Mapping[str, str] | None = None,
    *,
    view: str = "AP",
    sex: str = "Female",
    age: str = "60",
    prefix: str = SMALL,
) -> Row:
    """One row for an image such as `patient00001/study1/view1_frontal.jpg` of the training set."""
    lateral = image.endswith("lateral.jpg")
    return {
        "Path": f"{prefix}/train/{image}" if prefix else f"train/{image}",
        "Sex": sex,
        "Age": age,
        "Frontal/Lateral": "Lateral" if lateral else "Frontal",
        "AP/PA": "" if lateral else view,
        **dict.fromkeys(FINDINGS, ""),
        **(labels or {}),
    }


def odd_rows() -> list[Row]:
    """Eight images of five patients, six of them AP or PA; every oddity once."""
    return [
        chexpert_row("patient00001/study1/view1_frontal.jpg", {"No Finding": "1.0", "Support Devices": "1.0"}),
        chexpert_row("patient00001/study1/view2_lateral.jpg", {"No Finding": "1.0", "Support Devices": "1.0"}),
        chexpert_row(
            "patient00002/study1/view1_frontal.jpg",
            {"Lung Opacity": "1.0", "Edema": "-1.0", "Cardiomegaly": "0.0"},
            view="PA",
        ),
        chexpert_row("patient00002/study2/view1_frontal.jpg", {"Edema": "1.0"}, view="LL"),
        chexpert_row("patient00003/study1/view1_frontal.jpg", sex="Unknown", age="0"),
        chexpert_row("patient00003/study2/view1_frontal.jpg", {"Pneumonia": "1.0"}, prefix="CheXpert-v1.0"),
        chexpert_row("patient00004/study1/view1_frontal.jpg", {"Fracture": "0.0"}, sex="Male", age="90"),
        chexpert_row("patient00005/study1/view1_frontal.jpg", {"Atelectasis": "1.0", "Edema": "0.0"}, view="PA"),
    ]


def write_csv(path: Path, rows: Sequence[Mapping[str, str]], columns: Sequence[str] | None = None) -> Path:
    """Writes plain rows, none of whose cells needs quotes."""
    names = list(columns or rows[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([",".join(names), *(",".join(row[name] for name in names) for row in rows)]) + "\n")
    return path


def write_image(path: Path, size: int = 64) -> Path:
    """Writes a gray square with a corner of its own, told by the last parts of its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((size, size), 128, dtype=np.uint8)
    own = np.frombuffer(hashlib.sha256("/".join(path.parts[-4:]).encode()).digest(), dtype=np.uint8)
    pixels[: size // 4, : size // 2] = np.resize(own % 100, size // 2)
    Image.fromarray(pixels).save(path)
    return path


def write_fake_chexpert(
    folder: Path, rows: Sequence[Row] | None = None, *, table: str = "train.csv", missing: Iterable[str] = ()
) -> Path:
    """Writes the small release below `folder` and returns `folder`.

    Args:
        folder: Will hold `CheXpert-v1.0-small/`.
        rows: As `chexpert_row` makes them; by default `odd_rows()`.
        table: Name of the label table.
        missing: Images, such as `patient00005/study1/view1_frontal.jpg`, that the download lost.
    """
    rows = odd_rows() if rows is None else rows
    write_csv(folder / SMALL / table, rows)
    lost = set(missing)
    for image in {row["Path"].partition("train/")[2] for row in rows} - lost - {""}:
        write_image(folder / SMALL / "train" / image)
    return folder


def write_full_chexpert(folder: Path, rows: Sequence[Row] | None = None) -> Path:
    """Writes the full release and returns `folder`.

    Tables, README and `valid/` lie in the first batch; the training images in three others, without a `train/` level;
    the demographics, which nobody reads, beside them.
    """
    rows = odd_rows() if rows is None else rows
    first = folder / "CheXpert-v1.0 batch 1 (validate & csv)"
    write_csv(first / "train.csv", [{**row, "Path": _in_full(row["Path"])} for row in rows])
    write_valid(first, prefix="CheXpert-v1.0")
    (first / "README.md").write_text("# CheXpert\n")
    (folder / "CHEXPERT DEMO.xlsx").write_bytes(b"PK\x03\x04")
    images = sorted({row["Path"].partition("train/")[2] for row in rows})
    for number, image in enumerate(images):
        # Patients, not images, are told apart by batch; here the odd ones lie in the third.
        batch = "2 (train 1)" if int(image[7:12]) % 2 == 0 else "3 (train 2)"
        write_image(folder / f"CheXpert-v1.0 batch {batch}" / image, size=64 + number % 2)
    (folder / "CheXpert-v1.0 batch 4 (train 3)").mkdir()
    return folder


def write_valid(folder: Path, *, prefix: str = SMALL) -> Path:
    """Writes `valid.csv`: 0 and 1 alone, no blanks, one frontal and one lateral of a patient. Returns `folder`."""
    names = ["patient64541/study1/view1_frontal.jpg", "patient64541/study1/view2_lateral.jpg"]
    rows = [
        {
            **chexpert_row(name, {**dict.fromkeys(FINDINGS, "0.0"), "Cardiomegaly": "1.0"}, sex="Male", age="73"),
            "Path": f"{prefix}/valid/{name}",
        }
        for name in names
    ]
    write_csv(folder / "valid.csv", rows)
    for name in names:
        write_image(folder / "valid" / name)
    return folder


def write_labels_of(
    folder: Path, name: str, rows: Sequence[Row], labels: Mapping[str, Mapping[str, str]], *, rest: str = ""
) -> Path:
    """Writes a table of other labels for the images of `rows`, backwards and with the prefix of the full release.

    Args:
        folder: Where it goes.
        name: Such as `train_cheXbert.csv`.
        rows: Of the image list, as `chexpert_row` makes them.
        labels: Image, such as `patient00001/study1/view1_frontal.jpg`, to its labels; images it lacks have no row.
        rest: What stands in cells that `labels` does not name.
    """
    written = [
        {
            **row,
            "Path": _in_full(row["Path"]),
            **dict.fromkeys(FINDINGS, rest),
            **labels[row["Path"].partition("train/")[2]],
        }
        for row in rows
        if row["Path"].partition("train/")[2] in labels
    ]
    return write_csv(folder / name, written[::-1])


def _in_full(path: str) -> str:
    return f"CheXpert-v1.0/train/{path.partition('train/')[2]}"


def write_test_set(folder: Path, *, table: str = "test_labels.csv", prefix: str = "CheXpert-v1.0/") -> Path:
    """Writes the test set's form: path and findings alone. Returns the folder of its table."""
    root = folder / "CheXpert-v1.0"
    names = ["patient64741/study1/view1_frontal.jpg", "patient64741/study1/view2_lateral.jpg"]
    rows = [{"Path": f"{prefix}test/{name}", **dict.fromkeys(FINDINGS, "0.0")} for name in names]
    write_csv(root / table, rows)
    for name in names:
        write_image(root / "test" / name)
    return root
