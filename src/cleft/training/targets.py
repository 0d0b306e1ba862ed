"""Which images stage two learns from, what they should be answered as, and their embeddings.

Shapes: `N` images, `C` classes, `E` joint dimension.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cleft.config import Settings
from cleft.data.batches import eval_loader, label_table
from cleft.data.progress import progress_bar
from cleft.errors import ConfigError, DataError
from cleft.grammar import count, verb
from cleft.models.dual_encoder import DualEncoder
from cleft.training.material import Material
from cleft.training.stops import StopFlag
from cleft.types import Record

log = logging.getLogger(__name__)

_AT_ONCE = 64
_HALVES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class Targets(NamedTuple):
    """Images of a split that stage two learns from."""

    records: list[Record]
    shares: Tensor
    """Share of each class in an image's target, `[N, C]`, rows sum to one."""


class Encoded(NamedTuple):
    """Images after the tower has read them."""

    image_embeds: Tensor
    """`[N, E]`."""
    shares: Tensor
    """`[N, C]`."""


def choose_targets(records: Sequence[Record], classes: Sequence[str], several: str) -> Targets:
    """Takes the images that show exactly one of the classes; those with several only if asked for.

    Args:
        records: Images of a split.
        classes: Findings that are told apart.
        several: `drop` leaves images with several of the classes out; `soft` keeps them, their target shared equally.
            Images with none of them have no right answer and are always left out.
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
    """Refuses classes that nothing can be learned about.

    Raises:
        ConfigError: If there is only one class.
        DataError: If a class has no training image; names it.
    """
    if len(classes) < 2:
        raise ConfigError(f"classes={list(classes)}: telling apart takes at least two")
    empty = [name for name, share in zip(classes, targets.shares.sum(dim=0).tolist(), strict=True) if share == 0]
    if empty:
        other = "" if several == "soft" else ", set context.several_positives=soft"
        raise DataError(
            f"no training image shows {' or '.join(empty)} and no other of the classes {', '.join(classes)}; "
            f"take {verb(len(empty), 'it', 'them')} out of classes{other}, or add images",
            reason="empty-class",
        )


@torch.no_grad()
def encode_targets(
    model: DualEncoder, targets: Targets, material: Material, settings: Settings, stop: StopFlag, *, progress: bool
) -> Encoded:
    """Reads images once with the frozen tower, cropped at the centre, on whatever device the model lies.

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
    half = _HALVES.get(settings.train.precision)
    loader = eval_loader(targets.records, material.prepared, material.findings, settings, batch_size=_AT_ONCE)
    parts: list[Tensor] = []
    with (
        torch.autocast(device.type, half, enabled=half is not None),
        progress_bar("encode images", len(loader), enabled=progress) as advance,
    ):
        for batch in loader:
            stop.check("while encoding images; nothing was learned yet")
            parts.append(model.encode_image(batch.images.to(device)).cpu())
            advance()
    return Encoded(torch.cat(parts), targets.shares)
