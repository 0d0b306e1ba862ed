"""Presets of all methods with towers of a few thousand random weights, on synthetic images."""

import json
from pathlib import Path

from tests.tools.tiny_runs import CLASSES

from cleft.config import load_settings

VIT = {
    "model_type": "vit",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 56,
    "patch_size": 14,
}
RESNET = {
    "model_type": "resnet",
    "num_channels": 1,
    "embedding_size": 8,
    "hidden_sizes": [8, 16],
    "depths": [1, 1],
    "layer_type": "basic",
}
SWIN = {
    "model_type": "swin",
    "embed_dim": 8,
    "depths": [1, 1],
    "num_heads": [2, 2],
    "image_size": 56,
    "patch_size": 4,
    "window_size": 7,
}
BERT = {
    "model_type": "bert",
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "hidden_size": 16,
    "intermediate_size": 32,
    "max_position_embeddings": 128,
}
TOWERS = {
    "convirt": (RESNET, ["--text.frozen_layers=2"]),
    "medclip": (SWIN, []),
    "gloria": (RESNET, ["--image.resize=75", "--loss.embed_dim=16"]),
    "mgca": (VIT, ["--text.depth=2", "--loss.hidden_dim=24", "--mgca.prototypes=7"]),
    "mrm": (
        VIT,
        ["--images.stored_size=128", "--images.size=112", "--image.resize=56", "--text.scratch=" + json.dumps(BERT)],
    ),
    "clip": (VIT, ["--text.depth=2", "--loss.hidden_dim=24"]),
}
"""Method to its image tower and other settings that make it smaller."""
COMMON = [
    "--classes=[" + ", ".join(CLASSES) + "]",
    "--data.dataset=manifest",
    "--data.split=patients",
    "--data.val_fraction=0.3",
    "--images.stored_size=64",
    "--images.size=56",
    "--optim.steps=6",
    "--optim.warmup_steps=1",
    "--train.batch_size=8",
    "--train.precision=32-true",
    "--train.accelerator=cpu",
    "--train.val_every=3",
    "--train.save_every=2",
    "--train.log_every=1",
]


def method_settings(method: str, root: Path, *more: str):
    """Returns the preset `baseline-<method>` with tiny towers; `more` are dotted settings."""
    places = [f"--data.root={root}", f"--data.cache={root.parent / 'cache'}"]
    return load_settings(f"baseline-{method}", [*COMMON, *places, *towers_of(method), *more])


def towers_of(method: str) -> list[str]:
    """Returns dotted settings for tiny towers and a small joint space."""
    vision, smaller = TOWERS[method]
    towers = [
        word
        for tower, shape in (("image", vision), ("text", BERT))
        for word in (f"--{tower}.model=null", f"--{tower}.scratch={json.dumps(shape)}")
    ]
    return [*towers, "--loss.embed_dim=12", *smaller]
