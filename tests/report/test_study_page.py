"""The page, CSV and LaTeX table of a study."""

import csv
import io
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import unquote

import pytest
from tests.fakes.fake_runs import evaluation, png, result, write_run
from tests.fakes.fake_studies import ROWS, retrieval, small_study, write_cell, write_study
from tests.report.test_run_page import HOSTILE_TEXTS, Page

from cleft.errors import ConfigError, DataError
from cleft.files import RECORD, csv_text
from cleft.report.runs import read_runs
from cleft.report.study_page import (
    FIELDS,
    find_runs_and_studies,
    render_study,
    study_csv,
    study_latex,
    tex,
    write_pages,
)
from cleft.report.study_page import write_study_page as write_page
from cleft.report.study_table import read_study
from cleft.results import Difference, StudyCell, StudyLine

CELL = ("cleft-lora", "chexpert/zero-shot")


@pytest.fixture(scope="module")
def table1(tmp_path_factory) -> Path:
    return write_study(tmp_path_factory.mktemp("study") / "table1", seeds=2)


@pytest.fixture(scope="module")
def html(table1) -> str:
    return write_page(table1).read_text()


def cells(html):
    """Row label to its cells' markup."""
    table = re.search(r'<table class="study.*?</table>', html, re.DOTALL).group()
    rows = re.findall(r'<tr class="(\w+)"><th scope="row">(.*?)</th>(.*?)</tr>', table, re.DOTALL)
    return {label: re.findall(r"<td.*?</td>", body, re.DOTALL) for _, label, body in rows}


def test_page_csv_and_latex_are_written(table1, html):
    assert {path.name for path in table1.iterdir()} == {
        "study.json",
        "study.html",
        "table1.csv",
        "table1.tex",
        "runs",
        RECORD,
    }


def test_table_has_the_rows_and_columns_of_the_paper(html):
    found = cells(html)
    assert list(found) == [*(label for _, label in ROWS), "Majority class", "AP-view rule"]
    assert {len(row) for row in found.values()} == {10}
    heads = re.findall(r'<th scope="colgroup" colspan="(\d)">(.*?)</th>', html)
    assert heads == [
        *(("5", "CheXpert-5×200"), ("5", "RSNA")),
        *(("1", "zero shot"), ("2", "linear probe"), ("2", "fine tune")) * 2,
    ]


def test_measured_and_paper_values_are_distinguished(html):
    cell = cells(html)["CLEFT-LoRA"][0]
    assert re.search(r'<span class="measured" title="2 seeds: 50\.0 \[47\.0–53\.0\], 51\.2 \[48\.2–54\.2\]">', cell)
    assert '<span class="reported"><span class="sr">paper: </span>66.74</span>' in cell
    assert ">50.6</a>" in cell
    assert '<span class="spread">± 0.8</span>' in cell


def test_marks_of_the_paper_are_explained(html):
    assert "74.47*†" in cells(html)["MedCLIP-Swin"][5]
    assert "* taken by the paper’s authors from the MedCLIP paper; † pre-trained on other data" in Page(html).text


def test_measured_values_link_to_result_files(table1, html):
    for label, row in cells(html).items():
        for cell in row:
            value = re.search(r'class="measured".*?>([^<]+)(</a>|<sup|</span>)', cell, re.DOTALL)
            if value and value.group(1).strip() not in ("–", ""):
                assert re.search(r'<a class="source" href="([^"]+)">', cell), (label, cell)
    links = [link for link in Page(html).anchors if not link.startswith("#")]
    assert len([link for link in links if link.endswith(".json")]) > 2 * 2 * 6
    assert all((table1 / unquote(link)).is_file() for link in links)


def test_several_seeds_link_to_their_rows(tmp_path, html):
    assert re.search(r'href="#n-10-0-0">50\.6<', html)
    assert html.count('id="n-10-0-0"') == 1
    one = write_page(small_study(tmp_path, {CELL: [evaluation(0.6)]})).read_text()
    assert 'href="runs/cleft-lora/chexpert-zero-shot/seed-0.json">60.0<' in one
    assert '<span class="spread">57.0–63.0</span>' in one


def test_links_stay_on_the_page_or_in_the_folder(html):
    seen = Page(html)
    assert len(seen.ids) == len(set(seen.ids))
    assert {link[1:] for link in seen.anchors if link.startswith("#")} <= set(seen.ids)


def test_missing_values_have_reasons(html):
    found, text = cells(html), Page(html).text
    assert "–<sup>" in found["Random-ViT"][0]
    for reason in ("not applicable: it has no text tower", "failed: the loss is not finite in step 12"):
        assert reason in text
    assert 'class="sr"' not in found["Random-ViT"][0]  # the paper prints nothing there either


def test_tiny_scale_is_labelled_as_not_comparable(tmp_path, html):
    label = "Tiny scale: not comparable with the paper."
    assert label in html
    assert label not in write_page(small_study(tmp_path, {CELL: [evaluation(0.6)]}, scale="paper")).read_text()


def test_study_page_is_self_contained_without_local_folders(html, tmp_path_factory):
    assert "default-src 'none'" in html
    assert "http" not in html.replace("http-equiv", "")
    assert "<script" not in html
    assert "secret" not in html
    assert str(tmp_path_factory.getbasetemp()) not in html


def test_cells_are_counted_by_state(html):
    text = Page(html).text
    for words in ("Cells measured 21 of 66", "Missing data or weights 42", "Failed 1", "Not applicable 2"):
        assert words in text


def test_charts_appear_where_there_are_results(html):
    figures = re.findall(r'<svg class="figure" viewBox="[^"]+" role="img" aria-label="([^"]+)"', html)
    assert figures[0] == "CheXpert-5×200, zero shot: accuracy against trainable parameters"
    assert "CLEFT-LoRA (paper)" not in html  # its encoders are orders of magnitude larger
    for start in ("ROC curves for Edema", "Reliability diagram of CLEFT-LoRA", "Embedding map of CLEFT-LoRA"):
        assert any(figure.startswith(start) for figure in figures)
    assert not any("context length" in figure for figure in figures)


def test_many_bubbles_are_numbered_with_a_legend(tmp_path):
    rows = tuple(
        StudyLine(key=f"row-{n}", label=f"Row {n}", facts={"trainable": 1e6 + n, "frozen": 0.0}) for n in range(1, 9)
    )
    results = {(row.key, CELL[1]): [evaluation(0.5)] for row in rows}
    html = write_page(small_study(tmp_path, results, rows=rows)).read_text()
    figure = html[html.index('<h2 id="figures"') :]
    key, chart = (
        re.search(rf"<{mark}.*?</{mark[:3]}", figure, re.DOTALL).group()
        for mark in ('div class="legend"', 'svg class="figure')
    )
    assert re.findall(r">(\d)</text></svg>Row (\d)<", key) == [(str(n), str(n)) for n in range(1, 9)]
    assert sorted(re.findall(r'class="number"[^>]*>(\d)<', chart)) == [str(n) for n in range(1, 9)]
    del results[rows[-1].key, CELL[1]]
    few = write_page(small_study(tmp_path, results, rows=rows[:7])).read_text()
    assert 'class="number"' not in few
    assert few.count('class="name"') >= 7


def test_paper_bubbles_are_drawn_at_paper_scale(tmp_path):
    rows = (StudyLine(key=CELL[0], label="CLEFT-LoRA", facts={"trainable": 9e7, "frozen": 2.7e9}),)
    folder = small_study(tmp_path, {CELL: [evaluation(0.5)]}, rows=rows, scale="paper")
    assert "CLEFT-LoRA (paper)" in write_page(folder).read_text()


def test_fractions_are_drawn_as_curves(tmp_path):
    columns = tuple(
        StudyLine(key=f"rsna/linear-probe/{share}", label=f"RSNA, linear probe, {text}", metrics=("accuracy", "auc"))
        for share, text in ((0.01, "1 %"), (0.1, "10 %"), (1, "100 %"))
    )
    row = StudyLine(key="cleft-lora", label="CLEFT-LoRA")
    made = [
        StudyCell(row=row.key, column=each.key, state="done", results=write_cell(tmp_path, row.key, each, place))
        for place, each in enumerate(columns)
    ]
    page = write_page(small_study(tmp_path, {}, name="tableS2", rows=(row,), columns=columns, cells=tuple(made)))
    titles = re.findall(r'aria-label="(RSNA, linear probe: [^"]+)"', page.read_text())
    assert titles == [
        "RSNA, linear probe: accuracy against share of training patients",
        "RSNA, linear probe: AUC against share of training patients",
    ]
    assert '<th scope="colgroup" colspan="6">RSNA, linear probe</th>' in page.read_text()


def test_context_lengths_are_drawn_as_a_curve(tmp_path):
    facts = {"trainable": 1e6, "frozen": 2e6}
    rows = tuple(StudyLine(key=f"length-{n}", label=f"{n} vectors", facts={**facts, "length": n}) for n in (5, 30))
    results = {(row.key, CELL[1]): [evaluation(0.4 + row.facts["length"] / 100)] for row in rows}
    page = write_page(small_study(tmp_path, results, name="figure3", rows=rows)).read_text()
    assert 'aria-label="CheXpert-5×200, zero-shot: accuracy against context length"' in page
    assert "against trainable parameters" not in page  # all rows are of one size


def test_one_context_length_has_no_curve(tmp_path):
    facts = {"trainable": 1e6, "frozen": 2e6, "length": 30}
    rows = tuple(StudyLine(key=f"cleft-{name}", label=name, facts=facts) for name in ("lora", "ia3"))
    page = write_page(small_study(tmp_path, {(row.key, CELL[1]): [evaluation(0.6)] for row in rows}, rows=rows))
    assert "against context length" not in page.read_text()


def test_rows_are_grouped_under_headings(tmp_path):
    rows = tuple(StudyLine(key=f"row-{n}", label=f"row {n}", heading=f"part {n // 2}") for n in range(4))
    page = write_page(small_study(tmp_path, {("row-1", CELL[1]): [evaluation(0.6)]}, rows=rows)).read_text()
    table = page[page.index('<table class="study') :]
    places = [table.index(text) for text in (">Part 0<", ">row 0<", ">row 1<", ">Part 1<", ">row 2<", ">row 3<")]
    assert places == sorted(places)
    assert (table.count("Part 0"), table.count("Part 1")) == (1, 1)


NOTES = ("The run does not say which patients it was trained on; these may be among them.", "2 images are dark.")


def test_imported_model_has_a_footnote_on_origin_and_overlap(tmp_path):
    rows = (
        StudyLine(key="cleft-lora", label="CLEFT-LoRA"),
        StudyLine(key="theirs", label="Theirs", heading="your models", origin="theirs: imported from <theirs>.ckpt"),
    )
    results = {CELL: [evaluation(0.6)], ("theirs", CELL[1]): [evaluation(0.5, notes=NOTES)]}
    html = write_page(small_study(tmp_path, results, rows=rows)).read_text()
    [letter] = re.findall(r'<th scope="row">Theirs<sup><a href="#why-(\w)">\1</a></sup></th>', html)
    footnote = f"{letter} theirs: imported from <theirs>.ckpt. The run does not say which patients it"
    assert footnote in Page(html).text
    assert "<theirs>" not in html
    assert "dark" not in re.search(r'<ol class="footnotes">.*?</ol>', html, re.DOTALL).group()


def difference(metric, first, second, interval, p_value):
    return Difference(
        metric=metric,
        first=first,
        second=second,
        difference=first - second,
        interval=interval,
        p_value=p_value,
        images=100,
        patients=90,
    )


def test_differences_have_interval_and_p_value(tmp_path):
    change = difference("accuracy", 0.55, 0.60, (-0.081, -0.019), 0.004)
    cell = StudyCell(row="clip-vit", column=CELL[1], state="done", differences=(change,))
    folder = small_study(tmp_path, {}, cells=(cell,), reference="cleft-lora")
    text = Page(write_page(folder).read_text()).text
    assert "Differences from CLEFT-LoRA" in text
    assert "CLIP-ViT \u22125.0 \u22128.1 \u22121.9 p 0.004, corrected 0.004 –" in text
    assert "the 1 comparison of this table" in text


def test_only_corrected_significant_differences_are_bold(tmp_path):
    rows = ("clip-vit", "convirt-r50", "gloria-r50")
    p_values = {"clip-vit": 0.004, "convirt-r50": 0.028, "gloria-r50": 0.2}
    cells = tuple(
        StudyCell(
            row=row,
            column=CELL[1],
            state="done",
            differences=(
                difference("accuracy", 0.65, 0.60, (0.01, 0.09), p_values[row]),
                difference("auprc", 0.6, 0.5, None, None),
            ),
        )
        for row in rows
    )
    lines = tuple(StudyLine(key=row, label=row.upper()) for row in (*rows, "cleft-lora"))
    html = write_page(small_study(tmp_path, {}, rows=lines, cells=cells, reference="cleft-lora")).read_text()
    text = Page(html).text
    assert "the 3 comparisons of this table" in text
    for shown in ("p 0.004, corrected 0.012", "p 0.028, corrected 0.056", "p 0.200, corrected 0.200"):
        assert shown in text
    assert html.count('<span class="measured">+5.0</span>') == 1
    numbers = list(csv.DictReader(next(tmp_path.rglob("table1.csv")).read_text().splitlines()))
    found = {line["row"]: (line["p_holm"], line["comparisons"]) for line in numbers if line["p_holm"]}
    assert {row: float(p) for row, (p, _) in found.items()} == pytest.approx(
        {"clip-vit": 0.012, "convirt-r50": 0.056, "gloria-r50": 0.2}
    )
    assert {count for _, count in found.values()} == {"3"}


def test_study_without_reference_has_no_differences(html):
    assert 'id="differences"' not in html


def test_study_without_columns_shows_parameters(tmp_path):
    rows = (StudyLine(key="cleft-lora", label="CLEFT-LoRA", facts={"trainable": 90_910_000, "frozen": 2.7e9}),)
    text = Page(write_page(small_study(tmp_path, {}, name="tableS3", rows=rows, columns=())).read_text()).text
    assert "CLEFT-LoRA 90.9 M 2.70 B" in text
    assert "Cells measured" not in text


def test_retrieval_column_is_shown(tmp_path):
    column = StudyLine(key="rsna/retrieval", label="RSNA, retrieval", metrics=("image-to-text/recall@5",))
    results = {("cleft-lora", column.key): [retrieval()]}
    html = write_page(small_study(tmp_path, results, columns=(column,))).read_text()
    assert ">55.0</a>" in html
    assert "Chance level" in cells(html)
    assert "First relevant result at rank 2." in Page(html).text


def test_patient_images_are_shown_only_on_request(tmp_path):
    folder = small_study(tmp_path, {CELL: [evaluation(0.6, synthetic=False)]})
    assert "<img" not in render_study(read_study(folder))
    assert png(0) in render_study(read_study(folder), images=True)
    assert "Synthetic images." not in render_study(read_study(folder))


@pytest.mark.parametrize("word", HOSTILE_TEXTS)
def test_markup_in_names_is_escaped(tmp_path, word):
    def study(folder, text):
        line = StudyLine(key="cleft-lora", label=text, facts={text: 1.0, "trainable": 2e6})
        column = StudyLine(key=CELL[1], label=text, metrics=("accuracy", text))
        made = evaluation(0.6, task="zero-shot", dataset=text, notes=(text,), results=(result("accuracy", 0.6),))
        changes = {"name": "n", "title": text, "command": text, "notes": (text,)}
        return small_study(folder, {CELL: [made]}, rows=(line,), columns=(column,), reason=text, **changes)

    plain, escaped = (
        Page(render_study(read_study(study(tmp_path / name, text)))) for name, text in (("a", "x"), ("b", word))
    )
    assert escaped.shape == plain.shape


def test_folders_are_sorted_into_runs_and_studies(tmp_path):
    study = small_study(tmp_path / "all" / "table1", {})
    runs = [write_run(tmp_path / "runs" / name, evaluation(0.6)) for name in "ab"]
    assert find_runs_and_studies([tmp_path / "all"]) == ([], [study])
    assert find_runs_and_studies([study]) == ([], [study])
    assert find_runs_and_studies([tmp_path / "runs"]) == (runs, [])
    assert find_runs_and_studies([runs[0], study]) == ([runs[0]], [study])


def test_runs_in_subfolders_are_found(tmp_path):
    alone = write_run(tmp_path / "runs" / "first", evaluation(0.6))
    heads = [write_run(tmp_path / "runs" / "first-probe" / f"seed-{seed}", evaluation(0.6)) for seed in (0, 1)]
    deep = small_study(tmp_path / "runs" / "studies" / "old" / "table1", {})
    write_run(deep / "runs" / "cell", evaluation(0.6))  # belongs to its study
    (tmp_path / "runs" / "loop").symlink_to(tmp_path / "runs")
    assert find_runs_and_studies([tmp_path / "runs"]) == ([alone, *heads], [deep])
    names = [run.name for run in read_runs([alone, *heads, write_run(tmp_path / "other" / "first", evaluation(0.6))])]
    assert names == ["runs/first", "first-probe/seed-0", "first-probe/seed-1", "other/first"]


def test_run_without_training_is_skipped(tmp_path, caplog):
    caplog.set_level("INFO")
    begun = write_run(tmp_path / "runs" / "begun", evaluation(0.6))
    refused = tmp_path / "runs" / "refused"
    refused.mkdir()
    for name in ("config.yaml", "environment.json"):
        (refused / name).write_bytes((begun / name).read_bytes())
    assert find_runs_and_studies([tmp_path / "runs"]) == ([begun], [])
    assert f"{refused} skipped: nothing was trained in it" in caplog.text
    for trace in ("logs", "states", "model.json"):
        (refused / trace).mkdir()
        assert find_runs_and_studies([tmp_path / "runs"]) == ([begun, refused], [])
        (refused / trace).rmdir()


def test_runs_and_studies_have_separate_pages(tmp_path):
    study = small_study(tmp_path / "all" / "table1", {CELL: [evaluation(0.6)]})
    write_run(tmp_path / "all" / "a", evaluation(0.6))
    pages = write_pages([tmp_path / "all"], tmp_path / "page.html")
    assert pages == [study / "study.html", tmp_path / "page.html"]
    assert "CLEFT-LoRA" in pages[0].read_text()
    assert "Training curves" in pages[1].read_text()


def test_out_is_refused_for_studies_alone(tmp_path):
    study = small_study(tmp_path / "table1", {})
    with pytest.raises(ConfigError, match=r"the page of a study is always study\.html"):
        write_pages([study], tmp_path / "page.html")


def test_empty_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="is not a run folder"):
        write_pages([tmp_path], tmp_path / "page.html")


def test_unwritable_page_is_refused(tmp_path):
    folder = small_study(tmp_path, {})
    (folder / "table1.csv").mkdir()
    with pytest.raises(ConfigError, match=r"the study's .*table1\.csv is a folder"):
        write_page(folder)


def lines(folder):
    return list(csv.DictReader(io.StringIO(study_csv(read_study(folder)))))


def test_csv_line_has_all_fields(tmp_path):
    seeds = [evaluation(checkpoint=str(value), results=(result("accuracy", value),)) for value in (0.5, 0.7)]
    found = {
        (line["row"], line["column"], line["metric"]): line for line in lines(small_study(tmp_path, {CELL: seeds}))
    }
    line = found[*CELL, "accuracy"]
    assert list(line) == list(FIELDS)
    assert float(line["value"]) == pytest.approx(0.6)
    assert float(line["spread"]) == pytest.approx(0.1 * 2**0.5)
    assert (float(line["low"]), float(line["high"])) == pytest.approx((0.47, 0.73))
    del line["value"], line["spread"], line["low"], line["high"]
    assert line == {
        "heading": "",
        "difference": "",
        "difference_low": "",
        "difference_high": "",
        "p_value": "",
        "p_holm": "",
        "comparisons": "",
        "study": "table1",
        "scale": "tiny",
        "row": "cleft-lora",
        "column": "chexpert/zero-shot",
        "metric": "accuracy",
        "state": "done",
        "reason": "",
        "seeds": "2",
        "values": "0.5; 0.7",
        "intervals": "0.47..0.53; 0.67..0.73",
        "images": "1000",
        "patients": "966",
        "split_digest": "7ad98f6f27bf6200",
        "ids_digest": "56dfdc4473b683b4",
        "files": "runs/cleft-lora/chexpert-zero-shot/seed-0.json; runs/cleft-lora/chexpert-zero-shot/seed-1.json",
        "commands": "cleft evaluate first --task zero-shot; cleft evaluate first --task zero-shot",
        "paper": "0.6674",
        "paper_note": "",
        "origin": "",
    }


def test_origin_is_in_csv_and_latex(tmp_path):
    rows = (StudyLine(key=CELL[0], label="Theirs", origin="theirs: imported from vit_base.ckpt"),)
    folder = small_study(tmp_path, {CELL: [evaluation()]}, rows=rows)
    assert {line["origin"] for line in lines(folder) if line["row"] == CELL[0]} == {rows[0].origin}
    assert "% Theirs: theirs: imported from vit_base.ckpt\n" in study_latex(read_study(folder))


def test_csv_has_a_line_for_every_cell(tmp_path):
    found = lines(small_study(tmp_path, {CELL: [evaluation(0.6)]}))
    assert [(line["row"], line["column"], line["state"]) for line in found] == [
        ("clip-vit", "chexpert/zero-shot", "absent"),
        ("clip-vit", "rsna/zero-shot", "absent"),
        ("cleft-lora", "chexpert/zero-shot", "done"),
        ("cleft-lora", "rsna/zero-shot", "absent"),
        ("majority-class", "chexpert/zero-shot", "baseline"),
        ("ap-view", "chexpert/zero-shot", "baseline"),
    ]
    assert (found[0]["value"], found[0]["reason"], found[0]["paper"]) == ("", "not part of this study", "0.2016")


def test_csv_is_redacted(tmp_path):
    few = evaluation(
        results=(result("accuracy", 0.123456, patients=4),), synthetic=False, command="cleft evaluate /home/me/secret"
    )
    fine = evaluation(
        results=(result("accuracy", 0.5),), command="cleft evaluate /home/me/secret", baselines=few.baselines
    )
    text = study_csv(read_study(small_study(tmp_path, {CELL: [few], ("clip-vit", CELL[1]): [fine]})))
    assert "0.123456" not in text
    assert "secret" not in text
    assert "fewer than 5 patients" in text


def test_latex_has_measured_values_bold_and_paper_values_italic(tmp_path):
    seeds = [
        evaluation(checkpoint=str(value), results=(result("accuracy", value),), baselines=()) for value in (0.5, 0.7)
    ]
    text = study_latex(read_study(small_study(tmp_path, {CELL: seeds})))
    assert r"CLEFT-LoRA & \textbf{60.0}{\tiny\,$\pm$14.1} & -- \\" in text
    assert r"\quad\textit{paper} & \textit{66.74} & \textit{64.93} \\" in text
    assert r" & \multicolumn{1}{c}{CheXpert-5$\times$200} & \multicolumn{1}{c}{RSNA} \\" in text
    assert r" & \multicolumn{1}{c}{zero-shot} & \multicolumn{1}{c}{zero-shot} \\" in text
    assert "not comparable with the paper" in text


def test_csv_has_differences_from_the_reference(tmp_path):
    change = Difference(
        metric="auc",
        first=0.8,
        second=0.7,
        difference=0.1,
        interval=(-0.01, 0.21),
        p_value=0.08,
        images=90,
        patients=80,
    )
    cell = StudyCell(row="clip-vit", column=CELL[1], state="done", differences=(change,))
    columns = (StudyLine(key=CELL[1], label="zero-shot", metrics=("accuracy", "auc")),)
    found = {
        (line["row"], line["metric"]): line for line in lines(small_study(tmp_path, {}, cells=(cell,), columns=columns))
    }
    fields = ("difference", "difference_low", "difference_high", "p_value")
    assert [found["clip-vit", "auc"][name] for name in fields] == ["0.1", "-0.01", "0.21", "0.08"]
    assert [found["clip-vit", "accuracy"][name] for name in fields] == [""] * 4


def test_row_headings_are_in_csv_and_latex(tmp_path):
    rows = tuple(StudyLine(key=f"row-{n}", label=f"row {n}", heading=f"part {n // 2}") for n in range(4))
    folder = small_study(tmp_path, {("row-1", CELL[1]): [evaluation(0.6)]}, rows=rows)
    models = [line for line in lines(folder) if line["state"] != "baseline"]
    assert {line["row"]: line["heading"] for line in models} == {row.key: row.heading for row in rows}
    text = study_latex(read_study(folder))
    assert text.count(r"\multicolumn{3}{l}{\textit{part 1}} \\") == 1
    assert text.index("part 0") < text.index("row 1") < text.index("part 1") < text.index("row 2")


def test_latex_explains_the_marks_of_the_paper(tmp_path):
    text = study_latex(read_study(write_study(tmp_path, seeds=1)))
    assert r"\textit{59.42}*$\dagger$" in text
    assert r"; *: taken by the paper's authors from the MedCLIP paper; $\dagger$: pre-trained on other data" in text


def test_latex_of_paper_scale_has_no_warning(tmp_path):
    text = study_latex(read_study(small_study(tmp_path, {CELL: [evaluation(0.6)]}, scale="paper")))
    assert "not comparable" not in text


HOSTILE = r"50 % & $x$ # _a_ {b} ~ ^ \input{x} <&> | " + '"q" “r” ≥ é 中'


def test_latex_escapes_text(tmp_path):
    assert tex(r"\input{x} 5 %") == r"\textbackslash{}input\{x\} 5 \%"
    assert tex("é 中 ≥") == r"é ? $\geq$"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
@pytest.mark.parametrize("hostile", [False, True])
def test_latex_table_compiles(tmp_path, hostile):
    folder = write_study(tmp_path, seeds=1)
    if hostile:
        folder = small_study(
            tmp_path / "hostile",
            {},
            title=f"{HOSTILE}\n\\end{{table}}",
            cells=(),
            rows=(StudyLine(key="a", label=HOSTILE),),
            columns=(StudyLine(key="b", label=HOSTILE, metrics=("accuracy", HOSTILE)),),
        )
    (tmp_path / "table.tex").write_text(study_latex(read_study(folder)))
    (tmp_path / "paper.tex").write_text(
        r"\documentclass{article}\usepackage{booktabs}\usepackage[T1]{fontenc}"
        r"\begin{document}\input{table}\end{document}"
    )
    run = subprocess.run(
        ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "-no-shell-escape", "paper.tex"],
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout.decode(errors="replace")[-2000:]


@pytest.mark.parametrize("text", ["=cmd()", "+1+cmd", "-2+3", "@SUM(A1)", "\t=x", "\uff1dcmd()"])
def test_e15_formula_in_text_is_quoted(text):
    assert csv_text(text) == f"'{text}"


@pytest.mark.parametrize("text", ["-0.25", "+3", "-1e-05; 0.5", "-0.2..0.3; -0.1..0.4", "", "plain", "a=b"])
def test_e15_numbers_and_plain_text_are_unchanged(text):
    assert csv_text(text) == text


def test_e15_study_csv_has_no_formula(tmp_path):
    rows = (StudyLine(key="=row", label="+label", heading="@heading", origin="-origin of it"),)
    folder = small_study(tmp_path, {}, rows=rows)
    cells = [cell for line in csv.reader(study_csv(read_study(folder)).splitlines()) for cell in line]
    assert any("origin of it" in cell for cell in cells)
    assert not [cell for cell in cells if cell[:1] in ("=", "+", "@")]
    assert not [cell for cell in cells if cell.startswith("-origin")]
