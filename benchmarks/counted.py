"""Tokens and operations of a step, counted on meta tensors, at any size."""

from __future__ import annotations

from collections.abc import Sequence

from bench import number, table
from captions import Captions
from cleft.config import Settings
from text_tower import typical_batch
from ways import TREE, WAYS, Reader, TextWork, image_flops

HEAD = (
    "texts encoded as",
    "sequences x tokens",
    "tokens",
    "text TFLOP",
    "x tree",
    "step TFLOP",
    "x tree",
    "x image alone",
)


def count(settings: Settings, captions: Captions, batches: Sequence[int], seed: int) -> None:
    """Prints one table per batch size."""
    work = TextWork(settings.text, captions.texts)
    image = image_flops(settings.image, settings.images, 1)
    for batch in batches:
        texts, summary = typical_batch(work.tower, captions, batch, seed)
        reader = Reader(work.tower, texts)
        flops = {way: work.flops(reader.shape(way), way) for way in WAYS}
        images = batch * image
        print(
            f"### Counted, batch {batch:,}\n\n{summary} The image encoder alone does {number(images / 1e12)} TFLOP.\n"
        )
        rows: list[list[str]] = []
        for way in WAYS:
            shape, step = reader.shape(way), flops[way] + images
            rows.append(
                [
                    way,
                    f"{shape.sequences:,} x {shape.length:,}",
                    f"{shape.tokens:,}",
                    number(flops[way] / 1e12),
                    number(flops[way] / flops[TREE]),
                    number(step / 1e12),
                    number(step / (flops[TREE] + images)),
                    number(step / images),
                ]
            )
        print(table(HEAD, rows), flush=True)
