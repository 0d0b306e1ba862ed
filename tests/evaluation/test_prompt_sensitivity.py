"""What answers owe to the wording, with tiny towers of random weights and with embeddings made by hand."""

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
    return write_untrained_runs(tmp_path_factory.mktemp("audit"))


def ask(run, **options):
    path = evaluate_prompts(run, PromptSensitivityOptions(bootstrap=FEW, **options), progress=False)
    return path, read_evaluation(path)


def template(**values):
    return PromptTemplate(
        template="", default=False, results=tuple(Result(metric=m, value=v) for m, v in values.items())
    )


def test_the_spread_is_that_of_all_templates():
    accuracy, area = template_spread([template(accuracy=0.2, auc=0.5), template(accuracy=0.6, auc=0.5)])
    assert (accuracy.metric, accuracy.lowest, accuracy.highest, accuracy.mean) == ("accuracy", 0.2, 0.6, 0.4)
    assert accuracy.std == pytest.approx(0.08**0.5)
    assert (area.metric, area.std) == ("auc", 0.0)


def test_what_is_not_measured_behind_every_opening_has_no_spread():
    found = template_spread([template(accuracy=0.2, auc=None), template(accuracy=0.6, auc=0.5)])
    assert [spread.metric for spread in found] == ["accuracy"]


def test_the_nearest_token_points_the_same_way_however_long_it_is():
    table = torch.tensor([[0.0, 1.0], [9.0, 0.1], [0.5, 0.5]])
    places, cosines = nearest_tokens(torch.tensor([[0.01, 0.0], [0.0, -2.0]]), table, number=2)
    assert places.tolist() == [[1, 2], [1, 2]]
    assert cosines[0].tolist() == pytest.approx([0.99994, 0.70711], abs=1e-4)
    assert cosines[1, 1] == pytest.approx(-0.70711, abs=1e-4)


def test_openings_mean_the_same_and_the_given_one_comes_first():
    for opening, others in TEMPLATES.items():
        assert prompt_templates(opening)[0] == opening
        assert len(set(prompt_templates(opening))) == len(others) + 1 >= 7
    assert class_prompt("Edema", "") == "edema"


def test_an_audit_of_handwritten_prompts(home):
    path, found = ask(home / "plain")
    assert path.name.startswith("prompts-chexpert-test-5-classes-handwritten-")
    audit = found.prompt_sensitivity
    assert [each.default for each in audit.templates] == [True] + [False] * 7
    assert {spread.metric for spread in audit.spread} == {"accuracy", "auc"}
    assert all(spread.lowest <= spread.mean <= spread.highest for spread in audit.spread)
    assert [denial.finding for denial in audit.negation] == list(CLASSES)
    assert audit.context == ()
    assert audit.token_norm > 0
    usual = read_evaluation(evaluate_zero_shot(home / "plain", ZeroShotOptions(bootstrap=FEW), progress=False))
    assert found.results == tuple(result for result in usual.results if result.metric in ("accuracy", "auc"))
    assert audit.templates[0].results == found.results
    assert found.ids_digest == usual.ids_digest


def test_the_pair_of_a_denial_is_present_absent_scoring(home):
    words = {"scoring": "present-absent", "classes": "Edema,Fracture", "blank": "absent"}
    _, found = ask(home / "plain", **words)
    usual = read_evaluation(evaluate_zero_shot(home / "plain", ZeroShotOptions(bootstrap=FEW, **words), progress=False))
    areas = {result.metric: result.value for result in usual.results}
    for denial in found.prompt_sensitivity.negation:
        pair = {result.metric: result.value for result in denial.results}["auc/pair"]
        assert pair == pytest.approx(areas[f"auc/{denial.finding}"])
        assert denial.absent_prompt.endswith(f"with no {denial.finding.lower()}")
        assert -1 <= denial.cosine <= 1
        assert 0 <= denial.predicted_present <= 1
    assert found.prompt_sensitivity.negation[0].prevalence == pytest.approx(
        next(result for result in usual.baselines if result.metric == "majority-class/auprc/Edema").value
    )


def test_a_finding_that_is_never_denied_has_no_auc_and_says_so(home):
    _, found = ask(home / "plain")
    denial = found.prompt_sensitivity.negation[1]
    assert [result.value for result in denial.results] == [None] * 3
    assert denial.results[0].reason == "every image shows Edema"
    assert denial.prevalence == 1.0


def test_the_context_is_held_against_the_vocabulary(home):
    _, found = ask(home / "run")
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
