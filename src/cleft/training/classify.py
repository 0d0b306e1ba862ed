"""Classification by labels: a linear head on an image tower that stands still, or that moves with it.

A tower that stands still and sees no random views reads each image once, whatever the protocol. What it says lies in
the folder of the tower, so that other fractions, seeds and protocols find it there. A solved probe has no steps and so
nothing to resume; everything else goes on from its states as stage one does.

Shapes: `B` images of a batch, `N` images, `C` classes, `D` width of the tower.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from cleft.config import ClassifyConfig, ImageTowerConfig, Settings
from cleft.data import read_dataset
from cleft.data.batches import Schedule, StepSampler, eval_loader, train_loader
from cleft.data.splits.subsets import take_fraction
from cleft.data.text.prompts import choose_classes
from cleft.errors import CheckpointError, ConfigError, DataError
from cleft.files import as_path
from cleft.grammar import count
from cleft.models.checkpoint import weights_digest
from cleft.models.dual_encoder import l2_normalise
from cleft.models.image_classifier import (
    HeadInfo,
    ImageClassifier,
    load_image_classifier,
    read_tower_settings,
    save_image_classifier,
)
from cleft.models.layers import layer_depths
from cleft.models.model_folder import read_head_info
from cleft.training.callbacks import Intervals, StopFlag
from cleft.training.dataset import (
    LabelledExamples,
    TrainingData,
    check_examples,
    read_training_data,
    select_examples,
    training_data_config,
)
from cleft.training.distributed import check_hardware, one_device
from cleft.training.features import EMBEDDINGS, encode_features, features_key, inference_device
from cleft.training.lightning_module import TrainingModule
from cleft.training.linear_probe import (
    apply_protocol,
    cross_entropy,
    fit_probe,
    mean_auc,
    optimizer_settings,
    uses_fixed_features,
    uses_solver,
)
from cleft.training.provenance import inherited_split, stage_of
from cleft.training.run_folder import Run, check_source, open_run
from cleft.training.trainer import BatchSource, TrainingPlan, train
from cleft.types import Batch, Record

log = logging.getLogger(__name__)

_EVAL_BATCH_SIZE = 64
_FREE = ("images.augment.", "image.pooling", "image.resize")
"""Settings of the tower that a head may have otherwise than stage one had."""


def classify(
    source: Path | str,
    settings: Settings,
    folder: Path | str,
    *,
    data: str | None = None,
    classes: str | Sequence[str] | None = None,
    progress: bool = True,
) -> Path:
    """Trains a head that tells classes apart, or goes on with a run that was interrupted.

    Args:
        source: Run folder whose image tower it stands on: of stage one or two, or of a tower nothing was learned with.
        settings: `classify` says how, `seed` which patients, which order and which first weights. What decides the
            tower must be as it was in `source`; random views (`images.augment`), and how images are read
            (`image.pooling`, `image.resize`), may be others.
        folder: The new run folder. If it holds a finished run of the same settings, nothing is done.
        data: `dataset:folder` to train on in place of the settings' data, e.g. `rsna:/data/rsna`. Data settings of
            `source` that belong to its own dataset are then not used; those that `settings` has otherwise are.
        classes: Names of sets, or findings, as a sequence or with commas between them; by default those of the
            settings, or those usual for the dataset where it lacks them.
        progress: Whether to show bars.

    Returns:
        The new run folder: settings, log, states, and the model: the whole of it, or of a linear probe the head alone,
        which points to its tower.

    Raises:
        ConfigError: If settings contradict each other or the source's, a class is unknown, or the folder belongs to
            another run.
        DataError: If a class has no image to learn from, or there is nothing to choose by.
        CheckpointError: If the source holds no finished model, or a head itself, or its weights are damaged.
        Interrupted, Terminated: If a signal arrived; the same call resumes.
        NumericsError: If a loss, gradient or feature is not finite.
        ResourceError: If a disk is full.
    """
    source, folder = as_path(source, "source"), as_path(folder, "folder")
    _check_source(source, settings, folder)
    settings = replace(
        settings, data=training_data_config(source, settings, data), classify=apply_protocol(settings.classify)
    )
    check_hardware(
        replace(one_device(settings.train), precision=_precision(settings.classify, settings.train.accelerator))
    )
    reading = read_dataset(settings.data)
    told_apart = choose_classes(classes, settings, reading.dataset, reading.findings)
    settings = replace(settings, classes=told_apart)
    with open_run(folder, settings, "classify") as run, StopFlag() as stop:
        if run.is_finished():
            return folder
        material = read_training_data(settings, reading=reading, progress=progress)
        lesson = select_split(material, settings)
        used = replace(material, train=lesson.train.records, val=lesson.val.records)
        run.record_split(
            used.facts(
                before=inherited_split(source),
                model=weights_digest(source),
                targets=_digest(lesson.train.targets, lesson.val.targets),
            )
        )
        stop.check("while reading the data; nothing was trained yet")
        _train_head(source, settings, material, lesson, run, stop, progress=progress)
    return folder


class ClassifierSplit(NamedTuple):
    """What a head learns from, and what it is chosen by."""

    available: LabelledExamples
    """All images that could be learned from; a tower that stands still reads these once, whatever the fraction."""
    rows: list[int]
    """Those of them that are taken."""
    train: LabelledExamples
    val: LabelledExamples


def select_split(material: TrainingData, settings: Settings) -> ClassifierSplit:
    """Takes the images with a right answer, and of those of training the share that is asked for.

    Args:
        material: Training and validation.
        settings: Classes, fraction, seed; `classify` as `follow_protocol` returned it.

    Raises:
        ConfigError: If there are fewer than two classes to tell apart.
        DataError: If a class has no image in training or in the share that is taken of it, or validation has nothing to
            choose by.
    """
    config, classes = settings.classify, settings.classes
    every = select_examples(material.train, classes, config)
    check_examples(every, classes, config)
    kept = take_fraction(every.records, config.fraction, classes, seed=settings.seed)
    taken = select_examples(kept, classes, config)
    check_examples(taken, classes, config)
    val = select_examples(material.val, classes, config)
    place = {record.id: row for row, record in enumerate(every.records)}
    log.info("training: %s, %s", every.description, count(every.patients(), "patient"))
    if len(kept) < len(every.records):
        images, patients = count(len(kept), "image"), count(taken.patients(), "patient")
        log.info("%s of them: %s of %s", f"{config.fraction:.4g}", images, patients)
    log.info("validation: %s", val.description)
    _check_validation(val, config, len(classes))
    return ClassifierSplit(every, [place[record.id] for record in kept], taken, val)


class LabelledBatch(NamedTuple):
    """A batch with its right answers."""

    inputs: Tensor
    """Images `[B, 1, H, W]` uint8, or features `[B, D]`."""
    targets: Tensor
    """As in `Examples`."""


class ClassifierModule(TrainingModule):
    """Moves a head, and what is below it as far as it may move, towards the right answers.

    Args:
        model: From the inputs of a batch to logits `[B, C]`.
        config: As `follow_protocol` returned it.
        val: The validation split in batches; None where nothing is chosen by it.
        rates: Share of the learning rate of each weight of `model`; by default all have the whole.

    Source:
        CLEFT, section 3.3: "cross-entropy loss", for linear probes and full fine-tuning alike.
    """

    def __init__(
        self,
        model: nn.Module,
        config: ClassifyConfig,
        val: Callable[[], Iterable[LabelledBatch]] | None = None,
        rates: dict[str, float] | None = None,
    ) -> None:
        super().__init__(optimizer_settings(config))
        self.model = model
        self._choose = config.select_by
        self._val = val
        self._rates = rates
        self._measured: dict[str, float] = {}

    def loss(self, batch: LabelledBatch) -> Tensor:
        """Mean cross-entropy in nats; log(C), or log(2) finding by finding, where all logits are equal."""
        return cross_entropy(self.model(batch.inputs).float(), batch.targets)

    def lr_multipliers(self) -> dict[str, float] | None:
        """Lower blocks learn more slowly, where that was asked for."""
        return None if self._rates is None else {f"model.{name}": share for name, share in self._rates.items()}

    @torch.no_grad()
    def validation_loss(self, poll: Callable[[], None]) -> float | None:
        """Cross-entropy over the validation split, or one minus its AUC where that decides."""
        if self._val is None:
            return None
        self.model.eval()
        logits: list[Tensor] = []
        targets: list[Tensor] = []
        try:
            with self.trainer.precision_plugin.val_step_context():
                for batch in self._val():
                    poll()
                    logits.append(self.model(batch.inputs.to(self.device)).float().cpu())
                    targets.append(batch.targets)
        finally:
            self.model.train()
        loss = cross_entropy(torch.cat(logits), torch.cat(targets)).item()
        area = mean_auc(torch.cat(logits), torch.cat(targets))
        self._measured = {"val/loss": loss} | ({} if area is None else {"val/auc": area})
        return loss if self._choose != "auc" or area is None else 1 - area

    def validation_metrics(self, loss: float) -> dict[str, float]:
        """Both, whichever decides."""
        return self._measured

    @property
    def selection_metric(self) -> str:
        """The cross-entropy, or one minus the AUC where that decides."""
        return "value of one minus the validation AUC" if self._choose == "auc" else "validation loss"

    def describe_loss(self, loss: float) -> str:
        """Both, in words."""
        area = f", AUC {self._measured['val/auc']:.4f}" if "val/auc" in self._measured else ""
        return f"loss {self._measured['val/loss']:.4f}{area}"


@dataclass(frozen=True)
class _TrainingInputs:
    """How inputs get from images to a model that trains."""

    model: nn.Module
    batches: BatchSource
    val: Callable[[], Iterable[LabelledBatch]]
    accelerator: Literal["auto", "cpu", "gpu"]


def _check_source(source: Path, settings: Settings, folder: Path) -> None:
    """A finished image tower without a head, which the settings leave alone."""
    stage = stage_of(source)
    if stage == "classify" or read_head_info(source) is not None:
        raise CheckpointError(
            f"{source} is a head on the tower of another run; give the run of that tower, which cleft pretrain or "
            f"cleft learn-context wrote"
        )
    check_source(source, settings, folder, what="classification", free=_FREE)


def _check_validation(val: LabelledExamples, config: ClassifyConfig, classes: int) -> None:
    """Refuses a validation split by which nothing can be chosen."""
    if config.select_by == "last":
        return
    what, other = (
        ("penalty", "--protocol paper, which keeps the last weights")
        if uses_solver(config)
        else ("best weights", "--classify.select_by last")
    )
    if not val.records:
        raise DataError(
            f"no validation image has a label to select the {what} by ({val.description}); set data.val_fraction, "
            f"or use {other}",
            reason="no-validation",
        )
    if config.select_by == "auc" and mean_auc(torch.zeros(len(val.records), classes), val.targets) is None:
        raise DataError(
            f"no class is both shown and not shown in validation, so there is no AUC to choose the {what} by "
            f"({val.description}); take --classify.select_by loss, or another split",
            reason="no-validation",
        )


def _train_head(
    source: Path,
    settings: Settings,
    material: TrainingData,
    lesson: ClassifierSplit,
    run: Run,
    stop: StopFlag,
    *,
    progress: bool,
) -> None:
    config = settings.classify
    model = load_image_classifier(source, train=config.mode == "fine-tune", reading=settings.image)
    spec = (settings.images.size, settings.images.size), settings.images.mean, settings.images.std
    if spec != (model.image_spec.size, model.image_spec.mean, model.image_spec.std):
        raise ConfigError(
            f"{source} wants images of {model.image_spec}; set images.size, images.mean and images.std so"
        )
    if config.mode == "linear-probe":
        _freeze(model)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(settings.seed)
        head = nn.Linear(model.image_tower.width, len(settings.classes))
    facts = HeadInfo(classes=settings.classes, scoring=config.scoring, logits=config.logits)
    model = ImageClassifier(model.image_tower, head, facts)
    learned: dict[str, Any]
    if uses_solver(config):
        learned = _fit_head(model, _FeatureReader(source, model, settings, material, stop, progress), lesson, config)
    else:
        if uses_fixed_features(config):
            way = _from_features(
                head, _FeatureReader(source, model, settings, material, stop, progress), lesson, settings
            )
        else:
            way = _from_images(model, material, lesson, settings)
        learned = _train(way, model, settings, run, stop)
    learned["description"] = ", ".join(
        [learned["description"], *_describe_differences(read_tower_settings(source), settings)]
    )
    tower = source if config.mode == "linear-probe" else None
    save_image_classifier(model, settings, run.folder, tower=tower, extra=run.terms())
    run.finish(
        {
            **learned,
            "mode": config.mode,
            "protocol": config.protocol,
            "classes": list(settings.classes),
            "scoring": config.scoring,
            "fraction": config.fraction,
            "seed": settings.seed,
            "images": {"train": len(lesson.train.records), "val": len(lesson.val.records)},
            "patients": {"train": lesson.train.patients(), "val": lesson.val.patients()},
            "weights": weights_digest(run.folder),
        }
    )


def _describe_differences(made: ImageTowerConfig, settings: Settings) -> list[str]:
    """What the head does otherwise than its tower was made for."""
    told = [
        f"image.{name}={getattr(settings.image, name)} in place of {getattr(made, name)}"
        for name in ("pooling", "resize")
        if getattr(settings.image, name) != getattr(made, name)
    ]
    return [*told, "logits of unit length"] if settings.classify.logits == "unit" else told


def _freeze(model: ImageClassifier) -> None:
    """No weight moves and no dropout is drawn, also where the head on top is trained on random views."""
    model.requires_grad_(False)
    model.image_tower.trainable = False


@dataclass(frozen=True)
class _FeatureReader:
    """Reads images with a tower that stands still, or takes what an earlier pass left."""

    source: Path
    model: ImageClassifier
    settings: Settings
    material: TrainingData
    stop: StopFlag
    progress: bool

    def features(self, records: Sequence[Record]) -> Tensor:
        """`[N, D]`, cropped at the centre."""
        prepared = self.material.prepared
        loader = eval_loader(records, prepared, self.material.findings, self.settings, batch_size=_EVAL_BATCH_SIZE)
        return encode_features(
            self.model.to(inference_device(self.settings)),
            self._watched(loader),
            records,
            folder=self.source / EMBEDDINGS,
            key=features_key(weights_digest(self.source), prepared.digest, self.settings),
            progress=self.progress,
        )

    def _watched(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        for batch in loader:
            self.stop.check("while encoding images; nothing was trained yet")
            yield batch


def _fit_head(
    model: ImageClassifier, reader: _FeatureReader, lesson: ClassifierSplit, config: ClassifyConfig
) -> dict[str, Any]:
    """Puts the solution into the head."""
    assert model.head is not None
    assert config.select_by is not None
    features, val_features = reader.features(lesson.available.records)[lesson.rows], reader.features(lesson.val.records)
    found = fit_probe(
        features,
        lesson.train.targets,
        val_features,
        lesson.val.targets,
        classes=model.head.out_features,
        choose=config.select_by,
    )
    with torch.no_grad():
        model.head.weight.copy_(found.weight)
        model.head.bias.copy_(found.bias)
    measure = "AUC" if config.select_by == "auc" else "loss"
    told = f"penalty {found.penalty:g}, validation {measure} {found.score:.4f}"
    log.info("the probe is solved: %s", told)
    return {
        "description": told,
        "strength": found.penalty,
        "tried": {f"{k:g}": value for k, value in found.scores.items()},
    }


def _from_features(
    head: nn.Linear, reader: _FeatureReader, lesson: ClassifierSplit, settings: Settings
) -> _TrainingInputs:
    """The head alone trains, on what the tower said once."""
    features, val_features = reader.features(lesson.available.records)[lesson.rows], None
    if settings.classify.select_by != "last":
        val_features = reader.features(lesson.val.records)

    def batches(first_step: int, rank: int, world_size: int) -> Iterator[LabelledBatch]:
        for places in _sampler(len(features), settings, first_step):
            rows = [row for _, row in places]
            yield LabelledBatch(features[rows], lesson.train.targets[rows])

    def val() -> Iterator[LabelledBatch]:
        assert val_features is not None
        yield LabelledBatch(val_features, lesson.val.targets)

    model = nn.Sequential(head, _L2Normalise()) if settings.classify.logits == "unit" else head
    return _TrainingInputs(model, batches, val, "cpu")  # a step is too small for a card


class _L2Normalise(nn.Module):
    """Brings the logits of each image to unit length, as `ImageClassifier.logits_of` does."""

    def forward(self, logits: Tensor) -> Tensor:
        """From `[B, C]` to the same."""
        return l2_normalise(logits)


def _from_images(
    model: ImageClassifier, material: TrainingData, lesson: ClassifierSplit, settings: Settings
) -> _TrainingInputs:
    """The tower reads every batch anew: because it moves, or because its views are random."""
    # Classes are what is told apart here, not captions.
    plain = replace(settings, train=replace(settings.train, unique_in_batch="none"))
    taken, held_out = lesson.train, lesson.val

    def batches(first_step: int, rank: int, world_size: int) -> Iterator[LabelledBatch]:
        loader = train_loader(
            taken.records,
            material.prepared,
            material.findings,
            plain,
            Schedule(
                batch_size=_batch_size(len(taken.records), settings.classify),
                steps=settings.classify.steps,
                first_step=first_step,
            ),
            augmented=bool(settings.classify.augment),
        )
        return (LabelledBatch(batch.images, taken.targets[batch.rows]) for batch in loader)

    def val() -> Iterator[LabelledBatch]:
        loader = eval_loader(held_out.records, material.prepared, material.findings, plain, batch_size=_EVAL_BATCH_SIZE)
        return (LabelledBatch(batch.images, held_out.targets[batch.rows]) for batch in loader)

    return _TrainingInputs(model, batches, val, settings.train.accelerator)


def _batch_size(images: int, config: ClassifyConfig) -> int:
    assert config.batch_size is not None
    return min(images, config.batch_size)


def _sampler(images: int, settings: Settings, first_step: int) -> StepSampler:
    config = settings.classify
    assert config.steps is not None
    size = _batch_size(images, config)
    return StepSampler(images, size, steps=config.steps, seed=settings.seed, first_step=first_step)


def _train(
    way: _TrainingInputs, model: ImageClassifier, settings: Settings, run: Run, stop: StopFlag
) -> dict[str, Any]:
    """Trains what `way` says may train; the best weights are in `model` then."""
    config = settings.classify
    assert config.steps is not None
    decays = config.mode == "fine-tune" and config.layer_decay not in (None, 1)
    model.train()
    learner = ClassifierModule(
        way.model,
        config,
        None if config.select_by == "last" else way.val,
        layer_lr_multipliers(model, config.layer_decay or 1) if decays else None,
    )
    outcome = train(learner, way.batches, run, _plan(settings, way.accelerator), stop)
    measured = outcome.best_loss is not None
    value = "" if outcome.best_loss is None else f"{outcome.best_loss:.4f}"
    what = f"one minus validation AUC {value}" if config.select_by == "auc" else f"validation loss {value}"
    return {
        "steps": config.steps,
        "best_step": outcome.best_step,
        "best_loss": outcome.best_loss,
        "description": f"{what if measured else 'the last weights'} at step {outcome.best_step} of {config.steps}",
    }


def layer_lr_multipliers(model: ImageClassifier, decay: float) -> dict[str, float]:
    """Share of the learning rate of each weight of the tower: `decay` to the power of its blocks' distance to the head.

    Source:
        ULMFiT's discriminative fine-tuning (Howard and Ruder 2018), by blocks as BEiT and MAE do it.
    """
    heights, top = layer_depths(model.image_tower.model)
    return {f"image_tower.model.{name}": decay ** (top - height) for name, height in heights.items()}


def _plan(settings: Settings, accelerator: Literal["auto", "cpu", "gpu"]) -> TrainingPlan:
    config = settings.classify
    assert config.steps is not None
    intervals = Intervals(
        steps=config.steps,
        val_every=config.val_every,
        save_every=settings.train.save_every,
        log_every=settings.train.log_every,
    )
    alone = replace(one_device(settings.train), accelerator=accelerator, precision=_precision(config, accelerator))
    return TrainingPlan(
        intervals=intervals,
        seed=settings.seed,
        clip_norm=None,
        train=alone,
        memory=f"classify.batch_size={config.batch_size}, images.size={settings.images.size}",
        columns=["val/auc"],
        prefix="classify/",
    )


def _precision(config: ClassifyConfig, accelerator: str) -> Literal["32-true", "bf16-mixed", "16-mixed"]:
    if config.mode == "linear-probe":
        return "32-true"
    if config.precision != "auto":
        return config.precision
    card = accelerator != "cpu" and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return "bf16-mixed" if card else "32-true"


def _digest(*targets: Tensor) -> str:
    """First 16 hex digits of a SHA-256 over right answers."""
    return hashlib.sha256(b"|".join(part.contiguous().numpy().tobytes() for part in targets)).hexdigest()[:16]
