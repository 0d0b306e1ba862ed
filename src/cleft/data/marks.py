"""The file that marks a folder of drawn images."""

from __future__ import annotations

from pathlib import Path

MARK = "PHANTOMS.json"
"""File that says a folder holds phantoms and nothing else."""


def is_drawn(root: Path | None) -> bool:
    """Whether a folder holds phantoms, to which no published count applies."""
    return root is not None and (root / MARK).is_file()
