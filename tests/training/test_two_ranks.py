"""Two ranks learn what one would: same loss, same gradients, same captions as negatives, same validation."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tests.tools.ranks import end_of, start_ranks
from tests.tools.tiny_methods import method_settings
from tests.tools.tiny_runs import log_of, tiny_settings, write_drawings

from cleft.training.pretrain import PretrainModule, pretrain

pytestmark = pytest.mark.slow


def with_transformer(settings):
    """An image tower without batch norm."""
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    scratch = {"model_type": "vit", "image_size": 56, "patch_size": 14, "num_channels": 1, **shape}
    return replace(settings, image=replace(settings.image, scratch=scratch))


def gradients(folder):
    """Keeps the gradients of the first step; runs inside `pretrain`."""

    def keep(self, optimizer):
        if self.trainer.global_step == 0 and self.trainer.is_global_zero:
            torch.save({name: w.grad.clone() for name, w in self.named_parameters() if w.grad is not None}, folder)

    return keep


@pytest.mark.parametrize("loss", ["info_nce", "label_aware_nce", "soft_overlap_nce"])
def test_m3_two_ranks_equal_one(tmp_path, monkeypatch, loss):
    root = write_drawings(tmp_path / "data")
    words = ["--optim.steps=4", "--train.val_every=2", f"--loss.name={loss}", "--text.dropout=0"]
    assert_two_equal_one(with_transformer(tiny_settings(root, *words)), tmp_path, monkeypatch)


def test_two_ranks_compare_regions_and_words_as_one_does(tmp_path, monkeypatch):
    root = write_drawings(tmp_path / "data")
    words = ["--optim.steps=4", "--train.val_every=2", "--text.base_dropout=0", "--data.texts=captions"]
    settings = with_transformer(method_settings("gloria", root, "--image.resize=null", *words))
    assert_two_equal_one(settings, tmp_path, monkeypatch)


@pytest.mark.parametrize("loss", ["info_nce", "label_aware_nce"])
def test_batch_norm_of_two_ranks_equals_that_of_one(tmp_path, monkeypatch, loss):
    root = write_drawings(tmp_path / "data")
    words = ["--optim.steps=4", "--train.val_every=2", f"--loss.name={loss}", "--text.dropout=0"]
    settings = tiny_settings(root, *words)
    assert settings.image.scratch["model_type"] == "resnet"
    assert_two_equal_one(settings, tmp_path, monkeypatch)
    assert_equal_statistics(tmp_path)


@pytest.mark.parametrize("method", ["convirt"])
def test_two_ranks_of_a_baseline_equal_one(tmp_path, monkeypatch, method):
    root = write_drawings(tmp_path / "data")
    words = ["--optim.steps=3", "--text.base_dropout=0", "--data.texts=captions"]
    assert_two_equal_one(method_settings(method, root, *words), tmp_path, monkeypatch)


def test_three_ranks_share_the_statistics_of_batch_norm_too(tmp_path, monkeypatch):
    root = write_drawings(tmp_path / "data")
    settings = tiny_settings(root, "--optim.steps=3", "--text.dropout=0", "--train.batch_size=9")
    assert_two_equal_one(settings, tmp_path, monkeypatch, ranks=3)
    assert_equal_statistics(tmp_path)


def assert_equal_statistics(folder):
    one, two = (load_file(folder / name / "model.safetensors") for name in ("one", "two"))
    names = [name for name in one if "running_" in name or "num_batches_tracked" in name]
    assert names
    for name in names:
        torch.testing.assert_close(two[name], one[name], atol=1e-5, rtol=1e-4, msg=name)


def assert_two_equal_one(alone, tmp_path, monkeypatch, ranks=2):
    monkeypatch.setattr(PretrainModule, "on_before_optimizer_step", gradients(tmp_path / "one.pt"))
    pretrain(alone, tmp_path / "one")
    monkeypatch.setattr(PretrainModule, "on_before_optimizer_step", gradients(tmp_path / "two.pt"))
    assert end_of(start_ranks(ranks, lambda: pretrain(alone, tmp_path / "two"))) == [0] * ranks
    one, two = torch.load(tmp_path / "one.pt"), torch.load(tmp_path / "two.pt")
    assert one.keys() == two.keys()
    for name, gradient in one.items():
        torch.testing.assert_close(two[name], gradient, atol=1e-5, rtol=1e-4, msg=name)
    for ours, theirs in zip(log_of(tmp_path / "one"), log_of(tmp_path / "two"), strict=True):
        assert float(theirs["train/loss"]) == pytest.approx(float(ours["train/loss"]), abs=1e-5)
        if ours["val/loss"]:
            assert float(theirs["val/loss"]) == pytest.approx(float(ours["val/loss"]), abs=1e-5)
