"""What is installed, what this machine can do, what is wrong and how to fix it."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from cleft.grammar import count, verb

FLOORS = {
    "torch": "2.10",
    "lightning": "2.6.6",
    "transformers": "5.23",
    "peft": "0.21",
    "pydicom": "3.0.2",
    "pillow": "12.3",
    "pyarrow": "18",
    "numpy": "2",
    "opencv-python-headless": "4.10",
}
"""Oldest version of each package that is known to be right and safe."""

EXTRAS = {"dicom": ("gdcm", "pylibjpeg", "openjpeg", "rle")}
"""Optional part to the modules it brings."""

_MIN_FREE_GB = 5

Finding: TypeAlias = tuple[Literal["ok", "missing", "wrong"], str]
"""State of one thing, and a line about it. What is missing is optional; what is wrong has to be fixed."""


@dataclass(frozen=True)
class Examination:
    """What to print, and how many of the lines are faults."""

    lines: list[str]
    faults: int


def examine() -> Examination:
    """Looks at versions, devices, optional parts and disk; never changes anything."""
    found = [
        finding
        for part in (_python, _packages, _torchvision, _devices, _extras, _encodings, _disk)
        for finding in part()
    ]
    lines = [f"{state:9}{line}" for state, line in found]
    faults, missing = (sum(state == which for state, _ in found) for which in ("wrong", "missing"))
    summary = f"{count(faults, 'thing')} to fix" if faults else "everything needed is here"
    optional = f"; {count(missing, 'optional part')} {verb(missing, 'is', 'are')} missing" if missing else ""
    return Examination([*lines, f"{summary}{optional}"], faults)


def _python() -> list[Finding]:
    system = f"{platform.system()} {platform.machine()}"
    return [("ok", f"Python {platform.python_version()} on {system}, {count(os.cpu_count() or 1, 'core')}")]


def _packages() -> list[Finding]:
    return [_package(name, floor) for name, floor in FLOORS.items()]


def _package(name: str, floor: str) -> Finding:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "wrong", f"{name} is not installed; run: pip install '{name}>={floor}'"
    if _numbers(version) < _numbers(floor):
        return "wrong", f"{name} {version} is older than {floor}; run: pip install -U '{name}>={floor}'"
    return "ok", f"{name} {version}"


def _numbers(version: str) -> tuple[int, ...]:
    """`2.13.0+cpu` as (2, 13, 0)."""
    return tuple(int(part) for part in version.partition("+")[0].split(".") if part.isdigit())


def _torchvision() -> list[Finding]:
    if importlib.util.find_spec("torchvision") is None:
        return [("ok", "torchvision is absent, and nothing here needs it")]
    return [
        _tried(
            "torchvision",
            "it does not fit this torch and breaks lightning and transformers; run: pip uninstall torchvision",
        )
    ]


def _tried(module: str, remedy: str) -> Finding:
    """Report whether a module that is installed can be imported."""
    try:
        importlib.import_module(module)
    except (ImportError, RuntimeError, OSError) as error:
        return "wrong", f"{module} cannot be imported ({type(error).__name__}): {remedy}"
    return "ok", f"{module} can be imported"


def _devices() -> list[Finding]:
    if importlib.util.find_spec("torch") is None:
        return []
    import torch

    if not torch.cuda.is_available():
        return [
            (
                "ok",
                f"no GPU that torch {torch.__version__} can use; training runs on "
                f"{count(torch.get_num_threads(), 'thread')}",
            )
        ]
    lines: list[Finding] = []
    for index in range(torch.cuda.device_count()):
        memory = torch.cuda.get_device_properties(index).total_memory / 2**30
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16: set train.precision=16-mixed"
        lines.append(("ok", f"GPU {index}: {torch.cuda.get_device_name(index)}, {memory:.0f} GiB, {bf16}"))
    return lines


def _extras() -> list[Finding]:
    lines: list[Finding] = []
    for extra, modules in EXTRAS.items():
        absent = [module for module in modules if importlib.util.find_spec(module) is None]
        if absent:
            remedy = f"run: pip install 'cleft[{extra}]'"
            lines.append(("missing", f"optional part {extra} is incomplete, without {', '.join(absent)}; {remedy}"))
        else:
            lines.append(("ok", f"optional part {extra} is here"))
    return lines


def _encodings() -> list[Finding]:
    if importlib.util.find_spec("pydicom") is None:
        return []
    from cleft.data.images.dicom import common_syntaxes

    lines: list[Finding] = [("ok", "DICOM, not compressed or deflated: read")]
    for name, remedy in common_syntaxes():
        lines.append(("missing", f"DICOM, {name}: no decoder; {remedy}") if remedy else ("ok", f"DICOM, {name}: read"))
    return lines


def _disk() -> list[Finding]:
    places: dict[str, Callable[[], Path]] = {"the cache": Path.home, "this folder": Path.cwd}
    lines: list[Finding] = []
    for name, place in places.items():
        free = shutil.disk_usage(place()).free / 2**30
        tight = free < _MIN_FREE_GB
        remedy = "; prepared images of CheXpert take 12.5 GB: set data.cache to another disk" if tight else ""
        lines.append(("ok", f"{free:.0f} GiB free for {name}{remedy}"))
    return lines
