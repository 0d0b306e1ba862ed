"""Writes a user's table with DICOM, PNG and JPEG images, with and without extensions.

Every text that may not leak is a canary: in DICOM headers (`tests.fakes.dicom.CANARIES`), in columns that begin with
`_`, in the ids of patients, in the names of files, and in reports.
"""

import csv
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom.uid import ImplicitVRLittleEndian, RLELossless
from tests.fakes.dicom import dicom_bytes

PATIENT, FILE, REMARK, BIRTH = "SISKINPATIENT", "FINCHFILE", "LINNET Remark", "1877-08-09"
NAMED = "HOOPOENAME"
"""Name of a person in a report."""
LEAKS = (PATIENT, FILE, REMARK, BIRTH, NAMED, NAMED.lower())
"""Canaries of the table; those of the headers are `tests.fakes.dicom.LEAKS`."""
FINDINGS = ("Edema", "Pleural Effusion")
KINDS = ("png", "jpeg", "png 16 bit", "dicom", "dicom, bright is low", "dicom, packed", "dicom, without mark")


def scene(number: int, shape=(72, 64)):
    """Gray levels 0 to 255: a gradient with noise, and a bright stripe for each finding."""
    rows, columns = np.mgrid[0 : shape[0], 0 : shape[1]]
    pixels = rows * 90 // shape[0] + columns * 40 // shape[1]
    pixels = pixels + np.random.default_rng(number).integers(0, 30, shape)
    for place, present in enumerate(labels_of(number)):
        pixels[10 + 30 * place : 18 + 30 * place] += 80 * present
    pixels[0, 0], pixels[-1, -1] = 0, 255
    return pixels.astype(np.uint8)


def labels_of(number: int) -> tuple[int, int]:
    """Edema and effusion, alternating."""
    return (1, 0) if number % 2 else (0, 1)


def write_kind(path: Path, kind: str, pixels) -> Path:
    """Writes one scene in one of `KINDS`, the same gray levels in each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    deep = pixels.astype(np.uint16) * 16
    deep[-1, -1] = 4095
    if kind == "png":
        Image.fromarray(pixels).save(path, "PNG")
    elif kind == "jpeg":
        Image.fromarray(pixels).save(path, "JPEG", quality=98)
    elif kind == "png 16 bit":
        Image.fromarray(pixels.astype(np.uint16) * 257).save(path, "PNG")
    elif kind == "dicom":
        path.write_bytes(dicom_bytes(deep, bits=12))
    elif kind == "dicom, bright is low":
        path.write_bytes(dicom_bytes(4095 - deep, bits=12, photometric="MONOCHROME1"))
    elif kind == "dicom, packed":
        path.write_bytes(dicom_bytes(deep, bits=12, syntax=RLELossless))
    else:
        path.write_bytes(dicom_bytes(deep, bits=12, syntax=ImplicitVRLittleEndian, preamble=False))
    return path


def write_mixed(folder: Path, patients: int = 28) -> Path:
    """Writes `manifest.csv` with two images of every patient, of every kind in turn; returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(2 * patients):
        kind = KINDS[number % len(KINDS)]
        ending = {"png": ".png", "jpeg": ".JPG", "dicom": ".dcm", "dicom, packed": ".png"}.get(kind, "")
        name = f"the images/{FILE}_{number:03}{ending}"
        write_kind(folder / name, kind, scene(number))
        edema, effusion = labels_of(number)
        rows.append(
            {
                "image": name,
                "patient": f"{PATIENT}{number // 2:02}",
                "view": ("AP", "PA")[number // 2 % 2],
                "sex": ("F", "M", "")[number // 2 % 3],
                "age": 40 + number // 2,
                "Edema": edema,
                "Pleural Effusion": effusion,
                "report": f"FINDINGS: The lungs are clear.\nIMPRESSION: Discussed with Dr. {NAMED}, number {number}.",
                "_remark": f"{REMARK}, {number}",
                "_born": BIRTH,
            }
        )
    with (folder / "manifest.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    return folder
