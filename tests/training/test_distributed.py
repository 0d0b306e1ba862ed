"""What several processes share: settings that this machine can train with, statistics, and the order of preparing."""

import copy
import os
import time

import pytest
import torch
import torch.distributed as dist
from tests.tools.ranks import end_of, start_ranks
from torch import nn

from cleft.config import TrainConfig
from cleft.errors import ConfigError
from cleft.training.distributed import check_hardware, convert_sync_batchnorm, first_rank_first


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"accelerator": "gpu"}, "train.accelerator=gpu, but torch sees no card"),
        ({"strategy": "fsdp"}, "train.strategy=fsdp does not work here, where torch sees no card; set auto or ddp"),
        ({"strategy": "fsdp", "accelerator": "cpu"}, "train.strategy=fsdp does not work on a CPU; set auto or ddp"),
        ({"precision": "16-mixed"}, "train.precision=16-mixed does not work here.*; set bf16-mixed or 32-true"),
    ],
)
def test_what_this_machine_cannot_do_is_refused_with_what_it_can(monkeypatch, settings, says):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=says):
        check_hardware(TrainConfig(devices=1, nodes=1, **settings))


def test_more_processes_than_cards_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_hardware(TrainConfig(devices=2, nodes=1, precision="16-mixed", strategy="fsdp"))
    check_hardware(TrainConfig(devices=3, nodes=1, accelerator="cpu"))
    with pytest.raises(ConfigError, match=r"train\.devices=3, but torch sees 2 cards"):
        check_hardware(TrainConfig(devices=3, nodes=1))


class Normed(nn.Module):
    """Batch norms of several kinds, with and without weights and running statistics."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh())
        self.second = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, affine=False, momentum=None))
        self.third = nn.BatchNorm1d(3, track_running_stats=False)
        self.double()

    def forward(self, images):
        return self.third(self.second(self.first(images).mean((2, 3))))


def test_batch_norm_over_ranks_with_uneven_rows_equals_one_process(tmp_path):
    draw = torch.Generator().manual_seed(1)
    images, wanted = (torch.randn(9, *shape, generator=draw).double() for shape in ((1, 6, 6), (3,)))
    alone = Normed()
    for _ in range(2):
        (alone(images) * wanted).sum().backward()
    parts = [range(2), range(2, 3), range(3, 9)]

    def as_rank():
        dist.init_process_group("gloo")
        rows, model = parts[dist.get_rank()], Normed()
        convert_sync_batchnorm(model)
        for _ in range(2):
            (model(images[rows]) * wanted[rows]).sum().backward()
        for name, weight in model.named_parameters():
            dist.all_reduce(weight.grad)
            torch.testing.assert_close(weight.grad, dict(alone.named_parameters())[name].grad)
        for name, buffer in model.named_buffers():
            torch.testing.assert_close(buffer, dict(alone.named_buffers())[name])
        model.eval()
        torch.testing.assert_close(model.first(images), copy.deepcopy(alone).eval().first(images))

    assert end_of(start_ranks(3, as_rank)) == [0, 0, 0]


def test_synchronised_norms_keep_names_and_weights():
    model = Normed()
    before = {name: tensor.data_ptr() for name, tensor in model.state_dict(keep_vars=True).items()}
    convert_sync_batchnorm(model)
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict(keep_vars=True).items()} == before
    assert not any(type(part) in (nn.BatchNorm1d, nn.BatchNorm2d) for part in model.modules())


def test_the_first_rank_prepares_before_the_others(tmp_path):
    def prepare():
        with first_rank_first(10) as ready:
            if os.environ["RANK"] == "0":
                time.sleep(0.3)
                (tmp_path / "prepared").touch()
                ready()
            assert (tmp_path / "prepared").exists()

    assert end_of(start_ranks(3, prepare)) == [0, 0, 0]


def test_what_is_wrong_for_all_is_reported_by_the_first_rank_alone(tmp_path):
    def prepare():
        with first_rank_first(10):
            raise ConfigError("the folder belongs to another run")

    assert end_of(start_ranks(3, prepare, tmp_path / "output")) == [2, 2, 2]
    assert (tmp_path / "output").read_text().count("ConfigError: the folder belongs") == 1


def test_an_error_of_a_later_rank_names_the_rank(tmp_path):
    def prepare():
        with first_rank_first(10) as ready:
            ready()
            if os.environ["RANK"] == "1":
                raise ConfigError("train.csv differs here")

    def checked():
        if os.environ["RANK"] == "0":
            return prepare()
        with pytest.raises(ConfigError) as raised:
            prepare()
        assert raised.value.rank == 1

    assert end_of(start_ranks(2, checked)) == [0, 0]


def test_m8_an_address_that_cannot_be_used_is_named(tmp_path, monkeypatch):
    def meet():
        os.environ["MASTER_ADDR"] = "localhost.invalid"
        with first_rank_first(1):
            pass

    assert end_of(start_ranks(2, meet, tmp_path / "output")) == [6, 6]
    assert "cannot use localhost.invalid:" in (tmp_path / "output").read_text()


def test_m8_a_process_that_does_not_come_is_reported(tmp_path):
    def alone():
        if os.environ["RANK"] == "0":
            with first_rank_first(0.3) as ready:
                ready()
                raise AssertionError("no other process connected")

    assert end_of(start_ranks(2, alone, tmp_path / "output")) == [6, 0]
    printed = (tmp_path / "output").read_text()
    assert "waiting for 1 of 2 processes to connect to 127.0.0.1:" in printed
    assert "1 of 2 processes did not connect to 127.0.0.1:" in printed


def test_m8_a_port_that_is_no_number_is_refused(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_PORT": "http"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="MASTER_PORT='http' is not a number"), first_rank_first(1):
        pass
