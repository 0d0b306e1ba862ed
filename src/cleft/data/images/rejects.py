"""Images that cannot be used: how many may be, and what is said of them."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from cleft.errors import DataError
from cleft.files import Output, csv_text
from cleft.grammar import count

_EXAMPLES = 3
"""Files named per reason."""


def refusal(reason: str, name: Path | str, sentence: str) -> DataError:
    """Return the error that refuses one file, for the reason code and with the sentence given."""
    return DataError(f"{name}: {reason} ({sentence})", reason=reason)


def check_rejects(bad: Mapping[Path, tuple[str, str]], images: int, max_bad: float) -> None:
    """Stops if too many images are rejected.

    Args:
        bad: Image to the reason and the sentence it was rejected with.
        images: All images, good and bad.
        max_bad: Share of them that may be rejected.

    Raises:
        DataError: With the reason that occurs most, and a table of all of them.
    """
    if len(bad) <= max_bad * images:
        return
    lines = [f"at least {len(bad)} of {count(images, 'image')} cannot be used; data.max_bad={max_bad:g} is the limit"]
    lines += reject_lines(bad.values())
    lines.append("fix these files, take out their rows, or raise data.max_bad")
    raise DataError("\n".join(lines), reason=_ranked(bad.values())[0][0])


def reject_lines(bad: Iterable[tuple[str, str]]) -> list[str]:
    """Returns a table of reasons, the commonest first, each with its count and a few sentences.

    Args:
        bad: Reason and sentence of each rejected image.
    """
    lines: list[str] = []
    for reason, sentences in _ranked(bad):
        lines.append(f"  {reason:<12} {len(sentences):>7,}")
        lines += [f"    {sentence}" for sentence in sentences[:_EXAMPLES]]
        lines += ["    …"] if len(sentences) > _EXAMPLES else []
    return lines


def write_rejects(output: Output, reasons: Mapping[str, str]) -> None:
    """Writes a table of rejected images: `id`, `reason`. Neither paths nor anything a file says stand in it.

    Args:
        output: A CSV file.
        reasons: Record id to reason.

    Raises:
        ConfigError, ResourceError: As `Output.write`.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["id", "reason"])
    table.writerows((csv_text(name), reasons[name]) for name in sorted(reasons))
    output.write(text.getvalue())


def _ranked(bad: Iterable[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    by_reason: dict[str, list[str]] = defaultdict(list)
    for reason, sentence in bad:
        by_reason[reason].append(sentence)
    return sorted(by_reason.items(), key=lambda item: (-len(item[1]), item[0]))
