"""Every method from a folder of images to numbers; learning and evaluation ask each of them the same."""

import json
import math

import pytest
import torch
from tests.tools.forks import die, forked
from tests.tools.tiny_methods import TOWERS, method_settings
from tests.tools.tiny_runs import log_of, write_drawings

from cleft.config import load_settings, preset_names
from cleft.evaluation.zero_shot import evaluate_zero_shot
from cleft.learning.methods import OBJECTIVES
from cleft.learning.optim import moving_weights
from cleft.learning.pretrain import Pretraining, pretrain
from cleft.towers.checkpoint import load_model
from cleft.towers.image_only import load_image_only
from cleft.towers.methods import METHODS, build_model
from cleft.types import Batch

READ_TEXTS = sorted(TOWERS)
CAPTIONS = ["an edema", "a fracture of a rib", "an edema and a fracture", "nothing", "an edema", "a large heart"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_drawings(tmp_path_factory.mktemp("drawings") / "data")


@pytest.fixture(scope="module")
def runs(root, tmp_path_factory):
    """One finished run of each method, made when it is first asked for."""
    folder, made = tmp_path_factory.mktemp("runs"), {}

    def run(method):
        if method not in made:
            made[method] = pretrain(method_settings(method, root), folder / method)
        return made[method]

    return run


def batch_of(captions, size=56):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (len(captions), 1, size, size), dtype=torch.uint8, generator=generator)
    labels = (torch.rand(len(captions), 3, generator=generator) > 0.5).float()
    return Batch(images, list(captions), labels, torch.arange(len(captions)))


def learner_of(method, root, *more):
    settings = method_settings(method, root, *more)
    return Pretraining(build_model(settings, CAPTIONS).train(), settings, CAPTIONS)


def test_every_method_has_a_model_a_loss_and_a_preset():
    assert METHODS.keys() == OBJECTIVES.keys() == {"cleft", *TOWERS}
    assert {f"baseline-{method}" for method in TOWERS} <= set(preset_names())
    assert all(load_settings(f"baseline-{method}").method == method for method in TOWERS)


@pytest.mark.parametrize("method", TOWERS)
def test_a_gradient_reaches_every_weight_that_moves(method, root):
    learner = learner_of(method, root)
    learner.loss(batch_of(CAPTIONS)).backward()
    moving = moving_weights(learner.model)
    assert sorted(name for name, weight in moving.items() if weight.grad is None) == []
    zero = [name for name, weight in moving.items() if not weight.grad.abs().sum() > 0]
    assert [name for name in zero if not name.endswith("bias")] == []


@pytest.mark.parametrize("method", TOWERS)
def test_a_run_ends_in_a_model_and_its_log_in_numbers(method, runs):
    lines = log_of(runs(method))
    assert len(lines) == 6
    assert all(math.isfinite(float(line["train/loss"])) for line in lines)
    assert [int(line["step"]) for line in lines if line["val/loss"]] == [3, 6]
    assert json.loads((runs(method) / "model.json").read_text())["method"] == method


@pytest.mark.parametrize("method", TOWERS)
def test_a_run_that_was_killed_ends_in_the_same_bits(method, runs, root, tmp_path, monkeypatch):
    settings = method_settings(method, root)
    after_update = Pretraining.after_update

    def killed():
        def dying(self):
            after_update(self)
            if self.trainer.global_step == 5:
                die()

        monkeypatch.setattr(Pretraining, "after_update", dying)
        pretrain(settings, tmp_path / "run")

    assert forked(killed) == -9
    resumed = pretrain(settings, tmp_path / "run")
    assert log_of(resumed) == log_of(runs(method))
    assert (resumed / "model.safetensors").read_bytes() == (runs(method) / "model.safetensors").read_bytes()


@pytest.mark.parametrize("method", READ_TEXTS)
def test_a_loaded_model_equals_the_saved_one_and_its_tower_alone_gives_the_same_features(method, root, runs, tmp_path):
    images = batch_of(CAPTIONS).images
    model = load_model(runs(method))
    assert torch.equal(load_image_only(runs(method)).encode_image_features(images), model.encode_image_features(images))
    embeds = model.encode_image(images), model.encode_text(CAPTIONS)
    torch.testing.assert_close(embeds[0].norm(dim=1), torch.ones(6))
    torch.testing.assert_close(embeds[1].norm(dim=1), torch.ones(6))
    assert torch.equal(embeds[1][0], embeds[1][4])
    again = load_model(runs(method))
    assert torch.equal(again.encode_image(images), embeds[0])
    assert torch.equal(again.encode_text(CAPTIONS), embeds[1])


@pytest.mark.parametrize("method", READ_TEXTS)
def test_zero_shot_asks_it_as_it_asks_cleft(method, runs):
    result = evaluate_zero_shot(runs(method), progress=False)
    found = json.loads(result.read_text())
    assert {entry["metric"] for entry in found["results"]} >= {"accuracy", "auc"}
