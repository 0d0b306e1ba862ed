from pathlib import Path

import pytest
import torch
from tests.fakes.models import fake_model, fake_settings
from transformers import (
    BertConfig,
    BertModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    GPT2Config,
    GPT2Model,
    ViTConfig,
    ViTModel,
)

from cleft.config import ImageTowerConfig, LossConfig, Settings, TextTowerConfig, load_settings, preset_names
from cleft.config.loading import PRESETS
from cleft.errors import ConfigError
from cleft.models.adapters import adapt
from cleft.models.dual_encoder import DualEncoder
from cleft.models.image_tower import ImageTower
from cleft.models.language_model import LanguageModel
from cleft.models.methods import build_model
from cleft.models.parameter_count import ParameterCount, build_meta_model, count_parameters
from cleft.models.text_tower import TextTower
from cleft.models.tokenizer import TokenIdTokenizer
from cleft.types import ImageSpec

ROOT = Path(__file__).parents[2]


def moving(settings, **options):
    return sum(count.trainable for count in count_parameters(build_meta_model(settings, **options)).values())


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_is_counted_without_a_download(preset):
    model = build_meta_model(load_settings(preset, []))
    assert all(weight.is_meta for weight in model.parameters())
    assert sum(map(sum, count_parameters(model).values())) == sum(weight.numel() for weight in model.parameters())


def test_the_papers_shares_follow_from_the_shapes():
    counts = count_parameters(build_meta_model(load_settings("cleft-paper", [])))
    lora = counts["adapters"].trainable
    ours = sum(count.trainable for count in counts.values())
    with torch.device("meta"):  # the CLIP-ViT of Figure 1: a plain ViT-B/16 beside six blocks of a clinical BERT
        vision = ViTModel(ViTConfig(), add_pooling_layer=False)
        bert = BertModel(BertConfig(vocab_size=28_996, num_hidden_layers=6), add_pooling_layer=False)
    # The authors' BERT has no token types.
    language = sum(weight.numel() for name, weight in bert.named_parameters() if "token_type" not in name)
    clip = sum(weight.numel() for weight in vision.parameters()) + language
    assert round(lora / 1e6, 1) == 2.6
    assert round(clip / 1e6, 2) == pytest.approx(150.99, abs=0.01)
    assert round(100 * lora / language) == 4  # "4 % of the language model's weights"
    assert 100 * (1 - ours / clip) == pytest.approx(39.8, abs=0.1)  # "39 % fewer"


def test_trainable_embedding_rows_are_those_of_the_given_tokens():
    settings = load_settings("cleft-paper", [])
    assert moving(settings, tokens=300) - moving(settings) == 300 * 2560


def test_a_meta_model_has_the_weights_of_the_real_model():
    settings = fake_settings()
    built = build_model(settings, ["this is a chest x ray", "with edema"])
    tower = built.text_tower
    counts = count_parameters(build_meta_model(settings, tokens=len(tower.trained_tokens)))
    expected = count_parameters(built)
    assert {part: counts[part] for part in ("image tower", "adapters", "embedding rows", "projections")} == {
        part: expected[part] for part in ("image tower", "adapters", "embedding rows", "projections")
    }


def test_an_unknown_model_is_reported():
    settings = Settings(image=ImageTowerConfig(model="./nowhere"), text=TextTowerConfig())
    with pytest.raises(ConfigError, match=r"not a folder with a config\.json"):
        build_meta_model(settings)


def test_more_tokens_than_the_vocabulary_are_refused():
    with pytest.raises(ConfigError, match="must be between 0 and the vocabulary size 28,896"):
        build_meta_model(load_settings("cleft-paper", []), tokens=30_000)


def test_clips_size_is_one_number_in_its_preset_and_in_the_count():
    counted = sum(
        count.trainable for count in count_parameters(build_meta_model(load_settings("baseline-clip", []))).values()
    )
    page = (PRESETS / "baseline-clip.yaml").read_text(encoding="utf-8")
    assert f"{counted / 1e6:.1f} M trainable parameters" in page
    decision = next((ROOT / "docs" / "decisions").glob("0115-*.md")).read_text(encoding="utf-8")
    assert f"`cleft sizes baseline-clip` counts {counted / 1e6:.2f} M" in decision


def test_full_tuning_of_table_3_takes_a_twentieth_of_the_batch_for_twice_as_long():
    paper, full = load_settings("cleft-paper", []), load_settings("table3-full", [])
    assert full.train.batch_size == -(-paper.train.batch_size // 20)
    assert (full.optim.steps, full.optim.warmup_steps) == (2 * paper.optim.steps, 2 * paper.optim.warmup_steps)
    assert (full.text.adapt, full.text.base_dtype) == ("full", "float32")


def test_the_preset_of_the_paper_names_where_its_precision_differs():
    assert load_settings("cleft-paper", []).text.base_dtype == "bfloat16"
    assert "--text.base_dtype float32" in (PRESETS / "cleft-paper.yaml").read_text(encoding="utf-8")


SPEC = ImageSpec(size=(224, 224), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@pytest.fixture(scope="module")
def paper():
    """DINOv2 ViT-B/14 with registers and BioMedLM with LoRA at full size, on the meta device."""
    vision = Dinov2WithRegistersConfig(hidden_size=768, patch_size=14, image_size=518, num_register_tokens=4)
    language = GPT2Config(n_layer=32, n_embd=2560, n_head=20, vocab_size=28896, bos_token_id=0, eos_token_id=0)
    text = TextTowerConfig(adapt="lora", rank=8, train_embeddings=False)
    with torch.device("meta"):
        image_tower = ImageTower(Dinov2WithRegistersModel(vision), ImageTowerConfig(), SPEC)
        lm = adapt(LanguageModel(GPT2Model(language), causal=True), text)
        tokens = TokenIdTokenizer(vocabulary=28896, max_tokens=64, eos=28895)
        return DualEncoder(image_tower, TextTower(lm, tokens, text), LossConfig())


def test_the_papers_towers_have_the_papers_weights(paper):
    counts = count_parameters(paper)
    assert sum(counts["image tower"]) == 86_583_552  # 86.58 M
    assert counts["image tower"].frozen == 768 + 2 * 768  # mask token and last norm: no feature depends on them
    assert counts["adapters"] == ParameterCount(32 * 8 * (2560 + 3 * 2560), 0)  # 2.62 M
    assert counts["projections"] == ParameterCount(512 * (768 + 2560) + 2 * 512, 0)  # 1.70 M
    assert counts["temperature"] == ParameterCount(1, 0)
    assert "context" not in counts
    assert "embedding rows" not in counts


def test_the_papers_trainable_parameters_are_90_91_million(paper):
    assert round(sum(part.trainable for part in count_parameters(paper).values()) / 1e6, 2) == 90.91


def test_the_language_model_has_its_published_size_and_is_frozen(paper):
    count = count_parameters(paper)["language model"]
    assert count.trainable == 0
    assert round(count.frozen / 1e9, 1) == 2.6  # 2.7 B with the head that shares the token embedding


@pytest.mark.parametrize("adapt", ["lora", "ia3", "prefix", "full", "frozen"])
def test_every_weight_is_counted_once(adapt):
    model = fake_model(fake_settings(adapt=adapt))
    model.set_context(torch.zeros(5, 24))
    counts = count_parameters(model)
    assert sum(map(sum, counts.values())) == sum(weight.numel() for weight in model.parameters())
    assert counts["context"] == ParameterCount(5 * 24, 0)
    assert ("adapters" in counts) == (adapt in ("lora", "ia3", "prefix"))
    assert ("embedding rows" in counts) == (adapt != "full")
    assert (counts["language model"].trainable > 0) == (adapt == "full")


def test_trainable_rows_are_counted_apart_from_their_table():
    model = fake_model(fake_settings())
    assert count_parameters(model)["embedding rows"].trainable == 24 * len(model.text_tower.trained_tokens)
