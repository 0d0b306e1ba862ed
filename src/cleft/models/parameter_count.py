"""Parameter counts of a model by part, trainable and frozen, without downloads or memory.

`KNOWN_CONFIGS` has the shapes of well-known models, as in their published `config.json`, so that they can be counted
offline; everything else is the default of the model family.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedConfig

from cleft.config import ImageTowerConfig, Settings, TextTowerConfig
from cleft.errors import CheckpointError, ConfigError
from cleft.models.adapters import adapt
from cleft.models.hub import config_from_dict, random_model, read_config
from cleft.models.image_classifier import ImageClassifier
from cleft.models.image_tower import ImageTower, vision_config
from cleft.models.language_model import LanguageModel, drop_pooler, is_causal, truncate_blocks
from cleft.models.methods import METHODS, MethodModel
from cleft.models.model_folder import peek_description
from cleft.models.text_tower import TextTower
from cleft.models.tokenizer import TokenIdTokenizer
from cleft.types import ImageSpec


class ParameterCount(NamedTuple):
    """Number of parameters of one part of a model."""

    trainable: int
    frozen: int


PARTS: dict[str, Callable[[str], bool]] = {
    "image tower": lambda name: name.startswith("image_tower."),
    "embedding rows": lambda name: name.startswith("text_tower.") and name.endswith(".rows"),
    "adapters": lambda name: name.startswith("text_tower.") and any(mark in name for mark in _ADAPTERS),
    "language model": lambda name: name.startswith("text_tower."),
    "projections": lambda name: "_projection." in name,
    "temperature": lambda name: name in ("logit_scale", "logit_bias"),
    "prototypes": lambda name: name == "prototypes",
    "decoders": lambda name: name.startswith(("painter.", "paint.", "mask_token", "report_")),
    "context": lambda name: name == "context",
    "head": lambda name: name.startswith("head."),
}
"""Part of a model to a test of parameter names; the first match counts."""
TEXT_PARTS = ("embedding rows", "adapters", "language model")
"""Parts of the text tower."""
_ADAPTERS = (".lora_", ".ia3_", ".prefix.")


def count_parameters(model: nn.Module) -> dict[str, ParameterCount]:
    """Counts a model's parameters by part; parts it does not have are left out.

    Works on the meta device too. Batch-norm statistics are not parameters.
    """
    counts: dict[str, ParameterCount] = {}
    for name, weight in model.named_parameters():
        part = next(part for part, matches in PARTS.items() if matches(name))
        trainable, frozen = counts.get(part, ParameterCount(0, 0))
        size = weight.numel()
        counts[part] = (
            ParameterCount(trainable + size, frozen)
            if weight.requires_grad
            else ParameterCount(trainable, frozen + size)
        )
    return {part: counts[part] for part in PARTS if part in counts}


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


KNOWN_CONFIGS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
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


_TRAINED_VOCABULARY = 4096
"""Largest vocabulary of a tokenizer trained on captions; smaller with few words."""


def parameters_per_token_row(settings: Settings) -> int:
    """Returns the number of parameters in the trainable embedding row of one token; 0 without trainable rows."""
    text = settings.text
    if settings.method == "image-only" or text.adapt == "full" or not text.train_embeddings:
        return 0
    one = count_parameters(build_meta_model(settings, tokens=1)).get("embedding rows")
    return 0 if one is None else one.trainable


def trained_token_rows(folder: Path) -> int | None:
    """Returns the number of trained embedding rows of a finished run; None if the folder has no model."""
    try:
        found = peek_description(folder)
    except CheckpointError:
        return None
    return len(found["trained_tokens"]) if "trained_tokens" in found else None


def build_meta_model(settings: Settings, *, tokens: int = 0) -> MethodModel | ImageClassifier:
    """Builds the model a run would train on the meta device.

    Args:
        settings: Towers and adapters.
        tokens: Distinct tokens of the captions with trainable embedding rows; a run counts them in its data.

    Raises:
        ConfigError: If a tower's shape is neither described, nor known here, nor available from the hub.
    """
    spec = ImageSpec(
        size=(settings.images.size, settings.images.size), mean=settings.images.mean, std=settings.images.std
    )
    vision = _shape(settings.image, "image.model")
    if settings.method == "image-only":
        with torch.device("meta"):
            return ImageClassifier(ImageTower(random_model(vision_config(vision)), settings.image, spec))
    method = METHODS[settings.method]
    language = _shape(settings.text, "text.model")
    truncate_blocks(language, settings.text)
    vocabulary = int(language.get_text_config().vocab_size)
    if settings.text.model is None:
        vocabulary = min(vocabulary, _TRAINED_VOCABULARY)
        language.vocab_size = vocabulary
        # The family's default token ids may exceed the smaller vocabulary.
        for name in [name for name in language.to_dict() if name.endswith("_token_id")]:
            setattr(language, name, None)
    if not 0 <= tokens <= vocabulary:
        raise ConfigError(f"tokens={tokens} must be between 0 and the vocabulary size {vocabulary:,}")
    with torch.device("meta"):
        vision = random_model(vision_config(vision))
        image_tower = ImageTower(vision, settings.image, spec, regions=method.uses_regions)
        model: Any = random_model(language)
        if settings.text.pooling != "pooler":
            drop_pooler(model)
        ordered = settings.text.positions == "counted"
        lm = adapt(
            LanguageModel(model, causal=is_causal(language), uses_positions=ordered), settings.text, range(tokens)
        )
        ids = TokenIdTokenizer(vocabulary=vocabulary, max_tokens=settings.text.max_tokens, eos=vocabulary - 1)
        return method.build(image_tower, TextTower(lm, ids, settings.text), settings)


def _shape(config: ImageTowerConfig | TextTowerConfig, setting: str) -> PreTrainedConfig:
    if config.scratch is not None:
        return config_from_dict(config.scratch, setting.replace("model", "scratch"))
    assert config.model is not None
    known = KNOWN_CONFIGS.get(config.model)
    return config_from_dict(known, setting) if known else read_config(config.model, setting)
