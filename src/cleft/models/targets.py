"""Modules of a language model that LoRA and IA3 change: as set, as PEFT knows the family, or found by name.

PEFT lists default modules for some families only. For the others the attention projections are found by the names that
language models of `transformers` use (docs/decisions/0162).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn
from transformers.pytorch_utils import Conv1D

from cleft.config import TextTowerConfig
from cleft.errors import ConfigError
from cleft.models.depth import outermost_list
from cleft.models.language_model import LanguageModel

_FUSED = ("c_attn", "query_key_value", "qkv_proj", "Wqkv", "in_proj", "qkv", "W_pack", "c_qkv", "att_proj")
"""Query, key and value in one layer."""
_APART = (
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
"""Query, key and value in three layers."""
_DOWN = (
    *("down_proj", "fc2", "mlp.c_proj", "dense_4h_to_h", "mlp.Wo", "lin2", "fc_out", "ffn_output", "output.dense"),
    *("w2", "wo", "mlp.dense_2", "mlp.proj", "ff_out", "linear2", "layer_2"),
)
"""Last layer of a feed-forward block."""


class Ia3Targets(NamedTuple):
    """What IA3 changes."""

    modules: tuple[str, ...]
    feedforward: tuple[str, ...]
    """Those of `modules` whose input is scaled in place of their output."""


def lora_targets(model: LanguageModel, config: TextTowerConfig, known: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the ends of the names of the modules that get a LoRA update.

    Args:
        model: The language model, not adapted.
        config: `lora_targets`; where that is None, the family's default or the query and value projections.
        known: PEFT's defaults, by family.

    Raises:
        ConfigError: If a name in `text.lora_targets` matches no module, or nothing is set and nothing is found.
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
    """Returns the ends of the names of the modules that IA3 scales.

    Args:
        model: The language model, not adapted.
        config: `ia3_targets` and `ia3_feedforward`; where the first is None, the family's default, or the key and
            value projections and the last layer of each feed-forward block.
        known: PEFT's default targets, by family.
        known_feedforward: Those of them that are feed-forward layers.

    Raises:
        ConfigError: If a name matches no module, a feed-forward module is not among the targets, or nothing is set and
            nothing is found.
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
            f"text.ia3_feedforward names {', '.join(feedforward)}, but IA3 changes only {', '.join(modules)}; add what "
            f"is missing to text.ia3_targets"
        )
    return Ia3Targets(modules, feedforward)


def adaptable_modules(model: nn.Module) -> list[str]:
    """Returns the full names of the linear layers in a model's blocks, in the model's order."""
    blocks = outermost_list(model)
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    return [name for name in linear if blocks is None or name.startswith(f"{blocks[0]}.")] or linear


def _known(mapping: Mapping[str, Any], model: LanguageModel, names: Sequence[str]) -> tuple[str, ...]:
    """PEFT's default for a family; empty if there is none, or if it matches nothing in this model."""
    default = mapping.get(model.config.model_type, ())
    if isinstance(default, str) or not all(_matched([name], names) for name in default):
        return ()
    return tuple(default)


def _attention(names: Sequence[str]) -> tuple[str, ...]:
    """Query, key and value projections, or the one layer that holds all three; empty if there is neither."""
    for fused in _FUSED:
        if _matched([fused], names):
            return (fused,)
    return next((apart for apart in _APART if all(_matched([name], names) for name in apart)), ())


def _first_matching(ends: Iterable[str], names: Sequence[str]) -> tuple[str, ...]:
    return next(((end,) for end in ends if _matched([end], names)), ())


def _among(targets: Sequence[str], down: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """Those of the targets that are the last layer of a feed-forward block."""
    last = set(_matched(down, names))
    return tuple(target for target in targets if (found := set(_matched([target], names))) and found <= last)


def _matched(ends: Iterable[str], names: Sequence[str]) -> list[str]:
    """Full names that are one of `ends` or end with a dot and one, as PEFT compares them."""
    ends = tuple(ends)
    return [name for name in names if any(name == end or name.endswith(f".{end}") for end in ends)]


def _refuse_unknown(setting: str, typed: Sequence[str], names: Sequence[str]) -> None:
    for name in typed:
        if not _matched([name], names):
            short = _short(names)
            near = difflib.get_close_matches(name, short, n=1)
            hint = f"; did you mean {near[0]!r}" if near else ""
            raise ConfigError(
                f"{setting} names {name!r}, which no linear layer of the model ends with{hint}; it has "
                f"{', '.join(short)}"
            )


def _nothing_found(model: LanguageModel, setting: str, example: str, names: Sequence[str]) -> ConfigError:
    has = ", ".join(_short(names)) or "none"
    return ConfigError(
        f"text.adapt={model_way(setting)}: there are no default modules for a {model.config.model_type!r} model; name "
        f"its attention projections with {setting} (such as --{setting} {example}), or choose another text.adapt. Its "
        f"linear layers are {has}"
    )


def model_way(setting: str) -> str:
    """The value of `text.adapt` a setting belongs to."""
    return setting.removeprefix("text.").partition("_")[0]


def _short(names: Sequence[str]) -> list[str]:
    """Last parts of names, each once, in the model's order; two parts where the last is shared by different layers."""
    parents: dict[str, dict[str, None]] = {}
    for name in names:
        *above, last = [part for part in name.split(".") if not part.isdigit()]
        parents.setdefault(last, {})[above[-1] if above else ""] = None
    return [last if len(above) == 1 else f"{parent}.{last}" for last, above in parents.items() for parent in above]
