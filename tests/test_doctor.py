"""The doctor names what is wrong and how to fix it."""

import importlib.metadata

import pytest
from packaging.requirements import Requirement
from pydicom.pixels.decoders import (
    HTJ2KDecoder,
    HTJ2KLosslessDecoder,
    JPEG2000Decoder,
    JPEG2000LosslessDecoder,
    JPEGLosslessDecoder,
    JPEGLosslessSV1Decoder,
    JPEGLSLosslessDecoder,
    JPEGLSNearLosslessDecoder,
)
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from cleft import doctor


def test_a_healthy_installation_has_nothing_to_mend():
    examination = doctor.examine()
    assert examination.faults == 0
    assert examination.lines[-1].startswith("everything needed is here")


def test_an_old_package_is_named_with_the_command_that_mends_it(monkeypatch):
    monkeypatch.setitem(doctor.FLOORS, "peft", "99.1")
    examination = doctor.examine()
    assert examination.faults == 1
    assert any(line.startswith("wrong    peft") and "pip install -U 'peft>=99.1'" in line for line in examination.lines)


def test_an_absent_package_is_named(monkeypatch):
    monkeypatch.setitem(doctor.FLOORS, "no-such-package", "1")
    assert any("no-such-package is not installed" in line for line in doctor.examine().lines)


def test_an_incomplete_extra_is_a_note_and_not_a_fault(monkeypatch):
    monkeypatch.setitem(doctor.EXTRAS, "dicom", ("no_such_decoder",))
    examination = doctor.examine()
    assert examination.faults == 0
    (line,) = [line for line in examination.lines if "no_such_decoder" in line]
    assert line.startswith("missing  optional part dicom is incomplete")
    assert line.endswith("without no_such_decoder; run: pip install 'cleft[dicom]'")


def test_a_torchvision_that_does_not_fit_is_a_fault(monkeypatch, tmp_path):
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    state, line = doctor._torchvision()[0]
    assert state == "wrong"
    assert "pip uninstall torchvision" in line


def test_floors_are_what_the_package_asks_for():
    asked = [Requirement(line) for line in importlib.metadata.requires("cleft") or []]
    floors = {
        requirement.name: f">={doctor.FLOORS[requirement.name]}"
        for requirement in asked
        if requirement.name in doctor.FLOORS
    }
    assert set(floors) == set(doctor.FLOORS)
    assert all(floors[item.name] in str(item.specifier) for item in asked if item.name in floors)


EXTRA = (
    (JPEGLosslessDecoder, JPEGLossless),
    (JPEGLosslessSV1Decoder, JPEGLosslessSV1),
    (JPEGLSLosslessDecoder, JPEGLSLossless),
    (JPEGLSNearLosslessDecoder, JPEGLSNearLossless),
    (JPEG2000LosslessDecoder, JPEG2000Lossless),
    (JPEG2000Decoder, JPEG2000),
    (HTJ2KLosslessDecoder, HTJ2KLossless),
    (HTJ2KDecoder, HTJ2K),
)


@pytest.mark.parametrize(("decoder", "syntax"), EXTRA, ids=[syntax.keyword for _, syntax in EXTRA])
def test_a_transfer_syntax_without_a_decoder_is_missing_and_names_the_extra(monkeypatch, decoder, syntax):
    before = doctor.examine()
    assert f"ok       DICOM, {syntax.name}: read" in before.lines
    monkeypatch.setattr(decoder, "_available", {})
    after = doctor.examine()
    assert f"missing  DICOM, {syntax.name}: no decoder; run: pip install 'cleft[dicom]'" in after.lines
    assert f"ok       DICOM, {syntax.name}: read" not in after.lines
    assert (after.faults, "optional parts are missing" in after.lines[-1]) == (before.faults, True)


def test_what_needs_no_extra_is_read_always():
    lines = doctor.examine().lines
    for syntax in (RLELossless, JPEGBaseline8Bit):
        assert f"ok       DICOM, {syntax.name}: read" in lines
    assert "ok       DICOM, not compressed or deflated: read" in lines
