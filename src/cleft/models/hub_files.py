"""Files of a Hugging Face model, checked before a library reads them: strict JSON, and no name that leads elsewhere.

`transformers` follows names that such files hold: shards in an index, a base model in an adapter's configuration,
vocabularies in the maps of a tokenizer. None of them may leave the model's own folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from transformers.utils.hub import cached_file

from cleft.errors import CheckpointError
from cleft.files import read_json

_INDEXES: Final = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_ADAPTER: Final = "adapter_config.json"
_TOKENIZER: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
)
_REMEDY: Final = "copy it again"

Find = Callable[[str], Path | None]
"""Returns where a file of a model is, or None where it has none of that name."""


def read_config_file(model: str, *, local_files_only: bool = False) -> dict[str, Any] | None:
    """Return the content of a model's `config.json`, or None where there is none.

    Args:
        model: Hub name or folder.
        local_files_only: Whether not to use the network.

    Raises:
        CheckpointError: If it is not strict JSON with an object on top.
    """
    path = _find(model, "config.json", local_files_only=local_files_only)
    return None if path is None else read_json(path, error=CheckpointError, remedy=_REMEDY)


def check_weight_files(model: str) -> None:
    """Check the files that say where a model's weights are.

    Raises:
        CheckpointError: If the model is an adapter for another one, or an index is damaged or names a file elsewhere.
    """
    find = partial(_find, model)
    adapter = find(_ADAPTER)
    if adapter is not None:
        raise CheckpointError(
            f"{adapter} describes an adapter for another model, which would be loaded too; merge the adapter into its "
            f"model (merge_and_unload of peft) and give the folder of the merged model"
        )
    for name in _INDEXES:
        path = find(name)
        if path is not None:
            index = read_json(path, error=CheckpointError, remedy=_REMEDY)
            shards = index.get("weight_map")
            if not isinstance(shards, dict) or not isinstance(index.get("metadata"), dict):
                raise CheckpointError(f"{path} needs a weight_map and metadata, both objects; {_REMEDY}")
            names = list(cast("dict[str, Any]", shards).values())
            _check_names(names, f"{path}: weight_map")
            absent = next((name for name in names if Path(model).is_dir() and not (Path(model) / name).is_file()), None)
            if absent is not None:
                raise CheckpointError(f"{path} names {absent}, which is missing beside it; {_REMEDY}")


def check_tokenizer_files(source: str | Path) -> None:
    """Check the JSON files of a tokenizer in a folder or in the local cache.

    Raises:
        CheckpointError: If one is damaged or names a file elsewhere.
    """
    folder = Path(source)
    find: Find = partial(_in_folder, folder) if folder.is_dir() else partial(_cached, str(source))
    for name in _TOKENIZER:
        path = find(name)
        if path is None:
            continue
        content = read_json(path, error=CheckpointError, remedy=_REMEDY)
        if name == "tokenizer_config.json":
            _check_names(cast("list[Any]", content.get("fast_tokenizer_files") or []), f"{path}: fast_tokenizer_files")
            if content.get("init_inputs"):
                raise CheckpointError(f"{path}: init_inputs passes values to code, which is not done; remove it")
        if name == "special_tokens_map.json":
            _check_map(content, path)


def _check_map(content: Mapping[str, Any], path: Path) -> None:
    """A map of special tokens holds nothing else: transformers takes any other entry for an option, such as a path."""
    odd = next((key for key in content if not key.endswith(("_token", "_tokens"))), None)
    if odd is not None:
        raise CheckpointError(f"{path}: {ascii(odd)[:60]} is no special token; remove it")


def _check_names(names: Iterable[Any], where: str) -> None:
    for name in dict.fromkeys(str(name) if isinstance(name, str) else None for name in names):
        if name is None:
            raise CheckpointError(f"{where} holds a value that is not the name of a file; {_REMEDY}")
        if not name or "\\" in name or ":" in name or "\0" in name or name in (".", "..") or "/" in name:
            raise CheckpointError(
                f"{where} names {ascii(name)[:80]}, which is not a file in the model's own folder; it is not opened, "
                f"{_REMEDY}"
            )


def _find(model: str, name: str, *, local_files_only: bool = False) -> Path | None:
    if Path(model).is_dir():
        return _in_folder(Path(model), name)
    try:
        found = cached_file(
            model,
            name,
            local_files_only=local_files_only,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except (OSError, HFValidationError):
        return None
    return None if found is None else Path(found)


def _cached(model: str, name: str) -> Path | None:
    try:
        found = try_to_load_from_cache(model, name)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def _in_folder(folder: Path, name: str) -> Path | None:
    return folder / name if (folder / name).exists() else None
