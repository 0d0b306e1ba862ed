"""TorchScript archives as names and tensors, without running anything in them.

Such an archive is a zip with code, with `data.pkl`, which says what modules hold, and with the numbers, one entry a
storage. All but the code is copied, which leaves what `torch.save` writes, and torch's weights-only reader reads that.
A module becomes an empty holder of what it is told, and every name that is not a module's is refused.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import zipfile
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint

from cleft.errors import CheckpointError
from cleft.models.container import check_stored, holds_code, load_plain

_MOST_ATTRIBUTES = 50_000
"""More than any model has; modules that lie in each other many times over would be endless."""
_LIST = "torch.jit._pickle."
_KEPT = re.compile(r"[^/]+/(data\.pkl|version|byteorder|data/[^/]+)")


def is_jit_archive(path: Path) -> bool:
    """Whether a file is an archive of `torch.jit.save`."""
    try:
        with zipfile.ZipFile(path) as archive:
            return holds_code(archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False  # what reads it says what is wrong


def read_jit_archive(path: Path) -> dict[str, Tensor]:
    """Reads the tensors of a TorchScript archive by their names in its modules.

    Raises:
        CheckpointError: If it is damaged, is larger inside than outside, or names anything but modules and tensors.
    """
    with _without_code(path) as bare:
        content = load_plain(bare, path, lambda: _stand_ins(bare, path))
    try:
        return dict(_tensors(content))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


class _Module:
    """Holds what an archive says of a module."""

    __slots__ = ("attributes",)
    attributes: object

    def __setstate__(self, attributes: object) -> None:
        self.attributes = attributes


def _keep(value: object, *_type: object) -> object:
    """Stands for what marks the type of a list or dictionary."""
    return value


@contextmanager
def _without_code(path: Path) -> Generator[Path]:
    """Gives a copy of an archive's modules and numbers, whose entries are compared with their checksums."""
    with tempfile.TemporaryDirectory() as folder:
        bare = Path(folder) / path.name
        try:
            with zipfile.ZipFile(path) as archive, zipfile.ZipFile(bare, "w") as copy:
                entries = [entry for entry in archive.infolist() if _KEPT.fullmatch(entry.filename)]
                check_stored(entries, path)
                for entry in entries:
                    with archive.open(entry) as source, copy.open(entry.filename, "w", force_zip64=True) as target:
                        shutil.copyfileobj(source, target)
        except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError) as error:
            raise CheckpointError(f"{path} cannot be read ({error}); copy it again") from error
        yield bare


def _stand_ins(bare: Path, path: Path) -> list[Any]:
    """What the names in an archive become."""
    names = get_unsafe_globals_in_checkpoint(str(bare))
    foreign = sorted(name for name in names if not name.startswith(("__torch__.", _LIST)))
    if foreign:
        raise CheckpointError(
            f"{path} names {foreign[0]}, not only modules and tensors, and is not opened, since such files can run "
            f"code; ask its makers for a file of weights alone"
        )
    return [(_keep if name.startswith(_LIST) else _Module, name) for name in names]


def _tensors(content: object) -> Iterator[tuple[str, Tensor]]:
    """Tensors by name, module by module."""
    waiting: list[tuple[str, object]] = [("", content)]
    met = 0
    while waiting:
        prefix, module = waiting.pop()
        if not isinstance(module, _Module):
            raise CheckpointError(f"it holds a {type(module).__name__} that is no module of a model; copy it again")
        attributes = getattr(module, "attributes", None)
        if not isinstance(attributes, dict):
            raise CheckpointError("it holds a module of which nothing is said; copy it again")
        for name, value in cast("Mapping[str, object]", attributes).items():
            met += 1
            if met > _MOST_ATTRIBUTES:
                raise CheckpointError(f"its modules have more than {_MOST_ATTRIBUTES:,} attributes; it is not opened")
            if isinstance(value, Tensor):
                yield f"{prefix}{name}", value.detach()
            elif isinstance(value, _Module):
                waiting.append((f"{prefix}{name}.", value))
