"""What an uncertain label counts as, and which one of several classes an image shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from cleft.types import Record

Policy = Literal["zeros", "ones", "mixed", "ignore"]

UNCERTAIN = -1.0
_PRESENT_IF_MIXED = {"atelectasis", "edema", "pleural effusion"}


def apply_uncertain(records: Sequence[Record], policy: Policy) -> list[Record]:
    """Decides what -1 counts as; `Record.uncertain` remembers where it stood.

    Args:
        records: As a reader returns them.
        policy: `zeros`: absent. `ones`: present. `mixed`: present for atelectasis, edema and pleural effusion,
            absent for every other finding. `ignore`: as if nobody had mentioned it.

    Returns:
        New records in the same order, none of whose labels is -1.

    Source:
        CLEFT counts a finding as positive only where the label is 1, which is `zeros`; `mixed` is what GLoRIA
        and MGCA do for the five competition findings (docs/decisions/0011).
    """
    # Records with equal labels share one mapping, so each distinct mapping is decided once.
    decided: dict[int, tuple[Mapping[str, float], tuple[str, ...]]] = {}
    results: list[Record] = []
    for record in records:
        key = id(record.labels)
        if key not in decided:
            decided[key] = _decide(record.labels, policy)
        labels, uncertain = decided[key]
        results.append(replace(record, labels=labels, uncertain=uncertain) if uncertain else record)
    return results


def single_class(labels: Mapping[str, float], classes: Sequence[str]) -> int | None:
    """Returns the position of the one class that is present.

    None where none or several are present: such an image has no single right answer, and taking the largest
    label would call it the first class.

    Example:
        >>> single_class({"Edema": 1.0, "Fracture": 0.0}, ["Fracture", "Edema"])
        1
        >>> single_class({"Edema": 0.0}, ["Fracture", "Edema"]) is None
        True
    """
    present = [i for i, name in enumerate(classes) if labels.get(name) == 1]
    return present[0] if len(present) == 1 else None


def _decide(labels: Mapping[str, float], policy: Policy) -> tuple[Mapping[str, float], tuple[str, ...]]:
    uncertain = tuple(name for name, value in labels.items() if value == UNCERTAIN)
    if not uncertain:
        return labels, ()
    if policy == "ignore":
        return {name: value for name, value in labels.items() if value != UNCERTAIN}, uncertain
    decided = {name: _count_as(name, policy) if value == UNCERTAIN else value for name, value in labels.items()}
    return decided, uncertain


def _count_as(finding: str, policy: Policy) -> float:
    if policy == "mixed":
        return float(finding.casefold() in _PRESENT_IF_MIXED)
    return float(policy == "ones")
