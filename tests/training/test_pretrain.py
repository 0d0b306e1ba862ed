"""Stage one from a folder of images to a model folder: exact, resumable, and honest about what it cannot do."""

import json
import logging
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tests.tools.forks import die, forked
from tests.tools.tiny_runs import log_of, tiny_settings, write_drawings

from cleft.config import load_settings
from cleft.errors import ConfigError
from cleft.models.checkpoint import load_model, weights_digest
from cleft.models.methods import build_model
from cleft.models.methods.losses import LOSSES
from cleft.training import pretrain as stage
from cleft.training.pretrain import PretrainModule, Validation, pretrain
from cleft.training.provenance import seen_patients
from cleft.training.training_state import StateStore
from cleft.types import Batch

SHORT = ("--optim.steps=8", "--train.val_every=4", "--train.save_every=3")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_drawings(tmp_path_factory.mktemp("drawings") / "data")


@pytest.fixture(scope="module")
def run(root, tmp_path_factory):
    """A finished run that nobody interrupted."""
    return pretrain(tiny_settings(root, *SHORT), tmp_path_factory.mktemp("runs") / "whole")


def moments_of(run):
    store = StateStore(run / "states")
    slots = store.load(store.latest().path)["optimizer_states"][0]["state"]
    return {(slot, name): torch.as_tensor(value) for slot, state in slots.items() for name, value in state.items()}


def test_a_run_folder_holds_all_that_is_needed(run, root):
    assert load_settings(run) == tiny_settings(root, *SHORT)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["weights"] == weights_digest(run)
    assert summary["images"] == {"train": 34, "val": 14}
    losses = {int(row["step"]): float(row["val/loss"]) for row in log_of(run) if row["val/loss"]}
    assert summary["best_loss"] == min(losses.values())
    assert losses[summary["best_step"]] == summary["best_loss"]
    assert load_model(run).context is None
    assert "p000" not in "".join(path.read_text() for path in run.glob("*.json"))
    assert seen_patients(run, "manifest", [f"p{number:03}" for number in range(60)])


def test_the_log_holds_the_tokens_of_the_language_model(run):
    first = log_of(run)[0]
    assert int(first["nodes"]) < 30 < int(first["padded_tokens"]) == 8 * 64
    assert 0 < float(first["repeated_captions"]) < 1
    assert float(first["temperature"]) == pytest.approx(0.07, rel=0.01)
    assert float(first["lr"]) == pytest.approx(1e-3 / 2)


def test_a5_a_finished_run_does_nothing_and_says_so(run, root, caplog):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.name != "lock"}
    caplog.set_level(logging.INFO)
    assert pretrain(tiny_settings(root, *SHORT), run) == run
    assert "is finished: validation loss" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize(("workers", "dies_at"), [(0, 5), (2, 3)])
def test_a1_the_real_model_killed_and_resumed_ends_in_the_same_bits(run, root, tmp_path, monkeypatch, workers, dies_at):
    settings = tiny_settings(root, *SHORT, f"--data.workers={workers}")
    after_update = PretrainModule.after_update

    def killed():
        def dying(self):
            after_update(self)
            if self.trainer.global_step == dies_at:
                die()

        monkeypatch.setattr(PretrainModule, "after_update", dying)
        pretrain(settings, tmp_path / "run")

    assert forked(killed) == -9
    assert not (tmp_path / "run" / "model.safetensors").exists()
    resumed = pretrain(settings, tmp_path / "run")
    assert log_of(resumed) == log_of(run)
    assert (resumed / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    expected = moments_of(run)
    assert all(torch.equal(value, expected[key]) for key, value in moments_of(resumed).items())


def test_a5_killed_between_the_last_step_and_the_model_it_only_saves(run, root, tmp_path, monkeypatch):
    settings = tiny_settings(root, *SHORT)

    def killed():
        monkeypatch.setattr(stage, "save_model", lambda *args, **more: die())
        pretrain(settings, tmp_path / "run")

    assert forked(killed) == -9
    monkeypatch.setattr(stage, "train_loader", None)  # not one more step
    with pytest.raises(TypeError):
        pretrain(settings, tmp_path / "other")
    monkeypatch.undo()
    resumed = pretrain(settings, tmp_path / "run")
    assert (resumed / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()


def test_another_seed_gives_another_model(run, root, tmp_path):
    other = pretrain(tiny_settings(root, *SHORT, "--seed=1"), tmp_path / "run")
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (run, other))
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("name", LOSSES)
def test_the_validation_loss_falls(root, tmp_path, name):
    learns = ["--optim.steps=60", "--optim.lr=0.003", "--train.val_every=20", "--train.log_every=20"]
    if name == "sigmoid":  # its bias is far from where these few images want it
        learns += ["--loss.bias=-3", "--loss.temperature=0.1", "--optim.steps=120"]
    still = ["--images.augment.jitter=0", "--images.augment.blur=0", "--images.augment.degrees=0"]
    lines = log_of(pretrain(tiny_settings(root, *learns, *still, f"--loss.name={name}"), tmp_path / "run"))
    assert float(lines[-1]["val/loss"]) < 0.9 * float(lines[0]["val/loss"])


class Alone:
    """A trainer of one rank, as far as a validation looks at it."""

    world_size, global_rank, global_step = 1, 0, 3

    class strategy:
        reduce = staticmethod(lambda value, reduce_op: value)
        batch_to_device = staticmethod(lambda batch: batch)

    class precision_plugin:
        val_step_context = staticmethod(torch.no_grad)


def batch_of(captions, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (len(captions), 1, 56, 56), dtype=torch.uint8, generator=generator)
    return Batch(images, list(captions), torch.zeros(len(captions), 3), torch.arange(len(captions)))


def test_validation_counts_each_image_once_and_reads_each_caption_once(root):
    captions = ["a b", "c", "a b", "d", "c"]
    settings = tiny_settings(root)
    batches = [batch_of(captions[:3]), batch_of(captions[3:], seed=1)]
    learner = PretrainModule(
        build_model(settings, captions), settings, captions, Validation(captions, lambda rank, size: batches)
    )
    learner._trainer = Alone()
    read = []
    encode_text = learner.model.encode_text
    learner.model.encode_text = lambda texts: read.append(list(texts)) or encode_text(texts)
    loss = learner.validation_loss(lambda: None)
    assert read == [["a b", "c", "d"]]
    learner.model.eval()
    with torch.no_grad():
        apart = [learner.loss(batch).item() for batch in batches]
    assert loss == pytest.approx((3 * apart[0] + 2 * apart[1]) / 5)


def test_g3_a_temperature_that_runs_away_is_held_and_counted(root):
    settings = tiny_settings(root)
    learner = PretrainModule(build_model(settings, ["a"]), settings, ["a"])
    for value, held in ((9.0, math.log(100)), (-1.0, 0.0), (2.0, 2.0)):
        learner.model.logit_scale.data.fill_(value)
        learner.after_update()
        assert learner.model.logit_scale.item() == pytest.approx(held)
    assert learner.step_metrics()["clamped_steps"] == 2


def test_g6_equal_captions_are_finite_and_warned_of_once(root, caplog):
    settings = tiny_settings(root)
    learner = PretrainModule(build_model(settings, ["a b", "c"]), settings, ["a b", "c"])
    learner._trainer = Alone()
    assert math.isfinite(learner.loss(batch_of(["a b"] * 4)).item())
    assert learner.step_metrics()["repeated_captions"] == 0.75
    learner.step_metrics()
    assert caplog.text.count("every caption of a batch is the same") == 1


def test_g9_fewer_images_than_a_batch_are_refused_with_both_counts(root, tmp_path):
    with pytest.raises(ConfigError, match=r"34 training images do not fill one batch of 40"):
        pretrain(tiny_settings(root, "--train.batch_size=40"), tmp_path / "run")


def test_g10_a_model_without_trainable_parameters_is_refused(root, tmp_path, monkeypatch):
    def frozen(settings, captions, *, learnable):
        return build_model(settings, captions, learnable=learnable).requires_grad_(False)

    monkeypatch.setattr(stage, "build_model", frozen)
    with pytest.raises(ConfigError, match="nothing can be trained"):
        pretrain(tiny_settings(root), tmp_path / "run")


def test_a10_a_run_is_not_resumed_with_other_images(root, tmp_path):
    settings = tiny_settings(root, *SHORT)

    def killed():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stage, "build_model", lambda *args, **more: die())
            pretrain(settings, tmp_path / "run")

    assert forked(killed) == -9
    fewer = write_drawings(tmp_path / "fewer", patients=50)
    with pytest.raises(ConfigError, match="training data changed: digest"):
        pretrain(replace(settings, data=replace(settings.data, root=fewer)), tmp_path / "run")


def test_without_a_validation_split_the_last_weights_are_kept(root, tmp_path, caplog):
    run = pretrain(tiny_settings(root, *SHORT, "--data.val_fraction=0.0"), tmp_path / "run")
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["best_step"], summary["best_loss"]) == (8, None)
    assert "the last weights are kept" in caplog.text


def test_classes_that_stage_two_lacks_are_reported_before_training(root, tmp_path, caplog):
    pretrain(tiny_settings(root, *SHORT, "--classes=[chexpert-5]"), tmp_path / "run")
    assert "names 'Atelectasis' of the set 'chexpert-5', which is not a column of the table" in caplog.text
    assert "--classes" in caplog.text
