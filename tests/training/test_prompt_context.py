"""Stage two: a context in front of class names, learned from the right images, resumable, whole in its folder."""

import json
import logging
import math
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tests.tools.forks import die, forked
from tests.tools.tiny_runs import CLASSES, log_of, tiny_settings, write_drawings

from cleft.data.text.captions import CHEST_PREFIX
from cleft.errors import CheckpointError, ConfigError, DataError, Terminated
from cleft.models.checkpoint import load_model, save_model
from cleft.models.dual_encoder import initial_context
from cleft.training import prompt_context as stage
from cleft.training.callbacks import StopFlag
from cleft.training.lightning_module import TrainingModule
from cleft.training.pretrain import pretrain
from cleft.training.prompt_context import (
    EncodedImages,
    PromptContextModule,
    check_classes,
    learn_context,
    select_targets,
)
from cleft.training.provenance import seen_patients
from cleft.types import Record

STILL = ("--images.augment.jitter=0", "--images.augment.blur=0", "--images.augment.degrees=0")
LEARNS = (*STILL, "--optim.steps=40", "--optim.lr=0.003", "--context.optim.steps=30", "--context.optim.lr=0.1")


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return tiny_settings(write_drawings(tmp_path_factory.mktemp("drawings") / "data"), *LEARNS, "--context.length=16")


@pytest.fixture(scope="module")
def source(settings, tmp_path_factory):
    return pretrain(settings, tmp_path_factory.mktemp("runs") / "one")


@pytest.fixture(scope="module")
def run(source, settings):
    """A finished stage two that nobody interrupted."""
    return learn_context(source, settings)


def test_the_new_run_holds_the_complete_model_with_its_context(run, source, settings):
    assert run == source.with_name("one-context")
    before, after = load_file(source / "model.safetensors"), load_file(run / "model.safetensors")
    assert after.keys() - before.keys() == {"context"}
    assert all(torch.equal(after[name], before[name]) for name in before)
    start = initial_context(load_model(source).text_tower, CHEST_PREFIX, settings.context, settings.seed)
    model = load_model(run)
    assert model.context.shape == start.shape
    assert not torch.equal(model.context, start)
    assert seen_patients(run, "manifest", [f"p{number:03}" for number in range(60)]) == seen_patients(
        source, "manifest", [f"p{number:03}" for number in range(60)]
    )


def test_the_loss_falls_and_the_best_context_is_kept(run):
    losses = {int(row["step"]): float(row["context/val/loss"]) for row in log_of(run) if row["context/val/loss"]}
    summary = json.loads((run / "summary.json").read_text())
    assert summary["classes"] == list(CLASSES)
    assert summary["best_loss"] == min(losses.values()) < losses[5]
    assert losses[summary["best_step"]] == summary["best_loss"]


@pytest.mark.parametrize("dies_at", [7, 13])
def test_a1_stage_two_killed_and_resumed_ends_in_the_same_bits(run, source, settings, tmp_path, monkeypatch, dies_at):
    settings = replace(settings, train=replace(settings.train, save_every=4))

    def killed():
        def dying(self):
            if self.trainer.global_step == dies_at:
                die()

        monkeypatch.setattr(TrainingModule, "after_update", dying)
        learn_context(source, settings, tmp_path / "run")

    assert forked(killed) == -9
    resumed = learn_context(source, settings, tmp_path / "run")
    assert log_of(resumed) == log_of(run)
    assert (resumed / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()


def test_a_finished_stage_two_does_nothing_and_other_settings_are_refused(run, source, settings, caplog):
    caplog.set_level(logging.INFO)
    learn_context(source, settings, run)
    assert "is finished" in caplog.text
    longer = replace(settings, context=replace(settings.context, length=17))
    with pytest.raises(ConfigError, match=r"context\.length 16 → 17"):
        learn_context(source, longer, run)


def test_a5_stage_two_starts_only_from_a_finished_stage_one(settings, tmp_path, monkeypatch):
    def killed():
        monkeypatch.setattr("cleft.training.pretrain.save_model", lambda *args, **more: die())
        pretrain(settings, tmp_path / "one")

    assert forked(killed) == -9
    with pytest.raises(CheckpointError, match="stage one is not finished"):
        learn_context(tmp_path / "one", settings)


def test_settings_of_the_towers_cannot_change_any_more(source, settings, tmp_path):
    other = replace(settings, loss=replace(settings.loss, embed_dim=8))
    with pytest.raises(ConfigError, match=r"stage two cannot change loss\.embed_dim 16 → 8"):
        learn_context(source, other, tmp_path / "run")
    with pytest.raises(ConfigError, match="choose another run folder for stage two"):
        learn_context(source, settings, source)


def test_a_wording_without_a_phrase_for_each_class_is_refused(source, settings, tmp_path):
    with pytest.raises(ConfigError, match="a learned context needs a phrase for each class"):
        learn_context(source, replace(settings, class_names="gloria"), tmp_path / "run")


def record(**labels):
    return Record(id=str(labels), image="x.png", labels={name: float(v) for name, v in labels.items()}, patient="p")


RECORDS = [record(Edema=1, Fracture=0), record(Edema=1, Fracture=1), record(Edema=0), record(Fracture=1)]


def test_images_with_exactly_one_class_are_taken_and_the_others_counted(caplog):
    caplog.set_level(logging.INFO)
    chosen = select_targets(RECORDS, ["Edema", "Fracture"], "drop")
    assert chosen.records == [RECORDS[0], RECORDS[3]]
    assert chosen.class_shares.tolist() == [[1, 0], [0, 1]]
    assert "of 4 images 2 show exactly one of the 2 classes, 1 several (left out), 1 none (left out)" in caplog.text


def test_images_with_several_classes_get_soft_targets():
    chosen = select_targets(RECORDS, ["Edema", "Fracture"], "soft")
    assert chosen.class_shares.tolist() == [[1, 0], [0.5, 0.5], [0, 1]]


def test_a_class_without_an_image_is_named():
    classes = ["Edema", "Fracture", "Pneumonia"]
    with pytest.raises(DataError, match="no training image shows Pneumonia and no other of the classes") as raised:
        check_classes(select_targets(RECORDS, classes, "drop"), classes, "drop")
    assert raised.value.reason == "empty-class"
    assert "set context.multi_label=soft" in str(raised.value)
    with pytest.raises(DataError, match="no training image shows Pneumonia") as raised:
        check_classes(select_targets(RECORDS, classes, "soft"), classes, "soft")
    assert "multi_label" not in str(raised.value)
    with pytest.raises(ConfigError, match="stage two needs two classes or more"):
        check_classes(select_targets(RECORDS, ["Edema"], "drop"), ["Edema"], "drop")


def test_the_loss_of_equal_class_embeddings_is_log_classes(source, settings):
    model = load_model(source)
    model.set_context(torch.zeros(4, model.text_tower.width))
    learner = PromptContextModule(model, ["edema", "fracture"], settings.context)
    learner.model.encode_class_names = lambda names: torch.ones(len(names), 16) / 4
    batch = EncodedImages(torch.eye(3, 16), torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]))
    assert learner.loss(batch).item() == pytest.approx(math.log(2))


def test_the_loss_is_cross_entropy_of_similarities_over_the_temperature(source, settings):
    # Two orthogonal classes and an image equal to the first: logits (s, 0), loss ln(1 + e^-s) with s = 1 / temperature.
    model = load_model(source)
    model.set_context(torch.zeros(4, model.text_tower.width))
    learner = PromptContextModule(model, ["edema", "fracture"], settings.context)
    learner.model.encode_class_names = lambda names: torch.eye(2, 16)
    batch = EncodedImages(torch.eye(1, 16), torch.tensor([[1.0, 0.0]]))
    for scale in (1.0, 3.0):
        with torch.no_grad():
            model.logit_scale.fill_(math.log(scale))
        assert learner.loss(batch).item() == pytest.approx(math.log1p(math.exp(-scale)), rel=1e-5)


def test_only_the_context_is_trained_and_states_stay_small(run):
    path = next((run / "states").glob("step-00000030.*"))
    weights = torch.load(path, weights_only=True)["state_dict"]
    assert [name for name, value in weights.items() if value.is_floating_point() and "running" not in name] == [
        "model.context"
    ]


def test_a3_stopped_while_images_are_encoded(source, settings, tmp_path, monkeypatch):
    class Asked(StopFlag):
        def check(self, doing):
            self.number = 15 if "encoding" in doing else None
            super().check(doing)

    monkeypatch.setattr(stage, "StopFlag", Asked)
    with pytest.raises(Terminated, match="while encoding images; nothing was trained yet"):
        learn_context(source, settings, tmp_path / "run")


def test_without_a_validation_image_the_last_context_is_kept(source, settings, tmp_path, caplog):
    optim = replace(settings.context.optim, steps=2, warmup_steps=0)
    short = replace(settings, context=replace(settings.context, optim=optim))
    learn_context(source, short, tmp_path / "with")
    assert "the last context is kept" not in caplog.text
    learn_context(source, replace(short, data=replace(short.data, val_fraction=0.0)), tmp_path / "without")
    assert "no validation image shows exactly one of the classes: the last context is kept" in caplog.text


def test_a_source_of_16_bit_weights_is_held_in_float32(source, settings, tmp_path):
    half = shutil.copytree(source, tmp_path / "half")
    save_model(load_model(source).to(torch.bfloat16), settings, half)
    assert float_types(half) == {torch.bfloat16}
    optim = replace(settings.context.optim, steps=2, warmup_steps=0)
    run = learn_context(half, replace(settings, context=replace(settings.context, optim=optim)), tmp_path / "run")
    assert float_types(run) == {torch.float32}


def float_types(folder):
    """Types of the floating-point weights of a model folder."""
    weights = load_file(folder / "model.safetensors").values()
    return {weight.dtype for weight in weights if weight.is_floating_point()}


def test_images_that_no_step_draws_are_not_encoded(source, settings, tmp_path):
    optim = replace(settings.context.optim, steps=2, warmup_steps=0)
    few = replace(settings, context=replace(settings.context, optim=optim))
    images = json.loads((learn_context(source, few, tmp_path / "run") / "summary.json").read_text())["images"]
    assert images["drawn"] == 16 < images["train"]
