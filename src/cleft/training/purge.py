"""Removal of patient data other than tables and images: prepared images, embeddings, training states.

Only files are removed that have the place, the name and the form in which this program writes them. Links are never
followed. Weights are never removed: the training states of a run that is not finished are its only ones, and stay.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal, NamedTuple

from cleft.data.images.parts import lock
from cleft.errors import ConfigError
from cleft.files import RECORD, Output
from cleft.training.run import hold_run, is_run

_KEY = re.compile(r"[0-9a-f]{16}")
_EMBEDDING = re.compile(r"manifest\.json|\w+\.safetensors|\.(manifest\.json|\w+\.safetensors)\.[0-9a-f]{8}")
_STATE = re.compile(r"step-\d{8}\.[0-9a-f]{16}\.(ckpt|bad)|\.step-\d{8}\.tmp")
_PREPARED = re.compile(r"part-[0-9a-f]{16}\.(u8|json)|part-\w+\.tmp|settings\.json|\.part-[0-9a-f]{16}\.json\.\w{8}")
_HEADERS = re.compile(r"headers-(mimic|rsna|iu-xray)\.parquet")
_REJECTS = re.compile(r"rejects-[a-z-]+\.csv")
_MATCHED = re.compile(r"[0-9a-f]{32}\.json")


class Purge(NamedTuple):
    """What can be removed of a run or a cache, and what is left there."""

    place: Path
    kind: Literal["run", "cache"]
    files: tuple[Path, ...]
    left: tuple[str, ...]
    """A line each: what stays, and why."""

    def size(self) -> int:
        """Return the bytes of all files."""
        return sum(path.lstat().st_size for path in self.files)

    def folders(self) -> dict[str, int]:
        """Return the folders inside the place and how many of the files each holds."""
        return dict(Counter(path.parent.relative_to(self.place).as_posix() for path in self.files))

    def remove(self) -> None:
        """Remove the files, and folders that are empty then; waits for processes that prepare images in a cache.

        Raises:
            ConfigError: If another process uses the run.
            OSError: If a file cannot be removed.
        """
        folders = {folder for path in self.files for folder in path.parents if self.place in folder.parents}
        with ExitStack() as held:
            if self.kind == "run":
                held.enter_context(hold_run(self.place))
            else:
                for home in sorted(folder for folder in folders if (folder / "lock").is_file()):
                    held.enter_context(lock(home))
            for path in self.files:
                if path.is_file() and not path.is_symlink():
                    path.unlink()
            for folder in sorted(folders, key=lambda folder: len(folder.parts), reverse=True):
                if [path.name for path in folder.iterdir()] == ["lock"]:
                    (folder / "lock").unlink()
                if not any(folder.iterdir()):
                    folder.rmdir()


def plan_purges(places: Sequence[Path]) -> list[Purge]:
    """Find what can be removed; removes nothing.

    Args:
        places: Run folders, cache folders, or folders that hold runs at any depth.

    Raises:
        ConfigError: If a place is neither.
    """
    found: dict[Path, Purge] = {}
    for place in places:
        here = list(_purges(place))
        if not here:
            raise ConfigError(f"{place} holds no run and no cache of cleft; give a run folder or a cache folder")
        found |= {purge.place.resolve(): purge for purge in here}
    return list(found.values())


def _purges(place: Path) -> Iterator[Purge]:
    if place.is_symlink() or not place.is_dir():
        what = "a symbolic link" if place.is_symlink() else "no folder"
        raise ConfigError(f"{place} is {what}; give a run folder or a cache folder")
    if is_run(place):
        yield _of_run(place)
        return
    cache = _of_cache(place)
    if cache.files:
        yield cache
        return
    for folder, names, files in os.walk(place):  # follows no links
        if "config.yaml" in files and is_run(Path(folder)):
            names.clear()
            yield _of_run(Path(folder))


def _of_run(run: Path) -> Purge:
    files = [path for key in _folders(run / "embeddings", _KEY) for path in _files(key, _EMBEDDING)]
    left = ["model, settings and logs", "split.json: patients as digests that only your secret can test"]
    states = list(_files(run / "states", _STATE))
    if (run / "summary.json").is_file() and (run / "model.json").is_file():
        files += states
    elif states:
        left.append("states: the run is not finished, and they are its only weights; finish it first")
    if any((run / "results").glob("*.json")):
        left.append("results: numbers without ids, answers image by image, and example images where there are some")
    return Purge(run, "run", tuple(files), (*left, *_foreign_files(run, ("embeddings", "states"), {*files, *states})))


def _of_cache(cache: Path) -> Purge:
    files: list[Path] = []
    homes = [home for home in _folders(cache, _KEY) if (home / "settings.json").is_file()]
    for home in homes:
        files += _files(home, _PREPARED)
    files += _files(cache / "splits", _MATCHED)
    files += _files(cache, _HEADERS)
    files += [path for path in _files(cache, _REJECTS) if Output(path, "data.cache").is_ours()]
    names = [home.name for home in homes]
    left = _foreign_files(cache, (*names, "splits"), set(files))
    known = {*names, "splits", RECORD, *(path.name for path in files)}
    left += [f"{path.name}: not written by cleft" for path in sorted(cache.iterdir()) if path.name not in known]
    return Purge(cache, "cache", tuple(files), tuple(left))


def _folders(place: Path, pattern: re.Pattern[str]) -> list[Path]:
    if place.is_symlink() or not place.is_dir():
        return []
    found = (path for path in sorted(place.iterdir()) if pattern.fullmatch(path.name))
    return [path for path in found if path.is_dir() and not path.is_symlink()]


def _files(place: Path, pattern: re.Pattern[str]) -> list[Path]:
    if place.is_symlink() or not place.is_dir():
        return []
    found = (path for path in sorted(place.iterdir()) if pattern.fullmatch(path.name))
    return [path for path in found if path.is_file() and not path.is_symlink()]


def _foreign_files(place: Path, folders: Iterable[str], known: set[Path]) -> list[str]:
    """Lines about files among those to remove that this program did not write."""
    others = [
        path
        for name in folders
        if (place / name).is_dir()
        for path in sorted((place / name).rglob("*"))
        if path not in known and path.name != "lock" and (path.is_symlink() or not path.is_dir())
    ]
    return [f"{path.relative_to(place)}: not written by cleft" for path in others]
