"""A study's numbers for machines (CSV) and for papers (LaTeX)."""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Mapping, Sequence

from cleft.files import csv_text
from cleft.report.grid import Filled, Grid, Number
from cleft.report.headings import METRICS, as_printed, in_percent, table_heads
from cleft.report.paper import MARKS, QUOTED, Quoted, quoted
from cleft.report.runs import shown
from cleft.report.study_table import corrected_p_values
from cleft.report.tables import FLOORS
from cleft.types import StudyLine

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


def study_csv(grid: Grid) -> str:
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
                filled = grid.filled.get((row.key, column.key))
                paper = quoted(grid.study.name, row.key, column.key, metric)
                state = "absent" if filled is None else filled.cell.state
                line = _line(grid, row.key, column, metric, grid.number(row, column, metric))
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
    for rule in FLOORS:
        for column in grid.study.columns:
            for metric in column.metrics:
                number = grid.floor(rule, column, metric)
                if number is not None:
                    write({**_line(grid, rule, column, metric, number), "state": "floor"})
    return file.getvalue()


def _line(grid: Grid, row: str, column: StudyLine, metric: str, number: Number) -> dict[str, str | int | float | None]:
    results = [result for _, result in number.results] if number.value is not None else []
    evaluations = [seed.evaluation for seed, _ in number.results]
    low, high = (number.reach if results else None) or (None, None)
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
        "commands": _joined([shown("command", each.command) for each in evaluations if each.command]),
    }


def _origin(row: StudyLine) -> str:
    return shown("origin", row.origin) if row.origin else ""


def _joined(parts: Sequence[str]) -> str:
    return "; ".join(parts)


def _changed(filled: Filled | None, metric: str, corrected: float | None, family: int) -> dict[str, float | None]:
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


def study_latex(grid: Grid) -> str:
    r"""A table that `\input` puts into a paper which loads booktabs: ours bold, the paper's below in italics."""
    study = grid.study
    places = [(column, metric) for column in study.columns for metric in column.metrics]
    heads = [
        " & ".join(["", *(f"\\multicolumn{{{head.span}}}{{c}}{{{tex(head.label)}}}" for head in line)]) + r" \\"
        for line in table_heads(study.columns)
    ]
    lines = [
        f"% {_comment(study.title)}: {_comment(shown('command', study.command))}",
        *(f"% {_comment(row.label)}: {_comment(_origin(row))}" for row in study.rows if row.origin),
        r"% needs \usepackage{booktabs}",
        r"\begin{table*}",
        r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
        f"\\caption{{{_caption(grid)}}}",
        f"\\label{{tab:{''.join(letter for letter in study.name if letter.isascii() and letter.isalnum())}}}",
        f"\\begin{{tabular}}{{l{'c' * len(places)}}}",
        r"\toprule",
        *heads,
        " & ".join(["", *(tex(METRICS.get(metric, metric)) for _, metric in places)]) + r" \\",
        r"\midrule",
    ]
    above = ""
    for row in study.rows:
        if row.heading != above:
            lines.append(f"\\multicolumn{{{len(places) + 1}}}{{l}}{{\\textit{{{tex(row.heading)}}}}} \\\\")
            above = row.heading
        numbers = [_tex_number(metric, grid.number(row, column, metric)) for column, metric in places]
        lines.append(" & ".join([tex(row.label), *numbers]) + r" \\")
        papers = [quoted(study.name, row.key, column.key, metric) for column, metric in places]
        if any(papers):
            printed = [f"\\textit{{{paper.printed}}}{tex(paper.marks)}" if paper else "" for paper in papers]
            lines.append(" & ".join([r"\quad\textit{the paper}", *printed]) + r" \\")
    floors = [(name, [grid.floor(rule, column, metric) for column, metric in places]) for rule, name in FLOORS.items()]
    told = [(name, numbers) for name, numbers in floors if any(numbers)]
    lines += [r"\midrule"] * bool(told)
    for name, numbers in told:
        printed = [
            as_printed(metric, number.value) if number is not None and number.value is not None else "--"
            for (_, metric), number in zip(places, numbers, strict=True)
        ]
        lines.append(" & ".join([tex(name), *printed]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table*}", ""])


def _caption(grid: Grid) -> str:
    study = grid.study
    seen = "".join(each.marks for each in QUOTED.get(study.name, {}).values())
    marks = "".join(f"; {tex(mark)}: {tex(words)}" for mark, words in MARKS.items() if mark in seen)
    unit = "In percent, " if any(in_percent(metric) for column in study.columns for metric in column.metrics) else ""
    toy = (
        " Measured at the tiny scale, on small towers and few images: they say nothing of the paper's numbers."
        if study.scale != "paper"
        else ""
    )
    return (
        f"{tex(study.title)}. {unit}bold: measured, mean over seeds $\\pm$ standard deviation; "
        f"\\textit{{italics}}: printed in the paper, on its own images{marks}.{toy}"
    )


def _tex_number(metric: str, number: Number) -> str:
    if number.value is None:
        return "--"
    spread = "" if number.spread is None else f"{{\\tiny\\,$\\pm${as_printed(metric, number.spread)}}}"
    return f"\\textbf{{{as_printed(metric, number.value)}}}{spread}"


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
