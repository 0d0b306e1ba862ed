"""What steps have cost, and what the rest will: measured in this folder, or not known."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cleft.files import find_json, write_json
from cleft.grammar import count
from cleft.studies.steps import Step

FILE = "times.json"


class Times:
    """Seconds of every step that was run whole in a folder of runs.

    Args:
        folder: Where they are kept.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._seconds: dict[str, float] = {
            name: float(value) for name, value in (find_json(self._path) or {}).items() if _is_number(value)
        }

    def add(self, step: Step, seconds: float) -> None:
        """Keeps the time of a step that was run from beginning to end."""
        self._seconds[step.name] = round(seconds, 1)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self._path, self._seconds)

    def of(self, name: str) -> float | None:
        """Seconds of one step, if it was measured."""
        return self._seconds.get(name)

    def estimate(self, step: Step) -> float | None:
        """Median of the same step of other seeds; None where none was measured."""
        alike = [seconds for name, seconds in self._seconds.items() if _kin(name) == _kin(step.name)]
        return statistics.median(alike) if alike else None


def _kin(name: str) -> tuple[str, ...]:
    """A step's name without its seed.

    Example:
        >>> _kin("cleft-lora/seed-2/stage-one") == _kin("cleft-lora/seed-0/stage-one")
        True
    """
    return tuple(part for part in name.split("/") if not part.startswith("seed-"))


def told_cost(steps: Sequence[Step], times: Times) -> str:
    """For how long steps will run, as far as that was measured here."""
    measured = [seconds for step in steps if (seconds := times.estimate(step)) is not None]
    unknown = len(steps) - len(measured)
    if not measured:
        return "cost not known" if unknown else "no cost"
    return f"about {spell(sum(measured))}" + f" and {count(unknown, 'step')} of unknown cost" * bool(unknown)


def spell(seconds: float) -> str:
    """Seconds, minutes or hours.

    Example:
        >>> spell(48), spell(150), spell(7200)
        ('48 s', '2.5 min', '2.0 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def counted(steps: Iterable[Step], names: Mapping[Any, str]) -> str:
    """Steps by kind.

    Example:
        >>> counted([], {})
        ''
    """
    kinds = [names[step.kind] for step in steps]
    return ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
