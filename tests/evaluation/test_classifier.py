"""From a head to a result file, as zero-shot makes it, and over seeds to a mean and a spread."""

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.fakes.rsna import rsna_row, write_fake_rsna
from tests.tools.tiny_runs import CLASSES, copy_drawings, tiny_settings, write_drawings

from cleft.config import load_settings
from cleft.errors import CheckpointError, ConfigError, DataError
from cleft.evaluation import Bootstrap, ClassifierOptions
from cleft.evaluation.classifier import evaluate_classifier, seed_spread, train_classifiers
from cleft.evaluation.result_files import read_evaluation
from cleft.models.checkpoint import weights_digest
from cleft.models.image_classifier import ImageClassifier, load_image_classifier
from cleft.training.classify import classify
from cleft.training.pretrain import pretrain

FEW = Bootstrap(resamples=30)
PAPER = ("--classify.protocol=paper", "--classify.steps=10")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A tower that nothing was learned with, so that no patient is known but those of the heads."""
    root = write_drawings(tmp_path_factory.mktemp("drawings") / "data")
    return pretrain(tiny_settings(root, "--method=image-only"), tmp_path_factory.mktemp("runs") / "random")


@pytest.fixture(scope="module")
def probe(source):
    return learn(source, source.with_name("probe"), "--classify.fraction=0.9", "--seed=3")


@pytest.fixture(scope="module")
def tuned(source):
    return learn(source, source.with_name("tuned"), "--classify.mode=fine-tune", "--classify.steps=4")


def learn(source, folder, *words):
    return classify(source, load_settings(source, words), folder, progress=False)


def ask(run, **options):
    path = evaluate_classifier(run, ClassifierOptions(bootstrap=FEW, **options), progress=False)
    return path, read_evaluation(path)


def seeds_of(source, folder, *words, seeds=None, data=None, **options):
    evaluation = ClassifierOptions(bootstrap=FEW, **options)
    settings = load_settings(source, words)
    paths = train_classifiers(source, settings, folder, evaluation, seeds=seeds, data=data, progress=False)
    return paths, [read_evaluation(path) for path in paths]


def test_a_head_becomes_a_result_file_that_says_how_it_was_trained(probe):
    path, found = ask(probe)
    assert path.parent == probe / "results"
    assert (found.task, found.dataset, found.split, found.scoring) == (
        "linear-probe",
        "manifest",
        "test",
        "multi-class",
    )
    assert (found.protocol, found.training_fraction, found.training_seed) == ("standard", 0.9, 3)
    assert (found.training_images, found.training_patients) == (19, 19)
    assert (found.prompts, found.class_prompts, found.classes) == ("none", (), CLASSES)
    assert found.checkpoint == weights_digest(probe)
    results = {result.metric: result for result in found.results}
    assert 0 <= results["auc"].value <= 1
    assert results["accuracy"].images == sum(map(sum, found.confusion))
    assert "majority-class/accuracy" in {baseline.metric for baseline in found.baselines}
    assert found.command == "cleft evaluate probe --task linear-probe"
    assert found.notes[-1].startswith(
        "Linear probe, standard protocol, trained on 19 images of 19 patients of manifest, 90 % of the training "
        "patients; seed 3; penalty "
    )
    assert len(found.examples) == min(10, results["accuracy"].images)


def test_what_the_head_answers_is_what_its_model_says_of_each_image(tuned):
    _, found = ask(tuned, split="all", allow_overlap=True)
    settings = load_settings(tuned)
    model = load_image_classifier(tuned)
    with (settings.data.root / "manifest.csv").open() as file:
        rows = list(csv.DictReader(file))
    from cleft.data.batches import load_image

    table = np.zeros((3, 3), dtype=int)
    for row in rows:
        shown = [place for place, name in enumerate(CLASSES) if row[name] == "1"]
        if len(shown) == 1:
            with torch.no_grad():
                answer = int(model(load_image(settings.data.root / row["image"], settings.images)).argmax())
            table[shown[0], answer] += 1
    assert np.array(found.confusion).tolist() == table.tolist()
    assert found.task == "fine-tune"


def test_patients_of_training_and_validation_stop_it_unless_allowed(probe):
    with pytest.raises(DataError, match=r"19 of 34 patients were trained on"):
        ask(probe, split="train")
    _, found = ask(probe, split="train", allow_overlap=True)
    assert any("Beware: 19 of " in note and "too optimistic" in note for note in found.notes)
    _, others = ask(probe, split="all", drop_overlap=True)
    assert others.overlap_left_out == 19 + 12


def test_heads_of_one_tower_share_what_it_said_of_the_test_images(source, probe, monkeypatch):
    ask(probe)
    other = learn(source, source.with_name("other"), "--classify.fraction=0.8")

    def never(self, images):
        raise AssertionError("an image was read again")

    monkeypatch.setattr(ImageClassifier, "encode_image_features", never)
    ask(other)


def test_findings_are_asked_one_by_one_with_blanks_as_in_training(source, tmp_path):
    run = learn(source, tmp_path / "run", "--classify.scoring=present-absent", "--classify.blank=absent")
    _, found = ask(run)
    assert found.scoring == "present-absent"
    assert any("count as absent" in note for note in found.notes)
    assert {"auc/Edema", "accuracy/Edema"} <= {result.metric for result in found.results}
    assert found.command.endswith("--task linear-probe")
    _, other = ask(run, blank="unknown")
    assert any("and not scored" in note for note in other.notes)


def test_a_question_the_head_was_not_trained_for_is_refused(probe, tmp_path):
    with pytest.raises(ConfigError, match=r"--scoring present-absent: .* was trained for multi-class"):
        ask(probe, scoring="present-absent")
    with pytest.raises(ConfigError, match=r"--task fine-tune: .* was trained with --mode linear-probe"):
        ask(probe, mode="fine-tune")
    root = write_fake_rsna(tmp_path / "rsna", [rsna_row(number, str(number % 2)) for number in range(1, 9)])
    with pytest.raises(
        ConfigError, match=r"has the classes Edema, Fracture, .* but rsna has no column Edema or Fracture"
    ):
        ask(probe, data=f"rsna:{root}", split="all")


def stranger(row):
    return {**row, "patient": row["patient"].replace("p", "q")}


def test_other_images_of_the_same_classes_are_asked_about(source, probe, tmp_path):
    root = copy_drawings(load_settings(source).data.root, tmp_path / "more", stranger)
    _, found = ask(probe, data=f"manifest:{root}", split="all")
    assert found.command == "cleft evaluate probe --task linear-probe --data 'manifest:<folder>' --split all"
    assert found.overlap_left_out == 0


def test_a_run_without_a_finished_head_has_no_answers(source, probe, tmp_path):
    with pytest.raises(CheckpointError, match=r"random has no classifier; cleft classify .* trains one"):
        ask(source)
    begun = shutil.copytree(probe, tmp_path / "begun")
    (begun / "model.json").unlink()
    with pytest.raises(CheckpointError, match="begun: training is not finished; run the same cleft classify again"):
        ask(begun)
    with pytest.raises(ConfigError, match="is not a run folder"):
        ask(tmp_path)


def test_a_probe_whose_tower_has_gone_says_where_it_lay(source, tmp_path):
    tower = shutil.copytree(source, tmp_path / "tower")
    run = learn(tower, tmp_path / "run", *PAPER)
    shutil.rmtree(tower)
    with pytest.raises(CheckpointError, match="keeps a head alone; its tower was in"):
        ask(run)


def test_several_seeds_are_several_runs_with_a_mean_and_a_spread(source, tmp_path):
    paths, found = seeds_of(source, tmp_path / "runs", *PAPER, "--classify.fraction=0.5", seeds=2)
    assert [path.parents[1] for path in paths] == [tmp_path / "runs" / "seed-0", tmp_path / "runs" / "seed-1"]
    assert [each.training_seed for each in found] == [0, 1]
    assert paths[0].name != paths[1].name
    assert found[0].ids_digest == found[1].ids_digest
    taken = [json.loads((path.parents[1] / "split.json").read_text())["patients"] for path in paths]
    assert taken[0] != taken[1]
    first, second = ({result.metric: result.value for result in each.results} for each in found)
    mean = (first["accuracy"] + second["accuracy"]) / 2
    assert seed_spread(found)[0].startswith(
        f"accuracy: mean {mean:.3f}, from {min(first['accuracy'], second['accuracy']):.3f}"
    )
    assert seed_spread(found)[0].endswith("over seeds 0, 1")
    assert seed_spread(found[:1]) == []


def test_one_seed_is_one_run_and_none_is_an_error(source, tmp_path):
    [path], [found] = seeds_of(source, tmp_path / "one", *PAPER, seeds=1)
    assert (path.parents[1], found.training_seed) == (tmp_path / "one", 0)
    [path], [found] = seeds_of(source, tmp_path / "own", *PAPER, "--seed=5")
    assert (path.parents[1], found.training_seed) == (tmp_path / "own", 5)
    with pytest.raises(ConfigError, match="--seeds 0: at least one classifier is trained"):
        seeds_of(source, tmp_path / "none", seeds=0)


def test_a_closed_form_probe_of_all_images_is_fitted_once_whatever_the_seeds(source, tmp_path, caplog):
    [path], _ = seeds_of(source, tmp_path / "runs", seeds=3)
    assert path.parents[1] == tmp_path / "runs"
    assert "does not depend on the seed; one is fitted" in caplog.text
    paths, found = seeds_of(source, tmp_path / "half", "--classify.fraction=0.5", seeds=2)
    assert len(paths) == 2
    assert found[0].checkpoint != found[1].checkpoint


def test_equal_weights_have_no_spread(source, tmp_path):
    _, found = seeds_of(source, tmp_path / "runs", *PAPER, seeds=2)
    same = [found[0], replace(found[0], training_seed=1)]
    assert seed_spread(same) == ["seeds 0, 1 ended in the same weights: there is no spread"]
    assert "standard deviation" in seed_spread(found)[0]


def test_test_patients_that_the_source_knows_are_refused_before_anything_is_trained(source, tmp_path):
    knows = pretrain(
        tiny_settings(load_settings(source).data.root, "--optim.steps=3"), tmp_path / "knows", progress=False
    )
    moved = shutil.copytree(load_settings(source).data.root, tmp_path / "moved")
    words = ["--data.val_fraction=0.2", "--data.test_fraction=0.5"]
    with pytest.raises(DataError, match="were trained on or used to choose the weights"):
        seeds_of(knows, tmp_path / "run", *words, data=f"manifest:{moved}")
    assert not (tmp_path / "run").exists()
    _, [found] = seeds_of(knows, tmp_path / "run", *PAPER, *words, data=f"manifest:{moved}", drop_overlap=True)
    assert found.overlap_left_out > 0


def test_labels_that_are_reversed_in_testing_are_warned_of(source, tmp_path, caplog):
    def turned(row):
        return {**stranger(row), **{name: "1" if row[name] == "0" else "0" for name in CLASSES}}

    root = copy_drawings(load_settings(source).data.root, tmp_path / "turned", turned)
    run = learn(source, tmp_path / "run", "--classify.scoring=present-absent")
    _, found = ask(run, data=f"manifest:{root}", split="all")
    [note] = [note for note in found.notes if "far below chance" in note]
    assert "Check whether labels or prompts are reversed." in note
    assert note in caplog.text
