"""Retrieval with small untrained models."""

import json
import re
import stat

import pytest
from tests.fakes.chexpert import chexpert_row, write_fake_chexpert
from tests.fakes.untrained import write_untrained_runs

from cleft.cli import main
from cleft.errors import CheckpointError, ConfigError, DataError
from cleft.evaluation import DIRECTIONS, Bootstrap, RetrievalOptions
from cleft.evaluation.result_files import read_evaluation, summary_lines
from cleft.evaluation.retrieval import evaluate_retrieval, parse_directions

FEW = Bootstrap(resamples=50)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return write_untrained_runs(tmp_path_factory.mktemp("retrieval"))


def evaluate(run, **options):
    path = evaluate_retrieval(run, RetrievalOptions(bootstrap=FEW, **options), progress=False)
    return path, read_evaluation(path)


def test_every_direction_has_results_and_chance_level(home):
    path, found = evaluate(home / "plain")
    assert (found.task, found.scoring, found.prompts, found.classes) == ("retrieval", "nearest", "captions", ())
    assert path.name.startswith("retrieval-chexpert-test-captions-")
    assert [each.direction for each in found.retrieval] == list(DIRECTIONS)
    texts, images, similar = found.retrieval
    # Seven captions: five classes, none of them, and two together; 70 images of 35 patients.
    assert (texts.queries, texts.candidates, texts.relevant_per_query) == (70, 7, 1.0)
    assert (images.queries, images.candidates, images.relevant_per_query) == (7, 70, 10.0)
    assert similar.candidates == 70
    results = {result.metric: result for result in found.results}
    baselines = {baseline.metric: baseline for baseline in found.baselines}
    assert set(baselines) == {f"chance/{metric}" for metric in results}
    assert baselines["chance/image-to-text/recall@1"].value == pytest.approx(1 / 7)
    assert baselines["chance/image-to-text/mean-rank"].value == pytest.approx(4)
    assert results["image-to-text/recall@10"].reason == "there are only 7 candidates"
    assert 1 <= results["text-to-image/median-rank"].value <= 70
    assert results["text-to-image/recall@1"].images == 70
    low, high = results["image-to-text/mean-rank"].interval
    assert low <= results["image-to-text/mean-rank"].value <= high
    assert found.command == "cleft evaluate plain --task retrieval"


def test_examples_agree_with_the_rank_of_the_first_match(home):
    _, found = evaluate(home / "plain", examples=3)
    texts, images, similar = found.retrieval
    for example in texts.examples:
        assert example.query.image
        assert [item.relevant for item in example.retrieved].count(True) == (example.rank <= 5)
        if example.rank <= 5:
            assert example.retrieved[example.rank - 1].relevant
    for example in images.examples:
        assert example.query.text.startswith("this is a chest x ray")
        assert all(item.image for item in example.retrieved)
    for example in similar.examples:
        assert all(item.relevant == (item.text == example.query.text) for item in example.retrieved)
    assert len(texts.examples) == 3


def test_examples_of_patients_are_private_and_hold_no_ids(home):
    path, _ = evaluate(home / "plain")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    tree = json.loads(path.read_text())
    text = re.sub(r'"image": "[^"]*"', "", json.dumps(tree))
    assert not re.search(r"patient0|study\d|view1", text)
    assert str(home) not in text
    _, none = evaluate(home / "plain", examples=0)
    assert [each.examples for each in none.retrieval] == [(), (), ()]


def test_a_caption_of_few_patients_is_not_shown(home, tmp_path):
    rows = [
        chexpert_row(f"patient{i:05d}/study1/view1_frontal.jpg", {"Edema": "1.0"} if i > 3 else {"Fracture": "1.0"})
        for i in range(1, 31)
    ]
    data = write_fake_chexpert(tmp_path / "rare", rows)
    _, found = evaluate(home / "plain", data=f"chexpert:{data}", split="all", allow_overlap=True, examples=30)
    shown = {item.text for example in found.retrieval[0].examples for item in example.retrieved}
    assert shown == {"", "this is a chest x ray of a patient with edema"}


def test_directions_can_be_chosen(home):
    _, found = evaluate(home / "plain", directions="image-to-image")
    assert [each.direction for each in found.retrieval] == ["image-to-image"]
    assert found.prompts == "none"
    assert found.command.endswith("--directions image-to-image")
    assert parse_directions("text-to-image, image-to-text") == DIRECTIONS[:2]
    with pytest.raises(ConfigError, match="--directions text-to-text: choose from image-to-text"):
        parse_directions("text-to-text")


def test_image_retrieval_excludes_the_own_patient(home):
    _, found = evaluate(home / "plain", directions=("image-to-image",))
    # Each patient has two images with the same findings; the other one is not a candidate.
    baselines = {baseline.metric: baseline.value for baseline in found.baselines}
    assert baselines["chance/image-to-image/mean-rank"] > 1
    assert found.retrieval[0].relevant_per_query < 20


def test_image_retrieval_without_any_match_is_left_out(home, tmp_path):
    names = ["Edema", "Fracture", "Consolidation", "Atelectasis"]
    rows = [chexpert_row(f"patient{i:05d}/study1/view1_frontal.jpg", {name: "1.0"}) for i, name in enumerate(names, 1)]
    data = write_fake_chexpert(tmp_path / "apart", rows)
    other = {"data": f"chexpert:{data}", "split": "all", "allow_overlap": True}
    with pytest.raises(DataError, match="no two images of different patients show the same findings"):
        evaluate(home / "plain", **other, directions="image-to-image")
    _, found = evaluate(home / "plain", **other)
    assert [each.direction for each in found.retrieval] == ["image-to-text", "text-to-image"]
    assert any("image-to-image: not evaluated, as no two images" in note for note in found.notes)


def test_summary_names_every_direction_with_chance_level(home):
    _, found = evaluate(home / "plain")
    lines = summary_lines(found)
    assert any(re.match(r"text-to-image/recall@5 0\.\d+ .*; baseline 0\.\d+ \(chance\)$", line) for line in lines)


def test_a_run_without_text_tower_retrieves_images_only(home, tmp_path):
    run = tmp_path / "tower"
    words = [f"--data.root={home / 'data'}", f"--data.cache={home / 'cache'}", "--data.test_fraction=0.5"]
    assert main(["pretrain", "tiny", "--run", str(run), "--method=image-only", *words]) == 0
    with pytest.raises(CheckpointError, match="without text embeddings; retrieve images by images only: --directions"):
        evaluate(run)
    _, found = evaluate(run, directions=("image-to-image",))
    assert found.retrieval[0].queries > 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--task", "retrieval", "--scoring", "present-absent"], "--scoring present-absent does nothing with"),
        (["--task", "retrieval", "--classes", "Edema"], "--classes Edema does nothing with --task retrieval"),
        (["--task", "retrieval", "--against", "x"], "--against compares classifications; leave out --task retrieval"),
        (["--directions", "image-to-text"], "--directions image-to-text does nothing with --task zero-shot"),
        (["--task", "prompts", "--prompts", "context"], "--prompts context does nothing with --task prompts"),
    ],
)
def test_options_without_effect_are_refused(home, capsys, words, sentence):
    assert main(["evaluate", str(home / "plain"), *words]) == 2
    assert sentence in capsys.readouterr().err
