"""cleft: CLIP-like models for medical images with a large language model as text tower.

The public names are the ones below. Each is imported when it is first used, so that the command line stays quick.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from cleft.version import __version__ as __version__

if TYPE_CHECKING:
    from cleft.config import Settings, load_settings
    from cleft.data.batches import load_image
    from cleft.evaluation import Bootstrap, ClassifierOptions, RetrievalOptions, ZeroShotOptions
    from cleft.evaluation.classifier import evaluate_classifier
    from cleft.evaluation.compare import compare
    from cleft.evaluation.result_files import read_evaluation
    from cleft.evaluation.retrieval import evaluate_retrieval
    from cleft.evaluation.zero_shot import evaluate_zero_shot
    from cleft.models.checkpoint import load_model as load
    from cleft.report.run_page import write_report
    from cleft.training.classify import classify
    from cleft.training.pretrain import pretrain
    from cleft.training.prompt_context import learn_context

__all__ = [
    "Bootstrap",
    "ClassifierOptions",
    "RetrievalOptions",
    "Settings",
    "ZeroShotOptions",
    "classify",
    "compare",
    "evaluate_classifier",
    "evaluate_retrieval",
    "evaluate_zero_shot",
    "learn_context",
    "load",
    "load_image",
    "load_settings",
    "pretrain",
    "read_evaluation",
    "write_report",
]

for _switch in ("HF_HUB_DISABLE_TELEMETRY", "DISABLE_TELEMETRY", "DO_NOT_TRACK"):
    os.environ.setdefault(_switch, "1")  # read by other libraries when they are imported, so before that

_HOMES = {
    "Bootstrap": ("cleft.evaluation", "Bootstrap"),
    "ClassifierOptions": ("cleft.evaluation", "ClassifierOptions"),
    "RetrievalOptions": ("cleft.evaluation", "RetrievalOptions"),
    "Settings": ("cleft.config", "Settings"),
    "ZeroShotOptions": ("cleft.evaluation", "ZeroShotOptions"),
    "classify": ("cleft.training.classify", "classify"),
    "compare": ("cleft.evaluation.compare", "compare"),
    "evaluate_classifier": ("cleft.evaluation.classifier", "evaluate_classifier"),
    "evaluate_retrieval": ("cleft.evaluation.retrieval", "evaluate_retrieval"),
    "evaluate_zero_shot": ("cleft.evaluation.zero_shot", "evaluate_zero_shot"),
    "learn_context": ("cleft.training.prompt_context", "learn_context"),
    "load": ("cleft.models.checkpoint", "load_model"),
    "load_image": ("cleft.data.batches", "load_image"),
    "load_settings": ("cleft.config", "load_settings"),
    "pretrain": ("cleft.training.pretrain", "pretrain"),
    "read_evaluation": ("cleft.evaluation.result_files", "read_evaluation"),
    "write_report": ("cleft.report.run_page", "write_report"),
}


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"cleft has no {name!r}; its public names are {', '.join(__all__)}")
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(module), attribute)
