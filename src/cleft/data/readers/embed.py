"""Reads the EMBED open data release: mammograms with a table of files and a table of findings.

Expects a folder that holds `tables/` and `images/cohort_1/…`. Each 2D image is given the finding that speaks for its
breast in its exam (`readers.embed_join`), the density of its exam, and a caption (`readers.embed_captions`).

Shapes: `M` rows of the metadata table, `N` images kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cleft.config import DataConfig
from cleft.data.marks import is_drawn
from cleft.data.readers.embed_captions import Facts, Style, mammogram_caption
from cleft.data.readers.embed_codes import BIRADS, FINDINGS
from cleft.data.readers.embed_exams import Exams, Keys, match_keys, read_exams
from cleft.data.readers.embed_files import Files, locate_images, read_files
from cleft.data.readers.embed_images import Images, choose_images
from cleft.data.readers.embed_join import NONE
from cleft.data.readers.embed_notes import census
from cleft.data.readers.embed_tables import (
    CLINICAL,
    CLINICAL_MORE,
    METADATA,
    METADATA_MORE,
    Named,
    find_tables,
    home_of,
    read_columns,
    told_of,
)
from cleft.data.tables.faults import Fault, refuse
from cleft.data.tables.files import are_files
from cleft.data.tables.rows import BLANK, Rows, read_sexes, read_texts
from cleft.data.tables.scan import Scan, make_scan, require_root
from cleft.types import Reading

TERMS = (
    "EMBED's Research Use Agreement allows no passing on of any portion of it, and no public release of models, "
    "weights or embeddings trained on it, without written permission of the Emory University School of Medicine"
)

_SIDES = ("L", "R")


def read_embed(config: DataConfig, *, check_files: bool = True) -> Reading:
    """Reads EMBED.

    Args:
        config: `root` is the folder that holds `tables` and `images`; `table` a metadata table inside it, by default
            the full one, or else the reduced one; `views` are the projections to keep, by default all; `reduce` says
            which of several findings speaks for a breast; `caption` which of four captions is written.
        check_files: Whether to look for every image on disk. False reads the tables without their images.

    Returns:
        One record per 2D image whose density or assessment is known, in the table's order. Its labels are the classes
        of the groups that are known, one of each group 1. Its id is the path from `cohort_1` or `cohort_2` on, its
        study the exam. A magnified or compressed view is called `CC spot`, and so on.

    Raises:
        ConfigError: If `data.root` is not set.
        DataError: If a table or the images are not there, a column is missing, ids have lost digits, or more than
            `data.max_bad` of the images are missing.
    """
    scan = scan_embed(config, check_files=check_files)
    refuse(scan.path, scan.faults)
    return scan.reading


def scan_embed(config: DataConfig, *, check_files: bool = True) -> Scan:
    """Reads what can be read and collects what is wrong with the rest; see `read_embed`."""
    root = require_root(config)
    path, clinical_path = find_tables(root, config.table)
    metadata = read_columns(path, METADATA, METADATA_MORE)
    clinical = read_columns(clinical_path, CLINICAL, CLINICAL_MORE)
    files, keys = read_files(metadata), match_keys(metadata, clinical)
    exams = read_exams(metadata, clinical, keys, config.reduce)
    images = choose_images(files, keys, exams)
    folder = locate_images(home_of(root, path)) if check_files else str(home_of(root, path) / "images")
    rows = _rows(metadata, files, keys, exams, images, folder, config.caption)
    faults = [*metadata.faults, *files.faults, *told_of(clinical_path, clinical.faults), *keys.faults]
    if not len(images.kept) and not faults:
        counts = ", ".join(f"{reason} ({len(ids):,})" for reason, ids in images.rejected.items())
        faults.append(Fault("empty", f"no image is left ({counts})", "look at the rows left out"))
    scan = make_scan(
        "embed",
        metadata.table,
        rows,
        np.arange(len(images.kept), dtype=np.int64),
        config,
        views=config.views,
        are_present=(lambda some: are_files([rows.images[row] for row in some.tolist()])) if check_files else None,
        notes=[
            *census(metadata, clinical, files, keys, exams, images, config.reduce, drawn=is_drawn(root)),
            *metadata.notes,
            *clinical.notes,
            *keys.notes,
            *exams.notes,
        ],
        faults=faults,
    )
    reading = replace(
        scan.reading,
        rejected={**images.rejected, **scan.reading.rejected},
        sources={named.table.path.name: named.table.sha256 for named in (metadata, clinical)},
    )
    return scan._replace(reading=reading, images=[f"{folder}/{name}" for name in files.ids])


def _rows(metadata: Named, files: Files, keys: Keys, exams: Exams, images: Images, folder: str, style: Style) -> Rows:
    """What is known of the images that are kept, entry by entry."""
    kept, exam = images.kept, keys.exam[images.kept]
    chosen = kept.tolist()
    rows = len(metadata.table)
    of_exam = exam.tolist()
    ids = [files.ids[m] for m in chosen]
    own_sexes, _ = read_sexes(metadata.columns.get("sex"), rows)
    scanners = read_texts(metadata.columns.get("scanner"), rows)
    return Rows(
        ids=ids,
        images=[f"{folder}/{name}" for name in ids],
        findings=FINDINGS,
        codes=_codes(images),
        patients=[keys.patients[i] for i in keys.patient[kept].tolist()],
        studies=[keys.exams[i] for i in keys.accession[kept].tolist()],
        views=[
            " ".join(filter(None, (files.views[m], "spot" * spot))) or None
            for m, spot in zip(chosen, files.magnified[kept].tolist(), strict=True)
        ],
        sexes=[exams.sexes[e] or own_sexes[m] for e, m in zip(of_exam, chosen, strict=True)],
        ages=[exams.ages[e] for e in of_exam],
        captions=_captions(metadata, files, exams, images, of_exam, style),
        lines=metadata.table.lines[kept],
        lateralities=[_SIDES[side] for side in files.side[kept].tolist()],
        scanners=[scanners[m] for m in chosen],
    )


def _codes(images: Images) -> NDArray[np.int8]:
    """Within a group that is known one class is present and the others are absent, `[N, C]`."""
    codes = np.full((len(images.kept), len(FINDINGS)), BLANK, dtype=np.int8)
    for values, first, last in ((images.birads, 0, len(BIRADS)), (images.density - 1, len(BIRADS), len(FINDINGS))):
        known = np.flatnonzero(values >= 0)
        codes[known, first:last] = 0
        codes[known, first + values[known]] = 1
    return codes


def _captions(
    metadata: Named, files: Files, exams: Exams, images: Images, of_exam: Sequence[int], style: Style
) -> list[str | None]:
    """Each distinct set of facts is put into words once."""
    report = style in ("natural", "structured")
    procedures = read_texts(metadata.columns.get("description"), len(metadata.table)) if report else []
    written: dict[Facts, str] = {}
    captions: list[str | None] = []
    known = zip(
        images.kept.tolist(),
        of_exam,
        images.finding.tolist(),
        images.birads.tolist(),
        images.density.tolist(),
        strict=True,
    )
    for m, e, finding, birads, density in known:
        facts = Facts(birads=birads if birads != NONE else None, density=density)
        if style != "simple":
            facts = facts._replace(side=_SIDES[files.side[m]], view=files.views[m])
        if report:
            age = exams.ages[e]
            facts = facts._replace(
                procedure=procedures[m] or "",
                age=None if age is None else int(age),
                race=exams.races[e] or "",
                ethnicity=exams.ethnicities[e] or "",
            )
            if finding != NONE:
                shape, thickness, kind, spread = (signs[finding] for signs in exams.signs)
                facts = facts._replace(
                    mass_shape=shape, mass_density=thickness, calcification=kind, distribution=spread
                )
        if facts not in written:
            written[facts] = mammogram_caption(facts, style)
        captions.append(written[facts])
    return captions
