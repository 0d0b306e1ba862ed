"""Files that lie among the images of a table without any row that names them. They are reported, never read."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from cleft.data.tables.files import is_junk
from cleft.types import Leftover

EXAMPLES = 3
_MOST = 5_000_000
"""Files that are looked at; more would take hours to no purpose."""
_ENDING = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,7}$")
_DOCUMENTS = re.compile(r"\.(?:csv|tsv|txt|md|pdf|html?|json|ya?ml|xlsx?|docx?|parquet|zip|gz)$", re.IGNORECASE)


class Unlisted(NamedTuple):
    """What lies among the images."""

    files: tuple[Leftover, ...]
    """By the ending of their names, the commonest first."""
    junk: int


def find_unlisted(images: Sequence[str]) -> Unlisted:
    """Lists the deepest folder that all images share, and everything below it.

    Tables and other documents do not count. Linked folders are not entered.

    Args:
        images: Where the image of every row should lie, also of rows that are not used; a row without an image
            ends in `/`.
    """
    named = {path for path in images if not path.endswith("/")}
    if not named:
        return Unlisted((), 0)
    home = os.path.commonpath({path.rpartition("/")[0] for path in named})
    found: dict[str, list[str]] = {}
    counts: dict[str, int] = {}
    junk = 0
    for path in islice(_walk(home), _MOST):
        if path in named:
            continue
        short = path[len(home) + 1 :]
        if is_junk(short):
            junk += 1
        elif not _DOCUMENTS.search(path):
            ending = _ending(path)
            counts[ending] = counts.get(ending, 0) + 1
            if len(found.setdefault(ending, [])) < EXAMPLES:
                found[ending].append(short)
    ranked = sorted(counts, key=lambda ending: (-counts[ending], ending))
    return Unlisted(
        tuple(Leftover(reason=ending, count=counts[ending], examples=tuple(found[ending])) for ending in ranked), junk
    )


def _ending(path: str) -> str:
    match = _ENDING.search(path)
    return match[0].lower() if match else "without ending"


def _walk(home: str) -> Iterator[str]:
    """Every regular file below a folder, in a fixed order; what cannot be listed is passed over."""
    waiting = [home]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError:
            continue
        waiting += [entry.path for entry in reversed(entries) if entry.is_dir(follow_symlinks=False)]
        yield from (entry.path for entry in entries if entry.is_file(follow_symlinks=False))
