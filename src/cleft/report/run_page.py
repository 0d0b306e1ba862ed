"""The report of one or several runs: a self-contained HTML page."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

from markupsafe import Markup

from cleft.files import Output, as_path, as_paths
from cleft.privacy import MIN_PATIENTS, redact
from cleft.report.charts import BLACK, COLOURS, GREY, legend_line, legend_marker
from cleft.report.html import TOO_FEW, render_page
from cleft.report.run_charts import comparison_table, corrected_comparisons, training_charts
from cleft.report.run_sections import (
    SCORING_NAMES,
    build_sections,
    describe_run,
    settings_table,
    suppressed_classes,
)
from cleft.report.runs import Run, read_runs
from cleft.report.tables import TASK_NAMES, all_results_table, group_results
from cleft.results import Evaluation, Result

KEYS = {"model": COLOURS[0], "mean": BLACK, "baseline": GREY, "paper": BLACK, "level": GREY}


def write_report(
    runs: Path | str | Iterable[Path | str], out: Path | str, *, images: bool | None = None, overwrite: bool = False
) -> Path:
    """Write a report of one or several runs.

    Args:
        runs: Run folder or folders; results of the same task on the same images share a table.
        out: HTML file to write.
        images: True shows all example images, False none, None synthetic ones only.
        overwrite: Replace a file that is not an earlier output.

    Returns:
        The HTML file.

    Raises:
        ConfigError: If `out` is a file that cleft did not write.
        DataError: If a folder is not a run.
        ResourceError: If the page cannot be written.
    """
    folders = as_paths(runs, "runs")
    output = Output(as_path(out, "out"), "--out", overwrite=overwrite, inputs=tuple(folders)).check()
    return output.write(render(read_runs(folders), images=images))


def render(runs: Sequence[Run], *, images: bool | None = None) -> str:
    """Return the report as HTML."""
    sections = build_sections(group_results(runs), images=images)
    evaluations = [stored.evaluation for run in runs for stored in run.results]
    comparisons = [each for run in runs for each in run.comparisons]
    corrected, family = corrected_comparisons(comparisons)
    return render_page(
        "run_page.html",
        runs=runs,
        title=_title([run.name for run in runs]),
        sentences={run.anchor: describe_run(run) for run in runs},
        charts={run.anchor: training_charts(run) for run in runs},
        sections=sections,
        numbers={stored.anchor: all_results_table(stored) for run in runs for stored in run.results},
        settings=settings_table(runs),
        embedded=_embedded_json(runs),
        published=any(row.kind == "paper" for each in sections if each.headline for row in each.headline.rows),
        comparisons=[(each, comparison_table(each, p)) for each, p in zip(comparisons, corrected, strict=True)],
        family=family,
        phantoms=any(evaluation.synthetic for evaluation in evaluations),
        fewest=MIN_PATIENTS,
        scorings=SCORING_NAMES,
        tasks=TASK_NAMES,
        redact=redact,
        swatch=legend_line,
        keys={kind: legend_marker(kind, colour) for kind, colour in KEYS.items()},
    )


def _title(names: Sequence[str]) -> str:
    """Join names.

    Example:
        >>> _title(["first", "second", "third"])
        'first, second and third'
    """
    if len(names) > 4:
        return f"{len(names)} runs"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _embedded_json(runs: Sequence[Run]) -> Markup:
    """Return all results as JSON, escaped so that nothing can end the script element."""
    tree = {
        run.name: [{"file": stored.file, **_printable(stored.evaluation)} for stored in run.results] for run in runs
    }
    text = json.dumps(tree, ensure_ascii=True, allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _printable(evaluation: Evaluation) -> dict[str, Any]:
    """Return an evaluation without what the page leaves out: images, and results of too few patients."""
    few = suppressed_classes(evaluation)
    kept = dataclasses.replace(
        evaluation,
        examples=(),
        retrieval=tuple(dataclasses.replace(each, examples=()) for each in evaluation.retrieval),
        command=redact("command", evaluation.command),
        confusion=None if few else evaluation.confusion,
        roc={name: points for name, points in evaluation.roc.items() if name not in few},
        embedding_map=None if few else evaluation.embedding_map,
    )
    tree = dataclasses.asdict(kept)
    del tree["examples"]
    return tree if evaluation.synthetic else _suppressed(tree)


def _suppressed(value: Any) -> Any:
    """Return a tree without values of too few patients: a result keeps its name and a reason."""
    if isinstance(value, list | tuple):
        items = cast("Sequence[Any]", value)
        return [_suppressed(item) for item in items if not _has_few_patients(item) or "metric" in item]
    if not isinstance(value, dict):
        return value
    tree = cast("dict[str, Any]", value)
    if _has_few_patients(tree):
        return dataclasses.asdict(Result(metric=str(tree.get("metric", "")), value=None, reason=TOO_FEW))
    return {key: _suppressed(item) for key, item in tree.items()}


def _has_few_patients(value: Any) -> bool:
    patients = cast("dict[str, Any]", value).get("patients") if isinstance(value, dict) else None
    return isinstance(patients, int) and 0 < patients < MIN_PATIENTS
