"""How many images may be rejected, and what is said when there are more."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from cleft.errors import DataError

_EXAMPLES = 3
"""Files named per reason."""


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
    by_reason: dict[str, list[str]] = defaultdict(list)
    for reason, sentence in bad.values():
        by_reason[reason].append(sentence)
    ranked = sorted(by_reason.items(), key=lambda item: (-len(item[1]), item[0]))
    lines = [f"at least {len(bad)} of {images} images cannot be used; data.max_bad={max_bad:g} is the limit"]
    for reason, sentences in ranked:
        lines.append(f"  {reason:<12} {len(sentences):>7}")
        lines += [f"    {sentence}" for sentence in sentences[:_EXAMPLES]]
        lines += ["    …"] if len(sentences) > _EXAMPLES else []
    lines.append("mend these files, take out their rows, or raise data.max_bad")
    raise DataError("\n".join(lines), reason=ranked[0][0])
