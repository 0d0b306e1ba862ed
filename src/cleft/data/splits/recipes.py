"""Splits that are the same on every machine, patients never torn apart by accident: the recipes, and their promises."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from cleft.config import DataConfig
from cleft.data.collector import collector_paused
from cleft.data.datasets import recipe_of
from cleft.data.images.prepared import cache_folder
from cleft.data.splits import balanced, embed_split
from cleft.data.splits.balanced import rsna_balanced
from cleft.data.splits.chexpert_5x200 import (
    CHEXPERT_VAL_SALT,
    IMAGE_VAL_SALT,
    RECIPES_5X200,
    SALT_5X200,
    all_5x200,
    size_notes,
)
from cleft.data.splits.draws import TEST_SALT, VAL_SALT, Cut, ids_digest, share_of, take_patients
from cleft.data.splits.files import follow_split_file
from cleft.errors import ConfigError, DataError
from cleft.grammar import count, share, verb
from cleft.types import Reading, Record, Splits


@collector_paused()
def split_records(reading: Reading, config: DataConfig) -> Splits:
    """Tells records apart for training, choosing and testing.

    By `data.split_file` where one is given; otherwise by the rule `data.split` or the dataset's own, with the images of
    `data.test_list` as its test set where there is a list.

    Returns:
        The splits, each in the order of the reading.

    Raises:
        ConfigError: If the rule takes no list.
        DataError: If there are too few images or patients for a split, two splits share a patient against the rule, a
            split file does not fit, or too many images of a list cannot be used.
    """
    if config.split_file is not None:
        parts, recipe, notes = follow_split_file(config.split_file, reading, cache_folder(config))
        may_share = recipe in SPLITS and recipe not in DISJOINT
    else:
        recipe = recipe_of(config)
        cut, notes = _cut(reading, recipe, config)
        parts = {
            "train": [record for record in cut.pool if record.id not in cut.val],
            "val": [record for record in cut.pool if record.id in cut.val],
            "test": [record for record in reading.records if record.id in cut.test],
        }
        _refuse_empty(parts, len(reading.records), recipe, config)
        may_share = recipe not in DISJOINT
    shared = shared_patients(parts)
    if shared and not may_share:
        refuse_shared(shared, recipe)
    return Splits(
        **parts,
        recipe=recipe,
        digest=ids_digest(f"{name}|{record.id}" for name, part in parts.items() for record in part),
        shared_patients=len(shared),
        notes=tuple(notes),
    )


def salts_of(recipe: str, config: DataConfig) -> dict[str, str]:
    """Returns what a split was drawn with; nothing where a file says who stands where."""
    if config.split_file is not None:
        return {}
    return {what: salt for what, salt in SALTS[recipe].items() if what != "test" or config.test_list is None}


def shared_patients(parts: Mapping[str, Sequence[Record]]) -> list[str]:
    """Returns the patients who stand in more than one split, sorted."""
    counts = Counter(patient for part in parts.values() for patient in {record.patient for record in part})
    return sorted(patient for patient, count in counts.items() if count > 1)


def refuse_shared(shared: Sequence[str], recipe: str) -> None:
    """Raises a DataError that counts the patients who stand in two splits and names three."""
    raise DataError(
        f"{count(len(shared), 'patient')} {verb(len(shared), 'is', 'are')} in two splits of the recipe {recipe!r}, "
        f"such as {', '.join(shared[:3])}; "
        "numbers measured on them would be too good",
        reason="shared-patients",
    )


def _cut(reading: Reading, recipe: str, config: DataConfig) -> tuple[Cut, list[str]]:
    if config.test_list is None:
        return SPLITS[recipe](reading.records, config), []
    if recipe not in _FROM_LIST:
        raise ConfigError(f"data.split={recipe} takes no data.test_list; choose one of {', '.join(_FROM_LIST)}")
    if not reading.listed:
        raise ConfigError(f"data.test_list is not read for data.dataset={reading.dataset}; leave it out")
    test, notes = _listed(reading, config)
    if recipe in RECIPES_5X200:
        notes += size_notes([record for record in reading.records if record.id in test])
    return _FROM_LIST[recipe](reading.records, test, config), notes


def _listed(reading: Reading, config: DataConfig) -> tuple[set[str], list[str]]:
    """The images of a list that can be used, and a sentence about the others.

    Raises:
        DataError: If they are more than `data.max_bad` allows.
    """
    test = reading.listed & {record.id for record in reading.records}
    gone = reading.listed - test
    if not gone:
        return set(test), []
    reasons = {reason: len(gone.intersection(ids)) for reason, ids in reading.rejected.items()}
    listed = ", ".join(f"{reason} {count:,}" for reason, count in reasons.items() if count)
    images = share(len(gone), len(reading.listed), "image")
    sentence = f"{images} of the test list cannot be used ({listed or 'faulty rows'})"
    if len(gone) > config.max_bad * len(reading.listed):
        what = f"{sentence}, such as {', '.join(sorted(gone)[:3])}; data.max_bad allows {config.max_bad:.1%}"
        raise DataError(f"{what}; complete the download, or raise data.max_bad to test on the rest", reason="test-list")
    return set(test), [sentence]


def _by_patient(records: Sequence[Record], config: DataConfig) -> Cut:
    test = take_patients(records, share_of(config.test_fraction, len(records)), TEST_SALT)
    pool = [record for record in records if record.id not in test]
    return Cut(test, pool, take_patients(pool, share_of(config.val_fraction, len(pool)), VAL_SALT))


def _by_5x200(recipe: str) -> Callable[[Sequence[Record], DataConfig], Cut]:
    return lambda records, config: RECIPES_5X200[recipe](records, all_5x200(records), config)


def _given(records: Sequence[Record], config: DataConfig) -> Cut:
    """As the records say. Where none is for choosing, validation is drawn from training by patient."""
    parts = {name: [record for record in records if record.split == name] for name in ("train", "val", "test")}
    if not any(parts.values()):
        raise DataError(
            "data.split=given, but nothing says which images are for training; give the dataset's official lists or a "
            "column 'split', or set data.split=patients",
            reason="too-few",
        )
    val = {record.id for record in parts["val"]}
    drawn = val or take_patients(parts["train"], share_of(config.val_fraction, len(parts["train"])), VAL_SALT)
    return Cut({record.id for record in parts["test"]}, [*parts["train"], *parts["val"]], drawn)


def _others(records: Sequence[Record], test: set[str], config: DataConfig) -> Cut:
    """Everybody whom the list does not show."""
    patients = {record.patient for record in records if record.id in test}
    pool = [record for record in records if record.patient not in patients]
    return Cut(test, pool, take_patients(pool, share_of(config.val_fraction, len(pool)), VAL_SALT))


_FROM_LIST = {"patients": _others, **RECIPES_5X200}
"""What becomes of the rest where a list says what is tested on."""

SPLITS: dict[str, Callable[[Sequence[Record], DataConfig], Cut]] = {
    "patients": _by_patient,
    **{recipe: _by_5x200(recipe) for recipe in RECIPES_5X200},
    "rsna-balanced": rsna_balanced,
    "embed": embed_split.embed_patients,
    "given": _given,
}
"""Recipes by the value of `data.split`."""

SALTS: Mapping[str, Mapping[str, str]] = {
    "patients": {"test": TEST_SALT, "val": VAL_SALT},
    "5x200-strict": {"test": SALT_5X200, "val": CHEXPERT_VAL_SALT},
    "5x200-paper": {"test": SALT_5X200, "val": CHEXPERT_VAL_SALT},
    "5x200-images": {"test": SALT_5X200, "val": IMAGE_VAL_SALT},
    "rsna-balanced": {
        "test": balanced.PATIENT_SALT,
        "negatives": balanced.NEGATIVE_SALT,
        "positives": balanced.POSITIVE_SALT,
        "val": balanced.VAL_SALT,
    },
    "embed": {"patients": embed_split.SALT},
    "given": {"val": VAL_SALT},
}
"""Recipe to what it draws and the salt of that order."""

DISJOINT = ("patients", "5x200-strict", "rsna-balanced", "embed")
"""Recipes that promise that no patient stands in two splits."""


def _refuse_empty(parts: Mapping[str, Sequence[Record]], images: int, recipe: str, config: DataConfig) -> None:
    wanted = {
        "train": True,
        "val": config.val_fraction > 0,
        "test": recipe != "given" and (recipe != "patients" or config.test_fraction > 0),
    }
    empty = [name for name, part in parts.items() if wanted[name] and not part]
    if empty:
        raise DataError(
            f"{count(images, 'image')} {verb(images, 'leaves', 'leave')} none for {' and '.join(empty)} under "
            f"data.split={recipe}, data.val_fraction={config.val_fraction}, data.test_fraction={config.test_fraction}; "
            "a split needs a patient of its own: add patients or change these settings",
            reason="too-few",
        )
