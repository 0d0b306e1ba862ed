"""The doctor names what is wrong and how to mend it."""

import importlib.metadata

from packaging.requirements import Requirement
from pydicom.pixels.decoders import JPEGLosslessSV1Decoder
from pydicom.uid import JPEGLosslessSV1

from cleft import doctor


def test_a_healthy_installation_has_nothing_to_mend():
    examination = doctor.examine()
    assert examination.faults == 0
    assert examination.lines[-1] == "everything needed is here"


def test_an_old_package_is_named_with_the_command_that_mends_it(monkeypatch):
    monkeypatch.setitem(doctor.FLOORS, "peft", "99.1")
    examination = doctor.examine()
    assert examination.faults == 1
    assert any(line.startswith("wrong peft") and "pip install -U 'peft>=99.1'" in line for line in examination.lines)


def test_an_absent_package_is_named(monkeypatch):
    monkeypatch.setitem(doctor.FLOORS, "no-such-package", "1")
    assert any("no-such-package is not installed" in line for line in doctor.examine().lines)


def test_an_incomplete_extra_is_a_note_and_not_a_fault(monkeypatch):
    monkeypatch.setitem(doctor.EXTRAS, "dicom", ("no_such_decoder",))
    examination = doctor.examine()
    assert examination.faults == 0
    assert any("without no_such_decoder; run: pip install 'cleft[dicom]'" in line for line in examination.lines)


def test_a_torchvision_that_does_not_fit_is_a_fault(monkeypatch, tmp_path):
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    fault, line = doctor._torchvision()[0]
    assert fault
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


def test_doctor_names_the_dicom_encodings_that_lack_a_decoder(monkeypatch):
    assert "ok    DICOM files are read in every usual encoding" in doctor.examine().lines
    monkeypatch.setattr(JPEGLosslessSV1Decoder, "_available", {})
    line = next(line for line in doctor.examine().lines if "DICOM files" in line)
    assert JPEGLosslessSV1.name in line
    assert line.endswith("run: pip install 'cleft[dicom]'")
