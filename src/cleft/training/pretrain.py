"""Stage one: train a model on images and their texts, with any method.

Shapes: `B` pairs of a batch over all devices, `T` distinct captions, `E` joint dimension, `C` findings.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from cleft.config import ImageTowerConfig, Settings, TextTowerConfig, TrainConfig, load_settings
from cleft.data import DATASETS
from cleft.data.batches import Schedule, eval_loader, train_loader
from cleft.data.sampling import repeat_note
from cleft.data.text.prompts import check_class_names, find_class_names, resolve_classes
from cleft.data.text.texts import Texts
from cleft.errors import ConfigError
from cleft.files import as_path
from cleft.grammar import count, share, verb
from cleft.launch import is_first
from cleft.models.adapters import describe_trainable
from cleft.models.checkpoint import save_model, weights_digest
from cleft.models.dual_encoder import DualEncoder, PairEmbeddings
from cleft.models.image_classifier import build_image_classifier, save_image_classifier
from cleft.models.methods import METHODS, MethodModel, build_model
from cleft.models.methods.losses import PairInfo
from cleft.privacy import MIN_PATIENTS
from cleft.training.callbacks import Intervals, StopFlag, preserved_rng, seed_generators, step_seed
from cleft.training.dataset import TrainingData, drop_images_without_text, read_training_data
from cleft.training.distributed import first_rank_first, gather_rows, resolve_devices
from cleft.training.lightning_module import TrainingModule, trainable_parameters
from cleft.training.provenance import record_commits, split_record, texts_digest
from cleft.training.run_folder import Run, open_run
from cleft.training.trainer import TrainingPlan, train
from cleft.types import Batch

log = logging.getLogger(__name__)

COLUMNS = ("temperature", "clamped_steps", "nodes", "padded_tokens", "repeated_captions")
"""Metrics that stage one logs in addition to those of every stage.

`nodes`: tokens that the language model processed in the last step; `padded_tokens`: what it would process with captions
padded to `text.max_tokens`; `repeated_captions`: fraction of pairs whose caption occurs earlier in the batch.
"""

_CAPTIONS_AT_ONCE = 512


def pretrain(settings: Settings, folder: Path | str, *, progress: bool = True) -> Path:
    """Trains a model from settings, or resumes an interrupted run.

    Args:
        settings: All settings of the run. With `method=image-only`, no data are read and nothing is trained: the run
            holds the untrained image encoder.
        folder: The run folder. If it holds a finished run with the same settings, nothing is done.
        progress: Whether to show a bar while images are prepared.

    Returns:
        The run folder: settings, log, training states, and the model with the lowest validation loss.

    Raises:
        ConfigError: If settings contradict each other, or the folder belongs to another run.
        DataError: If the data are not in the expected format.
        Interrupted, Terminated: If a signal arrived; the same call resumes.
        NumericsError: If a loss or gradient is not finite.
        ResourceError: If a disk is full.
        CheckpointError: If weights or states do not fit.
    """
    folder = as_path(folder, "folder")
    settings = _with_rule(settings, folder)
    train = resolve_devices(settings.train)
    with (
        first_rank_first(train.timeout) as ready,
        open_run(folder, settings, "pretrain") as run,
        StopFlag() as stop,
    ):
        if run.is_finished():
            return folder
        if settings.method == "image-only":
            if is_first():
                _save_untrained(settings, run)
            return folder
        material = drop_images_without_text(read_training_data(settings, progress=progress), settings.data)
        _warn_about_classes(settings, material)
        texts = Texts(material.train, material.findings, settings.data, settings.seed)
        run.record_split(material.facts(**_text_facts(texts, settings)))
        stop.check("while reading the data; nothing was trained yet")
        _train(settings, material, texts, run, stop, train, ready)
    return folder


def _with_rule(settings: Settings, folder: Path) -> Settings:
    """Returns the settings with the text rule of the run, if `text.normalisation` is `auto`."""
    if settings.text.normalisation != "auto" or not (folder / "config.yaml").is_file():
        return settings
    rule = load_settings(folder / "config.yaml").text.normalisation
    return replace(settings, text=replace(settings.text, normalisation=rule))


def _text_facts(texts: Texts, settings: Settings) -> dict[str, str]:
    """Returns the digest of the training texts, if they are not the captions."""
    return {} if settings.data.texts == "captions" else {"texts": texts_digest(texts.all_texts())}


def _warn_about_classes(settings: Settings, material: TrainingData) -> None:
    """Warns before training if stage two or evaluation will have no classes, or no names for them."""
    try:
        classes = resolve_classes(settings.classes, material.findings)
        check_class_names(find_class_names(settings.class_names, settings.data.dataset), classes)
    except ConfigError as error:
        if is_first():
            log.warning("for stage two and evaluation, stage one does not need it: %s", error)


def _save_untrained(settings: Settings, run: Run) -> None:
    """Writes the run of an untrained image encoder, which later commands use as any other run."""
    log.info("%s: nothing is trained; the image tower is kept as it is", run.folder)
    facts = split_record(people="", recipe="nothing was trained", digest="", counts={"train": 0, "val": 0}, patients=[])
    run.record_split(facts)
    save_image_classifier(build_image_classifier(settings), settings, run.folder)
    run.finish({"steps": 0, "best_step": 0, "best_loss": None, "weights": weights_digest(run.folder)})


class Validation(NamedTuple):
    """Validation data, by which the best weights are selected."""

    captions: Sequence[str]
    """Text of each image."""
    batches: Callable[[int, int], Iterable[Batch]]
    """Maps (rank, world size) to the batches of the rank."""


class PretrainModule(TrainingModule):
    """Trains a model on images and captions with the loss of its method.

    Args:
        model: Model of any method.
        settings: Method, loss and optimiser.
        captions: All training texts, the same on all ranks.
        val: Validation data; None if there are none.
    """

    clamped: Tensor

    def __init__(
        self, model: MethodModel, settings: Settings, captions: Iterable[str], val: Validation | None = None
    ) -> None:
        super().__init__(settings.optim)
        self.model = model
        self.register_buffer("clamped", torch.zeros((), dtype=torch.int64))
        self._settings = settings
        self._method = METHODS[settings.method]
        self._caption_ids = {caption: number for number, caption in enumerate(sorted(set(captions)))}
        self._val = val
        self._val_rows = {} if val is None else {text: row for row, text in enumerate(sorted(set(val.captions)))}
        self._warned = False

    def loss(self, batch: Batch) -> Tensor:
        """Returns the loss over the pairs of all ranks; each rank encodes its own."""
        read = self._method.read(self.model, batch)
        facts = self._facts(batch, _row_numbers(self._caption_ids, batch.captions, self.device))
        if self._method.compares_pairs and dist.is_available() and dist.is_initialized():
            read, facts = gather_rows(read), gather_rows(facts)
        return self._method.loss(self.model, read, facts, self._settings)

    def _facts(self, batch: Batch, caption_ids: Tensor) -> PairInfo:
        text_labels = batch.labels if batch.text_labels is None else batch.text_labels
        return PairInfo(caption_ids, batch.labels, text_labels, step=self.global_step)

    def step_metrics(self) -> dict[str, float]:
        """Returns the temperature and what the language model processed."""
        stats = self.model.text_tower.stats
        if self._method.compares_pairs and stats.distinct == 1 and not self._warned:
            self._warned = True
            log.warning(
                "every caption of a batch is the same, so this step has no contrast; raise train.batch_size, or "
                "count the distinct captions with cleft data check"
            )
        scale = _scale_of(self.model)
        return {
            **({} if scale is None else {"temperature": math.exp(-scale.item())}),
            "clamped_steps": int(self.clamped),
            "nodes": stats.nodes,
            "padded_tokens": stats.padded_tokens,
            "repeated_captions": 1 - stats.distinct / max(1, stats.texts),
        }

    @torch.no_grad()
    def after_update(self) -> None:
        """Clamps the inverse temperature to its range, and counts the steps that needed it."""
        scale = _scale_of(self.model)
        before = None if scale is None else scale.clone()
        self.model.constrain_parameters_()
        if scale is not None:
            self.clamped += before != scale

    @torch.no_grad()
    def validation_loss(self, poll: Callable[[], None]) -> float | None:
        """Returns the mean loss per pair of the validation split; each distinct caption is encoded once.

        Batches have the size of training batches, because a contrastive loss depends on it; the last one may be smaller
        and is weighted by its images.
        """
        if self._val is None:
            return None
        self.model.eval()
        try:
            with self.trainer.precision_plugin.val_step_context(), preserved_rng(self.device):
                batches = self._val.batches(self.trainer.global_rank, self.trainer.world_size)
                total, count = self._add_up(batches, poll)
        finally:
            self.model.train()
        sums = self.trainer.strategy.reduce(torch.stack([total, count]), reduce_op="sum")
        assert isinstance(sums, Tensor)
        return (sums[0] / sums[1]).item()

    def _add_up(self, batches: Iterable[Batch], poll: Callable[[], None]) -> tuple[Tensor, Tensor]:
        """Returns the sum of the losses of the pairs of this rank, and their number."""
        text_embeds = self._read_val_texts() if self._method.global_texts_only else None
        total, count = torch.zeros(2, dtype=torch.float64, device=self.device)
        for number, batch in enumerate(batches):
            poll()
            # Masks of an image must be the same at every validation, on any number of ranks.
            place = number * self.trainer.world_size + self.trainer.global_rank
            seed_generators(step_seed(self._settings.seed, "validation", place, 0), self.device)
            on_device: Batch = self.trainer.strategy.batch_to_device(batch)
            rows = _row_numbers(self._val_rows, batch.captions, self.device)
            if text_embeds is None:
                read = self._method.read(self.model, on_device)
            else:
                assert isinstance(self.model, DualEncoder)
                read = PairEmbeddings(self.model.encode_image(on_device.images), text_embeds[rows])
            loss = self._method.loss(self.model, read, self._facts(on_device, rows), self._settings)
            total += loss.double() * len(rows)
            count += len(rows)
        return total, count

    def _read_val_texts(self) -> Tensor:
        """Returns the embeddings of the distinct validation captions, `[T, E]`."""
        assert isinstance(self.model, DualEncoder)
        distinct = list(self._val_rows)
        parts = [distinct[start : start + _CAPTIONS_AT_ONCE] for start in range(0, len(distinct), _CAPTIONS_AT_ONCE)]
        return torch.cat([self.model.encode_text(part) for part in parts])


def _train(
    settings: Settings,
    material: TrainingData,
    texts: Texts,
    run: Run,
    stop: StopFlag,
    train_config: TrainConfig,
    ready: Callable[[], None],
) -> None:
    """Trains.

    Args:
        settings: Of the run.
        material: Records and their pixels.
        texts: Texts of the images.
        run: The open run folder.
        stop: Set by a signal.
        train_config: With numbers of devices and machines.
        ready: To be called when the other ranks may start.
    """
    if settings.train.patience and not material.val:
        raise ConfigError(
            f"train.patience={settings.train.patience} needs a validation split, and there is none; set "
            f"data.val_fraction, or leave train.patience out"
        )
    captions = texts.all_texts()
    log.info("building the model: image tower %s, text tower %s", _named(settings.image), _named(settings.text))
    model = build_model(settings, captions, learnable=_tokenizer_texts(texts, settings))
    if is_first():
        record_commits(run.folder / "environment.json", settings)
    model.text_tower.cache_texts(sorted(set(captions)))
    if DATASETS[settings.data.dataset].whole_captions and settings.data.texts == "captions":
        _check_caption_length(model, settings)
    model.train()
    _describe(model, material, captions)
    if note := repeat_note(material.train, settings.train.unique_in_batch, settings.train.batch_size):
        log.info("%s", note)
    val = None
    if material.val:
        still = Texts(material.val, material.findings, settings.data, settings.seed, fixed=True)
        read = [still.sample(0, row).text for row in range(len(material.val))]
        val = Validation(read, _val_batches(material, still, settings))
    learner = PretrainModule(model, settings, captions, val)

    def batches(first_step: int, rank: int, world_size: int) -> Iterable[Batch]:
        return train_loader(
            material.train,
            material.prepared,
            material.findings,
            settings,
            Schedule(first_step=first_step, rank=rank, world_size=world_size),
            texts=texts,
        )

    assert train_config.devices != "auto"
    assert train_config.nodes != "auto"
    batches(
        0, 0, train_config.devices * train_config.nodes
    )  # checks that batches can be filled, and divided among ranks
    ready()
    outcome = train(learner, batches, run, _plan(settings, train_config), stop)
    if is_first():
        save_model(model, settings, run.folder, extra=run.terms())
        run.finish(
            {
                "steps": settings.optim.steps,
                "last_step": outcome.last_step,
                "best_step": outcome.best_step,
                "best_loss": outcome.best_loss,
                "images": {"train": len(material.train), "val": len(material.val)},
                "weights": weights_digest(run.folder),
            }
        )


def _tokenizer_texts(texts: Texts, settings: Settings) -> list[str] | None:
    """Returns texts to train a tokenizer on, without words that may identify a patient, or None if it is given."""
    if settings.text.scratch is None:
        return None
    learnable = texts.tokenizer_corpus()
    if learnable.left_out:
        log.info(
            "%s %s in the texts of fewer than %d patients: the tokenizer does not learn %s and spells %s",
            share(learnable.left_out, learnable.words, "distinct word"),
            verb(learnable.left_out, "occurs", "occur"),
            MIN_PATIENTS,
            *[verb(learnable.left_out, "it", "them")] * 2,
        )
    return learnable.parts


def _check_caption_length(model: MethodModel, settings: Settings) -> None:
    """Raises a ConfigError if a caption is longer than `text.max_tokens`."""
    tokens = model.text_tower.tokenizer
    if tokens.truncated:
        raise ConfigError(
            f"{share(tokens.truncated, tokens.seen, 'distinct caption')} {verb(tokens.truncated, 'is', 'are')} longer "
            f"than text.max_tokens={tokens.max_tokens} and would lose {verb(tokens.truncated, 'its', 'their')} end, "
            f"where the class is; set text.max_tokens to {tokens.longest_text} or more, or data.caption=simple"
        )


def _named(tower: ImageTowerConfig | TextTowerConfig) -> str:
    """Returns the name or kind of an encoder."""
    return tower.model or f"{(tower.scratch or {}).get('model_type')} from scratch"


def _plan(settings: Settings, train_config: TrainConfig) -> TrainingPlan:
    every = settings.train
    intervals = Intervals(
        steps=settings.optim.steps, val_every=every.val_every, save_every=every.save_every, log_every=every.log_every
    )
    return TrainingPlan(
        intervals=intervals,
        seed=settings.seed,
        clip_norm=settings.optim.clip_norm,
        train=train_config,
        memory=f"train.batch_size={settings.train.batch_size}, images.size={settings.images.size}, "
        f"text.max_tokens={settings.text.max_tokens}",
        patience=settings.train.patience,
        columns=COLUMNS,
    )


def _val_batches(material: TrainingData, texts: Texts, settings: Settings) -> Callable[[int, int], Iterable[Batch]]:
    """Returns batches per rank: every `world_size`-th batch, so that batches do not depend on the number of ranks."""
    size, every = settings.train.batch_size, range(len(material.val))
    parts = [every[start : start + size] for start in every[::size]]

    def of_rank(rank: int, world_size: int) -> Iterable[Batch]:
        rows = [row for part in parts[rank::world_size] for row in part]
        records = [material.val[row] for row in rows]
        return eval_loader(
            records, material.prepared, material.findings, settings, batch_size=size, texts=texts.subset(rows)
        )

    return of_rank


def _describe(model: MethodModel, material: TrainingData, captions: Sequence[str]) -> None:
    moving = sum(weight.numel() for weight in trainable_parameters(model).values())
    total = sum(weight.numel() for weight in model.parameters())
    log.info("%s", describe_trainable(model.text_tower.lm, model.text_tower.config))
    log.info("%s of %s parameters are trainable", f"{moving:,}", f"{total:,}")
    log.info(
        "%s with %s, %s for validation",
        count(len(material.train), "training image"),
        count(len(set(captions)), "distinct text"),
        f"{len(material.val):,}",
    )
    if not material.val:
        log.warning("there is no validation split: the last weights are kept, not the best; set data.val_fraction")


def _scale_of(model: MethodModel) -> Tensor | None:
    """Returns the log of the inverse temperature; None for methods without one."""
    return model.logit_scale if isinstance(model, DualEncoder) else None


def _row_numbers(rows: Mapping[str, int], captions: Sequence[str], device: torch.device) -> Tensor:
    return torch.tensor([rows[caption] for caption in captions], device=device)
