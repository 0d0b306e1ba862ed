"""On a GPU: the prefix tree is exact, both stages train and resume, and predictions equal those of the CPU."""

import copy
import pickle
import signal

import pytest
import torch
from tests.fakes.texts import CAPTIONS, error, moving, tower
from tests.tools.tiny_runs import log_of, tiny_settings, write_drawings

from cleft.errors import Interrupted
from cleft.evaluation import ZeroShotOptions
from cleft.evaluation.result_files import read_evaluation
from cleft.evaluation.zero_shot import evaluate_zero_shot
from cleft.models.checkpoint import load_model, weights_digest
from cleft.training.callbacks import StepEnd
from cleft.training.pretrain import pretrain
from cleft.training.prompt_context import learn_context

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no graphics card is here"),
]
SHORT = ("--optim.steps=12", "--train.val_every=4", "--train.save_every=4")
CARD = ("--train.accelerator=gpu",)
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05}
"""Largest difference relative to the norm of the vector."""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_drawings(tmp_path_factory.mktemp("drawings") / "data")


def read(built, packing, dtype):
    """Features of the captions and gradients of one coordinate of them."""
    built.packing = packing
    with torch.autocast("cuda", dtype, enabled=dtype is not torch.float32):
        features = built.encode(CAPTIONS).float()
    target = features[:, 0] @ torch.arange(1.0, len(features) + 1, device="cuda")
    found = torch.autograd.grad(target, moving(built), allow_unused=True)
    return features, torch.cat([gradient.flatten() for gradient in found if gradient is not None])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("adapt", ["lora", "ia3", "prefix", "full"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_tree_changes_no_feature_and_no_gradient_on_a_gpu(family, adapt, dtype):
    built = tower(family, adapt=adapt).cuda()
    quick, padded = read(built, "tree", dtype), read(built, "padded", dtype)
    assert error(quick[0], padded[0]) < TOLERANCE[dtype]
    assert error(quick[1], padded[1]) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("adapt", ["lora", "ia3", "prefix", "full"])
def test_a_captured_pass_equals_an_eager_one(adapt, dtype):
    built = tower(adapt=adapt).cuda()
    computed = tower(adapt=adapt, cuda_graphs=False).cuda()
    for _ in range(3):
        replayed, expected = read(built, "tree", dtype), read(computed, "tree", dtype)
        assert error(replayed[0], expected[0]) < TOLERANCE[dtype]
        assert error(replayed[1], expected[1]) < TOLERANCE[dtype]
        with torch.no_grad():
            for mine, other in zip(moving(built), moving(computed), strict=True):
                mine.mul_(0.99)
                other.mul_(0.99)
    assert len(built._graphs._captured) == 1
    assert not computed._graphs._captured


def test_a_captured_pass_draws_new_dropout_from_the_seed():
    built = tower(dropout=0.5).cuda().train()

    def drawn(seed):
        torch.manual_seed(seed)
        return built.encode(CAPTIONS).detach()

    first = drawn(1)
    assert error(drawn(1), first) < 1e-5
    assert error(drawn(2), first) > 1e-3
    assert len(built._graphs._captured) == 1


def test_the_gpu_encodes_texts_as_the_cpu_does():
    built = tower()
    features = built.encode(CAPTIONS)
    assert error(copy.deepcopy(built).cuda().encode(CAPTIONS).cpu(), features) < 1e-4


def test_a_model_with_captured_passes_is_pickled_and_copied():
    built = tower().cuda().train()
    built.encode(CAPTIONS).sum().backward()
    assert built._graphs._captured
    features = built.eval().encode(CAPTIONS)
    for copied in (copy.deepcopy(built), pickle.loads(pickle.dumps(built))):  # noqa: S301 our own
        assert not copied._graphs._captured
        assert error(copied.encode(CAPTIONS), features) < 1e-5


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_both_stages_train_on_a_gpu_and_predict_as_on_the_cpu(root, tmp_path, precision):
    run = pretrain(tiny_settings(root, *SHORT, *CARD, f"--train.precision={precision}"), tmp_path / "run")
    settings = tiny_settings(
        root,
        *SHORT,
        *CARD,
        f"--train.precision={precision}",
        "--context.optim.steps=6",
        "--context.optim.warmup_steps=1",
    )
    context = learn_context(run, settings, tmp_path / "context")
    on_card = read_evaluation(evaluate_zero_shot(context, ZeroShotOptions(examples=0)))
    model, moved = load_model(context), load_model(context).cuda()
    images = torch.randint(0, 256, (4, 1, *model.image_spec.size), dtype=torch.uint8)
    assert error(moved.encode_image(images.cuda()).cpu(), model.encode_image(images)) < 1e-3
    assert {result.metric for result in on_card.results} >= {"accuracy", "auc"}
    first = float(log_of(run)[0]["train/loss"])
    processor = pretrain(tiny_settings(root, *SHORT), tmp_path / "processor")
    assert first == pytest.approx(float(log_of(processor)[0]["train/loss"]), rel=0.02 if "bf16" in precision else 1e-3)


def test_a_run_on_a_gpu_resumes_where_it_was_stopped(root, tmp_path, monkeypatch):
    settings = tiny_settings(root, *SHORT, *CARD)
    whole = pretrain(settings, tmp_path / "whole")
    write = StepEnd._write_row

    def press(self, trainer, step):
        write(self, trainer, step)
        if step == 6:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(StepEnd, "_write_row", press)
    with pytest.raises(Interrupted):
        pretrain(settings, tmp_path / "stopped")
    monkeypatch.undo()
    again = pretrain(settings, tmp_path / "stopped")
    assert len(log_of(again)) == len(log_of(whole)) == 12
    mine, theirs = load_model(again).state_dict(), load_model(whole).state_dict()
    assert weights_digest(again) == weights_digest(whole) or all(
        error(mine[name].float(), theirs[name].float()) < 1e-3 for name in mine if theirs[name].float().norm() > 0
    )
