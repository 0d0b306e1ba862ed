"""From the index terms of Open-i's reports, which are those of MeSH, to findings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cleft.data.readers.chexpert import FINDINGS as CHEXPERT
from cleft.data.tables.rows import BLANK
from cleft.grammar import agree, count, verb

FINDINGS = (*CHEXPERT, "Emphysema", "Fibrosis", "Granuloma", "Hernia")
"""CheXpert's fourteen, and four that reports of Open-i often have."""

NORMAL = "normal"

_TERMS = {
    "cardiomegaly": "Cardiomegaly",
    "cardiac shadow/enlarged": "Cardiomegaly",
    "mediastinum/enlarged": "Enlarged Cardiomediastinum",
    "mediastinum/prominent": "Enlarged Cardiomediastinum",
    "opacity": "Lung Opacity",
    "airspace disease": "Lung Opacity",
    "infiltrate": "Lung Opacity",
    "nodule": "Lung Lesion",
    "mass": "Lung Lesion",
    "pulmonary edema": "Edema",
    "consolidation": "Consolidation",
    "pneumonia": "Pneumonia",
    "atelectasis": "Atelectasis",
    "pulmonary atelectasis": "Atelectasis",
    "pneumothorax": "Pneumothorax",
    "hydropneumothorax": "Pneumothorax",
    "pleural effusion": "Pleural Effusion",
    "pleural thickening": "Pleural Other",
    "thickening/pleura": "Pleural Other",
    "fractures, bone": "Fracture",
    "catheters, indwelling": "Support Devices",
    "implanted medical device": "Support Devices",
    "medical device": "Support Devices",
    "tube, inserted": "Support Devices",
    "emphysema": "Emphysema",
    "pulmonary emphysema": "Emphysema",
    "pulmonary fibrosis": "Fibrosis",
    "calcified granuloma": "Granuloma",
    "granuloma": "Granuloma",
    "granulomatous disease": "Granuloma",
    "hernia, hiatal": "Hernia",
}
"""Term, alone or with its first qualifier, to the finding it states."""
_SILENT = {"no indexing", "technical quality of image unsatisfactory"}


def finding_of(term: str) -> str | None:
    """Returns the finding that a term states, if it is one of `FINDINGS`.

    Example:
        >>> [finding_of(term) for term in ("Opacity/lung/base/left", "Cardiac Shadow/enlarged/mild", "Spine")]
        ['Lung Opacity', 'Cardiomegaly', None]
    """
    parts = [part.strip() for part in term.casefold().split("/")]
    return _TERMS.get("/".join(parts[:2])) or _TERMS.get(parts[0])


def code_terms(terms: Sequence[Sequence[str]]) -> tuple[NDArray[np.int8], list[str]]:
    """Returns the labels of each report, `[R, C]`, and what there is to say about them.

    Indexers wrote down whatever a report states: what they did not name is absent. A report that nobody indexed has no
    labels. `No Finding` is present where `normal` is the only term.
    """
    codes = np.full((len(terms), len(FINDINGS)), BLANK, dtype=np.int8)
    place = {name: column for column, name in enumerate(FINDINGS)}
    other: Counter[str] = Counter()
    silent = 0
    for row, named in enumerate(terms):
        told = [term for term in named if term.casefold() not in _SILENT]
        if not told:
            silent += 1
            continue
        codes[row] = 0
        for term in told:
            finding = finding_of(term)
            if finding is not None:
                codes[row, place[finding]] = 1
            elif term.casefold() != NORMAL:
                other[term.partition("/")[0].strip()] += 1
        codes[row, place["No Finding"]] = int(all(term.casefold() == NORMAL for term in told))
    notes: list[str] = []
    if silent:
        unread = agree(silent, "[is|are] not indexed; [its|their] findings are unknown")
        notes.append(f"{count(silent, 'report')} {unread}")
    if other:
        state = verb(len(other), "states", "state")
        times = count(other.total(), "time")
        notes.append(f"{count(len(other), 'index term')} {state} none of the findings here ({times})")
    return codes, notes
