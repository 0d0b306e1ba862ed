"""What decides a prepared pixel: the record that names a cache, lies in it, and tells two of them apart."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, cast

import cv2

from cleft.config import DataConfig, ImagesConfig
from cleft.data.images.decoders import DEFAULT_LIMITS, decoder_versions
from cleft.data.images.parts import SCHEMA
from cleft.errors import DataError
from cleft.files import write_whole
from cleft.strict_json import read_json

Preparation: TypeAlias = dict[str, Any]
"""Everything that decides a prepared pixel, as JSON holds it."""

_RECORD = "settings.json"


class Difference(NamedTuple):
    """Something that two caches were made with differently."""

    name: str
    """Dotted, as on the command line where it is a setting."""
    made: Any
    wanted: Any

    def __str__(self) -> str:
        return f"{self.name} {self.made}, wanted {self.wanted}"


def preparation(config: ImagesConfig) -> Preparation:
    """Returns what decides the pixels that settings ask for.

    What comes after the cache (size, mean, spread, augmentation) is not part of it.
    """
    return {
        "schema": SCHEMA,
        "recipe": config.recipe,
        "intensity": config.intensity,
        "dicom": config.dicom,
        "window": config.window,
        "frame": config.frame,
        "stored_size": config.stored_size,
        "limits": asdict(DEFAULT_LIMITS),
        "decoders": {**decoder_versions(), "opencv": cv2.__version__},
    }


def preparation_digest(config: ImagesConfig) -> str:
    """Names a way of preparing: equal digests mean equal pixels from equal files."""
    return hashlib.sha256(json.dumps(preparation(config), sort_keys=True).encode()).hexdigest()[:16]


def keep_settings(home: Path, config: ImagesConfig) -> None:
    """Writes into a cache what it is made with, for people and for the caches beside it."""
    if not (home / _RECORD).is_file():
        write_whole(home / _RECORD, json.dumps(preparation(config), indent=2, sort_keys=True) + "\n")


def nearest_differences(home: Path, config: ImagesConfig) -> list[Difference]:
    """Compares what is wanted with the caches beside `home`; returns how the one most like it differs.

    Empty if there is none beside it. One whose record is gone or unreadable does not count.
    """
    found = [
        differences(made, preparation(config))
        for other in sorted(home.parent.glob(f"*/{_RECORD}"))
        if other.parent != home and (made := _read(other)) is not None
    ]
    return min(found, key=len, default=[])


def differences(made: Preparation, wanted: Preparation) -> list[Difference]:
    """Returns what differs between two preparations, named as settings where it is one.

    Example:
        >>> [str(difference) for difference in differences({"stored_size": 256}, {"stored_size": 518})]
        ['images.stored_size 256, wanted 518']
    """
    old, new = _flat(made), _flat(json.loads(json.dumps(wanted)))
    return [
        Difference(_name(key), old.get(key, "unknown"), new.get(key, "unknown"))
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def prepare_command(data: DataConfig, images: ImagesConfig) -> str:
    """Returns what to type so that exactly these images are prepared exactly so.

    Any preset would do, for what differs from the defaults is spelled out; `cleft-paper` keeps the defaults.
    """
    words = ["cleft", "data", "prepare", "cleft-paper"]
    for room, config, plain in (("data", data, DataConfig()), ("images", images, ImagesConfig())):
        leaves, usual = _flat(asdict(config)), _flat(asdict(plain))
        for key, value in leaves.items():
            if value != usual[key] and key.partition(".")[0] not in _NO_MATTER:
                told = json.dumps(value) if isinstance(value, (tuple, list)) else str(value)
                words.append(f"--{room}.{key}={told}")
    return shlex.join(words)


_NO_MATTER = ("augment", "mean", "std", "prepare", "workers", "split", "people", "val_fraction", "test_fraction")
"""Settings that do not decide which images are prepared, nor how."""


def _read(path: Path) -> Preparation | None:
    try:
        return read_json(path)
    except DataError:
        return None


def _name(key: str) -> str:
    first = key.partition(".")[0]
    return f"images.{key}" if first in {field.name for field in fields(ImagesConfig)} else key


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            leaves |= _flat(cast("dict[str, Any]", value), f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves
