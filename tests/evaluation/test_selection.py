"""Which images are asked about, and what is said of the split they come from."""

import json

import pytest
from tests.fakes.chexpert import chexpert_row, write_fake_chexpert, write_labels_of

from cleft.config import DataConfig, ImagesConfig, Settings
from cleft.data import read_dataset
from cleft.data.splits.recipes import split_records
from cleft.data.splits.split_file import make_split_file, write_split_file
from cleft.errors import DataError
from cleft.evaluation.selection import select_images
from cleft.training.dataset import read_material

LISTED = [f"train/patient{p:05}/study1/view1_frontal.jpg" for p in range(3)]


@pytest.fixture
def place(tmp_path):
    """Twelve patients with two studies each, a list of three of their images, and a run that has seen nobody."""
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
    mine = settings(place, **data)
    return select_images(place / "run", mine.data, mine, part, progress=False)


def test_a_leak_stands_in_the_notes_of_a_result_in_numbers(place):
    chosen = select(place, split="5x200-paper", test_list=place / "list.txt")
    assert [record.id for record in chosen.records] == LISTED
    assert any(note.startswith("Beware: ") and "all 3 test patients are also in" in note for note in chosen.notes)
    assert any(note.startswith("The list is not 200 images of each class: it has 3 (") for note in chosen.notes)


def test_a_split_without_a_leak_says_nothing_of_one(place):
    chosen = select(place, split="5x200-strict", test_list=place / "list.txt")
    assert not any("Beware" in note for note in chosen.notes)


def test_only_the_part_that_is_asked_about_is_warned_of(place):
    notes = select(place, part="train", split="5x200-paper", test_list=place / "list.txt").notes
    assert not any("Beware" in note for note in notes)


def test_a_split_file_is_followed_and_named(place):
    mine = settings(place)
    reading = read_dataset(mine.data)
    drawn = split_records(reading, mine.data)
    write_split_file(place / "split.json", make_split_file(drawn, reading, mine.data, salts={}, hashed=True))
    chosen = select(place, split="5x200-strict", split_file=place / "split.json")
    assert chosen.split_digest == drawn.digest
    assert chosen.recipe == "patients"
    assert chosen.notes == ["The split is that of split.json."]


def test_what_a_run_learned_from_names_its_tables_and_its_leaks(place):
    mine = settings(place, split="5x200-paper", test_list=place / "list.txt", labels="chexbert")
    rows = [chexpert_row(f"patient{p:05}/study{s}/view1_frontal.jpg") for p in range(12) for s in (1, 2)]
    labels = {row["Path"].partition("train/")[2]: {"Edema": "1.0"} for row in rows}
    write_labels_of(place / "data" / "CheXpert-v1.0-small", "train_cheXbert.csv", rows, labels)
    facts = read_material(mine, progress=False).facts()
    assert list(facts["sources"]) == ["train.csv", "train_cheXbert.csv", "list.txt (test list)"]
    shared = {leak["into"]: leak["images"] for leak in facts["leaks"] if leak["part"] == "test"}
    assert sum(shared.values()) == 3
    assert json.loads(json.dumps(facts)) == facts


def test_images_prepared_ahead_are_taken_and_others_are_refused(place):
    with pytest.raises(DataError, match=r"data\.prepare=ahead decodes none here; run cleft data prepare"):
        select(place, part="val", prepare="ahead")
    with pytest.raises(DataError, match=r"data\.prepare=ahead decodes none here; run cleft data prepare"):
        read_material(settings(place, prepare="ahead"), progress=False)
    read_material(settings(place), progress=False)
    assert len(read_material(settings(place, prepare="ahead"), progress=False).train) > 0
    assert len(select(place, part="val", prepare="ahead").records) > 0


def test_a_run_of_another_user_is_evaluated_on_the_split_it_was_trained_on_and_on_nothing_unknown(place, monkeypatch):
    facts = read_material(settings(place, split="patients"), progress=False).facts()
    (place / "run" / "split.json").write_text(json.dumps(facts))
    (place / "run" / "model.json").write_text("{}")
    mine = select(place, split="patients")
    monkeypatch.setenv("CLEFT_USER_DIR", str(place / "other user"))
    assert [record.id for record in select(place, split="patients").records] == [record.id for record in mine.records]
    with pytest.raises(DataError, match="patients were trained on or used to choose the weights"):
        select(place, part="val", split="patients")
    with pytest.raises(DataError, match=r"written by another user .*--allow-overlap scores these all the same"):
        select(place, part="all", split="patients")
    moved = settings(place, split="patients")
    notes = select_images(place / "run", moved.data, moved, "all", allow_overlap=True, progress=False).notes
    assert "The run does not say which patients it was trained on; these may be among them." in notes
