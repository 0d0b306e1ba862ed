"""A dataset through the image tower, once; zero-shot, probing and retrieval then ask what it left on disk.

What lies on disk is used only when it is complete and was made by the same weights from the same pixels of
the same images in the same order. Anything else is encoded again: a stale store is a wrong number that looks right.

Shapes: `B` images of a batch, `N` images, `C` findings, `E` joint dimension.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import safetensors
import torch
from safetensors.numpy import load, save
from torch import Tensor

from cleft.codec import write_whole
from cleft.data.batches import label_table
from cleft.data.progress import progress_bar
from cleft.errors import DataError, NumericsError, ResourceError
from cleft.types import Batch, Embeddings, ImageTextModel, Record

_FILE, _MANIFEST = "image_embeds.safetensors", "manifest.json"


class EncodingModel(ImageTextModel, Protocol):
    """A model that can be told to stop drawing dropout."""

    training: bool

    def train(self, mode: bool = True) -> object:
        """Sets training or evaluation mode."""
        ...


def encode_images(
    model: EncodingModel,
    loader: Iterable[Batch],
    records: Sequence[Record],
    findings: Sequence[str],
    *,
    folder: Path | None = None,
    key: Mapping[str, str] | None = None,
    progress: bool = True,
) -> Embeddings:
    """Encodes every image of `records` once, or takes what an equal pass left in `folder`.

    Dropout is off, no gradient is kept, and no row depends on its batch mates.

    Args:
        model: What encodes; on whatever device its temperature lies.
        loader: Batches that show each record once, in any order; `Batch.rows` says which is which.
        records: The images, `N`.
        findings: Columns of the labels, `C`.
        folder: Where embeddings are kept, e.g. `<run>/embeddings`; None keeps nothing.
        key: What decides the embeddings besides the ids and their order: weights digest, pixels digest.
        progress: Whether to show a bar.

    Returns:
        Embeddings and labels in the order of `records`.

    Raises:
        DataError: If the loader leaves a record out or shows one twice.
        NumericsError: If an embedding is not finite.
        ResourceError: If the store cannot be written.
    """
    full_key = {**(key or {}), "records": _digest("\n".join(record.id for record in records))}
    place = None if folder is None else folder / _digest(json.dumps(full_key, sort_keys=True))
    embeds = None if place is None else _stored(place, full_key, len(records))
    if embeds is None:
        embeds = _encode(model, loader, len(records), progress=progress)
        if place is not None:
            _store(place, full_key, embeds)
    return Embeddings(
        image_embeds=embeds,
        labels=torch.from_numpy(label_table(records, findings)),
        findings=tuple(findings),
        ids=[record.id for record in records],
        patients=[record.patient for record in records],
        views=[record.view for record in records],
    )


def _encode(model: EncodingModel, loader: Iterable[Batch], images: int, *, progress: bool) -> Tensor:
    """Unit-length embeddings of all images, `[N, E]` float32, on the CPU."""
    seen = torch.zeros(images, dtype=torch.int64)
    embeds: Tensor | None = None
    was_training = model.training
    model.train(False)
    try:
        with torch.no_grad(), progress_bar("encode images", images, enabled=progress) as advance:
            for batch in loader:
                rows = batch.rows.to("cpu")
                if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < images:
                    raise DataError(f"the loader shows row {int(rows.max())} of {images} records", reason="rows")
                encoded = model.encode_image(batch.images.to(model.logit_scale.device)).float().cpu()  # [B, E]
                embeds = torch.zeros(images, encoded.shape[1]) if embeds is None else embeds
                embeds[rows] = encoded
                seen += torch.bincount(rows, minlength=images)
                for _ in range(len(rows)):
                    advance()
    finally:
        model.train(was_training)
    if embeds is None or not bool((seen == 1).all()):
        raise DataError(
            f"of {images} images the loader left out {int((seen == 0).sum())} and showed "
            f"{int((seen > 1).sum())} more than once; every image is scored once",
            reason="rows",
        )
    return _finite(embeds)


def _finite(embeds: Tensor) -> Tensor:
    bad = int((~torch.isfinite(embeds)).any(dim=1).sum())
    if bad:
        raise NumericsError(f"{bad} of {len(embeds)} image embeddings are not finite; check the weights")
    return embeds


def _stored(place: Path, key: Mapping[str, str], images: int) -> Tensor | None:
    """What an equal pass left, or None where it is missing, incomplete, damaged or of something else."""
    try:
        manifest = json.loads((place / _MANIFEST).read_bytes())
        data = (place / _FILE).read_bytes()
        if manifest != _manifest(key, images, data):
            return None
        embeds = torch.from_numpy(load(data)["image_embeds"])
    except (OSError, ValueError, KeyError, safetensors.SafetensorError):
        return None
    return embeds if len(embeds) == images else None


def _store(place: Path, key: Mapping[str, str], embeds: Tensor) -> None:
    """Writes the embeddings, then the manifest that makes them valid: killed in between, they are not used."""
    data = save({"image_embeds": np.ascontiguousarray(embeds.numpy())})
    try:
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        (place / _MANIFEST).unlink(missing_ok=True)
        write_whole(place / _FILE, data)
        write_whole(place / _MANIFEST, json.dumps(_manifest(key, len(embeds), data), indent=1).encode())
    except OSError as error:
        raise ResourceError(f"cannot keep {len(data)} bytes of embeddings in {place} ({error.strerror})") from error


def _manifest(key: Mapping[str, str], images: int, data: bytes) -> dict[str, object]:
    return {"schema": 1, "images": images, "sha256": hashlib.sha256(data).hexdigest(), "key": dict(key)}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
