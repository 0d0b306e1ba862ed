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
        f"{first} holds {len(metadata.table):,} files of {patients:,} patients and {visits:,} exams, {second} "
        f"{len(clinical.table):,} findings ({'drawn phantoms' if drawn else published})"
    )
    both = int(((images.birads != NONE) & (images.density > 0)).sum())
    yield (
        f"{len(images.kept):,} 2D images with a label, {both:,} of them with assessment and density{paper}; "
        f"{int((images.birads == NONE).sum()):,} have no assessment, {int((images.density == 0).sum()):,} no density"
    )
    yield from _rules(images, exams, rule)
    yield from _views(files, images)
    if keys.strayed:
        yield f"{keys.strayed:,} files name an exam that {second} gives to another patient; they have no exam"


def _rules(images: Images, exams: Exams, rule: Rule) -> Iterator[str]:
    implied = int((images.finding == NONE).sum())
    if implied:
        yield (
            f"implied-negative: {implied:,} images have BI-RADS 1 because their exam is bilateral and its findings "
            f"name the other breast alone ({int(exams.breasts.implied.sum()):,} breasts)"
        )
    several = int(images.several.sum())
    if several:
        yield f"{several:,} images have several findings of their breast; data.reduce={rule} chose one"


def _views(files: Files, images: Images) -> Iterator[str]:
    magnified, implants = int(files.magnified[images.kept].sum()), int(files.implant[images.kept].sum())
    special = Counter(
        files.views[m] for m in images.kept.tolist() if files.views[m] and files.views[m] not in ("CC", "MLO")
    )
    if magnified or special:
        told = ", ".join(f"{view} {count:,}" for view, count in special.most_common())
        yield (
            f"kept though special: {magnified:,} compressed or magnified views{f', and {told}' if told else ''}; "
            f"data.views=CC,MLO keeps neither"
        )
    if implants:
        yield f"{implants:,} images show an implant; they are kept"
