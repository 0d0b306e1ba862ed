"""The numbers that the paper prints for the tasks of a report, always marked as the paper's.

Source: CLEFT, Tables 1 and 2, zero-shot columns. The paper gives accuracies without intervals and no AUC.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from cleft.types import Evaluation


class Published(NamedTuple):
    """One row of the paper's table."""

    model: str
    accuracy: float
    """In [0, 1]."""


CHEXPERT_5 = frozenset(("Atelectasis", "Edema", "Cardiomegaly", "Pleural Effusion", "Consolidation"))
CHEXPERT_5X200 = (
    Published("CLEFT, LoRA", 0.6674),
    Published("CLEFT, IA3", 0.6561),
    Published("CLEFT, prefix", 0.6055),
)
RSNA = (
    Published("CLEFT, LoRA", 0.6493),
    Published("CLEFT, IA3", 0.6408),
    Published("CLEFT, prefix", 0.6407),
)
EMBED: Mapping[tuple[str, int], tuple[Published, ...]] = {
    ("BI-RADS", 7 * 200): (Published("CLEFT, LoRA", 0.3329), Published("CLIP", 0.2093)),
    ("Density", 4 * 500): (Published("CLEFT, LoRA", 0.7440), Published("CLIP", 0.7045)),
}
"""By what all class names begin with, and by the images of a balanced set."""


def published(evaluation: Evaluation) -> tuple[Published, ...]:
    """The paper's rows for the same question, or none where the paper does not ask it."""
    if evaluation.task != "zero-shot" or evaluation.scoring != "multi-class" or evaluation.split != "test":
        return ()
    five = evaluation.split_recipe.startswith("5x200") and frozenset(evaluation.classes) == CHEXPERT_5
    if evaluation.dataset == "chexpert" and five:
        return CHEXPERT_5X200
    if evaluation.dataset == "rsna" and len(evaluation.classes) == 2:
        return RSNA
    if evaluation.dataset == "embed" and evaluation.confusion is not None and not evaluation.synthetic:
        rows = [sum(row) for row in evaluation.confusion]
        kinds = {name.partition(" ")[0] for name in evaluation.classes}
        if len(kinds) == len(set(rows)) == 1:
            return EMBED.get((next(iter(kinds)), sum(rows)), ())
    return ()
