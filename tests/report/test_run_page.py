"""The report of runs: from files alone, self-contained, escaped, without private values."""

import dataclasses
import json
import re
import string
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes.fake_runs import FIVE, evaluation, png, result, write_run
from tests.fakes.fake_studies import audit, calibration, retrieval, space, subgroups
from tests.report.test_run_charts import comparison

from cleft.errors import DataError, ResourceError
from cleft.report.paper import published
from cleft.report.run_page import render, write_report
from cleft.report.runs import read_runs
from cleft.results import to_json


class Page(HTMLParser):
    """Elements, attributes and text of a page."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.words, self.data, self._inside = [], [], "", ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, tuple(sorted(name for name, _ in attrs)), dict(attrs)))
        self._inside = tag

    def handle_data(self, data):
        if self._inside == "script":
            self.data += data
        elif self._inside != "style":
            self.words.append(data)

    def handle_endtag(self, tag):
        self._inside = ""

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))

    @property
    def shape(self):
        return [(tag, names) for tag, names, _ in self.elements]

    @property
    def ids(self):
        return [attrs["id"] for _, _, attrs in self.elements if "id" in attrs]

    @property
    def anchors(self):
        return [attrs["href"] for tag, _, attrs in self.elements if tag == "a"]


def page(folders, **options):
    return Page(render(read_runs(folders), **options))


def test_results_with_different_class_phrases_share_a_table(tmp_path):
    usual = evaluation(0.7, classes=("No Pneumonia", "Pneumonia"))
    other = evaluation(0.6, classes=("No Pneumonia", "Pneumonia"), class_names="released", baselines=usual.baselines)
    text = page([write_run(tmp_path / "run", usual, other)]).text
    assert text.count("Zero-shot: No Pneumonia vs. Pneumonia") >= 1
    assert "run handwritten prompts, class names “released”" in text
    assert "Class names default" in text
    assert "Class names released" in text


def test_report_is_self_contained(two_stages, tmp_path):
    html = write_report(two_stages, tmp_path / "out" / "report.html").read_text()
    assert "http:" not in html
    assert "https:" not in html
    assert "@import" not in html
    assert "default-src 'none'" in html
    scripts = [attrs for tag, _, attrs in Page(html).elements if tag == "script"]
    assert scripts == [{"type": "application/json", "id": "cleft-results"}]
    sources = {attrs["src"][:22] for _, _, attrs in Page(html).elements if "src" in attrs}
    assert sources == {"data:image/png;base64,"}


def test_report_links_resolve(two_stages):
    seen = page(two_stages)
    assert len(seen.ids) == len(set(seen.ids))
    assert {anchor[1:] for anchor in seen.anchors} <= set(seen.ids)


def test_measured_cells_link_to_their_results(two_stages):
    html = render(read_runs(two_stages))
    cells = re.findall(r'<a class="source" href="#(run-\d+-result-\d+-[mf]\d+)">([^<]+)</a>', html)
    assert len(cells) == 2 * 2 + 2 * 2 + 5 * 3  # headline, baselines, AUC by class
    for anchor, text in cells:
        line = re.search(rf'<tr class="\w+" id="{anchor}">(.*?)</tr>', html, re.DOTALL)
        assert text in line.group(1)


def test_report_shows_stages_baselines_and_paper(two_stages):
    text = page(two_stages).text
    for words in ("58.0 %", "64.0 %", "Majority class", "AP-view rule", "66.7 %", "Reported in the paper"):
        assert words in text
    assert "Stage two: 30 context vectors, 400 steps, encoders frozen." in text
    assert "Not a medical device" in text


def test_paper_results_are_shown_for_the_same_task_only(tmp_path):
    own = write_run(tmp_path / "own", evaluation(split_recipe="patients"))
    two = write_run(tmp_path / "two", evaluation(classes=("No Finding", "Pneumonia")))
    assert "66.7 %" not in page([own, two]).text


def test_h10_run_without_results_and_log_is_reported(tmp_path):
    bare = write_run(tmp_path / "bare", log=False)
    (bare / "environment.json").unlink()
    text = page([bare]).text
    assert "No results yet: run cleft evaluate." in text
    assert "No training log." in text
    assert "environment.json (versions and device) is missing" in text


def test_h10_damaged_result_is_skipped_with_a_note(tmp_path):
    run = write_run(tmp_path / "run", evaluation())
    (run / "results" / "broken.json").write_text("{")
    (run / "results" / "older.json").write_text('{"schema": 0}')
    text = page([run]).text
    assert "broken.json is not valid JSON" in text
    assert "older.json has schema 0, this version reads 1" in text
    assert "60.0 %" in text


def test_h10_damaged_log_leaves_the_results(tmp_path):
    run = write_run(tmp_path / "run", evaluation())
    (run / "logs" / "metrics.csv").write_bytes(b"step,train/loss\n1,\xff\n")
    text = page([run]).text
    assert "Training log metrics.csv cannot be read" in text
    assert "60.0 %" in text


@pytest.mark.parametrize("what", ["missing", "empty", "no yaml", "a list"])
def test_h10_folder_that_is_not_a_run_is_refused(tmp_path, what):
    folder = tmp_path / "other"
    if what != "missing":
        folder.mkdir()
    if what == "no yaml":
        (folder / "config.yaml").write_text("a: [")
    if what == "a list":
        (folder / "config.yaml").write_text("- 1\n")
    with pytest.raises(DataError, match=r"is not a run folder|is the run complete"):
        write_report([folder], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_unwritable_page_is_refused(two_stages, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match=r"--out .* is not a folder; choose another place"):
        write_report(two_stages, tmp_path / "file" / "page.html")


def test_h12_other_images_have_their_own_table_and_a_warning(tmp_path):
    one = write_run(tmp_path / "one", evaluation(0.58))
    other = write_run(tmp_path / "other", evaluation(0.64, ids_digest="f" * 16))
    seen = page([one, other])
    assert [id for id in seen.ids if id.startswith("task-")] == [
        "task-1",
        "task-1-note-a",
        "task-2",
        "task-2-note-a",
    ]
    assert seen.text.count("do not compare its results with these") == 2


def test_h12_other_labels_have_their_own_table(tmp_path):
    baselines = (result("majority-class/accuracy", 0.31), result("majority-class/auc", 0.5))
    one = write_run(tmp_path / "one", evaluation(0.58))
    other = write_run(tmp_path / "other", evaluation(0.64, baselines=baselines))
    assert "task-2" in page([one, other]).ids


def test_h12_different_splits_in_one_table_are_reported(tmp_path):
    one = write_run(tmp_path / "one", evaluation(0.58))
    other = write_run(tmp_path / "other", evaluation(0.64, split_digest="e" * 16))
    text = page([one, other]).text
    assert "different training and validation splits (one 7ad98f6f27bf6200, other eeeeeeeeeeeeeeee)" in text


def test_seeds_are_averaged_and_stages_are_not(tmp_path):
    seeds = [write_run(tmp_path / f"s{i}", evaluation(0.5 + i / 10), seed=i) for i in range(3)]
    later = write_run(tmp_path / "context", evaluation(0.9), seed=3, stage="context")
    text = page([*seeds, later]).text
    assert "Mean of 3 seeds handwritten prompts, seeds 0, 1, 2" in text
    assert "60.0 %" in text
    assert "50.0–70.0 %" in text
    assert "not a 95 % confidence interval" in text


def test_h6_missing_value_is_a_dash_with_a_reason(tmp_path):
    gone = result("auc", None, reason="no image shows Edema")
    text = page([write_run(tmp_path / "run", evaluation(results=(result("accuracy", 0.6), gone)))]).text
    assert "a no image shows Edema" in text
    assert "not in the result file" in text  # the AUC of each class
    assert "nan" not in text.lower()


def test_h7_overlap_warning_is_printed(tmp_path):
    waiver = "Beware: 3 of 40 patients were trained on or used to choose the weights. These numbers are too good."
    assert waiver in page([write_run(tmp_path / "run", evaluation(notes=(waiver,)))]).text


def test_o8_patient_images_are_shown_only_on_request(tmp_path):
    run = write_run(tmp_path / "run", evaluation(synthetic=False))
    hidden, shown = page([run]), page([run], images=True)
    assert not [tag for tag, _, _ in hidden.elements if tag == "img"]
    assert png(0) not in render(read_runs([run]))
    assert "10 images with their predictions are not shown" in hidden.text
    assert len([tag for tag, _, _ in shown.elements if tag == "img"]) == 10


def test_synthetic_images_are_shown_and_labelled(tmp_path):
    run = write_run(tmp_path / "run", evaluation())
    seen = page([run])
    assert len([tag for tag, _, _ in seen.elements if tag == "img"]) == 10
    assert "(phantoms) drawn by a program" in seen.text
    assert not [tag for tag, _, _ in page([run], images=False).elements if tag == "img"]


def test_example_of_two_runs_is_shown_once(two_stages):
    seen = page(two_stages)
    assert len([tag for tag, _, _ in seen.elements if tag == "img"]) == 10


def test_o10_results_of_few_patients_are_not_printed(tmp_path):
    few = evaluation(synthetic=False, results=(result("accuracy", 0.777, patients=4), result("auc", 0.888, patients=5)))
    seen = page([write_run(tmp_path / "run", few)])
    text = seen.text
    assert "77.7" not in text
    assert "0.777" not in seen.data
    assert "fewer than 5 patients" in text
    assert "0.888" in text


def test_o10_small_classes_are_left_out_of_the_confusion_matrix(tmp_path):
    few = evaluation(
        classes=("Edema", "Pneumonia"), synthetic=False, confusion=((1, 2), (40, 60)), roc={"Edema": [(0, 0), (1, 1)]}
    )
    seen = page([write_run(tmp_path / "run", few)])
    assert "Not shown, because fewer than 5 images have this label: Edema" in seen.text
    assert "No ROC curve is available" in seen.text


TOKEN = "hf_" + string.ascii_lowercase[:22]
"""An invented access token."""


@pytest.mark.parametrize("secret", ["/home/somebody/secret", "somebodys-laptop", TOKEN])
def test_o2_o3_report_has_no_folders_hosts_or_tokens(tmp_path, secret):
    run = write_run(tmp_path / "run", evaluation(command=f"cleft evaluate {secret} --task zero-shot"))
    config = run / "config.yaml"
    config.write_text(config.read_text() + f"note: [{TOKEN}, /home/somebody/secret/x]\n")
    html = render(read_runs([run]))
    if secret == "somebodys-laptop":  # a host is known by its key; a run may have any name
        html = html.replace(f"cleft evaluate {secret}", "")
    assert secret not in html
    assert str(tmp_path) not in html


def test_report_embeds_results_as_json(two_stages):
    tree = json.loads(page(two_stages).data)
    assert [run for run in tree] == ["first", "first-context"]
    assert tree["first"][0]["results"][0] == {
        "metric": "accuracy",
        "value": 0.58,
        "interval": pytest.approx([0.55, 0.61]),
        "images": 1000,
        "patients": 966,
        "reason": None,
    }
    assert "examples" not in tree["first"][0]


PLAIN = "plain words"
HOSTILE_TEXTS = [
    "</script><script>alert(1)</script>",
    "<!--",
    '" onmouseover="x',
    "' & < > `",
    "\u2028\u2029",
    "{{ 7 * 7 }}",
]


def hostile(folder, word):
    """Write a run with a text in every field that is read from a file."""
    classes = (word, *FIVE[1:])
    base = evaluation(classes=classes)
    run = write_run(
        folder,
        evaluation(
            classes=classes,
            task=word,
            dataset=word,
            split_recipe=word,
            command=word,
            notes=(word,),
            examples=({"image": png(1), "truth": word, "answers": ((word, 0.5),)},),
            results=(*base.results, result(word, 0.5, reason=word)),
        ),
    )
    config = run / "config.yaml"
    config.write_text(config.read_text() + json.dumps(word) + ": " + json.dumps(word) + "\n")
    return run


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return page([hostile(tmp_path_factory.mktemp("plain") / "a", PLAIN)])


@pytest.mark.parametrize("word", HOSTILE_TEXTS)
def test_h13_markup_in_names_is_escaped(plain, tmp_path, word):
    escaped = page([hostile(tmp_path / "b", word)])
    assert escaped.shape == plain.shape
    assert "</" not in escaped.data
    assert json.loads(escaped.data)["b"][0]["classes"][0] == word
    assert re.sub(r"\s+", " ", word).strip() in escaped.text


@settings(max_examples=15, derandomize=True, deadline=None)
@given(st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=40))
def test_q16_any_text_leaves_the_elements_unchanged(plain, tmp_path_factory, word):
    given_words = page([hostile(tmp_path_factory.mktemp("words") / "b", f"x{word}")])
    assert [tag for tag, _ in given_words.shape] == [tag for tag, _ in plain.shape]


def test_invalid_example_image_is_not_shown(tmp_path):
    bad = ({"image": "x' onerror='alert(1)", "truth": "Edema", "answers": (("Edema", 0.9),)},)
    seen = page([write_run(tmp_path / "run", evaluation(examples=bad))])
    assert not [tag for tag, _, _ in seen.elements if tag == "img"]


def test_folders_of_one_name_are_distinguished(tmp_path):
    folders = [write_run(tmp_path / place / "run", evaluation()) for place in "ab"]
    assert "a/run and b/run" in page(folders).text


def test_folder_given_twice_is_read_once(tmp_path):
    run = write_run(tmp_path / "run", evaluation())
    assert len(read_runs([run, run / ".." / "run"])) == 1


@pytest.mark.parametrize(
    ("names", "rows", "printed"),
    [
        ([f"BI-RADS {score}" for score in range(7)], 200, "33.3 %"),
        ([f"Density {letter}" for letter in "ABCD"], 500, "74.4 %"),
        ([f"Density {letter}" for letter in "ABCD"], 50, None),
    ],
)
def test_paper_results_on_mammograms_need_the_balanced_sets(names, rows, printed):
    confusion = tuple(tuple(rows if i == j else 0 for j in range(len(names))) for i in range(len(names)))
    mammograms = evaluation(dataset="embed", classes=tuple(names), confusion=confusion, synthetic=False)
    rows_of_paper = published(mammograms)
    assert [f"{100 * row.accuracy:.1f} %" for row in rows_of_paper[:1]] == ([printed] if printed else [])
    assert published(dataclasses.replace(mammograms, synthetic=True)) == ()


HEAD = {"task": "linear-probe", "protocol": "standard", "prompts": "", "training_seed": 2, "training_fraction": 0.1}


def page_of(tmp_path, *evaluations, **options):
    return Page(render(read_runs([write_run(tmp_path / "run", *evaluations)]), **options))


def figures(seen):
    return [attrs["aria-label"] for tag, _, attrs in seen.elements if tag == "svg" and "aria-label" in attrs]


def test_linear_probe_and_zero_shot_share_a_table(tmp_path):
    seen = page_of(tmp_path, evaluation(0.6), evaluation(0.7, **HEAD))
    assert "Zero-shot and linear probe: 5 classes" in seen.text
    assert "run linear probe, standard protocol, 10 % of the training patients, seed 2" in seen.text
    assert "task-2" not in seen.ids
    assert "66.7" in seen.text  # the paper's zero-shot number, next to the row of the same task


def test_linear_probe_has_no_paper_zero_shot_result(tmp_path):
    seen = page_of(tmp_path, evaluation(0.7, **HEAD))
    assert "Linear probe: 5 classes" in seen.text
    assert "66.7" not in seen.text


def test_seeds_of_a_probe_are_averaged_and_fractions_are_not(tmp_path):
    seeds = [evaluation(0.5 + seed / 10, **{**HEAD, "training_seed": seed}) for seed in range(3)]
    seen = page_of(tmp_path, *seeds, evaluation(0.9, **{**HEAD, "training_fraction": 1.0}))
    assert "Mean of 3 seeds" in seen.text
    assert "seeds 0, 1, 2" in seen.text


def test_other_metrics_and_calibration_are_shown(tmp_path):
    base = evaluation(0.6)
    more = (result("auprc", 0.41), result("sensitivity@0.90", 0.3), result("auprc/Edema", 0.2))
    baselines = (*base.baselines, result("majority-class/auprc", 0.2))
    made = evaluation(0.6, results=(*base.results, *more), baselines=baselines, calibration=calibration())
    text = page_of(tmp_path, made).text
    head = "Model AUPRC Sensitivity at specificity 0.90 ECE ECE after temperature scaling"
    assert head in text
    assert "ECE 0.094, after temperature scaling 0.021. Temperature 1.83, fitted on 400 validation images." in text


def test_missing_temperature_has_a_reason(tmp_path):
    changed = dataclasses.replace(
        calibration(), temperature=None, bins_after=(), ece_after=None, reason="the data have no validation part"
    )
    seen = page_of(tmp_path, evaluation(0.6, calibration=changed))
    assert "No temperature scaling: the data have no validation part." in seen.text


def test_every_chart_has_a_text_alternative(tmp_path):
    made = evaluation(0.6, calibration=calibration(), subgroups=subgroups(), embedding_map=space())
    seen = page_of(tmp_path, made, retrieval(), audit())
    labels = figures(seen)
    for words in ("Reliability diagram of run", "Embedding map of run", "Norms of the learned context of run"):
        assert any(each.startswith(words) for each in labels)
    for words in ("By sex", "By age", "80 and over", "Modality gap 0.84", "800 more images"):
        assert words in seen.text


def test_embedding_map_needs_matching_classes(tmp_path):
    wrong = dataclasses.replace(space(), prompts=space().prompts[:4])
    assert not [
        each for each in figures(page_of(tmp_path, evaluation(0.6, embedding_map=wrong))) if "Embedding map" in each
    ]


def test_retrieval_is_shown_with_chance_and_examples(tmp_path):
    seen = page_of(tmp_path, retrieval())
    text = seen.text
    assert "Image-to-text retrieval" in text
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
    hidden = page_of(tmp_path / "a", retrieval(synthetic=False))
    shown = page_of(tmp_path / "b", retrieval(synthetic=False), images=True)
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
    seen = page_of(tmp_path, dataclasses.replace(made, retrieval=bad))
    assert "First relevant result" not in seen.text


def test_prompt_sensitivity_is_shown(tmp_path):
    text = page_of(tmp_path, audit(0.6)).text
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
    changed = calibration()
    few = dataclasses.replace(
        changed,
        ece=result("ece", 0.123456, patients=4),
        bins=(dataclasses.replace(changed.bins[0], predicted=0.123457, patients=4), *changed.bins[1:]),
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


def hostile_results(folder, word):
    """Write a run with a text in every field of the other results."""
    made = evaluation(0.6, subgroups=(dataclasses.replace(subgroups()[0], by=word),))
    named = dataclasses.replace(made.subgroups[0].groups[0], name=word)
    made = dataclasses.replace(
        made, subgroups=(dataclasses.replace(made.subgroups[0], groups=(named, made.subgroups[0].groups[1])),)
    )
    changed = audit().prompt_sensitivity
    changed = dataclasses.replace(
        changed,
        templates=(dataclasses.replace(changed.templates[0], template=word),),
        negation=(dataclasses.replace(changed.negation[0], finding=word, present_prompt=word, absent_prompt=word),),
        context=(dataclasses.replace(changed.context[0], nearest_tokens=((word, 0.4),)),),
    )
    found = retrieval().retrieval[0]
    example = dataclasses.replace(
        found.examples[0], query=dataclasses.replace(found.examples[0].query, text=word, image=png(1))
    )
    searched = dataclasses.replace(retrieval(), retrieval=(dataclasses.replace(found, examples=(example,)),))
    run = write_run(folder, made, searched, dataclasses.replace(audit(), prompt_sensitivity=changed))
    (run / "comparisons").mkdir()
    against = comparison(first=word, second=word, dataset=word, command=word, notes=(word,), first_task=word)
    (run / "comparisons" / "a.json").write_text(to_json(against))
    return run


@pytest.mark.parametrize("word", HOSTILE_TEXTS)
def test_markup_in_all_results_is_escaped(tmp_path, word):
    plain = Page(render(read_runs([hostile_results(tmp_path / "a", "plain words")])))
    escaped = Page(render(read_runs([hostile_results(tmp_path / "b", word)])))
    assert escaped.shape == plain.shape


def test_links_resolve_and_ids_are_unique(tmp_path):
    made = evaluation(0.6, calibration=calibration(), subgroups=subgroups(), embedding_map=space())
    seen = page_of(tmp_path, made, evaluation(0.7, **HEAD), retrieval(), audit())
    assert len(seen.ids) == len(set(seen.ids))
    assert {anchor[1:] for anchor in seen.anchors} <= set(seen.ids)
