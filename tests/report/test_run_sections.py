"""What a page shows of a question besides accuracy and AUC."""

import dataclasses
import json

import pytest
from tests.fakes.fake_runs import evaluation, png, result, write_run
from tests.fakes.fake_studies import audit, calibration, retrieval, space, subgroups
from tests.report.test_run_charts import comparison
from tests.report.test_run_page import NASTY, Page

from cleft.report.run_page import render
from cleft.report.runs import read_runs
from cleft.results import to_json

HEAD = {"task": "linear-probe", "protocol": "standard", "prompts": "", "training_seed": 2, "training_fraction": 0.1}


def page(tmp_path, *evaluations, **options):
    return Page(render(read_runs([write_run(tmp_path / "run", *evaluations)]), **options))


def figures(seen):
    return [attrs["aria-label"] for tag, _, attrs in seen.elements if tag == "svg" and "aria-label" in attrs]


def test_linear_probe_and_zero_shot_share_a_table(tmp_path):
    seen = page(tmp_path, evaluation(0.6), evaluation(0.7, **HEAD))
    assert "Zero-shot and linear probe: 5 classes" in seen.text
    assert "run linear probe, standard protocol, 10 % of the training patients, seed 2" in seen.text
    assert "task-2" not in seen.ids
    assert "66.7" in seen.text  # the paper's zero-shot number, beside the row that asks its question


def test_linear_probe_has_no_paper_zero_shot_result(tmp_path):
    seen = page(tmp_path, evaluation(0.7, **HEAD))
    assert "Linear probe: 5 classes" in seen.text
    assert "66.7" not in seen.text


def test_seeds_of_a_probe_are_averaged_and_fractions_are_not(tmp_path):
    seeds = [evaluation(0.5 + seed / 10, **{**HEAD, "training_seed": seed}) for seed in range(3)]
    seen = page(tmp_path, *seeds, evaluation(0.9, **{**HEAD, "training_fraction": 1.0}))
    assert "Mean of 3 seeds" in seen.text
    assert "seeds 0, 1, 2" in seen.text


def test_other_metrics_and_calibration_are_shown(tmp_path):
    base = evaluation(0.6)
    more = (result("auprc", 0.41), result("sensitivity@0.90", 0.3), result("auprc/Edema", 0.2))
    floors = (*base.baselines, result("majority-class/auprc", 0.2))
    made = evaluation(0.6, results=(*base.results, *more), baselines=floors, calibration=calibration())
    text = page(tmp_path, made).text
    head = "Model AUPRC Sensitivity at specificity 0.90 ECE ECE after temperature scaling"
    assert head in text
    assert "ECE 0.094, after temperature scaling 0.021. Temperature 1.83, fitted on 400 validation images." in text


def test_missing_temperature_has_a_reason(tmp_path):
    told = dataclasses.replace(
        calibration(), temperature=None, bins_after=(), ece_after=None, reason="the data have no validation part"
    )
    seen = page(tmp_path, evaluation(0.6, calibration=told))
    assert "No temperature scaling: the data have no validation part." in seen.text


def test_every_chart_has_a_text_alternative(tmp_path):
    made = evaluation(0.6, calibration=calibration(), subgroups=subgroups(), embedding_map=space())
    seen = page(tmp_path, made, retrieval(), audit())
    said = figures(seen)
    for words in ("Reliability diagram of run", "Embedding map of run", "Norms of the learned context of run"):
        assert any(each.startswith(words) for each in said)
    for words in ("By sex", "By age", "80 and over", "Modality gap 0.84", "800 more images"):
        assert words in seen.text


def test_embedding_map_needs_matching_classes(tmp_path):
    wrong = dataclasses.replace(space(), prompts=space().prompts[:4])
    assert not [
        each for each in figures(page(tmp_path, evaluation(0.6, embedding_map=wrong))) if "Embedding map" in each
    ]


def test_retrieval_is_shown_with_chance_and_examples(tmp_path):
    seen = page(tmp_path, retrieval())
    text = seen.text
    assert "Image to text" in text
    assert (
        "940 queries; 60 without a relevant item were not scored. 312 candidates, 4.2 relevant per query on average."
        in text
    )
    assert "Chance level 8.0" in text
    assert "Mean rank" in text
    assert "14.2" in text
    assert "First relevant result at rank 2." in text
    assert "✗ 1 “a chest x ray of a patient with fracture”" in text
    assert len([1 for tag, _, _ in seen.elements if tag == "img"]) == 2 + 5 + 6


def test_retrieved_patient_images_are_hidden_by_default(tmp_path):
    hidden = page(tmp_path / "a", retrieval(synthetic=False))
    shown = page(tmp_path / "b", retrieval(synthetic=False), images=True)
    assert not [tag for tag, _, _ in hidden.elements if tag == "img"]
    assert "4 images with their predictions are not shown" in hidden.text
    assert [tag for tag, _, _ in shown.elements if tag == "img"]


def test_retrieval_example_with_an_invalid_image_is_hidden(tmp_path):
    made = retrieval()
    bad = tuple(
        dataclasses.replace(
            each,
            examples=tuple(
                dataclasses.replace(example, query=dataclasses.replace(example.query, image="x' onerror='alert(1)"))
                for example in each.examples
            ),
        )
        for each in made.retrieval
    )
    seen = page(tmp_path, dataclasses.replace(made, retrieval=bad))
    assert "First relevant result" not in seen.text


def test_prompt_sensitivity_is_shown(tmp_path):
    text = page(tmp_path, audit(0.6)).text
    for words in (
        "this is a chest x ray of a patient with … default template",
        "Accuracy over 5 prompt templates: 48.0 % to 60.0 %, mean 54.0 %, standard deviation 4.7 %.",
        "“a chest x ray with edema” vs. “a chest x ray without edema”",
        "0.940 82.0 % 20.0 %",
        "patient 0.41, with 0.33",
    ):
        assert words in text


def test_comparison_is_shown_on_the_page_of_its_first_run(tmp_path):
    run = write_run(tmp_path / "lora", evaluation(0.65))
    (run / "comparisons").mkdir()
    (run / "comparisons" / "with-ia3.json").write_text(to_json(comparison()))
    (run / "comparisons" / "broken.json").write_text("{")
    text = Page(render(read_runs([run]))).text
    assert "lora vs. ia3" in text
    assert "+5.0" in text
    assert "1,000 paired bootstrap resamples of patients" in text
    assert "broken.json is not valid JSON" in text


def test_results_of_few_patients_are_not_in_page_or_json(tmp_path):
    told = calibration()
    few = dataclasses.replace(
        told,
        ece=result("ece", 0.123456, patients=4),
        bins=(dataclasses.replace(told.bins[0], predicted=0.123457, patients=4), *told.bins[1:]),
    )
    found = subgroups()[0]
    group = dataclasses.replace(found.groups[0], patients=3, results=(result("accuracy", 0.123458),))
    made = evaluation(
        0.6,
        synthetic=False,
        calibration=few,
        subgroups=(dataclasses.replace(found, groups=(group, found.groups[1])),),
        confusion=((2, 1), (40, 60)),
        classes=("Edema", "Pneumonia"),
        roc={},
        embedding_map=dataclasses.replace(space(("Edema", "Pneumonia")), images=((0, 0.123459, 0.1), (1, 0.2, 0.3))),
    )
    html = render(read_runs([write_run(tmp_path / "run", made)]))
    assert "0.12345" not in html
    kept = json.loads(Page(html).data)["run"][0]
    assert kept["calibration"]["ece"]["reason"] == "fewer than 5 patients"
    assert len(kept["calibration"]["bins"]) == 9
    assert [group["name"] for group in kept["subgroups"][0]["groups"]] == ["F"]
    assert kept["embedding_map"] is None
    assert "Not shown, because fewer than 5 images have this label: Edema" in Page(html).text


def hostile(folder, word):
    """A run that carries a word in every place the newer nouns can bring it."""
    made = evaluation(0.6, subgroups=(dataclasses.replace(subgroups()[0], by=word),))
    named = dataclasses.replace(made.subgroups[0].groups[0], name=word)
    made = dataclasses.replace(
        made, subgroups=(dataclasses.replace(made.subgroups[0], groups=(named, made.subgroups[0].groups[1])),)
    )
    told = audit().prompt_sensitivity
    told = dataclasses.replace(
        told,
        templates=(dataclasses.replace(told.templates[0], template=word),),
        negation=(dataclasses.replace(told.negation[0], finding=word, present_prompt=word, absent_prompt=word),),
        context=(dataclasses.replace(told.context[0], nearest_tokens=((word, 0.4),)),),
    )
    found = retrieval().retrieval[0]
    example = dataclasses.replace(
        found.examples[0], query=dataclasses.replace(found.examples[0].query, text=word, image=png(1))
    )
    searched = dataclasses.replace(retrieval(), retrieval=(dataclasses.replace(found, examples=(example,)),))
    run = write_run(folder, made, searched, dataclasses.replace(audit(), prompt_sensitivity=told))
    (run / "comparisons").mkdir()
    against = comparison(first=word, second=word, dataset=word, command=word, notes=(word,), first_task=word)
    (run / "comparisons" / "a.json").write_text(to_json(against))
    return run


@pytest.mark.parametrize("word", NASTY)
def test_markup_in_all_results_is_escaped(tmp_path, word):
    plain = Page(render(read_runs([hostile(tmp_path / "a", "plain words")])))
    nasty = Page(render(read_runs([hostile(tmp_path / "b", word)])))
    assert nasty.shape == plain.shape


def test_links_resolve_and_ids_are_unique(tmp_path):
    made = evaluation(0.6, calibration=calibration(), subgroups=subgroups(), embedding_map=space())
    seen = page(tmp_path, made, evaluation(0.7, **HEAD), retrieval(), audit())
    assert len(seen.ids) == len(set(seen.ids))
    assert {anchor[1:] for anchor in seen.anchors} <= set(seen.ids)
