"""The base of a text tower: a language model that was taken by name, is kept still, and is not saved again."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cleft.config import TextTowerConfig
from cleft.errors import CheckpointError
from cleft.files import file_key
from cleft.models.model_folder import digest_of
from cleft.models.text_tower import TextTower
from cleft.privacy import find_path, hidden_name, hide_path, is_hidden


def keeps_base(config: TextTowerConfig) -> bool:
    """Whether the language model is taken by name and kept still, so that its weights need not be saved."""
    return config.model is not None and not config.random_weights and config.adapt != "full"


def still_weights(tower: TextTower) -> list[str]:
    """Names of a tower's weights that stay where they came from; call it before anything else is frozen."""
    if not keeps_base(tower.config):
        return []
    moving = {name for name, weight in tower.named_parameters() if weight.requires_grad}
    return [name for name in tower.state_dict() if name not in moving]


def describe_base(config: TextTowerConfig) -> dict[str, str | None] | None:
    """Returns name and digest of the base for `model.json`; None where the model's folder holds every weight."""
    if not keeps_base(config):
        return None
    assert config.model is not None
    name = hide_path(config.model) if Path(config.model).is_absolute() else config.model
    return {"name": name, "sha256": _base_digest(Path(config.model))}


def base_now(folder: Path, base: str | None) -> str | None:
    """Where a base lies that was named by its place, also where it was moved together with the model.

    A study keeps one beside its runs. Where its place holds nothing any more, a folder of its name is looked for beside
    the model's folder and beside those above it; `check_base` tells whether it is the same.

    Args:
        folder: The model's.
        base: As its settings name it.
    """
    base = None if base is None else find_path(base)
    if base is None or not (Path(base).is_absolute() or is_hidden(base)) or Path(base).exists():
        return base
    beside = (parent / hidden_name(base) for parent in folder.resolve().parents)
    return next((str(place) for place in beside if (place / "config.json").is_file()), base)


def check_base(folder: Path, saved: Mapping[str, Any] | None, base: str | None) -> None:
    """Checks that a base is the one a model was trained on.

    Args:
        folder: The model's, for messages.
        saved: What `describe_base` returned when the model was saved.
        base: Where the base is taken from now.

    Raises:
        CheckpointError: If it has gone or holds other weights.
    """
    if saved is None:
        return
    assert base is not None
    name = hidden_name(saved["name"]) if is_hidden(saved["name"]) else str(saved["name"])
    digest = _base_digest(Path(base))
    if saved["sha256"] is not None and digest is None:
        raise CheckpointError(
            f"{folder} keeps only what was trained; its language model was {name!r}, and no folder with its weights is "
            f"found; put a folder {Path(name).name!r} with them beside {folder.name}, or in Python: "
            f"load_model(folder, text_model=<folder>)"
        )
    if saved["sha256"] is not None and digest != saved["sha256"]:
        raise CheckpointError(
            f"{folder} was trained on the language model {name!r}, and the weights in {base!r} are others; "
            f"give the same files: load_model(folder, text_model=<folder>)"
        )


def _base_digest(folder: Path) -> str | None:
    """Digest of the weights files of a folder; None where there are none, as for a hub name."""
    files = sorted(path for pattern in ("*.safetensors", "*.bin") for path in folder.glob(pattern))
    if not files:
        return None
    facts = [(path.name, _file_digest(path, file_key(path))) for path in files]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


@functools.lru_cache(maxsize=64)
def _file_digest(path: Path, key: str) -> str:
    """Digest of a weights file in the state that `key` names; gigabytes are read once per process."""
    return digest_of(path)
