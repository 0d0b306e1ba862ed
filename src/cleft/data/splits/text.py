"""A split as lines for a terminal: how it was drawn, from what, how much is where, and whom it shares."""

from __future__ import annotations

from collections.abc import Iterator

from cleft.config import DataConfig
from cleft.data.counting import share_present
from cleft.data.readers.chexpert import LABEL_TABLES
from cleft.data.splits.leaks import leak_notes
from cleft.data.splits.recipes import salts_of
from cleft.grammar import count, verb
from cleft.types import Reading, Splits

_CELL = 10


def split_lines(splits: Splits, reading: Reading, config: DataConfig) -> list[str]:
    """Returns the lines to be printed one below the other.

    Shares of findings stand side by side, so that a split that tore a class apart is seen; those of fewer than five
    patients are not told.
    """
    salts = ", ".join(f"{what} {salt}" for what, salt in salts_of(splits.recipe, config).items())
    lines = [f"split {splits.recipe} (digest {splits.digest}){f'; salts: {salts}' if salts else ''}"]
    lines.append(f"labels: {label_source(reading, config)}")
    lines += [f"SHA-256 of {name}: {digest}" for name, digest in reading.sources.items()]
    return [*lines, *splits.notes, *leak_notes(splits), "", *_table(splits, reading)]


def label_source(reading: Reading, config: DataConfig) -> str:
    """Returns the name of the table that the labels were read from."""
    return LABEL_TABLES.get(config.labels) or next(iter(reading.sources), reading.dataset)


def _table(splits: Splits, reading: Reading) -> Iterator[str]:
    groups = share_present("split", {"train": splits.train, "val": splits.val, "test": splits.test}, reading.findings)
    width = max(len(name) for name in ("finding", "patients", *reading.findings))
    left_out = len(reading.records) - sum(groups.images)

    def row(name: str, cells: tuple[str, ...]) -> str:
        return f"{name:{width}}" + "".join(f"{cell:>{_CELL}}" for cell in cells)

    yield row("", groups.groups)
    yield row("images", tuple(f"{count:,}" for count in groups.images))
    yield row("patients", tuple(f"{count:,}" for count in groups.patients))
    for finding in reading.findings:
        shares = groups.shares[finding]
        yield row(finding, tuple("–" if share is None else f"{100 * share:.1f} %" for share in shares))
    if left_out:
        yield f"{count(left_out, 'image')} {verb(left_out, 'is', 'are')} in no part"
