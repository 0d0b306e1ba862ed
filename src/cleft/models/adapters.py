"""Adapters: which weights of a language model are trainable with `text.adapt` (LoRA, IA3, prefix tuning, full, frozen).

The only module that imports `peft`, and only when an adapter is built, because that import takes seconds.

PEFT lists default target modules for some families only. For others the attention projections are found by the names
that language models of `transformers` use (docs/decisions/0031).
"""

from __future__ import annotations

import difflib
import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from cleft.config import TextTowerConfig
from cleft.errors import ConfigError
from cleft.models.language_model import LanguageModel, Prefix, TrainableRows, shapes_only
from cleft.models.layers import layer_depths, main_block_list

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel


_FUSED = ("c_attn", "query_key_value", "qkv_proj", "Wqkv", "in_proj", "qkv", "W_pack", "c_qkv", "att_proj")
"""Query, key and value in one layer."""
_SEPARATE = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("query_proj", "key_proj", "value_proj"),
    ("q_lin", "k_lin", "v_lin"),
    ("q", "k", "v"),
    ("wq", "wk", "wv"),
    ("w_q", "w_k", "w_v"),
    ("query_layer", "key_layer", "value_layer"),
    ("q_attn", "k_attn", "v_attn"),
    ("linear_q", "linear_k", "linear_v"),
    ("self.query", "self.key", "self.value"),
)
"""Query, key and value in separate layers."""
_DOWN = (
    *("down_proj", "fc2", "mlp.c_proj", "dense_4h_to_h", "mlp.Wo", "lin2", "fc_out", "ffn_output", "output.dense"),
    *("w2", "wo", "mlp.dense_2", "mlp.proj", "ff_out", "linear2", "layer_2"),
)
"""Last layer of a feed-forward block."""


class Ia3Targets(NamedTuple):
    """Modules that IA3 scales."""

    modules: tuple[str, ...]
    feedforward: tuple[str, ...]
    """Subset of `modules` whose input is scaled, not their output."""


def lora_targets(model: LanguageModel, config: TextTowerConfig, known: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns name suffixes of the modules that get a LoRA update.

    Args:
        model: The language model, without adapter.
        config: `lora_targets`; if None, the family's default or the query and value projections.
        known: PEFT's defaults by family.

    Raises:
        ConfigError: If a name in `text.lora_targets` matches no module, or none is set and none is found.
    """
    names = adaptable_modules(model.model)
    if config.lora_targets is not None:
        _refuse_unknown("text.lora_targets", config.lora_targets, names)
        return config.lora_targets
    default = _known(known, model, names)
    if not default and (attention := _attention(names)):
        default = attention if len(attention) == 1 else (attention[0], attention[2])
    if not default:
        raise _nothing_found(model, "text.lora_targets", "q_proj,v_proj", names)
    return default


def ia3_targets(
    model: LanguageModel, config: TextTowerConfig, known: Mapping[str, Any], known_feedforward: Mapping[str, Any]
) -> Ia3Targets:
    """Returns name suffixes of the modules that IA3 scales.

    Args:
        model: The language model, without adapter.
        config: `ia3_targets` and `ia3_feedforward`; if the first is None, the family's default, or the key and value
            projections and the last layer of each feed-forward block.
        known: PEFT's default targets by family.
        known_feedforward: Subset of them that are feed-forward layers.

    Raises:
        ConfigError: If a name matches no module, a feed-forward module is not among the targets, or none is set
            or found.
    """
    names = adaptable_modules(model.model)
    down = _first_matching(_DOWN, names)
    if config.ia3_targets is not None:
        modules, feedforward = config.ia3_targets, _among(config.ia3_targets, down, names)
        _refuse_unknown("text.ia3_targets", modules, names)
    else:
        modules = _known(known, model, names)
        feedforward = tuple(name for name in _known(known_feedforward, model, names) if name in modules)
        if not modules and (attention := _attention(names)):
            modules, feedforward = (*attention[-2:], *down), down
    if not modules:
        raise _nothing_found(model, "text.ia3_targets", "k_proj,v_proj,down_proj", names)
    if config.ia3_feedforward is not None:
        feedforward = config.ia3_feedforward
        _refuse_unknown("text.ia3_feedforward", feedforward, names)
    apart = sorted(set(_matched(feedforward, names)) - set(_matched(modules, names)))
    if apart:
        raise ConfigError(
            f"text.ia3_feedforward names {', '.join(feedforward)}, but IA3 changes only {', '.join(modules)}; add the "
            f"missing ones to text.ia3_targets"
        )
    return Ia3Targets(modules, feedforward)


def adaptable_modules(model: nn.Module) -> list[str]:
    """Returns the full names of the linear layers in a model's blocks, in model order."""
    blocks = main_block_list(model)
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    return [name for name in linear if blocks is None or name.startswith(f"{blocks[0]}.")] or linear


def _known(mapping: Mapping[str, Any], model: LanguageModel, names: Sequence[str]) -> tuple[str, ...]:
    """Returns PEFT's default for the family; empty if there is none or it matches no module of this model."""
    default = mapping.get(model.config.model_type, ())
    if isinstance(default, str) or not all(_matched([name], names) for name in default):
        return ()
    return tuple(default)


def _attention(names: Sequence[str]) -> tuple[str, ...]:
    """Returns query, key and value projections, or the one fused layer; empty if there is neither."""
    for fused in _FUSED:
        if _matched([fused], names):
            return (fused,)
    return next((apart for apart in _SEPARATE if all(_matched([name], names) for name in apart)), ())


def _first_matching(ends: Iterable[str], names: Sequence[str]) -> tuple[str, ...]:
    return next(((end,) for end in ends if _matched([end], names)), ())


def _among(targets: Sequence[str], down: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """Returns the targets that are the last layer of a feed-forward block."""
    last = set(_matched(down, names))
    return tuple(target for target in targets if (found := set(_matched([target], names))) and found <= last)


def _matched(ends: Iterable[str], names: Sequence[str]) -> list[str]:
    """Returns full names that equal a suffix or end with a dot and a suffix, as PEFT compares them."""
    ends = tuple(ends)
    return [name for name in names if any(name == end or name.endswith(f".{end}") for end in ends)]


def _refuse_unknown(setting: str, typed: Sequence[str], names: Sequence[str]) -> None:
    for name in typed:
        if not _matched([name], names):
            short = _short(names)
            near = difflib.get_close_matches(name, short, n=1)
            hint = f"; did you mean {near[0]!r}" if near else ""
            raise ConfigError(
                f"{setting}: no linear layer of the model has a name ending in {name!r}{hint}; its linear layers are "
                f"{', '.join(short)}"
            )


def _nothing_found(model: LanguageModel, setting: str, example: str, names: Sequence[str]) -> ConfigError:
    has = ", ".join(_short(names)) or "none"
    return ConfigError(
        f"text.adapt={_adapter_of(setting)}: no default modules are known for a {model.config.model_type!r} model; "
        f"name its attention projections with {setting} (such as --{setting} {example}), or choose another text.adapt; "
        f"its linear layers are {has}"
    )


def _adapter_of(setting: str) -> str:
    """Returns the value of `text.adapt` that a setting belongs to."""
    return setting.removeprefix("text.").partition("_")[0]


def _short(names: Sequence[str]) -> list[str]:
    """Returns the last parts of names, each once; two parts where different layers share the last."""
    parents: dict[str, dict[str, None]] = {}
    for name in names:
        *above, last = [part for part in name.split(".") if not part.isdigit()]
        parents.setdefault(last, {})[above[-1] if above else ""] = None
    return [last if len(above) == 1 else f"{parent}.{last}" for last, above in parents.items() for parent in above]


class _CachedShape(NamedTuple):
    """Key-value heads and width of a head in one block's cache."""

    keys: tuple[int, int]
    values: tuple[int, int]


_UNUSED_HEAD = "contact_head."
"""A head in ESM that does not affect the hidden states."""


def adapt(model: LanguageModel, config: TextTowerConfig, tokens: Sequence[int] = ()) -> LanguageModel:
    """Freezes a language model and adds the adapter of `text.adapt`, in place.

    Args:
        model: The language model.
        config: `adapt` and its options, and `train_embeddings`.
        tokens: Tokens of the captions; their embedding rows are trainable with `train_embeddings`. With `full` the
            complete embedding is trainable.

    Returns:
        The same model. New weights are float32, drawn from torch's global generator.

    Raises:
        ConfigError: If no target modules are set or found, or options contradict each other.
    """
    fixed = [weight for name, weight in model.named_parameters() if not weight.requires_grad or _UNUSED_HEAD in name]
    model.requires_grad_(False)
    ADAPTERS[config.adapt](model, config)
    for weight in fixed:
        weight.requires_grad_(False)
    if config.train_embeddings and config.adapt != "full" and tokens:
        model.model.set_input_embeddings(TrainableRows(model.model.get_input_embeddings(), tokens))
    if config.gradient_checkpointing:
        if not model.model.supports_gradient_checkpointing:
            kind = model.config.model_type
            raise ConfigError(f"text.gradient_checkpointing: a {kind!r} does not support it; set it to false")
        # With the re-entrant form no gradient flows through blocks after a frozen embedding.
        model.model.activation_checkpointing_enable({"use_reentrant": False})
    return model


def describe_trainable(model: LanguageModel, config: TextTowerConfig) -> str:
    """Returns a line with the number of trainable parameters of an adapted language model."""
    trainable = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    total = sum(weight.numel() for weight in model.parameters())
    share = 100 * trainable / total
    return f"text tower ({config.adapt}): {trainable:,} of {total:,} parameters trainable ({share:.3g} %)"


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
        raise ConfigError(f"text.adapt=prefix: a {kind!r} model takes no virtual tokens; choose another adapter")
    shapes = _cached_shapes(model.model)
    if not shapes:
        raise ConfigError(f"text.adapt=prefix: a {kind!r} model ignores virtual tokens; choose another adapter")
    if len(set(shapes)) > 1 or shapes[0].keys != shapes[0].values:
        raise ConfigError(
            f"text.adapt=prefix: keys and values of a {kind!r} model differ in number of heads or head width; choose "
            f"another adapter"
        )
    heads, size = shapes[0].keys
    # PEFT would derive the key-value heads from the configuration, which is wrong for multi-query attention.
    options = PrefixTuningConfig(
        num_virtual_tokens=config.prefix_length,
        num_layers=len(shapes),
        token_dim=heads * size,
        num_attention_heads=heads,
    )
    encoder = PrefixEncoder(options)
    model.prefix = Prefix(encoder, length=config.prefix_length, heads=heads, size=size)


def _cached_shapes(model: PreTrainedModel) -> list[_CachedShape]:
    """Returns number of heads and head width of keys and values in the cache of each block, measured with one token.

    The configuration does not give them: Falcon with multi-query attention caches one head, with grouped queries it
    repeats the heads first.

    Returns:
        One shape per block; empty if the model ignores the cache or stores something else in it.
    """
    cache: Any = DynamicCache()
    with shapes_only(model):
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
        heights, _ = layer_depths(model)
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
    """Inserts PEFT's layers into the model, in place, and returns PEFT's wrapper."""
    from peft import get_peft_model

    try:
        with warnings.catch_warnings():  # PEFT uses a deprecated name of transformers
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            return get_peft_model(model.model, options)
    except ValueError as error:
        kind = model.config.model_type
        raise ConfigError(
            f"text.adapt does not work with a {kind!r} model ({error}); choose another adapter"
        ) from error


def _is_transposed(model: nn.Module) -> bool:
    # GPT-2 stores weights as inputs x outputs, which PEFT must know.
    return any(isinstance(module, Conv1D) for module in model.modules())
