"""Saving and loading a tower, a tower with a head, and a head whose tower is in another folder."""

import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tests.fakes.models import edit_description, fake_images, fake_model, fake_settings
from torch import nn

from cleft.errors import CheckpointError
from cleft.models.checkpoint import load_model, save_model, weights_digest
from cleft.models.image_classifier import (
    HeadInfo,
    ImageClassifier,
    build_image_classifier,
    load_image_classifier,
    save_image_classifier,
)
from cleft.models.model_folder import read_head_info

FACTS = HeadInfo(classes=("Edema", "Fracture", "No Finding"), scoring="multi-class")
SETTINGS = fake_settings("vit")


@pytest.fixture
def tower(tmp_path):
    """A folder with only a tower."""
    save_image_classifier(build_image_classifier(SETTINGS), SETTINGS, tmp_path / "tower")
    return tmp_path / "tower"


def with_head(folder):
    torch.manual_seed(1)
    model = load_image_classifier(folder)
    return ImageClassifier(model.image_tower, nn.Linear(model.image_tower.width, 3), FACTS)


def same_features(one, other):
    images = fake_images(2)
    return torch.equal(one.encode_image_features(images), other.encode_image_features(images))


def test_a_tower_without_head_is_restored(tower):
    model = load_image_classifier(tower)
    assert same_features(model, build_image_classifier(SETTINGS).eval())
    assert (model.head, model.head_info, read_head_info(tower)) == (None, None, None)
    assert model.image_spec.size == (56, 56)
    with pytest.raises(CheckpointError, match="this model has no head"):
        model.logits_of(torch.zeros(1, 32))


def test_the_seed_decides_random_weights(tower):
    assert same_features(build_image_classifier(SETTINGS).eval(), build_image_classifier(SETTINGS).eval())
    assert not same_features(build_image_classifier(replace(SETTINGS, seed=1)).eval(), load_image_classifier(tower))


def test_a_tower_with_a_head_gives_the_same_logits(tower, tmp_path):
    model = with_head(tower).eval()
    save_image_classifier(model, SETTINGS, tmp_path / "whole")
    loaded = load_image_classifier(tmp_path / "whole")
    features = model.encode_image_features(fake_images(2))
    assert loaded.head_info == read_head_info(tmp_path / "whole") == FACTS
    assert torch.equal(loaded.logits_of(loaded.encode_image_features(fake_images(2))), model.logits_of(features))


def test_a_head_finds_its_tower_after_both_moved(tower, tmp_path):
    model = with_head(tower).eval()
    save_image_classifier(model, SETTINGS, tmp_path / "probe", tower=tower)
    assert load_file(tmp_path / "probe" / "model.safetensors").keys() == {"head.weight", "head.bias"}
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "probe", tmp_path / "elsewhere" / "probe")
    with pytest.raises(
        CheckpointError, match=r"has only a head; its tower was in .*load_image_classifier\(folder, tower="
    ):
        load_image_classifier(tmp_path / "elsewhere" / "probe")
    assert same_features(load_image_classifier(tmp_path / "elsewhere" / "probe", tower=tower), model)
    shutil.move(tower, tmp_path / "elsewhere" / "tower")
    assert torch.equal(load_image_classifier(tmp_path / "elsewhere" / "probe").head.weight, model.head.weight)


def test_a_head_is_refused_with_another_tower(tower, tmp_path):
    save_image_classifier(with_head(tower), SETTINGS, tmp_path / "probe", tower=tower)
    save_image_classifier(build_image_classifier(replace(SETTINGS, seed=1)), SETTINGS, tower)
    with pytest.raises(CheckpointError, match="was trained on another tower"):
        load_image_classifier(tmp_path / "probe")


def test_the_digest_depends_on_the_head_and_its_tower(tower, tmp_path):
    model = with_head(tower)
    save_image_classifier(model, SETTINGS, tmp_path / "one", tower=tower)
    save_image_classifier(model, SETTINGS, tmp_path / "two", tower=tower)
    assert weights_digest(tmp_path / "one") == weights_digest(tmp_path / "two")
    model.head_info = replace(FACTS, classes=("Edema", "Fracture", "Pneumonia"))
    save_image_classifier(model, SETTINGS, tmp_path / "two", tower=tower)
    assert weights_digest(tmp_path / "one") != weights_digest(tmp_path / "two")


@pytest.mark.parametrize("image", ["dinov2", "resnet"])
def test_the_image_tower_of_a_dual_encoder_is_loaded_alone(tmp_path, image):
    settings = fake_settings(image)
    model = fake_model(settings)
    save_model(model, settings, tmp_path)
    assert same_features(load_image_classifier(tmp_path), model)


def test_a_frozen_tower_can_be_made_trainable(tmp_path):
    settings = fake_settings("vit")
    settings = replace(settings, image=replace(settings.image, train=False))
    save_image_classifier(build_image_classifier(settings), settings, tmp_path)
    assert not any(weight.requires_grad for weight in load_image_classifier(tmp_path).parameters())
    model = load_image_classifier(tmp_path, train=True)
    assert any(weight.requires_grad for weight in model.parameters())
    assert model.train().image_tower.training


def test_a_model_without_texts_is_refused_where_texts_are_read(tower):
    with pytest.raises(CheckpointError, match=r"an image tower but no text tower.*cleft classify"):
        load_model(tower)


@pytest.mark.parametrize("head", [{"classes": 3, "scoring": "x"}, {"scoring": "x"}, "Edema"])
def test_a_head_without_classes_is_refused(tower, head):
    edit_description(tower, lambda tree: tree.update(head=head))
    with pytest.raises(CheckpointError, match="head must be null or an object"):
        load_image_classifier(tower)


def test_weights_without_the_head_that_is_described_are_refused(tower):
    head = {"classes": ["Edema", "Fracture"], "scoring": "multi-class"}
    edit_description(tower, lambda tree: tree.update(head=head))
    with pytest.raises(CheckpointError, match=r"2 missing: head\.bias, head\.weight"):
        load_image_classifier(tower)


def test_a_head_that_does_not_fit_is_a_value_error(tower):
    with pytest.raises(ValueError, match="does not fit a tower of width 32"):
        ImageClassifier(load_image_classifier(tower).image_tower, nn.Linear(7, 3), FACTS)
