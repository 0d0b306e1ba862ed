"""What lies beside ChestX-ray14's table: its images, in one folder or twelve, and its official lists.

Shapes: `N` rows of the table.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cleft.data.tables.faults import Fault
from cleft.errors import DataError
from cleft.grammar import agree, count, verb

LISTS = {"train": "train_val_list.txt", "test": "test_list.txt"}
"""Part to the list of its images. What is for choosing is drawn from the first."""

_PUBLISHED = {"train": "86,524", "test": "25,596"}
_EXAMPLES = 3


class Lists(NamedTuple):
    """What the official lists say."""

    splits: list[str | None] | None
    """Part of each row, `[N]`; None where there are no lists."""
    notes: list[str]
    faults: list[Fault]
    sources: Mapping[str, str]


def read_lists(folders: Sequence[Path], ids: Sequence[str]) -> Lists:
    """Reads the official lists, where they are; one of them alone is a fault.

    Args:
        folders: Where they may lie.
        ids: Images of the table, `[N]`.
    """
    paths = {
        part: next((folder / name for folder in folders if (folder / name).is_file()), None)
        for part, name in LISTS.items()
    }
    absent = [LISTS[part] for part, path in paths.items() if path is None]
    if len(absent) == len(LISTS):
        told = f"no {' and no '.join(absent)}: the official split is not known (data.split=patients does without)"
        return Lists(None, [told], [], {})
    if absent:
        what = f"one of the two official lists is there, and no {absent[0]}"
        return Lists(None, [], [Fault("lists", what, "copy it beside the other")], {})
    part_of: dict[str, str] = {}
    sources: dict[str, str] = {}
    both: list[str] = []
    for part, path in paths.items():
        assert path is not None
        raw = path.read_bytes()
        sources[path.name] = hashlib.sha256(raw).hexdigest()
        for name in raw.decode("utf-8", errors="replace").split():
            if part_of.setdefault(name, part) != part:
                both.append(name)
    splits = [part_of.get(name) for name in ids]
    counts = Counter(splits)
    counted = ", ".join(f"{part} {count(counts[part], 'image')} (published: {_PUBLISHED[part]})" for part in LISTS)
    notes = [f"official lists: {counted}"]
    strangers = len(part_of.keys() - set(ids))
    if strangers:
        are = verb(strangers, "is", "are")
        notes.append(f"{count(strangers, 'image')} of the official lists {are} not in the table")
    if counts[None]:
        stay = "[is|are] in neither official list; under data.split=given [it stays|they stay] out"
        notes.append(f"{count(counts[None], 'image')} {agree(counts[None], stay)}")
    faults: list[Fault] = []
    if both:
        images_are = f"{count(len(both), 'image')} {verb(len(both), 'is', 'are')}"
        what = f"{images_are} in both official lists, such as {', '.join(both[:_EXAMPLES])}"
        faults.append(Fault("lists", what, "copy the lists again"))
    return Lists(splits, notes, faults, sources)


def locate_images(folders: Sequence[Path], ids: Sequence[str]) -> tuple[list[str], NDArray[np.bool_]]:
    """Finds every image in `images`, `images_001/images` to `images_012/images`, or `images_001` to `images_012`.

    Args:
        folders: Where these may lie.
        ids: File names, `[N]`.

    Returns:
        The path of each image, and whether it is there, `[N]` each.

    Raises:
        DataError: If none of them is anywhere.
    """
    place: dict[str, str] = {}
    homes = list(dict.fromkeys(_image_folders(folders)))
    for home in homes:
        with os.scandir(home) as entries:
            for entry in entries:
                if entry.name.endswith(".png") and entry.is_file():
                    place.setdefault(entry.name, home)
    present = np.array([name in place for name in ids], dtype=bool)
    if ids and not present.any():
        tried = ", ".join(homes[:4]) or ", ".join(str(folder / "images") for folder in folders[:2])
        raise DataError(
            f"none of {count(len(ids), 'image')} is on disk; looked in {tried}; set data.root to the folder with "
            "images/ or images_001/ to images_012/",
            reason="missing",
        )
    otherwise = homes[0] if homes else str(folders[0] / "images")
    return [f"{place.get(name, otherwise)}/{name}" for name in ids], present


def _image_folders(folders: Sequence[Path]) -> list[str]:
    found: list[Path] = []
    for folder in folders:
        batches = sorted(folder.glob("images_[0-9][0-9][0-9]"))
        found += [folder / "images", folder / "images" / "images"]
        found += [place for batch in batches for place in (batch / "images", batch)]
    return [str(path) for path in found if path.is_dir()]
