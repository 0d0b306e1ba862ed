"""A model's shapes without its weights: for counting, with nothing downloaded and no memory taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from cleft.config import ImageTowerConfig, Settings, TextTowerConfig
from cleft.errors import CheckpointError, ConfigError
from cleft.models.adapt import adapt
from cleft.models.folders import peek_description
from cleft.models.hub import config_from, random_model, read_config
from cleft.models.image import ImageTower, vision_config
from cleft.models.image_only import ImageOnly
from cleft.models.known import KNOWN
from cleft.models.language_model import LanguageModel, drop_pooler, is_causal, keep_depth
from cleft.models.methods import METHODS, MethodModel
from cleft.models.sizes import count_weights
from cleft.models.text import TextTower
from cleft.models.token_ids import TokenIds
from cleft.types import ImageSpec

_LEARNED_VOCABULARY = 4096
"""Largest table of a tokenizer learned from captions; it is smaller where they hold fewer words."""


def row_width(settings: Settings) -> int:
    """Returns how many parameters the trained row of one token has; 0 where no rows are trained apart."""
    text = settings.text
    if settings.method == "image-only" or text.adapt == "full" or not text.train_embeddings:
        return 0
    one = count_weights(outline_model(settings, tokens=1)).get("embedding rows")
    return 0 if one is None else one.moving


def trained_tokens(folder: Path) -> int | None:
    """Returns how many rows of the embedding a finished run has trained; None where the folder holds no model."""
    try:
        found = peek_description(folder)
    except CheckpointError:
        return None
    return len(found["trained_tokens"]) if "trained_tokens" in found else None


def outline_model(settings: Settings, *, tokens: int = 0) -> MethodModel | ImageOnly:
    """Builds the towers a run would train, on torch's meta device.

    Args:
        settings: Which towers, how adapted.
        tokens: Distinct tokens of the captions, whose rows of the embedding move; a run counts them from its data.

    Raises:
        ConfigError: If a tower's shape is neither described, nor known here, nor to be had from the hub.
    """
    spec = ImageSpec(
        size=(settings.images.size, settings.images.size), mean=settings.images.mean, std=settings.images.std
    )
    vision = _shape(settings.image, "image.model")
    if settings.method == "image-only":
        with torch.device("meta"):
            return ImageOnly(ImageTower(random_model(vision_config(vision)), settings.image, spec))
    method = METHODS[settings.method]
    language = _shape(settings.text, "text.model")
    keep_depth(language, settings.text)
    vocabulary = int(language.get_text_config().vocab_size)
    if settings.text.model is None:
        vocabulary = min(vocabulary, _LEARNED_VOCABULARY)
        language.vocab_size = vocabulary
        # Token numbers of the family's own vocabulary may lie beyond the smaller table.
        for name in [name for name in language.to_dict() if name.endswith("_token_id")]:
            setattr(language, name, None)
    if not 0 <= tokens <= vocabulary:
        raise ConfigError(f"tokens={tokens} must lie between 0 and the {vocabulary:,} of the vocabulary")
    with torch.device("meta"):
        vision = random_model(vision_config(vision))
        image_tower = ImageTower(vision, settings.image, spec, regions=method.regions)
        model: Any = random_model(language)
        if settings.text.pooling != "pooler":
            drop_pooler(model)
        ordered = settings.text.positions == "counted"
        lm = adapt(LanguageModel(model, causal=is_causal(language), ordered=ordered), settings.text, range(tokens))
        ids = TokenIds(vocabulary=vocabulary, max_tokens=settings.text.max_tokens, end=vocabulary - 1)
        return method.assemble(image_tower, TextTower(lm, ids, settings.text), settings)


def _shape(config: ImageTowerConfig | TextTowerConfig, setting: str) -> PreTrainedConfig:
    if config.scratch is not None:
        return config_from(config.scratch, setting.replace("model", "scratch"))
    assert config.model is not None
    known = KNOWN.get(config.model)
    return config_from(known, setting) if known else read_config(config.model, setting)
