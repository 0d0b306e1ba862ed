"""The code book of EMBED: assessments, densities and signs, their classes, and the words that stand for them."""

from __future__ import annotations

from collections.abc import Mapping

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
