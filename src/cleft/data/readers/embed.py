"""EMBED open data release: mammograms with a table of files (metadata) and a table of findings (clinical).

Expects a folder that contains `tables/` and `images/cohort_1/…`. Each 2D image gets the finding that represents its
breast in its exam (`readers.embed_findings`), the density of its exam, and a caption (`readers.embed_captions`).

Shapes: `M` files (rows of the metadata table), `N` images kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cleft.config import DataConfig
from cleft.data.readers.embed_captions import BIRADS, FINDINGS, Facts, Style, mammogram_caption
from cleft.data.readers.embed_findings import (
    CLINICAL,
    CLINICAL_MORE,
    LEFT,
    METADATA,
    METADATA_MORE,
    NONE,
    RIGHT,
    ColumnTable,
    Exams,
    Flags,
    Integers,
    Keys,
    Rule,
    find_tables,
    home_of,
    match_keys,
    read_columns,
    read_exams,
)
from cleft.data.tables.csv import Column
from cleft.data.tables.faults import Fault, faults_of_table
from cleft.data.tables.paths import is_synthetic, leaves_root
from cleft.data.tables.reading import ParsedTable, ReaderResult, build_result, require_root
from cleft.data.tables.rows import BLANK, Rows, read_sexes, read_texts
from cleft.errors import DataError
from cleft.grammar import agree, count, verb

_SIDE_CODES = {"L": LEFT, "R": RIGHT}
_YES = ("yes", "1", "1.0", "true")
_NEGATIVE = 1
TERMS = (
    "EMBED's Research Use Agreement forbids passing any portion of it on, and the public release of models, "
    "weights or embeddings trained on it, without written permission of the Emory University School of Medicine"
)
_SIDES = ("L", "R")


def read_embed(config: DataConfig, *, check_files: bool = True) -> ReaderResult:
    """Reads EMBED.

    Args:
        config: `root` is the folder that contains `tables` and `images`; `table` a metadata table inside it, by default
            the full one, or else the reduced one; `views` the view positions to keep, by default all; `breast_label`
            the rule that selects one of several findings of a breast; `caption` the caption style.
        check_files: Whether to check that every image exists. False reads the tables without their images.

    Returns:
        One record per 2D image with a density or an assessment, in the table's order. For each of the two that is
        known, one class is 1 and the others 0. The id is the path from `cohort_1` or `cohort_2` on, the study is the
        exam. Magnified or compressed views are named `CC spot` etc. Faulty rows are in `faults`.

    Raises:
        ConfigError: If `data.root` is not set.
        DataError: If a table or a column is missing, a table cannot be read, or there is no folder of images.
    """
    root = require_root(config)
    path, clinical_path = find_tables(root, config.table)
    metadata = read_columns(path, METADATA, METADATA_MORE)
    clinical = read_columns(clinical_path, CLINICAL, CLINICAL_MORE)
    files, keys = read_files(metadata), match_keys(metadata, clinical)
    exams = read_exams(metadata, clinical, keys, config.breast_label)
    images = choose_images(files, keys, exams)
    folder = locate_images(home_of(root, path)) if check_files else str(home_of(root, path) / "images")
    rows = _rows(metadata, files, keys, exams, images, folder, config.caption)
    faults = [*metadata.faults, *files.faults, *faults_of_table(clinical_path, clinical.faults), *keys.faults]
    parsed = ParsedTable(
        dataset="embed",
        table=metadata.table,
        rows=rows,
        valid=np.arange(len(images.kept), dtype=np.int64),
        views=config.views,
        notes=[
            *_summary(
                metadata, clinical, files, keys, exams, images, config.breast_label, synthetic=is_synthetic(root)
            ),
            *metadata.notes,
            *clinical.notes,
            *keys.notes,
            *exams.notes,
        ],
        faults=faults,
        rejected=images.rejected,
        sources={**metadata.table.source, **clinical.table.source},
        images=[f"{folder}/{name}" for name in files.ids],
    )
    return build_result(parsed, config, check_files=check_files)


def _summary(
    metadata: ColumnTable,
    clinical: ColumnTable,
    files: Files,
    keys: Keys,
    exams: Exams,
    images: Images,
    rule: Rule,
    *,
    synthetic: bool,
) -> Iterator[str]:
    """Yields notes for the user: counts, next to the published ones, and effects of the rules."""
    published = "published: 480,323 files of 23,256 patients and 72,770 exams, and 81,776 findings"
    paper = "" if synthetic else " (paper: 364,515)"
    first, second = metadata.table.path.name, clinical.table.path.name
    patients, visits = (len(np.unique(known[known >= 0])) for known in (keys.patient, keys.accession))
    yield (
        f"{first} holds {count(len(metadata.table), 'file')} of {count(patients, 'patient')} and "
        f"{count(visits, 'exam')}, {second} {count(len(clinical.table), 'finding')} "
        f"({'synthetic images' if synthetic else published})"
    )
    both = int(((images.birads != NONE) & (images.density > 0)).sum())
    unassessed, no_density = int((images.birads == NONE).sum()), int((images.density == 0).sum())
    yield (
        f"{count(len(images.kept), '2D image')} with a label, {both:,} with assessment and density{paper}; "
        f"{unassessed:,} {verb(unassessed, 'has', 'have')} no assessment, {no_density:,} no density"
    )
    yield from _rules(images, exams, rule)
    yield from _views(files, images)
    if keys.mismatched:
        names, have = verb(keys.mismatched, "names", "name"), verb(keys.mismatched, "it has", "they have")
        files_name = f"{count(keys.mismatched, 'file')} {names}"
        yield f"{files_name} an exam that belongs to another patient in {second}; {have} no findings"


def _rules(images: Images, exams: Exams, rule: Rule) -> Iterator[str]:
    implied = int((images.finding == NONE).sum())
    if implied:
        yield (
            f"implied-negative: {count(implied, 'image')} {verb(implied, 'has', 'have')} BI-RADS 1 because "
            f"{verb(implied, 'its', 'their')} exam is bilateral and has findings of the other breast only "
            f"({count(int(exams.breasts.implied.sum()), 'breast')})"
        )
    several = int(images.several.sum())
    if several:
        has, their = verb(several, "has", "have"), verb(several, "its", "their")
        images_have = f"{count(several, 'image')} {has} several findings of {their} breast"
        yield f"{images_have}; data.breast_label={rule} selected one"


def _views(files: Files, images: Images) -> Iterator[str]:
    magnified, implants = int(files.magnified[images.kept].sum()), int(files.implant[images.kept].sum())
    special = Counter(
        files.views[m] for m in images.kept.tolist() if files.views[m] and files.views[m] not in ("CC", "MLO")
    )
    if magnified or special:
        views = ", ".join(f"{view} {number:,}" for view, number in special.most_common())
        yield (
            f"special views kept: {count(magnified, 'compressed or magnified view')}"
            f"{f', and {views}' if views else ''}; data.views=CC,MLO keeps neither"
        )
    if implants:
        show = agree(implants, "[shows|show] an implant; [it is|they are] kept")
        yield f"{count(implants, 'image')} {show}"


@dataclass(frozen=True, kw_only=True)
class Files:
    """The metadata table after conversion; entry m of every column belongs to file m."""

    ids: list[str]
    """Path from `cohort_1` or `cohort_2` on; empty if invalid."""
    kinds: list[str]
    """`2d`, `cview`, … in lower case; empty if unknown."""
    side: Integers
    """`LEFT`, `RIGHT`, or `NONE`, `[M]`."""
    views: list[str]
    """View position as in the table; may be empty."""
    magnified: Flags
    """Whether it is a spot compression or magnification, `[M]`; False if unknown."""
    implant: Flags
    """Whether the breast has an implant, `[M]`; False if unknown."""
    faults: list[Fault]


def read_files(metadata: ColumnTable) -> Files:
    """Converts the metadata table; rows with an invalid path have a fault and an empty id."""
    columns, rows = metadata.columns, len(metadata.table)
    ids, faults = _read_paths(metadata)
    side = columns["laterality"]
    return Files(
        ids=ids,
        kinds=[text.casefold().replace("-", "") for text in columns["type"].texts()],
        side=np.array([_SIDE_CODES.get(text.strip().upper(), NONE) for text in side.values], dtype=np.int64)[
            side.index
        ],
        views=columns["view"].texts(),
        magnified=_is_yes(columns.get("magnified"), rows),
        implant=_is_yes(columns.get("implant"), rows),
        faults=faults,
    )


def locate_images(home: Path) -> str:
    """Returns the folder that contains the cohorts.

    Args:
        home: Folder that contains `tables`.

    Raises:
        DataError: If there is none; names the folders that were tried.
    """
    tried = (home / "images", home)
    for folder in tried:
        if any(path.is_dir() for path in folder.glob("cohort_*")):
            return str(folder)
    raise DataError(
        f"no folder cohort_1 or cohort_2 in {tried[0]} or {tried[1]}; set data.root to the folder that contains tables "
        "and images",
        reason="missing",
    )


def _read_paths(metadata: ColumnTable) -> tuple[list[str], list[Fault]]:
    """Returns ids and faults; the part of a path before `cohort_` is a folder of the owner's machine and is dropped."""
    column = metadata.columns["path"]
    ids = [_from_cohort(text.strip().replace("\\", "/")) for text in column.values]
    wrong = [i for i, name in enumerate(ids) if not name]
    out = [i for i, name in enumerate(ids) if (".." in name or "\0" in name) and leaves_root(name)]
    faults: list[Fault] = []
    if wrong:
        what = f"anon_dicom_path holds {column.values[wrong[0]][:80]!r}"
        remedy = "paths must contain cohort_1/… or cohort_2/…; for other images set data.dataset=manifest"
        faults.append(Fault("path", what, remedy, metadata.table.lines_of(column, wrong)))
    if out:
        what = f"anon_dicom_path {column.values[out[0]][:80]!r} leaves the folder of images"
        faults.append(Fault("outside-root", what, "remove its ..", metadata.table.lines_of(column, out)))
    for i in out:
        ids[i] = ""
    return [ids[i] for i in column.index.tolist()], faults


def _from_cohort(path: str) -> str:
    """Returns a path from its first folder `cohort_…` on, or an empty string."""
    start = 0 if path.startswith("cohort_") else path.find("/cohort_") + 1
    tail = path[start:]
    return tail if tail.startswith("cohort_") and "/" in tail else ""


def _is_yes(column: Column | None, rows: int) -> Flags:
    if column is None:
        return np.zeros(rows, dtype=bool)
    return np.array([text.strip().casefold() in _YES for text in column.values], dtype=bool)[column.index]


@dataclass(frozen=True, kw_only=True)
class Images:
    """The images that are kept; entry n of every array belongs to image n."""

    kept: Integers
    """Row in the metadata table, ascending, `[N]`."""
    birads: Integers
    """BI-RADS score, 0 to 6, or `NONE`, `[N]`."""
    density: Integers
    """1 to 4, or 0 if unknown, `[N]`."""
    finding: Integers
    """Row of the clinical table that represents its breast; `NONE` if it is negative by implication, `[N]`."""
    several: Flags
    """Whether the breast has several findings, `[N]`."""
    rejected: dict[str, Sequence[str]]
    """Ids of the other images, by reason."""


def choose_images(files: Files, keys: Keys, exams: Exams) -> Images:
    """Keeps 2D images with an assessment or a density.

    Reasons to reject an image: `type-<kind>`, such as a synthesised view; `no-side`, no laterality; `no-exam`, its exam
    is not in the clinical table; `male`; `other-breast`, the exam has no finding of this breast and need not be
    bilateral; `no-label`, neither assessment nor density. Rows without a path or an id are faults.
    """
    exam, side = np.maximum(keys.exam, 0), np.maximum(files.side, 0)
    finding = exams.breasts.row[exam, side]
    implied = exams.breasts.implied[exam, side]
    birads = np.where(finding >= 0, exams.findings.birads[finding], np.where(implied, _NEGATIVE, NONE))
    density = exams.density[exam]
    valid = np.array([bool(name) for name in files.ids], dtype=bool) & (keys.patient >= 0) & (keys.accession >= 0)
    reasons: list[tuple[str, Flags]] = [
        *_kinds(files),
        ("no-side", files.side == NONE),
        ("no-exam", keys.exam == NONE),
        ("male", _of_men(keys, exams)),
        ("other-breast", (finding == NONE) & ~implied),
        ("no-label", (birads == NONE) & (density == 0)),
    ]
    remaining = valid.copy()
    rejected: dict[str, Sequence[str]] = {}
    for reason, applies in reasons:
        out = np.flatnonzero(remaining & applies)
        if len(out):
            rejected[reason] = [files.ids[m] for m in out.tolist()]
            remaining[out] = False
    kept = np.flatnonzero(remaining)
    return Images(
        kept=kept,
        birads=birads[kept],
        density=density[kept],
        finding=finding[kept],
        several=exams.breasts.rows[exam, side][kept] > 1,
        rejected=rejected,
    )


def _kinds(files: Files) -> list[tuple[str, Flags]]:
    """Masks of the kinds of images other than 2D."""
    distinct, place = np.unique(np.array(files.kinds, dtype=object), return_inverse=True)
    return [
        (f"type-{kind or 'unknown'}", place == position)
        for position, kind in enumerate(distinct.tolist())
        if kind != "2d"
    ]


def _of_men(keys: Keys, exams: Exams) -> Flags:
    """Whether the patient of a file has an exam of a male breast, `[M]`."""
    rows = keys.finding_exam >= 0
    men = np.unique(keys.finding_patient[rows & exams.male[np.maximum(keys.finding_exam, 0)]])
    return np.isin(keys.patient, men) & (keys.patient >= 0)


def _rows(
    metadata: ColumnTable, files: Files, keys: Keys, exams: Exams, images: Images, folder: str, style: Style
) -> Rows:
    """Columns of the images that are kept."""
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
    """Label codes, `[N, C]`: of a known assessment or density one class is present and the others absent."""
    codes = np.full((len(images.kept), len(FINDINGS)), BLANK, dtype=np.int8)
    for values, first, last in ((images.birads, 0, len(BIRADS)), (images.density - 1, len(BIRADS), len(FINDINGS))):
        known = np.flatnonzero(values >= 0)
        codes[known, first:last] = 0
        codes[known, first + values[known]] = 1
    return codes


def _captions(
    metadata: ColumnTable, files: Files, exams: Exams, images: Images, of_exam: Sequence[int], style: Style
) -> list[str | None]:
    """Captions of the images; each distinct set of facts is formatted once."""
    is_report = style in ("natural", "structured")
    procedures = read_texts(metadata.columns.get("description"), len(metadata.table)) if is_report else []
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
        if is_report:
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
