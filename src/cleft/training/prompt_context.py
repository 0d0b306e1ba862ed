"""Stage two: learn a prompt context in front of the class names, with both towers frozen.

Images are not augmented, so each image that some step uses is encoded once, before the first step. A step then encodes
the class names behind the context, one small prefix tree, and computes the cross-entropy.

Shapes: `B` images of a batch, `C` classes, `E` joint dimension.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from cleft.config import ContextConfig, Settings, load_settings
from cleft.data import prompt_prefix
from cleft.data.batches import StepSampler, eval_loader, label_table
from cleft.data.counts import progress_bar
from cleft.data.text.prompts import check_class_names, find_class_names, require_phrases, resolve_classes
from cleft.errors import ConfigError, DataError
from cleft.files import as_path
from cleft.grammar import count, verb
from cleft.models.checkpoint import check_joint_space, load_model, save_model, weights_digest
from cleft.models.dual_encoder import DualEncoder, initial_context
from cleft.training.callbacks import Intervals, StopFlag
from cleft.training.dataset import TrainingData, read_training_data
from cleft.training.distributed import check_hardware, one_device
from cleft.training.features import inference_device
from cleft.training.lightning_module import TrainingModule
from cleft.training.provenance import inherited_split
from cleft.training.run_folder import Run, check_source, open_run
from cleft.training.trainer import TrainingPlan, train
from cleft.types import Record

_BATCH_SIZE = 64
_AUTOCAST_DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class Targets(NamedTuple):
    """Labelled images of a split for stage two."""

    records: list[Record]
    class_shares: Tensor
    """Target class probabilities, `[N, C]`; rows sum to one."""


class EncodedImages(NamedTuple):
    """Image embeddings with their targets."""

    image_embeds: Tensor
    """`[N, E]`."""
    class_shares: Tensor
    """`[N, C]`."""


def select_targets(records: Sequence[Record], classes: Sequence[str], several: str) -> Targets:
    """Selects the images that show exactly one of the classes, and with `several="soft"` those that show several.

    Args:
        records: Images of a split.
        classes: Findings to discriminate.
        several: `drop` leaves images with several of the classes out; `soft` keeps them, their target shared equally.
            Images with none of them are always left out.
    """
    present = torch.from_numpy(label_table(records, classes)) == 1  # [N, C]
    shown = present.sum(dim=1)
    kept = (shown == 1) | ((shown > 1) & (several == "soft"))
    one = int((shown == 1).sum())
    log.info(
        "of %s %s %s exactly one of the %d classes, %s several (%s), %s none (left out)",
        count(len(records), "image"),
        f"{one:,}",
        verb(one, "shows", "show"),
        len(classes),
        f"{int((shown > 1).sum()):,}",
        "shared" if several == "soft" else "left out",
        f"{int((shown == 0).sum()):,}",
    )
    chosen = [record for record, keep in zip(records, kept.tolist(), strict=True) if keep]
    return Targets(chosen, present[kept].float() / shown[kept, None])


def check_classes(targets: Targets, classes: Sequence[str], several: str) -> None:
    """Checks that there are two classes or more, each with training images.

    Raises:
        ConfigError: If there is only one class.
        DataError: If a class has no training image; names it.
    """
    if len(classes) < 2:
        raise ConfigError(f"classes={list(classes)}: stage two needs two classes or more")
    empty = [name for name, share in zip(classes, targets.class_shares.sum(dim=0).tolist(), strict=True) if share == 0]
    if empty:
        other = "" if several == "soft" else ", set context.multi_label=soft"
        raise DataError(
            f"no training image shows {' or '.join(empty)} and no other of the classes {', '.join(classes)}; "
            f"take {verb(len(empty), 'it', 'them')} out of classes{other}, or add images",
            reason="empty-class",
        )


@torch.no_grad()
def encode_targets(
    model: DualEncoder, targets: Targets, material: TrainingData, settings: Settings, stop: StopFlag, *, progress: bool
) -> EncodedImages:
    """Computes the embeddings of centre-cropped images with the frozen image encoder, on the device of the model.

    Args:
        model: In evaluation mode.
        targets: Images and their classes.
        material: Holds their pixels.
        settings: How images are cropped, and the precision.
        stop: Looked at after every batch.
        progress: Whether to show a bar.

    Raises:
        Interrupted, Terminated: If a signal arrived.
    """
    device = model.logit_scale.device
    half = _AUTOCAST_DTYPES.get(settings.train.precision)
    loader = eval_loader(targets.records, material.prepared, material.findings, settings, batch_size=_BATCH_SIZE)
    parts: list[Tensor] = []
    with (
        torch.autocast(device.type, half, enabled=half is not None),
        progress_bar("encode images", len(loader), enabled=progress) as advance,
    ):
        for batch in loader:
            stop.check("while encoding images; nothing was trained yet")
            parts.append(model.encode_image(batch.images.to(device)).cpu())
            advance()
    return EncodedImages(torch.cat(parts), targets.class_shares)


log = logging.getLogger(__name__)


def learn_context(
    source: Path | str, settings: Settings | None = None, folder: Path | str | None = None, *, progress: bool = True
) -> Path:
    """Trains a prompt context for a trained model, or resumes an interrupted run.

    Args:
        source: Run folder of stage one, or another model folder.
        settings: Data, classes, context; by default those of `source`. What decides the towers must be as it was there.
        folder: The new run folder; by default `<source>-context`. If it holds a finished run of the same settings,
            nothing is done.
        progress: Whether to show a bar while images are prepared.

    Returns:
        The new run folder: settings, log, training states, and the whole model with its context.

    Raises:
        ConfigError: If a setting of the towers was changed, a class is unknown, or the folder belongs to another run.
        DataError: If a class has no training image.
        CheckpointError: If stage one is not finished, or its weights are damaged.
        Interrupted, Terminated: If a signal arrived; the same call resumes.
        NumericsError: If a loss or gradient is not finite.
        ResourceError: If a disk is full.
    """
    source = as_path(source, "source")
    settings = load_settings(source) if settings is None else settings
    folder = source.with_name(f"{source.name}-context") if folder is None else as_path(folder, "folder")
    check_hardware(one_device(settings.train))
    check_joint_space(source)
    check_source(source, settings, folder, what="stage two")
    with open_run(folder, settings, "context") as run, StopFlag() as stop:
        if run.is_finished():
            return folder
        material = read_training_data(settings, progress=progress)
        run.record_split(material.facts(before=inherited_split(source), model=weights_digest(source)))
        stop.check("while reading the data; nothing was trained yet")
        _train(source, settings, material, run, stop, progress=progress)
    return folder


class PromptContextModule(TrainingModule):
    """Trains the context by cross-entropy between image embeddings and class prompts.

    Args:
        model: With a context; all other parameters must be frozen.
        names: Class names as used in prompts.
        config: Optimiser and schedule.
        val: Validation data; None if there are none.

    Source:
        CLEFT, section 2.2: "zero-shot classification cross-entropy" over the classes of a task. Which images take part
        the paper does not say (docs/decisions/0034).
    """

    def __init__(
        self, model: DualEncoder, names: Sequence[str], config: ContextConfig, val: EncodedImages | None = None
    ) -> None:
        super().__init__(config.optim)
        self.model = model
        self._names = list(names)
        self._val = val

    def loss(self, batch: EncodedImages) -> Tensor:
        """Returns the mean cross-entropy in nats; log(C) if all class embeddings are equal."""
        class_embeds = self.model.encode_class_names(self._names)  # [C, E]
        # In half precision, logits of different classes may round to the same value.
        with torch.autocast(class_embeds.device.type, enabled=False):
            logits = self.model.logit_scale.exp().float() * batch.image_embeds @ class_embeds.float().T  # [B, C]
            return F.cross_entropy(logits, batch.class_shares)

    @torch.no_grad()
    def validation_loss(self, poll: Callable[[], None]) -> float | None:
        """Returns the cross-entropy of the validation split."""
        poll()
        if self._val is None:
            return None
        with self.trainer.precision_plugin.val_step_context():
            return self.loss(EncodedImages(*(part.to(self.device) for part in self._val))).item()


def _train(
    source: Path, settings: Settings, material: TrainingData, run: Run, stop: StopFlag, *, progress: bool
) -> None:
    config = settings.context
    classes = resolve_classes(settings.classes, material.findings)
    names = find_class_names(settings.class_names, settings.data.dataset)
    require_phrases(names, "a learned context")
    check_class_names(names, classes)
    chosen = select_targets(material.train, classes, config.multi_label)
    check_classes(chosen, classes, config.multi_label)
    sampler = _Sampler(len(chosen.records), config, settings.seed)
    model = load_model(source, float32=True).eval()
    spec = (settings.images.size, settings.images.size), settings.images.mean, settings.images.std
    if spec != tuple(getattr(model.image_spec, name) for name in ("size", "mean", "std")):
        raise ConfigError(
            f"{source} wants images of {model.image_spec}; set images.size, images.mean and images.std so"
        )
    model.set_context(initial_context(model.text_tower, prompt_prefix(settings.data), config, settings.seed))
    model.to(inference_device(settings))

    def encode(targets: Targets) -> EncodedImages:
        return encode_targets(model, targets, material, settings, stop, progress=progress)

    drawn = sampler.drawn()
    train_set = encode(Targets([chosen.records[row] for row in drawn], chosen.class_shares[drawn]))
    val_targets = select_targets(material.val, classes, config.multi_label)
    val_set = encode(val_targets) if val_targets.records else None
    if val_set is None:
        log.warning("no validation image shows exactly one of the classes: the last context is kept, not the best")
    model.requires_grad_(False)
    assert model.context is not None
    model.context.requires_grad_(True)
    learner = PromptContextModule(model, [names.phrase(name) for name in classes], config, val_set)
    place = {row: position for position, row in enumerate(drawn)}

    def batches(first_step: int, rank: int, world_size: int) -> Iterator[EncodedImages]:
        for rows in sampler.steps(first_step):
            positions = [place[row] for row in rows]
            yield EncodedImages(train_set.image_embeds[positions], train_set.class_shares[positions])

    outcome = train(learner, batches, run, _plan(settings), stop)
    save_model(model, settings, run.folder, extra=run.terms())
    run.finish(
        {
            "steps": config.optim.steps,
            "best_step": outcome.best_step,
            "best_loss": outcome.best_loss,
            "classes": list(classes),
            "images": {"train": len(chosen.records), "drawn": len(drawn), "val": len(val_targets.records)},
            "weights": weights_digest(run.folder),
        }
    )


def _plan(settings: Settings) -> TrainingPlan:
    config = settings.context
    intervals = Intervals(
        steps=config.optim.steps,
        val_every=config.val_every,
        save_every=settings.train.save_every,
        log_every=settings.train.log_every,
    )
    # The encoders are frozen and a step is small: one device is enough.
    train = one_device(settings.train)
    return TrainingPlan(
        intervals=intervals,
        seed=settings.seed,
        clip_norm=config.optim.clip_norm,
        train=train,
        memory=f"context.batch_size={config.batch_size}, context.length={config.length}",
        prefix="context/",
    )


@dataclass(frozen=True)
class _Sampler:
    """Draws the images of each step from `n`."""

    n: int
    config: ContextConfig
    seed: int

    def steps(self, first_step: int) -> Iterable[list[int]]:
        sampler = StepSampler(
            self.n, self.config.batch_size, steps=self.config.optim.steps, seed=self.seed, first_step=first_step
        )
        return ([row for _, row in batch] for batch in sampler)

    def drawn(self) -> list[int]:
        """Returns the rows of images that are used in any step, ascending."""
        return sorted({row for rows in self.steps(0) for row in rows})
