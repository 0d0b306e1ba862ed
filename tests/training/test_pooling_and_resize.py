"""Heads that read their tower otherwise than it was trained: another pooling, another size, logits of unit length."""

import json
import math

import pytest
import torch
from tests.fakes.untrained import write_untrained_run
from tests.tools.tiny_methods import method_settings
from tests.tools.tiny_runs import write_drawings
from torch.nn import functional

from cleft.config import ClassifyConfig, load_settings
from cleft.errors import ConfigError
from cleft.evaluation import Bootstrap, ClassifierOptions
from cleft.evaluation.classifier import evaluate_classifier
from cleft.evaluation.result_files import read_evaluation
from cleft.models.checkpoint import load_model
from cleft.models.image_classifier import load_image_classifier
from cleft.training.classify import classify
from cleft.training.linear_probe import apply_protocol
from cleft.training.prompt_context import learn_context

UNIT = ("--classify.protocol=paper", "--classify.steps=30", "--classify.logits=unit", "--classify.lr=0.05")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_drawings(tmp_path_factory.mktemp("drawings") / "data")


@pytest.fixture(scope="module")
def source(root, tmp_path_factory):
    """MGCA's towers, whose class token is compared with texts."""
    return write_untrained_run(tmp_path_factory.mktemp("runs") / "mgca", method_settings("mgca", root))


def learn(source, folder, *words):
    return classify(source, load_settings(source, words), folder, progress=False)


def told(run):
    return json.loads((run / "summary.json").read_text())["description"]


def images_of(side=56):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (5, 1, side, side), dtype=torch.uint8, generator=generator)


def tokens_of(source, images):
    """Everything MGCA's tower says of images, class token first, `[B, L, D]`."""
    tower = load_model(source).image_tower
    return tower.model(pixel_values=tower.normalise(images)).last_hidden_state


def test_a_probe_may_read_the_mean_of_all_tokens_where_its_tower_was_trained_by_the_first(source, tmp_path):
    usual, other = learn(source, tmp_path / "cls"), learn(source, tmp_path / "mean", "--image.pooling=mean")
    tokens = tokens_of(source, images_of())
    assert tokens.shape[1] == 17
    torch.testing.assert_close(load_image_classifier(usual).encode_image_features(images_of()), tokens[:, 0])
    torch.testing.assert_close(load_image_classifier(other).encode_image_features(images_of()), tokens.mean(dim=1))
    assert told(other).endswith(", image.pooling=mean instead of cls")
    assert "image." not in told(usual)
    assert load_image_classifier(source).image_tower.config.pooling == "cls"


def test_evaluation_reads_images_as_in_training_and_reports_it(source, tmp_path):
    run = learn(source, tmp_path / "mean", "--image.pooling=mean")
    options = ClassifierOptions(split="val", allow_overlap=True, bootstrap=Bootstrap(resamples=20))
    found = read_evaluation(evaluate_classifier(run, options))
    assert any("image.pooling=mean instead of cls" in note for note in found.notes)
    assert found.results[0].value is not None
    kept = [json.loads(file.read_text())["key"]["pooling"] for file in (source / "embeddings").rglob("manifest.json")]
    assert "mean" in kept


def test_a_fine_tuned_encoder_keeps_pooling_and_resize(source, tmp_path):
    words = ("--classify.mode=fine-tune", "--classify.steps=2", "--image.pooling=patches")
    model = load_image_classifier(learn(source, tmp_path / "tuned", *words))
    assert model.image_tower.config.pooling == "patches"
    tokens = model.image_tower.model(pixel_values=model.image_tower.normalise(images_of())).last_hidden_state
    torch.testing.assert_close(model.encode_image_features(images_of()), tokens[:, 1:].mean(dim=1))


def test_a_probe_reads_glorias_images_as_large_as_gloria_did_or_as_small_as_they_are(root, tmp_path):
    source = write_untrained_run(tmp_path / "gloria", method_settings("gloria", root))
    tower = load_model(source).image_tower
    large, small = learn(source, tmp_path / "large"), learn(source, tmp_path / "small", "--image.resize=null")
    pixels = tower.normalise(images_of())
    larger = functional.interpolate(pixels, (75, 75), mode="bilinear", align_corners=True)
    for run, seen in ((large, larger), (small, pixels)):
        expected = tower.model(pixel_values=seen).last_hidden_state.mean(dim=(2, 3))
        torch.testing.assert_close(load_image_classifier(run).encode_image_features(images_of()), expected)
    assert told(small).endswith(", image.resize=None instead of 75")


def test_normalised_logits_are_trained_and_predicted(source, tmp_path):
    run, plain = learn(source, tmp_path / "unit", *UNIT), learn(source, tmp_path / "plain", *UNIT[:2], UNIT[3])
    model, other = load_image_classifier(run), load_image_classifier(plain)
    features = model.encode_image_features(images_of())
    torch.testing.assert_close(model.logits_of(features), functional.normalize(model.head(features), dim=1))
    assert not torch.allclose(model.head.weight, other.head.weight)
    assert not torch.allclose(other.logits_of(features).norm(dim=1), torch.ones(5))
    assert told(run).endswith(", L2-normalised logits")


def test_normalised_logits_train_equally_on_features_and_images(source, tmp_path, monkeypatch):
    kept = load_image_classifier(learn(source, tmp_path / "kept", *UNIT)).head
    monkeypatch.setattr("cleft.training.classify.uses_fixed_features", lambda config: False)
    anew = load_image_classifier(learn(source, tmp_path / "anew", *UNIT)).head
    torch.testing.assert_close(anew.weight, kept.weight, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("classes", "least"), [(2, 0.218), (4, 0.665), (5, 0.836), (7, 1.111)])
def test_the_loss_of_unit_logits_has_a_floor(classes, least):
    best = functional.normalize(torch.eye(classes)[:1] - 1 / classes, dim=1)  # all for one class, all others alike
    assert functional.cross_entropy(best, torch.tensor([0])).item() == pytest.approx(least, abs=1e-3)
    assert least < math.log(classes)


def test_settings_without_effect_or_in_conflict_are_refused(source, root, tmp_path):
    with pytest.raises(ConfigError, match=r"classify\.logits=unit does nothing with .*set classify\.protocol=paper"):
        apply_protocol(ClassifyConfig(logits="unit"))
    with pytest.raises(ConfigError, match=r"classify\.logits=unit normalises the logits of an image together"):
        ClassifyConfig(logits="unit", scoring="present-absent")
    with pytest.raises(ConfigError, match=r"stage two cannot change image\.pooling 'cls' → 'mean'"):
        learn_context(source, load_settings(source, ["--image.pooling=mean"]), tmp_path / "context", progress=False)
    blocks = method_settings("clip", root, "--image.decoder_blocks=1")
    clip = write_untrained_run(tmp_path / "clip", blocks)
    with pytest.raises(ConfigError, match=r"image\.pooling=mean has no effect with image\.decoder_blocks=1"):
        learn(clip, tmp_path / "head", "--image.pooling=mean")
