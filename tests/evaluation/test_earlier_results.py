"""Result files that version 0.1.0 wrote are read, with the names that their fields have now."""

import json
import shutil
from pathlib import Path

import pytest

from cleft.evaluation.compare import compare
from cleft.evaluation.result_files import read_evaluation, read_predictions, result_name
from cleft.results import Comparison, from_json, to_json

ARCHIVE = Path(__file__).with_name("results-0.1.0.tar.xz")
"""Results of small models on synthetic images: zero-shot of both scorings, with and without a learned context, a linear
probe, retrieval, prompt sensitivity and a comparison, with predictions; images are replaced by one pixel."""


@pytest.fixture
def results(tmp_path):
    """Result file by task and prompts."""
    shutil.unpack_archive(ARCHIVE, tmp_path, filter="data")
    found = {}
    for path in sorted(tmp_path.glob("*/results/*.json")):
        evaluation = read_evaluation(path)
        found[evaluation.task, evaluation.scoring, evaluation.prompts] = path
    return found


def test_every_kind_of_result_is_read_and_rewritten(results):
    assert {task for task, _, _ in results} == {"zero-shot", "linear-probe", "retrieval", "prompts"}
    assert len(results) == 6
    for path in results.values():
        evaluation, stored = read_evaluation(path), json.loads(path.read_text())
        assert [result.value for result in evaluation.baselines] == [result["value"] for result in stored["floors"]]
        path.write_text(to_json(evaluation))
        assert read_evaluation(path) == evaluation


def test_renamed_fields_keep_their_values(results):
    stored = {key: json.loads(path.read_text()) for key, path in results.items()}
    prompts = read_evaluation(results["prompts", "multi-class", "handwritten"]).prompt_sensitivity
    old = stored["prompts", "multi-class", "handwritten"]["audit"]
    assert [each.template for each in prompts.templates] == [each["opening"] for each in old["templates"]]
    assert [each.default for each in prompts.templates] == [each["usual"] for each in old["templates"]]
    assert [each.predicted_present for each in prompts.negation] == [each["said_present"] for each in old["denials"]]
    assert [each.displacement for each in prompts.context] == [each["moved"] for each in old["context"]]
    retrieval = read_evaluation(results["retrieval", "nearest", "captions"]).retrieval
    old = stored["retrieval", "nearest", "captions"]["retrieval"]
    assert [each.without_match for each in retrieval] == [each["unanswerable"] for each in old]
    assert [each.relevant_per_query for each in retrieval] == [each["right"] for each in old]
    assert [item.relevant for item in retrieval[0].examples[0].retrieved] == [
        item["right"] for item in old[0]["examples"][0]["answers"]
    ]
    key = "zero-shot", "multi-class", "handwritten"
    zero_shot, old = read_evaluation(results[key]), stored[key]
    assert list(zero_shot.embedding_map.explained_variance) == old["space"]["shares"]
    assert zero_shot.embedding_map.modality_gap == old["space"]["gap"]
    probe = read_evaluation(results["linear-probe", "multi-class", "none"])
    assert (probe.protocol, probe.training_fraction) == ("standard", 1.0)


def test_the_number_of_images_per_class_is_read_from_the_command(results):
    assert read_evaluation(results["zero-shot", "multi-class", "handwritten"]).per_class == 4
    assert read_evaluation(results["zero-shot", "present-absent", "handwritten"]).per_class is None


def test_a_new_evaluation_overwrites_the_file_of_an_earlier_version(results):
    for (task, _, _), path in results.items():
        if task != "linear-probe":  # its name holds the name of the protocol, which changed
            assert f"{result_name(read_evaluation(path))}.json" == path.name


def test_predictions_and_comparisons_are_read(results, tmp_path):
    one, other = (results["zero-shot", "multi-class", prompts] for prompts in ("handwritten", "context"))
    assert read_predictions(one, read_evaluation(one)).scores.shape == (8, 2)
    [path] = tmp_path.glob("*/comparisons/*.json")
    before = from_json(path.read_text(), Comparison, where=path.name)
    assert before.differences == compare(one, other).differences
