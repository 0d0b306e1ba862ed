"""Pairs of encoders to measure, with random weights: speed depends on shapes only."""

from __future__ import annotations

from typing import Any

from cleft.config import ImagesConfig, ImageTowerConfig, Settings, TextTowerConfig, TrainConfig


def _gpt2(blocks: int, heads: int, width: int) -> dict[str, Any]:
    return {"model_type": "gpt2", "n_layer": blocks, "n_head": heads, "n_embd": width, "n_positions": 1024}


def _dinov2(blocks: int, heads: int, width: int, side: int = 518) -> dict[str, Any]:
    return {
        "model_type": "dinov2_with_registers",
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "hidden_size": width,
        "patch_size": 14,
        "image_size": side,
    }


def _pair(text: dict[str, Any], image: dict[str, Any], *, side: int = 224, half: bool = False) -> Settings:
    return Settings(
        images=ImagesConfig(size=side, stored_size=max(256, side)),
        image=ImageTowerConfig(model=None, scratch=image),
        # Variants can be compared only without dropout.
        text=TextTowerConfig(model=None, scratch=text, dropout=0.0, base_dtype="bfloat16" if half else "float32"),
        train=TrainConfig(precision="bf16-mixed" if half else "32-true"),
    )


SIZES: dict[str, Settings] = {
    "tiny": _pair(_gpt2(4, 4, 128), _dinov2(2, 2, 32, 56), side=56),
    "scaled": _pair(_gpt2(12, 12, 768), _dinov2(8, 4, 160)),
    "base": _pair(_gpt2(12, 12, 768), _dinov2(12, 12, 768)),
    "paper": _pair(_gpt2(32, 20, 2560), _dinov2(12, 12, 768), half=True),
}
"""Name to settings. `tiny` checks the program. `scaled` is the paper's pair scaled down for a CPU, with nearly
its ratio of work between the towers. `base` is GPT-2 with the paper's image tower. `paper` is the paper's pair:
BioMedLM's shape in bfloat16 with DINOv2 ViT-B/14 with registers, at 224 pixels."""
