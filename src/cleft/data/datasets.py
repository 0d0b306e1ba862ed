"""The datasets that can be read: one entry each, and everything the other rooms need to know about it."""

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
from cleft.data.readers.embed_captions import BIRADS_CLASSES, DENSITY_CLASSES
from cleft.data.readers.embed_captions import OPENING as MAMMOGRAM_OPENING
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


log = logging.getLogger(__name__)


class Reader(Protocol):
    """Reads what can be read of a folder and collects what is wrong with the rest."""

    def __call__(self, config: DataConfig, *, check_files: bool = True) -> ReaderResult:
        """Reads; without `check_files` tables alone."""
        ...


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """How a dataset is read, and what holds for it unless a setting says otherwise."""

    reader: Reader
    """Its reader."""
    prompt_prefix: str = CHEST_PREFIX
    """What its captions and class prompts begin with."""
    classes: tuple[str, ...] | None = None
    """Classes it is asked about when a run's own are none of its findings: names of sets or findings."""
    license_terms: str | None = None
    """What its owner allows, in a sentence, where that reaches beyond the images: to weights trained on them."""
    phrases: Mapping[str, str] = field(default_factory=dict[str, str])
    """Class to its phrase in prompts, where that is not its name; with the punctuation of the authors' prompts."""
    whole_captions: bool = False
    """Whether a caption must not be cut, because what it is about stands at its end."""


DATASETS: dict[str, Dataset] = {
    "chexpert": Dataset(reader=read_chexpert, classes=("chexpert-5",)),
    "embed": Dataset(
        reader=read_embed,
        prompt_prefix=MAMMOGRAM_OPENING,
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
"""By the value of `data.dataset`."""

CLASS_SETS: dict[str, tuple[str, ...]] = {
    "chexpert-5": ("Atelectasis", "Edema", "Cardiomegaly", "Pleural Effusion", "Consolidation"),
    "chexpert-14": CAPTION_ORDER,
    "pneumonia-2": ("No Finding", "Pneumonia"),
    "rsna-2": ("No Pneumonia", "Pneumonia"),
    "nih-14": NIH_FINDINGS,
    "birads-7": BIRADS_CLASSES,
    "density-4": DENSITY_CLASSES,
}
"""Classes by the name of their set, in the order of the authors' code."""


def read_dataset(config: DataConfig) -> Reading:
    """Reads a dataset, decides what its uncertain labels count as, and gives every image its caption.

    Raises:
        ConfigError: If `data.root` is not set.
        DataError: If the table or its images are not what the reader expects.
    """
    return finish_reading(DATASETS[config.dataset].reader(config).checked(), config)


@gc_paused()
def finish_reading(reading: Reading, config: DataConfig) -> Reading:
    """What every dataset goes through after its reader.

    Patients are excluded, images without a report left out where that is wanted, uncertain labels decided and captions
    written.

    Raises:
        DataError: If no record is left, or the list of excluded patients cannot be read.
    """
    settled = exclude_patients(reading, config)
    if config.missing_report == "drop":
        settled = drop_unreported(settled, "whole")
    decided = replace(settled, records=apply_uncertain(settled.records, config.uncertain))
    return add_captions(decided, config, prompt_prefix(config))


_OF_TABLE = ("split", "split_file", "test_list", "label_source", "exclude_patients")
"""Settings that belong to one table: inherited from a run, they are not used for another table."""
_OF_DATASET = ("patient_mapping", "patient_dataset", "views", "prompt_prefix", "reports", "missing_report")
"""Settings that belong to one dataset."""


def data_config(settings: Settings, data: str | None, *, inherited: DataConfig | None = None) -> DataConfig:
    """Returns where to read: the run's own data, or `dataset:folder` or `dataset:table` in their place.

    Another folder is read and split as the run's was. A table, such as CheXpert's `test_labels.csv`, has labels of its
    own and is split in the dataset's own way; so is a dataset of another kind.

    Args:
        settings: Of the run, with what was set for these data.
        data: `dataset:folder`, `dataset:table`, or None.
        inherited: Data settings of the run alone. A setting that differs from them was set explicitly and is kept,
            whatever the data. By default every setting counts as inherited.

    Raises:
        ConfigError: If `data` names no known dataset and folder, or there is none and the run has none either, or a
            setting that is kept does not apply to the dataset.
    """
    if data is None:
        if settings.data.root is None:
            raise ConfigError(
                "no data are named, and the run has none of its own, as an imported model; give --data "
                "<dataset>:<folder>, such as chexpert:/data/CheXpert"
            )
        return settings.data
    dataset, _, folder = data.partition(":")
    if dataset not in DATASETS or not folder:
        known = " or ".join(f"{name}:<folder>" for name in DATASETS)
        raise ConfigError(f"data={data!r} is not a dataset and its folder; write {known}")
    own, usual = settings.data, DataConfig()
    place = Path(expand_user(folder))
    table = place.is_file()
    names = (*(_OF_TABLE if table or dataset != own.dataset else ()), *(_OF_DATASET if dataset != own.dataset else ()))
    changed: dict[str, Any] = {
        "dataset": dataset,
        "root": place.parent if table else place,
        "table": place.name if table else None,
        **{name: getattr(usual, name) for name in names},
    }
    if inherited is not None:
        explicit = {name: getattr(own, name) for name in ("table", *names)}
        changed |= {name: value for name, value in explicit.items() if value != getattr(inherited, name)}
    return replace(own, **changed)


def settings_for(run: Path, data: str | None, words: Sequence[str]) -> Settings:
    """Builds the settings of a run for other data, with command-line words on top.

    The words are applied last: what was typed is used or refused. Settings that the run had before and that are not
    used for these data are reported.

    Args:
        run: Run folder.
        data: As for `data_config`; None keeps the run's own data.
        words: Such as `--data.exclude_patients list.csv`.

    Raises:
        ConfigError: As `data_config` and `merge_overrides`, and if `data` and a word both name the images.
    """
    settings = load_run_settings(run)
    if data is None:
        return merge_overrides(settings, words)
    typed = overridden_keys(words)
    config = data_config(settings, data)
    for name in ("dataset", "root", *(("table",) if config.table is not None else ())):
        if f"data.{name}" in typed:
            raise ConfigError(f"--data {data} and --data.{name} both say which images are read; give one of them")
    merged = merge_overrides(replace(settings, data=config), words)
    report_not_inherited(settings.data, merged.data)
    return merged


def report_not_inherited(before: DataConfig, after: DataConfig) -> None:
    """Logs one line that names the settings of a run which are not used for other data, if there are any."""
    usual = DataConfig()
    names = [
        name
        for name in (*_OF_TABLE, *_OF_DATASET)
        if getattr(before, name) != getattr(usual, name) and getattr(after, name) != getattr(before, name)
    ]
    if not names:
        return
    values = ", ".join(f"data.{name}={_as_typed(getattr(before, name))}" for name in names)
    log.info(
        "of the run's settings, %s %s not used for these data (%s, split %s)",
        values,
        "is" if len(names) == 1 else "are",
        after.dataset,
        after.split_file or split_recipe(after),
    )


def _as_typed(value: Any) -> str:
    return join_list(map(str, cast("Sequence[Any]", value))) if isinstance(value, tuple) else str(value)


def prompt_prefix(config: DataConfig) -> str:
    """Returns what captions and class prompts begin with: `data.prompt_prefix`, or the dataset's own."""
    return config.prompt_prefix or DATASETS[config.dataset].prompt_prefix


def license_terms(config: DataConfig) -> str | None:
    """Returns what the owner of the images allows, where that reaches weights; nobody owns phantoms."""
    return None if is_synthetic(config.root) else DATASETS[config.dataset].license_terms


def split_recipe(config: DataConfig) -> str:
    """Returns how records are split: `data.split`, or the dataset's own way."""
    return config.split or usual_split(config.dataset)
