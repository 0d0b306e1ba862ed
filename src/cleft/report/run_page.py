"""One self-contained HTML page about one or several runs."""

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
    SCORING_QUESTIONS,
    build_sections,
    describe_run,
    settings_table,
    suppressed_classes,
)
from cleft.report.runs import Run, read_runs
from cleft.report.tables import TASK_NAMES, all_results_table, group_results
from cleft.results import Evaluation, Result

KEYS = {"model": COLOURS[0], "mean": BLACK, "floor": GREY, "paper": BLACK, "level": GREY}


def write_report(
    runs: Path | str | Iterable[Path | str], out: Path | str, *, images: bool | None = None, overwrite: bool = False
) -> Path:
    """Writes a page about run folders.

    Args:
        runs: Run folders, or one; the page compares them where they answered the same question on the same images.
        out: The HTML file.
        images: Whether to show images: True shows them all, False none, None those of phantoms alone.
        overwrite: Whether to replace a file that is not an earlier output.

    Returns:
        The file.

    Raises:
        ConfigError: If `out` is a file that cleft did not write.
        DataError: If a folder is not a run.
        ResourceError: If the page cannot be written.
    """
    folders = as_paths(runs, "runs")
    output = Output(as_path(out, "out"), "--out", overwrite=overwrite, inputs=tuple(folders)).check()
    return output.write(render(read_runs(folders), images=images))


def render(runs: Sequence[Run], *, images: bool | None = None) -> str:
    """The page as text."""
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
        embedded=_embedded(runs),
        published=any(row.kind == "paper" for each in sections if each.headline for row in each.headline.rows),
        comparisons=[(each, comparison_table(each, p)) for each, p in zip(comparisons, corrected, strict=True)],
        family=family,
        phantoms=any(evaluation.synthetic for evaluation in evaluations),
        fewest=MIN_PATIENTS,
        scorings=SCORING_QUESTIONS,
        tasks=TASK_NAMES,
        redact=redact,
        swatch=legend_line,
        keys={kind: legend_marker(kind, colour) for kind, colour in KEYS.items()},
    )


def _title(names: Sequence[str]) -> str:
    """Names in a row.

    Example:
        >>> _title(["first", "second", "third"])
        'first, second and third'
    """
    if len(names) > 4:
        return f"{len(names)} runs"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _embedded(runs: Sequence[Run]) -> Markup:
    """All numbers once more, for machines; nothing in it can end the element that holds it."""
    tree = {
        run.name: [{"file": stored.file, **_printable(stored.evaluation)} for stored in run.results] for run in runs
    }
    text = json.dumps(tree, ensure_ascii=True, allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _printable(evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation with what the page leaves out left out here too: images, and numbers of a few patients."""
    few = suppressed_classes(evaluation)
    kept = dataclasses.replace(
        evaluation,
        examples=(),
        retrieval=tuple(dataclasses.replace(each, examples=()) for each in evaluation.retrieval),
        command=redact("command", evaluation.command),
        confusion=None if few else evaluation.confusion,
        roc={name: points for name, points in evaluation.roc.items() if name not in few},
        space=None if few else evaluation.space,
    )
    tree = dataclasses.asdict(kept)
    del tree["examples"]
    return tree if evaluation.synthetic else _told(tree)


def _told(value: Any) -> Any:
    """A tree without what rests on fewer than five patients: a result keeps its name and a reason, the rest goes."""
    if isinstance(value, list | tuple):
        items = cast("Sequence[Any]", value)
        return [_told(item) for item in items if not _hidden(item) or "metric" in item]
    if not isinstance(value, dict):
        return value
    tree = cast("dict[str, Any]", value)
    if _hidden(tree):
        return dataclasses.asdict(Result(metric=str(tree.get("metric", "")), value=None, reason=TOO_FEW))
    return {key: _told(item) for key, item in tree.items()}


def _hidden(value: Any) -> bool:
    patients = cast("dict[str, Any]", value).get("patients") if isinstance(value, dict) else None
    return isinstance(patients, int) and 0 < patients < MIN_PATIENTS
