"""Commands about models and the installation: import, sizes, presets, purge, doctor."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from cleft.cli.options import NoOptions, argument, command, option
from cleft.grammar import count, verb


@dataclass(frozen=True, kw_only=True)
class ImportRequest:
    """Options of `cleft import`."""

    checkpoint: Path = argument()
    """File or folder of a released checkpoint, of the authors or of another method; no code in it is run."""
    method: str | None = None
    """Method it belongs to, such as gloria; by default recognised by the names of its weights. Give it for OpenAI's
    layout: openai-clip, open-clip, chexzero or pubmedclip."""
    out: Path = option(metavar="FOLDER")
    """Model folder to write."""
    tokenizer: Path | None = None
    """Folder or hub name of the tokenizer of the language model; for CLIP also its bpe_simple_vocab_16e6.txt.gz."""
    text_model: str | None = None
    """Hub name or folder of the language model, if the checkpoint does not contain it."""
    size: int | None = option(None, metavar="N")
    """Side of the input images in pixels; by default that of the checkpoint, or 224."""


@command("import", loads_torch=True)
def import_command(request: ImportRequest, words: list[str]) -> None:
    """Convert a published checkpoint to a model folder."""
    from cleft.config import load_run_settings
    from cleft.models.checkpoint import is_image_only
    from cleft.models.importing.importing import describe_reading, import_checkpoint
    from cleft.models.model_folder import peek_description

    out = import_checkpoint(
        request.checkpoint,
        request.out,
        method=request.method,
        tokenizer=request.tokenizer,
        text_model=request.text_model,
        size=request.size,
    )
    print(f"{out}: {describe_reading(load_run_settings(out))}")
    description = peek_description(out)
    if description.get("context_length"):
        vectors = count(description["context_length"], "vector")
        print(f"{out}: has a learned context of {vectors}, which cleft evaluate uses")
    folder = shlex.quote(str(out))
    if is_image_only(description):
        print(f"{out} is an image encoder; next: cleft classify {folder} --data chexpert:<folder> --allow-overlap")
    elif description["token_ids"]:
        print(f"{out} reads token ids only; to use it with text, import it again with --tokenizer <folder>")
    else:
        print(f"{out} is a model; next: cleft evaluate {folder} --data chexpert:<folder> --allow-overlap")


@dataclass(frozen=True, kw_only=True)
class SizesRequest:
    """Options of `cleft sizes`."""

    presets: tuple[str, ...] = argument(())
    """Presets, YAML files or runs; by default all presets."""
    tokens: int | None = option(None, metavar="N")
    """Number of distinct tokens in the captions, whose embeddings are trained; by default that of a run."""


@command("sizes")
def sizes_command(request: SizesRequest, words: list[str]) -> None:
    """Count trainable and frozen parameters of presets, without downloading weights."""
    from cleft.config import load_settings, preset_names
    from cleft.models.parameter_count import (
        build_meta_model,
        count_parameters,
        parameters_per_token_row,
        trained_token_rows,
    )

    print(f"{'preset':18} {'part':16} {'trainable':>14} {'frozen':>14}")
    uncounted: list[str] = []
    for name in request.presets or preset_names():
        settings = load_settings(name, [])
        tokens = request.tokens
        if tokens is None and name not in preset_names():
            tokens = trained_token_rows(Path(name).expanduser())
        counts = count_parameters(build_meta_model(settings, tokens=tokens or 0))
        for part, weights in counts.items():
            print(f"{name:18} {part:16} {weights.trainable:14,} {weights.frozen:14,}")
        trainable, frozen = (sum(column) for column in zip(*counts.values(), strict=True))
        print(f"{name:18} {'all':16} {trainable:14,} {frozen:14,}")
        width = parameters_per_token_row(settings)
        if tokens is None and width:
            print(f"{name:18} {'each token row':16} {width:14,}")
            uncounted.append(name)
    if uncounted:
        print(
            f"not counted in 'all': trained token embeddings, one for each distinct token of the captions "
            f"({', '.join(uncounted)}); give their number as --tokens, or name a finished run"
        )


@command("presets")
def presets_command(request: NoOptions, words: list[str]) -> None:
    """List the presets."""
    from cleft.config import preset_summaries

    for name, summary in preset_summaries().items():
        print(f"{name:22} {summary}")


@dataclass(frozen=True, kw_only=True)
class PurgeRequest:
    """Options of `cleft purge`."""

    places: tuple[Path, ...] = argument(metavar="folder")
    """Run folders, folders that contain runs, and caches such as ~/.cache/cleft; weights and results are kept."""
    yes: bool = False
    """Remove the files; by default they are only listed."""


@command("purge")
def purge_command(request: PurgeRequest, words: list[str]) -> None:
    """Remove patient data that cleft wrote: caches, embeddings, training states."""
    from cleft.training.run_folder import find_purges

    purges = find_purges(request.places)
    for purge in purges:
        size, files = purge.size(), count(len(purge.files), "file")
        if request.yes:
            purge.remove()
        action = "removed" if request.yes else "would remove"
        print(f"{purge.place}: {action} {files}, {size / 1e6:,.1f} MB")
        for folder, held in purge.folders().items():
            print(f"  {folder}: {count(held, 'file')}")
        for line in purge.left:
            print(f"  left: {line}")
    if not request.yes and any(purge.files for purge in purges):
        print("nothing was removed yet; repeat the command with --yes to remove these files")


@command("doctor")
def doctor_command(request: NoOptions, words: list[str]) -> int:
    """Check versions, devices, optional parts and disk, and say what to fix."""
    report = check_environment()
    print("\n".join(report.lines))
    return 1 if report.problems else 0


MINIMUM_VERSIONS = {
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
"""Oldest supported version of each package."""

EXTRAS = {"dicom": ("gdcm", "pylibjpeg", "openjpeg", "rle")}
"""Modules of each optional part."""

_MIN_FREE_GB = 5

Finding: TypeAlias = tuple[Literal["ok", "missing", "wrong"], str]
"""State of a component and a line about it: what is `missing` is optional, what is `wrong` has to be fixed."""


@dataclass(frozen=True)
class EnvironmentReport:
    """Lines to print, and the number of problems among them."""

    lines: list[str]
    problems: int


def check_environment() -> EnvironmentReport:
    """Checks versions, devices, optional parts and disk, without changing anything."""
    found = [
        finding
        for part in (_python, _packages, _torchvision, _devices, _extras, _encodings, _disk)
        for finding in part()
    ]
    lines = [f"{state:9}{line}" for state, line in found]
    faults, missing = (sum(state == which for state, _ in found) for which in ("wrong", "missing"))
    summary = f"{count(faults, 'thing')} to fix" if faults else "all requirements are met"
    optional = f"; {count(missing, 'optional part')} {verb(missing, 'is', 'are')} missing" if missing else ""
    return EnvironmentReport([*lines, f"{summary}{optional}"], faults)


def _python() -> list[Finding]:
    system = f"{platform.system()} {platform.machine()}"
    return [("ok", f"Python {platform.python_version()} on {system}, {count(os.cpu_count() or 1, 'core')}")]


def _packages() -> list[Finding]:
    return [_package(name, oldest) for name, oldest in MINIMUM_VERSIONS.items()]


def _package(name: str, oldest: str) -> Finding:
    import importlib.metadata  # slow, and needed here only

    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "wrong", f"{name} is not installed; run: pip install '{name}>={oldest}'"
    if _numbers(version) < _numbers(oldest):
        return "wrong", f"{name} {version} is older than {oldest}; run: pip install -U '{name}>={oldest}'"
    return "ok", f"{name} {version}"


def _numbers(version: str) -> tuple[int, ...]:
    """`2.13.0+cpu` as (2, 13, 0)."""
    return tuple(int(part) for part in version.partition("+")[0].split(".") if part.isdigit())


def _torchvision() -> list[Finding]:
    if importlib.util.find_spec("torchvision") is None:
        return [("ok", "torchvision is not installed, and is not needed")]
    return [
        _tried(
            "torchvision",
            "it does not match torch and breaks lightning and transformers; run: pip uninstall torchvision",
        )
    ]


def _tried(module: str, remedy: str) -> Finding:
    """Returns whether an installed module can be imported."""
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
            lines.append(("missing", f"optional part {extra} is incomplete: {', '.join(absent)}; {remedy}"))
        else:
            lines.append(("ok", f"optional part {extra} is installed"))
    return lines


def _encodings() -> list[Finding]:
    if importlib.util.find_spec("pydicom") is None:
        return []
    from cleft.data.images.dicom import common_syntaxes

    lines: list[Finding] = [("ok", "DICOM, uncompressed or deflated: supported")]
    for name, remedy in common_syntaxes():
        lines.append(
            ("missing", f"DICOM, {name}: no decoder; {remedy}") if remedy else ("ok", f"DICOM, {name}: supported")
        )
    return lines


def _disk() -> list[Finding]:
    places: dict[str, Callable[[], Path]] = {"the cache": Path.home, "this folder": Path.cwd}
    lines: list[Finding] = []
    for name, place in places.items():
        free = shutil.disk_usage(place()).free / 2**30
        tight = free < _MIN_FREE_GB
        remedy = "; preprocessed images of CheXpert need 12.5 GB: set data.cache to another disk" if tight else ""
        lines.append(("ok", f"{free:.0f} GiB free for {name}{remedy}"))
    return lines
