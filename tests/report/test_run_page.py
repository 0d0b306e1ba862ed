"""The page as a reader and a browser meet it: from files alone, whole by itself, and no more than was measured."""

import dataclasses
import json
import re
import string
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes.fake_runs import FIVE, evaluation, png, result, write_run

from cleft.errors import DataError, ResourceError
from cleft.report.paper import published
from cleft.report.run_page import render, write_report
from cleft.report.runs import read_runs


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


def test_two_wordings_of_a_run_stand_beside_each_other(tmp_path):
    usual = evaluation(0.7, classes=("No Pneumonia", "Pneumonia"))
    other = evaluation(0.6, classes=("No Pneumonia", "Pneumonia"), wording="released", floors=usual.floors)
    text = page([write_run(tmp_path / "run", usual, other)]).text
    assert text.count("Zero-shot: No Pneumonia against Pneumonia") >= 1
    assert "run handwritten prompts, wording “released”" in text
    assert "Wording default" in text
    assert "Wording released" in text


def test_the_page_is_one_file_that_asks_nothing_of_anybody(two_stages, tmp_path):
    html = write_report(two_stages, tmp_path / "out" / "report.html").read_text()
    assert "http:" not in html
    assert "https:" not in html
    assert "@import" not in html
    assert "default-src 'none'" in html
    scripts = [attrs for tag, _, attrs in Page(html).elements if tag == "script"]
    assert scripts == [{"type": "application/json", "id": "cleft-results"}]
    sources = {attrs["src"][:22] for _, _, attrs in Page(html).elements if "src" in attrs}
    assert sources == {"data:image/png;base64,"}


def test_every_link_leads_to_a_place_on_the_page(two_stages):
    seen = page(two_stages)
    assert len(seen.ids) == len(set(seen.ids))
    assert {anchor[1:] for anchor in seen.anchors} <= set(seen.ids)


def test_every_measured_cell_links_to_its_line_in_the_result_file(two_stages):
    html = render(read_runs(two_stages))
    cells = re.findall(r'<a class="source" href="#(run-\d+-result-\d+-[mf]\d+)">([^<]+)</a>', html)
    assert len(cells) == 2 * 2 + 2 * 2 + 5 * 3  # headline, floors, AUC by class
    for anchor, text in cells:
        line = re.search(rf'<tr class="\w+" id="{anchor}">(.*?)</tr>', html, re.DOTALL)
        assert text in line.group(1)


def test_stages_stand_side_by_side_with_floors_and_the_papers_numbers(two_stages):
    text = page(two_stages).text
    for words in ("58.0 %", "64.0 %", "Majority class", "AP-view rule", "66.7 %", "the paper’s number"):
        assert words in text
    assert "a prompt context of 30 vectors learned in 400 steps" in text
    assert "Not a medical device" in text


def test_the_papers_numbers_stand_beside_the_papers_task_only(tmp_path):
    own = write_run(tmp_path / "own", evaluation(split_recipe="patients"))
    two = write_run(tmp_path / "two", evaluation(classes=("No Finding", "Pneumonia")))
    assert "66.7 %" not in page([own, two]).text


def test_h10_a_run_without_results_and_log_is_described_all_the_same(tmp_path):
    bare = write_run(tmp_path / "bare", log=False)
    (bare / "environment.json").unlink()
    text = page([bare]).text
    assert "It has no results yet: cleft evaluate measures them." in text
    assert "It has no log of its training." in text
    assert "environment.json, which names versions and device, is missing" in text


def test_h10_a_damaged_result_is_left_out_and_said(tmp_path):
    run = write_run(tmp_path / "run", evaluation())
    (run / "results" / "broken.json").write_text("{")
    (run / "results" / "older.json").write_text('{"schema": 0}')
    text = page([run]).text
    assert "broken.json is not valid JSON" in text
    assert "older.json has schema 0, this version reads 1" in text
    assert "60.0 %" in text


def test_h10_a_damaged_log_costs_its_curve_alone(tmp_path):
    run = write_run(tmp_path / "run", evaluation())
    (run / "logs" / "metrics.csv").write_bytes(b"step,train/loss\n1,\xff\n")
    text = page([run]).text
    assert "Its log metrics.csv cannot be read" in text
    assert "60.0 %" in text


@pytest.mark.parametrize("what", ["missing", "empty", "no yaml", "a list"])
def test_h10_a_folder_that_is_not_a_run_is_a_sentence(tmp_path, what):
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


def test_a_page_that_cannot_be_written_is_a_sentence(two_stages, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match=r"--out .* is not a folder; choose another place"):
        write_report(two_stages, tmp_path / "file" / "page.html")


def test_h12_other_images_stand_in_another_table_and_it_says_so(tmp_path):
    one = write_run(tmp_path / "one", evaluation(0.58))
    other = write_run(tmp_path / "other", evaluation(0.64, ids_digest="f" * 16))
    seen = page([one, other])
    assert [id for id in seen.ids if id.startswith("question-")] == [
        "question-1",
        "question-1-note-a",
        "question-2",
        "question-2-note-a",
    ]
    assert seen.text.count("numbers of the two must not be compared") == 2


def test_h12_other_labels_of_the_same_images_stand_in_another_table(tmp_path):
    floors = (result("majority-class/accuracy", 0.31), result("majority-class/auc", 0.5))
    one = write_run(tmp_path / "one", evaluation(0.58))
    other = write_run(tmp_path / "other", evaluation(0.64, floors=floors))
    assert "question-2" in page([one, other]).ids


def test_h12_runs_of_different_splits_in_one_table_are_said(tmp_path):
    one = write_run(tmp_path / "one", evaluation(0.58))
    other = write_run(tmp_path / "other", evaluation(0.64, split_digest="e" * 16))
    text = page([one, other]).text
    assert "trained and chosen on different splits (one 7ad98f6f27bf6200, other eeeeeeeeeeeeeeee)" in text


def test_seeds_of_one_recipe_have_a_mean_and_stages_do_not(tmp_path):
    seeds = [write_run(tmp_path / f"s{i}", evaluation(0.5 + i / 10), seed=i) for i in range(3)]
    later = write_run(tmp_path / "context", evaluation(0.9), seed=3, stage="context")
    text = page([*seeds, later]).text
    assert "Mean of 3 seeds handwritten prompts, seeds 0, 1, 2" in text
    assert "60.0 %" in text
    assert "50.0–70.0 %" in text
    assert "not a 95 % interval" in text


def test_h6_a_number_that_was_not_measured_is_a_dash_with_its_reason(tmp_path):
    gone = result("auc", None, reason="no image shows Edema")
    text = page([write_run(tmp_path / "run", evaluation(results=(result("accuracy", 0.6), gone)))]).text
    assert "a no image shows Edema" in text
    assert "the result file does not hold this number" in text  # the AUC of each class
    assert "nan" not in text.lower()


def test_h7_a_waiver_is_printed(tmp_path):
    waiver = "Beware: 3 of 40 patients were trained on or used to choose the weights. These numbers are too good."
    assert waiver in page([write_run(tmp_path / "run", evaluation(notes=(waiver,)))]).text


def test_o8_images_of_patients_are_shown_only_where_asked_for(tmp_path):
    run = write_run(tmp_path / "run", evaluation(synthetic=False))
    hidden, shown = page([run]), page([run], images=True)
    assert not [tag for tag, _, _ in hidden.elements if tag == "img"]
    assert png(0) not in render(read_runs([run]))
    assert "10 images with their answers are left out of this page" in hidden.text
    assert len([tag for tag, _, _ in shown.elements if tag == "img"]) == 10


def test_phantoms_are_shown_and_called_drawn(tmp_path):
    run = write_run(tmp_path / "run", evaluation())
    seen = page([run])
    assert len([tag for tag, _, _ in seen.elements if tag == "img"]) == 10
    assert "images drawn by a program" in seen.text
    assert not [tag for tag, _, _ in page([run], images=False).elements if tag == "img"]


def test_one_image_answered_by_two_runs_stands_once(two_stages):
    seen = page(two_stages)
    assert len([tag for tag, _, _ in seen.elements if tag == "img"]) == 10


def test_o10_numbers_of_fewer_than_five_patients_are_not_printed(tmp_path):
    few = evaluation(synthetic=False, results=(result("accuracy", 0.777, patients=4), result("auc", 0.888, patients=5)))
    seen = page([write_run(tmp_path / "run", few)])
    text = seen.text
    assert "77.7" not in text
    assert "0.777" not in seen.data
    assert "fewer than 5 patients" in text
    assert "0.888" in text


def test_o10_classes_of_fewer_than_five_images_leave_the_confusion(tmp_path):
    few = evaluation(
        classes=("Edema", "Pneumonia"), synthetic=False, confusion=((1, 2), (40, 60)), roc={"Edema": [(0, 0), (1, 1)]}
    )
    seen = page([write_run(tmp_path / "run", few)])
    assert "Left out, because fewer than 5 images show it: Edema" in seen.text
    assert "No ROC curve could be drawn" in seen.text


TOKEN = "hf_" + string.ascii_lowercase[:22]
"""Of the shape of an access token, and nobody's."""


@pytest.mark.parametrize("secret", ["/home/somebody/secret", "somebodys-laptop", TOKEN])
def test_o2_o3_folders_hosts_and_tokens_stay_here(tmp_path, secret):
    run = write_run(tmp_path / "run", evaluation(command=f"cleft evaluate {secret} --task zero-shot"))
    config = run / "config.yaml"
    config.write_text(config.read_text() + f"note: [{TOKEN}, /home/somebody/secret/x]\n")
    html = render(read_runs([run]))
    if secret == "somebodys-laptop":  # a host is known by its key; a run may have any name
        html = html.replace(f"cleft evaluate {secret}", "")
    assert secret not in html
    assert str(tmp_path) not in html


def test_the_numbers_stand_in_the_page_once_more_for_machines(two_stages):
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
NASTY = ["</script><script>alert(1)</script>", "<!--", '" onmouseover="x', "' & < > `", "\u2028\u2029", "{{ 7 * 7 }}"]


def hostile(folder, word):
    """A run that carries a word in every place a file can bring it."""
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


@pytest.mark.parametrize("word", NASTY)
def test_h13_markup_in_names_changes_no_element(plain, tmp_path, word):
    nasty = page([hostile(tmp_path / "b", word)])
    assert nasty.shape == plain.shape
    assert "</" not in nasty.data
    assert json.loads(nasty.data)["b"][0]["classes"][0] == word
    assert re.sub(r"\s+", " ", word).strip() in nasty.text


@settings(max_examples=15, derandomize=True, deadline=None)
@given(st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=40))
def test_q16_any_words_leave_the_page_as_it_is(plain, tmp_path_factory, word):
    given_words = page([hostile(tmp_path_factory.mktemp("words") / "b", f"x{word}")])
    assert [tag for tag, _ in given_words.shape] == [tag for tag, _ in plain.shape]


def test_an_example_that_is_no_png_is_not_put_on_the_page(tmp_path):
    bad = ({"image": "x' onerror='alert(1)", "truth": "Edema", "answers": (("Edema", 0.9),)},)
    seen = page([write_run(tmp_path / "run", evaluation(examples=bad))])
    assert not [tag for tag, _, _ in seen.elements if tag == "img"]


def test_two_folders_of_one_name_are_told_apart(tmp_path):
    folders = [write_run(tmp_path / place / "run", evaluation()) for place in "ab"]
    assert "a/run and b/run" in page(folders).text


def test_a_folder_given_twice_is_one_run(tmp_path):
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
def test_the_papers_numbers_for_mammograms_stand_beside_its_balanced_sets_only(names, rows, printed):
    confusion = tuple(tuple(rows if i == j else 0 for j in range(len(names))) for i in range(len(names)))
    asked = evaluation(dataset="embed", classes=tuple(names), confusion=confusion, synthetic=False)
    rows_of_paper = published(asked)
    assert [f"{100 * row.accuracy:.1f} %" for row in rows_of_paper[:1]] == ([printed] if printed else [])
    assert published(dataclasses.replace(asked, synthetic=True)) == ()
