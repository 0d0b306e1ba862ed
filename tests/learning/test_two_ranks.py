"""Two ranks learn what one would: same loss, same gradients, same captions as negatives, same validation."""

import os
import socket
import traceback
from dataclasses import replace

import pytest
import torch
from tests.tools.tiny_methods import method_settings
from tests.tools.tiny_runs import log_of, tiny_settings, write_drawings

from cleft.learning.pretrain import Pretraining, pretrain

pytestmark = pytest.mark.slow


def free_port():
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


def as_rank(rank, port, work):
    """Runs `work` as one of two ranks, in a child."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.environ.update(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                NODE_RANK="0",
                WORLD_SIZE="2",
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=str(port),
            )
            from lightning.fabric.utilities.rank_zero import rank_zero_only

            rank_zero_only.rank = rank
            work()
            code = 0
        except BaseException:  # noqa: BLE001 a child reports whatever ended it
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def with_transformer(settings):
    """An image tower without batch norm, which would see half of a batch on two ranks."""
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


def assert_two_equal_one(alone, tmp_path, monkeypatch):
    monkeypatch.setattr(Pretraining, "on_before_optimizer_step", gradients(tmp_path / "one.pt"))
    pretrain(alone, tmp_path / "one")
    monkeypatch.setattr(Pretraining, "on_before_optimizer_step", gradients(tmp_path / "two.pt"))
    both = replace(alone, train=replace(alone.train, devices=2, strategy="ddp"))
    port = free_port()
    children = [as_rank(rank, port, lambda: pretrain(both, tmp_path / "two")) for rank in (0, 1)]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    one, two = torch.load(tmp_path / "one.pt"), torch.load(tmp_path / "two.pt")
    assert one.keys() == two.keys()
    for name, gradient in one.items():
        torch.testing.assert_close(two[name], gradient, atol=1e-6, rtol=1e-4, msg=name)
    for ours, theirs in zip(log_of(tmp_path / "one"), log_of(tmp_path / "two"), strict=True):
        assert float(theirs["train/loss"]) == pytest.approx(float(ours["train/loss"]), abs=1e-5)
        if ours["val/loss"]:
            assert float(theirs["val/loss"]) == pytest.approx(float(ours["val/loss"]), abs=1e-5)
