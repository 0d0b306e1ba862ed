"""A study as an HTML page, a CSV table and a LaTeX table, made from its result files alone."""

from __future__ import annotations

import csv
import io
import logging
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from cleft.errors import ConfigError
from cleft.files import Output, csv_text
from cleft.privacy import MIN_PATIENTS, redact
from cleft.report.charts import BLACK, COLOURS, GREY, legend_line, legend_marker
from cleft.report.html import SHORT_METRIC_NAMES, Footnotes, format_table_value, is_percent, render_page
from cleft.report.paper import MARKS, QUOTED, Quoted, quoted
from cleft.report.run_page import SCORING_NAMES, Section, build_section, write_report
from cleft.report.runs import Run, StoredResult
from cleft.report.study_charts import study_figures
from cleft.report.study_table import (
    STUDY_FILE,
    CellResults,
    MetricSummary,
    SeedResult,
    StudyResults,
    column_borders,
    column_headers,
    corrected_p_values,
    difference_table,
    parameter_table,
    read_study,
    seed_rows,
    table_rows,
)
from cleft.report.tables import BASELINES, TASK_NAMES, Entry
from cleft.results import StudyLine

log = logging.getLogger(__name__)

KEYS = {"model": COLOURS[0], "mean": BLACK, "baseline": GREY, "paper": BLACK, "level": GREY}
_MAX_ROWS = 8
"""Most rows in the charts of a section, so that they can be distinguished."""


def check_study_outputs(folder: Path, name: str, *, overwrite: bool = False) -> tuple[Output, Output, Output]:
    """Return page, CSV and LaTeX file of a study, after checking that they may be written.

    Args:
        folder: Folder of the study.
        name: Name of the study.
        overwrite: Replace files that are not earlier outputs.

    Raises:
        ConfigError: If one would replace a file that cleft did not write.
        ResourceError: If the folder cannot be written.
    """
    stem = file_name(name)
    page, table, latex = (
        Output(folder / file, "the study's", overwrite=overwrite).check()
        for file in ("study.html", f"{stem}.csv", f"{stem}.tex")
    )
    return page, table, latex


def write_study_page(folder: Path, *, images: bool | None = None, overwrite: bool = False) -> Path:
    """Write `study.html`, `<name>.csv` and `<name>.tex` to the folder of a study.

    Args:
        folder: Folder with `study.json`.
        images: True shows all example images, False none, None synthetic ones only.
        overwrite: Replace files that are not earlier outputs.

    Returns:
        The HTML file.

    Raises:
        ConfigError: If one of these files was not written by cleft.
        DataError: If there is no study, or its results were measured on different splits or images.
        ResourceError: If a file cannot be written.
    """
    study_results = read_study(folder)
    page, table, latex = check_study_outputs(folder, study_results.study.name, overwrite=overwrite)
    table.write(study_csv(study_results))
    latex.write(study_latex(study_results))
    return page.write(render_study(study_results, images=images))


def find_runs_and_studies(folders: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Sort folders into runs and studies; other folders are searched for both, at any depth.

    Example:
        >>> find_runs_and_studies([Path("/nowhere")])
        ([PosixPath('/nowhere')], [])
    """
    runs: list[Path] = []
    studies: list[Path] = []
    for folder in folders:
        for each in _find_inside(folder) or [folder]:
            (studies if (each / STUDY_FILE).is_file() else runs).append(each)
    return runs, studies


def _find_inside(folder: Path) -> list[Path]:
    """Return the runs and studies in a folder and its subfolders; folders inside a run or study belong to it."""
    if _is_run_or_study(folder):
        return [folder]
    if not folder.is_dir() or folder.is_symlink():
        return []
    folders = sorted(each for each in folder.iterdir() if not each.name.startswith("."))
    return [found for each in folders if not _is_empty_run(each) for found in _find_inside(each)]


def _is_empty_run(folder: Path) -> bool:
    """Whether a run folder has no training step or model; logs that it is skipped."""
    started = any((folder / name).exists() for name in _STARTED)
    if (folder / "config.yaml").is_file() and not started and not (folder / STUDY_FILE).is_file():
        log.info("%s skipped: nothing was trained in it", folder)
        return True
    return False


_STARTED = ("logs", "states", "results", "comparisons", "summary.json", "model.json")
"""A run has at least one of these once it has trained a step or has a model."""


def _is_run_or_study(folder: Path) -> bool:
    return (folder / STUDY_FILE).is_file() or (folder / "config.yaml").is_file()


def write_pages(
    folders: Sequence[Path], out: Path | None, *, images: bool | None = None, overwrite: bool = False
) -> list[Path]:
    """Write a page for each study, and one for all runs.

    Args:
        folders: Run folders, study folders, or folders that contain them.
        out: HTML file for the runs; by default `report.html`.
        images: As in `write_study_page`.
        overwrite: Replace files that are not earlier outputs.

    Returns:
        The HTML files.

    Raises:
        ConfigError: If there are only studies and `out` is given, or a page would replace a file not written by cleft.
        DataError: If a folder is none of these, or a study is damaged or mixes splits.
        ResourceError: If a page cannot be written.
    """
    runs, studies = find_runs_and_studies(folders)
    if studies and not runs and out is not None:
        raise ConfigError(
            f"--out {out}: the page of a study is always study.html in its folder, next to the results it links to; "
            f"leave out --out"
        )
    out = out or Path("report.html")
    if runs:
        Output(out, "--out", overwrite=overwrite, inputs=tuple(runs)).check()
    pages = [write_study_page(study, images=images, overwrite=overwrite) for study in studies]
    return [*pages, write_report(runs, out, images=images, overwrite=overwrite)] if runs else pages


def file_name(name: str) -> str:
    """Return the stem of the files that hold the tables of a study of this name."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-") or "study"


def render_study(study_results: StudyResults, *, images: bool | None = None) -> str:
    """Return the page as HTML."""
    study, notes = study_results.study, Footnotes()
    rows = table_rows(study_results, notes)
    papers = [cell.paper for row in rows for cell in row.cells if cell.paper]
    sections = [section for column in study.columns if (section := _section(study_results, column, images)) is not None]
    evaluations = [seed.evaluation for column in study.columns for seed in study_results.seeds(column)]
    return render_page(
        "study_page.html",
        study=study,
        title=study.title,
        command=redact("command", study.command),
        counts=study_results.counts(),
        cells=len(study_results.cells),
        tiny=study.scale != "paper",
        synthetic=any(each.synthetic for each in evaluations),
        all_synthetic=all(each.synthetic for each in evaluations),
        heads=column_headers(study.columns),
        metrics=[SHORT_METRIC_NAMES.get(metric, metric) for column in study.columns for metric in column.metrics],
        borders=column_borders(study.columns),
        rows=rows,
        reference=next((row.label for row in study.rows if row.key == study.reference), ""),
        differences=difference_table(study_results),
        family=corrected_p_values(study_results)[1],
        imported=any(row.origin for row in study.rows),
        papers=papers,
        marks=[each for each in MARKS.items() if any(each[0] in paper for paper in papers)],
        percent=any(is_percent(metric) for column in study.columns for metric in column.metrics),
        footnotes=notes.items(),
        facts=parameter_table(study),
        figures=study_figures(study_results),
        seeds={column.key: seed_rows(study_results, column) for column in study.columns},
        sections=sections,
        files=[f"{file_name(study.name)}.csv", f"{file_name(study.name)}.tex"],
        fewest=MIN_PATIENTS,
        most=_MAX_ROWS,
        scorings=SCORING_NAMES,
        tasks=TASK_NAMES,
        redact=redact,
        swatch=legend_line,
        keys={kind: legend_marker(kind, colour) for kind, colour in KEYS.items()},
    )


def _section(study_results: StudyResults, column: StudyLine, images: bool | None) -> Section | None:
    """Return the section of a column: further results of the first seed of each row."""
    entries: list[Entry] = []
    for series, row in enumerate(study_results.study.rows):
        cell = study_results.cells.get((row.key, column.key))
        if cell is not None and cell.seeds and len(entries) < _MAX_ROWS:
            entries.append(_entry(row, cell.seeds[0], series))
    if not entries:
        return None
    place = study_results.study.columns.index(column)
    section = build_section(f"column-{place + 1}", column.label, entries, images=images)
    return section._replace(headline=None)  # the study table has it, over all seeds


def _entry(row: StudyLine, seed: SeedResult, series: int) -> Entry:
    nothing: Mapping[str, str] = {}
    stored = StoredResult(file=seed.file, anchor="table", evaluation=seed.evaluation, href=quote(seed.file))
    run = Run(
        name=row.label,
        anchor="table",
        stage="",
        config=nothing,
        environment=nothing,
        curves={},
        results=[stored],
        problems=[],
    )
    return Entry(run, stored, series, row.label)


FIELDS = (
    *(
        "study",
        "scale",
        "heading",
        "row",
        "column",
        "metric",
        "state",
        "reason",
        "value",
        "spread",
        "low",
        "high",
        "seeds",
    ),
    *("values", "intervals", "images", "patients", "split_digest", "ids_digest", "files", "commands"),
    *("difference", "difference_low", "difference_high", "p_value", "p_holm", "comparisons"),
    *("paper", "paper_note", "origin"),
)
"""Columns of the CSV. `low` and `high` are the lowest and highest limit of the seeds' 95 % intervals; values, files and
commands of several seeds are in one field, separated by `; `. `difference` is the difference from the reference row,
`p_holm` its p-value after Holm's correction for all `comparisons` of the study; `origin` is the source of an imported
model."""
_TEX = {
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    **{"–": "--", "—": "---", "’": "'", "‘": "`", "“": "``", "”": "''", "\u202f": "~", "\u00a0": "~"},
    **{"±": r"$\pm$", "×": r"$\times$", "≥": r"$\geq$", "≤": r"$\leq$", "→": r"$\to$", "†": r"$\dagger$"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}", "·": r"$\cdot$"},
    **{"τ": r"$\tau$", "α": r"$\alpha$", "³": "$^3$", "²": "$^2$", "µ": r"$\mu$"},
}


def study_csv(study_results: StudyResults) -> str:
    """Return the study as CSV: one line per row, column and metric, baselines last; fractions, not percent."""
    file = io.StringIO()
    table = csv.DictWriter(file, FIELDS, lineterminator="\n", restval="")
    table.writeheader()

    def write(line: Mapping[str, str | int | float | None]) -> None:
        table.writerow({name: csv_text(value) if isinstance(value, str) else value for name, value in line.items()})

    corrected, family = corrected_p_values(study_results)
    for row in study_results.study.rows:
        for column in study_results.study.columns:
            for metric in column.metrics:
                cell = study_results.cells.get((row.key, column.key))
                paper = quoted(study_results.study.name, row.key, column.key, metric)
                state = "absent" if cell is None else cell.cell.state
                line = _line(study_results, row.key, column, metric, study_results.summary(row, column, metric))
                write(
                    {
                        **line,
                        "heading": row.heading,
                        "state": state,
                        **_difference_fields(cell, metric, corrected.get((row.key, column.key, metric)), family),
                        **_paper_fields(paper),
                        "origin": _origin(row),
                    }
                )
    for rule in BASELINES:
        for column in study_results.study.columns:
            for metric in column.metrics:
                number = study_results.baseline(rule, column, metric)
                if number is not None:
                    write({**_line(study_results, rule, column, metric, number), "state": "baseline"})
    return file.getvalue()


def _line(
    study_results: StudyResults, row: str, column: StudyLine, metric: str, number: MetricSummary
) -> dict[str, str | int | float | None]:
    results = [result for _, result in number.results] if number.value is not None else []
    evaluations = [seed.evaluation for seed, _ in number.results]
    low, high = (number.interval_range if results else None) or (None, None)
    return {
        "study": study_results.study.name,
        "scale": study_results.study.scale,
        "row": row,
        "column": column.key,
        "metric": metric,
        "reason": number.reason,
        "value": number.value,
        "spread": number.spread,
        "low": low,
        "high": high,
        "seeds": len(results),
        "values": _joined([f"{result.value:.6g}" for result in results if result.value is not None]),
        "intervals": _joined([f"{a:.6g}..{b:.6g}" for a, b in filter(None, (result.interval for result in results))]),
        "images": _joined(list(dict.fromkeys(str(result.images) for result in results))),
        "patients": _joined(list(dict.fromkeys(str(result.patients) for result in results))),
        "split_digest": _joined(list(dict.fromkeys(each.split_digest for each in evaluations))),
        "ids_digest": _joined(list(dict.fromkeys(each.ids_digest for each in evaluations))),
        "files": _joined([seed.file for seed, _ in number.results]),
        "commands": _joined([redact("command", each.command) for each in evaluations if each.command]),
    }


def _origin(row: StudyLine) -> str:
    return redact("origin", row.origin) if row.origin else ""


def _joined(parts: Sequence[str]) -> str:
    return "; ".join(parts)


def _difference_fields(
    cell: CellResults | None, metric: str, corrected: float | None, family: int
) -> dict[str, float | None]:
    for each in () if cell is None else cell.cell.differences:
        if each.metric == metric:
            low, high = each.interval or (None, None)
            return {
                "difference": each.difference,
                "difference_low": low,
                "difference_high": high,
                "p_value": each.p_value,
                "p_holm": corrected,
                "comparisons": None if corrected is None else family,
            }
    return {}


def _paper_fields(paper: Quoted | None) -> dict[str, str]:
    return {} if paper is None else {"paper": f"{paper.value:.4f}", "paper_note": _joined(paper.notes)}


def study_latex(study_results: StudyResults) -> str:
    r"""Return the study as a LaTeX table (booktabs): measured values in bold, the paper's below in italics."""
    study = study_results.study
    columns = [(column, metric) for column in study.columns for metric in column.metrics]
    heads = [
        " & ".join(["", *(f"\\multicolumn{{{head.span}}}{{c}}{{{tex(head.label)}}}" for head in line)]) + r" \\"
        for line in column_headers(study.columns)
    ]
    lines = [
        f"% {_comment(study.title)}: {_comment(redact('command', study.command))}",
        *(f"% {_comment(row.label)}: {_comment(_origin(row))}" for row in study.rows if row.origin),
        r"% needs \usepackage{booktabs}",
        r"\begin{table*}",
        r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
        f"\\caption{{{_caption(study_results)}}}",
        f"\\label{{tab:{''.join(letter for letter in study.name if letter.isascii() and letter.isalnum())}}}",
        f"\\begin{{tabular}}{{l{'c' * len(columns)}}}",
        r"\toprule",
        *heads,
        " & ".join(["", *(tex(SHORT_METRIC_NAMES.get(metric, metric)) for _, metric in columns)]) + r" \\",
        r"\midrule",
    ]
    above = ""
    for row in study.rows:
        if row.heading != above:
            lines.append(f"\\multicolumn{{{len(columns) + 1}}}{{l}}{{\\textit{{{tex(row.heading)}}}}} \\\\")
            above = row.heading
        numbers = [_tex_number(metric, study_results.summary(row, column, metric)) for column, metric in columns]
        lines.append(" & ".join([tex(row.label), *numbers]) + r" \\")
        papers = [quoted(study.name, row.key, column.key, metric) for column, metric in columns]
        if any(papers):
            printed = [f"\\textit{{{paper.printed}}}{tex(paper.marks)}" if paper else "" for paper in papers]
            lines.append(" & ".join([r"\quad\textit{paper}", *printed]) + r" \\")
    baselines = [
        (name, [study_results.baseline(rule, column, metric) for column, metric in columns])
        for rule, name in BASELINES.items()
    ]
    baselines = [(name, numbers) for name, numbers in baselines if any(numbers)]
    lines += [r"\midrule"] * bool(baselines)
    for name, numbers in baselines:
        printed = [
            format_table_value(metric, number.value) if number is not None and number.value is not None else "--"
            for (_, metric), number in zip(columns, numbers, strict=True)
        ]
        lines.append(" & ".join([tex(name), *printed]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table*}", ""])


def _caption(study_results: StudyResults) -> str:
    study = study_results.study
    used = "".join(each.marks for each in QUOTED.get(study.name, {}).values())
    marks = "".join(f"; {tex(mark)}: {tex(words)}" for mark, words in MARKS.items() if mark in used)
    unit = "In percent, " if any(is_percent(metric) for column in study.columns for metric in column.metrics) else ""
    tiny = " Tiny scale: small encoders on few images, not comparable with the paper." if study.scale != "paper" else ""
    return (
        f"{tex(study.title)}. {unit}bold: measured, mean over seeds $\\pm$ standard deviation; "
        f"\\textit{{italics}}: reported in the paper, on its own images{marks}.{tiny}"
    )


def _tex_number(metric: str, number: MetricSummary) -> str:
    if number.value is None:
        return "--"
    spread = "" if number.spread is None else f"{{\\tiny\\,$\\pm${format_table_value(metric, number.spread)}}}"
    return f"\\textbf{{{format_table_value(metric, number.value)}}}{spread}"


def tex(text: str) -> str:
    r"""Escape text for LaTeX; letters outside Latin-1 lose their accents or become a question mark.

    Example:
        >>> tex("5×200 & 10 %")
        '5$\\times$200 \\& 10 \\%'
    """
    return "".join(_TEX.get(letter) or _plain(letter) for letter in text if letter.isprintable())


def _plain(letter: str) -> str:
    if letter.isascii() or "\u00c0" <= letter <= "\u00ff":
        return letter
    plain = unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()
    return "".join(_TEX.get(each, each) for each in plain) or "?"


def _comment(text: str) -> str:
    """Return text on one line, for a LaTeX comment."""
    return " ".join(text.split())
