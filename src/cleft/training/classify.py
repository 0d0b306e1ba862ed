"""Train a classifier on labels: a linear head on a frozen image encoder (linear probe), or with it (fine-tuning).

A frozen encoder without augmentation encodes each image once; its features are cached in the folder of its
run, for other fractions, seeds and protocols. A probe fitted by the solver has no steps and nothing to resume; other
runs resume from training states as stage one does.

Shapes: `B` images of a batch, `N` images, `C` classes, `D` features of the encoder.
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
"""Prefixes of encoder settings that may differ from those of stage one."""


def classify(
    source: Path | str,
    settings: Settings,
    folder: Path | str,
    *,
    data: str | None = None,
    classes: str | Sequence[str] | None = None,
    progress: bool = True,
) -> Path:
    """Trains a classifier, or resumes an interrupted run.

    Args:
        source: Run folder of the image encoder: of stage one or two, or untrained.
        settings: `classify` describes the training; `seed` draws patients, order and initial weights. Settings of the
            encoder must be those of `source`, except `images.augment`, `image.pooling` and `image.resize`.
        folder: The new run folder. If it holds a finished run with the same settings, nothing is done.
        data: `dataset:folder` to train on other data, e.g. `rsna:/data/rsna`. Data settings of `source` that belong to
            its own dataset are not used then; those that `settings` changes are.
        classes: Names of class sets, or findings, as a sequence or separated by commas; by default those of the
            settings, or the usual ones of the dataset if it lacks them.
        progress: Whether to show progress bars.

    Returns:
        The new run folder: settings, log, training states and the model. A linear probe saves its head only, with a
        reference to the encoder.

    Raises:
        ConfigError: If settings contradict each other or those of the source, a class is unknown, or the folder belongs
            to another run.
        DataError: If a class has no training image, or there is no validation data to select by.
        CheckpointError: If the source is unfinished, damaged, or a classifier itself.
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
    settings = replace(settings, classes=choose_classes(classes, settings, reading.dataset, reading.findings))
    with open_run(folder, settings, "classify") as run, StopFlag() as stop:
        if run.is_finished():
            return folder
        training_data = read_training_data(settings, reading=reading, progress=progress)
        split = select_split(training_data, settings)
        used = replace(training_data, train=split.train.records, val=split.val.records)
        run.record_split(
            used.facts(
                before=inherited_split(source),
                model=weights_digest(source),
                targets=_digest(split.train.targets, split.val.targets),
            )
        )
        stop.check("while reading the data; nothing was trained yet")
        _train_head(source, settings, training_data, split, run, stop, progress=progress)
    return folder


class ClassifierSplit(NamedTuple):
    """Training and validation examples of a classifier."""

    available: LabelledExamples
    """All training examples; a frozen encoder encodes all of them once, for any fraction."""
    rows: list[int]
    """Rows of `available` that are used, by `classify.fraction`."""
    train: LabelledExamples
    val: LabelledExamples


def select_split(data: TrainingData, settings: Settings) -> ClassifierSplit:
    """Selects labelled training and validation images, and a fraction of the training patients.

    Args:
        data: Training and validation data.
        settings: Classes, fraction, seed; `classify` as returned by `apply_protocol`.

    Raises:
        ConfigError: If there are fewer than two classes.
        DataError: If a class has no training image, or none in the fraction, or validation has nothing to select by.
    """
    config, classes = settings.classify, settings.classes
    every = select_examples(data.train, classes, config)
    check_examples(every, classes, config)
    kept = take_fraction(every.records, config.fraction, classes, seed=settings.seed)
    taken = select_examples(kept, classes, config)
    check_examples(taken, classes, config)
    val = select_examples(data.val, classes, config)
    place = {record.id: row for row, record in enumerate(every.records)}
    log.info("training: %s, %s", every.description, count(every.patients(), "patient"))
    if len(kept) < len(every.records):
        images, patients = count(len(kept), "image"), count(taken.patients(), "patient")
        log.info("%s of them: %s of %s", f"{config.fraction:.4g}", images, patients)
    log.info("validation: %s", val.description)
    _check_validation(val, config, len(classes))
    return ClassifierSplit(every, [place[record.id] for record in kept], taken, val)


class LabelledBatch(NamedTuple):
    """A batch of inputs with labels."""

    inputs: Tensor
    """Images `[B, 1, H, W]` uint8, or features `[B, D]`."""
    targets: Tensor
    """As in `LabelledExamples`."""


class ClassifierModule(TrainingModule):
    """Trains a classifier with cross-entropy.

    Args:
        model: Maps the inputs of a batch to logits `[B, C]`.
        config: As returned by `apply_protocol`.
        val: Returns the validation batches; None if weights are not selected by validation.
        lr_multipliers: Learning-rate multiplier of parameters of `model` by name; by default 1.

    Source:
        CLEFT, section 3.3: "cross-entropy loss", for linear probes and for fine-tuning.
    """

    def __init__(
        self,
        model: nn.Module,
        config: ClassifyConfig,
        val: Callable[[], Iterable[LabelledBatch]] | None = None,
        lr_multipliers: dict[str, float] | None = None,
    ) -> None:
        super().__init__(optimizer_settings(config))
        self.model = model
        self._select_by = config.select_by
        self._val = val
        self._lr_multipliers = lr_multipliers
        self._measured: dict[str, float] = {}

    def loss(self, batch: LabelledBatch) -> Tensor:
        """Returns the mean cross-entropy in nats; log(C), or log(2) per finding, if all logits are equal."""
        return cross_entropy(self.model(batch.inputs).float(), batch.targets)

    def lr_multipliers(self) -> dict[str, float] | None:
        """Returns the multipliers of `layer_lr_multipliers`, if there are any."""
        if self._lr_multipliers is None:
            return None
        return {f"model.{name}": multiplier for name, multiplier in self._lr_multipliers.items()}

    @torch.no_grad()
    def validation_loss(self, poll: Callable[[], None]) -> float | None:
        """Returns the validation cross-entropy, or one minus the AUC with `select_by=auc`."""
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
        return loss if self._select_by != "auc" or area is None else 1 - area

    def validation_metrics(self, loss: float) -> dict[str, float]:
        """Returns cross-entropy and AUC."""
        return self._measured

    @property
    def selection_metric(self) -> str:
        """Name of the cross-entropy, or of one minus the AUC with `select_by=auc`."""
        return "one minus validation AUC" if self._select_by == "auc" else "validation loss"

    def describe_loss(self, loss: float) -> str:
        """Describes cross-entropy and AUC."""
        area = f", AUC {self._measured['val/auc']:.4f}" if "val/auc" in self._measured else ""
        return f"loss {self._measured['val/loss']:.4f}{area}"


@dataclass(frozen=True)
class _TrainingInputs:
    """A model to train, and its batches."""

    model: nn.Module
    batches: BatchSource
    val: Callable[[], Iterable[LabelledBatch]]
    accelerator: Literal["auto", "cpu", "gpu"]


def _check_source(source: Path, settings: Settings, folder: Path) -> None:
    """Checks that the source is a finished encoder without a classifier, and that its settings are unchanged."""
    stage = stage_of(source)
    if stage == "classify" or read_head_info(source) is not None:
        raise CheckpointError(
            f"{source} is a classifier itself; give the run of its encoder, written by cleft pretrain or "
            f"cleft learn-context"
        )
    check_source(source, settings, folder, what="classification", free=_FREE)


def _check_validation(val: LabelledExamples, config: ClassifyConfig, classes: int) -> None:
    """Checks that the validation split has labels to select by."""
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
            f"no class has positive and negative validation images, so there is no AUC to select the {what} by "
            f"({val.description}); set --classify.select_by loss, or use another split",
            reason="no-validation",
        )


def _train_head(
    source: Path,
    settings: Settings,
    data: TrainingData,
    split: ClassifierSplit,
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
            f"{source} expects images of {model.image_spec}; set images.size, images.mean and images.std to these"
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
        learned = _fit_head(model, _FeatureReader(source, model, settings, data, stop, progress), split, config)
    else:
        if uses_fixed_features(config):
            inputs = _from_features(
                head, _FeatureReader(source, model, settings, data, stop, progress), split, settings
            )
        else:
            inputs = _from_images(model, data, split, settings)
        learned = _train(inputs, model, settings, run, stop)
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
            "images": {"train": len(split.train.records), "val": len(split.val.records)},
            "patients": {"train": split.train.patients(), "val": split.val.patients()},
            "weights": weights_digest(run.folder),
        }
    )


def _describe_differences(trained: ImageTowerConfig, settings: Settings) -> list[str]:
    """Describes how the classifier uses the encoder in another inputs than it was trained."""
    differences = [
        f"image.{name}={getattr(settings.image, name)} instead of {getattr(trained, name)}"
        for name in ("pooling", "resize")
        if getattr(settings.image, name) != getattr(trained, name)
    ]
    return [*differences, "L2-normalised logits"] if settings.classify.logits == "unit" else differences


def _freeze(model: ImageClassifier) -> None:
    """Freezes all weights and keeps the encoder in evaluation mode while the head is trained."""
    model.requires_grad_(False)
    model.image_tower.trainable = False


@dataclass(frozen=True)
class _FeatureReader:
    """Computes features with a frozen encoder, or reads them from its cache."""

    source: Path
    model: ImageClassifier
    settings: Settings
    data: TrainingData
    stop: StopFlag
    progress: bool

    def features(self, records: Sequence[Record]) -> Tensor:
        """Returns features of centre-cropped images, `[N, D]`."""
        prepared = self.data.prepared
        loader = eval_loader(records, prepared, self.data.findings, self.settings, batch_size=_EVAL_BATCH_SIZE)
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
    model: ImageClassifier, reader: _FeatureReader, split: ClassifierSplit, config: ClassifyConfig
) -> dict[str, Any]:
    """Fits the head by the solver; returns entries of `summary.json`."""
    assert model.head is not None
    assert config.select_by is not None
    features, val_features = reader.features(split.available.records)[split.rows], reader.features(split.val.records)
    found = fit_probe(
        features,
        split.train.targets,
        val_features,
        split.val.targets,
        classes=model.head.out_features,
        select_by=config.select_by,
    )
    with torch.no_grad():
        model.head.weight.copy_(found.weight)
        model.head.bias.copy_(found.bias)
    measure = "AUC" if config.select_by == "auc" else "loss"
    description = f"penalty {found.penalty:g}, validation {measure} {found.score:.4f}"
    log.info("linear probe fitted: %s", description)
    return {
        "description": description,
        "strength": found.penalty,
        "tried": {f"{k:g}": value for k, value in found.scores.items()},
    }


def _from_features(
    head: nn.Linear, reader: _FeatureReader, split: ClassifierSplit, settings: Settings
) -> _TrainingInputs:
    """Returns the inputs for training the head on features that are computed once."""
    features, val_features = reader.features(split.available.records)[split.rows], None
    if settings.classify.select_by != "last":
        val_features = reader.features(split.val.records)

    def batches(first_step: int, rank: int, world_size: int) -> Iterator[LabelledBatch]:
        for places in _sampler(len(features), settings, first_step):
            rows = [row for _, row in places]
            yield LabelledBatch(features[rows], split.train.targets[rows])

    def val() -> Iterator[LabelledBatch]:
        assert val_features is not None
        yield LabelledBatch(val_features, split.val.targets)

    model = nn.Sequential(head, _L2Normalise()) if settings.classify.logits == "unit" else head
    return _TrainingInputs(model, batches, val, "cpu")  # a step is too small for a GPU


class _L2Normalise(nn.Module):
    """L2-normalises the logits of each image, as `ImageClassifier.logits_of` does."""

    def forward(self, logits: Tensor) -> Tensor:
        """Maps `[B, C]` to `[B, C]`."""
        return l2_normalise(logits)


def _from_images(
    model: ImageClassifier, data: TrainingData, split: ClassifierSplit, settings: Settings
) -> _TrainingInputs:
    """Returns the inputs for encoding every batch: the encoder is trained, or images are augmented."""
    # Captions are not used, so they need not be unique in a batch.
    plain = replace(settings, train=replace(settings.train, unique_in_batch="none"))
    taken, held_out = split.train, split.val

    def batches(first_step: int, rank: int, world_size: int) -> Iterator[LabelledBatch]:
        loader = train_loader(
            taken.records,
            data.prepared,
            data.findings,
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
        loader = eval_loader(held_out.records, data.prepared, data.findings, plain, batch_size=_EVAL_BATCH_SIZE)
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
    inputs: _TrainingInputs, model: ImageClassifier, settings: Settings, run: Run, stop: StopFlag
) -> dict[str, Any]:
    """Trains in steps; `model` holds the best weights afterwards. Returns entries of `summary.json`."""
    config = settings.classify
    assert config.steps is not None
    decays = config.mode == "fine-tune" and config.layer_decay not in (None, 1)
    model.train()
    learner = ClassifierModule(
        inputs.model,
        config,
        None if config.select_by == "last" else inputs.val,
        layer_lr_multipliers(model, config.layer_decay or 1) if decays else None,
    )
    outcome = train(learner, inputs.batches, run, _plan(settings, inputs.accelerator), stop)
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
    """Returns learning-rate multipliers of the encoder: `decay` to the power of the distance of a block to the head.

    Source:
        Discriminative fine-tuning of ULMFiT (Howard and Ruder 2018), by blocks as in BEiT and MAE.
    """
    depths, top = layer_depths(model.image_tower.model)
    return {f"image_tower.model.{name}": decay ** (top - depth) for name, depth in depths.items()}


def _plan(settings: Settings, accelerator: Literal["auto", "cpu", "gpu"]) -> TrainingPlan:
    config = settings.classify
    assert config.steps is not None
    intervals = Intervals(
        steps=config.steps,
        val_every=config.val_every,
        save_every=settings.train.save_every,
        log_every=settings.train.log_every,
    )
    train = replace(one_device(settings.train), accelerator=accelerator, precision=_precision(config, accelerator))
    return TrainingPlan(
        intervals=intervals,
        seed=settings.seed,
        clip_norm=None,
        train=train,
        memory=f"classify.batch_size={config.batch_size}, images.size={settings.images.size}",
        columns=["val/auc"],
        prefix="classify/",
    )


def _precision(config: ClassifyConfig, accelerator: str) -> Literal["32-true", "bf16-mixed", "16-mixed"]:
    if config.mode == "linear-probe":
        return "32-true"
    if config.precision != "auto":
        return config.precision
    gpu = accelerator != "cpu" and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return "bf16-mixed" if gpu else "32-true"


def _digest(*targets: Tensor) -> str:
    """Returns the first 16 hex digits of the SHA-256 of labels."""
    return hashlib.sha256(b"|".join(part.contiguous().numpy().tobytes() for part in targets)).hexdigest()[:16]
