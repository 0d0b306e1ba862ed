"""Layers: 16-bit weights, captured attention, layer depths, patch decoder; weights without copies."""

import copy
import math
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.fakes import official
from tests.fakes.models import CAPTIONS, IMAGE, fake_images, fake_model, fake_settings
from tests.fakes.official import write_official
from torch import nn
from transformers import (
    AutoConfig,
    BertConfig,
    BertModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ViTConfig,
    ViTModel,
)
from transformers.pytorch_utils import Conv1D

from cleft.errors import CheckpointError, ConfigError
from cleft.models.checkpoint import load_model, save_model, saved_weights
from cleft.models.hub import meta_model
from cleft.models.image_classifier import load_image_classifier
from cleft.models.layers import PatchDecoder, capture_attention, compute_in_float32, layer_depths, sine_positions
from cleft.models.state_dict import (
    assign_weights,
    describe_mismatch,
    match_forms,
    non_finite_names,
    strip_wrappers,
    to_current_names,
    to_saveable,
)

FILE = Path("theirs.pt")


@pytest.mark.parametrize(
    ("wrapped", "plain"),
    [
        ("module.visual.proj", "visual.proj"),
        ("_orig_mod.visual.proj", "visual.proj"),
        ("module._orig_mod.visual.proj", "visual.proj"),
        ("_orig_mod.module.module.visual.proj", "visual.proj"),
        ("module.visual._orig_mod.proj", "visual.proj"),
        ("visual.module.blocks.0._checkpoint_wrapped_module.proj", "visual.blocks.0.proj"),
        ("_forward_module._fsdp_wrapped_module.visual.proj", "visual.proj"),
        ("modules.submodule.proj", "modules.submodule.proj"),
        ("module", "module"),
    ],
)
def test_names_added_by_wrappers_are_removed(wrapped, plain):
    assert list(strip_wrappers({wrapped: torch.ones(1)}, FILE)) == [plain]


def test_two_names_of_one_weight_are_refused():
    weights = {"visual.proj": torch.ones(1), "module.visual._orig_mod.proj": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"theirs.pt has 'visual.proj' and 'module.visual._orig_mod.proj'"):
        strip_wrappers(weights, FILE)


def test_equal_values_in_another_form_are_converted():
    expected = {"scale": torch.tensor(0.0), "count": torch.tensor(0), "weight": torch.ones(2), "half": torch.ones(2)}
    given = {
        "scale": torch.tensor([2.5], dtype=torch.float64),
        "count": torch.tensor(7.0),
        "weight": torch.ones(2, dtype=torch.float64),
        "half": torch.ones(2, dtype=torch.bfloat16),
        "other": torch.ones(3, dtype=torch.float64),
    }
    found = match_forms(given, expected)
    assert describe_mismatch({name: found[name] for name in expected}, expected) == ""
    assert (float(found["scale"]), int(found["count"])) == (2.5, 7)
    assert (found["half"].dtype, found["other"].dtype) == (torch.bfloat16, torch.float64)


def test_values_that_would_change_are_not_converted():
    expected = {"count": torch.tensor(0), "weight": torch.ones(2)}
    given = {"count": torch.tensor(7.5), "weight": torch.ones(2, dtype=torch.int64)}
    assert describe_mismatch(match_forms(given, expected), expected) == "2 with another shape or dtype: count, weight"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_every_value_must_be_finite(dtype, bad):
    good, broken = torch.ones(5, dtype=dtype), torch.ones(5, dtype=dtype)
    broken[3] = bad
    assert non_finite_names({"good": good, "broken": broken, "none": torch.ones(0, dtype=dtype)}) == ["broken"]


def test_weights_that_share_memory_are_saved_twice(tmp_path):
    table = torch.ones(3)
    saved = to_saveable({"first": table, "second": table}, tmp_path)
    assert saved["first"].data_ptr() != saved["second"].data_ptr()
    assert torch.equal(saved["first"], saved["second"])


class Mixed(nn.Module):
    """One of each kind of layer and weight."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 8)
        self.linear = nn.Linear(8, 8)
        self.matrix = Conv1D(8, 8)
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.convolution = nn.Conv2d(1, 2, 3)
        self.patches = nn.Conv2d(1, 2, 2, stride=2)
        self.shift = nn.Parameter(torch.zeros(8))

    def forward(self, ids, images):
        """Uses every weight."""
        states = self.norm(self.matrix(self.linear(self.table(ids)))) + self.shift
        states = self.attention(states, states, states, need_weights=False)[0]
        return states, self.convolution(images), self.patches(images)


def halved(stored: bool) -> Mixed:
    torch.manual_seed(0)
    model = Mixed().eval()
    expected = dict(model.state_dict())
    halves = assign_weights(model, {name: tensor.half() for name, tensor in expected.items()}, expected)
    assert set(halves) == set(expected)
    compute_in_float32(model, halves, stored=stored)
    return model


def test_layers_keep_16_bits_and_give_the_values_and_gradients_of_float32():
    stored, wide = halved(stored=True), halved(stored=False)
    half = {name for name, weight in stored.named_parameters() if weight.dtype == torch.float16}
    assert half == {"table.weight", "linear.weight", "matrix.weight", "convolution.weight"}
    assert all(weight.dtype == torch.float32 for weight in wide.parameters())
    inputs = torch.tensor([[1, 2, 6]]), torch.rand(1, 1, 6, 6)
    for one, other in zip(stored(*inputs), wide(*inputs), strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, other)
    for model in (stored, wide):
        sum(part.square().sum() for part in model(*inputs)).backward()
    torch.testing.assert_close(stored.linear.weight.grad.float(), wide.linear.weight.grad, rtol=1e-3, atol=1e-5)
    assert torch.equal(stored.shift.grad, wide.shift.grad)


def test_a_model_with_16_bits_is_copied_and_pickled():
    model = halved(stored=True)
    inputs = torch.tensor([[1, 2, 6]]), torch.rand(1, 1, 6, 6)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301
        assert torch.equal(twin(*inputs)[0], model(*inputs)[0])


@pytest.mark.parametrize(("image", "text"), [("dinov2", "gpt2"), ("resnet", "bert"), ("swin", "gpt2")])
def test_a_folder_of_16_bits_is_read_as_such_and_widened_for_training(tmp_path, image, text):
    settings = fake_settings(image, text, adapt="full")
    model = fake_model(settings)
    own = saved_weights(model)
    assign_weights(model, {name: it.bfloat16() if it.is_floating_point() else it for name, it in own.items()}, own)
    save_model(model, settings, tmp_path)
    stored, wide = load_model(tmp_path), load_model(tmp_path, float32=True)
    assert any(weight.dtype == torch.bfloat16 for weight in stored.parameters())
    assert all(weight.dtype == torch.float32 for weight in wide.parameters())
    with torch.no_grad():
        assert torch.equal(stored.encode_image(fake_images()), wide.encode_image(fake_images()))
        assert torch.equal(stored.encode_text(CAPTIONS), wide.encode_text(CAPTIONS))
    assert all(weight.dtype == torch.float32 for weight in load_image_classifier(tmp_path, train=True).parameters())
    assert any(weight.dtype == torch.bfloat16 for weight in load_image_classifier(tmp_path).parameters())


def test_weights_are_assigned_without_a_copy():
    model = Mixed()
    expected = dict(model.state_dict())
    given = {name: tensor.half() for name, tensor in expected.items()}
    assign_weights(model, given, expected)
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == {
        name: tensor.data_ptr() for name, tensor in given.items()
    }


def test_an_image_towers_weights_are_renamed_without_a_copy():
    tower = fake_model(fake_settings("dinov2")).image_tower.model
    published = {
        name.replace("attention.q_proj", "attention.attention.query")
        .replace("attention.k_proj", "attention.attention.key")
        .replace("attention.v_proj", "attention.attention.value"): tensor.half()
        for name, tensor in tower.state_dict().items()
    }
    current = to_current_names(tower, published)
    assert current.keys() == tower.state_dict().keys()
    assert {tensor.data_ptr() for tensor in current.values()} <= {tensor.data_ptr() for tensor in published.values()}
    assert all(torch.equal(current[name], tensor.half()) for name, tensor in tower.state_dict().items())


_GROWTH = """
import resource, sys
from pathlib import Path
from cleft.models.checkpoint import load_model
from cleft.models.importing.importing import import_checkpoint

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

what, small, large, out = sys.argv[1:]
if what == "import":
    run = lambda path, name: import_checkpoint(path, Path(out) / name, size=56)
else:
    run = lambda path, name: load_model(Path(out) / name).encode_text(["3 5 9"])
run(small, "small")  # so that all that is imported on the way is in the baseline
before = peak()
run(large, "large")
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_memory_grows_by_the_size_of_the_file(tmp_path, monkeypatch, dtype):
    """Peak resident memory of a process including file pages, minus that of the same code with a tiny model."""
    write_official(tmp_path / "small.ckpt")
    monkeypatch.setattr(official, "WIDTH", 752)
    monkeypatch.setattr(official, "BLOCKS", 8)
    state = official.official_state(tokens=20_000, vision_width=384)
    path = write_official(tmp_path / "large.ckpt", {name: tensor.to(dtype) for name, tensor in state.items()})
    del state
    size = path.stat().st_size
    growth = {}
    for what in ("import", "load"):
        words = [sys.executable, "-c", _GROWTH, what, str(tmp_path / "small.ckpt"), str(path), str(tmp_path)]
        growth[what] = int(subprocess.run(words, check=True, capture_output=True, text=True).stdout) / size
    saved = sum(file.stat().st_size for file in (tmp_path / "large").rglob("*") if file.is_file())
    assert size > 150e6
    assert saved < 1.01 * size
    assert growth["import"] < 1.5, growth
    assert growth["load"] < 1.2, growth


SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def slow_row(output):
    """Attention of the first token in the last block, from the eager kernel."""
    return output.attentions[-1].mean(dim=1)[:, 0]


@pytest.mark.parametrize(
    "model",
    [
        lambda: ViTModel(ViTConfig(**SMALL, image_size=28, patch_size=14, attn_implementation="eager")),
        lambda: Dinov2WithRegistersModel(
            Dinov2WithRegistersConfig(**SMALL, image_size=28, patch_size=14, attn_implementation="eager")
        ),
    ],
)
def test_captured_attention_is_that_of_the_class_token_in_the_last_block(model):
    torch.manual_seed(0)
    vision = model().eval()
    with capture_attention(vision, "image") as watched:
        output = vision(pixel_values=torch.randn(3, 3, 28, 28), output_attentions=True)
    torch.testing.assert_close(watched.first_row(), slow_row(output))


def test_padding_gets_no_attention():
    torch.manual_seed(0)
    bert = BertModel(BertConfig(**SMALL, vocab_size=20, attn_implementation="eager")).eval()
    visible = torch.tensor([[True] * 5, [True, True, True, False, False]])
    with capture_attention(bert, "text") as watched:
        output = bert(input_ids=torch.randint(0, 20, (2, 5)), attention_mask=visible.long(), output_attentions=True)
    row = watched.first_row(visible)
    torch.testing.assert_close(row, slow_row(output))
    assert row[1, 3:].tolist() == [0, 0]
    assert not row.requires_grad


def test_a_model_without_attention_is_refused():
    with (
        pytest.raises(ConfigError, match="image: a Linear has no attention"),
        capture_attention(nn.Linear(1, 1), "image"),
    ):
        pass


FAMILIES = {
    **{name: {key: value for key, value in options.items() if key != "model_type"} for name, options in IMAGE.items()},
    "convnext": {},
    "clip_vision_model": {},
    "efficientnet": {},
    "pvt": {},
}
BLOCKS = {
    "dinov2": 2,
    "vit": 1,
    "swin": 2,
    "resnet": 2,
    "convnext": 4,
    "clip_vision_model": 12,
    "efficientnet": 55,
    "pvt": 4,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_of_every_family_has_a_depth(family):
    kind = IMAGE[family]["model_type"] if family in IMAGE else family
    model = meta_model(AutoConfig.for_model(kind, **FAMILIES[family]))
    heights, top = layer_depths(model)
    assert heights.keys() == {name for name, _ in model.named_parameters()}
    assert top == BLOCKS[family] + 1
    assert min(heights.values()) == 0
    assert set(heights.values()) >= set(range(1, top))
    embeddings = [name for name in heights if name.startswith(("embeddings.", "embedder."))]
    assert {heights[name] for name in embeddings} <= {0}
    assert all(heights[name] == top for name in heights if name.startswith(("layernorm.", "post_layernorm.")))


def test_a_model_without_blocks_has_one_depth():
    assert layer_depths(nn.Linear(2, 2)) == ({"weight": 0, "bias": 0}, 0)


def test_lists_inside_a_block_are_part_of_it():
    inner = nn.ModuleDict({"layers": nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 9), nn.Linear(9, 9))})
    model = nn.ModuleDict({"small": nn.Sequential(nn.Linear(1, 1)), "stages": nn.ModuleList([inner, nn.Linear(9, 9)])})
    heights, top = layer_depths(model)
    assert top == 3
    assert heights["small.0.weight"] == 0
    assert heights["stages.0.layers.2.weight"] == 1
    assert heights["stages.1.weight"] == 2


def test_positions_encode_column_then_row():
    table = sine_positions(8, (2, 3))
    assert table.shape == (6, 8)
    slow = 10_000**-0.5
    column, row = 2, 1
    expected = [math.sin(column), math.sin(column * slow), math.cos(column), math.cos(column * slow)]
    expected += [math.sin(row), math.sin(row * slow), math.cos(row), math.cos(row * slow)]
    torch.testing.assert_close(table[1 * 3 + 2], torch.tensor(expected))


def test_released_frequencies_end_at_about_a_tenth():
    rates = [torch.asin(sine_positions(768, (1, 2), kind)[1, :192])[-1].item() for kind in ("standard", "released")]
    assert rates == pytest.approx([1e-4, 0.1], rel=0.05)


def test_a_width_not_divisible_by_four_is_refused():
    with pytest.raises(ValueError, match="use a multiple of 4"):
        sine_positions(6, (2, 2))


def test_a_decoder_block_is_a_pre_norm_transformer_block():
    torch.manual_seed(0)
    decoder = PatchDecoder(12, 256, (1, 3), 1)
    first, patches = torch.randn(2, 1, 256), torch.randn(2, 3, 256)
    (block,) = decoder.blocks
    assert block.self_attn.num_heads == 2
    tokens = torch.cat([first, patches + sine_positions(256, (1, 3))], dim=1)
    seen = nn.functional.layer_norm(tokens, (256,), block.norm1.weight, block.norm1.bias, 1e-6)
    query, key, value = (
        part.view(2, 4, 2, 128).transpose(1, 2)
        for part in (seen @ block.self_attn.in_proj_weight.T + block.self_attn.in_proj_bias).chunk(3, dim=-1)
    )
    shares = (query @ key.transpose(2, 3) / math.sqrt(128)).softmax(dim=-1)
    tokens = tokens + block.self_attn.out_proj((shares @ value).transpose(1, 2).flatten(2))
    seen = nn.functional.layer_norm(tokens, (256,), block.norm2.weight, block.norm2.bias, 1e-6)
    tokens = tokens + block.linear2(nn.functional.gelu(block.linear1(seen)))
    torch.testing.assert_close(decoder(first, patches), decoder.norm(tokens)[:, 1:], atol=1e-5, rtol=1e-5)
