"""Load and build Hugging Face configurations and models: by hub name, from a folder or a description, never with code.

Only configurations that ship with `transformers` are accepted: a folder that names its own code is refused, and nothing
in it can make the library import or download code. `transformers` follows names in some files (shards in an index, a
base model in an adapter's configuration, vocabularies in a tokenizer's maps), so these files are checked first: strict
JSON, and no name outside the model's own folder.
"""

from __future__ import annotations

import difflib
import logging
import os
import ssl
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, cast
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import torch
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, StrictDataclassError
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils.hub import cached_file
from transformers.utils.logging import set_tqdm_hook

from cleft.errors import CheckpointError, ConfigError, ResourceError
from cleft.strict_json import read_json

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
"""Returns the path of a model's file, or None if it has none of that name."""


def read_config_file(model: str, *, local_files_only: bool = False) -> dict[str, Any] | None:
    """Returns the content of a model's `config.json`, or None if there is none.

    Args:
        model: Hub name or folder.
        local_files_only: Whether not to use the network.

    Raises:
        CheckpointError: If it is not strict JSON with an object at the top level.
    """
    path = _find(model, "config.json", local_files_only=local_files_only)
    return None if path is None else read_json(path, error=CheckpointError, remedy=_REMEDY)


def check_weight_files(model: str) -> None:
    """Checks the files that name a model's weights.

    Raises:
        CheckpointError: If the model is an adapter for another one, or an index is damaged or names a file elsewhere.
    """
    find = partial(_find, model)
    adapter = find(_ADAPTER)
    if adapter is not None:
        raise CheckpointError(
            f"{adapter} describes an adapter for another model, which would be loaded as well; merge the adapter into "
            f"its model (merge_and_unload of peft) and give the folder of the merged model"
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
                raise CheckpointError(f"{path} names {absent}, which is missing in its folder; {_REMEDY}")


def check_tokenizer_files(source: str | Path) -> None:
    """Checks the JSON files of a tokenizer in a folder or in the local cache.

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
                raise CheckpointError(f"{path}: init_inputs passes values to code, which is not allowed; remove it")
        if name == "special_tokens_map.json":
            _check_map(content, path)


def _check_map(content: Mapping[str, Any], path: Path) -> None:
    """Refuses other entries in a map of special tokens: transformers takes them for options, such as a path."""
    odd = next((key for key in content if not key.endswith(("_token", "_tokens"))), None)
    if odd is not None:
        raise CheckpointError(f"{path}: {ascii(odd)[:60]} is not a special token; remove it")


def _check_names(names: Iterable[Any], where: str) -> None:
    for name in dict.fromkeys(str(name) if isinstance(name, str) else None for name in names):
        if name is None:
            raise CheckpointError(f"{where} contains a value that is not a file name; {_REMEDY}")
        if not name or "\\" in name or ":" in name or "\0" in name or name in (".", "..") or "/" in name:
            raise CheckpointError(
                f"{where} names {ascii(name)[:80]}, which is not a file in the model's own folder; refused, {_REMEDY}"
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


_CODE = ("auto_map", "custom_pipelines", "_attn_implementation", "attn_implementation", "_experts_implementation")
"""Configuration keys that can name code on a hub."""
_PLACES = ("_name_or_path", "name_or_path")
"""Configuration keys with the folder it was read from; the settings record the source instead."""
_HUB_SECONDS = 5.0
_NO_CONVERSION = "DISABLE_SAFETENSORS_CONVERSION"
"""Environment variable that disables transformers' conversion requests."""


def config_from_dict(description: Mapping[str, Any], where: str) -> PreTrainedConfig:
    """Builds a configuration from its `model_type` and options.

    Args:
        description: As in `image.scratch`, or from `config_to_dict`.
        where: Setting or file it comes from, for messages.

    Raises:
        ConfigError: If the type or an option is unknown to this version of transformers, or has an invalid value.
    """
    options = {name: value for name, value in description.items() if name not in ("model_type", *_CODE)}
    kind = description.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        near = difflib.get_close_matches(str(kind), list(CONFIG_MAPPING.keys()), n=1)
        hint = f"did you mean {near[0]!r}" if near else "see its documentation for the names"
        raise ConfigError(f"{where}: transformers has no model_type {kind!r}; {hint}")
    try:
        known = set(AutoConfig.for_model(kind).to_dict()) | set(CONFIG_MAPPING[kind].attribute_map)
        _refuse_unknown(options, known, f"{where} ({kind})")
        with quiet_transformers():
            return AutoConfig.for_model(kind, **options)
    except (StrictDataclassError, TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{where}: a {kind} cannot be built with {options}: {error}") from error


def config_to_dict(config: PreTrainedConfig) -> dict[str, Any]:
    """Returns what `config_from_dict` needs to build an equal configuration: plain JSON values, no code, no folder."""
    return {name: value for name, value in config.to_dict().items() if name not in (*_CODE, *_PLACES)}


def read_config(model: str, setting: str) -> PreTrainedConfig:
    """Reads the configuration of a model from the hub, its cache, or a folder.

    Cached files are used without network access; an unreachable network times out after seconds, not after the
    library's minutes of retries.

    Raises:
        ConfigError: If it cannot be read, or the model needs its own code.
    """
    content = _find_config(model, setting)
    if content.get("auto_map") and str(content.get("model_type")) not in CONFIG_MAPPING:
        raise ConfigError(
            f"{setting}={model!r} needs its own code, which is never run; choose a model that ships with transformers"
        )
    kind = content.get("model_type")
    if kind is None:
        raise ConfigError(f"{setting}={model!r}: its config.json has no model_type; is it a Hugging Face model?")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise ConfigError(f"{setting}={model!r}: this version of transformers has no model_type {kind!r}; upgrade it")
    options = {name: value for name, value in content.items() if name not in ("model_type", *_CODE)}
    try:
        with quiet_transformers():
            return AutoConfig.for_model(kind, **options)
    except Exception as error:  # each model family validates its options differently
        raise ConfigError(
            f"{setting}={model!r}: its config.json is not a valid {kind} configuration ({first_line(error)}); copy it "
            f"again"
        ) from error


def resolved_commit(model: str) -> str | None:
    """Returns the commit of a hub model's files in the local cache; None for a folder."""
    if Path(model).is_dir():
        return None
    try:
        found = try_to_load_from_cache(model, "config.json")
    except HFValidationError:
        return None
    return Path(found).parent.name if isinstance(found, str) else None


def random_model(config: PreTrainedConfig) -> PreTrainedModel:
    """Builds a model with random weights from torch's global generator; callers fork it."""
    with quiet_transformers():
        return cast("PreTrainedModel", AutoModel.from_config(config))


def pretrained_model(
    model: str, config: PreTrainedConfig, setting: str, *, dtype: torch.dtype = torch.float32
) -> tuple[PreTrainedModel, set[str]]:
    """Loads a model's weights.

    Returns:
        The model, and the names of weights missing in the files, which are random. Callers refuse missing ones they
        need.

    Raises:
        ConfigError: If the weights cannot be found.
        CheckpointError: If they cannot be read or do not fit the configuration.
        ResourceError: If their download was interrupted.
    """
    check_weight_files(model)
    try:
        with quiet_transformers():
            loaded, info = AutoModel.from_pretrained(model, config=config, dtype=dtype, output_loading_info=True)
    except OSError as error:
        if resolved_commit(model) and not _is_cached(model, _WEIGHT_FILES):
            raise ResourceError(
                f"{setting}={model!r}: the download of its weights was interrupted ({first_line(error)}); run the "
                f"same command again"
            ) from error
        raise _not_found(model, setting, error) from error
    except Exception as error:  # each file format has its own reader and exceptions
        raise CheckpointError(f"{setting}={model!r}: {_why_unreadable(error)}") from error
    return cast("PreTrainedModel", loaded), {str(name) for name in info["missing_keys"]}


@contextmanager
def quiet_transformers() -> Generator[None]:
    """Disables output and unneeded network access of transformers while it loads weights.

    Disabled are progress bars, its log (such as the report of missing and unexpected weights, which callers check
    themselves), and its request to a web service to convert weights of hub models without safetensors. Downloads keep
    their progress bars.
    """
    before = set_tqdm_hook(lambda make, given, named: make(*given, **{**named, "disable": True}))
    logger = logging.getLogger("transformers")
    level, conversion = logger.level, os.environ.get(_NO_CONVERSION)
    logger.setLevel(logging.CRITICAL)
    os.environ[_NO_CONVERSION] = "1"
    try:
        yield
    finally:
        set_tqdm_hook(before)
        logger.setLevel(level)
        if conversion is None:
            del os.environ[_NO_CONVERSION]
        else:
            os.environ[_NO_CONVERSION] = conversion


@contextmanager
def skip_weight_init() -> Generator[None]:
    """Leaves weights of newly built models uninitialised: for models whose weights are loaded next.

    Memory that is never written is not resident, and no random numbers are drawn.
    """
    with no_init_weights():
        yield


def check_weights_available(model: str, setting: str) -> None:
    """Checks that a model's weights are in a folder, the cache or on a reachable hub; loads nothing.

    Raises:
        ConfigError: If they are not.
    """
    if Path(model).is_dir():
        if not any(path for pattern in _WEIGHTS for path in Path(model).glob(pattern)):
            raise ConfigError(f"{setting}={model!r} contains no weights, such as model.safetensors; copy it again")
        return
    _refuse_folder(model, setting)
    if not is_available(model, _WEIGHT_FILES):
        raise _not_found(model, setting, None)


def is_available(model: str, names: Sequence[str]) -> bool:
    """Whether the local cache has one of the files of a hub model, or the hub is reachable."""
    try:
        cached = _is_cached(model, names)
    except HFValidationError:
        return False
    return cached or not (constants.HF_HUB_OFFLINE or not _hub_is_reachable())


def _is_cached(model: str, names: Sequence[str]) -> bool:
    return any(isinstance(try_to_load_from_cache(model, name), str) for name in names)


_WEIGHTS = ("*.safetensors", "*.bin")
_WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def meta_model(config: PreTrainedConfig) -> nn.Module:
    """Builds a model on the meta device: shapes without memory."""
    with torch.device("meta"):
        return random_model(config)


def _find_config(model: str, setting: str) -> dict[str, Any]:
    if Path(model).is_absolute() or model.startswith("."):
        if not (Path(model) / "config.json").is_file():
            _refuse_folder(model, setting)
    elif not Path(model).is_dir():
        cached = read_config_file(model, local_files_only=True)
        if cached:
            return cached
        if constants.HF_HUB_OFFLINE or not _hub_is_reachable():
            raise _not_found(model, setting, None)
    content = read_config_file(model)
    if not content:
        raise _not_found(model, setting, None)
    return content


def _refuse_folder(model: str, setting: str) -> None:
    if Path(model).is_absolute() or model.startswith("."):
        raise ConfigError(f"{setting}={model!r} is not a folder with a config.json; give a hub name or such a folder")


def _hub_is_reachable() -> bool:
    """Whether the hub's address responds, even with an HTTP error or an unknown certificate."""
    try:
        urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=_HUB_SECONDS).close()
    except HTTPError:
        return True
    except URLError as error:
        return isinstance(error.reason, ssl.SSLError)
    except OSError:
        return False
    return True


def _not_found(model: str, setting: str, error: Exception | None) -> ConfigError:
    reason = f" ({str(error).splitlines()[0]})" if error else ""
    return ConfigError(
        f"{setting}={model!r} is neither a folder, nor in the local cache, nor can it be downloaded{reason}; "
        f"give a folder with its config.json and weights: {setting}=<folder>"
    )


def _why_unreadable(error: Exception) -> str:
    if "Weights only load failed" in str(error):  # the library's message suggests loading it anyway
        return "its weights are a pickle file with more than tensors, which can run code; use safetensors"
    return f"its weights cannot be read ({first_line(error)}); copy them again"


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or its type if it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]


def _refuse_unknown(options: Mapping[str, Any], known: set[str], where: str) -> None:
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            raise ConfigError(f"{where} has no option {name!r}{f'; did you mean {near[0]!r}' if near else ''}")
