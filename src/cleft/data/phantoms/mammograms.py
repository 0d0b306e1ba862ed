"""Synthetic mammograms with their tables, in the layout of the EMBED open data.

The tables have the peculiarities of the real ones (`mammogram_patients.ODDITIES`), the images show the findings of
the tables (`draw_breast.py`), and the same seed writes the same bytes.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cleft.data.counts import progress_bar
from cleft.data.phantoms import write_once
from cleft.data.phantoms.draw_breast import Exposure, Mammogram, draw_mammogram
from cleft.data.phantoms.drawing import Map
from cleft.data.phantoms.mammogram_patients import Exam, ImageSpec, Patient, Shares, invent_patient
from cleft.data.sampling import Stream, philox_generator
from cleft.errors import DataError, ResourceError
from cleft.grammar import count

if TYPE_CHECKING:
    from pydicom.dataset import Dataset, FileMetaDataset


FOREIGN = ("/mnt/archive/mammo/anon_dicom", "/data/2/mammo/anon_dicom")
"""Paths of the two cohorts on the owner's machines, as in the real tables."""

Row = dict[str, str]

_DUMPED = (
    "Manufacturer ManufacturerModelName Modality PresentationIntentType BodyPartExamined PatientSex PatientAge "
    "PatientOrientation ImageLaterality BreastImplantPresent PartialView KVP ExposureTime BodyPartThickness "
    "CompressionForce ImagerPixelSpacing BurnedInAnnotation SamplesPerPixel PhotometricInterpretation Rows "
    "Columns BitsAllocated BitsStored HighBit PixelRepresentation WindowCenter WindowWidth VOILUTFunction "
    "RescaleSlope RescaleIntercept RescaleType"
).split()
"""Header attributes that are also columns of the metadata table."""

_PATHS = tuple(f"path{number}" for number in range(1, 11))


def metadata_row(
    patient: Patient,
    exam: Exam,
    spec: ImageSpec,
    path: str,
    boxes: Sequence[tuple[int, int, int, int]],
    header: Mapping[str, object],
) -> Row:
    """Return the row of the full metadata table for one file.

    Args:
        patient: The patient.
        exam: The exam.
        spec: The image.
        path: Path of the file from `cohort_1` or `cohort_2` on.
        boxes: Regions of interest: top, left, bottom, right; right breasts mirrored to the left orientation.
        header: Header attributes of the file.
    """
    return {
        "empi_anon": str(patient.empi),
        "acc_anon": str(exam.acc),
        "cohort_num": str(patient.cohort),
        "anon_dicom_path": f"{FOREIGN[patient.cohort - 1]}/{path}",
        "study_date_anon": f"{exam.taken}",
        "StudyDescription": exam.study,
        "SeriesDescription": str(header["SeriesDescription"]),
        "FinalImageType": spec.kind,
        "ImageLateralityFinal": spec.side,
        "ViewPosition": spec.named,
        "spot_mag": spec.spot_mag,
        "num_roi": str(len(boxes)),
        "ROI_coords": "(" + "".join(f"{box}," for box in boxes) + ")",
        "match_level": "[" + ", ".join("1" for _ in boxes) + "]" if boxes else "",
        "SRC_DST": "",
        "png_path": "",
        "png_filename": "",
        **{name: _dumped(header.get(name)) for name in _DUMPED},
    }


def _dumped(value: object) -> str:
    return "" if value is None else str(value)


def clinical_rows(patient: Patient, exam: Exam) -> Iterator[Row]:
    """Yield the rows of the full clinical table for one exam, one per finding."""
    marked = [finding for finding in exam.findings if finding.letter not in ("N", "X", "")]
    totals = {side: sum(finding.side in (side, "B") for finding in marked) for side in "LR"}
    for number, finding in enumerate(exam.findings, start=1):
        biopsy = finding.path != ""
        yield {
            "empi_anon": str(patient.empi),
            "acc_anon": str(exam.acc),
            "cohort_num": str(patient.cohort),
            "study_date_anon": f"{exam.signed}",
            "desc": exam.desc,
            "numfind": str(number),
            "side": finding.side,
            "asses": finding.letter,
            "tissueden": exam.density,
            "massshape": finding.shape,
            "massmargin": finding.margin,
            "massdens": finding.dens,
            "calcfind": finding.calc,
            "calcdistri": finding.distri,
            "calcnumber": "0" if number % 2 else "0.0",
            "implanfind": "I" if any(breast.implant for breast in patient.breasts.values()) else "",
            "total_L_find": f"{totals['L']}.0",
            "total_R_find": f"{totals['R']}.0",
            "bside": finding.side if biopsy else "",
            "type": "CB" if biopsy else "",
            **{name: "" for name in _PATHS},
            "path1": _PATHOLOGY[finding.path] if biopsy else "",
            "path_severity": f"{finding.path}.0" if biopsy else "",
            "procdate_anon": f"{exam.signed}" if biopsy else "",
            "pdate_anon": f"{exam.signed}" if biopsy else "",
            "age_at_study": f"{(exam.taken - patient.born).days / 365.25:.6f}",
            "GENDER_DESC": "Male" if patient.male else "Female",
            "RACE_DESC": patient.race,
            "ETHNIC_GROUP_DESC": patient.ethnic,
        }


_PATHOLOGY = {"0": "ID", "1": "DC", "2": "LC", "4": "FA"}


def write_tables(folder: Path, metadata: Sequence[Row], clinical: Sequence[Row]) -> None:
    """Write all five tables; the two reduced ones lack columns, spell some differently and have another order."""
    folder.mkdir()
    _write(folder / "EMBED_OpenData_metadata.csv", metadata)
    _write(folder / "EMBED_OpenData_clinical.csv", clinical)
    short = [_renamed(row, _METADATA_REDUCED) for row in metadata]
    for row in short:
        row["num_ROI"] += ".0"
    _write(folder / "EMBED_OpenData_metadata_reduced.csv", _indexed(short))
    again = sorted(clinical, key=lambda row: (row["acc_anon"], int(row["numfind"])))
    _write(
        folder / "EMBED_OpenData_clinical_reduced.csv",
        _indexed([_renamed(row, _CLINICAL_REDUCED) for row in again]),
    )
    rows = [
        [header, about, code, f"{meaning:<50}"]
        for (header, about), codes in CODES.items()
        for code, meaning in codes.items()
    ]
    with (folder / "AWS_Open_Data_Clinical_Legend.csv").open("w", newline="", encoding="utf-8-sig") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["Header in export", "Discription", "Code", "Meaning"])
        table.writerows(rows)


def _write(path: Path, rows: Iterable[Row]) -> None:
    """Write rows with equal columns."""
    rows = list(rows)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def _renamed(row: Row, columns: Mapping[str, str]) -> Row:
    return {new: row[old] for old, new in columns.items()}


def _indexed(rows: Iterable[Row]) -> Iterator[Row]:
    """Add the unnamed index column of a table that was saved with its index."""
    return ({"": str(number), **row} for number, row in enumerate(rows))


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


_METADATA_REDUCED = {
    **_same("empi_anon", "acc_anon", "cohort_num", "anon_dicom_path", "study_date_anon", "StudyDescription"),
    **_same("SeriesDescription", "FinalImageType", "ImageLateralityFinal", "ViewPosition", "spot_mag"),
    "num_roi": "num_ROI",
    **_same("ROI_coords", "match_level"),
}
_CLINICAL_REDUCED = {
    **_same("empi_anon", "acc_anon", "cohort_num", "study_date_anon", "desc", "numfind", "side", "asses", "tissueden"),
    **_same("massshape", "massmargin", "massdens", "calcfind", "calcdistri", "calcnumber"),
    "total_L_find": "total_l_find",
    "total_R_find": "total_r_find",
    **_same("bside", "path_severity", "age_at_study"),
    "RACE_DESC": "ETHNICITY_DESC",
    **_same("ETHNIC_GROUP_DESC"),
}
"""Columns of the reduced tables, and their names there."""


@dataclass(frozen=True, kw_only=True)
class Scanner:
    """How a scanner stores its images."""

    maker: str
    model: str
    photometric: str = "MONOCHROME2"
    bits: int = 12
    function: str = ""
    windows: tuple[tuple[float, float], ...] = ()
    """Centre and width of each window, as shares of the range of values after rescaling."""
    rescale: tuple[int, int] | None = None
    """Rescale slope and intercept, if the file has them."""
    implicit: bool = False


SCANNERS = (
    Scanner(maker="HOLOGIC, Inc.", model="Selenia Dimensions", windows=((0.5, 1.0),)),
    Scanner(
        maker="HOLOGIC, Inc.",
        model="Lorad Selenia",
        photometric="MONOCHROME1",
        windows=((0.5, 1.0), (0.45, 0.9), (0.55, 1.1)),
    ),
    Scanner(
        maker="GE MEDICAL SYSTEMS",
        model="Senographe Essential",
        bits=14,
        function="SIGMOID",
        windows=((0.45, 0.8), (0.5, 1.0)),
        rescale=(1, 0),
    ),
    Scanner(
        maker="FUJIFILM Corporation",
        model="AMULET",
        photometric="MONOCHROME1",
        bits=10,
        windows=((0.5, 1.0),),
        rescale=(2, -500),
        implicit=True,
    ),
)
"""Every way of storing pixels that the real data may use and the default installation can read."""


def header_attributes(
    patient: Patient,
    exam: Exam,
    spec: ImageSpec,
    scanner: Scanner,
    size: tuple[int, int],
    uids: tuple[str, str, str],
) -> dict[str, object]:
    """Return the header attributes of one image by keyword; most are also columns of the metadata table."""
    top = (1 << scanner.bits) - 1
    slope, intercept = scanner.rescale or (1, 0)
    low, span = intercept, slope * top
    centres = [round(low + centre * span) for centre, _ in scanner.windows]
    widths = [round(width * span) for _, width in scanner.windows]
    down = "F" if spec.view in ("MLO", "ML", "LM") else ""
    towards = "A" if spec.side == "L" else "P"
    across = "R" if spec.side == "L" else "L"
    born, taken = f"{patient.born:%Y%m%d}", f"{exam.taken:%Y%m%d}"
    mass = 41 + patient.number * 7 % 40
    header: dict[str, object] = {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.2",
        "SOPInstanceUID": uids[2],
        "StudyInstanceUID": uids[0],
        "SeriesInstanceUID": uids[1],
        "ImageType": ["DERIVED", "PRIMARY"] + (["TOMO", "GENERATED_2D"] if spec.kind == "cview" else []),
        "Modality": "MG",
        "PresentationIntentType": "FOR PRESENTATION",
        "StudyDate": taken,
        "ContentDate": taken,
        "StudyTime": f"{8 + patient.number % 9:02d}{patient.number * 13 % 60:02d}00",
        "AccessionNumber": str(exam.acc),
        "StudyDescription": exam.study,
        "SeriesDescription": series_description(spec),
        "Manufacturer": scanner.maker,
        "ManufacturerModelName": scanner.model,
        "InstitutionName": "Phantom Hospital",
        "PatientName": f"Phantom^Patient{patient.number:05d}",
        "PatientID": str(patient.empi),
        "PatientBirthDate": born,
        "PatientSex": "M" if patient.male else "F",
        "PatientAge": f"{(exam.taken - patient.born).days // 365:03d}Y",
        "BodyPartExamined": "BREAST",
        "ViewPosition": spec.view,
        "ImageLaterality": spec.side,
        "PatientOrientation": [towards, f"{down}{across}"],
        "BreastImplantPresent": "YES" if patient.breasts[spec.side].implant else "NO",
        "PartialView": "NO",
        "KVP": 27 + patient.number % 5,
        "ExposureTime": 900 + patient.number * 37 % 700,
        "BodyPartThickness": mass,
        "CompressionForce": round(60 + patient.number * 11 % 70 + 0.37, 2),
        "ImagerPixelSpacing": [round(240 / size[0], 4)] * 2,
        "BurnedInAnnotation": "NO",
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": scanner.photometric,
        "Rows": size[0],
        "Columns": size[1],
        "BitsAllocated": 16,
        "BitsStored": scanner.bits,
        "HighBit": scanner.bits - 1,
        "PixelRepresentation": 0,
        "WindowCenter": centres if len(centres) > 1 else centres[0],
        "WindowWidth": widths if len(widths) > 1 else widths[0],
    }
    if scanner.function:
        header["VOILUTFunction"] = scanner.function
    if scanner.rescale:
        header |= {"RescaleSlope": slope, "RescaleIntercept": intercept, "RescaleType": "US"}
    return header


def series_description(spec: ImageSpec) -> str:
    """Return the series description of an image."""
    extra = " C-View" if spec.kind == "cview" else " Spot Mag" if spec.spot else ""
    return f"{spec.side} {spec.view}{extra}"


def write_image(path: Path, image: Map, scanner: Scanner, header: dict[str, object]) -> None:
    """Write one DICOM file.

    Args:
        path: The file; its folder exists.
        image: Brightness, `[H, W]`, 0 to 1.
        scanner: How to store it.
        header: From `header_attributes`.

    Raises:
        ResourceError: If the file cannot be written.
    """
    top = (1 << scanner.bits) - 1
    stored = np.rint(np.clip(image, 0, 1) * top).astype("<u2")
    if scanner.photometric == "MONOCHROME1":
        stored = (top - stored).astype("<u2")
    dataset = _dataset(scanner, header)
    dataset.PixelData = stored.tobytes()
    dataset["PixelData"].VR = "OW"
    try:
        dataset.save_as(path, enforce_file_format=True)
    except OSError as error:
        raise ResourceError(f"{path} could not be written ({error.strerror}); free disk space") from error


def _dataset(scanner: Scanner, header: dict[str, object]) -> Dataset:
    from pydicom.dataset import Dataset

    dataset = Dataset()
    dataset.file_meta = _meta(scanner, header)
    for name, value in header.items():
        setattr(dataset, name, value)
    return dataset


def _meta(scanner: Scanner, header: dict[str, object]) -> FileMetaDataset:
    """File meta information, independent of the writing software."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.FileMetaInformationVersion = b"\x00\x01"
    meta.MediaStorageSOPClassUID = UID(str(header["SOPClassUID"]))
    meta.MediaStorageSOPInstanceUID = UID(str(header["SOPInstanceUID"]))
    meta.TransferSyntaxUID = ImplicitVRLittleEndian if scanner.implicit else ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID("2.25.180317201955834418741364108271265413577")
    meta.ImplementationVersionName = "PHANTOM"
    return meta


VERSION = 1
"""Increase when the same seed gives other bytes."""

DEFAULT_SHARES = Shares()


def write_mammograms(
    folder: Path,
    *,
    patients: int,
    seed: int = 0,
    size: int = 384,
    shares: Shares = DEFAULT_SHARES,
    progress: bool = True,
) -> Path:
    """Draw a synthetic EMBED dataset.

    A folder that already holds the same images is left unchanged. A patient does not depend on the number of patients.

    Args:
        folder: Folder to write; used as `data.root`.
        patients: Number of patients; a patient has about seven images, and the first ones show one oddity each.
        seed: The same seed writes the same bytes.
        size: Height of an image in pixels; the width is 5/6 of that. At 384 a file has 250 kB.
        shares: Frequency of each assessment and density.
        progress: Whether to show a progress bar.

    Returns:
        The folder.

    Raises:
        DataError: If the folder holds something else, or the numbers are too small.
        ResourceError: If an image cannot be written.
    """
    if patients < 1 or size < 64:
        raise DataError(
            f"cannot draw {count(patients, 'patient')} with images of {count(size, 'pixel')}; set at least 1 patient "
            "and 64 pixels"
        )
    mark = {
        "kind": "mammogram",
        "version": VERSION,
        "seed": seed,
        "patients": patients,
        "size": size,
        "birads": list(shares.birads),
        "density": list(shares.density),
    }

    def draw(draft: Path) -> None:
        metadata: list[Row] = []
        clinical: list[Row] = []
        with progress_bar("draw synthetic mammograms", patients, enabled=progress) as advance:
            for number in range(1, patients + 1):
                patient = invent_patient(seed, number, shares)
                metadata.extend(_draw_patient(draft / "images", patient, seed, (size, round(size * 5 / 6))))
                clinical.extend(row for exam in patient.exams for row in clinical_rows(patient, exam))
                advance()
        write_tables(draft / "tables", metadata, clinical)

    return write_once(folder, mark, draw)


def _draw_patient(images: Path, patient: Patient, seed: int, size: tuple[int, int]) -> list[Row]:
    """Draw every image of a patient; return their rows."""
    rows: list[Row] = []
    rng = philox_generator(seed, Stream.PHANTOM, patient.number, 2)
    for visit, exam in enumerate(patient.exams):
        lot = int(rng.choice(len(SCANNERS), p=[0.55, 0.20, 0.15, 0.10]))
        scanner = SCANNERS[patient.number % len(SCANNERS) if patient.number <= 2 * len(SCANNERS) else lot]
        for index, spec in enumerate(exam.images):
            uids = _uid(seed, exam.acc), _uid(seed, exam.acc, index), _uid(seed, exam.acc, index, 1)
            path = f"cohort_{patient.cohort}/{patient.empi}/{uids[0]}/{uids[1]}/{uids[2]}.dcm"
            drawn = _draw_image(
                patient,
                exam,
                spec,
                size,
                philox_generator(seed, Stream.PHANTOM, patient.number, 16 + 64 * visit + index),
            )
            header = header_attributes(patient, exam, spec, scanner, size, uids)
            (images / path).parent.mkdir(parents=True)
            write_image(images / path, drawn.image, scanner, header)
            rows.append(metadata_row(patient, exam, spec, path, _marked(drawn, spec, size, exam), header))
    return rows


def _draw_image(
    patient: Patient, exam: Exam, spec: ImageSpec, size: tuple[int, int], rng: np.random.Generator
) -> Mammogram:
    lesions = [row.lesion for row in exam.findings if row.lesion is not None and row.side in (spec.side, "B", "")]
    exposure = Exposure(
        view=spec.view,
        side=spec.side,
        synthetic=spec.kind == "cview",
        spot=spec.spot,
        squeeze=rng.uniform(0.96, 1.04),
        shift=rng.normal(0, 0.012),
        gamma=rng.uniform(0.92, 1.08),
        noise=rng.uniform(0.008, 0.016),
    )
    return draw_mammogram(size, patient.breasts[spec.side], exposure, lesions, rng)


def _marked(drawn: Mammogram, spec: ImageSpec, size: tuple[int, int], exam: Exam) -> list[tuple[int, int, int, int]]:
    """Regions of interest of every fourth exam, with right breasts mirrored as in the real table."""
    if exam.acc % 4 or spec.spot:
        return []
    if spec.side == "L":
        return drawn.boxes
    return [(top, size[1] - right, bottom, size[1] - left) for top, left, bottom, right in drawn.boxes]


def _uid(seed: int, *parts: int) -> str:
    """Return a UID below 2.25, the root for UIDs without registration."""
    text = "|".join(str(part) for part in (seed, *parts))
    return f"2.25.{int.from_bytes(hashlib.sha256(text.encode()).digest()[:15])}"


CODES: Mapping[tuple[str, str], Mapping[str, str]] = {
    ("asses", "Assessment of the finding"): {
        "A": "Additional evaluation",
        "N": "Negative",
        "B": "Benign",
        "P": "Probably benign",
        "S": "Suspicious",
        "M": "Highly suggestive of malignancy",
        "K": "Known biopsy proven",
        "X": "No assessment",
    },
    ("tissueden", "Density of the tissue"): {
        "1": "Almost entirely fat",
        "2": "Scattered fibroglandular densities",
        "3": "Heterogeneously dense",
        "4": "Extremely dense",
        "5": "Normal male",
    },
    ("massshape", "Shape of a mass, asymmetries and distortion"): {
        "G": "Generic",
        "R": "Round",
        "O": "Oval",
        "X": "Irregular",
        "Q": "Questioned architectural distortion",
        "A": "Architectural distortion",
        "T": "Tubular, solitary dilated duct",
        "N": "Intramammary lymph node",
        "B": "Global asymmetry",
        "F": "Focal asymmetry",
        "S": "Asymmetry",
        "V": "Developing asymmetry",
        "Y": "Lymph node",
    },
    ("massmargin", "Margin of a mass"): {
        "D": "Circumscribed",
        "U": "Obscured",
        "M": "Microlobulated",
        "I": "Indistinct",
        "S": "Spiculated",
    },
    ("massdens", "Density of a mass"): {"+": "High", "=": "Equal", "-": "Low", "0": "Fat containing"},
    ("calcfind", "Kind of a calcification"): {
        "A": "Amorphous",
        "9": "Benign",
        "H": "Coarse heterogeneous",
        "C": "Coarse, popcorn-like",
        "D": "Dystrophic",
        "E": "Rim",
        "F": "Fine-linear",
        "B": "Fine linear-branching",
        "G": "Generic",
        "I": "Fine pleomorphic",
        "L": "Large rod-like",
        "M": "Milk of calcium",
        "J": "Oil cyst",
        "K": "Pleomorphic",
        "P": "Punctate",
        "R": "Round",
        "S": "Skin",
        "O": "Lucent-centered",
        "U": "Suture",
        "V": "Vascular",
        "Q": "Coarse",
    },
    ("calcdistri", "Distribution of calcifications"): {
        "G": "Grouped",
        "S": "Segmental",
        "R": "Regional",
        "D": "Diffuse, scattered",
        "L": "Linear",
        "C": "Clustered",
    },
    ("path_severity", "Worst result of a biopsy"): {
        "0": "Invasive cancer",
        "1": "Non-invasive cancer",
        "2": "High-risk lesion",
        "3": "Borderline lesion",
        "4": "Benign",
        "5": "Negative",
        "6": "Non-breast cancer",
    },
    ("side", "Side of the finding"): {"L": "Left", "R": "Right", "B": "Both"},
}
"""The code book: column and description to meanings by code; worded by us."""
