import pytest
import torch
from tests.fakes.models import fake_model, fake_settings
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel, GPT2Config, GPT2Model

from cleft.config import ImageTowerConfig, LossConfig, TextTowerConfig
from cleft.models.adapters import adapt
from cleft.models.dual_encoder import DualEncoder
from cleft.models.image_tower import ImageTower
from cleft.models.language_model import LanguageModel
from cleft.models.parameter_count import WeightCount, count_weights
from cleft.models.text_tower import TextTower
from cleft.models.tokenizer import TokenIds
from cleft.types import ImageSpec

SPEC = ImageSpec(size=(224, 224), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@pytest.fixture(scope="module")
def paper():
    """DINOv2 ViT-B/14 with registers and BioMedLM with LoRA at their true sizes, without memory."""
    vision = Dinov2WithRegistersConfig(hidden_size=768, patch_size=14, image_size=518, num_register_tokens=4)
    language = GPT2Config(n_layer=32, n_embd=2560, n_head=20, vocab_size=28896, bos_token_id=0, eos_token_id=0)
    text = TextTowerConfig(adapt="lora", rank=8, train_embeddings=False)
    with torch.device("meta"):
        image_tower = ImageTower(Dinov2WithRegistersModel(vision), ImageTowerConfig(), SPEC)
        lm = adapt(LanguageModel(GPT2Model(language), causal=True), text)
        tokens = TokenIds(vocabulary=28896, max_tokens=64, end=28895)
        return DualEncoder(image_tower, TextTower(lm, tokens, text), LossConfig())


def test_the_papers_towers_have_the_papers_weights(paper):
    counts = count_weights(paper)
    assert sum(counts["image tower"]) == 86_583_552  # 86.58 M
    assert counts["image tower"].frozen == 768 + 2 * 768  # mask token and last norm: no feature depends on them
    assert counts["adapters"] == WeightCount(32 * 8 * (2560 + 3 * 2560), 0)  # 2.62 M
    assert counts["projections"] == WeightCount(512 * (768 + 2560) + 2 * 512, 0)  # 1.70 M
    assert counts["temperature"] == WeightCount(1, 0)
    assert "context" not in counts
    assert "embedding rows" not in counts


def test_the_papers_moving_weights_are_90_91_million(paper):
    assert round(sum(part.moving for part in count_weights(paper).values()) / 1e6, 2) == 90.91


def test_the_language_model_is_as_large_as_its_makers_say_and_still(paper):
    count = count_weights(paper)["language model"]
    assert count.moving == 0
    assert round(count.frozen / 1e9, 1) == 2.6  # 2.7 B with the head that shares the token embedding


@pytest.mark.parametrize("adapt", ["lora", "ia3", "prefix", "full", "frozen"])
def test_every_weight_is_counted_once(adapt):
    model = fake_model(fake_settings(adapt=adapt))
    model.set_context(torch.zeros(5, 24))
    counts = count_weights(model)
    assert sum(map(sum, counts.values())) == sum(weight.numel() for weight in model.parameters())
    assert counts["context"] == WeightCount(5 * 24, 0)
    assert ("adapters" in counts) == (adapt in ("lora", "ia3", "prefix"))
    assert ("embedding rows" in counts) == (adapt != "full")
    assert (counts["language model"].moving > 0) == (adapt == "full")


def test_rows_that_move_are_told_from_the_table_under_them():
    model = fake_model(fake_settings())
    assert count_weights(model)["embedding rows"].moving == 24 * len(model.text_tower.trained_tokens)
