"""What a run was, said in words from its settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cleft.report.runs import LEFT_OUT, Run, shown
from cleft.report.tables import CLASSIFIED, TASKS, Entry

ADAPTERS = {
    "lora": "LoRA of rank {rank}",
    "ia3": "IA3",
    "prefix": "a prefix of {prefix} virtual tokens",
    "full": "all its weights moving",
    "frozen": "its weights frozen",
}
FAMILIES = {
    "vit": "ViT",
    "dinov2": "DINOv2",
    "dinov2_with_registers": "DINOv2 with registers",
    "swin": "Swin transformer",
    "resnet": "ResNet",
    "gpt2": "GPT-2",
    "llama": "Llama",
    "qwen2": "Qwen2",
    "bert": "BERT",
}
LOSSES = {
    "info_nce": "InfoNCE",
    "label_aware_nce": "InfoNCE that takes equal captions as positives",
    "soft_overlap_nce": "InfoNCE with targets shared out by overlapping labels",
    "sigmoid": "a sigmoid for each image and caption",
}
SCORINGS = {
    "multi-class": "which of these classes is it",
    "present-absent": "is this finding there",
    "nearest": "which lie nearest to this",
}


class Setting(NamedTuple):
    """One line of the settings table."""

    key: str
    values: list[str]
    """One per run."""
    differs: bool


def what_was_run(run: Run) -> str:
    """One sentence: towers, loss, steps, data; and the second stage where there was one."""
    config = run.config
    adapter = ADAPTERS.get(str(config.get("text.adapt")), str(config.get("text.adapt", "unknown adaptation")))
    adapter = adapter.format(rank=config.get("text.rank", "?"), prefix=config.get("text.prefix_length", "?"))
    frozen = " with its weights frozen" if config.get("image.train") is False else ""
    loss = str(config.get("loss.name", "an unknown loss"))
    sentence = (
        f"{_tower(config, 'image')}{frozen} for images and {_tower(config, 'text')} with {adapter} for text, "
        f"pulled together by {LOSSES.get(loss, loss)} "
        f"over {_number(config.get('optim.steps'))} steps of {_number(config.get('train.batch_size'))} pairs"
    )
    if run.stage == "context":
        sentence += (
            f"; then, both frozen, a prompt context of {_number(config.get('context.length'))} vectors learned in "
            f"{_number(config.get('context.optim.steps'))} steps"
        )
    return f"{sentence[0].upper()}{sentence[1:]}."


def question(group: Sequence[Entry]) -> str:
    """The heading of a section: what was asked, by which methods.

    The dataset keeps its own spelling; classes are named when they are few.
    """
    evaluation = group[0].evaluation
    tasks = [TASKS.get(task, task) for task in dict.fromkeys(entry.evaluation.task for entry in group)]
    named = " and ".join(filter(None, [", ".join(tasks[:-1]), tasks[-1]]))
    named = f"{named[0].upper()}{named[1:]}" if named else ""
    classes = evaluation.classes
    if evaluation.task not in CLASSIFIED:
        return named
    told = " against ".join(classes) if len(classes) == 2 and evaluation.scoring == "multi-class" else None
    told = told or (
        ", ".join(classes)
        if len(classes) <= 3
        else f"{len(classes)} {'findings' if evaluation.scoring == 'present-absent' else 'classes'}"
    )
    asked = ", present or absent" if evaluation.scoring == "present-absent" else ""
    return f"{named}{asked}: {told}"


def settings_table(runs: Sequence[Run]) -> list[Setting]:
    """Every setting of every run, and where they differ."""
    keys = list(dict.fromkeys(key for run in runs for key in run.config))
    rows: list[Setting] = []
    for key in keys:
        values = [shown(key, run.config[key]) if key in run.config else "–" for run in runs]
        rows.append(Setting(key, values, len(set(values)) > 1))
    return rows


def _tower(config: Mapping[str, Any], tower: str) -> str:
    model = config.get(f"{tower}.model")
    if model is not None:
        name = shown(f"{tower}.model", model)
        name = "a model from a local folder" if name == LEFT_OUT else name
        return f"{name} with random weights" if config.get(f"{tower}.random_weights") else name
    kind = str(config.get(f"{tower}.scratch.model_type", "model"))
    return f"a {FAMILIES.get(kind, kind)} built from scratch"


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "an unknown number of"
