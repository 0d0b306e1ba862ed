"""Writes DICOM files of any kind: one argument away from each hazard, a canary in every text that may not leak.

dicom_bytes(pixels)                                              # native, explicit little endian
dicom_bytes(pixels, bits=12, photometric="MONOCHROME1", WindowCenter=600, WindowWidth=1200)
dicom_bytes(pixels, syntax=RLELossless)                          # or any of COMPRESSED
dicom_bytes(None, SOPClassUID=BasicTextSRStorage)                # no picture in it
write_dicom(folder / "a.dcm", pixels, PatientAge="45", ViewPosition="AP")
"""

import base64
import struct
import tempfile
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom import Dataset, Sequence, config, dcmread, dcmwrite
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.tag import Tag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

NATIVE = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
COMPRESSED = (RLELossless, JPEG2000Lossless, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless)
"""Lossless ones that `dicom_bytes` can write; `JPEGBaseline8Bit` is the lossy one."""

CANARIES = {
    "PatientName": "CANARY^NAME",
    "PatientID": "CANARY-ID",
    "PatientBirthDate": "19010203",
    "AccessionNumber": "CANARY-ACC",
    "StudyDate": "19450607",
    "InstitutionName": "CANARY-HOSPITAL",
    "ReferringPhysicianName": "CANARY^DOCTOR",
    "StudyDescription": "CANARY-STUDY",
    "SeriesDescription": "CANARY-SERIES",
    "StudyInstanceUID": "1.2.826.0.1.19991",
    "SeriesInstanceUID": "1.2.826.0.1.19992",
    "SOPInstanceUID": "1.2.826.0.1.19993",
}
"""What stands in every file; none of it may come out in a message, a log or a cache."""
LEAKS = ("CANARY", "19010203", "19450607", "1999")
"""Parts of the canaries to search for."""


def dicom_bytes(
    pixels,
    *,
    bits=None,
    photometric="MONOCHROME2",
    syntax=ExplicitVRLittleEndian,
    has_syntax=True,
    preamble=True,
    frames=False,
    overlays=(),
    **tags,
):
    """A whole file.

    Args:
        pixels: `[H, W]`, `[H, W, 3]`, or with `frames` one axis more in front; uint8, uint16, int8, int16 or more;
            None for an object that has no picture.
        bits: Bits stored; by default all that are allocated.
        photometric: Photometric interpretation; colour arrays need `RGB` or the like.
        syntax: Transfer syntax.
        has_syntax: Whether the file says its transfer syntax.
        preamble: Whether it begins with 128 bytes and `DICM`; without them it has no file meta information either.
        frames: Whether the first axis counts frames.
        overlays: Bits of the pixels that hold an overlay, as in old files, from 0; at most 16.
        tags: Any attribute by its keyword, legal or not; None takes one out. A list of dicts becomes a sequence; bytes
            are written as they are, as `b"n/a"` for a number.
    """
    settings = config.settings
    before = settings.reading_validation_mode, settings.writing_validation_mode
    settings.reading_validation_mode = settings.writing_validation_mode = config.IGNORE
    try:
        return _bytes(pixels, bits, photometric, syntax, has_syntax, preamble, frames, overlays, tags)
    finally:
        settings.reading_validation_mode, settings.writing_validation_mode = before


def write_dicom(path, pixels, **arguments):
    """Writes the file that `dicom_bytes` makes, and folders as needed; returns `path`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(dicom_bytes(pixels, **arguments))
    return path


def table_item(entries, first=0, depth=16):
    """An item of a modality or VOI look-up table sequence: `tags={"VOILUTSequence": [table_item(...)]}`."""
    entries = np.asarray(entries, np.uint16)
    return {"LUTDescriptor": [len(entries) % 65536, first, depth], "LUTData": entries.astype("<u2").tobytes()}


def encapsulated_bytes(frames, pixels, syntax, **arguments):
    """A file around streams that are compressed already, one per frame; `pixels` gives shape and type alone."""
    return _encapsulated(dcmread(BytesIO(dicom_bytes(pixels, **arguments))), list(frames), syntax)


def fragmented_bytes(fragments, table, pixels, syntax, **arguments):
    """A file with these fragments behind this basic offset table, true or not."""
    parts = [struct.pack(f"<{len(table)}L", *table), *(part + b"\0" * (len(part) % 2) for part in fragments)]
    data = b"".join(b"\xfe\xff\x00\xe0" + struct.pack("<L", len(part)) + part for part in parts)
    dataset = dcmread(BytesIO(dicom_bytes(pixels, **arguments)))
    return _encapsulated(dataset, None, syntax, data)


def streams(pixels, syntax, **arguments):
    """The compressed stream of each frame, by `dicom_bytes`."""
    dataset = dcmread(BytesIO(dicom_bytes(pixels, syntax=syntax, **arguments)))
    frames = len(pixels) if arguments.get("frames") else 1
    return [get_frame(dataset.PixelData, index, number_of_frames=frames) for index in range(frames)]


def htj2k_bytes(**arguments):
    """A file in High-Throughput JPEG 2000, which nothing here can write: its stream was made once; and its pixels."""
    pixels = np.add.outer(np.arange(40) * 30, np.arange(48) * 25).astype(np.uint16)
    return encapsulated_bytes([base64.b85decode(_HTJ2K)], pixels, HTJ2KLossless, bits=12, **arguments), pixels


def deflated_bomb(size):
    """A deflated file whose data set is `size` zero bytes in one element: some kilobytes for a gigabyte."""
    data = dicom_bytes(None, syntax=DeflatedExplicitVRLittleEndian)
    start = 132 + 12 + int.from_bytes(data[140:144], "little")
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    element = b"\x09\x00\x10\x00OB\0\0" + size.to_bytes(4, "little")
    body = [deflate.compress(element)]
    body += [deflate.compress(bytes(2**20)) for _ in range(size // 2**20)]
    return data[:start] + b"".join(body) + deflate.flush()


def _bytes(pixels, bits, photometric, syntax, has_syntax, preamble, frames, overlays, tags):
    dataset = _dataset(pixels, bits, photometric, frames)
    for number, bit in enumerate(overlays):
        dataset.add_new((0x6000 + 2 * number, 0x0100), "US", dataset.BitsAllocated)
        dataset.add_new((0x6000 + 2 * number, 0x0102), "US", bit)
    for keyword, value in tags.items():
        if value is None:
            dataset.pop(keyword, None)
        else:
            _set(dataset, keyword, value)
            if isinstance(value, bytes):
                continue
            if keyword.startswith("PixelPadding"):  # Which may be written with the other sign than the pixels.
                dataset[keyword].VR = "US" if value > 32767 else "SS"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID", DigitalXRayImageStorageForPresentation)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID", "1.2.3")
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if syntax.is_compressed:
        data = _compressed(dataset, pixels, syntax)
        return data if has_syntax else _without_syntax(data)
    if pixels is not None and syntax == ExplicitVRBigEndian:
        dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder(">")).tobytes()
    if preamble:
        dataset.file_meta.TransferSyntaxUID = syntax
        data = _written(dataset)
        return data if has_syntax else _without_syntax(data)
    dataset.file_meta = FileMetaDataset()
    buffer = BytesIO()
    little, implicit = syntax != ExplicitVRBigEndian, syntax == ImplicitVRLittleEndian
    dcmwrite(buffer, dataset, implicit_vr=implicit, little_endian=little, enforce_file_format=False)
    return buffer.getvalue()


def _dataset(pixels, bits, photometric, frames):
    dataset = Dataset()
    for keyword, value in CANARIES.items():
        setattr(dataset, keyword, value)
    dataset.SOPClassUID = DigitalXRayImageStorageForPresentation
    if pixels is None:
        return dataset
    shape = pixels.shape[1:] if frames else pixels.shape
    dataset.Rows, dataset.Columns = shape[:2]
    dataset.SamplesPerPixel = shape[2] if len(shape) == 3 else 1
    if len(shape) == 3:
        dataset.PlanarConfiguration = 0
    if frames:
        dataset.NumberOfFrames = len(pixels)
    dataset.PhotometricInterpretation = photometric
    dataset.BitsAllocated = pixels.dtype.itemsize * 8
    dataset.BitsStored = bits or dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    data = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    dataset["PixelData"].VR = "OW" if dataset.BitsAllocated > 8 else "OB"
    return dataset


def _set(dataset, keyword, value):
    """Sets an attribute; bytes are written as they are, whatever they mean, but for those of tables."""
    if not isinstance(value, bytes) or keyword in ("LUTData", "PixelData", "FloatPixelData", "ExtendedOffsetTable"):
        setattr(dataset, keyword, _sequence(value))
        return
    tag, value = Tag(keyword), value + b" " * (len(value) % 2)
    vr = dictionary_VR(tag).partition(" ")[0]
    dataset[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)


def _sequence(value):
    if not (isinstance(value, list) and value and isinstance(value[0], dict)):
        return value
    items = []
    for entries in value:
        item = Dataset()
        for keyword, entry in entries.items():
            _set(item, keyword, entry)
            if keyword == "LUTData":
                item["LUTData"].VR = "OW"
            if keyword == "LUTDescriptor":
                item["LUTDescriptor"].VR = "SS" if entry[1] < 0 else "US"
        items.append(item)
    return Sequence(items)


def _written(dataset):
    buffer = BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def _without_syntax(data):
    """The same file, its file meta information without the transfer syntax."""
    start = data.index(b"\x02\x00\x10\x00UI")
    length = 8 + int.from_bytes(data[start + 6 : start + 8], "little")
    group = int.from_bytes(data[140:144], "little") - length
    return data[:140] + group.to_bytes(4, "little") + data[144:start] + data[start + length :]


def _compressed(dataset, pixels, syntax):
    if syntax in (RLELossless, JPEG2000Lossless):
        dataset.compress(syntax, generate_instance_uid=False)
        return _written(dataset)
    if syntax == JPEGBaseline8Bit:
        buffer = BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
        return _encapsulated(dataset, [buffer.getvalue()], syntax)
    return _by_gdcm(dataset, syntax)


def _encapsulated(dataset, frames, syntax, data=None):
    dataset.PixelData = encapsulate(frames) if data is None else data
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = syntax
    return _written(dataset)


def _by_gdcm(dataset, syntax):
    import gdcm

    with tempfile.TemporaryDirectory() as folder:
        plain, packed = f"{folder}/plain", f"{folder}/packed"
        Path(plain).write_bytes(_written(dataset))
        reader = gdcm.ImageReader()
        reader.SetFileName(plain)
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(str(syntax))))
        change.SetInput(reader.GetImage())
        assert change.Change(), f"gdcm cannot write {syntax.name}"
        writer = gdcm.ImageWriter()
        writer.SetFileName(packed)
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
        result = dcmread(packed)
        # gdcm adds and changes attributes; only the stream is wanted.
        dataset.PixelData, dataset.file_meta.TransferSyntaxUID = result.PixelData, syntax
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    return _written(dataset)


_HTJ2K = (
    "|4;u>04YEK0000m0000e00000000000000m0000e0000000000009pH0sl|{2mk^A000XAQUDA90ssL31q1{@0smY86Cj9?kdTm&"
    "kdTm&kdTmwh=~7W02crOPjF>!N>E53R%LP^FfKASE;BCwkN^q*00000>i_}&lfVEg04o4@_<8xo@dCp%0KfnfKmZc}_x%71bO2%a"
    "00J}szyK9600iL3k&%Iq;fr<vVF&;ucU1tu02Pn`1$bhySS<eBLOO8*cK{F}LWBqr;`A8aF@e6g0Kfnii~s>`0Iuu0uIsw4`}6vG"
    "dU|kzc>sn6gTY`h7z_r3;r~nm5FY)AKzsHf0qnm3zyK}C00q?m5JCtcgb+dqA%qY@`2By%dU|?#dU|?#Z~}h-y4G52t+m!#Ypu1`"
    "T5GNUeQ*E(d-ebU@7MqbzhD3!{eS>__5cCwy8-{%"
)
"""40 x 48 pixels without loss, by OpenJPH."""
