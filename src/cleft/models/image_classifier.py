"""A model that reads images and no texts: an image tower, and on top of it perhaps a linear head that names classes.

A folder holds the tower, the head, or both. A linear probe leaves its tower where it lies: its folder holds the head,
and names the folder and the digest of the tower it was trained on.

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
"""Settings that decide a feature."""


class ImageClassifier(nn.Module):
    """An image tower, with or without a head.

    Args:
        image_tower: Reads images.
        head: From features to logits `[B, C]`; None where nothing was learned to be told apart.
        facts: What the head's outputs stand for.

    Raises:
        ValueError: If there is a head without its facts, or it does not fit them or the tower.
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
        # Half precision makes equal logits of unlike images.
        with torch.autocast(features.device.type, enabled=False):
            logits = self.head(features.float())
            return l2_normalise(logits) if self.head_info is not None and self.head_info.logits == "unit" else logits


def build_image_classifier(settings: Settings) -> ImageClassifier:
    """Builds the image tower the settings describe; `settings.seed` decides all random weights.

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
    """Writes a model folder, whole or not at all; other files in it stay.

    Args:
        model: The model.
        settings: What its tower was built from.
        folder: Where to.
        tower: The folder whose tower it has, unchanged; then only the head is written.
        extra: Further facts for people to read in `model.json`, as JSON values.

    Raises:
        NumericsError: If a weight is NaN or infinite; what is on disk stays.
        ResourceError: If the disk is full or cannot be written; what is on disk stays.
        CheckpointError: If `tower` is no model.
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
    """Rebuilds the part of a model that reads images, on the CPU and in evaluation mode.

    Args:
        folder: Any model folder: of an image tower, of a probe, or of both towers, whose text tower is not read.
        tower: Where the tower of a probe lies now, if it has moved.
        train: Whether the tower is trainable, whatever it was made with; then all weights are float32.
        reading: Whose `pooling` and `resize` the tower shall have, in place of what it was made with.

    Raises:
        ConfigError: If the tower cannot be read so.
        CheckpointError: If the folder is no model, is damaged, or does not fit; or the tower of a probe has gone or is
            another one.
    """
    folder = Path(folder).expanduser()
    description, home = read_folder(folder), find_files(folder)
    require(description, ("made_by",), str(folder / DESCRIPTION))
    facts = head_info(description)
    check_claimed_settings(description.get("settings", {}), read_header(home / WEIGHTS), str(folder / DESCRIPTION))
    with torch.random.fork_rng(devices=[]):
        if "tower" in description:
            reading = read_settings(folder, description, _GROUPS).image  # as its head has learned to
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
    """Returns how the image tower of a model folder was made."""
    return read_settings(folder, peek_description(folder), _GROUPS).image


def override_reading(made: ImageTowerConfig, wanted: ImageTowerConfig) -> ImageTowerConfig:
    """Returns the settings of a tower with the pooling and the size of its images that are wanted.

    Raises:
        ConfigError: If it has blocks behind its patches, whose mean is its feature whatever the pooling.
    """
    if made.decoder_blocks and made.pooling != wanted.pooling:
        raise ConfigError(
            f"image.pooling={wanted.pooling} does nothing behind image.decoder_blocks={made.decoder_blocks}, whose "
            f"mean is the feature; leave it out"
        )
    return replace(made, pooling=wanted.pooling, resize=wanted.resize)


def find_tower_folder(folder: Path) -> Path:
    """Returns the folder that holds the tower of a model: that of a probe lies elsewhere.

    Raises:
        CheckpointError: If the tower of a probe has gone or is another one.
    """
    description = peek_description(folder)
    return _find_tower(folder, description, None) if "tower" in description else folder


def _fill(model: ImageClassifier, home: Path, description: Mapping[str, Any]) -> list[str]:
    path = home / WEIGHTS
    read_header(path)
    expected = _weights(model, ("head.",) if "tower" in description else ("",))
    with safe_open(path, "pt", backend="pread") as file:
        # The text tower, the projections and the temperature of a model that has them stay on disk.
        names = [name for name in file.keys() if is_image_only(description) or name.startswith("image_tower.")]
        given = {name: file.get_tensor(name) for name in names}
    return load_weights(model, given, expected, path, cast("Mapping[str, str]", description["made_by"]))


def _weights(model: ImageClassifier, beginnings: Sequence[str]) -> dict[str, Tensor]:
    state = {name.replace("_orig_mod.", ""): tensor for name, tensor in model.state_dict().items()}
    return {name: tensor for name, tensor in state.items() if name.startswith(tuple(beginnings))}


def _find_tower(folder: Path, description: Mapping[str, Any], moved: Path | None) -> Path:
    """The folder of a probe's tower, with the weights the probe was trained on."""
    way = find_path(str(description["tower"]))
    way = f"../{hidden_name(way)}" if is_hidden(way) else way  # of another user: perhaps beside
    place = Path(os.path.normpath(folder.resolve() / way)) if moved is None else moved
    remedy = "copy it back, or say where it is now: load_image_classifier(folder, tower=<folder>)"
    found = peek_description(place)
    if not found or "tower" in found:
        raise CheckpointError(f"{folder} keeps a head alone; its tower was in {place}, where there is none; {remedy}")
    if weights_digest(place) != description.get("tower_weights"):
        raise CheckpointError(f"{folder} was trained on another tower than the one in {place}; {remedy}")
    return place
