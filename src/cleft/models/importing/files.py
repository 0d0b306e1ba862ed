"""The files of a published checkpoint: its weights, and in a folder what stands beside them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cleft.errors import CheckpointError
from cleft.models.container import read_foreign, tensors_of, unpacked
from cleft.models.importing.jit_archive import is_jit_archive, read_jit_archive
from cleft.models.importing.layout import Facts, Layout
from cleft.models.state_dict import read_header, unwrapped
from cleft.models.tokenizer import TOKENIZER_FILES
from cleft.strict_json import read_json

_WEIGHTS = (
    "model.safetensors",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)
"""What transformers and open_clip call them; where a folder holds two of them, the first is read."""
_LARGEST_JSON = 2**20


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


class Foreign(NamedTuple):
    """Weights from a file that another program wrote."""

    weights: Mapping[str, Tensor]
    """By name, without the names that wrappers add, each in its own type."""
    facts: Mapping[str, Any]
    """Plain values among its hyper-parameters."""


def read_weights(path: Path) -> Foreign:
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
        return Foreign(unwrapped(state, path), {})
    if is_jit_archive(path):
        return Foreign(unwrapped(tensors_of({"state_dict": _unmasked(read_jit_archive(path))}, path), path), {})
    with unpacked(path) as inner:
        try:
            content = read_foreign(inner, foreign=True)
        except CheckpointError as error:  # of a zip: not by the name it has for a moment
            raise CheckpointError(
                str(error).replace(str(inner), f"{path}{f' ({inner.name})' * (inner != path)}")
            ) from error
    place = next((name for name in ("state_dict", "model") if isinstance(content.get(name), dict)), None)
    state = tensors_of({"state_dict": _unmasked(content[place] if place else content)}, path)
    return Foreign(unwrapped(state, path), plain_facts(content))


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


def read_facts(weights: Path, layout: Layout, *, named: bool) -> Facts:
    """Reads the JSON files that a layout has beside its weights; all but the first may be missing.

    Args:
        weights: The file.
        layout: What it is.
        named: Whether its method was named, which may say as much as the first of these files.

    Raises:
        CheckpointError: If the first is missing, or one cannot be read.
    """
    places = {name: weights.parent / name for name in layout.beside}
    if places and not places[layout.beside[0]].is_file() and not (named and layout.alone):
        raise CheckpointError(
            f"{weights} should lie beside {layout.beside[0]}, which says how {layout.title} reads images and texts; "
            f"download the whole folder{layout.alone and f', or {layout.alone}'}"
        )
    return {name: _read_json(place) for name, place in places.items() if place.is_file()}


def tokenizer_beside(weights: Path, layout: Layout) -> Path | None:
    """Returns the folder of the weights where it is known to hold their tokenizer too."""
    has = layout.beside and any((weights.parent / name).is_file() for name in TOKENIZER_FILES)
    return weights.parent if has else None


def _read_json(path: Path) -> dict[str, Any]:
    return read_json(path, error=CheckpointError, limit=_LARGEST_JSON)
