"""Which weights of a language model may move: lora, ia3, prefix, full or frozen.

The only file that imports `peft`, and only when an adapter is built, for that import takes seconds.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from cleft.config import TextTowerConfig
from cleft.errors import ConfigError
from cleft.models.depth import weight_heights
from cleft.models.language_model import LanguageModel, measuring
from cleft.models.prefix import Prefix
from cleft.models.rows import TrainedRows
from cleft.models.targets import ia3_targets, lora_targets

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel


class _CachedShape(NamedTuple):
    """Key-value heads and width of a head in one block's cache."""

    keys: tuple[int, int]
    values: tuple[int, int]


_UNREAD = "contact_head."
"""A head inside ESM that no feature depends on."""


def adapt(model: LanguageModel, config: TextTowerConfig, tokens: Sequence[int] = ()) -> LanguageModel:
    """Lets the right weights of a language model move.

    Args:
        model: The model; it is changed in place.
        config: `adapt` and its options, and `train_embeddings`.
        tokens: Tokens that occur; their rows of the embedding move if `train_embeddings`. With `full` the table
            moves as a whole.

    Returns:
        The same model. New weights are float32 and come from torch's global generator.

    Raises:
        ConfigError: If no layers to adapt are set or found, or an option contradicts another.
    """
    fixed = [weight for name, weight in model.named_parameters() if not weight.requires_grad or _UNREAD in name]
    model.requires_grad_(False)
    ADAPTERS[config.adapt](model, config)
    for weight in fixed:
        weight.requires_grad_(False)
    if config.train_embeddings and config.adapt != "full" and tokens:
        model.model.set_input_embeddings(TrainedRows(model.model.get_input_embeddings(), tokens))
    if config.gradient_checkpointing:
        if not model.model.supports_gradient_checkpointing:
            raise ConfigError(f"text.gradient_checkpointing: a {model.config.model_type!r} has none; switch it off")
        # The re-entrant form gives no gradient at all behind a frozen embedding.
        model.model.activation_checkpointing_enable({"use_reentrant": False})
    return model


def told_moving(model: LanguageModel, config: TextTowerConfig) -> str:
    """Returns a sentence about how many weights of an adapted language model move."""
    moving = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    total = sum(weight.numel() for weight in model.parameters())
    return f"text tower ({config.adapt}): {moving:,} of {total:,} weights move ({100 * moving / total:.3g} %)"


def _lora(model: LanguageModel, config: TextTowerConfig) -> None:
    from peft import LoraConfig
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

    targets = lora_targets(model, config, KNOWN)
    options = LoraConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=list(targets)
    )
    options.fan_in_fan_out = _is_transposed(model)
    _inject(model, options)


def _ia3(model: LanguageModel, config: TextTowerConfig) -> None:
    from peft import IA3Config
    from peft.utils.constants import (
        TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING as KNOWN_FEEDFORWARD,
    )
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as KNOWN

    targets = ia3_targets(model, config, KNOWN, KNOWN_FEEDFORWARD)
    _inject(
        model,
        IA3Config(
            target_modules=list(targets.modules),
            feedforward_modules=list(targets.feedforward),
            fan_in_fan_out=_is_transposed(model),
        ),
    )


def _prefix(model: LanguageModel, config: TextTowerConfig) -> None:
    from peft import PrefixEncoder, PrefixTuningConfig

    if config.gradient_checkpointing:
        raise ConfigError(
            "text.gradient_checkpointing=true drops the virtual tokens of text.adapt=prefix; set it to false"
        )
    kind = model.config.model_type
    if "past_key_values" not in inspect.signature(model.model.forward).parameters:
        raise ConfigError(f"text.adapt=prefix: a {kind!r} model takes no virtual tokens; choose another way")
    shapes = _cached_shapes(model.model)
    if not shapes:
        raise ConfigError(f"text.adapt=prefix: a {kind!r} model does not use virtual tokens; choose another way")
    if len(set(shapes)) > 1 or shapes[0].keys != shapes[0].values:
        raise ConfigError(
            f"text.adapt=prefix: the keys and values of a {kind!r} model do not all have the same number of heads and "
            f"width; choose another way"
        )
    heads, size = shapes[0].keys
    # PEFT would derive the key-value heads from the configuration, which it misreads for multi-query attention.
    options = PrefixTuningConfig(
        num_virtual_tokens=config.prefix_length,
        num_layers=len(shapes),
        token_dim=heads * size,
        num_attention_heads=heads,
    )
    encoder = PrefixEncoder(options)
    model.prefix = Prefix(encoder, length=config.prefix_length, heads=heads, size=size)


def _cached_shapes(model: PreTrainedModel) -> list[_CachedShape]:
    """Returns the shape of keys and values in each block's cache, as one token leaves them.

    Configurations do not say: a multi-query Falcon keeps one head, a grouped one repeats its heads first.

    Returns:
        One shape a block; empty if the model ignores the cache it is given, or keeps anything else in it.
    """
    cache: Any = DynamicCache()
    with measuring(model):
        token = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
        try:
            model(input_ids=token, past_key_values=cache, use_cache=True)
        except (TypeError, ValueError, RuntimeError, AttributeError, NotImplementedError):
            return []
    shapes: list[_CachedShape] = []
    for layer in cache.layers:
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if not (isinstance(keys, Tensor) and isinstance(values, Tensor) and keys.ndim == values.ndim == 4):
            return []
        if keys.shape[2] != 1:
            return []
        shapes.append(_CachedShape(_heads_and_width(keys), _heads_and_width(values)))
    return shapes


def _heads_and_width(states: Tensor) -> tuple[int, int]:
    return states.shape[1], states.shape[3]


def _full(model: LanguageModel, config: TextTowerConfig) -> None:
    model.float().requires_grad_(True)
    if config.frozen_layers:
        heights, _ = weight_heights(model)
        for name, weight in model.named_parameters():
            weight.requires_grad_(heights[name] > config.frozen_layers)


def _frozen(model: LanguageModel, config: TextTowerConfig) -> None:
    pass


ADAPTERS: dict[str, Callable[[LanguageModel, TextTowerConfig], None]] = {
    "lora": _lora,
    "ia3": _ia3,
    "prefix": _prefix,
    "full": _full,
    "frozen": _frozen,
}


def _inject(model: LanguageModel, options: PeftConfig) -> PeftModel:
    """Puts PEFT's layers into the model, in place; its wrapper is only needed to reach what it made."""
    from peft import get_peft_model

    try:
        with warnings.catch_warnings():  # PEFT asks transformers by a name that is going away
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            return get_peft_model(model.model, options)
    except ValueError as error:
        kind = model.config.model_type
        raise ConfigError(f"text.adapt cannot be applied to a {kind!r} model ({error}); choose another way") from error


def _is_transposed(model: nn.Module) -> bool:
    # GPT-2 keeps its weights as inputs x outputs, and PEFT wants to be told.
    return any(isinstance(module, Conv1D) for module in model.modules())
