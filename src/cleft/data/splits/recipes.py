"""Split recipes: training, validation and test sets that are the same on every machine.

`patients` draws patients by hash. `5x200-*` draw CheXpert-5x200 as test set and differ in what happens to the other
images of its patients. `rsna-balanced` has as many positive as negative images. `embed` cuts patients at 70, 10 and
20 %. `given` uses the official split of a dataset, or the column of a table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from cleft.config import DataConfig
from cleft.data.counts import single_class
from cleft.data.datasets import split_recipe
from cleft.data.images.cache import cache_folder
from cleft.data.readers.chexpert import FINDINGS
from cleft.data.splits.split_file import apply_split_file
from cleft.data.splits.subsets import TEST_SALT, VAL_SALT, Assignment, ids_digest, image_count, order_key, take_patients
from cleft.data.tables.rows import gc_paused
from cleft.errors import ConfigError, DataError
from cleft.grammar import count, share, verb
from cleft.types import Reading, Record, Splits

CLASSES_5X200 = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
PER_CLASS = 200

SALT_5X200 = "cleft-5x200-v1"
CHEXPERT_VAL_SALT = "cleft-chexpert-val-v1"
IMAGE_VAL_SALT = "cleft-chexpert-val-images-v1"
"""A new salt is a new split: never change one, add one."""

_EXCLUSIVE = FINDINGS[1:]
_FRONTAL = {"AP", "PA", "frontal", None}


def draw_5x200(records: Sequence[Record]) -> dict[str, list[str]]:
    """Draws CheXpert-5x200: 200 images per class with this finding and no other, present or uncertain.

    Args:
        records: With `uncertain` filled in; an uncertain finding excludes an image whatever the label policy.

    Returns:
        Ids of the 200 images of each class, in hash order.

    Raises:
        DataError: If a class has fewer than 200 such images.

    Source:
        The selection rule of GLoRIA and MGCA, which draw randomly; we draw in hash order
        (docs/decisions/0015).
    """
    pools = {name: [record.id for record in pool] for name, pool in pools_5x200(records).items()}
    short = {name: len(ids) for name, ids in pools.items() if len(ids) < PER_CLASS}
    if short:
        counts = ", ".join(f"{name} {count}" for name, count in short.items())
        raise DataError(
            f"5x200 needs {PER_CLASS} images per class with this finding only; found {counts}; set data.split=patients",
            reason="too-few",
        )
    return {
        name: sorted(ids, key=lambda identifier: order_key(SALT_5X200, identifier))[:PER_CLASS]
        for name, ids in pools.items()
    }


def pools_5x200(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Returns the frontal images of each class without any other finding, in the order of the records."""
    pools: dict[str, list[Record]] = {name: [] for name in CLASSES_5X200}
    for record in records:
        name = _only_finding(record)
        if name is not None and record.view in _FRONTAL:
            pools[name].append(record)
    return pools


def ids_5x200(records: Sequence[Record]) -> set[str]:
    """Returns the ids of the images drawn for all five classes."""
    return {identifier for ids in draw_5x200(records).values() for identifier in ids}


def strict_5x200(records: Sequence[Record], test: set[str], config: DataConfig) -> Assignment:
    """Leaves out the other images of test patients."""
    patients = {record.patient for record in records if record.id in test}
    pool = [record for record in records if record.patient not in patients]
    return Assignment(test, pool, take_patients(pool, image_count(config.val_fraction, len(pool)), CHEXPERT_VAL_SALT))


def paper_5x200(records: Sequence[Record], test: set[str], config: DataConfig) -> Assignment:
    """Keeps the other images of test patients in the pool of training and validation."""
    pool = [record for record in records if record.id not in test]
    return Assignment(test, pool, take_patients(pool, image_count(config.val_fraction, len(pool)), CHEXPERT_VAL_SALT))


def images_5x200(records: Sequence[Record], test: set[str], config: DataConfig) -> Assignment:
    """Like `paper_5x200`, but draws validation by image, not by patient."""
    pool = [record for record in records if record.id not in test]
    order = sorted((record.id for record in pool), key=lambda identifier: order_key(IMAGE_VAL_SALT, identifier))
    return Assignment(test, pool, set(order[: image_count(config.val_fraction, len(pool))]))


RECIPES_5X200: Mapping[str, Callable[[Sequence[Record], set[str], DataConfig], Assignment]] = {
    "5x200-strict": strict_5x200,
    "5x200-paper": paper_5x200,
    "5x200-images": images_5x200,
}
"""How the other images are split once the test images are known, by the value of `data.split`."""


def size_notes(test: Sequence[Record]) -> list[str]:
    """Returns a note if a test list is not 200 images of each class."""
    counts = Counter(single_class(record.labels, CLASSES_5X200) for record in test)
    sizes = {name: counts[place] for place, name in enumerate(CLASSES_5X200)}
    if len(test) == len(sizes) * PER_CLASS and set(sizes.values()) == {PER_CLASS}:
        return []
    listed = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
    rest = f", several or none of them {counts[None]:,}" if counts[None] else ""
    return [f"the list is not {PER_CLASS} images of each class: it has {len(test):,} ({listed}{rest})"]


def _only_finding(record: Record) -> str | None:
    """Returns the 5x200 class of an image, or None. `No Finding` is ignored, as in the authors' rule."""
    place = single_class(record.labels, _EXCLUSIVE)
    name = _EXCLUSIVE[place] if place is not None else None
    uncertain = any(finding in _EXCLUSIVE for finding in record.uncertain) or -1 in record.labels.values()
    return name if name in CLASSES_5X200 and not uncertain else None


POSITIVE = "Pneumonia"
TEST_POSITIVES = 1_769
ALL_POSITIVES = 6_012
"""The paper tests on 1,769 of the 6,012 positive images; smaller datasets use the same share."""

PATIENT_SALT = "cleft-rsna-v1"
NEGATIVE_SALT = "cleft-rsna-neg-v1"
POSITIVE_SALT = "cleft-rsna-pos-v1"
RSNA_VAL_SALT = "cleft-rsna-val-v1"
"""A new salt is a new split: never change one, add one."""

_DIGITS = 8


def rsna_balanced(records: Sequence[Record], config: DataConfig) -> Assignment:
    """Splits RSNA into a test set and a pool, each with as many images with as without Pneumonia.

    Patients are added to the test set in hash order as long as its positives do not exceed 1,769 of 6,012; the others
    form the pool. Of the negatives of each, as many as positives are drawn by the hash of the image, or the reverse if
    there are fewer negatives. Validation is drawn by patient from the pool and need not be balanced.

    Raises:
        DataError: If no image has Pneumonia or none is without it.

    Source:
        The paper has 8,486 training and 3,538 test images, which is 2 x 6,012: all positives and as many negatives. Its
        list of images was not published.
    """
    positive = {record.id for record in records if record.labels.get(POSITIVE) == 1}
    negative = {record.id for record in records if record.labels.get(POSITIVE) == 0}
    if not positive or not negative:
        raise DataError(
            f"data.split=rsna-balanced needs images with {POSITIVE} and images without; found {len(positive):,} and "
            f"{len(negative):,}; set data.split=patients",
            reason="too-few",
        )
    test_patients = _test_patients(records, positive)
    sides = [[record for record in records if (record.patient in test_patients) is side] for side in (True, False)]
    chosen = _balance(sides[0], positive, negative) | _balance(sides[1], positive, negative)
    test = {record.id for record in sides[0] if record.id in chosen}
    pool = [record for record in sides[1] if record.id in chosen]
    return Assignment(test, pool, take_patients(pool, image_count(config.val_fraction, len(pool)), RSNA_VAL_SALT))


def _test_patients(records: Sequence[Record], positive: set[str]) -> set[str]:
    """Takes patients in hash order; those with too many positives are skipped."""
    positives: dict[str, int] = {}
    for record in records:
        positives[record.patient] = positives.get(record.patient, 0) + (record.id in positive)
    target = image_count(TEST_POSITIVES / ALL_POSITIVES, len(positive))
    tested: set[str] = set()
    reached = 0
    # The hash order is that of NIH's eight-digit names.
    for patient in sorted(positives, key=lambda patient: order_key(PATIENT_SALT, patient.zfill(_DIGITS))):
        if reached == target:
            break
        if reached + positives[patient] <= target:
            tested.add(patient)
            reached += positives[patient]
    return tested


def _balance(records: Sequence[Record], positive: set[str], negative: set[str]) -> set[str]:
    """Draws as many positive as negative images, as many as the rarer of the two."""
    with_it = [record.id for record in records if record.id in positive]
    without = [record.id for record in records if record.id in negative]
    each = min(len(with_it), len(without))
    return {*_first(with_it, each, POSITIVE_SALT), *_first(without, each, NEGATIVE_SALT)}


def _first(ids: Sequence[str], count: int, salt: str) -> list[str]:
    return sorted(ids, key=lambda identifier: order_key(salt, identifier))[:count]


EMBED_SALT = "cleft-embed-v1"
"""A new salt is a new split: never change it, add one."""

_TRAIN, _VAL = 0.7, 0.8
"""Where training and validation end; the rest is for testing."""


def embed_patients(records: Sequence[Record], config: DataConfig) -> Assignment:
    """Cuts the patients, in hash order, at 70 and 80 %, regardless of their numbers of images.

    Source:
        CLEFT, section 3.1: 70/10/20 %. The authors draw patients without a seed, so their split cannot be reproduced.
    """
    order = sorted({record.patient for record in records}, key=lambda patient: order_key(EMBED_SALT, patient))
    first, second = round(_TRAIN * len(order)), round(_VAL * len(order))
    val, test = set(order[first:second]), set(order[second:])
    return Assignment(
        test={record.id for record in records if record.patient in test},
        pool=[record for record in records if record.patient not in test],
        val={record.id for record in records if record.patient in val},
    )


@gc_paused()
def split_records(reading: Reading, config: DataConfig) -> Splits:
    """Splits records into training, validation and test sets.

    Uses `data.split_file` if it is set; otherwise the recipe `data.split` or the dataset's default, with the images of
    `data.test_list` as test set if it is set.

    Returns:
        The splits, each in the order of the reading.

    Raises:
        ConfigError: If the recipe does not support a test list.
        DataError: If there are too few images or patients, splits share a patient although the recipe forbids it, the
            split file does not match, or too many images of the test list cannot be used.
    """
    if config.split_file is not None:
        parts, recipe, notes = apply_split_file(config.split_file, reading, cache_folder(config))
        may_share = recipe in SPLITS and recipe not in DISJOINT
    else:
        recipe = split_recipe(config)
        assignment, notes = _assign(reading, recipe, config)
        parts = {
            "train": [record for record in assignment.pool if record.id not in assignment.val],
            "val": [record for record in assignment.pool if record.id in assignment.val],
            "test": [record for record in reading.records if record.id in assignment.test],
        }
        _refuse_empty(parts, len(reading.records), recipe, config)
        may_share = recipe not in DISJOINT
    shared = shared_patients(parts)
    if shared and not may_share:
        raise_shared_patients(shared, recipe)
    return Splits(
        **parts,
        recipe=recipe,
        digest=ids_digest(f"{name}|{record.id}" for name, part in parts.items() for record in part),
        shared_patients=len(shared),
        notes=tuple(notes),
    )


def salts_of(recipe: str, config: DataConfig) -> dict[str, str]:
    """Returns the salts of a split; empty if the split comes from a file."""
    if config.split_file is not None:
        return {}
    return {what: salt for what, salt in SALTS[recipe].items() if what != "test" or config.test_list is None}


def shared_patients(parts: Mapping[str, Sequence[Record]]) -> list[str]:
    """Returns the patients in more than one split, sorted."""
    counts = Counter(patient for part in parts.values() for patient in {record.patient for record in part})
    return sorted(patient for patient, count in counts.items() if count > 1)


def raise_shared_patients(shared: Sequence[str], recipe: str) -> None:
    """Raises a DataError with the number of patients in two splits and three examples."""
    raise DataError(
        f"{count(len(shared), 'patient')} {verb(len(shared), 'is', 'are')} in two splits of the recipe {recipe!r}, "
        f"such as {', '.join(shared[:3])}; "
        "metrics would be too optimistic",
        reason="shared-patients",
    )


def _assign(reading: Reading, recipe: str, config: DataConfig) -> tuple[Assignment, list[str]]:
    if config.test_list is None:
        return SPLITS[recipe](reading.records, config), []
    if recipe not in _LIST_RECIPES:
        raise ConfigError(f"data.split={recipe} does not support data.test_list; use one of {', '.join(_LIST_RECIPES)}")
    if not reading.listed_ids:
        raise ConfigError(f"data.test_list does not apply to data.dataset={reading.dataset}; omit it")
    test, notes = _usable_list(reading, config)
    if recipe in RECIPES_5X200:
        notes += size_notes([record for record in reading.records if record.id in test])
    return _LIST_RECIPES[recipe](reading.records, test, config), notes


def _usable_list(reading: Reading, config: DataConfig) -> tuple[set[str], list[str]]:
    """Returns the usable images of a test list, and a note about the others.

    Raises:
        DataError: If more images than `data.max_invalid` allows cannot be used.
    """
    test = reading.listed_ids & {record.id for record in reading.records}
    unusable = reading.listed_ids - test
    if not unusable:
        return set(test), []
    reasons = {reason: len(unusable.intersection(ids)) for reason, ids in reading.rejected.items()}
    listed = ", ".join(f"{reason} {count:,}" for reason, count in reasons.items() if count)
    images = share(len(unusable), len(reading.listed_ids), "image")
    note = f"{images} of the test list cannot be used ({listed or 'faulty rows'})"
    if len(unusable) > config.max_invalid * len(reading.listed_ids):
        what = f"{note}, such as {', '.join(sorted(unusable)[:3])}; data.max_invalid allows {config.max_invalid:.1%}"
        raise DataError(
            f"{what}; complete the download, or raise data.max_invalid to test on the rest", reason="test-list"
        )
    return set(test), [note]


def _by_patient(records: Sequence[Record], config: DataConfig) -> Assignment:
    test = take_patients(records, image_count(config.test_fraction, len(records)), TEST_SALT)
    pool = [record for record in records if record.id not in test]
    return Assignment(test, pool, take_patients(pool, image_count(config.val_fraction, len(pool)), VAL_SALT))


def _recipe_5x200(recipe: str) -> Callable[[Sequence[Record], DataConfig], Assignment]:
    return lambda records, config: RECIPES_5X200[recipe](records, ids_5x200(records), config)


def _given(records: Sequence[Record], config: DataConfig) -> Assignment:
    """Uses the split of the records. Without validation records, validation is drawn from training by patient."""
    parts = {name: [record for record in records if record.split == name] for name in ("train", "val", "test")}
    if not any(parts.values()):
        raise DataError(
            "data.split=given, but no image has a split; add the dataset's official lists or a column 'split', or set "
            "data.split=patients",
            reason="too-few",
        )
    val = {record.id for record in parts["val"]}
    drawn = val or take_patients(parts["train"], image_count(config.val_fraction, len(parts["train"])), VAL_SALT)
    return Assignment({record.id for record in parts["test"]}, [*parts["train"], *parts["val"]], drawn)


def _from_list(records: Sequence[Record], test: set[str], config: DataConfig) -> Assignment:
    """Uses the patients without an image in the test list for training and validation."""
    patients = {record.patient for record in records if record.id in test}
    pool = [record for record in records if record.patient not in patients]
    return Assignment(test, pool, take_patients(pool, image_count(config.val_fraction, len(pool)), VAL_SALT))


_LIST_RECIPES = {"patients": _from_list, **RECIPES_5X200}
"""How the other images are split if the test set is given by a list."""

SPLITS: dict[str, Callable[[Sequence[Record], DataConfig], Assignment]] = {
    "patients": _by_patient,
    **{recipe: _recipe_5x200(recipe) for recipe in RECIPES_5X200},
    "rsna-balanced": rsna_balanced,
    "embed": embed_patients,
    "given": _given,
}
"""Recipes by the value of `data.split`."""

SALTS: Mapping[str, Mapping[str, str]] = {
    "patients": {"test": TEST_SALT, "val": VAL_SALT},
    "5x200-strict": {"test": SALT_5X200, "val": CHEXPERT_VAL_SALT},
    "5x200-paper": {"test": SALT_5X200, "val": CHEXPERT_VAL_SALT},
    "5x200-images": {"test": SALT_5X200, "val": IMAGE_VAL_SALT},
    "rsna-balanced": {
        "test": PATIENT_SALT,
        "negatives": NEGATIVE_SALT,
        "positives": POSITIVE_SALT,
        "val": RSNA_VAL_SALT,
    },
    "embed": {"patients": EMBED_SALT},
    "given": {"val": VAL_SALT},
}
"""Salt of each draw, by recipe."""

DISJOINT = ("patients", "5x200-strict", "rsna-balanced", "embed")
"""Recipes that guarantee that no patient is in two splits."""


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
            "every split needs at least one patient: add patients or change these settings",
            reason="too-few",
        )
