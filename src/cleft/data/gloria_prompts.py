"""GLoRIA's class prompts: sentences that say how severe a finding is, of which kind and where; a few drawn of each.

Source: Huang et al. 2021, and the constants of the released code; the spelling is theirs.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from itertools import product
from types import MappingProxyType

from cleft.data.captions import clean_text

DRAWN = 5
"""Sentences of a class, as the release draws by default."""
_SEED = 6
"""What the release seeds its package with."""

_ZONES = ("mid lung zone", "upper lung zone", "right lung zone", "left lung zone")
_BASES = ("lung bases", "right lung base", "left lung base", "bilateral lung bases")
_LOBES = ("left lower lobe", "right lower lobe")
_OTHER_PLACES = ("lower lung zone", "upper lung zone", *_LOBES, "left upper lobe", "right uppper lobe")

GRAMMAR: Mapping[str, tuple[tuple[str, ...], ...]] = MappingProxyType(
    {
        "Atelectasis": (
            ("", "mild", "minimal"),
            tuple(
                f"{kind} atelectasis"
                for kind in ("subsegmental", "linear", "trace", "bibasilar", "retrocardiac", "bandlike", "residual")
            ),
            tuple(f"at the {place}" for place in (*_ZONES, *_BASES, *_LOBES)),
        ),
        "Cardiomegaly": (
            (
                "cardiac silhouette size is upper limits of normal",
                "cardiomegaly which is unchanged",
                "mildly prominent cardiac silhouette",
                "portable view of the chest demonstrates stable cardiomegaly",
                "portable view of the chest demonstrates mild cardiomegaly",
                "persistent severe cardiomegaly",
                "heart size is borderline enlarged",
                "cardiomegaly unchanged",
                "heart size is at the upper limits of normal",
                "redemonstration of cardiomegaly",
                "ap erect chest radiograph demonstrates the heart size is the upper limits of normal",
                "cardiac silhouette size is mildly enlarged",
                "mildly enlarged cardiac silhouette, likely left ventricular enlargement. other chambers are less "
                "prominent",
                "heart size remains at mildly enlarged",
                "persistent cardiomegaly with prominent upper lobe vessels",
            ),
        ),
        "Consolidation": (
            ("", "increased", "improved", "apperance of"),
            tuple(
                f"{kind} consolidation"
                for kind in ("bilateral", "reticular", "retrocardiac", "patchy", "airspace", "partial")
            ),
            tuple(f"at the {place}" for place in (*_OTHER_PLACES, "right lung base", "left lung base")),
        ),
        "Edema": (
            ("", "mild", "improvement in", "presistent", "moderate", "decreased"),
            ("pulmonary edema", "trace interstitial edema", "pulmonary interstitial edema"),
        ),
        "Pleural Effusion": (
            ("", "small", "stable", "large", "decreased", "increased"),
            ("left", "right", "tiny"),
            tuple(f"{kind} pleural effusion" for kind in ("bilateral", "subpulmonic", "bilateral")),
        ),
    }
)
"""Class to the parts of its sentences, in the order in which they are read and the release goes through them."""


def draw_prompts() -> dict[str, tuple[str, ...]]:
    """Draws the sentences of each class as the release does, from the first draw of its seed on; the same ones always.

    Example:
        >>> draw_prompts()["Edema"][0]
        'pulmonary edema'
    """
    generator = random.Random(_SEED)
    drawn: dict[str, tuple[str, ...]] = {}
    for name, parts in GRAMMAR.items():
        sentences = [clean_text(" ".join(chosen)) for chosen in product(*parts)]
        drawn[name] = tuple(dict.fromkeys(generator.sample(sentences, DRAWN)))
    return drawn
