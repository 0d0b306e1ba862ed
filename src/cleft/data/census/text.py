"""A census as lines for a terminal: what is wrong first, then counts; long lists are cut with their count."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cleft.grammar import count, share, verb
from cleft.types import Census, Groups, Leftover, Tally

_MOST_VALUES = 8
_MOST_FINDINGS = 30
_WIDEST = 34
_LONGEST = 200


def census_lines(census: Census) -> list[str]:
    """Returns the lines to be printed one below the other."""
    lines = [f"fault: {fault}" for fault in census.faults]
    lines += census.notes
    if not census.images and census.faults and not census.sources:
        return lines
    lines.append(f"{count(census.images, 'image')} of {count(census.patients, 'patient')} can be used")
    lines += _leftovers(census)
    lines += _section(_tallies("images", census.tallies))
    lines += _section(_tallies(_files(census), census.looks))
    lines += _section(_labels(census))
    lines += _section(_captions(census))
    lines += _section(_splits(census))
    lines += _section(f"SHA-256 of {name}: {digest}" for name, digest in census.sources.items())
    return lines


def _section(lines: Iterator[str]) -> list[str]:
    """Some lines with an empty one in front; nothing if there are none."""
    found = list(lines)
    return ["", *found] if found else []


def _leftovers(census: Census) -> Iterator[str]:
    if census.decoded:
        whole = census.decoded == census.images
        drawn = (
            count(census.decoded, "image")
            if whole
            else f"{share(census.decoded, census.images, 'image')}, drawn at random,"
        )
        bad = sum(left.count for left in census.undecodable)
        became = f"{bad:,} cannot be used" if bad else "all can be used"
        yield f"{drawn} {verb(census.decoded, 'was', 'were')} decoded; {became}"
    for left in census.left_out:
        yield f"left out, {left.reason}: {left.count:,}{_such_as(left)}"
    for left in census.undecodable:
        yield f"cannot be decoded, {left.reason}: {left.count:,}{_such_as(left)}"
    for left in census.unlisted[:_MOST_VALUES]:
        yield f"files that no row names, {left.reason}: {left.count:,}{_such_as(left)}"
    if census.junk:
        yield f"files that are no data, such as .DS_Store, ._*, Thumbs.db, *.part: {census.junk:,}, ignored"


def _such_as(left: Leftover) -> str:
    return f", such as {_end(left.examples[0], _LONGEST)}" if left.examples else ""


def _end(text: str, most: int) -> str:
    """The end of a long text: paths and captions that begin alike differ there."""
    return text if len(text) <= most else f"…{text[1 - most :]}"


def _files(census: Census) -> str:
    return "files" if census.looked_at == census.images else count(census.looked_at, "file")


def _tallies(what: str, tallies: Sequence[Tally]) -> Iterator[str]:
    width = max((len(tally.name) for tally in tallies), default=0)
    for place, tally in enumerate(tallies):
        head = f"{what} by" if place == 0 else ""
        yield f"{head:{len(what) + 3}} {tally.name:{width}}  {_values(tally)}"


def _values(tally: Tally) -> str:
    shown = tally.counts if tally.ordered else tally.counts[:_MOST_VALUES]
    told = ", ".join(f"{name} {count:,}" for name, count in shown)
    rest = len(tally.counts) - len(shown)
    return told + (f" and {rest:,} more" if rest else "")


def _labels(census: Census) -> Iterator[str]:
    if not census.labels or not census.images:
        return
    names = list(census.labels)
    if len(names) > _MOST_FINDINGS:
        names.sort(key=lambda name: -census.labels[name][0])
    shown = names[:_MOST_FINDINGS]
    width = min(_WIDEST, max(len("finding"), *(len(name) for name in shown)))
    parts = [f"{f'in {name}':>9}" for name in census.splits.groups] if census.splits else []
    yield " ".join([f"{'finding':{width}} {'1':>9} {'0':>9} {'-1':>9} {'blank':>9}", *parts])
    for name in shown:
        counts = " ".join(f"{count:>9,}" for count in census.labels[name])
        yield f"{_short(name):{width}} {counts}{_shares(name, census.splits)}"
    if len(names) > len(shown):
        yield f"and {count(len(names) - len(shown), 'rarer finding')}"


def _shares(finding: str, splits: Groups | None) -> str:
    if splits is None:
        return ""
    return "".join(f" {'–' if share is None else f'{100 * share:.1f} %':>9}" for share in splits.shares[finding])


def _short(name: str) -> str:
    return name if len(name) <= _WIDEST else f"{name[: _WIDEST - 1]}…"


def _captions(census: Census) -> Iterator[str]:
    captions = census.captions
    if captions is None:
        return
    if 0 < captions.written < census.images:
        yield f"captions in the table: {captions.written:,}; the others are made from labels"
    yield f"distinct captions: {captions.distinct:,}, the longest of {count(captions.longest, 'word')}"
    for text, times in captions.common[:3]:
        yield f"{times:>9,}  {_end(text, 90)}"


def _splits(census: Census) -> Iterator[str]:
    splits = census.splits
    if splits is None:
        return
    shared = f"{count(census.shared_patients, 'patient')} {verb(census.shared_patients, 'is', 'are')} in two splits"
    yield f"split {census.split_recipe}: {shared} (digest {census.split_digest})"
    for name, images, patients in zip(splits.groups, splits.images, splits.patients, strict=True):
        yield f"{name:>9} {images:>9,} {verb(images, 'image', 'images')} of {count(patients, 'patient')}"
