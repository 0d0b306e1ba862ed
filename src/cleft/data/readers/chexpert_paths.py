"""What the `Path` column of CheXpert's tables says: image, patient, study, and whether it is a frontal.

The same image is named differently by different tables (`CheXpert-v1.0-small/train/…`, `CheXpert-v1.0/train/…`,
`test/…`); what stands in front of the part is dropped, and the rest is the image's id wherever it comes from.

Shapes: `N` rows.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cleft.data.tables.csv import Table
from cleft.data.tables.faults import Fault

_PATH = re.compile(
    r"(?P<prefix>.*/)?(?P<id>(?:train|valid|val|test)/(?P<patient>patient\d+)/(?P<study>study\d+)/"
    r"view\d+_(?P<side>frontal|lateral)\.(?:jpe?g|png))"
)


class Paths(NamedTuple):
    """One entry per row; those of a row that says nothing are empty."""

    ids: list[str]
    """From `train/` on."""
    patients: list[str]
    studies: list[str | None]
    sides: list[str]
    """`frontal` or `lateral`."""
    usable: NDArray[np.int64]
    """Rows whose path has the release's form."""
    prefixes: Counter[str]
    """What stood in front of the ids, and how often."""


def read_paths(table: Table) -> tuple[Paths, list[Fault]]:
    """Takes the column `Path` apart; at most one fault, for all rows whose path has another form.

    `val/` is what CheXlocalize calls the folder `valid/`; it stays, because that is where its images are.
    """
    texts = table.columns["Path"].texts()
    matches = [_PATH.fullmatch(text.replace("\\", "/")) for text in texts]
    wrong = [row for row, match in enumerate(matches) if match is None]
    parts = [
        match.group("prefix", "id", "patient", "study", "side") if match else (None, "", "", "", "")
        for match in matches
    ]
    paths = Paths(
        ids=[part[1] or "" for part in parts],
        patients=[part[2] or "" for part in parts],
        studies=[f"{part[2]}/{part[3]}" for part in parts],
        sides=[part[4] or "" for part in parts],
        usable=np.array([row for row, match in enumerate(matches) if match], dtype=np.int64),
        prefixes=Counter(part[0] or "" for part in parts if part[1]),
    )
    if not wrong:
        return paths, []
    what = f"column 'Path' holds {texts[wrong[0]][:80]!r}"
    remedy = "CheXpert's end in train/patientNNNNN/studyK/viewJ_frontal.jpg; for other images set data.dataset=manifest"
    return paths, [Fault("path", what, remedy, table.lines[wrong].tolist())]
