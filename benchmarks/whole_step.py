"""Measures a training step: both encoders forward and backward, loss and optimiser; and the image encoder alone.

The image encoder alone trains against text embeddings computed once: the cost of a step with free texts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from bench import AGAIN, MEMORY, Bench, largest_errors, memory, number, table, timed
from captions import Captions
from cleft.config import Settings
from cleft.models.dual_encoder import DualEncoder
from cleft.models.methods import build_model
from cleft.models.methods.losses import info_nce
from cleft.training.lightning_module import build_optimizer
from text_tower import check_tree, expected, reference_of, stir, try_ways, typical_batch
from ways import RELEASED, TREE, WAYS, Reader, TextWork, image_flops

IMAGE_ALONE = "image encoder alone"
OPTIMISER = "of which optimiser"
HEAD = (
    "texts encoded as",
    "TFLOP",
    "s min",
    "s median",
    "s max",
    "x image alone",
    "x tree",
    "TFLOP/s",
    "error",
    *MEMORY,
)


class Step:
    """A training step on one batch.

    Args:
        model: Both towers, in training mode.
        reader: The captions.
        images: As many images, `[B, 1, H, W]` uint8.
        settings: Of the optimiser.
        bench: Where to compute and how precisely.
    """

    def __init__(self, model: DualEncoder, reader: Reader, images: Tensor, settings: Settings, bench: Bench) -> None:
        self.model = model
        self.reader = reader
        self.images = images
        self.bench = bench
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        self.optimizer = build_optimizer(model, settings.optim)
        with torch.no_grad():
            self.stored = self._text_embeds(TREE)

    def __call__(self, way: str) -> Tensor:
        """Returns the loss, gradients computed and nothing updated."""
        self.optimizer.zero_grad()
        text_embeds = self.stored if way == IMAGE_ALONE else self._text_embeds(way)
        with self.bench.precision():
            image_embeds = self.model.encode_image(self.images)
        loss = info_nce(image_embeds, text_embeds, self.model.logit_scale.exp())
        loss.backward()
        return loss

    def learn(self, way: str) -> None:
        """Runs a complete step with the update of the weights."""
        self(way)
        self.optimizer.step()

    def _text_embeds(self, way: str) -> Tensor:
        with self.bench.precision():
            projected = self.model.text_projection(self.reader.read(way))
        return functional.normalize(projected.float(), dim=-1)


def measure_step(settings: Settings, captions: Captions, batches: Sequence[int], bench: Bench, ceiling: float) -> None:
    """Prints one table per batch size."""
    torch.manual_seed(bench.seed)
    model = build_model(settings, captions.texts).to(bench.device).train()
    assert isinstance(model, DualEncoder)
    check_tree(model.text_tower)
    stir(model)
    work = TextWork(settings.text, captions.texts)
    pace: dict[str, float] = {}
    for batch in batches:
        texts, summary = typical_batch(model.text_tower, captions, batch, bench.seed)
        reader = Reader(model.text_tower, texts)
        image = image_flops(settings.image, settings.images, batch)
        flops = {way: image + work.flops(reader.shape(way), way) for way in WAYS}
        generator = torch.Generator().manual_seed(bench.seed)
        images = torch.randint(256, (batch, 1, *model.image_spec.size), dtype=torch.uint8, generator=generator)
        print(f"### Complete step, batch {batch:,}\n\n{summary}\n")
        step = Step(model, reader, images.to(bench.device), settings, bench)
        print(_measure_batch(step, {IMAGE_ALONE: image, **flops}, pace, ceiling), flush=True)


def _measure_batch(step: Step, flops: dict[str, int], pace: dict[str, float], ceiling: float) -> str:
    bench = step.bench
    trials = try_ways(step, WAYS, flops, pace)
    reference = reference_of(trials)
    errors = largest_errors(trials, reference, bench, untrained=RELEASED)
    alone = try_ways(step, [IMAGE_ALONE], flops, {})
    works = {way: lambda way=way: step.learn(way) for way in (*trials, IMAGE_ALONE)}
    # The optimiser alone comes last in each turn, for it needs the gradients that the others leave.
    spreads = bench.take_turns({**works, TREE + AGAIN: works[TREE], OPTIMISER: step.optimizer.step})
    pace.update({way: spreads[way].median / flops[way] for way in trials})
    rows: list[list[str]] = []
    for way in (*WAYS, TREE + AGAIN, IMAGE_ALONE, OPTIMISER):
        plain = way.removesuffix(AGAIN)
        if way in spreads:
            ratios = [number(spreads[way].median / spreads[base].median) for base in (IMAGE_ALONE, TREE)]
            rows.append([way, *_cells(flops.get(plain), spreads[way].median, ceiling)])
            rows[-1][2:2] = [*timed(spreads[way]), *ratios]
            rows[-1].append("reference" if way == reference else f"{errors[plain]:.0e}" if plain in errors else "-")
            peak = (trials | alone)[plain].peak if plain in flops else None
            rows[-1] += memory(peak) if peak else ["-"] * len(MEMORY)
        else:
            seconds = expected(way, flops, pace)
            ratios = [f"{number(seconds / spreads[base].median)} extrapolated" for base in (IMAGE_ALONE, TREE)]
            guess = f"not run; {number(seconds)} extrapolated"
            rows.append([way, number(flops[way] / 1e12), "-", guess, "-", *ratios, *["-"] * (2 + len(MEMORY))])
    return table(HEAD, rows)


def _cells(flops: int | None, seconds: float, ceiling: float) -> list[str]:
    if flops is None:
        return ["-", "-"]
    speed = flops / seconds
    return [number(flops / 1e12), f"{number(speed / 1e12)} ({speed / ceiling:.0%})"]
