"""A model is a folder: its weights as safetensors, JSON that says how to rebuild it, and tokenizer files.

    model.safetensors             the weights that are this model's own
    model.json                    settings, digests of every file, what else is known
    towers/image/config.json      the vision model's shape
    towers/text/config.json, …    the language model's shape, and its tokenizer

Own are all weights but those of a language model that was taken by name and kept still: these stay where they came
from, and only their name and digest are written (docs/decisions/0040). Nothing in a folder can run code.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from cleft.config import Settings, TextTowerConfig, build_settings, plain_settings
from cleft.errors import CheckpointError, ConfigError, NumericsError
from cleft.towers.adapt import adapt
from cleft.towers.bases import check_base, describe_base, keeps_base
from cleft.towers.dual import DualEncoder
from cleft.towers.folders import read_folder, write_folder
from cleft.towers.hub import describe
from cleft.towers.image import ImageTower, build_image_tower
from cleft.towers.language_model import build_language_model
from cleft.towers.text import TextTower, build_text_tower
from cleft.towers.token_ids import TokenIds
from cleft.towers.weights import listed, misfits, not_finite

WEIGHTS = "model.safetensors"
_IMAGE, _TEXT = Path("towers/image"), Path("towers/text")
_GROUPS = ("images", "image", "text", "loss")
"""Settings that decide an embedding."""
_MADE_BY_COMPILING = "_orig_mod."


def save_model(model: DualEncoder, settings: Settings, folder: Path, *, extra: Mapping[str, Any] | None = None) -> None:
    """Writes a model folder, whole or not at all; other files in it stay.

    Args:
        model: The model.
        settings: What it was built from.
        folder: Where to; a model that is there already is replaced.
        extra: Further facts for people to read in `model.json`, as JSON values.

    Raises:
        NumericsError: If a weight is NaN or infinite; what is on disk stays.
        ResourceError: If the disk is full or cannot be written; what is on disk stays.
        CheckpointError: If the files of a named language model have gone.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in own_weights(model).items()}
    broken = not_finite(tensors)
    if broken:
        raise NumericsError(f"{listed('weights', broken)} hold NaN or infinity, so the model was not saved to {folder}")
    tree = plain_settings(settings)
    text_tower = model.text_tower
    description = {
        "made_by": {name: version(name) for name in ("cleft", "torch", "transformers", "peft")},
        "settings": {group: tree[group] for group in _GROUPS},
        "embed_dim": model.image_projection.out_features,
        "context_length": 0 if model.context is None else len(model.context),
        "base": describe_base(settings.text),
        "trained_tokens": list(text_tower.trained_tokens),
        "token_ids": _describe_ids(text_tower),
        "weights": len(tensors),
        "extra": dict(extra or {}),
    }

    def write(stage: Path) -> None:
        for place, tower in ((_IMAGE, model.image_tower.model), (_TEXT, text_tower.lm.model)):
            (stage / place).mkdir(parents=True)
            (stage / place / "config.json").write_text(json.dumps(describe(tower.config), indent=1))
        text_tower.tokens.save(stage / _TEXT)
        try:
            save_file(tensors, stage / WEIGHTS)
        except SafetensorError as error:
            raise OSError(_number(error), str(error)) from error
        # safetensors makes files that nobody else can read; weights are as readable as what stands beside them.
        shutil.copymode(stage / _IMAGE / "config.json", stage / WEIGHTS)

    write_folder(folder, description, write)


def load_model(folder: Path | str, *, text_model: str | None = None) -> DualEncoder:
    """Rebuilds a model from its folder, on the CPU and in evaluation mode.

    Args:
        folder: What `save_model` wrote, such as a finished run.
        text_model: Where the language model lies now, if it was taken from a folder that has moved.

    Raises:
        CheckpointError: If the folder is no model, is damaged, was made by a newer version, does not fit, or names a
            language model whose weights are others than it was trained with.
        ConfigError: If that language model cannot be found.
    """
    folder = Path(folder).expanduser()
    description = read_folder(folder)
    settings = _read_settings(folder, description)
    shapes = _header(folder / WEIGHTS)
    _refuse_size(folder, shapes, settings.loss.embed_dim)
    base = settings.text.model if text_model is None else text_model
    check_base(folder, description.get("base"), base)
    with torch.random.fork_rng(devices=[]):
        image_tower = _rebuild_image(folder, settings)
        text_tower = _rebuild_text(folder, settings.text, base, description)
        model = DualEncoder(image_tower, text_tower, settings.loss)
    if "context" in shapes:
        model.set_context(torch.zeros(shapes["context"]))
    _fill(model, folder / WEIGHTS, description)
    return model.eval()


def weights_digest(folder: Path | str) -> str:
    """Returns a digest of everything that decides an embedding: weights, base, tokenizer and settings.

    Returns:
        The first 16 hex digits of a SHA-256.

    Raises:
        CheckpointError: If the folder is no model or is damaged.
    """
    description = read_folder(Path(folder).expanduser())
    deciding = {name: description.get(name) for name in ("files", "settings", "base", "trained_tokens", "token_ids")}
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:16]


def own_weights(model: DualEncoder) -> dict[str, Tensor]:
    """Returns the weights and running statistics that a model folder holds, by name."""
    state = {name.replace(_MADE_BY_COMPILING, ""): tensor for name, tensor in model.state_dict().items()}
    return {name: tensor for name, tensor in state.items() if name not in model.base_weights}


def _rebuild_image(folder: Path, settings: Settings) -> ImageTower:
    here = dataclasses.replace(settings.image, model=str(folder.resolve() / _IMAGE), scratch=None, random_weights=True)
    tower = build_image_tower(here, settings.images)
    tower.config = settings.image
    return tower


def _rebuild_text(folder: Path, config: TextTowerConfig, base: str | None, description: Mapping[str, Any]) -> TextTower:
    trained = cast("list[int]", description["trained_tokens"])
    ids = cast("dict[str, int] | None", description.get("token_ids"))
    place = folder.resolve() / _TEXT
    here = dataclasses.replace(config, model=str(place), scratch=None, random_weights=True)
    if keeps_base(config):
        here = dataclasses.replace(config, model=base)
    if ids is None:
        tower = build_text_tower(here, [], tokenizer=place, trained_tokens=trained)
    else:
        lm = build_language_model(here, vocabulary=ids["vocabulary"], pad=ids["end"], end=ids["end"])
        tokens = TokenIds(vocabulary=ids["vocabulary"], max_tokens=config.max_tokens, end=ids["end"])
        tower = TextTower(adapt(lm, here, trained), tokens, here)
    tower.config = config
    return tower


def _fill(model: DualEncoder, path: Path, description: Mapping[str, Any]) -> None:
    """Copies a file's weights into the model; every name, shape and type must agree."""
    given, expected = load_file(path), own_weights(model)
    faults = misfits(given, expected)
    if faults:
        made, now = cast("dict[str, str]", description["made_by"]).get("transformers"), version("transformers")
        raise CheckpointError(
            f"{path} does not fit the model that {path.parent / 'model.json'} describes: "
            f"{faults} (saved with transformers {made}, this is {now}); copy the folder again"
        )
    broken = not_finite(given)
    if broken:
        raise CheckpointError(f"{path}: {listed('with NaN or infinity', broken)}; use an earlier model")
    model.load_state_dict(given, strict=False)


def _number(error: SafetensorError) -> int:
    """The system's number of what stopped a write, which stands in the library's sentence alone."""
    found = re.search(r"os error (\d+)", str(error))
    return int(found[1]) if found else errno.EIO


def _header(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a weights file, without reading a weight."""
    try:
        with safe_open(path, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is no whole safetensors file ({error}); copy it again") from error


def _refuse_size(folder: Path, shapes: Mapping[str, tuple[int, ...]], embed_dim: int) -> None:
    """Refuses a width that the weights do not have before anything of that width is made."""
    projections = [shapes.get(f"{tower}_projection.bias", (embed_dim,)) for tower in ("image", "text")]
    if any(shape != (embed_dim,) for shape in projections):
        raise CheckpointError(f"{folder}: its projections do not have loss.embed_dim={embed_dim}; copy it again")


def _read_settings(folder: Path, description: Mapping[str, Any]) -> Settings:
    where = str(folder / "model.json")
    try:
        groups = cast("dict[str, Any]", description["settings"])
        return build_settings({group: groups[group] for group in _GROUPS}, where=where)
    except ConfigError as error:
        raise CheckpointError(f"{error}; was the file edited, or made by another version of cleft?") from error
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{where} does not say how to rebuild the model ({error}); copy it again") from error


def _describe_ids(tower: TextTower) -> dict[str, int] | None:
    tokens = tower.tokens
    return {"vocabulary": tokens.vocabulary, "end": tokens.pad} if isinstance(tokens, TokenIds) else None
