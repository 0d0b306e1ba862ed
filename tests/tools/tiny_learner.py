"""A minimal training with everything that resuming must restore: dropout, momenta, a buffer, validation."""

import contextlib
import itertools
import sys
from dataclasses import replace

import pytest
import torch
from tests.tools.forks import die
from torch import nn

from cleft.cli import main
from cleft.config import OptimConfig, Settings, TrainConfig, load_settings
from cleft.training.callbacks import Intervals, StepEnd, StopFlag
from cleft.training.lightning_module import TrainingModule
from cleft.training.pretrain import pretrain
from cleft.training.run_folder import open_run
from cleft.training.trainer import TrainingPlan, train

STEPS = 12
OPTIM = OptimConfig(lr=0.05, steps=STEPS, warmup_steps=3, weight_decay=0.1)


class TinyLearner(TrainingModule):
    """A linear layer with dropout and batch norm, after a frozen one."""

    def __init__(self, dies_at=None, nan_at=None):
        super().__init__(OPTIM)
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.dies_at = dies_at
        self.nan_at = nan_at
        self.validations = 0

    def _maybe_die(self, where):
        if self.dies_at == (where, self.trainer.global_step):
            die()

    def loss(self, batch):
        self._maybe_die("forward")
        factor = float("nan") if self.nan_at == self.trainer.global_step else 1.0
        return (self.model(self.frozen(batch)) - batch.sum(1, keepdim=True)).square().mean() * factor

    def on_after_backward(self):
        self._maybe_die("backward")

    def after_update(self):
        self._maybe_die("update")

    def step_metrics(self):
        return {"mean": self.model[1].running_mean.mean().item()}

    def validation_loss(self, poll):
        poll()
        self._maybe_die("validation")
        self.validations += 1
        self.model.eval()
        with torch.no_grad():
            data = sample(10_000)
            loss = (self.model(self.frozen(data)) - data.sum(1, keepdim=True)).square().mean().item()
        self.model.train()
        return loss


def sample(step):
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(step))


class Counted(torch.utils.data.Dataset):
    """A dataset whose batches are a function of the step."""

    def __init__(self, first_step):
        self.first_step = first_step

    def __len__(self):
        return STEPS - self.first_step

    def __getitem__(self, index):
        return sample(self.first_step + index)


def batches(workers=0):
    def of_rank(first_step, rank, world_size):
        return torch.utils.data.DataLoader(Counted(first_step), batch_size=None, num_workers=workers)

    return of_rank


def plan(patience=None, devices=1, timeout=30, **intervals):
    every = {"steps": STEPS, "val_every": 4, "save_every": 3, "log_every": 2} | intervals
    return TrainingPlan(
        intervals=Intervals(**every),
        seed=0,
        clip_norm=1.0,
        train=TrainConfig(accelerator="cpu", devices=devices, nodes=1, timeout=timeout),
        memory="train.batch_size=6, images.size=4",
        patience=patience,
        columns=["mean"],
    )


def run_tiny(folder, *, workers=0, learner=None, stop=None, **options):
    """Trains in a run folder and returns the learner and the outcome."""
    learner = learner or TinyLearner()
    settings = replace(Settings(), optim=OPTIM)
    with open_run(folder, settings, "pretrain") as run, stop or contextlib.nullcontext(StopFlag()) as flag:
        outcome = train(learner, batches(workers), run, plan(**options), flag)
    return learner, outcome


def one_step(folder):
    """A callable that trains the preset `tiny` on phantoms for four steps, of which a profiler sees only the third."""
    assert main(["data", "phantoms", str(folder / "data"), "--patients", "60"]) == 0
    words = [f"--data.root={folder / 'data'}", f"--data.cache={folder / 'cache'}", "--train.accelerator=cpu"]
    seldom = [f"--train.{name}_every=100" for name in ("val", "save", "log")]
    settings = load_settings("tiny", [*words, *seldom, "--optim.steps=4", "--optim.warmup_steps=1", "--data.workers=0"])
    end, runs = StepEnd.on_train_batch_end, itertools.count()

    def step():
        profiler = sys.getprofile()
        sys.setprofile(None)

        def end_of_step(self, trainer, *rest):
            end(self, trainer, *rest)
            sys.setprofile(profiler if trainer.global_step == 2 else None)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(StepEnd, "on_train_batch_end", end_of_step)
            pretrain(settings, folder / f"run-{next(runs)}", progress=False)

    return step
