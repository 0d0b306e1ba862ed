"""Foreign `.ckpt` and `.pth` files as tensors and plain values, without running anything in them.

Three gates, in this order. The container: a zip whose entries are stored, not deflated, and are together no larger
than the file, so that a megabyte cannot unpack to gigabytes. The content: only tensors and plain values, through
torch's weights-only reader. Where a caller asks for it, classes of other libraries are passed over: what a file would
make of them becomes an empty object, and no code of theirs is looked for. The tensors: together no larger than the
file, so that a view that repeats one number a billion times is never copied.
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

_SHRINKS = 4
"""How many times smaller than its bytes a packed checkpoint may be; random weights hardly shrink."""
_ENTRIES = 200_000
"""More entries than any checkpoint of tensors has."""


class Unread:
    """Stands where a checkpoint names a class or function of another library; it holds nothing and does nothing."""

    def __new__(cls, *_arguments: object) -> Unread:
        """Takes whatever the file would have passed."""
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        """Keeps nothing."""


class _UnreadDict(Unread):
    """Stands for a kind of dictionary of another library: the reader puts entries into nothing but dictionaries."""

    def __new__(cls, *_arguments: object) -> Any:
        return OrderedDict[Any, Any]()


_DICTS = ("AttributeDict", "defaultdict")


def load_foreign(path: Path, *, foreign: bool = False) -> Mapping[str, Any]:
    """Reads a checkpoint somebody else wrote with `torch.save`.

    Args:
        path: The file.
        foreign: Whether it may name classes of other libraries, such as OmegaConf's, in whose place there is then an
            `Unread`. By default it is refused for them.

    Returns:
        Its dictionary: tensors on the CPU, numbers, strings, lists and dictionaries of these.

    Raises:
        CheckpointError: If it is missing, no such file, larger inside than outside, or holds anything else.
    """
    check_container(path)
    _check_bytes(path)
    content = load_plain(path, path, (lambda: _unread(path)) if foreign else list)
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, not a dictionary of weights; give a file of weights by name"
        )
    return cast("dict[str, Any]", content)


def load_plain(file: Path, path: Path, stand_ins: Callable[[], list[Any]]) -> Any:
    """Reads tensors and plain values of a container that was checked.

    Args:
        file: The container.
        path: What a user calls it, for messages.
        stand_ins: Gives what is taken for names of other libraries, each with the name.

    Raises:
        CheckpointError: If it is damaged, or names anything else.
    """
    try:
        with safe_globals(stand_ins()):
            return torch.load(file, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged file fails in as many ways as the format has instructions
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named:  # the library's own advice is to open it all the same
            raise CheckpointError(
                f"{path} names {named[1]}, not only tensors and plain values, and is not opened, since such files "
                f"can run code; ask its makers for a file of weights alone"
            ) from error
        raise CheckpointError(f"{path} cannot be read ({_first_line(error)}); copy it again") from error


def _unread(path: Path) -> list[Any]:
    """Stand-ins for all that the weights-only reader would not open; blocked modules it refuses all the same."""
    names = get_unsafe_globals_in_checkpoint(str(path))
    return [(_UnreadDict if name.endswith(_DICTS) else Unread, name) for name in names]


@contextmanager
def unzipped(path: Path) -> Generator[Path]:
    """Gives the checkpoint in a zip that holds one, as MedCLIP's are published; a bare checkpoint as it is.

    Raises:
        CheckpointError: If it holds several, or claims to be much larger unpacked, which weights never are.
    """
    entry = _packed_entry(path)
    if entry is None:
        yield path
        return
    if entry.file_size > _SHRINKS * entry.compress_size:
        raise CheckpointError(
            f"{path} claims that {entry.filename} has {entry.file_size:,} bytes, packed into {entry.compress_size:,}; "
            f"weights do not shrink so far, and it is not opened"
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
    """The checkpoint in a zip that is none itself."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return None  # what reads it says what is wrong
    packed = [entry for entry in entries if entry.filename.endswith((".bin", ".pth", ".ckpt", ".pt"))]
    if any(entry.filename.endswith("/data.pkl") for entry in entries) or not packed:
        return None
    if len(packed) > 1:
        names = ", ".join(entry.filename for entry in packed[:3])
        raise CheckpointError(f"{path} holds {len(packed)} checkpoints: {names}; unpack it and give one of them")
    return packed[0]


def check_container(path: Path) -> None:
    """Checks that a file is a zip that is no larger inside than outside; reads its directory and no entry.

    Raises:
        CheckpointError: If it is not.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}; give its file, or the folder that holds it")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointError(
            f"{path} is not a checkpoint of torch 1.6 or later ({_first_line(error)}): copy it again if it was cut "
            f"off; older ones are pickles without a container, which are not opened"
        ) from error
    if holds_code(entries):
        raise CheckpointError(
            f"{path} is a TorchScript archive, whose weights come with code, and is not opened; give a file of weights "
            f"alone"
        )
    check_stored(entries, path)
    if not any(entry.filename.endswith("data.pkl") for entry in entries):
        names = ", ".join(entry.filename for entry in entries[:3]) or "nothing"
        raise CheckpointError(
            f"{path} is a zip that holds no checkpoint of torch, but {names}; give the file of weights"
        )


def holds_code(entries: Sequence[zipfile.ZipInfo]) -> bool:
    """Whether a zip is an archive of TorchScript."""
    return any(entry.filename.endswith("/constants.pkl") for entry in entries)


def check_stored(entries: Sequence[zipfile.ZipInfo], path: Path) -> None:
    """Checks that entries of a zip are not compressed, have names of their own, and are no larger than the file.

    Raises:
        CheckpointError: If they are.
    """
    if any(entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size for entry in entries):
        raise CheckpointError(f"{path} has compressed entries, which torch never writes; it is not opened")
    names = [entry.filename for entry in entries]
    if len(set(names)) < len(names):
        raise CheckpointError(f"{path} has two entries of one name, which torch never writes; it is not opened")
    inside, outside = sum(entry.file_size for entry in entries), path.stat().st_size
    if inside > outside or len(entries) > _ENTRIES:
        raise CheckpointError(
            f"{path} claims {inside:,} bytes in {count(len(entries), 'entry', 'entries')} and has {outside:,}; "
            f"it is not opened"
        )


def _check_bytes(path: Path) -> None:
    """Compares every entry with its checksum; torch's own reader does not, and would take altered weights for true."""
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, OSError, ValueError, EOFError) as error:
        raise CheckpointError(f"{path} cannot be read ({_first_line(error)}); copy it again") from error
    if bad is not None:
        raise CheckpointError(f"{path} is damaged: the checksum of its entry {bad!r} differs; copy it again")


def tensors_of(content: Mapping[str, Any], path: Path, place: str = "state_dict") -> dict[str, Tensor]:
    """Returns a checkpoint's weights by name, which lie under `place`.

    Raises:
        CheckpointError: If it has none, or it holds anything but finite tensors no larger than the file.
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
            f"{verb(len(odd), 'is no tensor', 'are no tensors')} with a name, first {odd[:5]}; give a file of "
            f"weights alone"
        )
    tensors = cast("dict[str, Tensor]", named)
    check_plain(tensors, path)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    # Two names may share one tensor (prefix tuning stores the token embedding twice), but not more.
    if size > 2 * path.stat().st_size:
        raise CheckpointError(f"{path}: its tensors claim {size:,} bytes, more than the file has; it is not opened")
    bad = non_finite_names(tensors)
    if bad:
        raise CheckpointError(f"{path}: {format_names('with NaN or infinity', bad)}; use an earlier one")
    return tensors


def _first_line(error: Exception) -> str:
    if str(error).startswith("Weights only load failed"):
        return "damaged"
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]


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


_WEIGHTS = (
    "model.safetensors",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)
"""What transformers and open_clip call them; where a folder holds two of them, the first is read."""


def find_weights(path: Path) -> Path:
    """Returns the file of weights in a folder; a file as it is.

    Raises:
        CheckpointError: If a folder has none.
    """
    if not path.is_dir():
        return path
    found = next((path / name for name in _WEIGHTS if (path / name).is_file()), None)
    if found is None:
        raise CheckpointError(f"{path} holds none of {', '.join(_WEIGHTS)}; give the file of its weights itself")
    return found


class ForeignCheckpoint(NamedTuple):
    """Weights from a file that another program wrote."""

    weights: Mapping[str, Tensor]
    """By name, without the names that wrappers add, each in its own type."""
    facts: Mapping[str, Any]
    """Plain values among its hyper-parameters."""


def read_weights(path: Path) -> ForeignCheckpoint:
    """Reads a file of weights, packed or not, as data alone.

    Raises:
        CheckpointError: If it is damaged, may run code, holds anything but finite tensors, or one weight twice.
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
        except CheckpointError as error:  # of a zip: not by the name it has for a moment
            raise CheckpointError(
                str(error).replace(str(inner), f"{path}{f' ({inner.name})' * (inner != path)}")
            ) from error
    place = next((name for name in ("state_dict", "model") if isinstance(content.get(name), dict)), None)
    state = tensors_of({"state_dict": _unmasked(content[place] if place else content)}, path)
    return ForeignCheckpoint(strip_wrappers(state, path), plain_facts(content))


def plain_facts(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the hyper-parameters of a checkpoint that are plain values; anything else in there is not looked at."""
    given: Any = content.get("hyper_parameters")
    if not isinstance(given, dict):
        return {}
    plain = str | int | float | bool | None
    return {str(name): value for name, value in cast("dict[Any, Any]", given).items() if isinstance(value, plain)}


def _unmasked(state: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves out CLIP's masks of the future, buffers that hold minus infinity."""
    return {name: value for name, value in state.items() if not str(name).endswith("attn_mask")}
