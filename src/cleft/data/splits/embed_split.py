"""The split of EMBED: 70, 10 and 20 % of the patients, as the paper says; who is where follows from a hash."""

from __future__ import annotations

from collections.abc import Sequence

from cleft.config import DataConfig
from cleft.data.splits.draws import Cut, order_key
from cleft.types import Record

SALT = "cleft-embed-v1"
"""A new salt is a new split: never change it, add one."""

_TRAIN, _VAL = 0.7, 0.8
"""Where training and validation end; the rest is for testing."""


def embed_patients(records: Sequence[Record], config: DataConfig) -> Cut:
    """Cuts the patients, in the order of their hash, at 70 and 80 %, whatever number of images they have.

    Source:
        CLEFT, section 3.1: 70/10/20 %. The authors draw patients without a seed, so their lists cannot be drawn again.
    """
    order = sorted({record.patient for record in records}, key=lambda patient: order_key(SALT, patient))
    first, second = round(_TRAIN * len(order)), round(_VAL * len(order))
    val, test = set(order[first:second]), set(order[second:])
    return Cut(
        test={record.id for record in records if record.patient in test},
        pool=[record for record in records if record.patient not in test],
        val={record.id for record in records if record.patient in val},
    )
