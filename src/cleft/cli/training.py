"""Commands that train: pretrain, learn-context, classify."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cleft.cli.options import argument, command, option, setting_option
from cleft.errors import ConfigError
from cleft.launch import is_first

if TYPE_CHECKING:
    from cleft.config import ClassifyConfig

_DATA = ("data.dataset", "data.table", "data.views", "data.split", "data.split_file", "data.test_list")
_MACHINE = ("data.workers", "data.cache", "train.accelerator", "train.precision")


@dataclass(frozen=True, kw_only=True)
class PretrainRequest:
    """Options of `cleft pretrain`."""

    preset: str = argument()
    """Name of a preset (cleft presets lists them), YAML file, or run folder whose settings to use."""
    run: Path | None = option(None, metavar="FOLDER")
    """Folder of the run; an existing run is resumed (default: runs/<preset>)."""


@command(
    "pretrain",
    loads_torch=True,
    settings=(
        *("data.root", *_DATA, "classes", "images.size", "image.model", "text.model", "text.adapt", "loss.name"),
        *("optim.lr", "optim.steps", "train.batch_size", "train.devices", "seed", *_MACHINE),
    ),
)
def pretrain_command(request: PretrainRequest, words: list[str]) -> None:
    """Stage one: train image and text encoder on image-caption pairs with a contrastive loss."""
    from cleft.config import load_settings

    settings = load_settings(request.preset, words)
    folder = request.run or Path("runs") / Path(request.preset).stem
    from cleft.models.model_folder import peek_description
    from cleft.training.pretrain import pretrain

    if is_first() and "imported" in peek_description(Path(request.preset)).get("extra", {}):
        print(f"{request.preset}: its settings are used, but not its weights; training starts anew", file=sys.stderr)
    trained = pretrain(settings, folder)
    if not is_first():
        return
    if settings.method == "image-only":
        print(f"{trained}: image encoder without pretraining; next: cleft classify {shlex.quote(str(folder))}")
        return
    following = "classify" if settings.method == "mrm" else "learn-context"
    print(f"{trained}: stage one is complete; next: cleft {following} {shlex.quote(str(folder))}")


@dataclass(frozen=True, kw_only=True)
class LearnContextRequest:
    """Options of `cleft learn-context`."""

    run: Path = argument()
    """Run folder of stage one."""
    out: Path | None = option(None, metavar="FOLDER")
    """Folder of the new run (default: <run>-context)."""


@command(
    "learn-context",
    loads_torch=True,
    settings=(
        *("data.root", "classes", "class_names", "context.length", "context.init", "context.batch_size"),
        *("context.optim.lr", "context.optim.steps", "seed", *_MACHINE),
    ),
)
def learn_context_command(request: LearnContextRequest, words: list[str]) -> None:
    """Stage two: learn a prompt context for the classes, both encoders frozen."""
    from cleft.config import load_run_settings

    settings = load_run_settings(request.run, words)
    folder = request.out or request.run.with_name(f"{request.run.name}-context")
    from cleft.training.prompt_context import learn_context

    trained = learn_context(request.run, settings, folder)
    print(f"{trained}: stage two is complete; next: cleft evaluate {shlex.quote(str(folder))}")


@dataclass(frozen=True, kw_only=True)
class ClassifyRequest:
    """Options of `cleft classify`."""

    run: Path = argument()
    """Run folder of the image encoder."""
    mode: str | None = setting_option("classify.mode")
    """Freeze the image encoder (linear-probe) or train it too (fine-tune); by default linear-probe."""
    protocol: str | None = setting_option("classify.protocol")
    """`standard`: probe fitted by L-BFGS, fine-tuning with layer-wise learning-rate decay. `paper`: hyperparameters of
    the paper. By default standard."""
    data: str | None = option(None, metavar="DATASET:FOLDER")
    """Dataset and folder, such as rsna:/data/rsna; by default the data of the run."""
    classes: str | None = None
    """Name of a class set, or findings separated by commas; by default those of the run or the dataset."""
    scoring: str | None = setting_option("classify.scoring")
    """One of several classes, or a binary label for each finding (default: multi-class)."""
    blank: str | None = setting_option("classify.blank")
    """Value of missing labels for present-absent (default: unknown)."""
    fraction: str | None = None
    """Share of the training patients, such as 0.01; subsets of equal seeds are nested (default: 1)."""
    seeds: int | None = option(None, metavar="N")
    """Train N classifiers with seeds 0 to N-1; by default one."""
    out: Path | None = option(None, metavar="FOLDER")
    """Folder of the new run (default: <run>-<mode>, with options that differ from the defaults)."""
    allow_overlap: bool = False
    """Also test on patients the run was trained on, and report it."""
    drop_overlap: bool = False
    """Test only on patients the run was not trained on."""


@command(
    "classify",
    loads_torch=True,
    settings=(
        *(
            "data.split",
            "data.split_file",
            "data.exclude_patients",
            "classify.select_by",
            "classify.steps",
            "classify.lr",
        ),
        *("classify.augment", "image.pooling", "seed", *_MACHINE),
    ),
)
def classify_command(request: ClassifyRequest, words: list[str]) -> None:
    """Train a classifier on labels, as a linear probe or by fine-tuning, and test it."""
    from cleft.config import overridden_keys, setting_effect
    from cleft.data import settings_for
    from cleft.evaluation import ClassifierOptions
    from cleft.evaluation.classifier import seed_spread, train_classifiers
    from cleft.evaluation.result_files import read_evaluation, summary_lines
    from cleft.evaluation.task import parse_classes
    from cleft.training.linear_probe import drop_unused

    given = {name: getattr(request, name) for name in ("mode", "protocol", "scoring", "blank", "fraction")}
    own = [f"--classify.{name}={value}" for name, value in given.items() if value is not None]
    settings = settings_for(request.run, request.data, [*own, *words])
    typed = overridden_keys(words)
    for key in sorted(typed):
        if setting_effect(key) == ("context",):
            raise ConfigError(f"--{key} does nothing with cleft classify, which uses no prompts; leave it out")
    named = {key.removeprefix("classify.") for key in typed}
    settings = replace(settings, classify=drop_unused(settings.classify, named))
    folder = request.out or request.run.with_name(_run_name(request, settings.classify))
    paths = train_classifiers(
        request.run,
        settings,
        folder,
        ClassifierOptions(allow_overlap=request.allow_overlap, drop_overlap=request.drop_overlap),
        seeds=request.seeds,
        classes=parse_classes(request.classes),
    )
    evaluations = [read_evaluation(path) for path in paths]
    for path, evaluation in zip(paths, evaluations, strict=True):
        print(f"{path.parents[1]}, seed {evaluation.training_seed}:")
        print("\n".join(f"  {line}" for line in summary_lines(evaluation)))
    print("\n".join(seed_spread(evaluations)), end="\n" * (len(paths) > 1))
    print(f"next: cleft report {' '.join(shlex.quote(str(path.parents[1])) for path in paths)}")


def _run_name(request: ClassifyRequest, config: ClassifyConfig) -> str:
    """Returns a folder name with the options that differ from the defaults."""
    parts = [
        request.run.name,
        config.mode,
        config.protocol if config.protocol != "standard" else "",
        request.data.partition(":")[0] if request.data else "",
        f"{100 * config.fraction:g}-percent" if config.fraction < 1 else "",
    ]
    return "-".join(filter(None, parts))
