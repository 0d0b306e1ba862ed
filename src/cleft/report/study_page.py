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
from cleft.report.html import Footnotes, render_page
from cleft.report.paper import MARKS, QUOTED, Quoted, quoted
from cleft.report.run_sections import SCORING_QUESTIONS, Section, build_section
from cleft.report.runs import Run, StoredResult
from cleft.report.study_charts import study_figures
from cleft.report.study_table import (
    SHORT_METRIC_NAMES,
    STUDY_FILE,
    CellResults,
    MetricSummary,
    SeedResult,
    StudyResults,
    column_borders,
    column_headers,
    corrected_p_values,
    difference_table,
    format_number,
    is_percent,
    parameter_table,
    read_study,
    seed_rows,
    table_rows,
)
from cleft.report.tables import BASELINES, TASK_NAMES, Entry
from cleft.results import StudyLine

log = logging.getLogger(__name__)

KEYS = {"model": COLOURS[0], "mean": BLACK, "floor": GREY, "paper": BLACK, "level": GREY}
_MAX_ROWS = 8
"""Most rows whose curves a section draws, so that they can be told apart."""


def check_study_outputs(folder: Path, name: str, *, overwrite: bool = False) -> tuple[Output, Output, Output]:
    """Return page, CSV and LaTeX of a study, checked: none replaces a file that is not an earlier output.

    Args:
        folder: Of the study.
        name: Of the study.
        overwrite: Whether such files are replaced.

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
    """Writes `study.html`, `<name>.csv` and `<name>.tex` of a study beside its results.

    Args:
        folder: It holds `study.json`.
        images: Whether to show images: True shows them all, False none, None those of phantoms alone.
        overwrite: Whether to replace files that are not earlier outputs.

    Returns:
        The page.

    Raises:
        ConfigError: If one of these files was not written by cleft.
        DataError: If there is no study, or its results were measured on different splits or images.
        ResourceError: If a file cannot be written.
    """
    grid = read_study(folder)
    page, table, latex = check_study_outputs(folder, grid.study.name, overwrite=overwrite)
    table.write(study_csv(grid))
    latex.write(study_latex(grid))
    return page.write(render_study(grid, images=images))


def find_runs_and_studies(folders: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Sorts folders into run folders and folders of studies; any other folder is searched for both, at any depth.

    Example:
        >>> find_studies([Path("/nowhere")])
        ([PosixPath('/nowhere')], [])
    """
    runs: list[Path] = []
    studies: list[Path] = []
    for folder in folders:
        for each in _known_inside(folder) or [folder]:
            (studies if (each / STUDY_FILE).is_file() else runs).append(each)
    return runs, studies


def _known_inside(folder: Path) -> list[Path]:
    """Runs and studies in a folder and its subfolders; folders inside a run or a study belong to it."""
    if _is_known(folder):
        return [folder]
    if not folder.is_dir() or folder.is_symlink():
        return []
    held = sorted(each for each in folder.iterdir() if not each.name.startswith("."))
    return [known for each in held if not _is_idle(each) for known in _known_inside(each)]


def _is_idle(folder: Path) -> bool:
    """Whether a command was refused or stopped in a run folder before it made a step; says so."""
    begun = any((folder / name).exists() for name in _BEGUN)
    if (folder / "config.yaml").is_file() and not begun and not (folder / STUDY_FILE).is_file():
        log.info("%s is left out: nothing was trained in it", folder)
        return True
    return False


_BEGUN = ("logs", "states", "results", "comparisons", "summary.json", "model.json")
"""Files and folders of which a run has at least one as soon as it has made a step or holds a model."""


def _is_known(folder: Path) -> bool:
    return (folder / STUDY_FILE).is_file() or (folder / "config.yaml").is_file()


def write_pages(
    folders: Sequence[Path], out: Path | None, *, images: bool | None = None, overwrite: bool = False
) -> list[Path]:
    """Writes a page for each study, and one for all runs together.

    Args:
        folders: Run folders, folders of studies, or folders that contain them.
        out: Where the page of the runs goes; by default `report.html`.
        images: As in `write_study`.
        overwrite: Whether to replace files that are not earlier outputs.

    Returns:
        The pages.

    Raises:
        ConfigError: If there are only studies and `out` is given, or a page would replace a file not written by cleft.
        DataError: If a folder is none of these, or a study cannot be told.
        ResourceError: If a page cannot be written.
    """
    from cleft.report.run_page import write_report

    runs, studies = find_runs_and_studies(folders)
    if studies and not runs and out is not None:
        raise ConfigError(
            f"--out {out}: the page of a study is study.html in its own folder, where its links lead to its results; "
            f"leave --out away"
        )
    out = out or Path("report.html")
    if runs:
        Output(out, "--out", overwrite=overwrite, inputs=tuple(runs)).check()
    pages = [write_study_page(study, images=images, overwrite=overwrite) for study in studies]
    return [*pages, write_report(runs, out, images=images, overwrite=overwrite)] if runs else pages


def file_name(name: str) -> str:
    """Return the stem of the files that hold the tables of a study of this name."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-") or "study"


def render_study(grid: StudyResults, *, images: bool | None = None) -> str:
    """The page as text."""
    study, notes = grid.study, Footnotes()
    lines = table_rows(grid, notes)
    papers = [place.paper for line in lines for place in line.cells if place.paper]
    sections = [section for column in study.columns if (section := _section(grid, column, images)) is not None]
    evaluations = [seed.evaluation for column in study.columns for seed in grid.seeds(column)]
    return render_page(
        "study_page.html",
        study=study,
        title=study.title,
        command=redact("command", study.command),
        counts=grid.counts(),
        cells=len(grid.cells),
        toy=study.scale != "paper",
        phantoms=any(each.synthetic for each in evaluations),
        all_phantoms=all(each.synthetic for each in evaluations),
        heads=column_headers(study.columns),
        metrics=[SHORT_METRIC_NAMES.get(metric, metric) for column in study.columns for metric in column.metrics],
        firsts=column_borders(study.columns),
        lines=lines,
        reference=next((row.label for row in study.rows if row.key == study.reference), ""),
        differences=difference_table(grid),
        family=corrected_p_values(grid)[1],
        given=any(row.origin for row in study.rows),
        papers=papers,
        marks=[each for each in MARKS.items() if any(each[0] in place.paper for line in lines for place in line.cells)],
        percent=any(is_percent(metric) for column in study.columns for metric in column.metrics),
        footnotes=notes.items(),
        facts=parameter_table(study),
        figures=study_figures(grid),
        seen={column.key: seed_rows(grid, column) for column in study.columns},
        sections=sections,
        files=[f"{file_name(study.name)}.csv", f"{file_name(study.name)}.tex"],
        fewest=MIN_PATIENTS,
        most=_MAX_ROWS,
        scorings=SCORING_QUESTIONS,
        tasks=TASK_NAMES,
        redact=redact,
        swatch=legend_line,
        keys={kind: legend_marker(kind, colour) for kind, colour in KEYS.items()},
    )


def _section(grid: StudyResults, column: StudyLine, images: bool | None) -> Section | None:
    """What the results under one heading hold besides their numbers, of the first seed of each row."""
    entries: list[Entry] = []
    for series, row in enumerate(grid.study.rows):
        filled = grid.cells.get((row.key, column.key))
        if filled is not None and filled.seeds and len(entries) < _MAX_ROWS:
            entries.append(_entry(row, filled.seeds[0], series))
    if not entries:
        return None
    place = grid.study.columns.index(column)
    section = build_section(f"heading-{place + 1}", column.label, entries, images=images)
    return section._replace(headline=None)  # the table of the study holds it, over all seeds


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
"""Columns of the CSV. `low` and `high` are the outermost ends of the seeds' 95 % intervals; several seeds' values,
files and commands are in one field, separated by `; `. `difference` is that to the study's reference, `p_holm`
its p-value after Holm's correction for all `comparisons` of the study; `origin` says where a model comes from that was
given."""
_TEX = {
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    **{"–": "--", "—": "---", "’": "'", "‘": "`", "“": "``", "”": "''", "\u202f": "~", "\u00a0": "~"},
    **{"±": r"$\pm$", "×": r"$\times$", "≥": r"$\geq$", "≤": r"$\leq$", "→": r"$\to$", "†": r"$\dagger$"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}", "·": r"$\cdot$"},
    **{"τ": r"$\tau$", "α": r"$\alpha$", "³": "$^3$", "²": "$^2$", "µ": r"$\mu$"},
}


def study_csv(grid: StudyResults) -> str:
    """One line per row, column and metric, the floors last; fractions, not percent."""
    file = io.StringIO()
    table = csv.DictWriter(file, FIELDS, lineterminator="\n", restval="")
    table.writeheader()

    def write(line: Mapping[str, str | int | float | None]) -> None:
        table.writerow({name: csv_text(value) if isinstance(value, str) else value for name, value in line.items()})

    corrected, family = corrected_p_values(grid)
    for row in grid.study.rows:
        for column in grid.study.columns:
            for metric in column.metrics:
                filled = grid.cells.get((row.key, column.key))
                paper = quoted(grid.study.name, row.key, column.key, metric)
                state = "absent" if filled is None else filled.cell.state
                line = _line(grid, row.key, column, metric, grid.summary(row, column, metric))
                write(
                    {
                        **line,
                        "heading": row.heading,
                        "state": state,
                        **_changed(filled, metric, corrected.get((row.key, column.key, metric)), family),
                        **_quoted(paper),
                        "origin": _origin(row),
                    }
                )
    for rule in BASELINES:
        for column in grid.study.columns:
            for metric in column.metrics:
                number = grid.baseline(rule, column, metric)
                if number is not None:
                    write({**_line(grid, rule, column, metric, number), "state": "floor"})
    return file.getvalue()


def _line(
    grid: StudyResults, row: str, column: StudyLine, metric: str, number: MetricSummary
) -> dict[str, str | int | float | None]:
    results = [result for _, result in number.results] if number.value is not None else []
    evaluations = [seed.evaluation for seed, _ in number.results]
    low, high = (number.interval_range if results else None) or (None, None)
    return {
        "study": grid.study.name,
        "scale": grid.study.scale,
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


def _changed(filled: CellResults | None, metric: str, corrected: float | None, family: int) -> dict[str, float | None]:
    held = () if filled is None else filled.cell.differences
    for each in held:
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


def _quoted(paper: Quoted | None) -> dict[str, str]:
    return {} if paper is None else {"paper": f"{paper.value:.4f}", "paper_note": _joined(paper.notes)}


def study_latex(grid: StudyResults) -> str:
    r"""A table that `\input` puts into a paper which loads booktabs: ours bold, the paper's below in italics."""
    study = grid.study
    places = [(column, metric) for column in study.columns for metric in column.metrics]
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
        f"\\caption{{{_caption(grid)}}}",
        f"\\label{{tab:{''.join(letter for letter in study.name if letter.isascii() and letter.isalnum())}}}",
        f"\\begin{{tabular}}{{l{'c' * len(places)}}}",
        r"\toprule",
        *heads,
        " & ".join(["", *(tex(SHORT_METRIC_NAMES.get(metric, metric)) for _, metric in places)]) + r" \\",
        r"\midrule",
    ]
    above = ""
    for row in study.rows:
        if row.heading != above:
            lines.append(f"\\multicolumn{{{len(places) + 1}}}{{l}}{{\\textit{{{tex(row.heading)}}}}} \\\\")
            above = row.heading
        numbers = [_tex_number(metric, grid.summary(row, column, metric)) for column, metric in places]
        lines.append(" & ".join([tex(row.label), *numbers]) + r" \\")
        papers = [quoted(study.name, row.key, column.key, metric) for column, metric in places]
        if any(papers):
            printed = [f"\\textit{{{paper.printed}}}{tex(paper.marks)}" if paper else "" for paper in papers]
            lines.append(" & ".join([r"\quad\textit{the paper}", *printed]) + r" \\")
    floors = [
        (name, [grid.baseline(rule, column, metric) for column, metric in places]) for rule, name in BASELINES.items()
    ]
    told = [(name, numbers) for name, numbers in floors if any(numbers)]
    lines += [r"\midrule"] * bool(told)
    for name, numbers in told:
        printed = [
            format_number(metric, number.value) if number is not None and number.value is not None else "--"
            for (_, metric), number in zip(places, numbers, strict=True)
        ]
        lines.append(" & ".join([tex(name), *printed]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table*}", ""])


def _caption(grid: StudyResults) -> str:
    study = grid.study
    seen = "".join(each.marks for each in QUOTED.get(study.name, {}).values())
    marks = "".join(f"; {tex(mark)}: {tex(words)}" for mark, words in MARKS.items() if mark in seen)
    unit = "In percent, " if any(is_percent(metric) for column in study.columns for metric in column.metrics) else ""
    toy = (
        " Measured at the tiny scale, on small towers and few images: they say nothing of the paper's numbers."
        if study.scale != "paper"
        else ""
    )
    return (
        f"{tex(study.title)}. {unit}bold: measured, mean over seeds $\\pm$ standard deviation; "
        f"\\textit{{italics}}: printed in the paper, on its own images{marks}.{toy}"
    )


def _tex_number(metric: str, number: MetricSummary) -> str:
    if number.value is None:
        return "--"
    spread = "" if number.spread is None else f"{{\\tiny\\,$\\pm${format_number(metric, number.spread)}}}"
    return f"\\textbf{{{format_number(metric, number.value)}}}{spread}"


def tex(text: str) -> str:
    r"""Any words so that LaTeX prints them; letters it may not know lose their accents, or become a question mark.

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
    """Words that cannot end a comment's line."""
    return " ".join(text.split())
