"""Commands about datasets: data template, check, split, prepare, phantoms."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cleft.cli.options import OutputOptions, argument, command, option, read_number
from cleft.errors import ConfigError
from cleft.grammar import count, verb

if TYPE_CHECKING:
    from cleft.config import DataConfig, Settings

_SPLIT = ("data.dataset", "data.table", "data.views", "data.split", "data.split_file", "data.test_list")
_READING = (
    *_SPLIT,
    "data.val_fraction",
    "data.test_fraction",
    "data.exclude_patients",
    "data.uncertain",
    "data.max_invalid",
)


@dataclass(frozen=True, kw_only=True)
class TemplateRequest:
    """Options of `cleft data template`."""

    folder: Path = argument()
    """Folder for manifest.csv and its description."""


@command("data template")
def template_command(request: TemplateRequest, words: list[str]) -> None:
    """Write an example of your own table."""
    from cleft.data.readers.manifest import write_template

    path = write_template(request.folder)
    print(f"{path}: fill it in, then: cleft data check manifest {shlex.quote(str(request.folder))}")


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """Arguments that say which data are read, and with which settings."""

    source: str = argument()
    """Preset, YAML file or run whose settings of data and images are used; or the name of a dataset (chexpert, rsna,
    embed, nih, mimic, iu-xray, or manifest for your own table) with default settings."""
    root: Path | None = argument(None)
    """Folder of the images and their table, as --data.root <folder>."""


def read_count(text: str) -> int | None:
    """Returns a number, or None for `all`."""
    return None if text == "all" else read_number(text)


@dataclass(frozen=True, kw_only=True)
class CheckRequest(OutputOptions, SourceOptions):
    """Options of `cleft data check`."""

    page: Path | None = option(None, metavar="HTML")
    """Also write an HTML page."""
    decode: int | None = option(50, metavar="N", read=read_count)
    """Number of images to decode as a test, or all."""
    images: int | None = option(None, metavar="N")
    """Images to show on the page; by default twelve if they are synthetic, otherwise none."""
    no_images: bool = False
    """Show no images."""
    json: Path | None = option(None, metavar="JSON")
    """Also write everything as JSON."""


@command("data check", settings=(*_READING, "images.stored_size"))
def check_command(request: CheckRequest, words: list[str]) -> int:
    """Summarise a dataset and report errors in it."""
    from cleft.data.census.check import CheckOptions, check_dataset
    from cleft.files import Output
    from cleft.report.census_page import write_census
    from cleft.results import to_json

    if request.images and (request.no_images or not request.page):
        why = "leave out --no-images" if request.no_images else "images are shown on a page; name one with --page"
        raise ConfigError(f"--images {request.images}: {why}")
    settings, origin = _data_settings("check", request, words)
    images = 0 if request.no_images or not request.page else request.images
    options = CheckOptions.from_command(decode=request.decode, thumbnails=images, seed=settings.seed, progress=True)
    page, machine = (
        out
        and Output(
            out, flag, overwrite=request.overwrite, inputs=input_paths(request.source, settings.data), mode=0o600
        ).check()
        for flag, out in (("--page", request.page), ("--json", request.json))
    )
    if page and machine and page.path.absolute() == machine.path.absolute():
        raise ConfigError(f"--page and --json both name {page.path}; give two names")
    check = check_dataset(settings.data, settings.images, options)
    print(origin)
    print("\n".join(check.lines))
    if machine:
        print(f"{machine.write(to_json(check.census) + chr(10))}: everything as JSON; keep it private")
    if page:
        print(f"{write_census(check.census, page.path, overwrite=request.overwrite)}: open it in a browser")
    return 3 if check.faults else 0


def _data_settings(action: str, request: SourceOptions, words: list[str]) -> tuple[Settings, str]:
    """Returns the settings of `data check`, `data split` and `data prepare`, and a line that says where they are from.

    They are those of `cleft pretrain` with the same words. If a dataset has the name of a preset, it is the dataset
    where a folder is given and the preset otherwise.
    """
    from cleft.config import Settings, load_settings, merge_overrides, nearest, overridden_keys, preset_names
    from cleft.data import DATASETS

    source, root, typed = request.source, request.root, overridden_keys(words)
    if root is not None and "data.root" in typed:
        raise ConfigError(f"{root} and --data.root both name the folder; give one of them")
    place = [] if root is None else [f"--data.root={root}"]
    if source not in DATASETS or (root is None and source in preset_names()):
        if source not in preset_names() and not Path(source).expanduser().exists():
            raise ConfigError(
                f"no preset or dataset {source!r}{nearest(source, [*DATASETS, *preset_names()])}, and no YAML file or "
                f"run folder of that name; cleft presets lists the presets; the datasets are {', '.join(DATASETS)}"
            )
        return load_settings(source, [*place, *words]), f"settings: {source}"
    if "data.dataset" in typed:
        raise ConfigError(f"{source} and --data.dataset both name the dataset; give one of them")
    settings = merge_overrides(Settings(), [f"--data.dataset={source}", *place, *words])
    return settings, (
        f"settings: the defaults for {source}, as no preset or run is named; for the split that a run uses, name its "
        f"preset: cleft data {action} <preset> --data.dataset {source} --data.root "
        f"{'<folder>' if settings.data.root is None else shlex.quote(str(settings.data.root))}"
    )


def input_paths(source: str, config: DataConfig) -> tuple[Path, ...]:
    """Returns every file and folder that is read: the preset or run, and those that settings of the data name."""
    lists = (config.split_file, config.test_list, config.patient_mapping, config.exclude_patients)
    held = (Path(source), config.root, config.reports, config.sentence_bank, *lists)
    return tuple(path for path in held if path is not None)


@dataclass(frozen=True, kw_only=True)
class SplitRequest(SourceOptions):
    """Options of `cleft data split`."""

    out: Path | None = option(None, metavar="JSON")
    """File to write, for data.split_file: .json or .json.gz."""
    hashed: bool = False
    """Write digests in place of ids."""


@command("data split", settings=_READING)
def split_command(request: SplitRequest, words: list[str]) -> None:
    """Print the train, validation and test split, and write it to a file that can be shared."""
    from cleft.data import DATASETS, read_dataset
    from cleft.data.splits.recipes import salts_of, split_records
    from cleft.data.splits.split_file import check_split_output, make_split_file, split_lines, write_split_file

    if request.hashed and request.out is None:
        raise ConfigError("--hashed writes nothing without --out; name the file with --out split.json")
    settings, origin = _data_settings("split", request, words)
    config = settings.data
    if request.out is not None:
        check_split_output(request.out)
    reading = read_dataset(config)
    splits = split_records(reading, config)
    salts = salts_of(splits.recipe, config)
    print(origin)
    print("\n".join(split_lines(splits, reading, config, salts)))
    if request.out is None:
        return
    hashed = request.hashed or DATASETS[config.dataset].license_terms is not None
    path = write_split_file(request.out, make_split_file(splits, reading, config, salts=salts, hashed=hashed))
    what = "digests of ids" if hashed else "ids"
    print(f"\n{path}: {what}, no images and no labels; use it with the same images by --data.split_file {path}")


@dataclass(frozen=True, kw_only=True)
class PrepareRequest(OutputOptions, SourceOptions):
    """Options of `cleft data prepare`."""

    jobs: int | None = option(None, metavar="N")
    """Processes that decode; by default one per core, at most 64."""
    rejects: Path | None = option(None, metavar="CSV")
    """Table of images that cannot be used, with reasons (default: <cache>/rejects-<dataset>.csv)."""


@command(
    "data prepare",
    settings=("data.dataset", "data.table", "data.max_invalid", "data.cache", "images.recipe", "images.stored_size"),
)
def prepare_command(request: PrepareRequest, words: list[str]) -> None:
    """Decode and preprocess all images once, before training."""
    from cleft.data import read_dataset
    from cleft.data.images.cache import PrepareOptions, cache_folder, prepare_images, reject_lines
    from cleft.data.images.decode_pool import usable_cores
    from cleft.data.images.dicom_headers import oddity_notes
    from cleft.files import Output

    if request.jobs is not None and request.jobs < 1:
        raise ConfigError(f"--jobs {request.jobs}: decoding needs at least one process; give 1 or more")
    settings, origin = _data_settings("prepare", request, words)
    print(origin)
    cache = cache_folder(settings.data)
    rejects = Output(
        request.rejects or cache / f"rejects-{settings.data.dataset}.csv",
        "--rejects" if request.rejects else "data.cache:",
        overwrite=request.overwrite,
        inputs=input_paths(request.source, settings.data),
        mode=0o600,
    ).check()
    reading = read_dataset(settings.data)
    prepared = prepare_images(
        reading.records,
        settings.images,
        cache,
        PrepareOptions(
            jobs=request.jobs or min(usable_cores(), 64),
            max_invalid=settings.data.max_invalid,
            rejects=rejects,
            retry=True,
        ),
    )
    refused = {record: (reason, prepared.messages[record]) for record, reason in prepared.rejected.items()}
    are = verb(len(prepared), "is", "are")
    print(f"{prepared.folder}: {count(len(prepared), 'image')} {are} prepared, {len(refused):,} cannot be used")
    for line in reject_lines(refused.values()):
        print(line)
    for note in oddity_notes(prepared.notes):
        print(note)
    for reason, rows in reading.rejected.items():
        print(f"rows of the table left out, {reason}: {len(rows):,}")


@dataclass(frozen=True, kw_only=True)
class PhantomsRequest:
    """Options of `cleft data phantoms`."""

    folder: Path = argument()
    """New or empty folder."""
    kind: Literal["chest", "mammogram"] = "chest"
    """Chest radiographs in the layout of CheXpert, or mammograms with the tables of EMBED."""
    patients: int | None = option(None, metavar="N")
    """Number of patients (default: 600, or 300 for mammograms, about 2,000 images)."""
    seed: int = 0
    """Random seed; the same seed gives the same images."""
    size: int | None = option(None, metavar="N")
    """Height of an image in pixels (default: 320, or 384 for mammograms)."""


@command("data phantoms")
def phantoms_command(request: PhantomsRequest, words: list[str]) -> None:
    """Write synthetic images with labels in the layout of a real dataset."""
    from cleft.data.phantoms.chest import write_phantoms
    from cleft.data.phantoms.mammograms import write_mammograms

    write, patients, size = (write_phantoms, 600, 320) if request.kind == "chest" else (write_mammograms, 300, 384)
    root = write(
        request.folder,
        patients=patients if request.patients is None else request.patients,
        seed=request.seed,
        size=size if request.size is None else request.size,
    )
    folder = shlex.quote(str(root))
    following = (
        f"cleft pretrain demo --data.root {folder}" if request.kind == "chest" else f"cleft data check embed {folder}"
    )
    print(f"{root}: wrote synthetic images; next: {following}")
