"""Prompt sensitivity of small untrained models, and of embeddings made by hand."""

import pytest
import torch
from tests.fakes.untrained import CLASSES, write_untrained_runs

from cleft.data.text.prompts import TEMPLATES, class_prompt, prompt_templates
from cleft.evaluation import Bootstrap, PromptSensitivityOptions, ZeroShotOptions
from cleft.evaluation.prompt_sensitivity import evaluate_prompts, nearest_tokens, template_spread
from cleft.evaluation.result_files import read_evaluation, summary_lines
from cleft.evaluation.zero_shot import evaluate_zero_shot
from cleft.results import PromptTemplate, Result

FEW = Bootstrap(resamples=50)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return write_untrained_runs(tmp_path_factory.mktemp("sensitivity"))


def evaluate(run, **options):
    path = evaluate_prompts(run, PromptSensitivityOptions(bootstrap=FEW, **options), progress=False)
    return path, read_evaluation(path)


def template(**values):
    return PromptTemplate(
        template="", default=False, results=tuple(Result(metric=m, value=v) for m, v in values.items())
    )


def test_spread_over_all_templates():
    accuracy, area = template_spread([template(accuracy=0.2, auc=0.5), template(accuracy=0.6, auc=0.5)])
    assert (accuracy.metric, accuracy.lowest, accuracy.highest, accuracy.mean) == ("accuracy", 0.2, 0.6, 0.4)
    assert accuracy.std == pytest.approx(0.08**0.5)
    assert (area.metric, area.std) == ("auc", 0.0)


def test_a_metric_missing_for_a_template_has_no_spread():
    found = template_spread([template(accuracy=0.2, auc=None), template(accuracy=0.6, auc=0.5)])
    assert [spread.metric for spread in found] == ["accuracy"]


def test_nearest_tokens_ignore_norms():
    table = torch.tensor([[0.0, 1.0], [9.0, 0.1], [0.5, 0.5]])
    places, cosines = nearest_tokens(torch.tensor([[0.01, 0.0], [0.0, -2.0]]), table, number=2)
    assert places.tolist() == [[1, 2], [1, 2]]
    assert cosines[0].tolist() == pytest.approx([0.99994, 0.70711], abs=1e-4)
    assert cosines[1, 1] == pytest.approx(-0.70711, abs=1e-4)


def test_the_given_template_comes_first():
    for name, others in TEMPLATES.items():
        assert prompt_templates(name)[0] == name
        assert len(set(prompt_templates(name))) == len(others) + 1 >= 7
    assert class_prompt("Edema", "") == "edema"


def test_results_of_every_template(home):
    path, found = evaluate(home / "plain")
    assert path.name.startswith("prompts-chexpert-test-5-classes-handwritten-")
    sensitivity = found.prompt_sensitivity
    assert [each.default for each in sensitivity.templates] == [True] + [False] * 7
    assert {spread.metric for spread in sensitivity.spread} == {"accuracy", "auc"}
    assert all(spread.lowest <= spread.mean <= spread.highest for spread in sensitivity.spread)
    assert [test.finding for test in sensitivity.negation] == list(CLASSES)
    assert sensitivity.context == ()
    assert sensitivity.token_norm > 0
    zero_shot = read_evaluation(evaluate_zero_shot(home / "plain", ZeroShotOptions(bootstrap=FEW), progress=False))
    assert found.results == tuple(result for result in zero_shot.results if result.metric in ("accuracy", "auc"))
    assert sensitivity.templates[0].results == found.results
    assert found.ids_digest == zero_shot.ids_digest


def test_negation_pair_equals_present_absent_scoring(home):
    words = {"scoring": "present-absent", "classes": "Edema,Fracture", "blank": "absent"}
    _, found = evaluate(home / "plain", **words)
    zero_shot = read_evaluation(
        evaluate_zero_shot(home / "plain", ZeroShotOptions(bootstrap=FEW, **words), progress=False)
    )
    areas = {result.metric: result.value for result in zero_shot.results}
    for test in found.prompt_sensitivity.negation:
        pair = {result.metric: result.value for result in test.results}["auc/pair"]
        assert pair == pytest.approx(areas[f"auc/{test.finding}"])
        assert test.absent_prompt.endswith(f"with no {test.finding.lower()}")
        assert -1 <= test.cosine <= 1
        assert 0 <= test.predicted_present <= 1
    assert found.prompt_sensitivity.negation[0].prevalence == pytest.approx(
        next(result for result in zero_shot.baselines if result.metric == "majority-class/auprc/Edema").value
    )


def test_a_finding_present_in_every_image_has_no_auc_but_a_reason(home):
    _, found = evaluate(home / "plain")
    test = found.prompt_sensitivity.negation[1]
    assert [result.value for result in test.results] == [None] * 3
    assert test.results[0].reason == "every image shows Edema"
    assert test.prevalence == 1.0


def test_context_vectors_have_nearest_tokens(home):
    _, found = evaluate(home / "run")
    context = found.prompt_sensitivity.context
    assert [vector.position for vector in context] == [1, 2, 3, 4]
    for vector in context:
        cosines = [cosine for _, cosine in vector.nearest_tokens]
        assert len(cosines) == 5
        assert cosines == sorted(cosines, reverse=True)
        assert vector.norm > 0
    lines = summary_lines(found)
    assert any(line.startswith("accuracy over 8 prompt templates: ") for line in lines)
    assert any(line.startswith("context: 4 vectors of norm ") for line in lines)
    assert any(line.startswith("Edema: prompts for presence and absence have cosine ") for line in lines)
