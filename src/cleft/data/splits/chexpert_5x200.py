"""CheXpert-5x200 as a test set: drawn here, or given as a list, and what of its patients is left to learn from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from cleft.config import DataConfig
from cleft.data.labels import single_class
from cleft.data.readers.chexpert import FINDINGS
from cleft.data.splits.draws import Cut, order_key, share_of, take_patients
from cleft.errors import DataError
from cleft.types import Record

CLASSES_5X200 = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
PER_CLASS = 200

SALT_5X200 = "cleft-5x200-v1"
CHEXPERT_VAL_SALT = "cleft-chexpert-val-v1"
IMAGE_VAL_SALT = "cleft-chexpert-val-images-v1"
"""A new salt is a new split: never change one, add one."""

_EXCLUSIVE = FINDINGS[1:]
_FRONTAL = {"AP", "PA", "frontal", None}


def draw_5x200(records: Sequence[Record]) -> dict[str, list[str]]:
    """Draws CheXpert-5x200: 200 images per class that show this finding and none other, surely.

    Args:
        records: With `uncertain` filled in: an uncertain finding disqualifies an image whatever it counts as.

    Returns:
        Class to the ids of its 200 images, in the order of their hash.

    Raises:
        DataError: If a class has fewer than 200 such images.

    Source:
        The selection rule of GLoRIA and MGCA, drawn by hash where they draw without or with a seed
        (docs/decisions/0015).
    """
    pools = {name: [record.id for record in pool] for name, pool in pools_5x200(records).items()}
    short = {name: len(ids) for name, ids in pools.items() if len(ids) < PER_CLASS}
    if short:
        counts = ", ".join(f"{name} {count}" for name, count in short.items())
        raise DataError(
            f"5x200 needs {PER_CLASS} images per class that show this finding alone; found {counts}; "
            "set data.split=patients",
            reason="too-few",
        )
    return {
        name: sorted(ids, key=lambda identifier: order_key(SALT_5X200, identifier))[:PER_CLASS]
        for name, ids in pools.items()
    }


def pools_5x200(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Returns the frontal images of each class that show it alone, in the order of the records."""
    pools: dict[str, list[Record]] = {name: [] for name in CLASSES_5X200}
    for record in records:
        name = _only_finding(record)
        if name is not None and record.view in _FRONTAL:
            pools[name].append(record)
    return pools


def all_5x200(records: Sequence[Record]) -> set[str]:
    """Returns the ids of the images drawn for all five classes."""
    return {identifier for ids in draw_5x200(records).values() for identifier in ids}


def strict(records: Sequence[Record], test: set[str], config: DataConfig) -> Cut:
    """The other images of test patients are left out altogether."""
    patients = {record.patient for record in records if record.id in test}
    pool = [record for record in records if record.patient not in patients]
    return Cut(test, pool, take_patients(pool, share_of(config.val_fraction, len(pool)), CHEXPERT_VAL_SALT))


def paper(records: Sequence[Record], test: set[str], config: DataConfig) -> Cut:
    """The other images of test patients stay in training."""
    pool = [record for record in records if record.id not in test]
    return Cut(test, pool, take_patients(pool, share_of(config.val_fraction, len(pool)), CHEXPERT_VAL_SALT))


def by_image(records: Sequence[Record], test: set[str], config: DataConfig) -> Cut:
    """As `paper`, and validation images are drawn without a look at their patient."""
    pool = [record for record in records if record.id not in test]
    order = sorted((record.id for record in pool), key=lambda identifier: order_key(IMAGE_VAL_SALT, identifier))
    return Cut(test, pool, set(order[: share_of(config.val_fraction, len(pool))]))


RECIPES_5X200: Mapping[str, Callable[[Sequence[Record], set[str], DataConfig], Cut]] = {
    "5x200-strict": strict,
    "5x200-paper": paper,
    "5x200-images": by_image,
}
"""What becomes of the rest once the test images are known, by the value of `data.split`."""


def size_notes(test: Sequence[Record]) -> list[str]:
    """Says how a list differs from 200 images of each class; nothing where it does not."""
    counts = Counter(single_class(record.labels, CLASSES_5X200) for record in test)
    sizes = {name: counts[place] for place, name in enumerate(CLASSES_5X200)}
    if len(test) == len(sizes) * PER_CLASS and set(sizes.values()) == {PER_CLASS}:
        return []
    told = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
    rest = f", several or none of them {counts[None]:,}" if counts[None] else ""
    return [f"the list is not {PER_CLASS} images of each class: it has {len(test):,} ({told}{rest})"]


def _only_finding(record: Record) -> str | None:
    """Returns the class an image of 5x200 belongs to. `No Finding` is not looked at, as in the authors' rule."""
    place = single_class(record.labels, _EXCLUSIVE)
    name = _EXCLUSIVE[place] if place is not None else None
    unsure = any(finding in _EXCLUSIVE for finding in record.uncertain) or -1 in record.labels.values()
    return name if name in CLASSES_5X200 and not unsure else None
