"""Tiny models of both towers, every weight moved away from where it started, and images for them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel

from cleft.config import ImagesConfig, ImageTowerConfig, LossConfig, Settings, TextTowerConfig
from cleft.models.dual_encoder import DualEncoder
from cleft.models.methods import build_model
from cleft.models.model_folder import seal
from cleft.models.tokenizer import train_tokenizer

SIZE = 56
CAPTIONS = [f"a chest x ray of a patient with {name}" for name in ("edema", "fracture", "edema fracture")]
IMAGE = {
    "dinov2": {
        "model_type": "dinov2_with_registers",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 70,
        "patch_size": 14,
        "num_register_tokens": 4,
    },
    "vit": {
        "model_type": "vit",
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "image_size": 28,
        "patch_size": 14,
    },
    "swin": {
        "model_type": "swin",
        "embed_dim": 16,
        "depths": [1, 1],
        "num_heads": [2, 2],
        "image_size": 56,
        "patch_size": 4,
        "window_size": 7,
    },
    "resnet": {
        "model_type": "resnet",
        "num_channels": 1,
        "embedding_size": 8,
        "hidden_sizes": [8, 16],
        "depths": [1, 1],
        "layer_type": "basic",
    },
}
TEXT = {
    "gpt2": {"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 24, "n_positions": 96},
    "bert": {
        "model_type": "bert",
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "hidden_size": 24,
        "intermediate_size": 48,
        "max_position_embeddings": 96,
    },
}


def fake_settings(image: str = "resnet", text: str = "gpt2", *, base: Path | None = None, **options) -> Settings:
    """Settings of a tiny model; `options` go to the text tower, whose model lies in `base` if one is given."""
    source = {"scratch": TEXT[text], "model": None} if base is None else {"model": str(base)}
    return Settings(
        images=ImagesConfig(size=SIZE, stored_size=SIZE, mean=(0.4, 0.5, 0.6)),
        image=ImageTowerConfig(model=None, scratch=IMAGE[image], pooling="mean"),
        text=TextTowerConfig(**{"rank": 2, "max_tokens": 16, "prefix_length": 3, **source, **options}),
        loss=LossConfig(embed_dim=12),
    )


def fake_model(settings: Settings) -> DualEncoder:
    """A built model in evaluation mode whose moving weights are noise: LoRA would start at zero and show nothing."""
    model = build_model(settings, CAPTIONS).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return model


def fake_images(count: int = 2) -> Tensor:
    """Noise, `[count, 1, 56, 56]` uint8."""
    generator = torch.Generator().manual_seed(4)
    return torch.randint(0, 256, (count, 1, SIZE, SIZE), dtype=torch.uint8, generator=generator)


def write_language_model(folder: Path, family: str = "gpt2", seed: int = 0) -> Path:
    """A language model and its tokenizer as their makers would publish them."""
    tokenizer = train_tokenizer(CAPTIONS, causal=family == "gpt2")
    tokenizer.save_pretrained(folder)
    options = {name: value for name, value in TEXT[family].items() if name != "model_type"}
    config = AutoConfig.for_model(family, vocab_size=len(tokenizer), **options)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        AutoModel.from_config(config).save_pretrained(folder)
    return folder


def edit_description(folder: Path, change, *, sealed: bool = True) -> None:
    """Changes `model.json` and its digest; unsealed, in the form of schema 1, which has no digest."""
    tree = json.loads((folder / "model.json").read_text())
    tree.pop("digest", None)
    tree["schema"] = 1
    change(tree)
    text = seal(tree, tree["files"]) if sealed else json.dumps(tree)
    (folder / "model.json").write_text(text)
