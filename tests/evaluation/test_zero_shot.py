"""Zero-shot evaluation of small untrained models on noise."""

import dataclasses
import json
import re
import shutil

import pytest
import torch
from tests.fakes.chexpert import write_fake_chexpert
from tests.fakes.untrained import CLASSES, untrained_rows, write_untrained_runs

from cleft.config import load_settings
from cleft.data.text.prompts import absent_prompt, class_prompt
from cleft.errors import CheckpointError, ConfigError, DataError
from cleft.evaluation import Bootstrap, ZeroShotOptions
from cleft.evaluation.compare import compare
from cleft.evaluation.result_files import read_evaluation, read_predictions
from cleft.evaluation.scoring import classification_measures, estimate
from cleft.evaluation.zero_shot import evaluate_zero_shot, map_embeddings
from cleft.models.checkpoint import save_model
from cleft.models.methods import build_model
from cleft.training.dataset import read_training_data
from cleft.training.run_folder import open_run

FEW = Bootstrap(resamples=50)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A dataset, and a run with a learned context in everything but quality."""
    return write_untrained_runs(tmp_path_factory.mktemp("zero-shot"))


def evaluate(run, **options):
    path = evaluate_zero_shot(run, ZeroShotOptions(bootstrap=FEW, **options), progress=False)
    return path, read_evaluation(path)


def test_a_run_becomes_a_result_file(home):
    path, found = evaluate(home / "run")
    assert path.parent == home / "run" / "results"
    assert (found.task, found.dataset, found.split, found.prompts) == ("zero-shot", "chexpert", "test", "context")
    assert found.classes == CLASSES
    assert found.class_prompts[0] == "[learned context] atelectasis"
    results = {result.metric: result for result in found.results}
    assert 0 <= results["accuracy"].value <= 1
    assert results["accuracy"].images == sum(map(sum, found.confusion))
    ranked = ("auc", "auprc", "sensitivity@0.90", "sensitivity@0.95")
    assert set(results) == {"accuracy", *ranked, *(f"{each}/{name}" for each in ranked for name in CLASSES)}
    assert {baseline.metric.split("/")[0] for baseline in found.baselines} == {"majority-class", "ap-view"}
    assert set(found.roc) == set(CLASSES)
    assert not found.synthetic
    assert found.command == "cleft evaluate run --task zero-shot"


def test_a_second_evaluation_is_identical_and_uses_stored_embeddings(home):
    (path, first) = evaluate(home / "run")
    before = path.read_bytes()
    stored = sorted(file.stat().st_mtime_ns for file in (home / "run" / "embeddings").rglob("*.safetensors"))
    _, second = evaluate(home / "run")
    assert first == second
    assert path.read_bytes() == before
    assert stored == sorted(file.stat().st_mtime_ns for file in (home / "run" / "embeddings").rglob("*.safetensors"))


def test_handwritten_prompts_are_the_default_without_a_context(home):
    _, handwritten = evaluate(home / "run", prompts="handwritten")
    _, usual = evaluate(home / "plain")
    assert handwritten.class_prompts == usual.class_prompts == tuple(class_prompt(name) for name in CLASSES)
    assert handwritten.prompts == usual.prompts == "handwritten"
    assert handwritten.results == usual.results  # the towers are the same
    assert handwritten.checkpoint != usual.checkpoint


def test_other_class_names_make_a_second_result_on_the_same_images(home, tmp_path):
    path, usual = evaluate(home / "plain")
    words = tmp_path / "mine.yaml"
    words.write_text("Edema: fluid in the lungs\nchexpert/Atelectasis: a collapsed lung\nnih/Atelectasis: nothing\n")
    other_path, other = evaluate(home / "plain", class_names=str(words))
    assert (usual.class_names, other.class_names) == ("default", "mine")
    assert path.is_file()
    assert other_path != path
    assert [prompt.partition(" with ")[2] for prompt in other.class_prompts[:2]] == [
        "a collapsed lung",
        "fluid in the lungs",
    ]
    assert other.class_prompts[2:] == usual.class_prompts[2:]
    assert other.ids_digest == usual.ids_digest
    assert other.command.endswith("--class-names mine.yaml")
    _, behind = evaluate(home / "run", class_names=str(words))
    assert behind.class_prompts[1] == "[learned context] fluid in the lungs"


def test_a_missing_context_is_refused(home):
    with pytest.raises(ConfigError, match="this run has learned no prompt context"):
        evaluate(home / "plain", prompts="context")


def test_present_absent_uses_pairs_of_prompts(home):
    _, found = evaluate(home / "plain", scoring="present-absent", classes="Fracture, Edema", blank="absent")
    assert found.scoring == "present-absent"
    assert found.class_prompts == tuple(
        [
            *(class_prompt(name) for name in ("Fracture", "Edema")),
            *(absent_prompt(name) for name in ("Fracture", "Edema")),
        ]
    )
    results = {result.metric: result for result in found.results}
    assert results["auc/Fracture"].value is not None
    assert any("count as absent" in note for note in found.notes)
    assert found.confusion is None


def test_a_finding_without_negatives_has_no_auc_unless_blanks_count(home):
    _, found = evaluate(home / "plain", scoring="present-absent", classes="Edema")
    result = next(result for result in found.results if result.metric == "auc/Edema")
    assert result.value is None
    assert result.reason == "every image shows Edema"


def test_present_absent_with_a_context_notes_missing_negation(home):
    _, found = evaluate(home / "run", scoring="present-absent", classes="Edema", blank="absent")
    assert found.class_prompts == ("[learned context] edema", "[learned context] no edema")
    assert any("never with their negation" in note for note in found.notes)


def test_h7_patients_of_training_are_refused_unless_allowed(home):
    with pytest.raises(DataError, match="were trained on or used to choose the weights"):
        evaluate(home / "run", split="train")
    _, found = evaluate(home / "run", split="train", allow_overlap=True)
    assert any(note.startswith("Beware: ") and "too optimistic" in note for note in found.notes)


def test_h7_patients_of_training_can_be_left_out_and_are_counted(home):
    with pytest.raises(DataError, match=r"all [0-9]+ patients were trained on .* none is left"):
        evaluate(home / "plain", split="train", drop_overlap=True)
    _, found = evaluate(home / "plain", split="all", drop_overlap=True)
    _, tested = evaluate(home / "plain")
    assert found.ids_digest == tested.ids_digest
    assert found.results == tested.results
    assert found.overlap_left_out == len(untrained_rows()) - 70
    assert found.notes[0].startswith("Left out: 35 of 70 patients were trained on")
    assert found.command.endswith("--drop-overlap")
    assert tested.overlap_left_out == 0
    with pytest.raises(ConfigError, match="contradict each other"):
        evaluate(home / "plain", allow_overlap=True, drop_overlap=True)


def test_h7_patients_are_recognised_in_another_folder(home, tmp_path):
    copy = shutil.copytree(home / "data", tmp_path / "elsewhere")
    with pytest.raises(DataError, match="were trained on"):
        evaluate(home / "run", data=f"chexpert:{copy}", split="all")


def test_other_patients_in_another_folder_are_evaluated(home, tmp_path):
    strangers = [{**row, "Path": row["Path"].replace("patient00", "patient55")} for row in untrained_rows(40)]
    other = write_fake_chexpert(tmp_path / "other", strangers)
    _, found = evaluate(home / "run", data=f"chexpert:{other}", split="all")
    assert (found.split, found.split_recipe) == ("all", "all")
    assert "chexpert:<folder>" in found.command
    assert str(other) not in json.dumps(dataclasses.asdict(found))


def test_h7_a_run_without_a_record_of_its_patients_is_refused(home, tmp_path):
    run = shutil.copytree(home / "plain", tmp_path / "silent")
    (run / "split.json").unlink()
    with pytest.raises(DataError, match="does not say which patients"):
        evaluate(run)
    _, found = evaluate(run, allow_overlap=True)
    assert "does not say which patients it was trained on" in found.notes[0]
    (run / "model.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"silent is not finished: it holds no model\.json; resume it with the same command"
    ):
        evaluate(run)


def test_other_weights_are_evaluated_again(home, tmp_path):
    run = shutil.copytree(home / "plain", tmp_path / "moved")
    _, before = evaluate(run)
    settings = load_settings(run)
    captions = [record.caption for record in read_training_data(settings, progress=False).train]
    save_model(build_model(settings, captions, seed=9), settings, run)
    _, after = evaluate(run)
    assert after.checkpoint != before.checkpoint
    assert after.results != before.results
    assert after.ids_digest == before.ids_digest


def test_o2_results_hold_no_patient_image_or_folder_names(home):
    path, _ = evaluate(home / "run")
    tree = json.loads(path.read_text())
    for example in tree["examples"]:
        del example["image"]
    text = json.dumps(tree)
    assert not re.search(r"patient0|study\d|view1", text)
    assert str(home) not in text


def test_example_images_have_their_most_probable_classes(home):
    _, found = evaluate(home / "run", examples=5)
    assert len(found.examples) == 5
    assert {example["truth"] for example in found.examples} == set(CLASSES)
    for example in found.examples:
        shares = [share for _, share in example["answers"]]
        assert shares == sorted(shares, reverse=True)
        assert len(shares) == 3
    _, none = evaluate(home / "run", examples=0)
    assert none.examples == ()


def test_synthetic_images_are_marked(home, tmp_path):
    data = shutil.copytree(home / "data", tmp_path / "drawn")
    (data / "PHANTOMS.json").write_text("{}")
    _, found = evaluate(home / "run", data=f"chexpert:{data}", split="test")
    assert found.synthetic


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"classes": "Edemma"}, ConfigError, "Edema"),
        ({"classes": "Edema"}, ConfigError, "needs two"),
        ({"classes": "Fracture,Lung Lesion", "prompts": "handwritten"}, None, None),
        ({"data": "xray:/x"}, ConfigError, "chexpert:<folder> or .*manifest:<folder>"),
        ({"data": "chexpert:/nowhere/at/all"}, DataError, "nowhere"),
        ({"class_names": "relaesed"}, ConfigError, "nearest to 'relaesed' is 'released'"),
    ],
)
def test_unknown_classes_data_and_class_names_are_refused(home, options, error, message):
    if error is None:
        _, found = evaluate(home / "plain", **options)
        assert "No image shows Lung Lesion, but it can be predicted." in found.notes
        return
    with pytest.raises(error, match=message):
        evaluate(home / "run", **options)


def test_h10_a_folder_that_is_not_a_run_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="is not a run folder"):
        evaluate_zero_shot(tmp_path)


def test_per_class_selects_equally_many_images_and_notes_patients(home):
    _, found = evaluate(home / "run", per_class=3, per_patient=1)
    assert [sum(row) for row in found.confusion or ()] == [3] * 5
    [note] = [note for note in found.notes if note.startswith("Drawn")]
    assert note.startswith(
        "Drawn: 3 images of each class, at most 1 of a patient in a class; patients: Atelectasis of 3"
    )
    assert found.command.endswith("--per-class 3 --per-patient 1")
    _, other = evaluate(home / "run", per_class=2)
    assert other.ids_digest != found.ids_digest


def test_a_class_with_too_few_images_is_named(home):
    with pytest.raises(
        DataError, match=r"99 images of each class, at most 4 per patient, are not available: Atelectasis"
    ):
        evaluate(home / "run", per_class=99)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [({"per_patient": 2}, "has no effect without --per-class"), ({"per_class": 0}, "--per-class 0: give 1 or more")],
)
def test_per_class_and_per_patient_are_checked(home, options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        evaluate(home / "run", **options)


def test_a_class_the_context_was_not_learned_for_is_noted(home, tmp_path):
    run = shutil.copytree(home / "run", tmp_path / "run")
    (run / "summary.json").write_text(json.dumps({"stage": "context", "classes": ["Edema", "Atelectasis"]}))
    _, found = evaluate(run, classes="Edema,Cardiomegaly")
    assert "The context was learned for Edema, Atelectasis, but not for Cardiomegaly." in found.notes
    _, other = evaluate(run, classes="Edema,Cardiomegaly", prompts="handwritten")
    assert not any("The context" in note for note in other.notes)


def test_stored_predictions_reproduce_the_results(home):
    path, found = evaluate(home / "plain")
    kept = read_predictions(path, found).predictions()
    again = {
        result.metric: result for result in estimate(classification_measures(kept, found.classes), kept.patients, FEW)
    }
    for result in found.results:
        assert again[result.metric].value == pytest.approx(result.value)
        assert again[result.metric].images == result.images
    assert len(set(kept.patients)) == found.results[0].patients


def test_two_runs_are_compared_on_the_same_images(home):
    (one, found), (other, _) = evaluate(home / "plain"), evaluate(home / "run")
    comparison = compare(one, other, bootstrap=FEW)
    assert (comparison.first, comparison.second, comparison.ids_digest) == ("plain", "run", found.ids_digest)
    assert comparison.differences[0].first == found.results[0].value
    with pytest.raises(DataError, match="results of another split"):
        compare(one, evaluate(home / "run", per_class=2)[0])


def test_calibration_has_a_reason_without_a_temperature(home):
    _, found = evaluate(home / "plain")
    assert found.calibration.ece.images == found.results[0].images
    assert sum(point.images for point in found.calibration.bins) == found.results[0].images
    assert found.calibration.reason.startswith("no temperature: ")  # there are hardly any validation images
    _, every = evaluate(home / "plain", split="train", allow_overlap=True)
    assert every.calibration.reason == (
        "no temperature: it is fitted for test images only, and those of train were evaluated"
    )
    _, every = evaluate(home / "plain", split="all", drop_overlap=True)
    assert every.calibration.reason == "no temperature: all images were evaluated, and none is left to fit it on"


def test_temperature_is_fitted_on_validation_images(home, monkeypatch):
    monkeypatch.setattr("cleft.evaluation.calibration.MIN_VALIDATION_IMAGES", 1)
    _, found = evaluate(home / "plain", scoring="present-absent", classes="Edema,Fracture", blank="absent")
    # Random weights may be no better than guessing; that too is learned from the validation images alone.
    assert found.calibration.temperature or "by chance" in found.calibration.reason


def test_subgroups_of_patients_have_results(home):
    _, found = evaluate(home / "plain")
    by = {groups.by: groups for groups in found.subgroups}
    assert {group.name for group in by["view"].groups} == {"AP", "PA"}
    assert sum(group.images for group in by["view"].groups) == found.results[0].images
    assert [gap.metric for gap in by["view"].gaps] == ["accuracy", "auc"]


def test_moved_data_are_read_from_data_root(home, tmp_path, capsys):
    from cleft.cli import main

    run = shutil.copytree(home / "plain", tmp_path / "run")
    (tmp_path / "elsewhere").mkdir()
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(re.sub(r"root: .*", "root: /gone/data", text, count=1))
    with pytest.raises(DataError, match=r"/gone/data is not a folder; set --data\.root"):
        evaluate(run)
    _, moved = evaluate(run, overrides=("--data.root", str(home / "data")))
    assert moved.split_digest == evaluate(home / "plain")[1].split_digest
    assert moved.command.endswith("--data.root data")
    assert main(["evaluate", str(run), "--data.root", str(home / "data")]) == 0
    assert main(["evaluate", str(run), "--images.size", "32"]) == 2
    assert "only settings of data can" in capsys.readouterr().err
    assert main(["evaluate", str(run), "--data", f"chexpert:{home / 'data'}", "--data.root", "x"]) == 2
    assert "give one of them" in capsys.readouterr().err


def test_a_damaged_environment_file_is_refused_without_harm(home, tmp_path):
    run = shutil.copytree(home / "plain", tmp_path / "run")
    (run / "environment.json").write_text("{")
    settings = load_settings(run)
    with (
        pytest.raises(DataError, match=r"environment\.json .*move this file away: it records versions") as refused,
        open_run(run, settings, "pretrain"),
    ):
        pass
    assert "remove the run" not in str(refused.value)
    (run / "environment.json").unlink()
    with open_run(run, settings, "pretrain"):
        assert (run / "environment.json").is_file()


def test_embedding_map_axes_are_principal_components():
    images = torch.tensor([[0.0, 3, 0.1, 5], [0, -3, 0.1, 5], [1, 0, 0.1, 5], [-1, 0, 0.1, 5]])
    found = map_embeddings(images, torch.tensor([[0.0, 2, 0, 0], [0, -2, 0, 0]]), [0, 1, 0, 1])
    assert found.images == ((0, 3.0, 0.0), (1, -3.0, 0.0), (0, 0.0, 1.0), (1, 0.0, -1.0))
    assert found.prompts == ((2.0, 0.0), (-2.0, 0.0))
    assert found.explained_variance == (0.9, 0.1)  # 18 and 2 of 20 squared units


def test_modality_gap_is_reported_and_removed():
    images = torch.tensor([[1.0, 4], [-1, 4]])
    found = map_embeddings(images, torch.tensor([[1.0, 0], [-1, 0]]), [0, 1])
    assert found.modality_gap == 4
    assert [(x, y) for _, x, y in found.images] == list(found.prompts) == [(1, 0), (-1, 0)]


def test_embedding_map_does_not_depend_on_the_sign_of_a_component():
    images = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    forth, back = map_embeddings(images, images[:2], [0] * 20), map_embeddings(images.flip(0), images[:2], [0] * 20)
    for mine, theirs in zip(sorted(forth.images), sorted(back.images), strict=True):
        assert mine == pytest.approx(theirs, abs=2e-4)


def test_embedding_map_thins_images_by_class():
    images = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0))
    found = map_embeddings(images, images[:2], [0] * 900 + [1] * 100, most=50)
    classes = [index for index, _, _ in found.images]
    assert (classes.count(0), classes.count(1), found.omitted) == (45, 5, 950)


def test_embedding_map_of_a_single_image():
    found = map_embeddings(torch.tensor([[0.6, 0.8, 0]]), torch.tensor([[1.0, 0, 0]]), [0])
    assert found.images == ((0, 0.0, 0.0),)
    assert found.explained_variance == (0, 0)


def test_embedding_map_of_equal_images():
    found = map_embeddings(torch.tensor([[0.6, 0.8]] * 3), torch.tensor([[1.0, 0], [0, 1]]), [0, 1, 1])
    assert {(x, y) for _, x, y in found.images} == {(0.0, 0.0)}
