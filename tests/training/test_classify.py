"""Heads on an image tower: solved, trained in steps or fine-tuned, resumable, and honest about what taught them."""

import json
import logging
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tests.fakes.rsna import rsna_row, write_fake_rsna
from tests.tools.forks import die, forked
from tests.tools.tiny_runs import CLASSES, copy_drawings, log_of, tiny_settings, write_drawings
from torch import nn

from cleft.config import load_settings
from cleft.errors import CheckpointError, ConfigError, DataError, Terminated
from cleft.models.image_classifier import ImageClassifier, load_image_classifier
from cleft.models.model_folder import read_head_info
from cleft.training import classify as stage
from cleft.training.callbacks import StopFlag
from cleft.training.classify import ClassifierModule, LabelledBatch, classify, layer_lr_multipliers, select_split
from cleft.training.dataset import read_training_data
from cleft.training.lightning_module import TrainingModule
from cleft.training.linear_probe import apply_protocol
from cleft.training.pretrain import pretrain
from cleft.training.provenance import seen_patients

PEOPLE = [f"p{number:03}" for number in range(60)]
PAPER = ("--classify.protocol=paper", "--classify.steps=20")
TUNE = ("--classify.mode=fine-tune", "--classify.steps=12", "--classify.val_every=4")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A finished stage one of few steps."""
    root = write_drawings(tmp_path_factory.mktemp("drawings") / "data")
    settings = tiny_settings(root, "--optim.steps=4", "--train.save_every=4")
    return pretrain(settings, tmp_path_factory.mktemp("runs") / "one", progress=False)


@pytest.fixture(scope="module")
def probe(source):
    return learn(source, source.with_name("probe"))


@pytest.fixture(scope="module")
def tuned(source):
    return learn(source, source.with_name("tuned"), *TUNE)


def learn(source, folder, *words, **options):
    return classify(source, load_settings(source, words), folder, progress=False, **options)


def summary_of(run):
    return json.loads((run / "summary.json").read_text())


def changed_table(source, folder, change):
    """Words that name a copy of the drawings in which each row has gone through `change`."""
    return f"--data.root={copy_drawings(load_settings(source).data.root, folder, change)}"


def test_a_probes_folder_holds_its_head_and_points_to_its_tower(probe, source):
    assert set(load_file(probe / "model.safetensors")) == {"head.weight", "head.bias"}
    assert read_head_info(probe).classes == CLASSES
    model, tower = load_image_classifier(probe), load_image_classifier(source)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in tower.state_dict().items())
    summary = summary_of(probe)
    assert (summary["stage"], summary["mode"], summary["protocol"]) == ("classify", "linear-probe", "standard")
    assert summary["images"] == {"train": 22, "val": 12} == summary["patients"]
    assert summary["strength"] == float(min(summary["tried"], key=lambda name: summary["tried"][name]))
    config = load_settings(probe)
    assert config.classes == CLASSES
    assert config.classify == apply_protocol(load_settings(source).classify)


def test_features_of_the_drawings_discriminate_the_classes(probe):
    assert min(summary_of(probe)["tried"].values()) < 0.1  # nats; chance is log 3


def test_a_run_records_its_training_patients_and_those_of_its_source(source, probe, tmp_path):
    assert seen_patients(probe, "manifest", PEOPLE) == seen_patients(source, "manifest", PEOPLE)
    nobody = shutil.copytree(source, tmp_path / "nobody")
    facts = json.loads((nobody / "split.json").read_text())
    (nobody / "split.json").write_text(json.dumps({**facts, "patients": []}))
    half = learn(nobody, tmp_path / "half", "--classify.fraction=0.5")
    assert summary_of(half)["patients"] == {"train": 11, "val": 12}
    assert len(seen_patients(half, "manifest", PEOPLE)) == 11 + 12
    assert not seen_patients(nobody, "manifest", PEOPLE)


def test_images_are_read_once_for_all_fractions_seeds_and_protocols(source, probe, tmp_path, monkeypatch):
    def never(self, images):
        raise AssertionError("an image was read again")

    monkeypatch.setattr(ImageClassifier, "encode_image_features", never)
    learn(source, tmp_path / "half", "--classify.fraction=0.5", "--seed=3")
    learn(source, tmp_path / "paper", *PAPER)


def test_fractions_lie_inside_each_other_and_seeds_take_others(source):
    material = read_training_data(load_settings(source), progress=False)

    def taken(fraction, seed=0):
        settings = load_settings(source, [f"--classify.fraction={fraction}", f"--seed={seed}"])
        lesson = select_split(material, settings)
        assert [lesson.available.records[row] for row in lesson.rows] == lesson.train.records
        assert lesson.val.patients() == 12
        return {record.id for record in lesson.train.records}

    assert taken(0.2) < taken(0.5) < taken(1)
    assert len(taken(0.5, seed=1)) == len(taken(0.5)) == 11
    assert taken(0.5, seed=1) != taken(0.5)


def test_the_papers_probe_on_kept_features_is_that_on_images(source, tmp_path, monkeypatch):
    kept = learn(source, tmp_path / "kept", *PAPER)
    monkeypatch.setattr(stage, "uses_fixed_features", lambda config: False)
    anew = learn(source, tmp_path / "anew", *PAPER)
    for name, weight in load_file(kept / "model.safetensors").items():
        torch.testing.assert_close(load_file(anew / "model.safetensors")[name], weight, atol=1e-6, rtol=1e-5)
        assert not torch.equal(weight, start_of(kept)[name])


def start_of(run):
    """The head as it began."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = nn.Linear(16, 3)
    return {f"head.{name}": value.detach() for name, value in head.named_parameters()}


def test_random_views_reach_the_head_and_leave_the_tower_alone(source, tmp_path):
    still, random = (learn(source, tmp_path / name, *PAPER, f"--classify.augment={name}") for name in ("false", "true"))
    heads = [load_file(run / "model.safetensors")["head.weight"] for run in (still, random)]
    assert not torch.allclose(*heads)
    weights = torch.load(next((random / "states").glob("step-00000020.*")), weights_only=True)["state_dict"]
    tower = load_image_classifier(source).state_dict()
    running = [name for name in weights if "running" in name]
    assert running  # a batch norm that would have moved
    assert all(torch.equal(weights[name], tower[name.removeprefix("model.")]) for name in running)


def test_fine_tuning_trains_the_encoder_keeps_the_best_and_leaves_its_source(source, tuned):
    before, after = load_image_classifier(source).state_dict(), load_image_classifier(tuned).state_dict()
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert any(name.startswith("image_tower.model.encoder.stages.0") for name in moved)
    losses = {int(row["step"]): float(row["classify/val/loss"]) for row in log_of(tuned) if row["classify/val/loss"]}
    assert sorted(losses) == [4, 8, 12]
    assert summary_of(tuned)["best_loss"] == min(losses.values()) == losses[summary_of(tuned)["best_step"]]


def test_the_best_may_be_that_of_the_highest_auc(source, tmp_path):
    run = learn(source, tmp_path / "run", *TUNE, "--classify.select_by=auc", "--classify.lr=0.01")
    areas = [float(row["classify/val/auc"]) for row in log_of(run) if row["classify/val/auc"]]
    assert summary_of(run)["best_loss"] == 1 - max(areas)
    assert summary_of(run)["description"].startswith("one minus validation AUC 0.")


def test_layer_decay_lowers_the_learning_rate_of_each_block(source):
    rates = layer_lr_multipliers(load_image_classifier(source), 0.5)
    of_stage = {
        place: {share for name, share in rates.items() if place in name}
        for place in ("embedder", "stages.0", "stages.1")
    }
    assert of_stage == {"embedder": {0.125}, "stages.0": {0.25}, "stages.1": {0.5}}
    config = apply_protocol(replace(load_settings(source).classify, mode="fine-tune", steps=10))
    learner = ClassifierModule(load_image_classifier(source, train=True), config, lr_multipliers=rates)
    learner.trainer = type("", (), {"precision_plugin": None})()
    groups = learner.configure_optimizers()["optimizer"].param_groups
    assert {round(group["initial_lr"] / config.lr, 6) for group in groups} == {0.125, 0.25, 0.5}


def test_the_loss_of_equal_logits_is_log_classes_or_log_two():
    config = apply_protocol(replace(load_settings("tiny").classify, protocol="paper"))
    learner = ClassifierModule(nn.Identity(), config)
    assert learner.loss(LabelledBatch(torch.zeros(2, 3), torch.tensor([0, 2]))).item() == pytest.approx(1.0986123)
    known = torch.tensor([[1.0, 0.0, torch.nan]])
    assert learner.loss(LabelledBatch(torch.zeros(1, 3), known)).item() == pytest.approx(0.6931472)


@pytest.mark.parametrize("words", [PAPER, TUNE], ids=["paper", "fine-tune"])
def test_a1_killed_and_resumed_ends_in_the_same_bits(source, tmp_path, monkeypatch, words):
    words = (*words, "--train.save_every=4")

    def killed():
        def dying(self):
            if self.trainer.global_step == 7:
                die()

        monkeypatch.setattr(TrainingModule, "after_update", dying)
        learn(source, tmp_path / "run", *words)

    whole = learn(source, tmp_path / "whole", *words)
    assert forked(killed) == -9
    resumed = learn(source, tmp_path / "run", *words)
    assert log_of(resumed) == log_of(whole)
    assert (resumed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_a_finished_run_does_nothing_and_other_settings_are_refused(source, probe, caplog):
    caplog.set_level(logging.INFO)
    before = (probe / "model.safetensors").stat().st_mtime_ns
    learn(source, probe)
    assert "probe is finished: penalty " in caplog.text
    assert (probe / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match=r"classify\.fraction 1\.0 → 0\.5"):
        learn(source, probe, "--classify.fraction=0.5")
    with pytest.raises(ConfigError, match=r"classes .* → \('Edema', 'Fracture'\)"):
        learn(source, probe, classes=["Edema", "Fracture"])
    learn(source, probe, "--optim.steps=4")  # of stage one, and as it was


def test_labels_and_towers_that_changed_under_a_run_are_refused(source, tmp_path, monkeypatch):
    def killed():
        monkeypatch.setattr(stage, "save_image_classifier", lambda *args, **more: die())
        learn(source, tmp_path / "run", *PAPER)

    assert forked(killed) == -9
    other = changed_table(
        source, tmp_path / "other", lambda row: {**row, "Edema": row["Fracture"], "Fracture": row["Edema"]}
    )
    with pytest.raises(ConfigError, match=r"training data changed: .*targets "):
        learn(source, tmp_path / "run", *PAPER, other)
    again = pretrain(replace(load_settings(source), seed=1), tmp_path / "again", progress=False)
    with pytest.raises(ConfigError, match=r"training data changed: .*model "):
        learn(again, tmp_path / "run", *PAPER, "--seed=0")


def test_what_decided_the_tower_cannot_change_but_its_views_may(source, tmp_path):
    with pytest.raises(ConfigError, match=r"classification cannot change loss\.embed_dim 16 → 8"):
        learn(source, tmp_path / "run", "--loss.embed_dim=8")
    with pytest.raises(ConfigError, match=r"classification cannot change images\.size 56 → 28"):
        learn(source, tmp_path / "run", "--images.size=28")
    with pytest.raises(ConfigError, match="choose another run folder for classification"):
        learn(source, source)
    learn(source, tmp_path / "run", *TUNE, "--images.augment.degrees=0")


def test_findings_are_trained_separately_with_blank_labels_as_set(source, tmp_path):
    words = ("--classify.scoring=present-absent", "--classify.blank=absent")
    blanks = changed_table(source, tmp_path / "blanks", lambda row: {**row, "Edema": row["Edema"].replace("0", "")})
    run = learn(source, tmp_path / "run", *words, blanks)
    assert read_head_info(run).scoring == "present-absent"
    assert summary_of(run)["images"] == {"train": 34, "val": 14}
    with pytest.raises(DataError, match=r"labelled to lack Edema; .*--blank absent"):
        learn(source, tmp_path / "unknown", words[0], blanks)
    stepwise = learn(source, tmp_path / "steps", *words, *PAPER)
    assert load_file(stepwise / "model.safetensors")["head.weight"].shape == (3, 16)


def test_other_data_bring_their_own_classes_where_they_lack_the_runs(source, tmp_path):
    rows = [rsna_row(number, str(number % 2)) for number in range(1, 61)]
    root = write_fake_rsna(tmp_path / "rsna", rows)
    run = learn(source, tmp_path / "run", "--data.val_fraction=0.3", data=f"rsna:{root}")
    assert read_head_info(run).classes == ("No Pneumonia", "Pneumonia")
    assert load_settings(run).data.dataset == "rsna"
    assert {fact["people"] for fact in chain(run)} == {"rsna", "manifest"}
    with pytest.raises(ConfigError, match="classes names 'Edema', which is not a column of the table"):
        learn(source, tmp_path / "other", data=f"rsna:{root}", classes=["Edema", "Pneumonia"])


def chain(run):
    facts = json.loads((run / "split.json").read_text())
    while facts:
        yield facts
        facts = facts.get("before")


def test_a_head_is_no_tower_to_start_from(source, probe, tuned, tmp_path):
    for head in (probe, tuned):
        with pytest.raises(CheckpointError, match="is a classifier itself; give the run of its encoder"):
            learn(head, tmp_path / "run")


def test_a_source_without_a_finished_model_is_refused(source, tmp_path):
    cut = shutil.copytree(source, tmp_path / "cut")
    (cut / "summary.json").unlink()
    with pytest.raises(CheckpointError, match="cut: stage one is not finished; repeat the cleft pretrain command"):
        learn(cut, tmp_path / "run")
    shutil.rmtree(cut / "states")
    (cut / "model.json").unlink()
    with pytest.raises(CheckpointError, match="cut is not a model"):
        learn(cut, tmp_path / "run")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            (),
            r"no validation image has a label to select the penalty by .*--protocol paper",
        ),
        (TUNE, r"no validation image has a label to select the best weights by .*--classify\.select_by last"),
    ],
)
def test_a_missing_validation_split_is_refused(source, tmp_path, words, sentence):
    with pytest.raises(DataError, match=sentence):
        learn(source, tmp_path / "run", *words, "--data.val_fraction=0")
    learn(source, tmp_path / "last", *PAPER, "--data.val_fraction=0")


def test_a_validation_of_one_class_has_no_auc_to_choose_by(source, tmp_path):
    def one_class(row):
        alone = {"Edema": "1", "Fracture": "0", "Cardiomegaly": "0"} if row["split"] == "val" else {}
        return {**row, **alone}

    split = {number: ("val" if number < 6 else "train") for number in range(60)}
    words = changed_table(
        source,
        tmp_path / "table",
        lambda row: one_class({**row, "split": split[int(row["image"].removesuffix(".png"))]}),
    )
    with pytest.raises(DataError, match=r"no AUC to select the penalty by .*--classify\.select_by loss"):
        learn(source, tmp_path / "run", words, "--data.split=given", "--classify.select_by=auc")


def nothing_shown(row):
    return {**row, "Edema": "0", "Fracture": "0", "Cardiomegaly": "0"}


@pytest.mark.parametrize(
    ("change", "words", "classes", "error", "sentence"),
    [
        (nothing_shown, (), None, DataError, "no training image shows Edema or Fracture or Cardiomegaly"),
        (nothing_shown, ("--classify.scoring=present-absent",), None, DataError, "labelled to show Edema or Fracture"),
        (dict, (), ["Edema"], ConfigError, "multi-class scoring needs two classes or more"),
        (dict, (), ["Edema", "Gout"], ConfigError, "'Gout', which is not a column of the table"),
        (
            dict,
            ("--classify.fraction=0.05",),
            None,
            DataError,
            r"0\.05 of 22 training images leaves none for .* images in all",
        ),
    ],
)
def test_labels_without_examples_of_a_class_are_refused(source, tmp_path, change, words, classes, error, sentence):
    with pytest.raises(error, match=sentence):
        learn(source, tmp_path / "run", *words, changed_table(source, tmp_path / "table", change), classes=classes)
    assert not (tmp_path / "run" / "model.json").exists()


def test_one_image_teaches_nothing(source, tmp_path):
    def split(row):
        return {**row, "split": {"0.png": "train", "1.png": "val"}.get(row["image"], "test")}

    with pytest.raises(DataError, match=r"no training image shows Fracture or Cardiomegaly .*the only image"):
        learn(source, tmp_path / "run", changed_table(source, tmp_path / "table", split), "--data.split=given")


def test_a3_stopped_while_images_are_read(source, tmp_path, monkeypatch):
    class Asked(StopFlag):
        def check(self, doing):
            self.number = 15 if "encoding" in doing else None
            super().check(doing)

    monkeypatch.setattr(stage, "StopFlag", Asked)
    with pytest.raises(Terminated, match="while encoding images; nothing was trained yet"):
        learn(source, tmp_path / "run", classes=["Edema", "Fracture"])


@pytest.mark.parametrize(
    ("card", "precision", "found"),
    [(True, "auto", "bf16-mixed"), (False, "auto", "32-true"), (True, "32-true", "32-true")],
)
def test_fine_tuning_takes_bf16_where_the_device_computes_in_it(source, monkeypatch, card, precision, found):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: card)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: card)
    words = (*TUNE, f"--classify.precision={precision}", "--train.accelerator=auto")
    settings = load_settings(source, words)
    settings = replace(settings, classify=apply_protocol(settings.classify))
    assert stage._plan(settings, "auto").train.precision == found
    assert stage._plan(settings, "cpu").train.precision == "32-true"
    still = replace(settings, classify=replace(settings.classify, mode="linear-probe"))
    assert stage._plan(still, "auto").train.precision == "32-true"
