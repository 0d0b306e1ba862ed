"""Image selection, overlap with training, commands, and tables of embeddings."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.fakes.chexpert import chexpert_row, write_fake_chexpert, write_labels_of
from tests.tools.tiny_runs import tiny_settings, write_drawings

from cleft.cli import main
from cleft.config import DataConfig, ImagesConfig, Settings, load_settings
from cleft.data import read_dataset
from cleft.data.batches import load_image
from cleft.data.splits.recipes import split_records
from cleft.data.splits.split_file import make_split_file, write_split_file
from cleft.errors import ConfigError, DataError
from cleft.evaluation import EvaluationOptions, ZeroShotOptions
from cleft.evaluation.result_files import reversal_notes
from cleft.evaluation.task import command_of, parse_classes, select_images
from cleft.models.checkpoint import load_model
from cleft.results import Result
from cleft.training.dataset import read_training_data
from cleft.training.pretrain import pretrain


def area(value, low, high, metric="auc/Edema"):
    return Result(metric=metric, value=value, interval=(low, high))


def test_an_auc_far_below_chance_is_warned_of_with_its_interval():
    [note] = reversal_notes([area(0.2, 0.1, 0.3), area(0.7, 0.6, 0.8, "auc/Fracture"), area(0.3, 0.2, 0.4, "auc")])
    assert note.startswith("Beware: auc/Edema 0.200 [0.100-0.300], auc 0.300 [0.200-0.400] are far below chance (0.5)")
    assert "Check whether labels or prompts are reversed." in note
    assert "Fracture" not in note


@pytest.mark.parametrize(
    "harmless",
    [
        area(0.45, 0.41, 0.49),  # below a half, but not far
        area(0.3, 0.1, 0.55),  # far, but it may be chance
        area(0.2, 0.1, 0.3, "accuracy"),  # of five classes that is chance
        area(0.2, 0.1, 0.3, "majority-class/auc"),
        Result(metric="auc", value=None),
        Result(metric="auc", value=0.1),
    ],
)
def test_values_near_chance_and_other_metrics_are_not_warned_of(harmless):
    assert reversal_notes([harmless]) == []


def test_command_names_options_that_differ_from_defaults_and_no_folder():
    options = ZeroShotOptions(
        data="rsna:/home/somebody/rsna",
        classes=("Edema", "Pleural Effusion"),
        drop_overlap=True,
        class_names="/home/somebody/mine.yaml",
        overrides=("--data.table", "/home/somebody/table.csv"),
    )
    assert command_of(Path("runs/one"), "zero-shot", options) == (
        "cleft evaluate one --task zero-shot --data 'rsna:<folder>' --drop-overlap --classes 'Edema,Pleural Effusion' "
        "--class-names mine.yaml --data.table table.csv"
    )


def test_classes_may_be_one_string():
    assert parse_classes("Edema, Pleural Effusion,") == parse_classes(["Edema", "Pleural Effusion"])
    assert parse_classes(None) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"per_class": 0}, "--per-class 0: give 1 or more"),
        ({"per_class": 1, "per_patient": 0}, "--per-patient 0: give 1 or more"),
        ({"per_patient": 2}, "--per-patient 2 has no effect without --per-class"),
    ],
)
def test_numbers_of_images_below_one_or_without_effect_are_refused(place, options, message):
    with pytest.raises(ConfigError, match=message):
        select_images(place / "run", settings(place), EvaluationOptions(**options), progress=False)


LISTED = [f"train/patient{p:05}/study1/view1_frontal.jpg" for p in range(3)]


@pytest.fixture
def place(tmp_path):
    """Twelve patients with two studies each, a list of three of their images, and a run without training patients."""
    images = [f"patient{p:05}/study{s}/view1_frontal.jpg" for p in range(12) for s in (1, 2)]
    write_fake_chexpert(tmp_path / "data", [chexpert_row(image, {"Edema": "1.0"}) for image in images])
    (tmp_path / "list.txt").write_text("\n".join(LISTED) + "\n")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "split.json").write_text(json.dumps({"people": "chexpert", "patients": [], "digest": "x"}))
    return tmp_path


def settings(place, **data):
    config = DataConfig(root=place / "data", cache=place / "cache", val_fraction=0.2, **data)
    return Settings(data=config, images=ImagesConfig(stored_size=32, size=32))


def select(place, part="test", **data):
    options = EvaluationOptions(split=part)
    return select_images(place / "run", settings(place, **data), options, progress=False)


def test_leakage_between_splits_is_noted_with_numbers(place):
    chosen = select(place, split="5x200-paper", test_list=place / "list.txt")
    assert [record.id for record in chosen.records] == LISTED
    assert any(note.startswith("Beware: ") and "all 3 test patients are also in" in note for note in chosen.notes)
    assert any(note.startswith("The list is not 200 images of each class: it has 3 (") for note in chosen.notes)


def test_a_split_without_leakage_has_no_warning(place):
    chosen = select(place, split="5x200-strict", test_list=place / "list.txt")
    assert not any("Beware" in note for note in chosen.notes)


def test_leakage_of_other_splits_is_not_noted(place):
    notes = select(place, part="train", split="5x200-paper", test_list=place / "list.txt").notes
    assert not any("Beware" in note for note in notes)


def test_a_split_file_is_used_and_named(place):
    mine = settings(place)
    reading = read_dataset(mine.data)
    drawn = split_records(reading, mine.data)
    write_split_file(place / "split.json", make_split_file(drawn, reading, mine.data, salts={}, hashed=True))
    chosen = select(place, split="5x200-strict", split_file=place / "split.json")
    assert chosen.split_digest == drawn.digest
    assert chosen.recipe == "patients"
    assert chosen.notes == ["The split is read from split.json."]


def test_training_data_facts_name_tables_and_leakage(place):
    mine = settings(place, split="5x200-paper", test_list=place / "list.txt", label_source="chexbert")
    rows = [chexpert_row(f"patient{p:05}/study{s}/view1_frontal.jpg") for p in range(12) for s in (1, 2)]
    labels = {row["Path"].partition("train/")[2]: {"Edema": "1.0"} for row in rows}
    write_labels_of(place / "data" / "CheXpert-v1.0-small", "train_cheXbert.csv", rows, labels)
    facts = read_training_data(mine, progress=False).facts()
    assert list(facts["sources"]) == ["train.csv", "train_cheXbert.csv", "list.txt (test list)"]
    shared = {leak["into"]: leak["images"] for leak in facts["leaks"] if leak["part"] == "test"}
    assert sum(shared.values()) == 3
    assert json.loads(json.dumps(facts)) == facts


def test_only_prepared_images_are_used_if_preparation_is_required(place):
    with pytest.raises(DataError, match=r"data\.prepare=required forbids decoding; run cleft data prepare"):
        select(place, part="val", prepare="required")
    with pytest.raises(DataError, match=r"data\.prepare=required forbids decoding; run cleft data prepare"):
        read_training_data(settings(place, prepare="required"), progress=False)
    read_training_data(settings(place), progress=False)
    assert len(read_training_data(settings(place, prepare="required"), progress=False).train) > 0
    assert len(select(place, part="val", prepare="required").records) > 0


def test_a_run_of_another_user_is_evaluated_on_its_own_test_split_only(place, monkeypatch):
    facts = read_training_data(settings(place, split="patients"), progress=False).facts()
    (place / "run" / "split.json").write_text(json.dumps(facts))
    (place / "run" / "model.json").write_text("{}")
    mine = select(place, split="patients")
    monkeypatch.setenv("CLEFT_USER_DIR", str(place / "other user"))
    assert [record.id for record in select(place, split="patients").records] == [record.id for record in mine.records]
    with pytest.raises(DataError, match="patients were trained on or used to choose the weights"):
        select(place, part="val", split="patients")
    with pytest.raises(DataError, match=r"written by another user .*--allow-overlap evaluates anyway"):
        select(place, part="all", split="patients")
    moved = settings(place, split="patients")
    options = EvaluationOptions(split="all", allow_overlap=True)
    notes = select_images(place / "run", moved, options, progress=False).notes
    assert "The run does not say which patients it was trained on; these may be among them." in notes


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = write_drawings(tmp_path_factory.mktemp("drawings") / "data", patients=40)
    return pretrain(tiny_settings(root, "--optim.steps=4"), tmp_path_factory.mktemp("runs") / "one", progress=False)


def test_embeddings_table_names_the_image_of_each_row(run, tmp_path, capsys):
    out = tmp_path / "deep" / "embeddings.csv"
    assert main(["evaluate", str(run), "--split", "all", "--allow-overlap", "--embeddings", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    assert out.stat().st_mode & 0o077 == 0
    settings = load_settings(run)
    with (settings.data.root / "manifest.csv").open() as file:
        named = [row["image"] for row in csv.DictReader(file)]
    with out.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["image", *(f"e{column}" for column in range(settings.loss.embed_dim))]
    assert [row[0] for row in rows] == named
    model = load_model(run)
    with torch.no_grad():
        own = model.encode_image(load_image(settings.data.root / named[7], settings.images))[0].numpy()
    np.testing.assert_allclose(np.array(rows[7][1:], dtype=np.float64), own, atol=1e-5)


def test_an_embeddings_table_that_cannot_be_written_is_refused_first(run, tmp_path, capsys):
    mine = tmp_path / "mine.csv"
    mine.write_text("image\n")
    for words, message in (
        (["--embeddings", str(mine)], "was not written by cleft"),
        (
            ["--embeddings", str(load_settings(run).data.root / "manifest.csv")],
            "was not written by cleft",
        ),
        (["--embeddings", str(tmp_path)], "is a folder; name a file"),
        (["--embeddings", str(tmp_path / "a.csv"), "--against", str(run)], "leave out --against"),
    ):
        before = sorted((run / "results").glob("*")) if (run / "results").is_dir() else []
        assert main(["evaluate", str(run), *words]) == 2
        assert message in capsys.readouterr().err
        assert (sorted((run / "results").glob("*")) if (run / "results").is_dir() else []) == before
    assert mine.read_text() == "image\n"
