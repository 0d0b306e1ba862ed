"""What a folder of parts holds, looked up by file and by content."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from cleft.data.images.decoding import Outcome
from cleft.data.images.parts import Part, PartWriter, read_part
from cleft.errors import ResourceError
from cleft.files import file_key

_MOST_IDENTITIES = 8
"""Identities of files kept per prepared image, beyond those in the parts that hold its pixels."""


class Shelf:
    """The whole parts of a folder; what is not whole is a miss."""

    def __init__(self, folder: Path, side: int) -> None:
        self.folder = folder
        self.parts: list[Part] = []
        self.damaged: list[Path] = []
        """Index files whose part is not whole."""
        self.places: dict[str, tuple[int, int]] = {}
        """Content to its part and the row in it."""
        self.refused: dict[str, tuple[str, str]] = {}
        """Content to the reason and the sentence it was refused with, without the path."""
        self.notes: dict[str, tuple[str, ...]] = {}
        """Content to keys of `cleft.data.images.headers.ODDITIES`, where there are any."""
        self._contents: dict[str, str] = {}
        for index in sorted(folder.glob("part-*.json")):
            part = read_part(index, side)
            if part is None:
                self.damaged.append(index)
            else:
                self.add(part)

    def __contains__(self, content: str) -> bool:
        return content in self.places or content in self.refused

    def add(self, part: Part) -> None:
        """Takes in one more part."""
        for row, (content, _) in enumerate(part.rows):
            self.places[content] = (len(self.parts), row)
            self.refused.pop(content, None)  # Refused once, prepared since.
        self.refused.update({content: why for content, why in part.refused.items() if content not in self.places})
        self.notes.update(part.notes)
        self.parts.append(part)
        self._contents.update(part.sources)

    def forget(self, reasons: Collection[str]) -> None:
        """Takes back refusals for these reasons, so that their files are tried again."""
        self.refused = {content: why for content, why in self.refused.items() if why[0] not in reasons}

    def store(self, outcomes: Iterable[Outcome], needed: int) -> list[Outcome]:
        """Writes outcomes as one part and takes it in; or leaves nothing behind.

        Args:
            outcomes: What became of some files.
            needed: Bytes of pixels that are still to be written, for the message.

        Returns:
            The outcomes without their pixels.

        Raises:
            ResourceError: If the disk is full or the folder cannot be written.
        """
        stored: list[Outcome] = []
        try:
            writer = PartWriter(self.folder)
            try:
                for outcome in outcomes:
                    bare = outcome._replace(pixels=None)
                    twin = outcome.source is not None and outcome.source.content in self
                    writer.add(bare if twin else outcome)
                    stored.append(bare)
                self.add(writer.finish())
            finally:
                writer.discard()
        except OSError as error:
            raise no_room(self.folder, needed, error.strerror or str(error)) from error
        return stored

    def known(self, files: Mapping[Path, os.stat_result]) -> dict[Path, str]:
        """Returns the content of each file that is as it was when it was read, and whose outcome is here."""
        folders: dict[str, str] = {}
        contents = {path: self._contents.get(file_key(path, status, folders)) for path, status in files.items()}
        return {path: content for path, content in contents.items() if content is not None and content in self}

    def prune(self) -> None:
        """Remove the oldest parts that hold only identities of files whose pixels are in other parts.

        Every copy, move and remount of a dataset adds such parts; without them a file is read and hashed once more.
        """
        bare = [part.index for part in self.parts if not part.rows and not part.refused]
        sizes = {part.index: len(part.sources) for part in self.parts}
        kept = 0
        for index in sorted(bare, key=lambda path: path.stat().st_mtime_ns, reverse=True):
            kept += sizes[index]
            if kept > _MOST_IDENTITIES * len(self.all_contents()):
                index.unlink(missing_ok=True)
                index.with_suffix(".u8").unlink(missing_ok=True)

    def all_contents(self) -> frozenset[str]:
        """Returns every content whose outcome is here."""
        return frozenset((*self.places, *self.refused))


def check_room(folder: Path, needed: int) -> None:
    """Refuses to start what cannot end.

    Raises:
        ResourceError: If fewer than `needed` bytes are free.
    """
    if shutil.disk_usage(folder).free < needed:
        raise no_room(folder, needed, "the disk is too full")


def no_room(folder: Path, needed: int, why: str) -> ResourceError:
    """Returns the error for a cache that cannot be written."""
    free = shutil.disk_usage(folder).free
    return ResourceError(
        f"{folder}: {why}; the prepared images still to write take {needed:,} bytes, {free:,} are free; "
        "free some space, or set data.cache to another folder"
    )
