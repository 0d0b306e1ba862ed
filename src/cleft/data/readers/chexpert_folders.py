"""Where the releases of CheXpert have their tables and images on disk.

Small release: `CheXpert-v1.0-small/train.csv` and `CheXpert-v1.0-small/train/patientNNNNN/…`. Full release: a
folder that holds `CheXpert-v1.0 batch 1 (validate & csv)` with the tables and `valid/`, and further batches with
`patientNNNNN/…` directly, without a `train/` level. Tables of other labels lie in the first batch, or beside the
batches.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from cleft.errors import DataError
from cleft.grammar import count

_RELEASES = ("CheXpert-v1.0-small", "CheXpert-v1.0")
_BATCHES = "CheXpert-v1.0 batch *"
_CONTAINER = "chexpertchestxrays*"
_PROBES = 8


def table_folders(root: Path) -> list[Path]:
    """Returns the folders that may hold a label table, given a release's folder or the one above it."""
    homes = [root, *sorted(root.glob(_CONTAINER))]
    inner = [folder for home in homes for folder in [*(home / name for name in _RELEASES), *_batches(home)]]
    return [folder for folder in [*homes, *inner] if folder.is_dir()]


def locate_images(root: Path, table: Path, ids: Sequence[str]) -> list[str]:
    """Finds out which layout the images have, from a handful of rows, and returns the path of each image.

    Args:
        root: `data.root`.
        table: The label table, inside the root.
        ids: Paths from `train/`, `valid/` or `test/` on; empty where a row has none.

    Raises:
        DataError: If none of the probed images is anywhere; names the places that were tried.
    """
    named = [name for name in ids if name]
    probes = named[:: max(1, len(named) // _PROBES)]
    folders = list(dict.fromkeys([table.parent, root, *(root / name for name in _RELEASES)]))
    for folder in folders:
        if any((folder / name).is_file() for name in probes):
            home = str(folder)
            return [f"{home}/{name}" for name in ids]
    batches = [*_batches(table.parent), *_batches(table.parent.parent)]
    batch_of = {entry.name: str(batch) for batch in batches for entry in os.scandir(batch) if entry.is_dir()}
    home = str(table.parent)
    if named and not any(os.path.isfile(_in_batch(name, batch_of, home)) for name in probes):
        tried = [f"{folder}/{probes[0]}" for folder in folders]
        tried += [f"{batch}/{probes[0].partition('/')[2]}" for batch in batches]
        raise DataError(
            f"none of {count(len(probes), 'image')} probed from {table.name} is on disk; looked for "
            f"{', '.join(tried)}; set data.root to the folder that holds train/, or to the one above it",
            reason="missing",
        )
    return [_in_batch(name, batch_of, home) for name in ids]


def _batches(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob(_BATCHES)) if path.is_dir()]


def _in_batch(name: str, batch_of: dict[str, str], otherwise: str) -> str:
    split, _, rest = name.partition("/")
    batch = batch_of.get(rest.partition("/")[0]) if split == "train" else None
    return f"{batch}/{rest}" if batch else f"{otherwise}/{name}"
