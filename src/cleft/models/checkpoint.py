"""Saving and loading models: a folder with weights as safetensors, a JSON description and tokenizer files.

    model.safetensors             weights of this model model.json                    settings, digests of every file,
    further facts towers/image/config.json      shape of the vision model towers/text/config.json, …    shape of the
    language model, and its tokenizer

Weights of a frozen language model that was loaded by name are not saved; only its name and digest are
(docs/decisions/0040). Nothing in a folder can run code. A description may claim a model of terabytes, so its size is
compared with the weights before memory is allocated.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any, Concatenate, Final, ParamSpec, TypeVar, cast

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedConfig

from cleft.config import Settings, TextTowerConfig, build_settings, load_run_settings, plain_settings
from cleft.errors import CheckpointError, CleftError, ConfigError
from cleft.files import as_path, file_key
from cleft.models.adapters import adapt
from cleft.models.dual_encoder import DualEncoder
from cleft.models.hub import config_to_dict, first_line, meta_model, read_config, skip_weight_init
from cleft.models.image_tower import ImageTower, build_image_tower, vision_config
from cleft.models.language_model import build_language_model
from cleft.models.layers import compute_in_float32
from cleft.models.methods import METHODS, Method, MethodModel
from cleft.models.model_folder import (
    DESCRIPTION,
    WEIGHTS,
    digest_of,
    find_files,
    peek_description,
    read_folder,
    require,
    write_folder,
)
from cleft.models.state_dict import load_weights, read_header, to_saveable, write_weights
from cleft.models.text_tower import TextTower, build_text_tower, has_external_base
from cleft.models.tokenizer import TokenIdTokenizer
from cleft.privacy import find_path, hidden_name, hide_path, is_hidden
from cleft.strict_json import read_json
from cleft.text_rules import RuleName


def describe_base(config: TextTowerConfig) -> dict[str, str | None] | None:
    """Returns name and digest of the base model for `model.json`; None if the model folder has all weights."""
    if not has_external_base(config):
        return None
    assert config.model is not None
    name = hide_path(config.model) if Path(config.model).is_absolute() else config.model
    return {"name": name, "sha256": _base_digest(Path(config.model))}


def locate_base(folder: Path, base: str | None) -> str | None:
    """Returns the path of a base model, also if it was moved together with the model.

    A study keeps base models next to its runs. If the stored path does not exist, a folder of the same name is searched
    next to the model folder and next to its parents; `check_base` verifies it.

    Args:
        folder: The model folder.
        base: Path or hub name in its settings.
    """
    base = None if base is None else find_path(base)
    if base is None or not (Path(base).is_absolute() or is_hidden(base)) or Path(base).exists():
        return base
    siblings = (parent / hidden_name(base) for parent in folder.resolve().parents)
    return next((str(place) for place in siblings if (place / "config.json").is_file()), base)


def check_base(folder: Path, saved: Mapping[str, Any] | None, base: str | None) -> None:
    """Checks that a base model is the one a model was trained on.

    Args:
        folder: The model folder, for messages.
        saved: Result of `describe_base` when the model was saved.
        base: Current path of the base model.

    Raises:
        CheckpointError: If it is missing or has other weights.
    """
    if saved is None:
        return
    assert base is not None
    name = hidden_name(saved["name"]) if is_hidden(saved["name"]) else str(saved["name"])
    digest = _base_digest(Path(base))
    if saved["sha256"] is not None and digest is None:
        raise CheckpointError(
            f"{folder} has only the trained weights; its language model {name!r} was not found; put a folder "
            f"{Path(name).name!r} with its weights next to {folder.name}, or in Python: "
            f"load_model(folder, text_model=<folder>)"
        )
    if saved["sha256"] is not None and digest != saved["sha256"]:
        raise CheckpointError(
            f"{folder} was trained on the language model {name!r}, but {base!r} has other weights; "
            f"give the same files: load_model(folder, text_model=<folder>)"
        )


def _base_digest(folder: Path) -> str | None:
    """Returns a digest of the weights files of a folder; None if there are none, as for a hub name."""
    files = sorted(path for pattern in ("*.safetensors", "*.bin") for path in folder.glob(pattern))
    if not files:
        return None
    facts = [(path.name, _file_digest(path, file_key(path))) for path in files]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


@functools.lru_cache(maxsize=64)
def _file_digest(path: Path, key: str) -> str:
    """Returns the digest of a weights file in the state of `key`; each file is read once per process."""
    return digest_of(path)


_COUNTS: Final = re.compile(
    r"(num|n)_(\w+_)?(layers?|blocks?|stages?|experts?)|(\w+_)?layers|depths?|num_hidden_groups|inner_group_num"
)
"""Options that are numbers of modules; each module has a weight."""
_SIZES: Final = re.compile(r"\bn_(head|layer|embd)|heads$|hidden_layers|hidden_size|embed_dim|(?<!type_)vocab_size")
"""Options that are at least 1; `type_vocab_size` is 0 without token types, as in DeBERTa."""
_LABELS: Final = 10**6
_SPARE: Final = 10**7
"""Values that a tower may have beyond twice those of the file: buffers, and removed poolers."""

_Folder = TypeVar("_Folder")
_Arguments = ParamSpec("_Arguments")
_Model = TypeVar("_Model")


def check_claimed_size(
    home: Path, place: Path, part: Callable[[PreTrainedConfig], PreTrainedConfig] = lambda config: config
) -> None:
    """Refuses a tower whose configuration claims to be much larger than the weights next to it.

    Args:
        home: Folder of the weights.
        place: Of the tower's `config.json` in it.
        part: Returns the part of a configuration that is built.

    Raises:
        CheckpointError: If it does.
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
            raise CheckpointError(
                f"{where}: {name}={value} exceeds the number of weights in {WEIGHTS}; copy the model again"
            )
    try:
        claimed = part(read_config(str(home.resolve() / place), "the tower"))
        _check_switches(claimed, described, where)
        model = meta_model(claimed)
        size = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    except CheckpointError:
        raise
    except Exception as error:  # each model family raises other exceptions for inconsistent shapes
        raise CheckpointError(
            f"{where} is not a valid model configuration ({first_line(error)}); copy the model again"
        ) from error
    held = sum(math.prod(shape) for shape in shapes.values())
    if size > 2 * held + _SPARE:
        raise CheckpointError(
            f"{where} describes a tower of {size:,} parameters, but {WEIGHTS} has {held:,}; copy the model again"
        )


def check_claimed_settings(tree: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Refuses settings of adapters, decoders and heads that are larger than any weight.

    Raises:
        CheckpointError: If there is one; names it.
    """
    most = max(len(shapes), 1000, *(size for shape in shapes.values() for size in shape))
    for group, settings in tree.items():
        for name in _WIDTHS:
            value = cast("dict[str, Any]", settings).get(name) if isinstance(settings, dict) else None
            if isinstance(value, int | float) and value > most:
                raise CheckpointError(
                    f"{where}: {group}.{name}={value} is larger than any weight ({most}); copy the model again"
                )


_WIDTHS: Final = ("rank", "prefix_length", "decoder_blocks", "decoder_dim", "prototypes", "depth", "frozen_layers")


def wrap_load_errors(
    load: Callable[Concatenate[_Folder, _Arguments], _Model],
) -> Callable[Concatenate[_Folder, _Arguments], _Model]:
    """Converts any exception of a library during loading to a `CheckpointError` that names the folder."""

    @functools.wraps(load)
    def wrapped(folder: _Folder, *arguments: _Arguments.args, **options: _Arguments.kwargs) -> _Model:
        try:
            return load(folder, *arguments, **options)
        except (CleftError, MemoryError):
            raise
        except BaseException as error:
            # A panic in a Rust library, such as tokenizers, is not an Exception.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise CheckpointError(
                f"{folder} is not a loadable model ({type(error).__name__}: {first_line(error)}); copy the model again"
            ) from error

    return wrapped


def _check_switches(claimed: PreTrainedConfig, described: Mapping[str, Any], where: Path) -> None:
    """Refuses values other than true or false where the family's default is a boolean."""
    for name, default in type(claimed)().to_dict().items():
        value = described.get(name, default)
        if isinstance(default, bool) and not isinstance(value, bool | None):
            raise CheckpointError(f"{where}: {name} must be true or false, found {value!r:.40}; copy the model again")


def _numbers(tree: Mapping[str, Any]) -> Iterator[tuple[str, int | float]]:
    """Yields every number of a configuration with its name; the sum for a list of numbers."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _numbers(cast("dict[str, Any]", value))
        elif isinstance(value, list):
            found = [item for item in cast("list[Any]", value) if isinstance(item, int | float)]
            if found:
                yield name, sum(found)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, value


IMAGE = Path("towers/image")
_TEXT = Path("towers/text")
_GROUPS = ("images", "image", "text", "loss")
"""Groups of settings that decide an embedding with every method; some methods have a further group."""
_COMPILED_PREFIX = "_orig_mod."


def save_model(model: MethodModel, settings: Settings, folder: Path, *, extra: Mapping[str, Any] | None = None) -> None:
    """Saves a model folder, completely or not at all; other files in it are kept.

    Args:
        model: The model.
        settings: Settings it was built from.
        folder: Target; a model that is already there is replaced.
        extra: Further facts for `model.json`, as JSON values.

    Raises:
        NumericsError: If a weight is NaN or infinite; the disk is unchanged.
        ResourceError: If the disk is full or not writable; the disk is unchanged.
        CheckpointError: If the files of a named language model are missing.
    """
    tensors = to_saveable(saved_weights(model), folder)
    tree = plain_settings(settings)
    text_tower = model.text_tower
    tree["text"]["normalisation"] = text_tower.rule
    description = {
        "made_by": library_versions(),
        "method": settings.method,
        "settings": {group: tree[group] for group in (*_GROUPS, *METHODS[settings.method].settings_groups)},
        "embed_dim": settings.loss.embed_dim,
        "context_length": 0 if model.context is None else len(model.context),
        "base": describe_base(settings.text),
        "trained_tokens": list(text_tower.trained_tokens),
        "token_ids": _describe_ids(text_tower),
        "weights": len(tensors),
        "extra": dict(extra or {}),
    }

    def write(stage: Path) -> None:
        for place, tower in ((IMAGE, model.image_tower.model), (_TEXT, text_tower.lm.model)):
            write_config(tower.config, stage / place)
        text_tower.tokenizer.save(stage / _TEXT)
        write_weights(tensors, stage / WEIGHTS)
        # safetensors creates files readable only by their owner; weights get the permissions of the other files.
        shutil.copymode(stage / IMAGE / "config.json", stage / WEIGHTS)

    write_folder(folder, description, write)


def load_model(folder: Path | str, *, text_model: Path | str | None = None, float32: bool = False) -> DualEncoder:
    """Loads a model that embeds images and texts from its folder, on the CPU in evaluation mode.

    Args:
        folder: A folder written by `save_model`, such as a finished run.
        text_model: Current folder of the language model, if it was loaded from a folder that has moved.
        float32: Whether 16-bit weights become float32, as training needs. Otherwise they stay in 16 bits in memory. The
            model computes in float32 and gives the same values in both cases.

    Raises:
        CheckpointError: If the folder is not a model, is damaged, was made by a newer version, does not fit, has no
            text tower, or its language model has other weights than in training.
        ConfigError: If that language model cannot be found.
    """
    folder = as_path(folder, "folder")
    check_joint_space(folder)
    model = load_method_model(folder, text_model=text_model, float32=float32)
    assert isinstance(model, DualEncoder)
    return model


@wrap_load_errors
def load_method_model(folder: Path, *, text_model: Path | str | None = None, float32: bool = False) -> MethodModel:
    """Loads a model of any method that trains on texts, including MRM's decoders; otherwise as `load_model`."""
    description, home = read_folder(folder), find_files(folder)
    method = _method_of(folder, description)
    settings = read_settings(folder, description, (*_GROUPS, *method.settings_groups))
    require(description, ("trained_tokens", "made_by"), str(folder / DESCRIPTION))
    if settings.text.normalisation == "auto":
        rule = _rule_before(folder, description)
        settings = dataclasses.replace(settings, text=dataclasses.replace(settings.text, normalisation=rule))
    shapes = read_header(home / WEIGHTS)
    _refuse_size(folder, shapes, settings)
    check_claimed_settings(description["settings"], shapes, str(folder / DESCRIPTION))
    base = locate_base(folder, settings.text.model) if text_model is None else str(text_model)
    check_base(folder, description.get("base"), base)
    with torch.random.fork_rng(devices=[]):
        with skip_weight_init():
            image_tower = rebuild_image_tower(home, settings, regions=method.uses_regions)
        with nullcontext() if has_external_base(settings.text) else skip_weight_init():
            text_tower = _rebuild_text(home, settings.text, base, description)
        with skip_weight_init():
            model = method.build(image_tower, text_tower, settings)
    if "context" in shapes and isinstance(model, DualEncoder):
        model.set_context(torch.zeros(shapes["context"]))
    weights = load_file(home / WEIGHTS, backend="pread")
    halves = load_weights(model, weights, saved_weights(model), home / WEIGHTS, description["made_by"])
    compute_in_float32(model, halves, stored=not float32)
    return model.eval()


def check_joint_space(folder: Path) -> None:
    """Refuses a model folder without joint space of images and texts, before anything large is read.

    Raises:
        CheckpointError: If there is none; `cleft classify` can use such a model.
    """
    description = peek_description(folder)
    if is_image_only(description):
        raise CheckpointError(
            f"{folder} has an image tower but no text tower, so there is no zero-shot classification and no prompt "
            f"context; cleft classify trains a linear probe on it or fine-tunes it"
        )
    method = METHODS.get(str(description.get("method", "cleft")))
    if method is not None and not method.joint_space:
        raise CheckpointError(
            f"{folder} was trained by {method.title}, which has no joint space of images and texts, so there is no "
            f"zero-shot classification and no prompt context; cleft classify trains a linear probe on its image tower "
            f"or fine-tunes it"
        )


def has_joint_space(description: Mapping[str, Any]) -> bool:
    """Whether a `model.json` describes a model that embeds images and texts in one space."""
    method = METHODS.get(str(description.get("method", "cleft")))
    return method is not None and method.joint_space


def is_image_only(description: Mapping[str, Any]) -> bool:
    """Whether a `model.json` describes a model without text tower."""
    return description.get("method") == "image-only"


def weights_digest(folder: Path | str) -> str:
    """Returns a digest of everything that decides an embedding or a prediction: weights, base, tokenizer, settings.

    Returns:
        The first 16 hex digits of a SHA-256.

    Raises:
        CheckpointError: If the folder is not a model or is damaged.
    """
    description = read_folder(Path(folder).expanduser())
    deciding = {name: description.get(name) for name in ("files", "settings", "base", "trained_tokens", "token_ids")}
    deciding |= {name: description[name] for name in ("head", "tower_weights") if name in description}
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:16]


def saved_weights(model: MethodModel) -> dict[str, Tensor]:
    """Returns the weights and buffers that are saved in a model folder, by name."""
    state = {name.replace(_COMPILED_PREFIX, ""): tensor for name, tensor in model.state_dict().items()}
    return {name: tensor for name, tensor in state.items() if name not in model.base_weights}


def rebuild_image_tower(home: Path, settings: Settings, *, regions: bool = False) -> ImageTower:
    """Builds the image tower described in a folder with random weights; callers fork torch's generator."""
    check_claimed_size(home, IMAGE, vision_config)
    here = dataclasses.replace(settings.image, model=str(home.resolve() / IMAGE), scratch=None, random_weights=True)
    tower = build_image_tower(here, settings.images, regions=regions)
    tower.config = settings.image
    return tower


def _rebuild_text(home: Path, config: TextTowerConfig, base: str | None, description: Mapping[str, Any]) -> TextTower:
    trained = cast("list[int]", description["trained_tokens"])
    ids = cast("dict[str, int] | None", description.get("token_ids"))
    place = home.resolve() / _TEXT
    here = dataclasses.replace(config, model=str(place), scratch=None, random_weights=True)
    if has_external_base(config):
        here = dataclasses.replace(config, model=base)
    else:
        check_claimed_size(home, _TEXT)
    if ids is None:
        tower = build_text_tower(here, [], tokenizer=place, trained_tokens=trained, verify=has_external_base(config))
    else:
        lm = build_language_model(here, vocabulary=ids["vocabulary"], pad=ids["end"], eos=ids["end"])
        tokens = TokenIdTokenizer(vocabulary=ids["vocabulary"], max_tokens=config.max_tokens, eos=ids["end"])
        tower = TextTower(adapt(lm, here, trained), tokens, here)
    tower.config = config
    return tower


def _rule_before(folder: Path, description: Mapping[str, Any]) -> RuleName:
    """Returns the text normalisation of an old folder that does not record it: that of its release or training."""
    extra: Any = description.get("extra")
    origin: Any = cast("dict[str, Any]", extra).get("imported") if isinstance(extra, dict) else None
    if isinstance(origin, dict):
        title = str(cast("dict[str, Any]", origin).get("method", ""))
        return "release-1" if not title or title.endswith(("GLoRIA", "MGCA", "MGCA's repository")) else "nfc-1"
    try:
        rule = load_run_settings(folder).text.normalisation
    except ConfigError:
        return "words-1"  # a model folder without settings: it was trained on captions
    return "words-1" if rule == "auto" else rule


def _refuse_size(folder: Path, shapes: Mapping[str, tuple[int, ...]], settings: Settings) -> None:
    """Refuses dimensions that the weights do not have before anything of that size is built."""
    ends = [name for name in shapes if "_projection." in name and len(shapes[name]) == 2]
    hidden = settings.loss.hidden_dim
    for tower in ("image", "text"):
        layers = [shapes[name] for name in sorted(ends) if name.startswith(f"{tower}_projection.")]
        if layers and layers[-1][0] != settings.loss.embed_dim:
            raise CheckpointError(
                f"{folder}: its projections do not have loss.embed_dim={settings.loss.embed_dim}; copy it again"
            )
        if len(layers) == 2 and hidden not in (None, layers[0][0]):
            raise CheckpointError(f"{folder}: its projections do not have loss.hidden_dim={hidden}; copy it again")


def _method_of(folder: Path, description: Mapping[str, Any]) -> Method:
    name = description.get("method", "cleft")
    if name not in METHODS:
        raise CheckpointError(
            f"{folder / DESCRIPTION} names the method {name!r}, which this version of cleft does not have; upgrade "
            f"cleft"
        )
    return METHODS[name]


def read_settings(folder: Path, description: Mapping[str, Any], groups: Sequence[str]) -> Settings:
    """Builds the settings in a `model.json`; groups that it lacks are defaults.

    Raises:
        CheckpointError: If one of `groups` is missing or has settings that this version does not know.
    """
    where = str(folder / DESCRIPTION)
    require(description, ("settings",), where)
    tree = cast("dict[str, Any]", description["settings"])
    require(tree, groups, f"{where}: settings")
    method = description.get("method", "cleft")
    try:
        return build_settings({"method": method, **{group: tree[group] for group in groups}}, where=where)
    except ConfigError as error:
        raise CheckpointError(f"{error}; was the file edited, or written by another version of cleft?") from error


def library_versions() -> dict[str, str]:
    """Returns the versions of the libraries that decide the format of a folder."""
    return {name: version(name) for name in ("cleft", "torch", "transformers", "peft")}


def write_config(config: PreTrainedConfig, folder: Path) -> None:
    """Writes the configuration of a tower into a new folder."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config_to_dict(config), indent=1))


def _describe_ids(tower: TextTower) -> dict[str, int] | None:
    tokens = tower.tokenizer
    return {"vocabulary": tokens.vocabulary, "end": tokens.pad} if isinstance(tokens, TokenIdTokenizer) else None
