"""Every method from a folder of images to numbers; learning and evaluation ask each of them the same."""

import json
import math
import shutil

import pytest
import torch
from tests.tools.forks import die, forked
from tests.tools.tiny_methods import TOWERS, method_settings
from tests.tools.tiny_runs import copy_drawings, log_of, write_drawings

from cleft.config import load_settings, preset_names
from cleft.errors import CheckpointError, DataError
from cleft.evaluation.zero_shot import evaluate_zero_shot
from cleft.models.checkpoint import load_method_model, load_model
from cleft.models.image_classifier import load_image_classifier
from cleft.models.methods import METHODS, build_model
from cleft.models.methods.gloria import global_loss, local_loss
from cleft.models.methods.medclip import semantic_matching
from cleft.models.methods.mgca import (
    attention_of_patches,
    attention_of_words,
    instance_loss,
    prototype_loss,
    token_loss,
)
from cleft.training.lightning_module import trainable_parameters
from cleft.training.pretrain import PretrainModule, pretrain
from cleft.training.prompt_context import learn_context
from cleft.types import Batch

READ_TEXTS = sorted(TOWERS.keys() - {"mrm"})
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


def batch_of(captions, size):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (len(captions), 1, size, size), dtype=torch.uint8, generator=generator)
    labels = (torch.rand(len(captions), 3, generator=generator) > 0.5).float()
    return Batch(images, list(captions), labels, torch.arange(len(captions)))


def learner_of(method, root, *more):
    settings = method_settings(method, root, *more)
    return PretrainModule(build_model(settings, CAPTIONS).train(), settings, CAPTIONS)


def test_every_method_has_a_model_a_loss_and_a_preset():
    assert METHODS.keys() == {"cleft", *TOWERS}
    assert {f"baseline-{method}" for method in TOWERS} <= set(preset_names())
    assert all(load_settings(f"baseline-{method}").method == method for method in TOWERS)


@pytest.mark.parametrize("method", TOWERS)
def test_a_gradient_reaches_every_trainable_parameter(method, root):
    learner = learner_of(method, root)
    learner.loss(batch_of(CAPTIONS, learner.model.image_spec.size[0])).backward()
    moving = trainable_parameters(learner.model)
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
    after_update = PretrainModule.after_update

    def killed():
        def dying(self):
            after_update(self)
            if self.trainer.global_step == 5:
                die()

        monkeypatch.setattr(PretrainModule, "after_update", dying)
        pretrain(settings, tmp_path / "run")

    assert forked(killed) == -9
    resumed = pretrain(settings, tmp_path / "run")
    assert log_of(resumed) == log_of(runs(method))
    assert (resumed / "model.safetensors").read_bytes() == (runs(method) / "model.safetensors").read_bytes()


@pytest.mark.parametrize("method", READ_TEXTS)
def test_a_loaded_model_equals_the_saved_one_and_its_tower_alone_gives_the_same_features(method, root, runs, tmp_path):
    images = batch_of(CAPTIONS, 56).images
    model = load_model(runs(method))
    assert torch.equal(
        load_image_classifier(runs(method)).encode_image_features(images), model.encode_image_features(images)
    )
    embeds = model.encode_image(images), model.encode_text(CAPTIONS)
    torch.testing.assert_close(embeds[0].norm(dim=1), torch.ones(6))
    torch.testing.assert_close(embeds[1].norm(dim=1), torch.ones(6))
    assert torch.equal(embeds[1][0], embeds[1][4])
    again = load_model(runs(method))
    assert torch.equal(again.encode_image(images), embeds[0])
    assert torch.equal(again.encode_text(CAPTIONS), embeds[1])


@pytest.mark.parametrize("method", READ_TEXTS)
def test_zero_shot_evaluation_works_as_for_cleft(method, runs):
    result = evaluate_zero_shot(runs(method), progress=False)
    found = json.loads(result.read_text())
    assert {entry["metric"] for entry in found["results"]} >= {"accuracy", "auc"}


def read_and_facts(learner, batch):
    facts = learner._facts(batch, torch.tensor([0, 1, 2, 3, 0, 4]))
    return learner._method.read(learner.model, batch), facts


def test_gloria_compares_equal_texts_once_and_changes_nothing(root):
    learner = learner_of("gloria", root, "--text.base_dropout=0")
    learner.model.image_tower.eval()
    read, facts = read_and_facts(learner, batch_of(CAPTIONS, 56))
    every = global_loss(read.image_embeds, read.text_embeds) + local_loss(read.regions, read.words, read.word_mask)
    torch.testing.assert_close(METHODS["gloria"].loss(learner.model, read, facts, learner._settings), every)
    weights = list(trainable_parameters(learner.model).values())
    expected = torch.autograd.grad(every, weights, retain_graph=True, allow_unused=True)
    found = torch.autograd.grad(learner.loss(batch_of(CAPTIONS, 56)), weights, allow_unused=True)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_glorias_parts_weigh_what_the_settings_say(root):
    losses = {
        weights: learner_of("gloria", root, "--text.base_dropout=0", *weights).loss(batch_of(CAPTIONS, 56)).item()
        for weights in [(), ("--gloria.local_weight=0",), ("--gloria.global_weight=0",)]
    }
    whole, *parts = losses.values()
    assert whole == pytest.approx(sum(parts), rel=1e-5)


def test_mgca_is_the_sum_of_its_three_losses(root):
    learner = learner_of("mgca", root, "--text.base_dropout=0", "--mgca.weights=[2, 3, 5]")
    read, facts = read_and_facts(learner, batch_of(CAPTIONS, 56))
    words = attention_of_words(read.token_attention[:, None, None], read.slot_of_token - 1, read.words.shape[1])
    patches = attention_of_patches(read.region_attention[:, None, None], first=0)
    whole = (
        2 * instance_loss(read.image_embeds, read.text_embeds)
        + 3 * token_loss(read.words, read.regions, read.word_mask, words, patches, mask_padding=True)
        + 5 * prototype_loss(read.image_embeds, read.text_embeds, learner.model.prototypes)
    )
    found = METHODS["mgca"].loss(learner.model, read, facts, learner._settings)
    torch.testing.assert_close(found, whole)


def test_mgcas_prototypes_are_frozen_for_frozen_steps(root):
    learner = learner_of("mgca", root, "--mgca.frozen_steps=1")
    learner.loss(batch_of(CAPTIONS, 56)).backward()
    assert learner.model.prototypes.grad.eq(0).all()


def test_mgcas_words_can_weigh_what_the_next_one_should(root):
    aligned, shifted = (
        learner_of("mgca", root, "--text.base_dropout=0", f"--mgca.word_weights={way}").loss(batch_of(CAPTIONS, 56))
        for way in ("aligned", "released")
    )
    assert aligned.item() != shifted.item()


def test_medclip_reads_each_sentence_in_other_words_too(root):
    learner = learner_of("medclip", root, "--text.base_dropout=0")
    learner.model.image_tower.eval()
    said = torch.eye(6)[:, :3]
    plain, again = batch_of(CAPTIONS, 56)._replace(text_labels=said), [text[::-1] for text in CAPTIONS]
    image_embeds, scale = learner.model.encode_image(plain.images), learner.model.logit_scale.exp()
    of_texts, of_reworded = (
        semantic_matching(image_embeds, learner.model.encode_text(texts), scale, plain.labels, said)
        for texts in (CAPTIONS, again)
    )
    torch.testing.assert_close(learner.loss(plain), of_texts)
    torch.testing.assert_close(learner.loss(plain._replace(reworded=again)), (of_texts + of_reworded) / 2)


def test_convirts_temperature_is_frozen_and_images_weigh_more(root):
    learner = learner_of("convirt", root, "--text.base_dropout=0", "--convirt.image_to_text=1")
    read, facts = read_and_facts(learner, batch_of(CAPTIONS, 56))
    loss = METHODS["convirt"].loss(learner.model, read, facts, learner._settings)
    logits = 10 * read.image_embeds @ read.text_embeds.T
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, torch.arange(6)))
    assert not learner.model.logit_scale.requires_grad


def test_mrm_starts_from_an_untrained_decoder(root):
    image, report = (
        learner_of("mrm", root, "--text.base_dropout=0", f"--mrm.weights={weights}").loss(batch_of(CAPTIONS, 112))
        for weights in ("[1, 0]", "[0, 1]")
    )
    assert image.item() == pytest.approx(1, abs=0.5)  # standardised patches against nearly nothing
    assert report.item() == pytest.approx(math.log(300), abs=1)  # some 300 tokens, all about as likely


def test_mrm_is_evaluated_by_probes_only(runs):
    with pytest.raises(
        CheckpointError, match=r"was trained by MRM, which has no joint space .* no zero-shot classification"
    ):
        evaluate_zero_shot(runs("mrm"), progress=False)
    with pytest.raises(CheckpointError, match="no prompt context; cleft classify"):
        learn_context(runs("mrm"))
    images = batch_of(CAPTIONS, 112).images
    model = load_method_model(runs("mrm"))
    assert torch.equal(
        load_image_classifier(runs("mrm")).encode_image_features(images), model.encode_image_features(images)
    )
    torch.manual_seed(0)
    read = model.encode_pairs(images, CAPTIONS)
    torch.manual_seed(0)
    assert torch.equal(load_method_model(runs("mrm")).encode_pairs(images, CAPTIONS).logits, read.logits)


def test_a_context_is_learned_in_front_of_any_method_that_compares_texts(runs, tmp_path):
    settings = method_settings("gloria", json_root(runs("gloria")), *CONTEXT)
    folder = learn_context(runs("gloria"), settings, tmp_path / "context", progress=False)
    assert len(load_model(folder).context) == 4
    assert json.loads((folder / "model.json").read_text())["method"] == "gloria"


CONTEXT = ["--context.length=4", "--context.batch_size=8", "--context.optim.steps=3", "--context.optim.warmup_steps=1"]


def json_root(run):
    return load_settings(run).data.root


@pytest.mark.parametrize("method", ["convirt", "gloria", "mgca", "mrm"])
def test_texts_of_reports_are_read_where_there_are_reports(method, root, tmp_path):
    lines = (root / "manifest.csv").read_text().splitlines()
    reports = ["", "The heart is large. No effusion.", "Stable.", "Edema of both lungs. Rib fracture on the left."]
    table = [f"{lines[0]},report", *(f"{line},{reports[place % 4]}" for place, line in enumerate(lines[1:]))]
    shutil.copytree(root, tmp_path / "data")
    (tmp_path / "data" / "manifest.csv").write_text("\n".join(table) + "\n")
    texts = "whole" if method in ("mgca", "mrm") else "sentences"
    settings = method_settings(
        method, tmp_path / "data", f"--data.texts={texts}", "--optim.steps=2", "--train.val_every=2"
    )
    run = pretrain(settings, tmp_path / "run")
    assert json.loads((run / "split.json").read_text())["texts"]
    assert json.loads((run / "summary.json").read_text())["images"]["train"] < 34 / 2 + 5


@pytest.mark.parametrize(
    ("report", "sentence"),
    [
        (None, r"none of 34 images of manifest has a report that can be read; store .* \(data\.texts: captions\)"),
        ("", "none of 34 images of manifest has a report that can be read; store"),
        ("Stable.", "can be read; 34 have one that is too short; store"),
        ("... !!! ?", "can be read; 34 have one that is too short; store"),
    ],
)
@pytest.mark.parametrize(("method", "texts"), [("gloria", "gloria"), ("mgca", "mgca"), ("mrm", "whole")])
def test_a_method_that_needs_reports_is_refused_without_them(report, sentence, method, texts, root, tmp_path):
    told = root if report is None else with_reports(root, tmp_path / "data", report)
    with pytest.raises(DataError, match=sentence):
        pretrain(method_settings(method, told, f"--data.texts={texts}"), tmp_path / "run")


def with_reports(root, folder, report):
    return copy_drawings(root, folder, lambda row: {**row, "report": report})


@pytest.mark.parametrize(("method", "warned"), [("gloria", 1), ("mgca", 1), ("mrm", 0)])
def test_reports_that_all_say_the_same_sentence_are_read_and_warned_of(method, warned, root, tmp_path, caplog):
    told = with_reports(root, tmp_path / "data", "No effusion is seen.")
    more = ("--data.texts=whole", "--optim.steps=2", "--train.val_every=2")
    run = pretrain(method_settings(method, told, *more), tmp_path / "run")
    assert math.isfinite(json.loads((run / "summary.json").read_text())["best_loss"])
    assert caplog.text.count("every caption of a batch is the same") == warned


@pytest.mark.slow
@pytest.mark.parametrize("method", ["convirt", "gloria", "mgca", "mrm"])
def test_the_validation_loss_falls(method, root, tmp_path):
    still = [f"--images.augment.{name}=0" for name in ("jitter", "blur", "degrees", "horizontal_flip")]
    longer = ["--optim.steps=80", "--optim.lr=0.003", "--optim.min_lr=0", "--train.val_every=20"]
    lines = log_of(pretrain(method_settings(method, root, *still, *longer), tmp_path / "run"))
    losses = [float(line["val/loss"]) for line in lines if line["val/loss"]]
    assert losses[-1] < 0.95 * losses[0]
