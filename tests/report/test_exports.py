"""A study for machines and for papers."""

import csv
import io
import shutil
import subprocess

import pytest
from tests.fakes.fake_runs import evaluation, result
from tests.fakes.fake_studies import small_study, write_study

from cleft.files import csv_text
from cleft.report.exports import FIELDS, study_csv, study_latex, tex
from cleft.report.grid import read_grid
from cleft.types import Difference, StudyCell, StudyLine

CELL = ("cleft-lora", "chexpert/zero-shot")


def lines(folder):
    return list(csv.DictReader(io.StringIO(study_csv(read_grid(folder)))))


def test_a_line_of_the_csv_holds_all_that_is_known_of_a_number(tmp_path):
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


def test_where_a_given_model_comes_from_stands_in_both(tmp_path):
    rows = (StudyLine(key=CELL[0], label="Theirs", origin="theirs: imported from vit_base.ckpt"),)
    folder = small_study(tmp_path, {CELL: [evaluation()]}, rows=rows)
    assert {line["origin"] for line in lines(folder) if line["row"] == CELL[0]} == {rows[0].origin}
    assert "% Theirs: theirs: imported from vit_base.ckpt\n" in study_latex(read_grid(folder))


def test_the_csv_has_a_line_for_every_place_also_where_nothing_was_measured(tmp_path):
    found = lines(small_study(tmp_path, {CELL: [evaluation(0.6)]}))
    assert [(line["row"], line["column"], line["state"]) for line in found] == [
        ("clip-vit", "chexpert/zero-shot", "absent"),
        ("clip-vit", "rsna/zero-shot", "absent"),
        ("cleft-lora", "chexpert/zero-shot", "done"),
        ("cleft-lora", "rsna/zero-shot", "absent"),
        ("majority-class", "chexpert/zero-shot", "floor"),
        ("ap-view", "chexpert/zero-shot", "floor"),
    ]
    assert (found[0]["value"], found[0]["reason"], found[0]["paper"]) == ("", "not part of this study", "0.2016")


def test_a_private_command_and_a_number_of_few_patients_leave_the_csv(tmp_path):
    few = evaluation(
        results=(result("accuracy", 0.123456, patients=4),), synthetic=False, command="cleft evaluate /home/me/secret"
    )
    fine = evaluation(results=(result("accuracy", 0.5),), command="cleft evaluate /home/me/secret", floors=few.floors)
    text = study_csv(read_grid(small_study(tmp_path, {CELL: [few], ("clip-vit", CELL[1]): [fine]})))
    assert "0.123456" not in text
    assert "secret" not in text
    assert "fewer than 5 patients" in text


def test_the_latex_table_has_ours_in_bold_and_the_papers_below_in_italics(tmp_path):
    seeds = [evaluation(checkpoint=str(value), results=(result("accuracy", value),), floors=()) for value in (0.5, 0.7)]
    text = study_latex(read_grid(small_study(tmp_path, {CELL: seeds})))
    assert r"CLEFT-LoRA & \textbf{60.0}{\tiny\,$\pm$14.1} & -- \\" in text
    assert r"\quad\textit{the paper} & \textit{66.74} & \textit{64.93} \\" in text
    assert r" & \multicolumn{1}{c}{CheXpert-5$\times$200} & \multicolumn{1}{c}{RSNA} \\" in text
    assert r" & \multicolumn{1}{c}{zero-shot} & \multicolumn{1}{c}{zero-shot} \\" in text
    assert "they say nothing of the paper's numbers" in text


def test_a_difference_to_the_reference_stands_beside_its_number(tmp_path):
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
    told = ("difference", "difference_low", "difference_high", "p_value")
    assert [found["clip-vit", "auc"][name] for name in told] == ["0.1", "-0.01", "0.21", "0.08"]
    assert [found["clip-vit", "accuracy"][name] for name in told] == [""] * 4


def test_headings_of_rows_stand_in_both(tmp_path):
    rows = tuple(StudyLine(key=f"row-{n}", label=f"row {n}", heading=f"part {n // 2}") for n in range(4))
    folder = small_study(tmp_path, {("row-1", CELL[1]): [evaluation(0.6)]}, rows=rows)
    models = [line for line in lines(folder) if line["state"] != "floor"]
    assert {line["row"]: line["heading"] for line in models} == {row.key: row.heading for row in rows}
    text = study_latex(read_grid(folder))
    assert text.count(r"\multicolumn{3}{l}{\textit{part 1}} \\") == 1
    assert text.index("part 0") < text.index("row 1") < text.index("part 1") < text.index("row 2")


def test_the_papers_marks_stand_in_the_latex_table_with_what_they_mean(tmp_path):
    text = study_latex(read_grid(write_study(tmp_path, seeds=1)))
    assert r"\textit{59.42}*$\dagger$" in text
    assert r"; *: copied by the paper's authors from the MedCLIP paper; $\dagger$: pre-trained on other data" in text


def test_the_latex_table_of_the_papers_scale_warns_of_nothing(tmp_path):
    text = study_latex(read_grid(small_study(tmp_path, {CELL: [evaluation(0.6)]}, scale="paper")))
    assert "say nothing" not in text


NASTY = r"50 % & $x$ # _a_ {b} ~ ^ \input{x} <&> | " + '"q" “r” ≥ é 中'


def test_any_words_become_words(tmp_path):
    assert tex(r"\input{x} 5 %") == r"\textbackslash{}input\{x\} 5 \%"
    assert tex("é 中 ≥") == r"é ? $\geq$"


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
@pytest.mark.parametrize("nasty", [False, True])
def test_the_latex_table_compiles(tmp_path, nasty):
    folder = write_study(tmp_path, seeds=1)
    if nasty:
        folder = small_study(
            tmp_path / "nasty",
            {},
            title=f"{NASTY}\n\\end{{table}}",
            cells=(),
            rows=(StudyLine(key="a", label=NASTY),),
            columns=(StudyLine(key="b", label=NASTY, metrics=("accuracy", NASTY)),),
        )
    (tmp_path / "table.tex").write_text(study_latex(read_grid(folder)))
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
def test_e15_a_formula_in_a_text_cell_is_no_formula(text):
    assert csv_text(text) == f"'{text}"


@pytest.mark.parametrize("text", ["-0.25", "+3", "-1e-05; 0.5", "-0.2..0.3; -0.1..0.4", "", "plain", "a=b"])
def test_e15_numbers_and_plain_text_stay_as_they_are(text):
    assert csv_text(text) == text


def test_e15_no_cell_of_a_studys_table_is_a_formula(tmp_path):
    rows = (StudyLine(key="=row", label="+label", heading="@heading", origin="-origin of it"),)
    folder = small_study(tmp_path, {}, rows=rows)
    cells = [cell for line in csv.reader(study_csv(read_grid(folder)).splitlines()) for cell in line]
    assert any("origin of it" in cell for cell in cells)
    assert not [cell for cell in cells if cell[:1] in ("=", "+", "@")]
    assert not [cell for cell in cells if cell.startswith("-origin")]
