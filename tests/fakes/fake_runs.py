"""Run folders with invented numbers, for the page alone; none of them was ever measured."""

import base64
import dataclasses
import io
import json
import math
import random
from pathlib import Path

from PIL import Image

from cleft.results import Evaluation, Result, to_json

FIVE = ("Atelectasis", "Edema", "Cardiomegaly", "Pleural Effusion", "Consolidation")
CONFIG = """\
seed: {seed}
classes: [chexpert-5]
data: {{dataset: chexpert, root: /home/somebody/secret, split: 5x200-strict, cache: null}}
images: {{size: 224}}
image: {{model: null, scratch: {{model_type: vit, hidden_size: 96}}}}
text: {{model: stanford-crfm/BioMedLM, adapt: lora, rank: 8}}
loss: {{name: info_nce}}
optim: {{name: adamw, lr: 4.0e-05, steps: 2000}}
train: {{batch_size: 72, precision: 32-true, devices: 1}}
context: {{length: 30, optim: {{steps: 400}}}}
"""


def png(seed: int) -> str:
    """Return a grey ramp as base64 PNG."""
    image = Image.new("L", (64, 64))
    image.putdata([(x * (seed + 2) + y * 3) % 256 for y in range(64) for x in range(64)])
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def result(metric, value, *, images=1000, width=0.03, **more):
    interval = None if value is None else (max(0.0, value - width), min(1.0, value + width))
    return Result(metric=metric, value=value, **{"interval": interval, "images": images, "patients": 966, **more})


def evaluation(quality=0.6, *, classes=FIVE, prompts="handwritten", synthetic=True, **changes) -> Evaluation:
    """Return roughly consistent results; `quality` shifts all of them."""
    count = len(classes)
    generator = random.Random(round(quality * 1000))
    areas = [min(0.99, quality + 0.2 + generator.uniform(-0.08, 0.08)) for _ in classes]
    curve = [[(x / 20, (x / 20) ** ((1 - area) / area)) for x in range(21)] for area in areas]
    confusion = tuple(
        tuple(round(200 * (quality if row == column else (1 - quality) / (count - 1))) for column in range(count))
        for row in range(count)
    )
    chance = 1 / count
    base = Evaluation(
        task="zero-shot",
        dataset="chexpert",
        split="test",
        split_recipe="5x200-strict",
        split_digest="7ad98f6f27bf6200",
        ids_digest="56dfdc4473b683b4",
        checkpoint=f"{round(quality * 1e6):016x}",
        scoring="multi-class",
        prompts=prompts,
        classes=tuple(classes),
        class_prompts=tuple(f"this is a chest x ray of a patient with {name.lower()}" for name in classes),
        results=(
            result("accuracy", quality),
            result("auc", sum(areas) / count, width=0.02),
            *(result(f"auc/{name}", area) for name, area in zip(classes, areas, strict=True)),
        ),
        baselines=(
            result("majority-class/accuracy", chance),
            result("majority-class/auc", 0.5, width=0),
            result("ap-view/accuracy", chance + 0.06),
            result("ap-view/auc", 0.55),
            *(result(f"ap-view/auc/{name}", 0.55) for name in classes),
        ),
        confusion=confusion,
        roc=dict(zip(classes, curve, strict=True)),
        examples=tuple(
            {"image": png(i), "truth": classes[i % count], "answers": ((classes[0], 0.7), (classes[1], 0.2))}
            for i in range(10)
        ),
        synthetic=synthetic,
        command="cleft evaluate first --task zero-shot",
        notes=("Of 1,000 images all show exactly one of the classes.",),
    )
    return dataclasses.replace(base, **changes)


def write_run(folder: Path, *evaluations: Evaluation, seed=0, stage="pretrain", log=True) -> Path:
    """Write a run folder with results."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG.format(seed=seed))
    (folder / "environment.json").write_text(
        json.dumps({"packages": {"torch": "2.13.0"}, "device": "cpu", "stage": stage, "hostname": "somebodys-laptop"})
    )
    if log:
        _write_log(folder / "logs" / "metrics.csv", stage)
    (folder / "results").mkdir()
    for index, each in enumerate(evaluations):
        (folder / "results" / f"zero-shot-{index}.json").write_text(to_json(each))
    return folder


def _write_log(path: Path, stage: str) -> None:
    path.parent.mkdir()
    generator = random.Random(0)
    lines = ["epoch,step,train/loss,val/loss,lr,logit_scale"]
    for step in range(10, 2001, 10):
        train = 2.2 + 2 * math.exp(-step / 400) + generator.gauss(0, 0.09)
        lines.append(f"{step // 100},{step},{train:.4f},,{4e-5 * step / 2000:.3e},{14 + step / 300:.3f}")
        if step % 200 == 0:
            value = 2.5 + 1.8 * math.exp(-step / 380) + 0.1 * (step / 2000) ** 2
            lines.append(f"{step // 100},{step},,{value:.4f},,")
    path.write_text("\n".join(lines) + "\n")
