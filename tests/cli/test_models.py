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

from cleft.cli import models


def test_a_complete_installation_has_no_problem():
    examination = models.check_environment()
    assert examination.problems == 0
    assert examination.lines[-1].startswith("all requirements are met")


def test_an_old_package_is_reported_with_the_command_that_updates_it(monkeypatch):
    monkeypatch.setitem(models.MINIMUM_VERSIONS, "peft", "99.1")
    examination = models.check_environment()
    assert examination.problems == 1
    assert any(line.startswith("wrong    peft") and "pip install -U 'peft>=99.1'" in line for line in examination.lines)


def test_a_missing_package_is_reported(monkeypatch):
    monkeypatch.setitem(models.MINIMUM_VERSIONS, "no-such-package", "1")
    assert any("no-such-package is not installed" in line for line in models.check_environment().lines)


def test_an_incomplete_optional_part_is_no_problem(monkeypatch):
    monkeypatch.setitem(models.EXTRAS, "dicom", ("no_such_decoder",))
    examination = models.check_environment()
    assert examination.problems == 0
    (line,) = [line for line in examination.lines if "no_such_decoder" in line]
    assert line.startswith("missing  optional part dicom is incomplete")
    assert line.endswith(": no_such_decoder; run: pip install 'cleft[dicom]'")


def test_a_torchvision_that_cannot_be_imported_is_a_problem(monkeypatch, tmp_path):
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    state, line = models._torchvision()[0]
    assert state == "wrong"
    assert "pip uninstall torchvision" in line


def test_minimum_versions_are_those_of_the_package():
    asked = [Requirement(line) for line in importlib.metadata.requires("cleft") or []]
    floors = {
        requirement.name: f">={models.MINIMUM_VERSIONS[requirement.name]}"
        for requirement in asked
        if requirement.name in models.MINIMUM_VERSIONS
    }
    assert set(floors) == set(models.MINIMUM_VERSIONS)
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
    before = models.check_environment()
    assert f"ok       DICOM, {syntax.name}: supported" in before.lines
    monkeypatch.setattr(decoder, "_available", {})
    after = models.check_environment()
    assert f"missing  DICOM, {syntax.name}: no decoder; run: pip install 'cleft[dicom]'" in after.lines
    assert f"ok       DICOM, {syntax.name}: supported" not in after.lines
    assert (after.problems, "optional parts are missing" in after.lines[-1]) == (before.problems, True)


def test_syntaxes_without_optional_decoders_are_always_supported():
    lines = models.check_environment().lines
    for syntax in (RLELossless, JPEGBaseline8Bit):
        assert f"ok       DICOM, {syntax.name}: supported" in lines
    assert "ok       DICOM, uncompressed or deflated: supported" in lines
