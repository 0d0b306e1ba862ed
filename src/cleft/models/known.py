"""Shapes of well-known models, so that their weights can be counted where nothing can be downloaded.

Only what decides a shape stands here, as in the `config.json` each model is published with; everything else is the
default of its family. Weights never come from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any


def _gpt2(blocks: int, heads: int, width: int, vocabulary: int = 50_257) -> Mapping[str, Any]:
    sizes = {"n_layer": blocks, "n_head": heads, "n_embd": width, "vocab_size": vocabulary, "n_positions": 1024}
    last = vocabulary - 1
    return MappingProxyType({"model_type": "gpt2", **sizes, "bos_token_id": last, "eos_token_id": last})


def _bert(blocks: int, vocabulary: int) -> Mapping[str, Any]:
    return MappingProxyType({"model_type": "bert", "num_hidden_layers": blocks, "vocab_size": vocabulary})


def _dinov2(blocks: int, heads: int, width: int) -> Mapping[str, Any]:
    sizes = {"num_hidden_layers": blocks, "num_attention_heads": heads, "hidden_size": width}
    return MappingProxyType(
        {
            "model_type": "dinov2_with_registers",
            **sizes,
            "patch_size": 14,
            "image_size": 518,
            "num_register_tokens": 4,
        }
    )


KNOWN: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "facebook/dinov2-with-registers-small": _dinov2(12, 6, 384),
        "facebook/dinov2-with-registers-base": _dinov2(12, 12, 768),
        "facebook/deit-base-patch16-224": MappingProxyType({"model_type": "vit"}),
        "facebook/vit-mae-base": MappingProxyType({"model_type": "vit_mae"}),
        "google/vit-base-patch16-224": MappingProxyType({"model_type": "vit"}),
        "microsoft/resnet-50": MappingProxyType({"model_type": "resnet"}),
        "microsoft/swin-tiny-patch4-window7-224": MappingProxyType({"model_type": "swin"}),
        "stanford-crfm/BioMedLM": _gpt2(32, 20, 2560, 28_896),
        "openai-community/gpt2": _gpt2(12, 12, 768),
        "openai-community/gpt2-medium": _gpt2(24, 16, 1024),
        "openai-community/gpt2-xl": _gpt2(48, 25, 1600),
        "emilyalsentzer/Bio_ClinicalBERT": _bert(12, 28_996),
        "google-bert/bert-large-uncased": MappingProxyType(
            {
                **_bert(24, 30_522),
                "hidden_size": 1024,
                "num_attention_heads": 16,
                "intermediate_size": 4096,
            }
        ),
    }
)
"""Hub name to a description as in `image.scratch`."""
