"""What the reader of EMBED has to say: its counts beside the published ones, and what its rules did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from cleft.data.readers.embed_exams import Exams, Keys
from cleft.data.readers.embed_files import Files
from cleft.data.readers.embed_images import Images
from cleft.data.readers.embed_join import NONE, Rule
from cleft.data.readers.embed_tables import Named
from cleft.grammar import agree, count, verb


def census(
    metadata: Named,
    clinical: Named,
    files: Files,
    keys: Keys,
    exams: Exams,
    images: Images,
    rule: Rule,
    *,
    drawn: bool,
) -> Iterator[str]:
    """Sentences for the user, with the published counts beside those of images that were not drawn."""
    published = "published: 480,323 files of 23,256 patients and 72,770 exams, and 81,776 findings"
    paper = "" if drawn else " (paper: 364,515)"
    first, second = metadata.table.path.name, clinical.table.path.name
    patients, visits = (len(np.unique(known[known >= 0])) for known in (keys.patient, keys.accession))
    yield (
        f"{first} holds {count(len(metadata.table), 'file')} of {count(patients, 'patient')} and "
        f"{count(visits, 'exam')}, {second} {count(len(clinical.table), 'finding')} "
        f"({'drawn phantoms' if drawn else published})"
    )
    both = int(((images.birads != NONE) & (images.density > 0)).sum())
    unassessed, no_density = int((images.birads == NONE).sum()), int((images.density == 0).sum())
    yield (
        f"{count(len(images.kept), '2D image')} with a label, {both:,} with assessment and density{paper}; "
        f"{unassessed:,} {verb(unassessed, 'has', 'have')} no assessment, {no_density:,} no density"
    )
    yield from _rules(images, exams, rule)
    yield from _views(files, images)
    if keys.strayed:
        names, has = verb(keys.strayed, "names", "name"), verb(keys.strayed, "it has", "they have")
        files_name = f"{count(keys.strayed, 'file')} {names}"
        yield f"{files_name} an exam that {second} gives to another patient; {has} no exam"


def _rules(images: Images, exams: Exams, rule: Rule) -> Iterator[str]:
    implied = int((images.finding == NONE).sum())
    if implied:
        yield (
            f"implied-negative: {count(implied, 'image')} {verb(implied, 'has', 'have')} BI-RADS 1 because "
            f"{verb(implied, 'its', 'their')} exam is bilateral and its findings name the other breast alone "
            f"({count(int(exams.breasts.implied.sum()), 'breast')})"
        )
    several = int(images.several.sum())
    if several:
        has, their = verb(several, "has", "have"), verb(several, "its", "their")
        yield f"{count(several, 'image')} {has} several findings of {their} breast; data.reduce={rule} chose one"


def _views(files: Files, images: Images) -> Iterator[str]:
    magnified, implants = int(files.magnified[images.kept].sum()), int(files.implant[images.kept].sum())
    special = Counter(
        files.views[m] for m in images.kept.tolist() if files.views[m] and files.views[m] not in ("CC", "MLO")
    )
    if magnified or special:
        views = ", ".join(f"{view} {number:,}" for view, number in special.most_common())
        yield (
            f"kept though special: {count(magnified, 'compressed or magnified view')}"
            f"{f', and {views}' if views else ''}; data.views=CC,MLO keeps neither"
        )
    if implants:
        show = agree(implants, "[shows|show] an implant; [it is|they are] kept")
        yield f"{count(implants, 'image')} {show}"
