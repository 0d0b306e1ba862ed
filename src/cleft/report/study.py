"""A study as one page, one table for machines and one for papers, from its result files alone."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from cleft.errors import ConfigError
from cleft.files import Output
from cleft.report.cells import FEWEST_PATIENTS, Footnotes
from cleft.report.exports import study_csv, study_latex
from cleft.report.figures import COLOURS, INK, SOFT, key, swatch
from cleft.report.frame import render_page
from cleft.report.grid import FILE, Grid, Seed, read_grid
from cleft.report.headings import METRICS, column_starts, in_percent, table_heads
from cleft.report.paper import MARKS
from cleft.report.runs import Run, StoredResult, shown
from cleft.report.sections import Section, build_section
from cleft.report.sentences import SCORINGS
from cleft.report.study_figures import study_figures
from cleft.report.study_table import corrected_p_values, differences, every_seed, row_facts, table_lines
from cleft.report.tables import TASKS, Entry
from cleft.types import StudyLine

log = logging.getLogger(__name__)

KEYS = {"model": COLOURS[0], "mean": INK, "floor": SOFT, "paper": INK, "level": SOFT}
_MODELS = 8
"""Most rows whose curves a section draws, so that they can be told apart."""


def study_outputs(folder: Path, name: str, *, overwrite: bool = False) -> tuple[Output, Output, Output]:
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


def write_study(folder: Path, *, images: bool | None = None, overwrite: bool = False) -> Path:
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
    grid = read_grid(folder)
    page, table, latex = study_outputs(folder, grid.study.name, overwrite=overwrite)
    table.write(study_csv(grid))
    latex.write(study_latex(grid))
    return page.write(render_study(grid, images=images))


def find_studies(folders: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Sorts folders into run folders and folders of studies; any other folder is searched for both, at any depth.

    Example:
        >>> find_studies([Path("/nowhere")])
        ([PosixPath('/nowhere')], [])
    """
    runs: list[Path] = []
    studies: list[Path] = []
    for folder in folders:
        for each in _known_inside(folder) or [folder]:
            (studies if (each / FILE).is_file() else runs).append(each)
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
    if (folder / "config.yaml").is_file() and not begun and not (folder / FILE).is_file():
        log.info("%s is left out: nothing was trained in it", folder)
        return True
    return False


_BEGUN = ("logs", "states", "results", "comparisons", "summary.json", "model.json")
"""Files and folders of which a run has at least one as soon as it has made a step or holds a model."""


def _is_known(folder: Path) -> bool:
    return (folder / FILE).is_file() or (folder / "config.yaml").is_file()


def report_folders(
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
    from cleft.report.page import write_report

    runs, studies = find_studies(folders)
    if studies and not runs and out is not None:
        raise ConfigError(
            f"--out {out}: the page of a study is study.html in its own folder, where its links lead to its results; "
            f"leave --out away"
        )
    out = out or Path("report.html")
    if runs:
        Output(out, "--out", overwrite=overwrite, inputs=tuple(runs)).check()
    pages = [write_study(study, images=images, overwrite=overwrite) for study in studies]
    return [*pages, write_report(runs, out, images=images, overwrite=overwrite)] if runs else pages


def file_name(name: str) -> str:
    """Return the stem of the files that hold the tables of a study of this name."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-") or "study"


def render_study(grid: Grid, *, images: bool | None = None) -> str:
    """The page as text."""
    study, notes = grid.study, Footnotes()
    lines = table_lines(grid, notes)
    papers = [place.paper for line in lines for place in line.places if place.paper]
    sections = [section for column in study.columns if (section := _section(grid, column, images)) is not None]
    evaluations = [seed.evaluation for column in study.columns for seed in grid.seeds(column)]
    return render_page(
        "study.html",
        study=study,
        title=study.title,
        command=shown("command", study.command),
        counts=grid.counts(),
        cells=len(grid.filled),
        toy=study.scale != "paper",
        phantoms=any(each.synthetic for each in evaluations),
        all_phantoms=all(each.synthetic for each in evaluations),
        heads=table_heads(study.columns),
        metrics=[METRICS.get(metric, metric) for column in study.columns for metric in column.metrics],
        firsts=column_starts(study.columns),
        lines=lines,
        reference=next((row.label for row in study.rows if row.key == study.reference), ""),
        differences=differences(grid),
        family=corrected_p_values(grid)[1],
        given=any(row.origin for row in study.rows),
        papers=papers,
        marks=[
            each for each in MARKS.items() if any(each[0] in place.paper for line in lines for place in line.places)
        ],
        percent=any(in_percent(metric) for column in study.columns for metric in column.metrics),
        footnotes=notes.listed(),
        facts=row_facts(study),
        figures=study_figures(grid),
        seen={column.key: every_seed(grid, column) for column in study.columns},
        sections=sections,
        files=[f"{file_name(study.name)}.csv", f"{file_name(study.name)}.tex"],
        fewest=FEWEST_PATIENTS,
        most=_MODELS,
        scorings=SCORINGS,
        tasks=TASKS,
        shown=shown,
        swatch=swatch,
        keys={kind: key(kind, colour) for kind, colour in KEYS.items()},
    )


def _section(grid: Grid, column: StudyLine, images: bool | None) -> Section | None:
    """What the results under one heading hold besides their numbers, of the first seed of each row."""
    entries: list[Entry] = []
    for series, row in enumerate(grid.study.rows):
        filled = grid.filled.get((row.key, column.key))
        if filled is not None and filled.seeds and len(entries) < _MODELS:
            entries.append(_entry(row, filled.seeds[0], series))
    if not entries:
        return None
    place = grid.study.columns.index(column)
    section = build_section(f"heading-{place + 1}", column.label, entries, images=images)
    return section._replace(headline=None)  # the table of the study holds it, over all seeds


def _entry(row: StudyLine, seed: Seed, series: int) -> Entry:
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
