import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from pydicom.pixels.decoders import JPEGExtended12BitDecoder, JPEGLosslessSV1Decoder
from pydicom.uid import (
    MPEG2MPML,
    BasicTextSRStorage,
    DeflatedExplicitVRLittleEndian,
    DigitalMammographyXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSNearLossless,
    RLELossless,
)
from tests.fakes.dicom import COMPRESSED, LEAKS, NATIVE, deflated_bomb, dicom_bytes, write_dicom
from tests.tools.replacing import replace_keeping_size_and_time

from cleft.data.images.dicom import syntax_support
from cleft.data.images.dicom_headers import (
    Header,
    count_syntaxes,
    header_notes,
    read_header,
    read_headers,
    undecodable_syntaxes,
)
from cleft.data.images.source import ReadLimits
from cleft.errors import DataError

PIXELS = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64)
MAMMOGRAM = {
    "SOPClassUID": DigitalMammographyXRayImageStorageForPresentation,
    "Modality": "MG",
    "ViewPosition": "MLO",
    "ImageLaterality": "L",
    "PatientSex": "F",
    "PatientAge": "051Y",
    "Manufacturer": "Phantom Works",
    "PresentationIntentType": "FOR PRESENTATION",
    "BreastImplantPresent": "NO",
    "BurnedInAnnotation": "NO",
    "WindowCenter": [600, 700],
    "WindowWidth": [1200, 900],
}


def header(tmp_path, pixels=PIXELS, **arguments):
    return read_header(write_dicom(tmp_path / "a.dcm", pixels, **arguments))


def reason(path, **limits):
    with pytest.raises(DataError) as caught:
        read_header(path, ReadLimits(**limits))
    assert str(path) in str(caught.value)
    assert not any(leak in str(caught.value) for leak in LEAKS)
    return caught.value.reason


def test_a_header_has_the_attributes_that_readers_need(tmp_path):
    assert header(tmp_path, bits=12, photometric="MONOCHROME1", syntax=RLELossless, **MAMMOGRAM) == Header(
        is_image=True,
        sop_class="DigitalMammographyXRayImageStorageForPresentation",
        transfer_syntax=str(RLELossless),
        modality="MG",
        photometric="MONOCHROME1",
        rows=48,
        columns=64,
        bits_allocated=16,
        bits_stored=12,
        display="window",
        view="MLO",
        laterality="L",
        sex="Female",
        age=51.0,
        manufacturer="Phantom Works",
        implant=False,
        burned_in=False,
    )


@pytest.mark.parametrize("syntax", [*NATIVE, *COMPRESSED], ids=lambda uid: uid.keyword)
def test_every_transfer_syntax_gives_the_same_header(tmp_path, syntax):
    plain = header(tmp_path, bits=12, **MAMMOGRAM)
    found = header(tmp_path, bits=12, syntax=syntax, **MAMMOGRAM)
    inflated = str(syntax) if syntax != DeflatedExplicitVRLittleEndian else plain.transfer_syntax
    assert found == plain._replace(transfer_syntax=inflated)


@pytest.mark.parametrize(
    ("text", "age"),
    [("045Y", 45), ("45", 45), ("018M", 1.5), ("001W", 7 / 365.25), ("003D", 3 / 365.25), ("120", 120), ("0", 0)],
)
def test_ages_are_years_whatever_their_unit(tmp_path, text, age):
    found = header(tmp_path, PatientAge=text)
    assert found.age == pytest.approx(age)
    assert not found.oddities


@pytest.mark.parametrize("text", ["155", "121Y", "UNKN", "-4Y"])
def test_an_impossible_age_is_unknown_and_noted(tmp_path, text):
    found = header(tmp_path, PatientAge=text)
    assert (found.age, found.oddities) == (None, ("age",))


def test_missing_attributes_are_unknown(tmp_path):
    found = header(tmp_path, PatientSex="O", PatientAge="", ViewPosition="", ImageLaterality="")
    assert (found.sex, found.age, found.view, found.laterality) == (None, None, None, None)
    assert (found.manufacturer, found.implant, found.burned_in, found.oddities) == (None, None, None, ())


def test_an_older_tag_for_the_side_is_read_too(tmp_path):
    assert header(tmp_path, Laterality="R").laterality == "R"


@pytest.mark.parametrize("syntax", NATIVE[:3], ids=lambda uid: uid.keyword)
def test_d13_a_file_without_preamble_or_transfer_syntax_is_read_and_noted(tmp_path, syntax):
    for arguments in ({"preamble": False}, {"has_syntax": False}):
        found = header(tmp_path, syntax=syntax, **arguments)
        assert (found.rows, found.columns, found.oddities) == (48, 64, ("untold",))
        assert found.transfer_syntax == str(syntax)


def test_raw_images_implants_burned_in_text_and_anisotropic_pixels_are_noted(tmp_path):
    found = header(
        tmp_path,
        PresentationIntentType="FOR PROCESSING",
        BreastImplantPresent="YES",
        BurnedInAnnotation="YES",
        PixelAspectRatio=[2, 1],
    )
    assert (found.for_processing, found.implant, found.burned_in, found.oddities) == (True, True, True, ("aspect",))
    notes = header_notes([found, found, Header(reason="missing")])
    assert len(notes) == 4
    assert notes[0].startswith("2 images have pixels that are not square")


def test_windows_without_a_meaning_are_noted(tmp_path):
    found = header(tmp_path, WindowCenter=5, WindowWidth=0)
    assert (found.display, found.oddities) == ("none", ("window",))
    assert header(tmp_path, WindowCenter=[5, 5], WindowWidth=[0, 9]).display == "window"


def test_frames_are_counted_and_none_counts_as_one(tmp_path):
    assert header(tmp_path, np.stack([PIXELS, PIXELS]), frames=True).frames == 2
    found = header(tmp_path, NumberOfFrames=0)
    assert (found.frames, found.oddities) == (1, ("frames",))


def test_d5_a_report_is_no_image(tmp_path):
    found = header(tmp_path, None, SOPClassUID=BasicTextSRStorage)
    assert (found.is_image, found.sop_class, found.reason) == (False, "BasicTextSRStorage", "")


def test_a_file_that_is_not_dicom_has_a_reason(tmp_path):
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("Patient CANARY was well. " * 40)
    (tmp_path / "short").write_bytes(b"\x08\0")
    assert reason(tmp_path / "absent") == "missing"
    assert reason(tmp_path) == "not-a-file"
    assert reason(tmp_path / "empty") == "empty"
    assert reason(tmp_path / "text") == "format"
    assert reason(tmp_path / "short") == "format"


def test_d12_a_broken_header_is_a_header_or_a_reason_and_never_quoted(tmp_path):
    data = dicom_bytes(PIXELS, WindowCenter=600, WindowWidth=900)
    path, errors = tmp_path / "broken.dcm", []
    for place in range(0, data.index(b"\xe0\x7f\x10\x00"), 9):
        for broken in (data[:place], data[:place] + b"\xff\xff" + data[place + 2 :]):
            path.write_bytes(broken)
            try:
                read_header(path)
            except DataError as error:
                errors.append(error)
    assert {error.reason for error in errors} == {"empty", "format", "malformed"}
    assert not any(leak in str(error) for error in errors for leak in LEAKS)
    assert not any(error.__cause__ for error in errors)


def test_d7_a_deflated_bomb_is_refused_before_it_grows(tmp_path):
    path = tmp_path / "bomb.dcm"
    path.write_bytes(deflated_bomb(2**25))
    assert path.stat().st_size < 2**17
    assert reason(path, pixels=2**23) == "too-large"


def test_pydicom_warnings_about_a_header_are_silenced(tmp_path, caplog, capfd):
    path = write_dicom(tmp_path / "a.dcm", PIXELS, PatientBirthDate="CANARY-1", Modality="CANARY mode that is long")
    assert read_header(path).modality is None
    assert (caplog.text, capfd.readouterr()) == ("", ("", ""))


def test_headers_are_read_once(tmp_path, monkeypatch):
    paths = [write_dicom(tmp_path / f"CANARY-{i}.dcm", PIXELS, PatientAge=f"04{i}Y") for i in range(3)]
    (tmp_path / "text").write_text("nothing")
    paths += [tmp_path / "text", tmp_path / "absent"]
    cache = tmp_path / "cache" / "headers.parquet"
    first = read_headers(paths, cache)
    assert [header.age for header in first.values()] == [40, 41, 42, None, None]
    assert [header.reason for header in first.values()] == ["", "", "", "format", "missing"]

    read = []
    monkeypatch.setattr(
        "cleft.data.images.dicom_headers.read_header", lambda path: read.append(path) or Header(reason="again")
    )
    assert read_headers(paths[:4], cache) == {path: first[path] for path in paths[:4]}
    assert read == []
    os.utime(paths[1], ns=(1, 1))
    assert read_headers(paths, cache)[paths[1]].reason == "again"
    assert read == [paths[1], paths[4]]


@pytest.mark.parametrize("how", ["in place", "renamed over"])
def test_a_file_replaced_with_equal_size_and_time_has_its_header_read_again(tmp_path, how):
    path, cache = write_dicom(tmp_path / "a.dcm", PIXELS, PatientAge="040Y"), tmp_path / "headers.parquet"
    assert read_headers([path], cache)[path].age == 40
    replace_keeping_size_and_time(path, dicom_bytes(PIXELS, PatientAge="050Y"), how)
    assert read_headers([path], cache)[path].age == 50


def test_two_projects_with_the_same_relative_paths_share_no_headers(tmp_path, monkeypatch):
    path, cache = Path("data/a.dcm"), tmp_path / "headers.parquet"
    for project, age in (("one", 40), ("two", 50)):
        file = write_dicom(tmp_path / project / path, PIXELS, PatientAge=f"0{age}Y")
        os.utime(file, ns=(10**18, 10**18))
        monkeypatch.chdir(tmp_path / project)
        assert read_headers([path], cache)[path].age == age


def test_the_cache_holds_no_path_and_no_text_of_a_patient(tmp_path):
    path = write_dicom(tmp_path / "CANARY" / "a.dcm", PIXELS, **MAMMOGRAM)
    cache = tmp_path / "headers.parquet"
    read_headers([path], cache)
    told = str(pq.read_table(cache).to_pylist())
    assert "Phantom Works" in told
    assert not any(leak in told for leak in (*LEAKS, "a.dcm"))
    assert cache.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("damage", [b"", b"PAR1", b"not a table" * 100])
def test_headers_are_read_again_if_the_cache_is_damaged(tmp_path, damage, caplog):
    path = write_dicom(tmp_path / "a.dcm", PIXELS)
    cache = tmp_path / "headers.parquet"
    fresh = read_headers([path], cache)
    cache.write_bytes(damage)
    assert read_headers([path], cache) == fresh
    assert "reading the headers again" in caplog.text
    assert pq.read_table(cache).num_rows == 1


def test_a_killed_run_keeps_the_headers_it_read(tmp_path, monkeypatch):
    monkeypatch.setattr("cleft.data.images.dicom_headers._SAVE_EVERY", 2)
    paths = [write_dicom(tmp_path / f"{i}.dcm", PIXELS) for i in range(3)]
    monkeypatch.setattr("cleft.data.images.dicom_headers.read_header", iter_then_stop := _Stops(3))
    with pytest.raises(KeyboardInterrupt):
        read_headers([*paths, tmp_path / "3"], tmp_path / "cache")
    assert iter_then_stop.calls == 3
    assert pq.read_table(tmp_path / "cache").num_rows == 2


class _Stops:
    """Reads some headers, then behaves like Ctrl-C."""

    def __init__(self, after):
        self.after, self.calls = after, 0

    def __call__(self, path):
        self.calls += 1
        if self.calls == self.after:
            raise KeyboardInterrupt
        return Header()


def test_real_headers_of_rsna(shared, tmp_path):
    paths = sorted((shared / "data/rsna-mini/stage_2_train_images").glob("*.dcm"))
    headers = read_headers(paths, tmp_path / "headers").values()
    assert len(paths) == 238
    assert {(h.rows, h.columns, h.bits_stored, h.photometric, h.view) for h in headers} == {
        (512, 512, 8, "MONOCHROME2", view) for view in ("AP", "PA")
    }
    assert {h.sex for h in headers} == {"Male", "Female"}
    assert all(h.age is not None or "age" in h.oddities for h in headers)
    assert {h.transfer_syntax for h in headers} == {"1.2.840.10008.1.2.4.50"}


def test_implicit_files_give_the_same_view(tmp_path):
    assert header(tmp_path, syntax=ImplicitVRLittleEndian, ViewPosition="cc").view == "CC"
    assert header(tmp_path, syntax=JPEGLosslessSV1, ViewPosition="WAAY/TOO").view is None


def image(uid, bits=12):
    return Header(is_image=True, transfer_syntax=str(uid), bits_stored=bits)


@pytest.fixture
def bare(monkeypatch):
    """As if the optional decoders were not installed."""
    monkeypatch.setattr(JPEGLosslessSV1Decoder, "_available", {})


def test_transfer_syntaxes_are_counted_by_frequency_for_images_only():
    headers = [image(ExplicitVRLittleEndian)] * 2 + [image(JPEGLosslessSV1)] * 3
    others = [Header(reason="missing"), Header(transfer_syntax=str(ExplicitVRLittleEndian))]
    census = count_syntaxes([*headers, *others])
    assert [(row.images, row.uid) for row in census] == [(3, str(JPEGLosslessSV1)), (2, str(ExplicitVRLittleEndian))]
    assert all(row.readable and not row.remedy for row in census)
    assert undecodable_syntaxes(headers) == []


def test_d6_a_missing_decoder_is_named_with_the_extra_that_brings_it(bare):
    census = count_syntaxes([image(JPEGLosslessSV1), image(JPEGLSNearLossless)])
    assert [row.readable for row in census] == [False, True]
    (sentence,) = undecodable_syntaxes([image(JPEGLosslessSV1)] * 2)
    assert sentence.startswith("2 images are encoded as JPEG Lossless, Non-Hierarchical")
    assert sentence.endswith("cannot be decoded here; run: pip install 'cleft[dicom]'")


def test_a_syntax_without_any_decoder_has_its_remedy():
    assert syntax_support(str(MPEG2MPML), deep=False)[1] == "convert it to another transfer syntax"
    assert syntax_support("CANARY^NAME", deep=False)[0] == "an illegal transfer syntax"


def test_extended_jpeg_of_12_bits_names_the_package_it_needs(monkeypatch):
    assert syntax_support(str(JPEGExtended12Bit), deep=False)[1] == ""
    assert syntax_support(str(JPEGExtended12Bit), deep=True)[1].startswith("install pylibjpeg-libjpeg (GPL)")
    monkeypatch.setattr(JPEGExtended12BitDecoder, "_available", {"pylibjpeg": None})
    assert syntax_support(str(JPEGExtended12Bit), deep=True)[1] == ""
