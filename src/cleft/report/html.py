"""Building blocks of pages: the template engine, cells, rows and footnotes of tables, and formatted numbers.

A page needs no server: styles, figures and images are embedded, it runs no script, and its content security policy
forbids requests. Every value read from a file is escaped.
"""

from __future__ import annotations

import functools
import math
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from cleft.privacy import MIN_PATIENTS
from cleft.results import Evaluation, Result
from cleft.version import __version__

PNG = re.compile(r"iVBORw0KGgo[A-Za-z0-9+/]*={0,2}")
"""A base64 PNG: nothing else may enter a `data:` attribute."""


def render_page(template: str, **values: Any) -> str:
    """Render a template of this folder; a variable without a value is an error."""
    return _environment().get_template(template).render(version=__version__, **values).lstrip()


@functools.cache
def _environment() -> jinja2.Environment:
    # Cached: compiling the templates takes longer than rendering them.
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


TOO_FEW = f"fewer than {MIN_PATIENTS} patients"
PERCENT = "\u202f%"  # narrow no-break space
PERCENT_METRICS = ("accuracy", "sensitivity", "recall", "precision")
"""Metrics printed in percent."""
RANK_METRICS = ("mean-rank", "median-rank")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One formatted value of a table."""

    text: str
    detail: str = ""
    """Interval or range, in small print."""
    href: str = ""
    note: str = ""
    """Letter of its footnote."""
    title: str = ""
    """Tooltip."""
    chart: str = ""
    """SVG below the value."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a table."""

    kind: str
    """`model`, `mean` (over seeds), `baseline`, `paper`, or `heading` of the rows below."""
    label: str
    sublabel: str = ""
    swatch: str = ""
    href: str = ""
    cells: Sequence[Cell] = ()


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table with its footnotes."""

    columns: Sequence[str]
    axis_ends: Sequence[tuple[str, str]] = ()
    """Axis limits of the charts of each column."""
    rows: Sequence[Row] = ()
    footnotes: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Footnotes:
    """Footnotes in order of first use, each with a letter."""

    letters: dict[str, str] = field(default_factory=dict[str, str])

    def letter(self, reason: str | None) -> str:
        """Return the letter of a footnote, which is added if it is new; empty if there is no reason."""
        if not reason:
            return ""
        number = len(self.letters)
        alphabet = string.ascii_lowercase
        fresh = alphabet[number % 26] * (number // 26 + 1)
        return self.letters.setdefault(reason, fresh)

    def items(self) -> list[tuple[str, str]]:
        """Return letters and footnotes."""
        return [(letter, reason) for reason, letter in self.letters.items()]


def format_value(metric: str, value: float) -> str:
    """Format a metric: accuracy-like metrics in percent, areas with three decimals, ranks with one.

    Example:
        >>> format_value("auc", 0.8776), format_value("accuracy", 0.6674).split(), format_value("mean-rank", 12.25)
        ('0.878', ['66.7', '%'], '12.2')
    """
    names = [part.partition("@")[0] for part in metric.split("/")]
    if any(name in PERCENT_METRICS for name in names):
        return f"{100 * value:.1f}{PERCENT}"
    return f"{value:.1f}" if any(name in RANK_METRICS for name in names) else f"{value:.3f}"


def format_interval(metric: str, bounds: tuple[float, float]) -> str:
    """Format an interval, with its unit once."""
    low, high = (format_value(metric, end) for end in bounds)
    return f"{low.removesuffix(PERCENT)}–{high}"


def format_axis_end(metric: str, end: float) -> str:
    """Format the limit of an axis.

    Example:
        >>> format_axis_end("auc", 0.4)
        '0.4'
    """
    return f"{100 * end:.0f}{PERCENT}" if metric == "accuracy" else f"{end:.1f}"


def is_suppressed(result: Result, evaluation: Evaluation) -> bool:
    """Whether a result rests on too few patients to be printed."""
    return not evaluation.synthetic and 0 < result.patients < MIN_PATIENTS


def format_percent(share: float) -> str:
    """Format a fraction in percent; small non-zero fractions are not rounded to zero.

    Example:
        >>> format_percent(0.5).split(), format_percent(0.0004).split(), format_percent(0).split()
        (['50.0', '%'], ['<0.1', '%'], ['0.0', '%'])
    """
    return "<0.1\u202f%" if 0 < share < 0.0005 else f"{100 * share:.1f}\u202f%"


def format_parameters(count: float) -> str:
    """Format a number of parameters.

    Example:
        >>> format_parameters(2_621_440), format_parameters(2_700_000_000), format_parameters(950)
        ('2.62 M', '2.70 B', '950')
    """
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            scaled = count / size
            power_of_ten = scaled == 10 ** round(math.log10(scaled))
            return f"{scaled:.0f} {letter}" if power_of_ten else f"{scaled:#.3g}".rstrip(".") + f" {letter}"
    return f"{count:,.0f}"


SHORT_METRIC_NAMES = {
    "accuracy": "Acc.",
    "auc": "AUC",
    "auprc": "AUPRC",
    "ece": "ECE",
    "mean-rank": "mean rank",
    "median-rank": "median rank",
}
"""Metric names in column headers."""
_PERCENT = ("accuracy", "auc", "auprc", "sensitivity", "specificity", "recall", "precision", "f1")


def axis_label(metric: str) -> str:
    """Return the name of a metric on a chart axis."""
    return "accuracy" if metric == "accuracy" else SHORT_METRIC_NAMES.get(metric, metric)


def is_percent(metric: str) -> bool:
    """Whether study tables print a metric in percent: all but ranks and errors.

    Example:
        >>> is_percent("image-to-text/recall@5"), is_percent("auc/Edema"), is_percent("image-to-text/mean-rank")
        (True, True, False)
    """
    return any(part.partition("@")[0] in _PERCENT for part in metric.split("/"))


def format_table_value(metric: str, value: float) -> str:
    """Format a value for a study table, without unit.

    Example:
        >>> format_table_value("accuracy", 0.6674), format_table_value("mean-rank", 12.25)
        ('66.7', '12.2')
    """
    if is_percent(metric):
        return f"{100 * value:.1f}"
    return f"{value:.1f}" if "rank" in metric else f"{value:.3f}"


def format_table_difference(metric: str, value: float) -> str:
    """Format a difference for a study table, with its sign.

    Example:
        >>> format_table_difference("accuracy", -0.0214), format_table_difference("mean-rank", 1.5)
        ('−2.1', '+1.5')
    """
    return ("−" if value < 0 else "+") + format_table_value(metric, abs(value))
