"""The sentence of a mammogram, in the four wordings of the authors' code, after cleaning.

What is not known is left out of the sentence, where their code writes "unknown" or, of an unknown ethnicity,
"Non-Hispanic or Latino" (docs/decisions/0016).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from cleft.data.text.captions import clean_text

LETTERS: Mapping[str, int] = {"A": 0, "N": 1, "B": 2, "P": 3, "S": 4, "M": 5, "K": 6}
"""Assessment letter to BI-RADS. The code book has `X` too: no assessment."""

NO_ASSESSMENT = ("", "X")

SCREENING, DIAGNOSTIC = "KMSAPBN", "KMSPABN"
"""Letters by severity, the worst first. A screening exam asks for more images where it finds anything (A); in a
diagnostic one, P to K are what those images showed. S, M and K are no answers of a screening exam; where one has them
they come first."""

MALE = 5
"""Density code of a man's breast."""

BIRADS: tuple[str, ...] = (
    "additional imaging required",
    "negative",
    "benign finding",
    "probably benign finding",
    "suspicious abnormality",
    "highly suggestive of malignancy",
    "known biopsy-proven malignancy",
)
"""In the order of the scores, 0 to 6; the authors' words."""

DENSITIES: tuple[str, ...] = (
    "almost entirely fat",
    "scattered fibroglandular densities",
    "heterogeneously dense",
    "extremely dense",
)
"""In the order of the codes, 1 to 4, which are A to D."""

BIRADS_CLASSES = tuple(f"BI-RADS {score}" for score in range(len(BIRADS)))
DENSITY_CLASSES = tuple(f"Density {letter}" for letter in "ABCD")
FINDINGS = (*BIRADS_CLASSES, *DENSITY_CLASSES)

PHRASES: Mapping[str, str] = {
    **{name: f"birads score {score}: {BIRADS[score]}." for score, name in enumerate(BIRADS_CLASSES)},
    **{name: f"breast tissue density {d}: {DENSITIES[d - 1]}." for d, name in enumerate(DENSITY_CLASSES, start=1)},
}
"""What stands for a class behind the opening, with the punctuation of the authors' class prompts; their captions, and
ours, have lost it to cleaning."""

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

OPENING = "this is a breast 2d full field digital mammogram of a patient with"
"""What class prompts begin with, and captions in the style `simple`."""

NAMES_SIDE = ("sided", "natural", "structured")
"""Styles that say which breast it is: a mirrored image would contradict them."""

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
"""By BI-RADS score; the grammar is the authors' too."""


class Facts(NamedTuple):
    """What may be said of an image; empty, None or 0 where it is not known."""

    birads: int | None = None
    """0 to 6."""
    density: int = 0
    """1 to 4."""
    side: str = ""
    """L or R."""
    view: str = ""
    procedure: str = ""
    """What kind of exam, as its description says."""
    age: int | None = None
    race: str = ""
    ethnicity: str = ""
    mass_shape: str = ""
    """A code, as the three below."""
    mass_density: str = ""
    calcification: str = ""
    distribution: str = ""


def mammogram_caption(facts: Facts, style: Style) -> str:
    """Writes the sentence of an image.

    Example:
        >>> mammogram_caption(Facts(birads=5), "simple").removeprefix(OPENING)
        ' birads score 5 highly suggestive of malignancy'
        >>> mammogram_caption(Facts(density=1, side="L", view="CC"), "sided")[49:]
        'of a patient on side left with view cc with breast tissue density 1 almost entirely fat'

    Source:
        The authors' code; the paper does not say which of the four made its numbers.
    """
    return clean_text(_STYLES[style](facts))


def known_race(text: str) -> str:
    """Returns what the table says of race or ethnicity, or nothing where it says that nobody knows.

    Example:
        >>> known_race("African American  or Black"), known_race("Unknown, Unavailable or Unreported")
        ('African American or Black', '')
    """
    words = " ".join(text.split())
    return "" if words.casefold().startswith(_UNTOLD) else words


_UNTOLD = ("unknown", "unreported", "unavailable", "not recorded", "not reported", "patient declines", "declined")


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
    told = [facts.race, facts.ethnicity, f"{facts.age} years old" if facts.age is not None else ""]
    told = [part for part in told if part]
    if not told:
        return ""
    if facts.age is not None and len(told) > 1:
        told[-1] = f"and {told[-1]}"
    return f"This patient is {', '.join(told)}."


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
