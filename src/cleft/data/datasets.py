"""Registry of datasets, and their settings for a run, another folder or another table."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from cleft.config import (
    DataConfig,
    Settings,
    join_list,
    load_run_settings,
    merge_overrides,
    overridden_keys,
    usual_split,
)
from cleft.data.readers.chexpert import read_chexpert
from cleft.data.readers.embed import TERMS as EMBED_TERMS
from cleft.data.readers.embed import read_embed
from cleft.data.readers.embed_captions import BIRADS_CLASSES, DENSITY_CLASSES, MAMMOGRAM_PREFIX
from cleft.data.readers.embed_captions import PHRASES as MAMMOGRAM_PHRASES
from cleft.data.readers.iu_xray import read_iu_xray
from cleft.data.readers.manifest import read_manifest
from cleft.data.readers.mimic import TERMS as MIMIC_TERMS
from cleft.data.readers.mimic import read_mimic
from cleft.data.readers.nih import FINDINGS as NIH_FINDINGS
from cleft.data.readers.nih import read_nih
from cleft.data.readers.rsna import read_rsna
from cleft.data.tables.paths import is_synthetic
from cleft.data.tables.patients import exclude_patients
from cleft.data.tables.reading import ReaderResult
from cleft.data.tables.rows import gc_paused
from cleft.data.text.captions import CAPTION_ORDER, CHEST_PREFIX, add_captions
from cleft.data.text.reports import drop_unreported
from cleft.errors import ConfigError
from cleft.privacy import expand_user
from cleft.types import Reading, Record

log = logging.getLogger(__name__)


class Reader(Protocol):
    """Reads a folder as far as possible and collects faults of the rest."""

    def __call__(self, config: DataConfig, *, check_files: bool = True) -> ReaderResult:
        """Read the dataset; without `check_files` only its tables."""
        ...


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A dataset: its reader, and defaults for settings that are not set."""

    reader: Reader
    prompt_prefix: str = CHEST_PREFIX
    """Beginning of its captions and class prompts."""
    classes: tuple[str, ...] | None = None
    """Classes to evaluate if those of the run are not findings of the dataset: names of class sets or findings."""
    license_terms: str | None = None
    """Terms of use in one sentence, if they extend to weights trained on the images."""
    phrases: Mapping[str, str] = field(default_factory=dict[str, str])
    """Class to its phrase in prompts, if that is not its name; with the punctuation of the authors' prompts."""
    whole_captions: bool = False
    """Whether captions must not be truncated, because the findings are at the end."""


DATASETS: dict[str, Dataset] = {
    "chexpert": Dataset(reader=read_chexpert, classes=("chexpert-5",)),
    "embed": Dataset(
        reader=read_embed,
        prompt_prefix=MAMMOGRAM_PREFIX,
        classes=("birads-7",),
        license_terms=EMBED_TERMS,
        phrases=MAMMOGRAM_PHRASES,
        whole_captions=True,
    ),
    "nih": Dataset(reader=read_nih, classes=("pneumonia-2",)),
    "mimic": Dataset(reader=read_mimic, classes=("chexpert-5",), license_terms=MIMIC_TERMS),
    "iu-xray": Dataset(reader=read_iu_xray, classes=("chexpert-5",)),
    "rsna": Dataset(reader=read_rsna, classes=("rsna-2",)),
    "manifest": Dataset(reader=read_manifest),
}
"""By value of `data.dataset`."""

CLASS_SETS: dict[str, tuple[str, ...]] = {
    "chexpert-5": ("Atelectasis", "Edema", "Cardiomegaly", "Pleural Effusion", "Consolidation"),
    "chexpert-14": CAPTION_ORDER,
    "pneumonia-2": ("No Finding", "Pneumonia"),
    "rsna-2": ("No Pneumonia", "Pneumonia"),
    "nih-14": NIH_FINDINGS,
    "birads-7": BIRADS_CLASSES,
    "density-4": DENSITY_CLASSES,
}
"""Classes by name of the set, in the order of the authors' code."""


def read_dataset(config: DataConfig) -> Reading:
    """Read a dataset, resolve uncertain labels, and add a caption to every image.

    Raises:
        ConfigError: If `data.root` is not set.
        DataError: If the table or its images are not as the reader expects.
    """
    return finish_reading(DATASETS[config.dataset].reader(config).checked(), config)


@gc_paused()
def finish_reading(reading: Reading, config: DataConfig) -> Reading:
    """Apply the steps common to all datasets after reading.

    Excluded patients are removed, images without a report too if set, uncertain labels resolved and captions added.

    Raises:
        DataError: If no record is left, or the list of excluded patients cannot be read.
    """
    reading = exclude_patients(reading, config)
    if config.missing_report == "drop":
        reading = drop_unreported(reading, "whole")
    resolved = replace(reading, records=apply_uncertain(reading.records, config.uncertain))
    return add_captions(resolved, config, prompt_prefix(config))


Policy = Literal["zeros", "ones", "mixed", "ignore"]

UNCERTAIN = -1.0
_PRESENT_IF_MIXED = {"atelectasis", "edema", "pleural effusion"}


def apply_uncertain(records: Sequence[Record], policy: Policy) -> list[Record]:
    """Resolve labels -1 by a policy; `Record.uncertain` keeps which labels were uncertain.

    Args:
        records: Records as a reader returns them.
        policy: `zeros`: absent. `ones`: present. `mixed`: present for atelectasis, edema and pleural effusion,
            absent for every other finding. `ignore`: unmentioned.

    Returns:
        New records in the same order, without any label -1.

    Source:
        CLEFT counts a finding as positive only if the label is 1, which is `zeros`; `mixed` is what GLoRIA
        and MGCA do for the five competition findings (docs/decisions/0011).
    """
    # Records with equal labels share one mapping, so each distinct mapping is resolved once.
    resolved: dict[int, tuple[Mapping[str, float], tuple[str, ...]]] = {}
    results: list[Record] = []
    for record in records:
        key = id(record.labels)
        if key not in resolved:
            resolved[key] = _resolve(record.labels, policy)
        labels, uncertain = resolved[key]
        results.append(replace(record, labels=labels, uncertain=uncertain) if uncertain else record)
    return results


def _resolve(labels: Mapping[str, float], policy: Policy) -> tuple[Mapping[str, float], tuple[str, ...]]:
    uncertain = tuple(name for name, value in labels.items() if value == UNCERTAIN)
    if not uncertain:
        return labels, ()
    if policy == "ignore":
        return {name: value for name, value in labels.items() if value != UNCERTAIN}, uncertain
    resolved = {name: _count_as(name, policy) if value == UNCERTAIN else value for name, value in labels.items()}
    return resolved, uncertain


def _count_as(finding: str, policy: Policy) -> float:
    if policy == "mixed":
        return float(finding.casefold() in _PRESENT_IF_MIXED)
    return float(policy == "ones")


_OF_TABLE = ("split", "split_file", "test_list", "label_source", "exclude_patients")
"""Settings that belong to one table; not inherited for another table."""
_OF_DATASET = ("patient_mapping", "patient_dataset", "views", "prompt_prefix", "reports", "missing_report")
"""Settings that belong to one dataset; not inherited for another dataset."""


def data_config(settings: Settings, data: str | None, *, inherited: DataConfig | None = None) -> DataConfig:
    """Return the data settings for the run's data, or for another `dataset:folder` or `dataset:table`.

    Another folder of the same dataset is read and split as in the run. A table, such as CheXpert's `test_labels.csv`,
    has its own labels and the default split of the dataset; so has another dataset.

    Args:
        settings: Settings of the run, with those set for these data.
        data: `dataset:folder`, `dataset:table`, or None.
        inherited: Data settings of the run. A setting that differs from them was set explicitly and is kept for any
            data. By default every setting counts as inherited.

    Raises:
        ConfigError: If `data` is not a known dataset with a folder, or is missing and the run has no data, or a setting
            that is kept does not apply to the dataset.
    """
    if data is None:
        if settings.data.root is None:
            raise ConfigError(
                "no data given, and the run has none (it is an imported model); set --data <dataset>:<folder>, such as "
                "chexpert:/data/CheXpert"
            )
        return settings.data
    dataset, _, folder = data.partition(":")
    if dataset not in DATASETS or not folder:
        known = " or ".join(f"{name}:<folder>" for name in DATASETS)
        raise ConfigError(f"data={data!r} is not a dataset and its folder; write {known}")
    own, default = settings.data, DataConfig()
    path = Path(expand_user(folder))
    table = path.is_file()
    names = (*(_OF_TABLE if table or dataset != own.dataset else ()), *(_OF_DATASET if dataset != own.dataset else ()))
    changed: dict[str, Any] = {
        "dataset": dataset,
        "root": path.parent if table else path,
        "table": path.name if table else None,
        **{name: getattr(default, name) for name in names},
    }
    if inherited is not None:
        explicit = {name: getattr(own, name) for name in ("table", *names)}
        changed |= {name: value for name, value in explicit.items() if value != getattr(inherited, name)}
    return replace(own, **changed)


def settings_for(run: Path, data: str | None, words: Sequence[str]) -> Settings:
    """Return the settings of a run for other data, with command-line overrides.

    Overrides are applied last: each is used or rejected. Settings of the run that are not used for these data are
    logged.

    Args:
        run: Run folder.
        data: As for `data_config`; None for the data of the run.
        words: Overrides such as `--data.exclude_patients list.csv`.

    Raises:
        ConfigError: As `data_config` and `merge_overrides`, and if `data` and an override both name the images.
    """
    settings = load_run_settings(run)
    if data is None:
        return merge_overrides(settings, words)
    typed = overridden_keys(words)
    config = data_config(settings, data)
    for name in ("dataset", "root", *(("table",) if config.table is not None else ())):
        if f"data.{name}" in typed:
            raise ConfigError(f"--data {data} and --data.{name} both set the images to read; give one of them")
    merged = merge_overrides(replace(settings, data=config), words)
    report_not_inherited(settings.data, merged.data)
    return merged


def report_not_inherited(before: DataConfig, after: DataConfig) -> None:
    """Log the settings of a run that are not used for other data, if there are any."""
    default = DataConfig()
    names = [
        name
        for name in (*_OF_TABLE, *_OF_DATASET)
        if getattr(before, name) != getattr(default, name) and getattr(after, name) != getattr(before, name)
    ]
    if not names:
        return
    values = ", ".join(f"data.{name}={_as_typed(getattr(before, name))}" for name in names)
    log.info(
        "settings of the run that are not used for these data (%s, split %s): %s",
        after.dataset,
        after.split_file or split_recipe(after),
        values,
    )


def _as_typed(value: Any) -> str:
    return join_list(map(str, cast("Sequence[Any]", value))) if isinstance(value, tuple) else str(value)


def prompt_prefix(config: DataConfig) -> str:
    """Return the beginning of captions and class prompts: `data.prompt_prefix`, or the default of the dataset."""
    return config.prompt_prefix or DATASETS[config.dataset].prompt_prefix


def license_terms(config: DataConfig) -> str | None:
    """Return the terms of use if they extend to weights; None for synthetic images."""
    return None if is_synthetic(config.root) else DATASETS[config.dataset].license_terms


def split_recipe(config: DataConfig) -> str:
    """Return the split recipe: `data.split`, or the default of the dataset."""
    return config.split or usual_split(config.dataset)
