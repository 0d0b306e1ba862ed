import copy
import os
import time

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, CLIPConfig, CLIPModel, ViTMAEConfig, ViTMAEForPreTraining

from cleft.config import ImagesConfig, ImageTowerConfig
from cleft.errors import CheckpointError, ConfigError
from cleft.models.image_tower import build_image_tower

DINOV2 = {
    "model_type": "dinov2_with_registers",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 70,
    "patch_size": 14,
    "num_register_tokens": 4,
}
VIT = {
    "model_type": "vit",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 16,
}
SWIN = {
    "model_type": "swin",
    "embed_dim": 16,
    "depths": [1, 1],
    "num_heads": [2, 2],
    "image_size": 56,
    "patch_size": 4,
    "window_size": 7,
}
RESNET = {
    "model_type": "resnet",
    "num_channels": 1,
    "embedding_size": 8,
    "hidden_sizes": [8, 16],
    "depths": [1, 1],
    "layer_type": "basic",
}


def build(scratch, *, size=56, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), regions=False, **options):
    torch.manual_seed(0)
    config = ImageTowerConfig(model=None, scratch=scratch, **options)
    return build_image_tower(config, ImagesConfig(size=size, mean=mean, std=std), regions=regions).eval()


def save(scratch, folder):
    """A model folder as published."""
    options = {name: value for name, value in scratch.items() if name != "model_type"}
    torch.manual_seed(1)
    AutoModel.from_config(AutoConfig.for_model(scratch["model_type"], **options)).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def images():
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 1, 56, 56), np.uint8))


def by_hand(tower, images):
    """Applies the blocks of DINOv2 in turn; returns all tokens before and after the final norm."""
    states = tower.model.embeddings(tower.normalise(images))
    for block in tower.model.encoder.layer:
        states = block(states)
    return states, tower.model.layernorm(states)


def test_the_papers_feature_is_the_mean_of_all_tokens_before_the_last_norm(images):
    tower = build(DINOV2)
    before, _ = by_hand(tower, images)
    assert before.shape == (2, 1 + 4 + 16, 32)
    torch.testing.assert_close(tower.encode(images), before.mean(dim=1))


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ("mean", lambda after: after.mean(dim=1)),
        ("patches", lambda after: after[:, 5:].mean(dim=1)),
        ("cls", lambda after: after[:, 0]),
        ("pooler", lambda after: after[:, 0]),
    ],
)
def test_other_poolings_are_after_the_last_norm(images, pooling, expected):
    tower = build(DINOV2, pooling=pooling)
    torch.testing.assert_close(tower.encode(images), expected(by_hand(tower, images)[1]))


@pytest.mark.parametrize("pooling", ["mean-before-norm", "mean", "patches", "pooler"])
def test_every_mean_of_a_resnet_is_the_mean_over_its_grid(images, pooling):
    tower = build(RESNET, pooling=pooling)
    grid = tower.model(tower.normalise(images)).last_hidden_state
    assert grid.shape == (2, 16, 7, 7)
    torch.testing.assert_close(tower.encode(images), grid.mean(dim=(2, 3)))


def test_the_states_of_clip_are_before_the_final_norm(images):
    clip = {**VIT, "model_type": "clip_vision_model"}
    tower = build(clip, size=64, pooling="mean-before-norm")
    images = torch.nn.functional.pad(images, (4, 4, 4, 4))
    output = tower.model(tower.normalise(images), interpolate_pos_encoding=True, output_hidden_states=True)
    torch.testing.assert_close(tower.encode(images), output.hidden_states[-1].mean(dim=1))


@pytest.mark.parametrize(("scratch", "pooling"), [(SWIN, "cls"), (RESNET, "cls")])
def test_a_pooling_the_model_does_not_have_is_refused_while_building(scratch, pooling):
    with pytest.raises(ConfigError, match=r"image.pooling=cls: a (swin|resnet) does not support it"):
        build(scratch, pooling=pooling)


def test_positions_are_interpolated_to_the_image_size():
    features = {
        size: build(VIT, size=size).encode(torch.zeros(1, 1, size, size, dtype=torch.uint8)) for size in (32, 64)
    }
    assert features[64].shape == features[32].shape == (1, 32)


def test_a_swin_takes_another_size_than_it_was_made_for():
    assert build(SWIN, size=112).encode(torch.zeros(1, 1, 112, 112, dtype=torch.uint8)).shape == (1, 32)


def test_a_size_between_patches_is_refused_with_its_neighbours():
    with pytest.raises(ConfigError, match=r"images.size=225 is not a multiple of the patch size 14 .* 224 and 238"):
        build(DINOV2, size=225)


def test_gray_levels_are_scaled_normalised_and_repeated():
    tower = build(DINOV2, mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 2.0))
    white = tower.normalise(torch.full((1, 1, 56, 56), 255, dtype=torch.uint8))
    assert white.shape == (1, 3, 56, 56)
    assert white[0, :, 0, 0].tolist() == [1.0, 1.0, 0.0]


def test_a_model_of_one_channel_gets_the_average_normalisation():
    tower = build(RESNET, mean=(0.2, 0.3, 0.4), std=(0.7, 0.7, 0.7))
    white = tower.normalise(torch.full((1, 1, 56, 56), 255, dtype=torch.uint8))
    assert white.shape == (1, 1, 56, 56)
    torch.testing.assert_close(white, torch.ones(1, 1, 56, 56))


@pytest.mark.parametrize("wrong", [torch.zeros(1, 1, 70, 70, dtype=torch.uint8), torch.zeros(1, 1, 56, 56)])
def test_images_of_another_size_or_type_are_refused(wrong):
    with pytest.raises(ValueError, match="the tower takes"):
        build(DINOV2).encode(wrong)


def test_unused_weights_are_frozen(images):
    tower = build(DINOV2)
    still = [name for name, weight in tower.model.named_parameters() if not weight.requires_grad]
    assert still == ["embeddings.mask_token", "layernorm.weight", "layernorm.bias"]
    tower.encode(images).sum().backward()
    assert all(weight.grad is not None for weight in tower.parameters() if weight.requires_grad)


def test_a_frozen_tower_keeps_its_weights_and_its_batch_norms(images):
    tower = build(RESNET, train=False)
    before = copy.deepcopy(tower.state_dict())
    tower.train()
    tower.encode(images)
    assert not any(weight.requires_grad for weight in tower.parameters())
    assert all(torch.equal(before[name], value) for name, value in tower.state_dict().items())


def test_a_trainable_tower_updates_its_batch_norms(images):
    tower = build(RESNET).train()
    tower.encode(images)
    norms = [module for module in tower.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(norm.num_batches_tracked == 1 for norm in norms)


def test_gradient_checkpointing_changes_no_gradient(images):
    gradients = []
    for switched_on in (False, True):
        tower = build(DINOV2, gradient_checkpointing=switched_on).train()
        tower.encode(images)[:, 0].sum().backward()
        gradients.append(tower.model.embeddings.patch_embeddings.projection.weight.grad)
    torch.testing.assert_close(*gradients)


def test_a_model_without_gradient_checkpointing_says_so():
    with pytest.raises(ConfigError, match=r"image.gradient_checkpointing: a resnet does not support it"):
        build(RESNET, gradient_checkpointing=True)


@pytest.mark.parametrize("scratch", [DINOV2, VIT, SWIN, {**RESNET, "num_channels": 3}])
def test_a_folder_gives_its_weights(tmp_path, images, scratch):
    folder = save(scratch, tmp_path)
    tower = build_image_tower(
        ImageTowerConfig(model=folder, pooling="mean"), ImagesConfig(size=64 if scratch is VIT else 56)
    )
    reference = AutoModel.from_pretrained(folder)
    for name, value in reference.state_dict().items():
        assert torch.equal(tower.model.state_dict()[name], value)


def test_a_clip_folder_gives_its_vision_tower(tmp_path):
    vision = {name: value for name, value in VIT.items() if name != "model_type"}
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    both = CLIPModel(CLIPConfig(vision_config=vision, text_config={**text, "vocab_size": 50}))
    both.save_pretrained(tmp_path)
    tower = build_image_tower(ImageTowerConfig(model=str(tmp_path), pooling="pooler"), ImagesConfig(size=32))
    assert torch.equal(tower.model.post_layernorm.weight, both.vision_model.post_layernorm.weight)


def test_random_weights_take_only_the_configuration(tmp_path):
    folder = save(DINOV2, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    tower = build_image_tower(ImageTowerConfig(model=folder, random_weights=True), ImagesConfig(size=56))
    assert tower.width == 32


def test_a_folder_without_the_weights_a_pooling_needs_is_refused(tmp_path):
    options = {name: value for name, value in VIT.items() if name != "model_type"}
    AutoModel.from_config(AutoConfig.for_model("vit", **options), add_pooling_layer=False).save_pretrained(tmp_path)
    assert build_image_tower(ImageTowerConfig(model=str(tmp_path), pooling="cls"), ImagesConfig(size=32)).width == 32
    with pytest.raises(CheckpointError, match=r"lacks 2 of the weights .*pooler.dense.bias"):
        build_image_tower(ImageTowerConfig(model=str(tmp_path), pooling="pooler"), ImagesConfig(size=32))


def test_an_absent_model_names_the_folder_option():
    with pytest.raises(ConfigError, match=r"give a folder with its config.json and weights: image.model=<folder>"):
        build_image_tower(ImageTowerConfig(model="nobody/no-such-model"), ImagesConfig())


@pytest.mark.parametrize(
    ("scratch", "sentence"),
    [
        ({"model_type": "resnt"}, "has no model_type 'resnt'; did you mean 'resnet'"),
        ({"model_type": "vit", "hiden_size": 8}, "has no option 'hiden_size'; did you mean 'hidden_size'"),
        ({"model_type": "vit", "hidden_size": "8"}, "expected int, got str"),
        ({**VIT, "num_channels": 4}, "takes 4 channels; gray images fit 1 or 3"),
        ({"model_type": "gpt2", "n_embd": 8, "n_head": 1, "n_layer": 1}, "is it a vision model"),
        ({**VIT, "model_type": "vit_mae"}, "masks a random part of each image"),
    ],
)
def test_an_invalid_tower_description_is_refused(scratch, sentence):
    with pytest.raises(ConfigError, match=sentence):
        build(scratch, size=64)


def test_code_named_in_a_folder_is_never_run(tmp_path):
    folder = save(VIT, tmp_path)
    payload = tmp_path / "modeling.py"
    payload.write_text(f"open({str(tmp_path / 'was-here')!r}, 'w')")
    text = (tmp_path / "config.json").read_text()
    named = '{"auto_map": {"AutoConfig": "modeling.C", "AutoModel": "modeling.M"}, "_attn_implementation": "a/b",'
    (tmp_path / "config.json").write_text(text.replace("{", named, 1))
    build_image_tower(ImageTowerConfig(model=folder), ImagesConfig(size=32))
    (tmp_path / "config.json").write_text(text.replace("{", named, 1).replace('"vit"', '"own"'))
    with pytest.raises(ConfigError, match="needs its own code"):
        build_image_tower(ImageTowerConfig(model=folder), ImagesConfig(size=32))
    assert not (tmp_path / "was-here").exists()


class Payload:
    """Creates a folder if it is unpickled by a reader that runs code."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (os.mkdir, (str(self.target),))


def test_pickled_weights_that_name_code_are_not_opened(tmp_path):
    folder = save(VIT, tmp_path / "model")
    (tmp_path / "model/model.safetensors").unlink()
    torch.save({"payload": Payload(tmp_path / "was-here")}, tmp_path / "model/pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"can run code; use safetensors"):
        build_image_tower(ImageTowerConfig(model=folder), ImagesConfig(size=32))
    assert not (tmp_path / "was-here").exists()


def test_damaged_weights_name_the_setting(tmp_path):
    folder = save(VIT, tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(CheckpointError, match=r"image.model=.* its weights cannot be read .* copy them again"):
        build_image_tower(ImageTowerConfig(model=folder), ImagesConfig(size=32))


@pytest.mark.benchmark
def test_a_hub_that_does_not_respond_is_given_up_within_seconds(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    before = time.monotonic()
    with pytest.raises(ConfigError, match=r"nor can it be downloaded"):
        build_image_tower(ImageTowerConfig(model="nobody/no-such-model"), ImagesConfig())
    assert time.monotonic() - before < 5  # the library alone retries for 23 seconds


def test_decoder_blocks_are_applied_before_the_mean(images):
    tower, images = build(VIT, size=48, decoder_blocks=2, pooling="cls"), images[..., :48, :48]
    states = tower.model(tower.normalise(images), interpolate_pos_encoding=True).last_hidden_state
    tokens = tower.decoder.embed(states)
    assert len(tower.decoder.blocks) == 2
    torch.testing.assert_close(tower.encode(images), tower.decoder(tokens[:, :1], tokens[:, 1:]).mean(dim=1))
    tower.encode(images).sum().backward()
    assert all(weight.grad is not None for weight in tower.parameters() if weight.requires_grad)


@pytest.mark.parametrize("scratch", [RESNET, SWIN])
def test_a_model_without_patch_tokens_has_no_decoder(scratch):
    with pytest.raises(ConfigError, match=r"image.decoder_blocks=2: a \w+ has no token for each patch"):
        build(scratch, decoder_blocks=2, pooling="mean")


def test_images_are_upsampled_in_the_tower(images):
    tower = build(RESNET, resize=80, pooling="mean")
    assert tower.spec.size == (56, 56)
    large = torch.nn.functional.interpolate(
        build(RESNET, pooling="mean").normalise(images), (80, 80), mode="bilinear", align_corners=True
    )
    torch.testing.assert_close(tower.encode(images), tower(large))
    assert tower.encode_regions(images).regions.shape == (2, 20 * 20, 8)


def test_the_regions_of_a_resnet_are_the_grid_of_its_last_stage_but_one(images):
    tower = build(RESNET, pooling="mean", regions=True)
    grids = tower.model(tower.normalise(images), output_hidden_states=True).hidden_states
    read = tower.encode_regions(images)
    assert (tower.region_width, grids[-2].shape[2]) == (8, 14)
    torch.testing.assert_close(read.regions, grids[-2].flatten(2).transpose(1, 2))
    torch.testing.assert_close(read.features, tower.encode(images))
    assert read.attention.eq(1 / 196).all()


def test_the_regions_of_a_vit_are_patches_weighted_by_class_attention(images):
    tower = build(DINOV2, pooling="cls", regions=True)
    before, after = by_hand(tower, images)
    read = tower.encode_regions(images)
    torch.testing.assert_close(read.regions, after[:, 5:])
    assert read.attention.shape == (2, 16)
    torch.testing.assert_close(read.attention.sum(dim=1), torch.ones(2))
    assert tower.region_width == tower.width == before.shape[2]


def test_weights_behind_regions_are_trainable_if_regions_are_used():
    still = [
        [
            name
            for name, weight in build(DINOV2, pooling="mean-before-norm", regions=regions).named_parameters()
            if not weight.requires_grad
        ]
        for regions in (False, True)
    ]
    assert still == [
        ["model.embeddings.mask_token", "model.layernorm.weight", "model.layernorm.bias"],
        ["model.embeddings.mask_token"],
    ]


def test_a_masked_autoencoder_without_masking_is_a_vit(tmp_path, images):
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(1)
    made = ViTMAEForPreTraining(ViTMAEConfig(**shape, image_size=56, patch_size=14, decoder_hidden_size=16))
    made.save_pretrained(tmp_path)
    tower = build_image_tower(ImageTowerConfig(model=str(tmp_path), pooling="cls"), ImagesConfig(size=56)).eval()
    assert tower.model.config.model_type == "vit"
    whole = made.vit.eval()
    whole.config.mask_ratio = whole.embeddings.config.mask_ratio = 0.0
    torch.testing.assert_close(tower.encode(images), whole(tower.normalise(images)).last_hidden_state[:, 0])


def test_images_can_be_downsampled_in_the_tower(images):
    tower = build(RESNET, resize=28, pooling="mean")
    small = torch.nn.functional.interpolate(tower.normalise(images), (28, 28), mode="bicubic", antialias=True)
    torch.testing.assert_close(tower.encode(images), tower(small))
