"""Results reported in the paper, always labelled as the paper's.

Source: CLEFT, Tables 1 to 3. The paper reports no confidence intervals and no zero-shot AUC.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cleft.results import Evaluation


class Published(NamedTuple):
    """Zero-shot accuracy of one model in the paper."""

    model: str
    accuracy: float
    """In [0, 1]."""


CHEXPERT_5 = frozenset(("Atelectasis", "Edema", "Cardiomegaly", "Pleural Effusion", "Consolidation"))
CHEXPERT_5X200 = (
    Published("CLEFT, LoRA", 0.6674),
    Published("CLEFT, IA3", 0.6561),
    Published("CLEFT, prefix", 0.6055),
)
RSNA = (
    Published("CLEFT, LoRA", 0.6493),
    Published("CLEFT, IA3", 0.6408),
    Published("CLEFT, prefix", 0.6407),
)
EMBED: Mapping[tuple[str, int], tuple[Published, ...]] = {
    ("BI-RADS", 7 * 200): (Published("CLEFT, LoRA", 0.3329), Published("CLIP", 0.2093)),
    ("Density", 4 * 500): (Published("CLEFT, LoRA", 0.7440), Published("CLIP", 0.7045)),
}
"""By the common first word of the class names and the size of the balanced test set."""


def published(evaluation: Evaluation) -> tuple[Published, ...]:
    """Return the paper's results for the task of an evaluation; empty if the paper does not report it."""
    if evaluation.task != "zero-shot" or evaluation.scoring != "multi-class" or evaluation.split != "test":
        return ()
    five = evaluation.split_recipe.startswith("5x200") and frozenset(evaluation.classes) == CHEXPERT_5
    if evaluation.dataset == "chexpert" and five:
        return CHEXPERT_5X200
    if evaluation.dataset == "rsna" and len(evaluation.classes) == 2:
        return RSNA
    if evaluation.dataset == "embed" and evaluation.confusion is not None and not evaluation.synthetic:
        rows = [sum(row) for row in evaluation.confusion]
        prefixes = {name.partition(" ")[0] for name in evaluation.classes}
        if len(prefixes) == len(set(rows)) == 1:
            return EMBED.get((next(iter(prefixes)), sum(rows)), ())
    return ()


class Quoted(NamedTuple):
    """One value of the paper's tables."""

    value: float
    """In [0, 1]."""
    printed: str
    """In percent, as printed."""
    marks: str = ""
    """Footnote marks in the paper, as in `MARKS`."""

    @property
    def notes(self) -> list[str]:
        """Return the text of its footnotes."""
        return [MARKS[mark] for mark in self.marks]


MARKS = {
    "*": "taken by the paper’s authors from the MedCLIP paper",
    "†": "pre-trained on other data, about twice as much",
}
_THREE_TASKS = (
    ("zero-shot", ("accuracy",)),
    ("linear-probe", ("accuracy", "auc")),
    ("fine-tune", ("accuracy", "auc")),
)
_TABLE_1 = """
random-vit      -       20.62   57.85   20.32   63.68   -       65.15   72.22   72.70   79.89
imagenet-vit    -       38.54   75.44   56.46   85.71   -       74.96   83.72   77.44   85.24
clip-vit        20.16   35.34   65.14   44.84   77.59   49.89   69.47   75.90   77.08   83.53
convirt-r50     41.88*  47.70*  -       -       -       47.31*  78.46*  -       -       -
gloria-r50      43.28*  51.65   83.15   57.56   87.11   33.06*  76.77   86.53   78.55   87.15
mgca-vit        51.35†  26.63†  63.94†  56.96†  86.33†  69.90†  75.35†  85.63†  79.79†  88.11†
mrm-vit         -       58.26   84.48   56.56   87.41   -       76.43   85.48   78.77   86.63
medclip-swin    59.42*† 54.55†  85.75†  57.46†  87.85†  74.47*† 79.26†  88.26†  78.80†  87.36†
cleft-prefix    60.55   61.56   87.20   61.16   87.73   64.07   78.75   88.30   79.34   88.52
cleft-ia3       65.61   60.16   86.48   61.06   86.81   64.08   78.80   87.74   79.99   88.59
cleft-lora      66.74   63.46   87.76   63.96   88.22   64.93   79.40   88.34   80.36   88.72
"""
_TABLE_2 = """
random-vit      -       17.86   17.43   -       34.65   54.45
imagenet-vit    -       18.29   20.21   -       56.95   67.45
clip-vit        20.93   16.57   21.21   70.45   36.70   50.50
cleft-lora      33.29   30.86   23.79   74.40   74.80   74.95
"""
_TABLE_3 = """
cleft-lora      64.63
"""


def _parse(text: str, columns: Sequence[tuple[str, str]]) -> dict[tuple[str, str, str], Quoted]:
    """Parse a table into (row, column, metric) and value; `-` where the paper prints none."""
    values: dict[tuple[str, str, str], Quoted] = {}
    for line in text.split("\n"):
        row, *words = line.split() or [""]
        for (column, metric), word in zip(columns, words, strict=bool(row)):
            digits = word.rstrip("*†")
            if word != "-":
                values[row, column, metric] = Quoted(round(float(digits) / 100, 4), digits, word[len(digits) :])
    return values


def _columns(datasets: Sequence[str], metrics: Sequence[tuple[str, Sequence[str]]]) -> list[tuple[str, str]]:
    return [(f"{dataset}/{task}", metric) for dataset in datasets for task, names in metrics for metric in names]


QUOTED: Mapping[str, Mapping[tuple[str, str, str], Quoted]] = {
    "table1": _parse(_TABLE_1, _columns(("chexpert", "rsna"), _THREE_TASKS)),
    "table2": _parse(
        _TABLE_2, _columns(("embed-birads", "embed-density"), [(task, ("accuracy",)) for task, _ in _THREE_TASKS])
    ),
    "table3": _parse(_TABLE_3, [("rsna/zero-shot", "accuracy")]),
}
"""Study to (row, column, metric) and value. Table 1 prints 64.93 where Table 3 prints 64.63 for the same model."""

PARAMETERS: Mapping[str, tuple[int, int, int]] = {
    "cleft-lora": (90_910_000, 2_700_000_000, 2_620_000),
    "clip-vit": (150_990_000, 0, 65_190_000),
}
"""Trainable parameters, frozen parameters, and trainable parameters of the text encoder, behind the paper's “39 %”:
derived from its configurations, not printed in it. Those of CLIP are its two encoders, 85.80 M and 65.19 M; with two
projection heads `baseline-clip` has 156.25 M."""


def quoted(study: str, row: str, column: str, metric: str) -> Quoted | None:
    """Return the paper's value in the same cell of the same table; None if there is none."""
    return QUOTED.get(study, {}).get((row, column, metric))
