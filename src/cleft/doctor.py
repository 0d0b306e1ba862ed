"""What is installed, what this machine can do, what is wrong and how to mend it."""

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


@dataclass(frozen=True)
class Examination:
    """What to print, and how many of the lines are faults."""

    lines: list[str]
    faults: int


def examine() -> Examination:
    """Looks at versions, devices, optional parts and disk; never changes anything."""
    lines: list[str] = []
    faults = 0
    for part in (_python, _packages, _torchvision, _devices, _extras, _encodings, _disk):
        for fault, line in part():
            lines.append(f"{'wrong' if fault else 'ok':6}{line}")
            faults += fault
    lines.append(f"{faults} thing{'s' if faults != 1 else ''} to mend" if faults else "everything needed is here")
    return Examination(lines, faults)


def _python() -> list[tuple[bool, str]]:
    system = f"{platform.system()} {platform.machine()}"
    return [(False, f"Python {platform.python_version()} on {system}, {os.cpu_count()} cores")]


def _packages() -> list[tuple[bool, str]]:
    return [_package(name, floor) for name, floor in FLOORS.items()]


def _package(name: str, floor: str) -> tuple[bool, str]:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return True, f"{name} is not installed; run: pip install '{name}>={floor}'"
    if _numbers(version) < _numbers(floor):
        return True, f"{name} {version} is older than {floor}; run: pip install -U '{name}>={floor}'"
    return False, f"{name} {version}"


def _numbers(version: str) -> tuple[int, ...]:
    """`2.13.0+cpu` as (2, 13, 0)."""
    return tuple(int(part) for part in version.partition("+")[0].split(".") if part.isdigit())


def _torchvision() -> list[tuple[bool, str]]:
    if importlib.util.find_spec("torchvision") is None:
        return [(False, "torchvision is absent, and nothing here needs it")]
    return [
        _tried(
            "torchvision",
            "it does not fit this torch and breaks lightning and transformers; run: pip uninstall torchvision",
        )
    ]


def _tried(module: str, remedy: str) -> tuple[bool, str]:
    """Whether a module that is installed can be imported."""
    try:
        importlib.import_module(module)
    except (ImportError, RuntimeError, OSError) as error:
        return True, f"{module} cannot be imported ({type(error).__name__}): {remedy}"
    return False, f"{module} can be imported"


def _devices() -> list[tuple[bool, str]]:
    if importlib.util.find_spec("torch") is None:
        return []
    import torch

    if not torch.cuda.is_available():
        return [
            (
                False,
                f"no GPU that torch {torch.__version__} can use; training runs on {torch.get_num_threads()} threads",
            )
        ]
    lines: list[tuple[bool, str]] = []
    for index in range(torch.cuda.device_count()):
        memory = torch.cuda.get_device_properties(index).total_memory / 2**30
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16: set train.precision=16-mixed"
        lines.append((False, f"GPU {index}: {torch.cuda.get_device_name(index)}, {memory:.0f} GiB, {bf16}"))
    return lines


def _extras() -> list[tuple[bool, str]]:
    lines: list[tuple[bool, str]] = []
    for extra, modules in EXTRAS.items():
        absent = [module for module in modules if importlib.util.find_spec(module) is None]
        note = f"is incomplete, without {', '.join(absent)}; run: pip install 'cleft[{extra}]'" if absent else "is here"
        lines.append((False, f"optional part {extra} {note}"))
    return lines


def _encodings() -> list[tuple[bool, str]]:
    if importlib.util.find_spec("pydicom") is None:
        return []
    from cleft.data.pixels.syntaxes import unreadable_syntaxes

    absent = unreadable_syntaxes()
    if not absent:
        return [(False, "DICOM files are read in every usual encoding")]
    return [(False, f"DICOM files are read, but not as {'; '.join(absent)}; run: pip install 'cleft[dicom]'")]


def _disk() -> list[tuple[bool, str]]:
    places: dict[str, Callable[[], Path]] = {"the cache": Path.home, "this folder": Path.cwd}
    lines: list[tuple[bool, str]] = []
    for name, place in places.items():
        free = shutil.disk_usage(place()).free / 2**30
        tight = free < _MIN_FREE_GB
        remedy = "; prepared images of CheXpert take 12.5 GB: set data.cache to another disk" if tight else ""
        lines.append((False, f"{free:.0f} GiB free for {name}{remedy}"))
    return lines
