"""Dual encoder: embeddings, projections, temperature, and the initial prompt context."""

import functools
import math
from dataclasses import replace

import pytest
import torch
from tests.fakes.models import fake_model, fake_settings
from tests.fakes.texts import OPENING, tower

from cleft.config import ContextConfig, ImagesConfig, ImageTowerConfig, LossConfig, Settings, TextTowerConfig
from cleft.errors import CheckpointError, ConfigError
from cleft.models.checkpoint import load_model, save_model
from cleft.models.dual_encoder import initial_context, l2_normalise
from cleft.models.methods import build_model

CAPTIONS = ["a chest x ray of a patient with edema", "a chest x ray of a patient with fracture"]
SETTINGS = Settings(
    images=ImagesConfig(size=32, stored_size=32),
    image=ImageTowerConfig(
        model=None,
        pooling="mean",
        scratch={
            "model_type": "resnet",
            "num_channels": 1,
            "embedding_size": 8,
            "hidden_sizes": [8, 16],
            "depths": [1, 1],
            "layer_type": "basic",
        },
    ),
    text=TextTowerConfig(
        model=None,
        rank=2,
        scratch={"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 24, "n_positions": 96},
    ),
    loss=LossConfig(embed_dim=12, temperature=0.1, max_logit_scale=20.0),
)


@pytest.fixture
def model():
    return build_model(SETTINGS, CAPTIONS).eval()


def test_both_towers_give_l2_normalised_joint_embeddings(model):
    images = torch.arange(2 * 32 * 32).remainder(256).to(torch.uint8).view(2, 1, 32, 32)
    image_embeds, text_embeds = model.encode_image(images), model.encode_text(CAPTIONS)
    assert image_embeds.shape == text_embeds.shape == (2, 12)
    torch.testing.assert_close(image_embeds.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(text_embeds.norm(dim=1), torch.ones(2))


def test_features_are_the_input_of_the_projection(model):
    images = torch.arange(2 * 32 * 32).remainder(256).to(torch.uint8).view(2, 1, 32, 32)
    features = model.encode_image_features(images)
    assert features.shape == (2, 16)
    torch.testing.assert_close(
        torch.nn.functional.normalize(model.image_projection(features)), model.encode_image(images)
    )


def test_projections_have_the_widths_of_the_towers(model):
    assert (model.image_projection.in_features, model.text_projection.in_features) == (16, 24)
    assert model.image_projection.bias is not None


def with_loss(**options):
    return replace(SETTINGS, loss=LossConfig(**{"embed_dim": 12, **options}))


@pytest.mark.parametrize(
    ("projection", "shapes"),
    [
        ("linear", {"weight": (12, 16), "bias": (12,)}),
        ("linear-no-bias", {"weight": (12, 16)}),
        ("mlp", {"0.weight": (16, 16), "0.bias": (16,), "2.weight": (12, 16), "2.bias": (12,)}),
        ("mlp-gelu", {"0.weight": (16, 16), "2.weight": (12, 16)}),
    ],
)
def test_projections_without_statistics(projection, shapes):
    model = build_model(with_loss(projection=projection), CAPTIONS).eval()
    assert {name: tuple(weight.shape) for name, weight in model.image_projection.named_parameters()} == shapes
    features = model.text_tower(CAPTIONS)
    torch.testing.assert_close(model.encode_text(CAPTIONS), l2_normalise(model.text_projection(features)))


def test_texts_may_have_another_projection_than_images():
    settings = with_loss(projection="linear-no-bias", text_projection="mlp-gelu", hidden_dim=20)
    model = build_model(settings, CAPTIONS).eval()
    assert [name for name, _ in model.image_projection.named_parameters()] == ["weight"]
    first, last = (model.text_projection.get_parameter(f"{layer}.weight") for layer in (0, 2))
    assert (tuple(first.shape), tuple(last.shape)) == ((20, 24), (12, 20))
    hidden = torch.nn.functional.gelu(model.text_tower(CAPTIONS) @ first.T)
    torch.testing.assert_close(model.encode_text(CAPTIONS), l2_normalise(hidden @ last.T))
    with pytest.raises(ConfigError, match=r"text_projection=mlp-gelu projects them out of it; leave one of them out"):
        with_loss(projection="to-text", text_projection="mlp-gelu")


def test_a_projection_with_norms_has_the_names_of_mgcas_heads_and_leaves_zero_mean():
    model = build_model(with_loss(projection="mlp-norm", hidden_dim=20), CAPTIONS)
    shapes = {name: tuple(weight.shape) for name, weight in model.text_projection.state_dict().items()}
    assert {name: shapes[name] for name in shapes if "tracked" not in name} == {
        "0.weight": (20, 24),
        "0.bias": (20,),
        **dict.fromkeys(["1.weight", "1.bias", "1.running_mean", "1.running_var"], (20,)),
        "3.weight": (12, 20),
        "3.bias": (12,),
        **dict.fromkeys(["4.running_mean", "4.running_var"], (12,)),
    }
    projected = model.train().text_projection(model.text_tower([*CAPTIONS, "a rib"]))
    torch.testing.assert_close(projected.mean(dim=0), torch.zeros(12), atol=1e-5, rtol=0)


def test_images_can_be_projected_into_the_text_space():
    model = build_model(with_loss(projection="to-text", embed_dim=24), CAPTIONS).eval()
    assert tuple(model.image_projection.weight.shape) == (24, 16)
    torch.testing.assert_close(model.encode_text(CAPTIONS), l2_normalise(model.text_tower(CAPTIONS)))
    with pytest.raises(ConfigError, match=r"which has 24 dimensions; set loss\.embed_dim=24, not 12"):
        build_model(with_loss(projection="to-text"), CAPTIONS)


def test_a_temperature_can_be_fixed():
    model = build_model(with_loss(temperature=0.1, train_temperature=False), CAPTIONS)
    assert not model.logit_scale.requires_grad
    assert model.logit_scale.exp().item() == pytest.approx(10)


def test_the_temperature_starts_at_its_setting_and_is_trainable(model):
    assert model.logit_scale.item() == pytest.approx(math.log(10))
    assert model.logit_scale.requires_grad


@pytest.mark.parametrize(("start", "kept"), [(5.0, math.log(20)), (-1.0, 0.0), (2.0, 2.0)])
def test_the_inverse_temperature_is_clamped(model, start, kept):
    model.logit_scale.data.fill_(start)
    model.clamp_logit_scale_()
    assert model.logit_scale.item() == pytest.approx(kept)


def test_embeddings_stay_float32_in_a_half_precision_tower(model):
    images = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    with torch.autocast("cpu", torch.bfloat16):
        assert model.image_projection(model.image_tower.encode(images)).dtype == torch.bfloat16
        assert model.encode_image(images).dtype == torch.float32


def test_equal_seeds_build_equal_models_without_changing_the_global_generator():
    before = torch.get_rng_state()
    first, same, other = (build_model(SETTINGS, CAPTIONS, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), same.parameters(), strict=True))
    assert not torch.equal(first.image_projection.weight, other.image_projection.weight)


def test_class_names_after_the_prompt_equal_the_complete_sentence(model):
    opening = "a chest x ray of a patient with"
    model.set_context(model.text_tower.embed_prompt(opening))
    behind = model.encode_class_names(["edema", "fracture"])
    torch.testing.assert_close(behind, model.encode_text(CAPTIONS), atol=1e-6, rtol=0)


def test_without_a_context_class_names_are_refused(model):
    with pytest.raises(CheckpointError, match="run `cleft learn-context` on it first"):
        model.encode_class_names(["edema"])


def test_a_context_is_a_copied_parameter_and_can_be_removed(model):
    start = torch.ones(3, 24)
    model.set_context(start)
    model.context.data.zero_()
    assert start.eq(1).all()
    assert "context" in dict(model.named_parameters())
    model.set_context(None)
    assert "context" not in dict(model.named_parameters())


def test_a_context_of_another_width_is_refused(model):
    with pytest.raises(ValueError, match=r"the text tower expects \[L, 24\]"):
        model.set_context(torch.ones(3, 16))


def test_the_bias_of_the_sigmoid_loss_is_saved_and_changes_no_prediction(tmp_path):
    plain = fake_settings()
    settings = replace(plain, loss=replace(plain.loss, name="sigmoid", bias=-3.0))
    model = fake_model(settings)
    assert model.logit_bias is not None
    assert fake_model(plain).logit_bias is None
    save_model(model, settings, tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert again.logit_bias is not None
    assert again.logit_bias.item() == model.logit_bias.item() != -3.0
    torch.testing.assert_close(again.encode_text(["edema"]), model.encode_text(["edema"]))


fixed_tower = functools.cache(tower)


def test_the_prompt_comes_last_after_random_vectors():
    written = fixed_tower().embed_prompt(OPENING)
    context = initial_context(fixed_tower(), OPENING, ContextConfig(length=len(written) + 5), seed=0)
    assert context.shape == (len(written) + 5, 16)
    assert torch.equal(context[5:], written)
    assert context[:5].abs().max() <= written.std() * 3**0.5
    assert context[:5].std() > written.std() / 2


def test_the_last_tokens_of_a_longer_prompt_are_kept():
    written = fixed_tower().embed_prompt(OPENING)
    context = initial_context(fixed_tower(), OPENING, ContextConfig(length=3), seed=0)
    assert torch.equal(context, written[-3:])


def test_a_random_context_contains_no_token_of_the_prompt():
    context = initial_context(fixed_tower(), OPENING, ContextConfig(length=12, init="random"), seed=0)
    assert torch.cdist(context, fixed_tower().embed_prompt(OPENING)).min() > 0.1


def test_the_seed_decides_the_random_context():
    config = ContextConfig(length=30)
    torch.manual_seed(1)
    first = initial_context(fixed_tower(), OPENING, config, seed=3)
    torch.manual_seed(2)
    assert torch.equal(first, initial_context(fixed_tower(), OPENING, config, seed=3))
    assert not torch.equal(first, initial_context(fixed_tower(), OPENING, config, seed=4))


def test_a_prompt_as_context_equals_the_complete_sentence():
    context = fixed_tower().embed_prompt(OPENING)
    behind = fixed_tower().encode_after_context(["edema", "pleural effusion"], context)
    whole = fixed_tower().encode([f"{OPENING} edema", f"{OPENING} pleural effusion"])
    torch.testing.assert_close(behind, whole, atol=1e-5, rtol=1e-5)
