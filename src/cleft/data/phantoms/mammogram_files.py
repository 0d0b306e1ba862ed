"""Writes one drawn mammogram as the DICOM file of an invented machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cleft.data.phantoms.drawing import Map
from cleft.data.phantoms.mammogram_cases import Exam, Patient, Picture
from cleft.errors import ResourceError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset, FileMetaDataset


@dataclass(frozen=True, kw_only=True)
class Machine:
    """How a machine stores its images."""

    maker: str
    model: str
    photometric: str = "MONOCHROME2"
    bits: int = 12
    function: str = ""
    windows: tuple[tuple[float, float], ...] = ()
    """Centre and width of each, as shares of the range of values after rescaling."""
    rescale: tuple[int, int] | None = None
    """Slope and intercept, if the file has them."""
    implicit: bool = False


MACHINES = (
    Machine(maker="HOLOGIC, Inc.", model="Selenia Dimensions", windows=((0.5, 1.0),)),
    Machine(
        maker="HOLOGIC, Inc.",
        model="Lorad Selenia",
        photometric="MONOCHROME1",
        windows=((0.5, 1.0), (0.45, 0.9), (0.55, 1.1)),
    ),
    Machine(
        maker="GE MEDICAL SYSTEMS",
        model="Senographe Essential",
        bits=14,
        function="SIGMOID",
        windows=((0.45, 0.8), (0.5, 1.0)),
        rescale=(1, 0),
    ),
    Machine(
        maker="FUJIFILM Corporation",
        model="AMULET",
        photometric="MONOCHROME1",
        bits=10,
        windows=((0.5, 1.0),),
        rescale=(2, -500),
        implicit=True,
    ),
)
"""Each way of storing pixels that the release may hold and the plain installation reads."""


def facts(
    patient: Patient, exam: Exam, picture: Picture, machine: Machine, size: tuple[int, int], uids: tuple[str, str, str]
) -> dict[str, object]:
    """Header attributes of one image, by keyword; the metadata table repeats most of them."""
    top = (1 << machine.bits) - 1
    slope, intercept = machine.rescale or (1, 0)
    low, span = intercept, slope * top
    centres = [round(low + centre * span) for centre, _ in machine.windows]
    widths = [round(width * span) for _, width in machine.windows]
    down = "F" if picture.view in ("MLO", "ML", "LM") else ""
    towards = "A" if picture.side == "L" else "P"
    across = "R" if picture.side == "L" else "L"
    born, taken = f"{patient.born:%Y%m%d}", f"{exam.taken:%Y%m%d}"
    mass = 41 + patient.number * 7 % 40
    header: dict[str, object] = {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.2",
        "SOPInstanceUID": uids[2],
        "StudyInstanceUID": uids[0],
        "SeriesInstanceUID": uids[1],
        "ImageType": ["DERIVED", "PRIMARY"] + (["TOMO", "GENERATED_2D"] if picture.kind == "cview" else []),
        "Modality": "MG",
        "PresentationIntentType": "FOR PRESENTATION",
        "StudyDate": taken,
        "ContentDate": taken,
        "StudyTime": f"{8 + patient.number % 9:02d}{patient.number * 13 % 60:02d}00",
        "AccessionNumber": str(exam.acc),
        "StudyDescription": exam.study,
        "SeriesDescription": series_description(picture),
        "Manufacturer": machine.maker,
        "ManufacturerModelName": machine.model,
        "InstitutionName": "Phantom Hospital",
        "PatientName": f"Phantom^Patient{patient.number:05d}",
        "PatientID": str(patient.empi),
        "PatientBirthDate": born,
        "PatientSex": "M" if patient.male else "F",
        "PatientAge": f"{(exam.taken - patient.born).days // 365:03d}Y",
        "BodyPartExamined": "BREAST",
        "ViewPosition": picture.view,
        "ImageLaterality": picture.side,
        "PatientOrientation": [towards, f"{down}{across}"],
        "BreastImplantPresent": "YES" if patient.breasts[picture.side].implant else "NO",
        "PartialView": "NO",
        "KVP": 27 + patient.number % 5,
        "ExposureTime": 900 + patient.number * 37 % 700,
        "BodyPartThickness": mass,
        "CompressionForce": round(60 + patient.number * 11 % 70 + 0.37, 2),
        "ImagerPixelSpacing": [round(240 / size[0], 4)] * 2,
        "BurnedInAnnotation": "NO",
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": machine.photometric,
        "Rows": size[0],
        "Columns": size[1],
        "BitsAllocated": 16,
        "BitsStored": machine.bits,
        "HighBit": machine.bits - 1,
        "PixelRepresentation": 0,
        "WindowCenter": centres if len(centres) > 1 else centres[0],
        "WindowWidth": widths if len(widths) > 1 else widths[0],
    }
    if machine.function:
        header["VOILUTFunction"] = machine.function
    if machine.rescale:
        header |= {"RescaleSlope": slope, "RescaleIntercept": intercept, "RescaleType": "US"}
    return header


def series_description(picture: Picture) -> str:
    """What a machine calls such a series."""
    extra = " C-View" if picture.kind == "cview" else " Spot Mag" if picture.spot else ""
    return f"{picture.side} {picture.view}{extra}"


def write_image(path: Path, image: Map, machine: Machine, header: dict[str, object]) -> None:
    """Writes one file.

    Args:
        path: Where; its folder exists.
        image: Brightness, `[H, W]`, 0 to 1.
        machine: How to store it.
        header: From `facts`.

    Raises:
        ResourceError: If the file cannot be written.
    """
    top = (1 << machine.bits) - 1
    stored = np.rint(np.clip(image, 0, 1) * top).astype("<u2")
    if machine.photometric == "MONOCHROME1":
        stored = (top - stored).astype("<u2")
    dataset = _dataset(machine, header)
    dataset.PixelData = stored.tobytes()
    dataset["PixelData"].VR = "OW"
    try:
        dataset.save_as(path, enforce_file_format=True)
    except OSError as error:
        raise ResourceError(f"{path} could not be written ({error.strerror}); make room on the disk") from error


def _dataset(machine: Machine, header: dict[str, object]) -> Dataset:
    from pydicom.dataset import Dataset

    dataset = Dataset()
    dataset.file_meta = _meta(machine, header)
    for name, value in header.items():
        setattr(dataset, name, value)
    return dataset


def _meta(machine: Machine, header: dict[str, object]) -> FileMetaDataset:
    """The part before the header, with nothing in it that depends on who writes it."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = UID(str(header["SOPClassUID"]))
    meta.MediaStorageSOPInstanceUID = UID(str(header["SOPInstanceUID"]))
    meta.TransferSyntaxUID = ImplicitVRLittleEndian if machine.implicit else ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID("2.25.180317201955834418741364108271265413577")
    meta.ImplementationVersionName = "PHANTOM"
    return meta
