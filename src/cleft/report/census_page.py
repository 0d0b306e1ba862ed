"""The check of a dataset as a self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from cleft.files import Output
from cleft.grammar import count
from cleft.report.charts import LABEL_COLOURS, bar_chart, dot_strip, group_legend, histogram, legend_square, stacked_bar
from cleft.report.html import PNG, format_percent, render_page
from cleft.types import Census, Groups, Tally, Thumbnail

NAMES = {
    "view": "Views",
    "side": "Laterality",
    "sex": "Sex",
    "age": "Age",
    "scanner": "Scanners",
    "format": "File formats",
    "pixels": "Pixel types",
    "size": "Image sizes, height × width",
    "transfer syntax": "Transfer syntaxes",
    "frames": "Frames per file",
}
_MOST_BARS = 12
_LONGEST = 80
_UNKNOWN = "unknown"


class Chart(NamedTuple):
    """One chart of images or files."""

    title: str
    figure: Markup
    caption: str


class Finding(NamedTuple):
    """One row of the label table."""

    name: str
    chart: Markup
    counts: tuple[str, ...]
    shares: tuple[str, ...]
    """Share of positive images in each split."""


class Comparison(NamedTuple):
    """Share of positive images by group."""

    title: str
    groups: Sequence[tuple[Markup, str, str]]
    """Marker, name and size of each group."""
    rows: Sequence[tuple[str, Markup, tuple[str, ...]]]
    """Finding, chart, shares."""
    most: str
    """Upper end of the chart axis."""


def write_census(census: Census, out: Path, *, overwrite: bool = False) -> Path:
    """Write the check of a dataset as an HTML page.

    Args:
        census: Result of the check.
        out: HTML file to write, readable by its owner only: it may name files and show images.
        overwrite: Replace a file that is not an earlier output.

    Returns:
        The HTML file.

    Raises:
        ConfigError: If `out` is a file that cleft did not write.
        ResourceError: If the page cannot be written.
    """
    return Output(out, "--page", overwrite=overwrite, mode=0o600).write(render_census(census))


def render_census(census: Census) -> str:
    """Return the page as HTML."""
    return render_page(
        "census_page.html",
        title=f"{census.dataset}: {census.table}" if census.table else census.dataset,
        census=census,
        charts=[_chart(tally) for tally in census.tallies],
        file_properties=[_chart(tally, "files") for tally in census.file_tallies],
        findings=_findings(census),
        legend=[(legend_square(colour), _LABEL_NAMES[name]) for name, colour in LABEL_COLOURS],
        comparisons=[_compare(groups) for groups in census.groups if len(groups.groups) > 1],
        splits=_splits(census.splits),
        thumbnails=[thumbnail for thumbnail in census.thumbnails if PNG.fullmatch(thumbnail.image)],
        shown_labels=_shown_labels,
        shown_end=_shown_end,
        names_files=bool(census.faults or census.excluded_rows or census.undecodable or census.unlisted),
        undecodable=sum(left.count for left in census.undecodable),
        unlisted=sum(left.count for left in census.unlisted),
    )


_LABEL_NAMES = {"1": "present (1)", "0": "absent (0)", "-1": "uncertain (-1)", "blank": "not mentioned (blank)"}


def _chart(tally: Tally, of: str = "images") -> Chart:
    title = NAMES.get(tally.name, tally.name.capitalize())
    counts = [pair for pair in tally.counts if pair[0] != _UNKNOWN]
    unknown = sum(number for name, number in tally.counts if name == _UNKNOWN)
    if tally.ordered:
        caption = f"{unknown:,} {of} without this value." if unknown else ""
        return Chart(title, histogram(f"{title} of {of}", counts, "years" if tally.name == "age" else ""), caption)
    shown = counts[:_MOST_BARS]
    rest = len(counts) - len(shown)
    more = f"{count(rest, 'more value')}, {sum(number for _, number in counts[_MOST_BARS:]):,} {of}." if rest else ""
    lines = [*shown, *([(_UNKNOWN, unknown)] if unknown else [])]
    return Chart(title, bar_chart(f"{title} of {of}", lines), more)


def _findings(census: Census) -> list[Finding]:
    return [
        Finding(
            name,
            stacked_bar(counts),
            tuple(f"{count:,}" for count in counts),
            _shares(census.splits.shares[name]) if census.splits else (),
        )
        for name, counts in census.labels.items()
    ]


def _compare(groups: Groups) -> Comparison:
    seen = [share for shares in groups.shares.values() for share in shares if share is not None]
    most = next((end for end in (0.05, 0.1, 0.2, 0.3, 0.5, 0.75) if max(seen, default=0) <= end), 1.0)
    names = [
        (group_legend(place), name, f"{count(images, 'image')} of {count(patients, 'patient')}")
        for place, (name, images, patients) in enumerate(
            zip(groups.groups, groups.images, groups.patients, strict=True)
        )
    ]
    rows = [
        (finding, dot_strip(shares, most), _shares(shares))
        for finding, shares in groups.shares.items()
        if any(share for share in shares)
    ]
    return Comparison(NAMES.get(groups.name, groups.name.capitalize()), names, rows, f"{100 * most:.0f}\u202f%")


def _shares(shares: Sequence[float | None]) -> tuple[str, ...]:
    return tuple("–" if share is None else format_percent(share) for share in shares)


def _splits(splits: Groups | None) -> list[tuple[str, str, str]]:
    if splits is None:
        return []
    lines = zip(splits.groups, splits.images, splits.patients, strict=True)
    return [(name, f"{images:,}", f"{patients:,}") for name, images, patients in lines]


def _shown_end(text: str) -> str:
    """Shorten a long path at its beginning."""
    return text if len(text) <= _LONGEST else f"…{text[1 - _LONGEST :]}"


def _shown_labels(thumbnail: Thumbnail) -> str:
    return ", ".join(thumbnail.labels) or "no positive finding"
