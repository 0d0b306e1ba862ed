"""Which images a classifier learns from, and what is right to answer for each.

Shapes: `N` images, `C` classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cleft.config import ClassifyConfig
from cleft.data.batches import label_table
from cleft.errors import ConfigError, DataError
from cleft.grammar import share, verb
from cleft.types import Record


class Examples(NamedTuple):
    """Images with a right answer."""

    records: list[Record]
    targets: Tensor
    """Class of each image, `[N]` int64; or, finding by finding, 1 there, 0 not there, NaN not known, `[N, C]` float."""
    told: str
    """How many images that left in and out, in a sentence."""

    def patients(self) -> int:
        """How many people these images show."""
        return len({record.patient for record in self.records})


def choose_examples(records: Sequence[Record], classes: Sequence[str], config: ClassifyConfig) -> Examples:
    """Takes the images of a split that have a right answer.

    Multi-class, these show exactly one of the classes: one that shows none would otherwise count as the first class,
    and one that shows several has more than one right answer. Finding by finding, something must be known.

    Args:
        records: Images of a split.
        classes: What is told apart.
        config: How it is asked, and what blank labels count as.

    Source:
        The authors' code takes the largest of a row of labels, which makes the first class of every image that shows
        none (docs/decisions/0101).
    """
    labels = torch.from_numpy(label_table(records, classes))  # [N, C]
    if config.scoring == "multi-class":
        present = labels == 1
        shown = present.sum(dim=1)
        kept = shown == 1
        targets = present.long().argmax(dim=1)[kept] if len(records) else torch.zeros(0, dtype=torch.int64)
        none = int((shown == 0).sum())
        left_out = f"{none:,} {verb(none, 'shows', 'show')} none of the classes, {int((shown > 1).sum()):,} several"
    else:
        labels[labels == -1] = torch.nan
        if config.blank == "absent":
            labels = labels.nan_to_num(0.0)
        kept = ~labels.isnan().all(dim=1)
        targets = labels[kept]
        left_out = f"of {int((~kept).sum()):,} nothing is known"
    chosen = [record for record, keep in zip(records, kept.tolist(), strict=True) if keep]
    return Examples(chosen, targets, f"{share(len(chosen), len(records), 'image')} ({left_out})")


def check_examples(examples: Examples, classes: Sequence[str], config: ClassifyConfig) -> None:
    """Refuses classes that nothing can be learned about.

    Raises:
        ConfigError: If there is nothing to tell apart.
        DataError: If a class has no training image, or a finding is never there or never absent; names them.
    """
    if config.scoring == "multi-class":
        if len(classes) < 2:
            raise ConfigError(
                f"classes={list(classes)}: telling apart takes at least two; or ask for one finding at a time with "
                f"--scoring present-absent"
            )
        counts = torch.bincount(examples.targets, minlength=len(classes)).tolist()
        empty = [name for name, images in zip(classes, counts, strict=True) if not images]
        what = f"no training image shows {' or '.join(empty)} and no other of the classes {', '.join(classes)}"
        hint = "leave it out of --classes"
    else:
        silent = {
            what: [name for column, name in enumerate(classes) if not (examples.targets[:, column] == value).any()]
            for value, what in ((1, "shows"), (0, "lacks"))
        }
        empty = [name for names in silent.values() for name in names]
        told = [
            f"no training image is known to {verb[:-1]} {' or '.join(names)}" for verb, names in silent.items() if names
        ]
        what, hint = "; ".join(told), "leave it out of --classes, or count blank labels as absent with --blank absent"
    if empty:
        raise DataError(f"{what}; {hint}, or add images ({examples.told})", reason="empty-class")
