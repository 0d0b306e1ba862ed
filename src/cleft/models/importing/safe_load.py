"""Loading checkpoints of other programs as tensors and plain values, without running code.

Three checks, in this order. The container: a zip whose entries are stored, not deflated, and together no larger than
the file, so that a megabyte cannot unpack to gigabytes. The content: only tensors and plain values, through torch's
weights-only unpickler; where a caller allows it, objects of other libraries become empty placeholders and none of their
code is imported. The tensors: together no larger than the file, so that a view that repeats one number a billion times
is never copied.

TorchScript archives are zips with code, `data.pkl` (the modules) and the tensor storages. Everything except the code is
copied, which leaves a file as written by `torch.save`. A module becomes an empty object with its attributes; every
other name is refused.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from cleft.errors import CheckpointError
from cleft.grammar import count, verb
from cleft.models.state_dict import check_plain, format_names, non_finite_names, read_header, strip_wrappers

_MAX_COMPRESSION = 4
"""Maximum compression ratio of a zipped checkpoint; weights hardly compress."""
_ENTRIES = 200_000
"""More entries than any checkpoint has."""


class Unread:
    """Placeholder for a class or function of another library that a checkpoint names; it stores and does nothing."""

    def __new__(cls, *_arguments: object) -> Unread:
        """Accepts any arguments in the file."""
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        """Stores nothing."""


class _UnreadDict(Unread):
    """Placeholder for a dictionary class of another library: the unpickler sets items only on dictionaries."""

    def __new__(cls, *_arguments: object) -> Any:
        return OrderedDict[Any, Any]()


_DICTS = ("AttributeDict", "defaultdict")


def load_foreign(path: Path, *, foreign: bool = False) -> Mapping[str, Any]:
    """Loads a checkpoint of another program written with `torch.save`.

    Args:
        path: The file.
        foreign: Whether it may name classes of other libraries, such as OmegaConf's, which become `Unread`. By default
            it is refused for them.

    Returns:
        Its dictionary: tensors on the CPU, numbers, strings, lists and dictionaries of these.

    Raises:
        CheckpointError: If it is missing, not such a file, larger inside than outside, or contains anything else.
    """
    check_container(path)
    _check_bytes(path)
    content = load_plain(path, path, (lambda: _unread(path)) if foreign else list)
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} contains a {type(content).__name__}, not a dictionary of weights; give a file of named weights"
        )
    return cast("dict[str, Any]", content)


def load_plain(file: Path, path: Path, stand_ins: Callable[[], list[Any]]) -> Any:
    """Loads tensors and plain values of a container that was checked.

    Args:
        file: The container.
        path: The user's path, for messages.
        stand_ins: Returns placeholders for names of other libraries, each with the name.

    Raises:
        CheckpointError: If it is damaged, or names anything else.
    """
    try:
        with safe_globals(stand_ins()):
            return torch.load(file, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged file raises many kinds of exceptions
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named:  # the library's message suggests loading it anyway
            raise CheckpointError(
                f"{path} names {named[1]}, not only tensors and plain values, refused because such files "
                f"can run code; ask the authors for a file of only weights"
            ) from error
        raise CheckpointError(f"{path} cannot be read ({_first_line(error)}); copy it again") from error


def _unread(path: Path) -> list[Any]:
    """Returns placeholders for names that the weights-only unpickler refuses; blocked modules stay refused."""
    names = get_unsafe_globals_in_checkpoint(str(path))
    return [(_UnreadDict if name.endswith(_DICTS) else Unread, name) for name in names]


@contextmanager
def unzipped(path: Path) -> Generator[Path]:
    """Provides the checkpoint in a zip that contains one, as published by MedCLIP; a bare checkpoint unchanged.

    Raises:
        CheckpointError: If it contains several, or claims to be much larger unpacked, which weights never are.
    """
    entry = _packed_entry(path)
    if entry is None:
        yield path
        return
    if entry.file_size > _MAX_COMPRESSION * entry.compress_size:
        raise CheckpointError(
            f"{path} claims that {entry.filename} has {entry.file_size:,} bytes, packed into {entry.compress_size:,}; "
            f"weights do not compress that much; refused"
        )
    with tempfile.TemporaryDirectory() as folder:
        inner = Path(folder) / Path(entry.filename).name
        try:
            with zipfile.ZipFile(path) as archive, archive.open(entry) as source, inner.open("wb") as target:
                shutil.copyfileobj(source, target)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise CheckpointError(f"{path} cannot be read ({_first_line(error)}); copy it again") from error
        yield inner


def _packed_entry(path: Path) -> zipfile.ZipInfo | None:
    """Returns the checkpoint in a zip that is not itself a checkpoint."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return None  # the reader reports the error
    packed = [entry for entry in entries if entry.filename.endswith((".bin", ".pth", ".ckpt", ".pt"))]
    if any(entry.filename.endswith("/data.pkl") for entry in entries) or not packed:
        return None
    if len(packed) > 1:
        names = ", ".join(entry.filename for entry in packed[:3])
        raise CheckpointError(f"{path} has {len(packed)} checkpoints: {names}; unzip it and give one of them")
    return packed[0]


def check_container(path: Path) -> None:
    """Checks that a file is a zip that is no larger inside than outside; reads its directory and no entry.

    Raises:
        CheckpointError: If it is not.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}; give its file, or the folder that contains it")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointError(
            f"{path} is not a checkpoint of torch 1.6 or later ({_first_line(error)}): copy it again if it was cut "
            f"off; older ones are pickles without a container, which are refused"
        ) from error
    if holds_code(entries):
        raise CheckpointError(f"{path} is a TorchScript archive, which contains code; give a file of only weights")
    check_stored(entries, path)
    if not any(entry.filename.endswith("data.pkl") for entry in entries):
        names = ", ".join(entry.filename for entry in entries[:3]) or "nothing"
        raise CheckpointError(f"{path} is a zip without a torch checkpoint, it contains {names}; give the weights file")


def holds_code(entries: Sequence[zipfile.ZipInfo]) -> bool:
    """Whether a zip is a TorchScript archive."""
    return any(entry.filename.endswith("/constants.pkl") for entry in entries)


def check_stored(entries: Sequence[zipfile.ZipInfo], path: Path) -> None:
    """Checks that zip entries are not compressed, have distinct names, and are no larger than the file.

    Raises:
        CheckpointError: If they are not.
    """
    if any(entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size for entry in entries):
        raise CheckpointError(f"{path} has compressed entries, which torch never writes; refused")
    names = [entry.filename for entry in entries]
    if len(set(names)) < len(names):
        raise CheckpointError(f"{path} has two entries with the same name, which torch never writes; refused")
    inside, outside = sum(entry.file_size for entry in entries), path.stat().st_size
    if inside > outside or len(entries) > _ENTRIES:
        raise CheckpointError(
            f"{path} claims {inside:,} bytes in {count(len(entries), 'entry', 'entries')} and has {outside:,}; refused"
        )


def _check_bytes(path: Path) -> None:
    """Compares every entry with its checksum; torch's reader does not, and would accept altered weights."""
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, OSError, ValueError, EOFError) as error:
        raise CheckpointError(f"{path} cannot be read ({_first_line(error)}); copy it again") from error
    if bad is not None:
        raise CheckpointError(f"{path} is damaged: the checksum of its entry {bad!r} differs; copy it again")


def tensors_of(content: Mapping[str, Any], path: Path, place: str = "state_dict") -> dict[str, Tensor]:
    """Returns the weights of a checkpoint by name, stored under `place`.

    Raises:
        CheckpointError: If there are none, or they are anything but finite tensors no larger than the file.
    """
    state = content.get(place)
    if not isinstance(state, dict) or not state:
        found = f"found {sorted(map(str, content))[:5]}" if place not in content else "it is empty"
        raise CheckpointError(f"{path} has no {place} with weights; {found}; give the file of the weights")
    named = cast("dict[str, Any]", state)
    odd = [str(name) for name, value in named.items() if not (type(name) is str and isinstance(value, Tensor))]
    if odd:
        raise CheckpointError(
            f"{path}: {count(len(odd), 'entry', 'entries')} of its {place} "
            f"{verb(len(odd), 'is not a named tensor', 'are not named tensors')}, first {odd[:5]}; give a file of "
            f"only weights"
        )
    tensors = cast("dict[str, Tensor]", named)
    check_plain(tensors, path)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    # Two names may share a tensor (prefix tuning stores the token embedding twice), but not more.
    if size > 2 * path.stat().st_size:
        raise CheckpointError(f"{path}: its tensors claim {size:,} bytes, more than the file has; refused")
    bad = non_finite_names(tensors)
    if bad:
        raise CheckpointError(f"{path}: {format_names('with NaN or infinity', bad)}; use an earlier one")
    return tensors


def _first_line(error: Exception) -> str:
    if str(error).startswith("Weights only load failed"):
        return "damaged"
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]


_MOST_ATTRIBUTES = 50_000
"""More than any model has; modules nested in each other would be endless."""
_LIST = "torch.jit._pickle."
_KEPT = re.compile(r"[^/]+/(data\.pkl|version|byteorder|data/[^/]+)")


def is_jit_archive(path: Path) -> bool:
    """Whether a file was written by `torch.jit.save`."""
    try:
        with zipfile.ZipFile(path) as archive:
            return holds_code(archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False  # the reader reports the error


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
    """Attributes of a module in an archive."""

    __slots__ = ("attributes",)
    attributes: object

    def __setstate__(self, attributes: object) -> None:
        self.attributes = attributes


def _keep(value: object, *_type: object) -> object:
    """Placeholder for type annotations of lists and dictionaries."""
    return value


@contextmanager
def _without_code(path: Path) -> Generator[Path]:
    """Provides a copy of an archive's modules and tensors, entries compared with their checksums."""
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
    """Returns placeholders for the names in an archive."""
    names = get_unsafe_globals_in_checkpoint(str(bare))
    foreign = sorted(name for name in names if not name.startswith(("__torch__.", _LIST)))
    if foreign:
        raise CheckpointError(
            f"{path} names {foreign[0]}, not only modules and tensors; refused because such files can run "
            f"code; ask the authors for a file of only weights"
        )
    return [(_keep if name.startswith(_LIST) else _Module, name) for name in names]


def _tensors(content: object) -> Iterator[tuple[str, Tensor]]:
    """Yields tensors by name, module by module."""
    waiting: list[tuple[str, object]] = [("", content)]
    met = 0
    while waiting:
        prefix, module = waiting.pop()
        if not isinstance(module, _Module):
            raise CheckpointError(f"it contains a {type(module).__name__}, not a module; copy it again")
        attributes = getattr(module, "attributes", None)
        if not isinstance(attributes, dict):
            raise CheckpointError("it contains a module without attributes; copy it again")
        for name, value in cast("Mapping[str, object]", attributes).items():
            met += 1
            if met > _MOST_ATTRIBUTES:
                raise CheckpointError(f"its modules have more than {_MOST_ATTRIBUTES:,} attributes; refused")
            if isinstance(value, Tensor):
                yield f"{prefix}{name}", value.detach()
            elif isinstance(value, _Module):
                waiting.append((f"{prefix}{name}.", value))


_WEIGHTS = (
    "model.safetensors",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)
"""File names of transformers and open_clip; of several in a folder the first is read."""


def find_weights(path: Path) -> Path:
    """Returns the weights file in a folder; a file unchanged.

    Raises:
        CheckpointError: If a folder has none.
    """
    if not path.is_dir():
        return path
    found = next((path / name for name in _WEIGHTS if (path / name).is_file()), None)
    if found is None:
        raise CheckpointError(f"{path} has none of {', '.join(_WEIGHTS)}; give its weights file")
    return found


class ForeignCheckpoint(NamedTuple):
    """Weights from a file written by another program."""

    weights: Mapping[str, Tensor]
    """By name, without names added by wrappers, in their own dtype."""
    facts: Mapping[str, Any]
    """Plain hyper-parameters."""


def read_weights(path: Path) -> ForeignCheckpoint:
    """Reads a weights file, zipped or not, without running code.

    Raises:
        CheckpointError: If it is damaged, may run code, contains anything but finite tensors, or one weight twice.
    """
    if path.suffix == ".safetensors":
        read_header(path)
        try:
            state = tensors_of({"state_dict": load_file(path, backend="pread")}, path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path} is a truncated or corrupt safetensors file ({error}); copy it again"
            ) from error
        return ForeignCheckpoint(strip_wrappers(state, path), {})
    if is_jit_archive(path):
        return ForeignCheckpoint(
            strip_wrappers(tensors_of({"state_dict": _unmasked(read_jit_archive(path))}, path), path), {}
        )
    with unzipped(path) as inner:
        try:
            content = load_foreign(inner, foreign=True)
        except CheckpointError as error:  # name the zip, not the temporary file
            raise CheckpointError(
                str(error).replace(str(inner), f"{path}{f' ({inner.name})' * (inner != path)}")
            ) from error
    place = next((name for name in ("state_dict", "model") if isinstance(content.get(name), dict)), None)
    state = tensors_of({"state_dict": _unmasked(content[place] if place else content)}, path)
    return ForeignCheckpoint(strip_wrappers(state, path), plain_facts(content))


def plain_facts(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the hyper-parameters of a checkpoint that are plain values; everything else is ignored."""
    given: Any = content.get("hyper_parameters")
    if not isinstance(given, dict):
        return {}
    plain = str | int | float | bool | None
    return {str(name): value for name, value in cast("dict[Any, Any]", given).items() if isinstance(value, plain)}


def _unmasked(state: Mapping[str, Any]) -> dict[str, Any]:
    """Removes CLIP's causal masks, buffers with minus infinity."""
    return {name: value for name, value in state.items() if not str(name).endswith("attn_mask")}
