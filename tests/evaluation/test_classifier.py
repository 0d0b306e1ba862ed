"""From a trained classifier to a result file, and over seeds to mean and spread."""

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
    """An untrained image tower, so that only the patients of the classifiers are known."""
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


def evaluate(run, **options):
    path = evaluate_classifier(run, ClassifierOptions(bootstrap=FEW, **options), progress=False)
    return path, read_evaluation(path)


def seeds_of(source, folder, *words, seeds=None, data=None, **options):
    evaluation = ClassifierOptions(bootstrap=FEW, **options)
    settings = load_settings(source, words)
    paths = train_classifiers(source, settings, folder, evaluation, seeds=seeds, data=data, progress=False)
    return paths, [read_evaluation(path) for path in paths]


def test_result_of_a_classifier_describes_its_training(probe):
    path, found = evaluate(probe)
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


def test_predictions_equal_those_of_the_loaded_model(tuned):
    _, found = evaluate(tuned, split="all", allow_overlap=True)
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
                predicted = int(model(load_image(settings.data.root / row["image"], settings.images)).argmax())
            table[shown[0], predicted] += 1
    assert np.array(found.confusion).tolist() == table.tolist()
    assert found.task == "fine-tune"


def test_patients_of_training_and_validation_are_refused_unless_allowed(probe):
    with pytest.raises(DataError, match=r"19 of 34 patients were trained on"):
        evaluate(probe, split="train")
    _, found = evaluate(probe, split="train", allow_overlap=True)
    assert any("Beware: 19 of " in note and "too optimistic" in note for note in found.notes)
    _, others = evaluate(probe, split="all", drop_overlap=True)
    assert others.overlap_left_out == 19 + 12


def test_classifiers_of_one_image_tower_share_stored_features(source, probe, monkeypatch):
    evaluate(probe)
    other = learn(source, source.with_name("other"), "--classify.fraction=0.8")

    def never(self, images):
        raise AssertionError("an image was read again")

    monkeypatch.setattr(ImageClassifier, "encode_image_features", never)
    evaluate(other)


def test_present_absent_uses_blank_labels_as_in_training(source, tmp_path):
    run = learn(source, tmp_path / "run", "--classify.scoring=present-absent", "--classify.blank=absent")
    _, found = evaluate(run)
    assert found.scoring == "present-absent"
    assert any("count as absent" in note for note in found.notes)
    assert {"auc/Edema", "accuracy/Edema"} <= {result.metric for result in found.results}
    assert found.command.endswith("--task linear-probe")
    _, other = evaluate(run, blank="unknown")
    assert any("and not scored" in note for note in other.notes)


def test_other_scoring_mode_or_classes_than_in_training_are_refused(probe, tmp_path):
    with pytest.raises(ConfigError, match=r"--scoring present-absent: .* was trained for multi-class"):
        evaluate(probe, scoring="present-absent")
    with pytest.raises(ConfigError, match=r"--task fine-tune: .* was trained with --mode linear-probe"):
        evaluate(probe, mode="fine-tune")
    root = write_fake_rsna(tmp_path / "rsna", [rsna_row(number, str(number % 2)) for number in range(1, 9)])
    with pytest.raises(
        ConfigError, match=r"has the classes Edema, Fracture, .* but rsna has no column Edema or Fracture"
    ):
        evaluate(probe, data=f"rsna:{root}", split="all")


def other_patient(row):
    return {**row, "patient": row["patient"].replace("p", "q")}


def test_other_data_with_the_same_classes_are_evaluated(source, probe, tmp_path):
    root = copy_drawings(load_settings(source).data.root, tmp_path / "more", other_patient)
    _, found = evaluate(probe, data=f"manifest:{root}", split="all")
    assert found.command == "cleft evaluate probe --task linear-probe --data 'manifest:<folder>' --split all"
    assert found.overlap_left_out == 0


def test_a_run_without_a_finished_classifier_is_refused(source, probe, tmp_path):
    with pytest.raises(CheckpointError, match=r"random has no classifier; cleft classify .* trains one"):
        evaluate(source)
    begun = shutil.copytree(probe, tmp_path / "begun")
    (begun / "model.json").unlink()
    with pytest.raises(CheckpointError, match="begun: training is not finished; run the same cleft classify again"):
        evaluate(begun)
    with pytest.raises(ConfigError, match="is not a run folder"):
        evaluate(tmp_path)


def test_error_names_the_folder_of_a_missing_image_tower(source, tmp_path):
    tower = shutil.copytree(source, tmp_path / "tower")
    run = learn(tower, tmp_path / "run", *PAPER)
    shutil.rmtree(tower)
    with pytest.raises(CheckpointError, match="has only a head; its tower was in"):
        evaluate(run)


def test_several_seeds_make_several_runs_with_mean_and_spread(source, tmp_path):
    paths, found = seeds_of(source, tmp_path / "runs", *PAPER, "--classify.fraction=0.5", seeds=2)
    assert [path.parents[1] for path in paths] == [tmp_path / "runs" / "seed-0", tmp_path / "runs" / "seed-1"]
    assert [each.training_seed for each in found] == [0, 1]
    assert paths[0].name != paths[1].name
    assert found[0].ids_digest == found[1].ids_digest
    patients = [json.loads((path.parents[1] / "split.json").read_text())["patients"] for path in paths]
    assert patients[0] != patients[1]
    first, second = ({result.metric: result.value for result in each.results} for each in found)
    mean = (first["accuracy"] + second["accuracy"]) / 2
    assert seed_spread(found)[0].startswith(
        f"accuracy: mean {mean:.3f}, from {min(first['accuracy'], second['accuracy']):.3f}"
    )
    assert seed_spread(found)[0].endswith("over seeds 0, 1")
    assert seed_spread(found[:1]) == []


def test_one_seed_makes_one_run_and_zero_is_refused(source, tmp_path):
    [path], [found] = seeds_of(source, tmp_path / "one", *PAPER, seeds=1)
    assert (path.parents[1], found.training_seed) == (tmp_path / "one", 0)
    [path], [found] = seeds_of(source, tmp_path / "own", *PAPER, "--seed=5")
    assert (path.parents[1], found.training_seed) == (tmp_path / "own", 5)
    with pytest.raises(ConfigError, match="--seeds 0: at least one classifier is trained"):
        seeds_of(source, tmp_path / "none", seeds=0)


def test_a_closed_form_probe_on_all_images_is_fitted_once(source, tmp_path, caplog):
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


def test_overlap_with_the_source_run_is_refused_before_training(source, tmp_path):
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


def test_reversed_labels_are_warned_of(source, tmp_path, caplog):
    def turned(row):
        return {**other_patient(row), **{name: "1" if row[name] == "0" else "0" for name in CLASSES}}

    root = copy_drawings(load_settings(source).data.root, tmp_path / "turned", turned)
    run = learn(source, tmp_path / "run", "--classify.scoring=present-absent")
    _, found = evaluate(run, data=f"manifest:{root}", split="all")
    [note] = [note for note in found.notes if "far below chance" in note]
    assert "Check whether labels or prompts are reversed." in note
    assert note in caplog.text
