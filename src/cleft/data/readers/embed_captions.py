"""EMBED's codes and their names, and captions of mammograms in the four styles of the authors' code.

Unknown facts are omitted, where the authors' code writes "unknown" or, for an unknown ethnicity, "Non-Hispanic or
Latino" (docs/decisions/0016).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from cleft.data.text.captions import clean_text

LETTERS: Mapping[str, int] = {"A": 0, "N": 1, "B": 2, "P": 3, "S": 4, "M": 5, "K": 6}
"""BI-RADS score by assessment letter. `X` means no assessment."""

NO_ASSESSMENT = ("", "X")

SCREENING, DIAGNOSTIC = "KMSAPBN", "KMSPABN"
"""Letters by severity, the worst first. A screening exam requests more images (A) if it finds anything; in a diagnostic
exam P to K are the result of those images. S, M and K are not results of a screening exam, but come first if it has
one."""

MALE = 5
"""Density code of a male breast."""

BIRADS: tuple[str, ...] = (
    "additional imaging required",
    "negative",
    "benign finding",
    "probably benign finding",
    "suspicious abnormality",
    "highly suggestive of malignancy",
    "known biopsy-proven malignancy",
)
"""Names of the scores 0 to 6, as the authors write them."""

DENSITIES: tuple[str, ...] = (
    "almost entirely fat",
    "scattered fibroglandular densities",
    "heterogeneously dense",
    "extremely dense",
)
"""Names of the codes 1 to 4, which are A to D."""

BIRADS_CLASSES = tuple(f"BI-RADS {score}" for score in range(len(BIRADS)))
DENSITY_CLASSES = tuple(f"Density {letter}" for letter in "ABCD")
FINDINGS = (*BIRADS_CLASSES, *DENSITY_CLASSES)

PHRASES: Mapping[str, str] = {
    **{name: f"birads score {score}: {BIRADS[score]}." for score, name in enumerate(BIRADS_CLASSES)},
    **{name: f"breast tissue density {d}: {DENSITIES[d - 1]}." for d, name in enumerate(DENSITY_CLASSES, start=1)},
}
"""Phrases of the classes after the prompt prefix, with the punctuation of the authors' class prompts. In captions,
theirs and ours, cleaning removes it."""

SIDES: Mapping[str, str] = {"L": "left", "R": "right", "B": "bilateral"}

MASS_SHAPES: Mapping[str, str] = {
    "G": "generic",
    "R": "round",
    "O": "oval",
    "X": "irregular",
    "Q": "questionable architectural distortion",
    "A": "architectural distortion",
    "T": "tubular density or solitary dilated duct",
    "N": "intramammary lymph node",
    "B": "global asymmetry",
    "F": "focal asymmetry",
    "S": "asymmetry",
    "V": "developing asymmetry",
    "Y": "lymph node",
}

MASS_DENSITIES: Mapping[str, str] = {"+": "high density", "=": "isodense", "-": "low density", "0": "fat containing"}

CALCIFICATIONS: Mapping[str, str] = {
    "A": "amorphous",
    "9": "benign",
    "H": "coarse heterogeneous",
    "C": "coarse popcorn-like",
    "D": "dystrophic",
    "E": "rim",
    "F": "fine linear",
    "B": "fine linear-branching",
    "G": "generic",
    "I": "fine pleomorphic",
    "L": "large rod-like",
    "M": "milk of calcium",
    "J": "oil cyst",
    "K": "pleomorphic",
    "P": "punctate",
    "R": "round",
    "S": "skin",
    "O": "lucent-centered",
    "U": "suture",
    "V": "vascular",
    "Q": "coarse",
}

DISTRIBUTIONS: Mapping[str, str] = {
    "G": "grouped",
    "S": "segmental",
    "R": "regional",
    "D": "diffuse",
    "L": "linear",
    "C": "clustered",
}


Style = Literal["simple", "sided", "natural", "structured"]

MAMMOGRAM_PREFIX = "this is a breast 2d full field digital mammogram of a patient with"
"""First words of class prompts and of captions in the style `simple`."""

NAMES_SIDE = ("sided", "natural", "structured")
"""Styles that name the side, which a horizontally flipped image would contradict."""

_BASE = "This is a breast 2D full-field digital mammogram of a patient"
_DENSE = (3, 4)

_SHOWN = (
    "an additional imaging is recommended",
    "no significant masses, calcification, or other abnormalities are present",
    "a benign finding is present",
    "a probably benign finding is present",
    "a suspicious abnormality is present",
    "a highly suggestive of malignancy is present, a biopsy is recommended",
    "a known biopsy-proven malignant mass is present",
)
_OVERALL = (
    "Additional imaging is recommended",
    "Negative",
    "Benign",
    "Probably benign",
    "Suspicious abnormality",
    "Highly suggestive of malignancy",
    "Known biopsy-proven malignancy",
)
"""Phrases by BI-RADS score, with the authors' grammar."""


class Facts(NamedTuple):
    """Facts about an image; empty, None or 0 if unknown."""

    birads: int | None = None
    """0 to 6."""
    density: int = 0
    """1 to 4."""
    side: str = ""
    """L or R."""
    view: str = ""
    procedure: str = ""
    """Description of the exam."""
    age: int | None = None
    race: str = ""
    ethnicity: str = ""
    mass_shape: str = ""
    """A code, like the three below."""
    mass_density: str = ""
    calcification: str = ""
    distribution: str = ""


def mammogram_caption(facts: Facts, style: Style) -> str:
    """Returns the caption of an image.

    Example:
        >>> mammogram_caption(Facts(birads=5), "simple").removeprefix(MAMMOGRAM_PREFIX)
        ' birads score 5 highly suggestive of malignancy'
        >>> mammogram_caption(Facts(density=1, side="L", view="CC"), "sided")[49:]
        'of a patient on side left with view cc with breast tissue density 1 almost entirely fat'

    Source:
        The authors' code; the paper does not say which of the four styles it used.
    """
    return clean_text(_STYLES[style](facts))


def known_race(text: str) -> str:
    """Returns race or ethnicity, or an empty string if the table says that it is unknown.

    Example:
        >>> known_race("African American  or Black"), known_race("Unknown, Unavailable or Unreported")
        ('African American or Black', '')
    """
    words = " ".join(text.split())
    return "" if words.casefold().startswith(_UNKNOWN) else words


_UNKNOWN = ("unknown", "unreported", "unavailable", "not recorded", "not reported", "patient declines", "declined")


def _simple(facts: Facts) -> str:
    return " ".join([_BASE, *_labels(facts)])


def _sided(facts: Facts) -> str:
    side = [f"on side {SIDES[facts.side]}"] if facts.side else []
    view = [f"with view {facts.view}"] if facts.view else []
    return " ".join([_BASE, *side, *view, *_labels(facts)])


def _labels(facts: Facts) -> list[str]:
    density = f"with breast tissue density {facts.density}: {DENSITIES[facts.density - 1]}." if facts.density else ""
    score = f"with BIRADS score {facts.birads}: {BIRADS[facts.birads]}." if facts.birads is not None else ""
    return [part for part in (density, score) if part]


def _natural(facts: Facts) -> str:
    kind = " ".join(filter(None, ["This is a breast 2D full-field digital", _reason(facts.procedure), "mammogram"]))
    breast = f"{SIDES[facts.side]} breast" if facts.side else "breast"
    view = f" with {facts.view} view" if facts.view else ""
    parts = [f"{kind} of a patient.", _patient(facts), f"This mammogram is for {breast}{view}.", _composition(facts)]
    if facts.birads is not None:
        parts += [_findings(facts), f"Impressions: {_category(facts.birads)}"]
    return " ".join(parts)


def _structured(facts: Facts) -> str:
    reason, patient, composition = _reason(facts.procedure), _patient(facts), _composition(facts)
    breast = f" of the {SIDES[facts.side]} breast" if facts.side else ""
    view = f" with {facts.view} view" if facts.view else ""
    parts = [f"Procedure reported: {facts.procedure};"] if facts.procedure else []
    parts += [f"Reason for procedure: {reason};"] if reason else []
    parts += [f"Patient info: {patient}"] if patient else []
    parts += [f"Image info: This is a 2D full-field digital mammogram{breast}{view}."]
    parts += [f"Breast composition: {composition}"] if composition else []
    if facts.birads is not None:
        parts += [f"Findings: {_findings(facts)}", f"Impressions: {_category(facts.birads)}"]
        parts += [f"Overall Assessment: {_OVERALL[facts.birads]}."]
    return " ".join(parts)


def _reason(procedure: str) -> str:
    words = procedure.casefold()
    return "screening" if "screen" in words else "diagnostic" if "diag" in words else ""


def _patient(facts: Facts) -> str:
    parts = [facts.race, facts.ethnicity, f"{facts.age} years old" if facts.age is not None else ""]
    parts = [part for part in parts if part]
    if not parts:
        return ""
    if facts.age is not None and len(parts) > 1:
        parts[-1] = f"and {parts[-1]}"
    return f"This patient is {', '.join(parts)}."


def _composition(facts: Facts) -> str:
    if not facts.density:
        return ""
    extra = " This may lower the sensitivity of mammography." if facts.density in _DENSE else ""
    return f"The breast is {DENSITIES[facts.density - 1]}.{extra}"


def _findings(facts: Facts) -> str:
    assert facts.birads is not None
    parts = [f"The mammogram shows that {_SHOWN[facts.birads]}."]
    shape, density = MASS_SHAPES.get(facts.mass_shape), MASS_DENSITIES.get(facts.mass_density)
    if shape and density:
        parts.append(f"The mass is {shape} and {density}.")
    kind, spread = CALCIFICATIONS.get(facts.calcification), DISTRIBUTIONS.get(facts.distribution)
    if kind and spread:
        parts.append(f"A {spread} {kind} calcification is present.")
    return " ".join(parts)


def _category(birads: int) -> str:
    return f"BI-RADS Category {birads}: {BIRADS[birads]}."


_STYLES: Mapping[Style, Callable[[Facts], str]] = {
    "simple": _simple,
    "sided": _sided,
    "natural": _natural,
    "structured": _structured,
}
