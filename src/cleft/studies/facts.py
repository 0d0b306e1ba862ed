"""What is known of a row without running it: the weights that move, and the length of its context."""

from __future__ import annotations

from collections.abc import Sequence

from cleft.errors import CleftError, ConfigError
from cleft.models.hub import find_weights
from cleft.models.parameter_count import TEXT_PARTS, count_weights, outline_model, trained_tokens
from cleft.studies.plans import Plan, Row
from cleft.studies.steps import Given, Step, Work, row_settings


def row_facts(row: Row, given: Given, work: Work) -> dict[str, float]:
    """Moving and frozen weights from the shapes alone, and the length of the context, as far as they are known.

    The rows of the embedding that move are known once a run has counted its tokens. Of a model that was given nothing
    moves, and no time went into training it here.
    """
    if row.model is not None:
        still = {"moving": 0.0, "seconds": 0.0}
        try:
            counts = count_weights(outline_model(row.model.settings)).values()
        except CleftError:
            return still
        return still | {"frozen": float(sum(count.moving + count.frozen for count in counts))}
    home = row.stage_one or row.home or row.key
    first = work.steps.get(f"{home}/seed-0/stage-one")
    settings = row_settings(row, given) if first is None else first.settings
    try:
        model = outline_model(settings, tokens=_tokens(first))
    except CleftError:
        return {}  # a shape that is neither known here nor to be had, or a language model that is not learned yet
    counts = count_weights(model)
    facts = {
        "moving": float(sum(count.moving for count in counts.values())),
        "moving_text": float(sum(count.moving for part, count in counts.items() if part in TEXT_PARTS)),
        "frozen": float(sum(count.frozen for count in counts.values())),
    }
    return facts | ({"length": float(row_settings(row, given).context.length)} if row.speaks and row.context else {})


def lacking_weights(plans: Sequence[Plan], given: Given) -> dict[str, str]:
    """Published models that rows start from and that cannot be had, each with why."""
    rows = [row for plan in plans for row in plan.rows]
    settings = [row_settings(row, given) for row in rows if row.model is None]
    named = [(each.image.model, each.image.random_weights, "image.model") for each in settings]
    named += [
        (each.text.model, each.text.random_weights, "text.model") for each in settings if each.method != "image-only"
    ]
    named += [(row.model.base, False, "text.model") for row in rows if row.model is not None]
    wanted = {model: setting for model, random, setting in named if model is not None and not random}
    found: dict[str, str] = {}
    for model, setting in wanted.items():
        try:
            find_weights(model, setting)
        except ConfigError as error:
            found[model] = str(error)
    return found


def _tokens(first: Step | None) -> int:
    """Distinct tokens of the captions that a finished run learned from."""
    return 0 if first is None else trained_tokens(first.folder) or 0
