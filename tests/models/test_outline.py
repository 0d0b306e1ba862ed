from pathlib import Path

import pytest
import torch
from tests.fakes.models import fake_settings
from transformers import BertConfig, BertModel, ViTConfig, ViTModel

from cleft.config import ImageTowerConfig, Settings, TextTowerConfig, load_settings, preset_names
from cleft.config.loading import PRESETS
from cleft.errors import ConfigError
from cleft.models.methods import build_model
from cleft.models.parameter_count import count_weights, outline_model

ROOT = Path(__file__).parents[2]


def moving(settings, **options):
    return sum(count.moving for count in count_weights(outline_model(settings, **options)).values())


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_is_counted_without_a_download(preset):
    model = outline_model(load_settings(preset, []))
    assert all(weight.is_meta for weight in model.parameters())
    assert sum(map(sum, count_weights(model).values())) == sum(weight.numel() for weight in model.parameters())


def test_the_papers_shares_follow_from_the_shapes():
    counts = count_weights(outline_model(load_settings("cleft-paper", [])))
    lora = counts["adapters"].moving
    ours = sum(count.moving for count in counts.values())
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


def test_rows_of_the_embedding_that_move_are_those_of_the_tokens_given():
    settings = load_settings("cleft-paper", [])
    assert moving(settings, tokens=300) - moving(settings) == 300 * 2560


def test_an_outline_has_the_weights_of_the_model_it_outlines():
    settings = fake_settings()
    built = build_model(settings, ["this is a chest x ray", "with edema"])
    tower = built.text_tower
    counts = count_weights(outline_model(settings, tokens=len(tower.trained_tokens)))
    expected = count_weights(built)
    assert {part: counts[part] for part in ("image tower", "adapters", "embedding rows", "projections")} == {
        part: expected[part] for part in ("image tower", "adapters", "embedding rows", "projections")
    }


def test_a_model_nobody_knows_is_a_sentence():
    settings = Settings(image=ImageTowerConfig(model="./nowhere"), text=TextTowerConfig())
    with pytest.raises(ConfigError, match=r"no folder with a config\.json"):
        outline_model(settings)


def test_more_tokens_than_the_vocabulary_are_refused():
    with pytest.raises(ConfigError, match="must lie between 0 and the 28,896"):
        outline_model(load_settings("cleft-paper", []), tokens=30_000)


def test_clips_size_is_one_number_in_its_preset_and_in_the_count():
    counted = sum(count.moving for count in count_weights(outline_model(load_settings("baseline-clip", []))).values())
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
