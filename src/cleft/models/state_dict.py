"""State dicts: reading, writing, checking and loading named weights."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from cleft.errors import CheckpointError, NumericsError
from cleft.grammar import agree, verb
from cleft.models.hub import quiet_transformers
from cleft.strict_json import parse_json

HALVES = (torch.float16, torch.bfloat16)
"""16-bit dtypes of stored weights that are computed in float32."""
_WRAPPERS = frozenset(("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"))
"""Name parts added by wrappers of torch and Lightning: DDP, torch.compile, FSDP, checkpointing, Fabric."""


def strip_wrappers(weights: Mapping[str, Tensor], where: Path) -> dict[str, Tensor]:
    """Returns weights under their names without wrappers: `module.visual._orig_mod.proj` becomes `visual.proj`.

    Args:
        weights: With wrapper names anywhere, in any order and number, on all or some weights.
        where: Their file, for messages.

    Raises:
        CheckpointError: If two names become equal.
    """
    plain: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    for name, tensor in weights.items():
        *parts, last = name.split(".")
        bare = ".".join([*(part for part in parts if part not in _WRAPPERS), last])
        if bare in plain:
            raise CheckpointError(
                f"{where} has {origin[bare]!r} and {name!r}, which are the same weight without the names added by "
                f"wrappers such as torch.compile; save it again from one model"
            )
        plain[bare], origin[bare] = tensor, name
    return plain


def match_forms(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns weights with the expected shape and dtype where only the form differs and no value changes.

    A single number may be a scalar or a vector of one, counts may have any dtype, and 64-bit floats become 32-bit.
    16-bit weights are unchanged.
    """
    return {
        name: _conformed(tensor, expected[name]) if name in expected else tensor for name, tensor in weights.items()
    }


def _conformed(tensor: Tensor, like: Tensor) -> Tensor:
    if tensor.numel() == like.numel() == 1:
        tensor = tensor.reshape(like.shape)
    if tensor.dtype == torch.float64 and like.is_floating_point():
        return tensor.to(like.dtype)
    if tensor.dtype != like.dtype and not like.is_floating_point():
        other = tensor.to(like.dtype)
        return other if bool((other.to(tensor.dtype) == tensor).all()) else tensor
    return tensor


def to_saveable(weights: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Returns weights as they are written to disk: detached, on the CPU, contiguous, without shared memory.

    Raises:
        NumericsError: If one is NaN or infinite; `folder` is named as where the model was not saved.
    """
    tensors: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in weights.items():
        tensor = tensor.detach().cpu().contiguous()
        # Weights that share memory, which safetensors refuses, become two weights.
        tensors[name] = tensor.clone() if tensor.data_ptr() in places else tensor
        places.add(tensor.data_ptr())
    broken = non_finite_names(tensors)
    if broken:
        raise NumericsError(
            f"{format_names('[weight|weights]', broken)} {verb(len(broken), 'holds', 'hold')} NaN or infinity, so "
            f"the model was not saved to {folder}"
        )
    return tensors


def write_weights(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes weights as safetensors.

    Raises:
        OSError: If they cannot be written, with the system's error number.
    """
    try:
        save_file(dict(tensors), path)
    except SafetensorError as error:
        # The system's error number is only in the library's message.
        found = re.search(r"os error (\d+)", str(error))
        raise OSError(int(found[1]) if found else errno.EIO, str(error)) from error


def read_header(path: Path) -> dict[str, tuple[int, ...]]:
    """Returns names and shapes of a weights file, without reading a weight.

    Raises:
        CheckpointError: If it is not a complete safetensors file, names a weight twice, or has one of an unsupported
            dtype.
    """
    _check_header(path)
    try:
        with safe_open(path, "pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
            kinds = {name: str(part.get_dtype()) for name, part in slices.items()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is a truncated or corrupt safetensors file ({error}); copy it again") from error
    unsupported = [f"{name} ({kind})" for name, kind in kinds.items() if kind not in _KINDS]
    if unsupported:
        raise CheckpointError(f"{path}: {format_names('of an unsupported dtype', unsupported)}; {_CONVERT}")
    return shapes


def _check_header(path: Path) -> None:
    """Parses the header strictly: the library takes the last of two weights with the same name."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = file.read(min(size, _LARGEST_HEADER))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); copy it again") from error
    if len(header) < size or not header:
        raise CheckpointError(
            f"{path} is a truncated or corrupt safetensors file (its header is cut off); copy it again"
        )
    parse_json(header.rstrip(b" "), f"{path} is a corrupt safetensors file: its header", error=CheckpointError)


_LARGEST_HEADER = 100 * 2**20
"""Maximum size of a safetensors header in bytes."""
_KINDS = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL")
_TYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)
_CONVERT = "convert them to float32, bfloat16 or float16 and save again"


def check_plain(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuses tensors that are not plain numbers in memory: sparse, quantised, nested, meta, complex, 8-bit floats.

    Raises:
        CheckpointError: If there are any; names the first, each with its kind.
    """
    unsupported = [f"{name} ({what})" for name, tensor in tensors.items() if (what := _kind_of_tensor(tensor))]
    if unsupported:
        raise CheckpointError(
            f"{path}: {format_names('not plain [tensor|tensors] of numbers', unsupported)}; {_CONVERT}"
        )


def _kind_of_tensor(tensor: Tensor) -> str:
    if tensor.is_nested:
        return "nested"
    if tensor.is_meta:
        return "meta, without values"
    if tensor.layout != torch.strided:
        return str(tensor.layout).removeprefix("torch.")
    if tensor.is_quantized or tensor.dtype not in _TYPES:
        return str(tensor.dtype).removeprefix("torch.")
    return ""


def load_weights(
    module: nn.Module, given: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path, made: Mapping[str, str]
) -> list[str]:
    """Loads a file's weights into a module; names, shapes and dtypes must agree, except 16 bits in the file for 32.

    Args:
        module: Gets the weights in their dtype, without a copy.
        given: Weights in the file.
        expected: Weights the module needs from it.
        path: The file, for messages.
        made: Library versions the file was written with.

    Returns:
        Names of the weights that have 16 bits where the module was built with 32.

    Raises:
        CheckpointError: If they do not agree, or one is NaN or infinite.
    """
    faults = describe_mismatch(given, expected)
    if faults:
        raise CheckpointError(
            f"{path} does not fit the model described in {path.parent / 'model.json'}: {faults} (saved with "
            f"transformers {made.get('transformers')}, this is {version('transformers')}); copy the folder again"
        )
    broken = non_finite_names(given)
    if broken:
        raise CheckpointError(f"{path}: {format_names('with NaN or infinity', broken)}; use an earlier model")
    return assign_weights(module, given, expected)


def assign_weights(module: nn.Module, given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Assigns weights to a module without a copy.

    Returns:
        Names of those that have 16 bits where the module was built with 32.
    """
    halves = [name for name, tensor in given.items() if tensor.dtype in HALVES and tensor.dtype != expected[name].dtype]
    module.load_state_dict(dict(given), strict=False, assign=True)
    return halves


def describe_mismatch(given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Describes how a file's weights differ from a model's in names, shapes and dtypes; empty if they agree.

    Shapes must be equal, not only broadcastable. Dtypes too, but 16 bits fit where 32 are expected.
    """
    both = sorted(given.keys() & expected.keys())
    differing = [name for name in both if not _fits(given[name], expected[name])]
    faults = [
        format_names("missing", sorted(expected.keys() - given.keys())),
        format_names("unexpected", sorted(given.keys() - expected.keys())),
        format_names("with another shape or dtype", differing),
    ]
    return "; ".join(filter(None, faults))


def non_finite_names(tensors: Mapping[str, Tensor]) -> list[str]:
    """Returns the names of weights with NaN or infinity."""
    return [name for name, tensor in tensors.items() if tensor.is_floating_point() and not _is_finite(tensor)]


def _is_finite(tensor: Tensor) -> bool:
    # Minimum and maximum need no memory, a comparison of every value as much as the weights; NaN propagates.
    return tensor.numel() == 0 or all(bool(extreme.isfinite()) for extreme in tensor.aminmax())


def format_names(what: str, names: Sequence[str]) -> str:
    """Returns count, kind and the first five names; empty if there are none.

    Args:
        what: The kind, for `agree`.
        names: All names.

    Example:
        >>> format_names("missing", ["a", "b", "c", "d", "e", "f"])
        '6 missing: a, b, c, d, e, …'
    """
    if not names:
        return ""
    return f"{len(names)} {agree(len(names), what)}: {', '.join(names[:5])}{', …' if len(names) > 5 else ''}"


def _fits(tensor: Tensor, like: Tensor) -> bool:
    halved = like.dtype == torch.float32 and tensor.dtype in HALVES
    return tensor.shape == like.shape and (halved or tensor.dtype == like.dtype)


def to_current_names(model: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns a vision model's weights, named as in published files, under the names of this version of transformers.

    Args:
        model: A vision model of the same shape whose unused weights are frozen. Of these, missing ones become zeros.
        weights: The weights.

    Raises:
        CheckpointError: If some are missing, unknown or have another shape.
    """
    frozen = {name: weight for name, weight in cast("nn.Module", model).named_parameters() if not weight.requires_grad}
    # For a frozen pooler that is not in the file, transformers would log that it was initialised at random.
    pooler = {name: torch.zeros_like(weight) for name, weight in frozen.items() if name.startswith("pooler.")}
    if any(name.startswith("pooler.") for name in weights):
        pooler = {}
    # Each weight is replaced by its index, expanded without memory: only its name and shape may change.
    names = list(weights)
    indices = {name: torch.tensor(float(number)).expand(weights[name].shape) for number, name in enumerate(names)}
    loaded: Any
    with quiet_transformers():
        loaded, info = type(model).from_pretrained(
            None,
            config=model.config,
            state_dict=indices,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
            **({"add_pooling_layer": False} if pooler else {}),
        )
    missing = set(map(str, info["missing_keys"]))
    for what, found in (
        ("missing", missing - frozen.keys()),
        ("unexpected", info["unexpected_keys"]),
        ("mismatched", {key[0] for key in info["mismatched_keys"]}),
    ):
        listing = sorted(map(str, found))
        if listing:
            raise CheckpointError(format_names(f"{what} [weight|weights] of the image tower", listing))
    current = dict(pooler)
    for name, index in cast("dict[str, Tensor]", loaded.state_dict()).items():
        if name in missing:
            current[name] = torch.zeros_like(index)
        elif index.numel() > 1 and any(index.stride()):
            raise CheckpointError(
                f"this version of transformers merges weights into {name}; use the version cleft was tested with"
            )
        else:
            current[name] = weights[names[int(index.flatten()[0])]]
    return current
