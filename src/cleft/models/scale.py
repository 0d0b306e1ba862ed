"""Size of the model that a folder describes, compared with the weights it holds, before any memory is taken.

A description is a few hundred bytes and may claim a model of terabytes, or of a million blocks.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Concatenate, Final, ParamSpec, TypeVar, cast

from transformers import PreTrainedConfig

from cleft.errors import CheckpointError, CleftError
from cleft.models.hub import meta_model, read_config
from cleft.models.model_folder import WEIGHTS
from cleft.models.state_dict import read_header
from cleft.strict_json import read_json

_COUNTS: Final = re.compile(
    r"(num|n)_(\w+_)?(layers?|blocks?|stages?|experts?)|(\w+_)?layers|depths?|num_hidden_groups|inner_group_num"
)
"""Options that say how many modules there are; each module has a weight."""
_SIZES: Final = re.compile(r"\bn_(head|layer|embd)|heads$|hidden_layers|hidden_size|embed_dim|(?<!type_)vocab_size")
"""Options that are at least one; `type_vocab_size` is 0 where there are no types of tokens, as in DeBERTa."""
_LABELS: Final = 10**6
_SPARE: Final = 10**7
"""Numbers that a tower may have beyond twice those of the file: buffers, and poolers that are dropped."""

_Folder = TypeVar("_Folder")
_Arguments = ParamSpec("_Arguments")
_Model = TypeVar("_Model")


def check_scale(
    home: Path, place: Path, part: Callable[[PreTrainedConfig], PreTrainedConfig] = lambda config: config
) -> None:
    """Refuse a tower that claims to be much larger than the weights beside it.

    Args:
        home: Folder of the weights.
        place: Of the tower's `config.json` in it.
        part: Returns the part of a configuration that is built.

    Raises:
        CheckpointError: If it is.
    """
    shapes = read_header(home / WEIGHTS)
    where = home / place / "config.json"
    most = max(len(shapes), 1024)
    described = read_json(where, error=CheckpointError)
    for name, value in _numbers(described):
        if value < 1 and _SIZES.search(name):
            raise CheckpointError(f"{where}: {name}={value} is too small; copy the model again")
        limit = _LABELS if name == "num_labels" else most if _COUNTS.fullmatch(name) else None
        if limit is not None and value > limit:
            raise CheckpointError(f"{where}: {name}={value} is more than {WEIGHTS} has weights; copy the model again")
    try:
        claimed = part(read_config(str(home.resolve() / place), "the tower"))
        _check_switches(claimed, described, where)
        model = meta_model(claimed)
        size = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    except CheckpointError:
        raise
    except Exception as error:  # each family fails in its own way where shapes do not fit each other
        raise CheckpointError(f"{where} describes no model ({first_line(error)}); copy the model again") from error
    held = sum(_product(shape) for shape in shapes.values())
    if size > 2 * held + _SPARE:
        raise CheckpointError(
            f"{where} describes a tower of {size:,} numbers, and {WEIGHTS} holds {held:,}; copy the model again"
        )


def check_settings_scale(tree: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Refuse settings of adapters, decoders and heads that are larger than anything among the weights.

    Raises:
        CheckpointError: If there is one; names it.
    """
    most = max(len(shapes), 1000, *(size for shape in shapes.values() for size in shape))
    for group, settings in tree.items():
        for name in _WIDTHS:
            value = cast("dict[str, Any]", settings).get(name) if isinstance(settings, dict) else None
            if isinstance(value, int | float) and value > most:
                raise CheckpointError(
                    f"{where}: {group}.{name}={value} does not fit weights of at most {most}; copy the model again"
                )


_WIDTHS: Final = ("rank", "prefix_length", "decoder_blocks", "decoder_width", "prototypes", "depth", "frozen_layers")


def reports_damage(
    load: Callable[Concatenate[_Folder, _Arguments], _Model],
) -> Callable[Concatenate[_Folder, _Arguments], _Model]:
    """Make whatever a library raises while a folder is loaded a `CheckpointError` that names the folder."""

    @functools.wraps(load)
    def wrapped(folder: _Folder, *arguments: _Arguments.args, **options: _Arguments.kwargs) -> _Model:
        try:
            return load(folder, *arguments, **options)
        except (CleftError, MemoryError):
            raise
        except BaseException as error:
            # A panic in a Rust library, such as that of tokenizers, is no Exception.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise CheckpointError(
                f"{folder} holds files that do not form a model ({type(error).__name__}: {first_line(error)}); copy "
                f"the model again"
            ) from error

    return wrapped


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type where it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]


def _check_switches(claimed: PreTrainedConfig, described: Mapping[str, Any], where: Path) -> None:
    """Refuse another value than true or false where the family's default is one of them."""
    for name, default in type(claimed)().to_dict().items():
        value = described.get(name, default)
        if isinstance(default, bool) and not isinstance(value, bool | None):
            raise CheckpointError(f"{where}: {name} must be true or false, found {value!r:.40}; copy the model again")


def _numbers(tree: Mapping[str, Any]) -> Iterator[tuple[str, int | float]]:
    """Every number of a configuration with its name; of a list that holds numbers, the sum."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _numbers(cast("dict[str, Any]", value))
        elif isinstance(value, list):
            found = [item for item in cast("list[Any]", value) if isinstance(item, int | float)]
            if found:
                yield name, sum(found)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, value


def _product(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size
