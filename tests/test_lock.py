"""What `make setup` installs: exact versions, checked by hash, none with a known vulnerability."""

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
FLOORS = {
    "torch": "2.10",
    "lightning": "2.6.6",
    "transformers": "5.5",
    "pydicom": "3.0.2",
    "pillow": "12.3",
    "pyarrow": "14.0.1",
}
"""Lowest versions without known code execution, memory corruption or decompression bombs."""


def pinned(text):
    return dict(re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", text, re.MULTILINE))


@pytest.fixture(scope="module")
def constraints():
    return pinned((ROOT / "constraints.txt").read_text())


def test_p1_the_lock_has_the_hashes_of_every_pinned_version_but_torch(constraints):
    text = (ROOT / "requirements.lock").read_text()
    assert constraints.items() - pinned(text).items() == {("torch", constraints["torch"])}
    assert pinned(text).items() <= constraints.items(), "write the lock again: see CONTRIBUTING.md"
    for entry in re.split(r"\n(?=\S)", text.strip()):
        if not entry.startswith("#"):
            assert re.fullmatch(r"\S+==\S+( \\\n    --hash=sha256:[0-9a-f]{64})+", entry.strip()), entry[:60]


def test_p1_setup_checks_hashes_and_builds_nothing_from_source():
    recipe = (ROOT / "Makefile").read_text()
    assert "--no-deps --only-binary :all: --require-hashes -r requirements.lock" in recipe


@pytest.mark.parametrize(("name", "floor"), FLOORS.items())
def test_p2_versions_are_above_their_security_minimums(name, floor, constraints):
    assert Version(constraints[name]) >= Version(floor)
    project = (ROOT / "pyproject.toml").read_text()
    [line] = re.findall(rf'^    "({name}[<>=].*)",$', project, re.MULTILINE)
    lowest = next(part.version for part in Requirement(line).specifier if part.operator == ">=")
    assert Version(lowest) >= Version(floor)


@pytest.mark.parametrize("malicious", ["2.6.2", "2.6.3"])
def test_p1_malicious_releases_of_lightning_cannot_be_installed(malicious, constraints):
    assert constraints["lightning"] != malicious
    [line] = re.findall(r'^    "(lightning[<>=].*)",$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert not Requirement(line).specifier.contains(malicious)


def test_torchvision_is_never_installed(constraints):
    assert "torchvision" not in constraints
    assert "torchvision" not in (ROOT / "pyproject.toml").read_text()
