"""Each adapter makes the right weights trainable, and only those."""

import pytest
import torch
from peft import PrefixTuningConfig, get_peft_model
from tests.fakes.texts import CAPTIONS, error, moving, tower
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2Model

from cleft.config import TextTowerConfig
from cleft.errors import ConfigError
from cleft.models.adapters import ADAPTERS, adapt, describe_trainable
from cleft.models.language_model import LanguageModel, TrainableRows

BIOMEDLM = {"n_layer": 32, "n_embd": 2560, "n_head": 20, "n_positions": 1024, "vocab_size": 28896}
"""Configuration of stanford-crfm/BioMedLM."""


def biomedlm(**settings) -> LanguageModel:
    with torch.device("meta"):
        model = GPT2Model(GPT2Config(**BIOMEDLM, bos_token_id=28895, eos_token_id=28895, use_cache=False))
        lm = LanguageModel(model, causal=True)
        return adapt(lm, TextTowerConfig(**{"train_embeddings": False, "dropout": 0.0, **settings}), range(300))


def count(model) -> int:
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


def backward(built) -> None:
    built.encode(CAPTIONS)[:, 0].sum().backward()


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        ("lora", 32 * 8 * (2560 + 3 * 2560)),  # A and B of the fused attention projection
        ("ia3", 32 * (3 * 2560 + 4 * 2560)),  # a factor per output of that projection and per input of the last layer
        ("prefix", 20 * 2 * 32 * 2560),  # keys and values
        ("frozen", 0),
    ],
)
def test_trainable_weights_at_full_size(way, expected):
    lm = biomedlm(adapt=way)
    assert count(lm) == expected
    assert count(biomedlm(adapt=way, train_embeddings=True)) == expected + 300 * 2560


def test_lora_at_full_size_has_the_parameter_count_of_the_paper():
    assert count(biomedlm(adapt="lora")) == 2_621_440


def test_a_node_costs_10_gflop_forward_and_backward_at_full_size():
    # Forward 2 and backward 2 per frozen weight of a block (12 * 2560^2 in 32 blocks): a frozen matrix needs the
    # gradient of its input but not its own. Attention and LoRA are the small rest; look-ups count nothing.
    nodes = 168
    lm = biomedlm(adapt="lora", train_embeddings=True)
    ids = torch.zeros(1, nodes, dtype=torch.int64, device="meta")
    visible = torch.ones(1, nodes, nodes, dtype=torch.bool, device="meta")
    with FlopCounterMode(display=False) as counter:
        lm(ids, visible, ids).sum().backward()
    assert counter.get_total_flops() / nodes == pytest.approx(10.1e9, rel=0.02)
    assert 4 * 12 * 2560**2 * 32 / 10.1e9 == pytest.approx(1, rel=0.02)


def test_every_lora_matrix_is_updated_and_no_frozen_weight():
    torch.manual_seed(0)
    built = tower("gpt2", packing="tree").train()
    backward(built)
    gradients = {name: weight.grad for name, weight in built.named_parameters()}
    fresh = [name for name in gradients if "lora_B" in name]
    assert len(fresh) == 2
    assert all(gradients[name].abs().max() > 0 for name in fresh)
    frozen = [name for name, weight in built.named_parameters() if not weight.requires_grad]
    assert frozen
    assert all(gradients[name] is None for name in frozen)


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
@pytest.mark.parametrize(("rank", "alpha"), [(2, 8), (4, 6), (8, 32)])
def test_the_lora_update_is_alpha_over_rank_times_b_a(family, rank, alpha):
    built = tower(family, rank=rank, alpha=alpha)
    expected = built.encode(CAPTIONS)
    layers = [module for module in built.modules() if hasattr(module, "lora_A")]
    assert layers
    with torch.no_grad():  # merge by hand: W + alpha / rank * B A, and switch the adapters off
        for layer in layers:
            update = alpha / rank * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
            weight = layer.base_layer.weight
            weight.add_(update.T if weight.shape != update.shape or family == "gpt2" else update)
            layer.lora_B["default"].weight.zero_()
    assert error(built.encode(CAPTIONS), expected) < 1e-5


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
@pytest.mark.parametrize("way", sorted(ADAPTERS))
def test_every_trainable_weight_gets_a_gradient(family, way):
    built = tower(family, adapt=way, train_embeddings=True)
    backward(built)
    assert [name for name, weight in built.named_parameters() if weight.requires_grad and weight.grad is None] == []
    assert all(weight.grad.abs().max() > 0 for weight in moving(built) if weight.numel() > 16)


@pytest.mark.parametrize("way", ["lora", "ia3", "prefix", "frozen"])
def test_only_rows_of_occurring_tokens_are_trainable(way):
    built = tower("gpt2", adapt=way)
    rows = built.lm.model.wte
    assert isinstance(rows, TrainableRows)
    assert built.trained_tokens == tuple(built.tokenizer.used_tokens(CAPTIONS))
    assert built.tokenizer.eos in built.trained_tokens
    assert len(built.trained_tokens) < len(rows.table.weight) / 4
    assert rows.rows.shape == (len(built.trained_tokens), 16)
    backward(built)
    assert rows.table.weight.grad is None
    assert (rows.rows.grad.abs().max(dim=1).values > 0).all()


def test_full_makes_the_complete_embedding_trainable():
    built = tower("gpt2", adapt="full", base_dtype="bfloat16")
    assert built.trained_tokens == ()
    assert all(weight.requires_grad and weight.dtype == torch.float32 for weight in built.parameters())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_end_token_is_trained_although_it_is_the_padding(family):
    built = tower(family, adapt="full")
    assert built.tokenizer.pad == built.tokenizer.eos
    built.encode(CAPTIONS)[:, 0].sum().backward()
    assert built.lm.model.get_input_embeddings().weight.grad[built.tokenizer.eos].abs().max() > 0


def test_trainable_rows_start_as_the_table_and_return_its_dtype():
    table = torch.nn.Embedding(6, 4, dtype=torch.bfloat16)
    rows = TrainableRows(table, [1, 4])
    ids = torch.arange(6)
    assert torch.equal(rows(ids), table(ids))
    assert rows.rows.dtype == torch.float32
    with torch.no_grad():
        rows.rows.fill_(7)
    assert (rows(ids) == 7).all(dim=1).tolist() == [False, True, False, False, True, False]
    rows(ids[:2]).float().sum().backward()
    assert rows.rows.grad.tolist() == [[1.0] * 4, [0.0] * 4]


def test_one_line_reports_trainable_parameters():
    said = describe_trainable(biomedlm(adapt="lora"), TextTowerConfig(adapt="lora"))
    assert said == "text tower (lora): 2,621,440 of 2,596,869,120 parameters trainable (0.101 %)"


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("way", ["lora", "ia3", "full", "frozen"])
def test_gradient_checkpointing_changes_no_gradient(family, way):
    plain, sparing = tower(family, adapt=way), tower(family, adapt=way, gradient_checkpointing=True)
    sparing.load_state_dict(plain.state_dict())
    for built in (plain, sparing):
        backward(built.train())
    for one, other in zip(moving(plain), moving(sparing), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_gradient_checkpointing_drops_virtual_tokens_and_is_refused():
    with pytest.raises(ConfigError, match="drops the virtual tokens"):
        tower("gpt2", adapt="prefix", gradient_checkpointing=True)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_virtual_tokens_equal_those_of_peft(family):
    built = tower(family, adapt="prefix", prefix_length=3, end_token_attends_itself=True)
    ours = built.encode(CAPTIONS[1:2])
    options = PrefixTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=3)
    theirs = get_peft_model(built.lm.model, options)
    theirs.prompt_encoder["default"].load_state_dict(built.lm.prefix.encoder.state_dict())
    ids = torch.tensor(built.tokenizer.encode(CAPTIONS[1:2]))
    states = theirs(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    torch.testing.assert_close(ours, states[:, -1], atol=1e-5, rtol=1e-5)


def test_every_text_attends_to_virtual_tokens():
    built = tower("gpt2", adapt="prefix", prefix_length=3)
    before = built.encode(CAPTIONS)
    with torch.no_grad():
        built.lm.prefix.encoder.embedding.weight[2].add_(1.0)
    assert ((built.encode(CAPTIONS) - before).abs().max(dim=1).values > 1e-3).all()
