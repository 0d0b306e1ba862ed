"""Image-only models: an image tower, with or without a linear classification head.

A folder has the tower, the head, or both. A linear probe does not copy its tower: its folder has the head and the path
and digest of the folder of the tower it was trained on.

Shapes: `B` images, `C` classes, `D` width of the tower.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import Tensor, nn

from cleft.config import ImageTowerConfig, Settings, plain_settings
from cleft.errors import CheckpointError, ConfigError
from cleft.models.checkpoint import (
    IMAGE,
    check_claimed_settings,
    is_image_only,
    library_versions,
    read_settings,
    rebuild_image_tower,
    weights_digest,
    wrap_load_errors,
    write_config,
)
from cleft.models.dual_encoder import l2_normalise
from cleft.models.hub import skip_weight_init
from cleft.models.image_tower import ImageTower, build_image_tower
from cleft.models.layers import compute_in_float32
from cleft.models.model_folder import (
    DESCRIPTION,
    WEIGHTS,
    HeadInfo,
    find_files,
    head_info,
    peek_description,
    read_folder,
    require,
    write_folder,
)
from cleft.models.state_dict import load_weights, read_header, to_saveable, write_weights
from cleft.privacy import find_path, hidden_name, is_hidden, path_from
from cleft.types import ImageSpec

_GROUPS = ("images", "image")
"""Groups of settings that decide a feature."""


class ImageClassifier(nn.Module):
    """An image tower, with or without a linear head.

    Args:
        image_tower: Image encoder.
        head: From features to logits `[B, C]`; None without a trained classifier.
        head_info: Meaning of the head's outputs.

    Raises:
        ValueError: If there is a head without `head_info`, or it does not fit it or the tower.
    """

    def __init__(
        self, image_tower: ImageTower, head: nn.Linear | None = None, head_info: HeadInfo | None = None
    ) -> None:
        super().__init__()
        wanted = None if head_info is None else (image_tower.width, len(head_info.classes))
        if wanted != (None if head is None else (head.in_features, head.out_features)):
            raise ValueError(f"the head {head} does not fit a tower of width {image_tower.width} and {head_info}")
        self.image_tower = image_tower
        self.head = head
        self.head_info = head_info

    @property
    def image_spec(self) -> ImageSpec:
        """How images must be prepared."""
        return self.image_tower.spec

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits `[B, C]` float32 of gray images `[B, 1, H, W]` uint8."""
        return self.logits_of(self.encode_image_features(images))

    def encode_image_features(self, images: Tensor) -> Tensor:
        """Returns features `[B, D]` float32 of gray images `[B, 1, H, W]` uint8."""
        return self.image_tower.encode(images).float()

    def logits_of(self, features: Tensor) -> Tensor:
        """Returns logits `[B, C]` float32 of features `[B, D]`.

        Raises:
            CheckpointError: If the model has no head.
        """
        if self.head is None:
            raise CheckpointError("this model has no head; cleft classify trains one")
        # In half precision different images may get equal logits.
        with torch.autocast(features.device.type, enabled=False):
            logits = self.head(features.float())
            return l2_normalise(logits) if self.head_info is not None and self.head_info.logits == "unit" else logits


def build_image_classifier(settings: Settings) -> ImageClassifier:
    """Builds the image tower described by the settings; `settings.seed` decides all random weights.

    Raises:
        ConfigError: If it cannot be found or built.
        CheckpointError: If its files cannot be read or do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(settings.seed)  # the CPU's alone
        return ImageClassifier(build_image_tower(settings.image, settings.images))


def save_image_classifier(
    model: ImageClassifier,
    settings: Settings,
    folder: Path,
    *,
    tower: Path | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Saves a model folder, completely or not at all; other files in it are kept.

    Args:
        model: The model.
        settings: Settings its tower was built from.
        folder: Target.
        tower: Folder of its unchanged tower; then only the head is saved.
        extra: Further facts for `model.json`, as JSON values.

    Raises:
        NumericsError: If a weight is NaN or infinite; the disk is unchanged.
        ResourceError: If the disk is full or not writable; the disk is unchanged.
        CheckpointError: If `tower` is not a model.
    """
    tensors = to_saveable(_weights(model, ("head.",) if tower else ("",)), folder)
    tree = plain_settings(settings)
    description: dict[str, Any] = {
        "made_by": library_versions(),
        "method": "image-only",
        "settings": {group: tree[group] for group in _GROUPS},
        "weights": len(tensors),
        "extra": dict(extra or {}),
    }
    if model.head_info is not None:
        description["head"] = asdict(model.head_info)
    if tower is not None:
        description["tower"] = path_from(folder, tower)
        description["tower_weights"] = weights_digest(tower)

    def write(stage: Path) -> None:
        write_config(model.image_tower.model.config, stage / IMAGE)
        write_weights(tensors, stage / WEIGHTS)
        shutil.copymode(stage / IMAGE / "config.json", stage / WEIGHTS)

    write_folder(folder, description, write)


@wrap_load_errors
def load_image_classifier(
    folder: Path | str, *, tower: Path | None = None, train: bool = False, reading: ImageTowerConfig | None = None
) -> ImageClassifier:
    """Loads the image part of a model, on the CPU in evaluation mode.

    Args:
        folder: Any model folder: of an image tower, of a probe, or of both towers, whose text tower is not read.
        tower: Current folder of the tower of a probe, if it has moved.
        train: Whether the tower is trainable, whatever its settings; then all weights are float32.
        reading: Settings whose `pooling` and `resize` replace those of the tower.

    Raises:
        ConfigError: If the tower does not support this pooling or size.
        CheckpointError: If the folder is not a model, is damaged, or does not fit; or the tower of a probe is missing
            or another one.
    """
    folder = Path(folder).expanduser()
    description, home = read_folder(folder), find_files(folder)
    require(description, ("made_by",), str(folder / DESCRIPTION))
    facts = head_info(description)
    check_claimed_settings(description.get("settings", {}), read_header(home / WEIGHTS), str(folder / DESCRIPTION))
    with torch.random.fork_rng(devices=[]):
        if "tower" in description:
            reading = read_settings(folder, description, _GROUPS).image  # as its head was trained
            place = _find_tower(folder, description, tower)
            base = load_image_classifier(place, train=train, reading=reading).image_tower
        else:
            settings = read_settings(folder, description, _GROUPS)
            image = settings.image if reading is None else override_reading(settings.image, reading)
            with skip_weight_init():
                base = rebuild_image_tower(home, replace(settings, image=replace(image, train=train or image.train)))
        head = None if facts is None else nn.Linear(base.width, len(facts.classes))
    model = ImageClassifier(base, head, facts)
    compute_in_float32(model, _fill(model, home, description), stored=not train)
    return model.eval()


def read_tower_settings(folder: Path) -> ImageTowerConfig:
    """Returns the image settings of a model folder."""
    return read_settings(folder, peek_description(folder), _GROUPS).image


def override_reading(made: ImageTowerConfig, wanted: ImageTowerConfig) -> ImageTowerConfig:
    """Returns the settings of a tower with another pooling and input size.

    Raises:
        ConfigError: If it has decoder blocks, whose mean is its feature with any pooling.
    """
    if made.decoder_blocks and made.pooling != wanted.pooling:
        raise ConfigError(
            f"image.pooling={wanted.pooling} has no effect with image.decoder_blocks={made.decoder_blocks}, whose "
            f"mean is the feature; leave it out"
        )
    return replace(made, pooling=wanted.pooling, resize=wanted.resize)


def find_tower_folder(folder: Path) -> Path:
    """Returns the folder with the tower of a model; for a probe it is another folder.

    Raises:
        CheckpointError: If the tower of a probe is missing or another one.
    """
    description = peek_description(folder)
    return _find_tower(folder, description, None) if "tower" in description else folder


def _fill(model: ImageClassifier, home: Path, description: Mapping[str, Any]) -> list[str]:
    path = home / WEIGHTS
    read_header(path)
    expected = _weights(model, ("head.",) if "tower" in description else ("",))
    with safe_open(path, "pt", backend="pread") as file:
        # Text tower, projections and temperature are not read.
        names = [name for name in file.keys() if is_image_only(description) or name.startswith("image_tower.")]
        given = {name: file.get_tensor(name) for name in names}
    return load_weights(model, given, expected, path, cast("Mapping[str, str]", description["made_by"]))


def _weights(model: ImageClassifier, beginnings: Sequence[str]) -> dict[str, Tensor]:
    state = {name.replace("_orig_mod.", ""): tensor for name, tensor in model.state_dict().items()}
    return {name: tensor for name, tensor in state.items() if name.startswith(tuple(beginnings))}


def _find_tower(folder: Path, description: Mapping[str, Any], moved: Path | None) -> Path:
    """Returns the folder of a probe's tower, if it has the weights the probe was trained on."""
    way = find_path(str(description["tower"]))
    way = f"../{hidden_name(way)}" if is_hidden(way) else way  # of another user: perhaps a sibling folder
    place = Path(os.path.normpath(folder.resolve() / way)) if moved is None else moved
    remedy = "copy it back, or give its folder: load_image_classifier(folder, tower=<folder>)"
    found = peek_description(place)
    if not found or "tower" in found:
        raise CheckpointError(f"{folder} has only a head; its tower was in {place}, where there is none; {remedy}")
    if weights_digest(place) != description.get("tower_weights"):
        raise CheckpointError(f"{folder} was trained on another tower than the one in {place}; {remedy}")
    return place
