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
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedConfig

from cleft.config import Settings, TextTowerConfig, build_settings, load_run_settings, plain_settings
from cleft.errors import CheckpointError, ConfigError
from cleft.files import as_path
from cleft.models.adapters import adapt
from cleft.models.bases import base_now, check_base, describe_base, keeps_base
from cleft.models.dual_encoder import DualEncoder
from cleft.models.hub import describe, without_initial_weights
from cleft.models.image_tower import ImageTower, build_image_tower, vision_config
from cleft.models.language_model import build_language_model
from cleft.models.layers import compute_in_float32
from cleft.models.methods import METHODS, Method, MethodModel
from cleft.models.model_folder import (
    DESCRIPTION,
    WEIGHTS,
    home_of,
    peek_description,
    read_folder,
    require,
    write_folder,
)
from cleft.models.scale import check_scale, check_settings_scale, reports_damage
from cleft.models.state_dict import fill, read_header, saveable, write_weights
from cleft.models.text_tower import TextTower, build_text_tower
from cleft.models.tokenizer import TokenIds
from cleft.text_rules import RuleName

IMAGE = Path("towers/image")
_TEXT = Path("towers/text")
_GROUPS = ("images", "image", "text", "loss")
"""Settings that decide an embedding, whatever the method; some methods have a group of their own."""
_MADE_BY_COMPILING = "_orig_mod."


def save_model(model: MethodModel, settings: Settings, folder: Path, *, extra: Mapping[str, Any] | None = None) -> None:
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
    tensors = saveable(own_weights(model), folder)
    tree = plain_settings(settings)
    text_tower = model.text_tower
    tree["text"]["normalisation"] = text_tower.rule
    description = {
        "made_by": made_by(),
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
            write_shape(tower.config, stage / place)
        text_tower.tokens.save(stage / _TEXT)
        write_weights(tensors, stage / WEIGHTS)
        # safetensors makes files that nobody else can read; weights are as readable as what stands beside them.
        shutil.copymode(stage / IMAGE / "config.json", stage / WEIGHTS)

    write_folder(folder, description, write)


def load_model(folder: Path | str, *, text_model: Path | str | None = None, float32: bool = False) -> DualEncoder:
    """Rebuilds a model from its folder, on the CPU and in evaluation mode.

    Args:
        folder: What `save_model` wrote, such as a finished run.
        text_model: Where the language model lies now, if it was taken from a folder that has moved.
        float32: Whether weights that the folder holds in 16 bits become float32, as training needs. Otherwise they stay
            16 bits in memory. The model computes in float32 and gives the same values in both cases.

    Raises:
        CheckpointError: If the folder is no model, is damaged, was made by a newer version, does not fit, reads no
            texts, or names a language model whose weights are others than it was trained with.
        ConfigError: If that language model cannot be found.
    """
    folder = as_path(folder, "folder")
    check_reads_texts(folder)
    model = load_trained(folder, text_model=text_model, float32=float32)
    assert isinstance(model, DualEncoder)
    return model


@reports_damage
def load_trained(folder: Path, *, text_model: Path | str | None = None, float32: bool = False) -> MethodModel:
    """Rebuilds a model of any method that learned from texts, MRM's with its decoders too; else as `load_model`."""
    description, home = read_folder(folder), home_of(folder)
    method = _method_of(folder, description)
    settings = read_settings(folder, description, (*_GROUPS, *method.settings_groups))
    require(description, ("trained_tokens", "made_by"), str(folder / DESCRIPTION))
    if settings.text.normalisation == "auto":
        rule = _rule_before(folder, description)
        settings = dataclasses.replace(settings, text=dataclasses.replace(settings.text, normalisation=rule))
    shapes = read_header(home / WEIGHTS)
    _refuse_size(folder, shapes, settings)
    check_settings_scale(description["settings"], shapes, str(folder / DESCRIPTION))
    base = base_now(folder, settings.text.model) if text_model is None else str(text_model)
    check_base(folder, description.get("base"), base)
    with torch.random.fork_rng(devices=[]):
        with without_initial_weights():
            image_tower = rebuild_image(home, settings, regions=method.uses_regions)
        with nullcontext() if keeps_base(settings.text) else without_initial_weights():
            text_tower = _rebuild_text(home, settings.text, base, description)
        with without_initial_weights():
            model = method.build(image_tower, text_tower, settings)
    if "context" in shapes and isinstance(model, DualEncoder):
        model.set_context(torch.zeros(shapes["context"]))
    weights = load_file(home / WEIGHTS, backend="pread")
    halves = fill(model, weights, own_weights(model), home / WEIGHTS, description["made_by"])
    compute_in_float32(model, halves, stored=not float32)
    return model.eval()


def check_reads_texts(folder: Path) -> None:
    """Refuses a model folder without a text tower, before anything large is read.

    Raises:
        CheckpointError: If there is none; `cleft classify` asks such a model.
    """
    description = peek_description(folder)
    if is_image_only(description):
        raise CheckpointError(
            f"{folder} holds an image tower without a text tower: it reads no sentences, so there is no zero-shot "
            f"classification and no prompt context; cleft classify trains a linear probe on it, or all of it"
        )
    method = METHODS.get(str(description.get("method", "cleft")))
    if method is not None and not method.joint_space:
        raise CheckpointError(
            f"{folder} was trained by {method.title}, which restores what is hidden of images and reports and brings "
            f"them into no common space, so there is no zero-shot classification and no prompt context; cleft classify "
            f"trains a linear probe on its image tower, or all of it"
        )


def compares_texts(description: Mapping[str, Any]) -> bool:
    """Whether a `model.json` describes a model that brings images and texts into one space."""
    method = METHODS.get(str(description.get("method", "cleft")))
    return method is not None and method.joint_space


def is_image_only(description: Mapping[str, Any]) -> bool:
    """Whether a `model.json` describes a model that reads images alone."""
    return description.get("method") == "image-only"


def weights_digest(folder: Path | str) -> str:
    """Returns a digest of everything that decides an embedding or an answer: weights, base, tokenizer and settings.

    Returns:
        The first 16 hex digits of a SHA-256.

    Raises:
        CheckpointError: If the folder is no model or is damaged.
    """
    description = read_folder(Path(folder).expanduser())
    deciding = {name: description.get(name) for name in ("files", "settings", "base", "trained_tokens", "token_ids")}
    deciding |= {name: description[name] for name in ("head", "tower_weights") if name in description}
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:16]


def own_weights(model: MethodModel) -> dict[str, Tensor]:
    """Returns the weights and running statistics that a model folder holds, by name."""
    state = {name.replace(_MADE_BY_COMPILING, ""): tensor for name, tensor in model.state_dict().items()}
    return {name: tensor for name, tensor in state.items() if name not in model.base_weights}


def rebuild_image(home: Path, settings: Settings, *, regions: bool = False) -> ImageTower:
    """Builds the image tower a folder describes, its weights still random; callers fork torch's generator."""
    check_scale(home, IMAGE, vision_config)
    here = dataclasses.replace(settings.image, model=str(home.resolve() / IMAGE), scratch=None, random_weights=True)
    tower = build_image_tower(here, settings.images, regions=regions)
    tower.config = settings.image
    return tower


def _rebuild_text(home: Path, config: TextTowerConfig, base: str | None, description: Mapping[str, Any]) -> TextTower:
    trained = cast("list[int]", description["trained_tokens"])
    ids = cast("dict[str, int] | None", description.get("token_ids"))
    place = home.resolve() / _TEXT
    here = dataclasses.replace(config, model=str(place), scratch=None, random_weights=True)
    if keeps_base(config):
        here = dataclasses.replace(config, model=base)
    else:
        check_scale(home, _TEXT)
    if ids is None:
        tower = build_text_tower(here, [], tokenizer=place, trained_tokens=trained, verify=keeps_base(config))
    else:
        lm = build_language_model(here, vocabulary=ids["vocabulary"], pad=ids["end"], end=ids["end"])
        tokens = TokenIds(vocabulary=ids["vocabulary"], max_tokens=config.max_tokens, end=ids["end"])
        tower = TextTower(adapt(lm, here, trained), tokens, here)
    tower.config = config
    return tower


def _rule_before(folder: Path, description: Mapping[str, Any]) -> RuleName:
    """The text rule of a folder that was written before rules were recorded: its release's, or that of its training."""
    extra: Any = description.get("extra")
    origin: Any = cast("dict[str, Any]", extra).get("imported") if isinstance(extra, dict) else None
    if isinstance(origin, dict):
        title = str(cast("dict[str, Any]", origin).get("method", ""))
        return "release-1" if not title or title.endswith(("GLoRIA", "MGCA", "MGCA's repository")) else "nfc-1"
    try:
        rule = load_run_settings(folder).text.normalisation
    except ConfigError:
        return "words-1"  # a model folder without settings: captions are its usual texts
    return "words-1" if rule == "auto" else rule


def _refuse_size(folder: Path, shapes: Mapping[str, tuple[int, ...]], settings: Settings) -> None:
    """Refuses widths that the weights do not have before anything of that width is made."""
    ends = [name for name in shapes if "_projection." in name and len(shapes[name]) == 2]
    hidden = settings.loss.hidden_width
    for tower in ("image", "text"):
        layers = [shapes[name] for name in sorted(ends) if name.startswith(f"{tower}_projection.")]
        if layers and layers[-1][0] != settings.loss.embed_dim:
            raise CheckpointError(
                f"{folder}: its projections do not have loss.embed_dim={settings.loss.embed_dim}; copy it again"
            )
        if len(layers) == 2 and hidden not in (None, layers[0][0]):
            raise CheckpointError(f"{folder}: its projections do not have loss.hidden_width={hidden}; copy it again")


def _method_of(folder: Path, description: Mapping[str, Any]) -> Method:
    name = description.get("method", "cleft")
    if name not in METHODS:
        raise CheckpointError(
            f"{folder / DESCRIPTION} names the method {name!r}, which this version of cleft does not know; upgrade "
            f"cleft"
        )
    return METHODS[name]


def read_settings(folder: Path, description: Mapping[str, Any], groups: Sequence[str]) -> Settings:
    """Builds the settings a `model.json` holds; groups that it has not are defaults.

    Raises:
        CheckpointError: If one of `groups` is missing, or holds what this version does not know.
    """
    where = str(folder / DESCRIPTION)
    require(description, ("settings",), where)
    tree = cast("dict[str, Any]", description["settings"])
    require(tree, groups, f"{where}: settings")
    method = description.get("method", "cleft")
    try:
        return build_settings({"method": method, **{group: tree[group] for group in groups}}, where=where)
    except ConfigError as error:
        raise CheckpointError(f"{error}; was the file edited, or made by another version of cleft?") from error


def made_by() -> dict[str, str]:
    """Versions of what a folder's form depends on."""
    return {name: version(name) for name in ("cleft", "torch", "transformers", "peft")}


def write_shape(config: PreTrainedConfig, folder: Path) -> None:
    """Writes the shape of a tower into a new folder."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(describe(config), indent=1))


def _describe_ids(tower: TextTower) -> dict[str, int] | None:
    tokens = tower.tokens
    return {"vocabulary": tokens.vocabulary, "end": tokens.pad} if isinstance(tokens, TokenIds) else None
