"""Encode a dataset once with the image encoder, and cache the result on disk.

Zero-shot classification and retrieval use embeddings (projected, L2-normalised), linear probes use features (neither).
GLoRIA's local similarities compare image regions with prompts, so the similarities themselves are cached.

A cache is used only if it is complete and belongs to the same weights, pixels, images and order; otherwise images are
encoded again.

Shapes: `B` images of a batch, `N` images, `T` prompts, `C` findings, `D` width of the image tower, `E` joint dimension.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import safetensors
import torch
from safetensors.numpy import load, save
from torch import Tensor

from cleft.config import Settings
from cleft.data.batches import label_table
from cleft.data.counts import progress_bar
from cleft.errors import DataError, NumericsError, ResourceError
from cleft.files import write_whole
from cleft.grammar import count, share, verb
from cleft.strict_json import read_json
from cleft.types import Batch, Embeddings, ImageModel, ImageTextModel, LabelledImages, Record

_MANIFEST = "manifest.json"
_EMBEDS, _FEATURES, _SIMILARITIES = "image_embeds", "image_features", "similarities"


class _Module(Protocol):
    """Part of `torch.nn.Module` that encoding needs."""

    training: bool

    def train(self, mode: bool = True) -> object:
        """Sets training or evaluation mode."""
        ...

    def parameters(self) -> Iterator[Tensor]:
        """Returns all parameters."""
        ...


class FeatureModel(ImageModel, _Module, Protocol):
    """An image model that is a `torch.nn.Module`."""


class EncodingModel(ImageTextModel, _Module, Protocol):
    """An image-text model that is a `torch.nn.Module`."""


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
    """Computes the embedding of every image, or reads them from the cache.

    Runs in evaluation mode without gradients; no embedding depends on other images of its batch.

    Args:
        model: The model, on any device.
        loader: Batches with each record exactly once, in any order; `Batch.rows` holds the row of each.
        records: The images, `N`.
        findings: Columns of the labels, `C`.
        folder: Cache folder, e.g. `<run>/embeddings`; None: no cache.
        key: What decides the embeddings besides the image ids and their order: digests of weights and pixels.
        progress: Whether to show a bar.

    Returns:
        Embeddings and labels in the order of `records`.

    Raises:
        DataError: If the loader leaves a record out or repeats one.
        NumericsError: If an embedding is not finite.
        ResourceError: If the cache cannot be written.
    """
    embeds = _cached(model, model.encode_image, loader, records, _EMBEDS, folder, key or {}, progress=progress)
    return Embeddings(embeds, *label_images(records, findings))


def encode_features(
    model: FeatureModel,
    loader: Iterable[Batch],
    records: Sequence[Record],
    *,
    folder: Path | None = None,
    key: Mapping[str, str] | None = None,
    progress: bool = True,
) -> Tensor:
    """Computes the features of every image before any projection, or reads them from the cache.

    Args, errors: As for `encode_images`.

    Returns:
        Features `[N, D]` float32, in the order of `records`.
    """
    which = {**(key or {}), "output": "features"}
    return _cached(model, model.encode_image_features, loader, records, _FEATURES, folder, which, progress=progress)


def compare_images(
    model: EncodingModel,
    compare: Callable[[Tensor], Tensor],
    loader: Iterable[Batch],
    records: Sequence[Record],
    *,
    folder: Path | None = None,
    key: Mapping[str, str] | None = None,
    progress: bool = True,
) -> Tensor:
    """Computes the similarities of every image with the same prompts, or reads them from the cache.

    Args, errors: As for `encode_images`, and `compare`: maps images `[B, 1, H, W]` uint8 to similarities `[B, T]`, each
    image on its own. `key` must include prompts and similarity.

    Returns:
        Similarities `[N, T]` float32, in the order of `records`.
    """
    which = {**(key or {}), "output": "similarities"}
    return _cached(model, compare, loader, records, _SIMILARITIES, folder, which, progress=progress)


def label_images(records: Sequence[Record], findings: Sequence[str]) -> LabelledImages:
    """Returns labels, ids, patients and views of images.

    Args:
        records: The images, `N`.
        findings: Columns of the labels, `C`.
    """
    return LabelledImages(
        labels=torch.from_numpy(label_table(records, findings)),
        findings=tuple(findings),
        ids=[record.id for record in records],
        patients=[record.patient for record in records],
        views=[record.view for record in records],
    )


def _cached(
    model: _Module,
    read: Callable[[Tensor], Tensor],
    loader: Iterable[Batch],
    records: Sequence[Record],
    name: str,
    folder: Path | None,
    key: Mapping[str, str],
    *,
    progress: bool,
) -> Tensor:
    """Returns the rows that `read` computes for all images, from the cache if possible."""
    full_key = {**key, "records": _digest("\n".join(record.id for record in records))}
    place = None if folder is None else folder / _digest(json.dumps(full_key, sort_keys=True))
    rows = None if place is None else _read_cache(place, name, full_key, len(records))
    if rows is None:
        rows = _encode(model, read, loader, len(records), progress=progress)
        if place is not None:
            _write_cache(place, name, full_key, rows)
    return rows


def _encode(
    model: _Module, read: Callable[[Tensor], Tensor], loader: Iterable[Batch], images: int, *, progress: bool
) -> Tensor:
    """Computes a row for each image, `[N, ...]` float32 on the CPU."""
    device = next(iter(model.parameters())).device
    seen = torch.zeros(images, dtype=torch.int64)
    embeds: Tensor | None = None
    was_training = model.training
    model.train(False)
    try:
        with torch.no_grad(), progress_bar("encode images", images, enabled=progress) as advance:
            for batch in loader:
                rows = batch.rows.to("cpu")
                if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < images:
                    raise DataError(
                        f"the loader returned row {int(rows.max())} of {count(images, 'record')}", reason="rows"
                    )
                encoded = read(batch.images.to(device)).float().cpu()
                embeds = torch.zeros(images, encoded.shape[1]) if embeds is None else embeds
                embeds[rows] = encoded
                seen += torch.bincount(rows, minlength=images)
                for _ in range(len(rows)):
                    advance()
    finally:
        model.train(was_training)
    if embeds is None or not bool((seen == 1).all()):
        raise DataError(
            f"of {count(images, 'image')} the loader left out {int((seen == 0).sum())} and repeated "
            f"{int((seen > 1).sum())}; every image must occur once",
            reason="rows",
        )
    return _finite(embeds)


def _finite(embeds: Tensor) -> Tensor:
    bad = int((~torch.isfinite(embeds)).any(dim=1).sum())
    if bad:
        raise NumericsError(
            f"{share(bad, len(embeds), 'image embedding')} {verb(bad, 'is', 'are')} not finite; check the weights"
        )
    return embeds


def _read_cache(place: Path, name: str, key: Mapping[str, str], images: int) -> Tensor | None:
    """Returns cached rows, or None if they are missing, incomplete, damaged or belong to another key."""
    try:
        manifest = read_json(place / _MANIFEST)
        data = (place / f"{name}.safetensors").read_bytes()
        if manifest != _manifest(key, images, data):
            return None
        embeds = torch.from_numpy(load(data)[name])
    except (DataError, OSError, ValueError, KeyError, safetensors.SafetensorError):
        return None
    return embeds if len(embeds) == images else None


def _write_cache(place: Path, name: str, key: Mapping[str, str], embeds: Tensor) -> None:
    """Writes the rows, then the manifest that makes them valid: if killed in between, they are not used."""
    data = save({name: np.ascontiguousarray(embeds.numpy())})
    try:
        for folder in (place.parent, place):  # `parents=True` would create the parent with the default mode
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (place / _MANIFEST).unlink(missing_ok=True)
        write_whole(place / f"{name}.safetensors", data)
        write_whole(place / _MANIFEST, json.dumps(_manifest(key, len(embeds), data), indent=1).encode())
    except OSError as error:
        raise ResourceError(f"cannot write {len(data)} bytes of embeddings to {place} ({error.strerror})") from error


def _manifest(key: Mapping[str, str], images: int, data: bytes) -> dict[str, object]:
    return {"schema": 1, "images": images, "sha256": hashlib.sha256(data).hexdigest(), "key": dict(key)}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def inference_device(settings: Settings) -> torch.device:
    """Returns the device for inference: a GPU if there is one and `train.accelerator` allows it."""
    wanted = settings.train.accelerator != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if wanted else "cpu")


EMBEDDINGS = "embeddings"
"""Folder of a run that caches embeddings and features."""


def features_key(weights: str, pixels: str, settings: Settings) -> dict[str, str]:
    """Returns what decides features, apart from the images: digests of weights and pixels, and reading settings."""
    read = {"pooling": settings.image.pooling, "resize": str(settings.image.resize)}
    return {"weights": weights, "pixels": pixels, "size": str(settings.images.size), **read}
