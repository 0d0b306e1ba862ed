"""Uniform interface to Hugging Face language models: tokens or embeddings, mask and positions in; hidden states out.

Shapes: `B` sequences, `L` tokens, `P` nodes of a packed tree, `D` width.
"""

from __future__ import annotations

import inspect
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from cleft.config import TextTowerConfig
from cleft.errors import CheckpointError, ConfigError
from cleft.grammar import count
from cleft.models.hub import config_from_dict, pretrained_model, random_model, read_config
from cleft.models.layers import make_hooks_picklable


class Prefix(nn.Module):
    """Virtual tokens of prefix tuning: trainable keys and values for each block of a language model.

    In a prefix tree they are ancestors of every node, so a batch shares one copy. PEFT would repeat them for each text
    and replace the mask by a two-dimensional one, which cannot describe a tree; so they are passed to the model here.

    Args:
        encoder: Returns `[length, 2 * blocks * heads * size]` for the indices 0 to length - 1, keys before values in
            each block.
        length: Number of virtual tokens.
        heads: Key-value heads of a block.
        size: Width of a head.
    """

    def __init__(self, encoder: nn.Module, *, length: int, heads: int, size: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.length = length
        self.heads = heads
        self.size = size

    def forward(self, batch: int, *, dtype: torch.dtype) -> DynamicCache:
        """Returns keys and values for a batch of sequences, as a cache of earlier tokens."""
        weight = next(self.encoder.parameters())
        states: Tensor = self.encoder(torch.arange(self.length, device=weight.device)).to(dtype)
        blocks = states.view(self.length, -1, 2, self.heads, self.size).permute(1, 2, 3, 0, 4)
        blocks = blocks[:, :, None].expand(-1, -1, batch, -1, -1, -1)  # [blocks, 2, B, heads, length, size]
        return DynamicCache([(keys, values) for keys, values in blocks])


_CAUSAL_PARTS = ("clip_text_model",)
"""Causal parts of larger models for which transformers has no language model class."""
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class TokenStates(NamedTuple):
    """Output of a language model."""

    states: Tensor
    """Hidden states `[B, L, D]`: after the last norm, or the mean of several layers."""
    pooled: Tensor | None
    """Output of the model's pooler, `[B, D]`."""


class LanguageModel(nn.Module):
    """A Hugging Face language model without its head, with the virtual tokens of prefix tuning if there are any.

    Args:
        model: The model.
        causal: Whether a token attends only to earlier tokens.
        uses_positions: Whether a masked model gets token positions; otherwise every token has position 0.
        layers: Layers whose states are averaged: 0 is the embedding, -1 the last.
    """

    def __init__(
        self, model: PreTrainedModel, *, causal: bool, uses_positions: bool = True, layers: Sequence[int] = (-1,)
    ) -> None:
        super().__init__()
        self.model = model
        self.prefix: Prefix | None = None
        self.causal = causal
        self.uses_positions = uses_positions
        self.layers = tuple(layers)
        self._width: int | None = None
        takes = inspect.signature(model.forward).parameters
        self.takes_positions = causal and "position_ids" in takes
        self.takes_embeddings = "inputs_embeds" in takes

    def __getstate__(self) -> dict[str, Any]:
        """Returns the state to pickle or copy."""
        make_hooks_picklable(self.model)
        return dict(self.__dict__)

    @property
    def config(self) -> Any:
        """The Hugging Face configuration; its fields differ between families."""
        return self.model.config

    @property
    def width(self) -> int:
        """Width `D` of a hidden state.

        Raises:
            ConfigError: If `text.pooled_layers` averages layers of different widths.
        """
        if self._width is None:
            hidden = cast("int", self.config.hidden_size)
            # OPT-350M projects its states back to the embedding width; the configuration has no field for it.
            self._width = hidden if self.embedding_width == hidden else self._measured_width()
        return self._width

    @property
    def embedding_width(self) -> int:
        """Width `E` of a token embedding, which may differ from that of a hidden state."""
        return self.embed(torch.zeros(1, dtype=torch.int64, device=self.model.device)).shape[-1]

    @property
    def block_input_width(self) -> int:
        """Width of the input of the first block: that of a token embedding, or that of a hidden state."""
        embeddings: Any = getattr(self.model, "embeddings", None)
        if embeddings is None or self.embedding_width == self.width:
            return self.width
        widths: list[int] = []
        with embeddings.register_forward_hook(lambda _m, _i, output: widths.append(output.shape[-1])):
            self._measured_width()
        return widths[0]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the input of the blocks; trainable weights are float32 in any model."""
        return self.embed(torch.zeros(0, dtype=torch.int64, device=self.model.device)).dtype

    @property
    def virtual_tokens(self) -> int:
        """Number of virtual tokens before every text."""
        return 0 if self.prefix is None else self.prefix.length

    def embed(self, input_ids: Tensor) -> Tensor:
        """Returns token embeddings."""
        return self.model.get_input_embeddings()(input_ids)

    def forward(self, tokens: Tensor, visible: Tensor, positions: Tensor) -> Tensor:
        """Returns hidden states of sequences, `[B, L, D]`; see `encode`."""
        return self.encode(tokens, visible, positions).states

    def encode(self, tokens: Tensor, visible: Tensor, positions: Tensor) -> TokenStates:
        """Encodes sequences.

        Args:
            tokens: Token ids `[B, L]`, or embeddings `[B, L, D]`.
            visible: Attention mask: tokens that may be attended to, `[B, L]` bool; for a packed tree, which node (row)
                attends to which (column), `[1, P, P]` bool.
            positions: Position of each token, `[B, L]` or `[1, L]`. Models without position ids ignore it.
        """
        embedded = tokens.is_floating_point()
        inputs: dict[str, Any] = {"inputs_embeds" if embedded and self.takes_embeddings else "input_ids": tokens}
        if self.prefix is not None:
            inputs["past_key_values"] = self.prefix(len(tokens), dtype=self.dtype)
            visible = functional.pad(visible, (self.prefix.length, 0), value=True)
            positions = positions + self.prefix.length
        if self.takes_positions:
            inputs["position_ids"] = positions
        elif not self.uses_positions:
            inputs["position_ids"] = torch.zeros(tokens.shape[:2], dtype=torch.int64, device=tokens.device)
        if self.layers != (-1,):
            inputs["output_hidden_states"] = True
        inputs["attention_mask"] = self._mask(visible)
        if embedded and not self.takes_embeddings:
            output = self._encode_embeddings(tokens, inputs)
        else:
            output = self.model(**inputs)
        states = output.last_hidden_state
        if self.layers != (-1,):
            states = torch.stack([output.hidden_states[layer] for layer in self.layers]).mean(dim=0)
        return TokenStates(states, getattr(output, "pooler_output", None))

    def _measured_width(self) -> int:
        with shapes_only(self):
            token = torch.zeros(1, 2, dtype=torch.int64, device=self.model.device)
            places = torch.arange(2, device=self.model.device)[None]
            try:
                return self.encode(token, torch.ones_like(token, dtype=torch.bool), places).states.shape[-1]
            except RuntimeError as error:
                raise ConfigError(
                    f"text.pooled_layers={list(self.layers)}: layers of a {self.config.model_type!r} model differ in "
                    f"width; choose some of one width, such as -1 ({error})"
                ) from error

    def _encode_embeddings(self, embeds: Tensor, inputs: dict[str, Any]) -> Any:
        """Passes embeddings to a model that takes only token ids, such as CLIP's text model."""
        inputs["input_ids"] = torch.zeros(embeds.shape[:2], dtype=torch.int64, device=embeds.device)
        with self.model.get_input_embeddings().register_forward_hook(lambda _module, _inputs, _output: embeds):
            return self.model(**inputs)

    def _mask(self, visible: Tensor) -> Tensor:
        if visible.ndim == 2:
            return visible.long()
        # A 4-D mask is used unchanged. `sdpa` takes True as visible; other implementations add the mask to scores.
        if self.config._attn_implementation == "sdpa":
            return visible[:, None]
        hidden = torch.zeros(visible.shape, dtype=self.dtype, device=visible.device)
        return hidden.masked_fill(~visible, torch.finfo(hidden.dtype).min)[:, None]

    def max_positions(self) -> int | None:
        """Returns the number of positions of the model, virtual tokens included; None if unlimited."""
        limit = getattr(self.config, "max_position_embeddings", None)
        if not isinstance(limit, int) or limit < 1:
            return None
        padding = [
            module.padding_idx
            for name, module in self.model.named_modules()
            if name.endswith("position_embeddings") and isinstance(module, nn.Embedding)
        ]
        # RoBERTa-like models count positions from the padding index + 1.
        return limit - padding[0] - 1 if padding and padding[0] is not None else limit

    def attention_window(self) -> int | None:
        """Returns the smallest attention window of a block in tokens; None if all blocks attend to all tokens.

        A given mask replaces the model's, including its window.
        """
        kinds = getattr(self.config, "layer_types", None)
        slides = kinds is None or any(kind != "full_attention" for kind in kinds)
        spans = [getattr(self.config, name, None) for name in ("sliding_window", "attention_chunk_size")]
        spans = [span for span in spans if isinstance(span, int) and slides]
        return min(spans, default=None)


@contextmanager
def eval_mode(model: nn.Module) -> Generator[None]:
    """Puts a model into evaluation mode and restores the mode of every module afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.train(mode=False)
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def shapes_only(model: nn.Module) -> Generator[None]:
    """Calls of the model return only shapes: fake tensors, evaluation mode, no gradient."""
    from torch._subclasses.fake_tensor import FakeTensorMode  # slow import, needed by few models

    with eval_mode(model), torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        yield


def build_language_model(config: TextTowerConfig, *, vocabulary: int, pad: int, eos: int | None) -> LanguageModel:
    """Loads a language model, or builds it with random weights from torch's global generator.

    Frozen weights have `text.base_dtype`; with `adapt: full` all weights are trainable and float32.

    Args:
        config: The model.
        vocabulary: Size of the tokenizer's vocabulary. A model from scratch gets an embedding of this size.
        pad: Padding token of a model from scratch.
        eos: End-of-text token of a model from scratch.

    Raises:
        ConfigError: If the model is neither causal nor masked, or cannot be loaded.
        CheckpointError: If its files lack weights, or its vocabulary is smaller than the tokenizer's.
    """
    description = read_text_config(config, vocabulary=vocabulary, pad=pad, eos=eos)
    causal = is_causal(description)
    dtype = torch.float32 if config.adapt == "full" else _DTYPES[config.base_dtype]
    missing: set[str] = set()
    if config.model is None or config.random_weights:
        model = random_model(description)
        cast("nn.Module", model).to(dtype)
    else:
        model, missing = pretrained_model(config.model, description, "text.model", dtype=dtype)
    if config.pooling != "pooler":
        drop_pooler(model)
    elif getattr(model, "pooler", None) is None:
        raise ConfigError(f"text.pooling=pooler: a {description.model_type!r} model has no pooler; choose another")
    missing &= {name for name, _ in model.named_parameters()}
    if missing:
        raise CheckpointError(f"text.model={config.model!r} lacks weights {sorted(missing)[:5]}; copy it again")
    table = cast("nn.Embedding", model.get_input_embeddings())
    if pad == eos:
        table.padding_idx = None  # it would block the gradient of the EOS token; the mask hides padding anyway
    rows = len(table.weight)
    if vocabulary > rows:
        raise CheckpointError(
            f"the tokenizer of text.model={config.model!r} has {vocabulary} tokens but the model only {rows}; "
            f"use the tokenizer of this model"
        )
    if config.positions == "zero" and (causal or "position_ids" not in inspect.signature(model.forward).parameters):
        raise ConfigError(
            f"text.positions=zero is for masked models that take position ids, not for {description.model_type!r}; "
            f"leave it out"
        )
    return LanguageModel(
        model, causal=causal, uses_positions=config.positions == "counted", layers=config.pooled_layers
    )


def read_text_config(config: TextTowerConfig, *, vocabulary: int = 0, pad: int = 0, eos: int | None = None) -> Any:
    """Returns the model's configuration with the dropout of `text.base_dropout`.

    Args:
        config: The model.
        vocabulary: Vocabulary size of a model from scratch; 0 keeps that of its description.
        pad: Padding token of a model from scratch.
        eos: End-of-text token of a model from scratch.
    """
    if config.scratch is not None:
        # First without a size: the family's default token ids may exceed this vocabulary.
        options = {name: value for name, value in config.scratch.items() if name != "vocab_size"}
        description = config_from_dict(options, "text.scratch")
        if vocabulary:
            named = [name for name in description.to_dict() if name.endswith("_token_id")]
            padding = None if pad == eos else pad
            special = {name: padding if name == "pad_token_id" else eos for name in named}
            description = config_from_dict({**options, **special, "vocab_size": vocabulary}, "text.scratch")
    else:
        assert config.model is not None
        description = read_config(config.model, "text.model")
    for name, value in description.to_dict().items():
        if ("drop" in name) and isinstance(value, int | float) and not isinstance(value, bool):
            setattr(description, name, 0.0 if name == "layerdrop" else config.base_dropout)
    description.use_cache = False
    truncate_blocks(description, config)
    return description


def truncate_blocks(description: PreTrainedConfig, config: TextTowerConfig) -> None:
    """Reduces a configuration to the first `text.depth` blocks, in place.

    Raises:
        ConfigError: If the model has fewer blocks, or `text.pooled_layers` names a missing layer.
    """
    if config.depth is None and config.pooled_layers == (-1,) and not config.frozen_layers:
        return
    shape: Any = description.get_text_config()
    blocks = int(shape.num_hidden_layers)
    if config.depth is not None:
        if config.depth > blocks:
            raise ConfigError(
                f"text.depth={config.depth}: the model has {count(blocks, 'block')}; set it to {blocks} or fewer"
            )
        shape.num_hidden_layers = blocks = config.depth
    beyond = [layer for layer in config.pooled_layers if not -blocks - 1 <= layer <= blocks]
    if beyond:
        raise ConfigError(
            f"text.pooled_layers names {beyond}, but the model has {count(blocks, 'layer')} after its embedding (0)"
        )
    if config.frozen_layers > blocks:
        raise ConfigError(
            f"text.frozen_layers={config.frozen_layers}: the model has {count(blocks, 'block')}; lower it"
        )


def is_causal(config: PreTrainedConfig) -> bool:
    """Whether a language model is causal; False for a masked one.

    Raises:
        ConfigError: If it is neither.
    """
    kind = config.model_type
    if not config.is_encoder_decoder:
        if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
            return False
        if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or kind in _CAUSAL_PARTS:
            return True
    raise ConfigError(f"a text tower needs a causal or masked language model; {kind!r} is neither, choose another")


def drop_pooler(model: PreTrainedModel) -> None:
    """Removes the pooler of BERT-like models, which would never get a gradient."""
    if getattr(model, "pooler", None) is not None:
        model.pooler = None  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]


class TrainableRows(nn.Module):
    """A frozen token embedding with trainable rows for some tokens.

    Captions of a dataset use a few hundred of tens of thousands of tokens. Training the complete table would store
    gradients and optimiser states for the rest, and weight decay would shrink it. The rows are always float32
    (docs/decisions/0031).

    Args:
        table: The model's token embedding.
        tokens: Tokens with trainable rows, ascending.
    """

    slot: Tensor

    def __init__(self, table: nn.Module, tokens: Sequence[int]) -> None:
        super().__init__()
        weight = next(table.parameters())
        ids = torch.tensor(tokens, device=weight.device)
        self.table = table.requires_grad_(False)
        with torch.no_grad():
            self.rows = nn.Parameter(table(ids).float())
        slot = torch.full((len(weight),), -1, device=weight.device)
        slot[ids] = torch.arange(len(tokens), device=weight.device)
        self.register_buffer("slot", slot, persistent=False)
        self.tokens = tuple(tokens)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Returns the embedding of each token, one axis more than `input_ids`, in the table's dtype."""
        frozen = self.table(input_ids)
        slot = self.slot[input_ids]
        # An embedding lookup, not indexing: its gradient is deterministic on a GPU.
        trainable = nn.functional.embedding(slot.clamp(min=0), self.rows).to(frozen.dtype)
        return torch.where((slot >= 0)[..., None], trainable, frozen)
