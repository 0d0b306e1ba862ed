"""Sets of named weights: to disk and back, what is wrong with them, and what two of them differ in."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from cleft.errors import CheckpointError, NumericsError
from cleft.files import parse_json


def saveable(weights: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Returns weights as they go to disk.

    Raises:
        NumericsError: If one is NaN or infinite; `folder` is named as where the model did not go.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    broken = not_finite(tensors)
    if broken:
        raise NumericsError(f"{listed('weights', broken)} hold NaN or infinity, so the model was not saved to {folder}")
    return tensors


def write_weights(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes weights as safetensors.

    Raises:
        OSError: If they cannot be written, with the system's number.
    """
    try:
        save_file(dict(tensors), path)
    except SafetensorError as error:
        # The system's number of what stopped a write stands in the library's sentence alone.
        found = re.search(r"os error (\d+)", str(error))
        raise OSError(int(found[1]) if found else errno.EIO, str(error)) from error


def read_header(path: Path) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of a weights file, without reading a weight.

    Raises:
        CheckpointError: If it is not a complete safetensors file, names a weight twice, or has one of another type than
            models are made of.
    """
    _check_header(path)
    try:
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
            kinds = {name: str(part.get_dtype()) for name, part in slices.items()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is no whole safetensors file ({error}); copy it again") from error
    odd = [f"{name} ({kind})" for name, kind in kinds.items() if kind not in _KINDS]
    if odd:
        raise CheckpointError(f"{path}: {listed('of a type that is not read', odd)}; {_CONVERT}")
    return shapes


def _check_header(path: Path) -> None:
    """Parse the header strictly: the library takes the last of two weights of the same name."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = file.read(min(size, _LARGEST_HEADER))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); copy it again") from error
    if len(header) < size or not header:
        raise CheckpointError(f"{path} is no whole safetensors file (its header is cut off); copy it again")
    parse_json(header.rstrip(b" "), f"{path} is no whole safetensors file: its header", error=CheckpointError)


_LARGEST_HEADER = 100 * 2**20
"""Bytes of the largest header that safetensors reads."""
_KINDS = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL")
_TYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)
_CONVERT = "convert them to float32, bfloat16 or float16 and save again"


def check_plain(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that are not plain numbers in memory: sparse, quantised, nested, meta, complex, 8-bit floats.

    Raises:
        CheckpointError: If there are any; names the first, each with what it is.
    """
    odd = [f"{name} ({what})" for name, tensor in tensors.items() if (what := _oddity(tensor))]
    if odd:
        raise CheckpointError(f"{path}: {listed('that are not plain tensors of numbers', odd)}; {_CONVERT}")


def _oddity(tensor: Tensor) -> str:
    if tensor.is_nested:
        return "nested"
    if tensor.is_meta:
        return "meta, without values"
    if tensor.layout != torch.strided:
        return str(tensor.layout).removeprefix("torch.")
    if tensor.is_quantized or tensor.dtype not in _TYPES:
        return str(tensor.dtype).removeprefix("torch.")
    return ""


def fill(
    module: nn.Module, given: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path, made: Mapping[str, str]
) -> None:
    """Copies a file's weights into a module; every name, shape and type must agree.

    Args:
        module: Takes them.
        given: What the file holds.
        expected: What the module wants from it.
        path: The file, for messages.
        made: Versions the file was written with.

    Raises:
        CheckpointError: If they do not agree, or one is NaN or infinite.
    """
    faults = misfits(given, expected)
    if faults:
        raise CheckpointError(
            f"{path} does not fit the model that {path.parent / 'model.json'} describes: {faults} (saved with "
            f"transformers {made.get('transformers')}, this is {version('transformers')}); copy the folder again"
        )
    broken = not_finite(given)
    if broken:
        raise CheckpointError(f"{path}: {listed('with NaN or infinity', broken)}; use an earlier model")
    module.load_state_dict(dict(given), strict=False)


def misfits(given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Says in what a file's weights differ from a model's: names, shapes, types. Empty where they agree.

    Shapes must be equal, not only broadcast to each other.
    """
    both = sorted(given.keys() & expected.keys())
    differing = [name for name in both if _form(given[name]) != _form(expected[name])]
    faults = [
        listed("missing", sorted(expected.keys() - given.keys())),
        listed("unexpected", sorted(given.keys() - expected.keys())),
        listed("of another shape or type", differing),
    ]
    return "; ".join(filter(None, faults))


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the weights that hold NaN or infinity."""
    return [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]


def listed(what: str, names: Sequence[str]) -> str:
    """Count, kind and the first five names; empty where there are none.

    Example:
        >>> listed("missing", ["a", "b", "c", "d", "e", "f"])
        '6 missing: a, b, c, d, e, …'
    """
    if not names:
        return ""
    return f"{len(names)} {what}: {', '.join(names[:5])}{', …' if len(names) > 5 else ''}"


def _form(tensor: Tensor) -> tuple[object, ...]:
    return (*tensor.shape, tensor.dtype)
