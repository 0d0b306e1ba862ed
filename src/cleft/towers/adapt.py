"""Which weights of a language model may move: lora, ia3, prefix, full or frozen.

The only file that imports `peft`, and only when an adapter is built, for that import takes seconds.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import nn
from transformers.pytorch_utils import Conv1D

from cleft.config import TextTowerConfig
from cleft.errors import ConfigError
from cleft.towers.depth import weight_heights
from cleft.towers.language_model import LanguageModel
from cleft.towers.prefix import Prefix
from cleft.towers.rows import TrainedRows

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel


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
        ConfigError: If PEFT has no default targets for the model's family, or an option contradicts another.
    """
    model.requires_grad_(False)
    ADAPTERS[config.adapt](model, config)
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

    options = LoraConfig(r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout)
    options.fan_in_fan_out = _is_transposed(model)
    _inject(model, options)


def _ia3(model: LanguageModel, config: TextTowerConfig) -> None:
    from peft import IA3Config

    _inject(model, IA3Config(fan_in_fan_out=_is_transposed(model)))


def _prefix(model: LanguageModel, config: TextTowerConfig) -> None:
    from peft import PrefixTuningConfig, TaskType

    if config.gradient_checkpointing:
        raise ConfigError(
            "text.gradient_checkpointing=true drops the virtual tokens of text.adapt=prefix; set it to false"
        )
    if "past_key_values" not in inspect.signature(model.model.forward).parameters:
        raise ConfigError(
            f"text.adapt=prefix: a {model.config.model_type!r} model takes no virtual tokens; choose another way"
        )
    options = PrefixTuningConfig(task_type=TaskType.FEATURE_EXTRACTION, num_virtual_tokens=config.prefix_length)
    encoder = _inject(model, options).prompt_encoder["default"]
    heads, width = options.num_attention_heads, options.token_dim
    assert heads is not None
    assert width is not None
    model.prefix = Prefix(encoder, length=config.prefix_length, heads=heads, size=width // heads)


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
