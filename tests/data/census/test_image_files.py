import base64
import io
import random
import shutil

import cv2
import numpy as np
import pytest
from PIL import Image
from pydicom.uid import JPEGLSLossless, RLELossless
from tests.fakes.dicom import LEAKS, dicom_bytes

from cleft.config import ImagesConfig
from cleft.data.census.image_files import (
    FileInfo,
    check_duplicates,
    decode_sample,
    draw_sample,
    exceeds_share,
    find_duplicates,
    find_unlisted,
    inspect_file,
    inspect_files,
)
from cleft.data.images.decode import read_gray
from cleft.data.images.preprocess import centre_crop, prepare_image
from cleft.errors import DataError
from cleft.types import Record

RAMP = np.arange(40 * 48, dtype=np.uint16).reshape(40, 48)


def encoded(mode="L", kind="PNG", pixels=None, **options):
    image = Image.fromarray((RAMP % 256).astype(np.uint8) if pixels is None else pixels)
    buffer = io.BytesIO()
    (image if pixels is not None else image.convert(mode)).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "look"),
    [
        (encoded("L"), FileInfo("PNG", "gray", 8, (40, 48))),
        (encoded(pixels=RAMP), FileInfo("PNG", "gray", 16, (40, 48))),
        (encoded("P"), FileInfo("PNG", "palette", 8, (40, 48))),
        (encoded("RGBA"), FileInfo("PNG", "RGB with transparency", 8, (40, 48))),
        (encoded("L", "JPEG"), FileInfo("JPEG", "gray", 8, (40, 48))),
        (encoded("RGB", "JPEG", progressive=True, comment=b"x" * 60_000), FileInfo("JPEG", "colour", 8, (40, 48))),
        (encoded("L", "BMP"), FileInfo("other")),
        (b"", FileInfo("empty")),
        (b"\x89PNG\r\n\x1a\n", FileInfo("PNG")),
        (b"\xff\xd8\xff\xe0" + bytes(3), FileInfo("JPEG")),
        (b"\xff\xd8" + b"\xff" * 4000, FileInfo("JPEG")),
        (b"some words", FileInfo("other")),
    ],
)
def test_format_and_size_are_read_from_the_content(tmp_path, data, look):
    (tmp_path / "a.dcm").write_bytes(data)
    assert inspect_file(tmp_path / "a.dcm") == look


def test_a_dicom_file_is_described_by_its_photometric_interpretation(tmp_path):
    (tmp_path / "noending").write_bytes(dicom_bytes(RAMP, bits=12, photometric="MONOCHROME1"))
    look = inspect_file(tmp_path / "noending")
    assert look[:4] == ("DICOM", "MONOCHROME1", 12, (40, 48))
    assert not any(leak in repr(look) for leak in LEAKS)


def test_o1_an_invalid_photometric_interpretation_is_not_quoted(tmp_path):
    (tmp_path / "a").write_bytes(dicom_bytes(RAMP, photometric="CANARY"))
    assert inspect_file(tmp_path / "a").kind == "of unknown type"


def test_a_missing_file_is_reported_as_missing(tmp_path):
    assert inspect_file(tmp_path / "none").format == "missing"
    assert inspect_file(tmp_path).format == "not-a-file"


def test_files_are_counted_with_notes_on_missing_decoders(tmp_path, monkeypatch):
    files = {
        "a.png": encoded("L"),
        "b.jpg": encoded("L", "JPEG"),
        "c": dicom_bytes(RAMP, syntax=RLELossless),
        "d": dicom_bytes(RAMP, syntax=JPEGLSLossless),
        "e": dicom_bytes(None),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    monkeypatch.setattr(
        "cleft.data.images.dicom.syntax_support", lambda uid, deep: (uid[-2:], "run: pip install it" * ("80" in uid))
    )
    looks = inspect_files([tmp_path / name for name in files])
    counted = {tally.name: dict(tally.counts) for tally in looks.tallies}
    assert counted["format"] == {"DICOM": 2, "DICOM without an image": 1, "JPEG": 1, "PNG": 1}
    assert counted["pixels"] == {"8-bit gray": 2, "16-bit MONOCHROME2": 2}
    assert counted["size"] == {"40 × 48": 4}
    assert counted["transfer syntax"] == {".5": 1, "80": 1}
    assert looks.notes == ["1 image is encoded as 80, which cannot be decoded here; run: pip install it"]


def test_rare_sizes_are_counted_together(tmp_path):
    paths = []
    for side in range(40, 50):
        paths.append(tmp_path / f"{side}.png")
        Image.fromarray(np.zeros((side, side), np.uint8)).save(paths[-1])
    (size,) = [tally for tally in inspect_files(paths).tallies if tally.name == "size"]
    assert len(size.counts) == 6
    assert size.counts[-1] == ("5 others", 5)


IMAGES = ImagesConfig(size=48, stored_size=64)


@pytest.fixture
def records(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(6):
        Image.fromarray(rng.integers(0, 255, (70, 60), np.uint8)).save(tmp_path / f"{number}.png")
    return [
        Record(id=f"{n}.png", image=tmp_path / f"{n}.png", labels={"Edema": float(n % 2)}, patient=str(n), view="AP")
        for n in range(6)
    ]


def test_a_sample_depends_on_ids_and_seed_only(records):
    shuffled = random.Random(3).sample(records, len(records))
    assert draw_sample(records, 3, 0) == draw_sample(shuffled, 3, 0)
    assert len({tuple(r.id for r in draw_sample(records, 3, seed)) for seed in range(8)}) > 1
    assert draw_sample(records, None, 0)[:3] == draw_sample(records, 3, 0)


def test_thumbnails_show_the_model_input(records):
    (first, second) = decode_sample(records, IMAGES, thumbnails=2).thumbnails
    seen = cv2.imdecode(np.frombuffer(base64.b64decode(second.image), np.uint8), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(seen, centre_crop(prepare_image(read_gray(records[1].image), IMAGES), 48))
    assert (first.view, first.labels, second.labels) == ("AP", (), ("Edema",))


def test_undecodable_images_have_a_reason_and_the_rest_is_decoded(records):
    records[2].image.write_bytes(records[2].image.read_bytes()[:200])
    Image.fromarray(np.full((40, 40), 7, np.uint8)).save(records[4].image)
    sample = decode_sample(records, IMAGES, thumbnails=9)
    assert {name: reason for name, (reason, _) in sample.undecodable.items()} == {
        "2.png": "truncated",
        "4.png": "constant",
    }
    assert len(sample.contents) == 6
    assert len(sample.thumbnails) == 4


def test_nothing_is_left_on_disk(records, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    decode_sample(records, IMAGES, thumbnails=2)
    assert sorted(tmp_path.rglob("*")) == before


def test_more_processes_give_the_same_sample(records):
    assert decode_sample(records, IMAGES, thumbnails=2, jobs=1) == decode_sample(records, IMAGES, thumbnails=2)


@pytest.mark.parametrize(
    ("bad", "drawn", "of", "share", "surely"),
    [
        (0, 50, 1000, 0.0, False),
        (1, 50, 1000, 0.0, True),
        (1, 50, 50, 0.02, False),
        (2, 50, 1000, 0.01, False),
        (3, 50, 1000, 0.01, True),
        (11, 2000, 1000, 0.01, True),
        (30, 2000, 200_000, 0.01, True),
        (22, 2000, 200_000, 0.01, False),
        (50, 50, 1000, 1.0, False),
    ],
)
def test_a_few_bad_images_in_a_sample_are_not_significant(bad, drawn, of, share, surely):
    assert exceeds_share(bad, drawn, of, share) is surely


SMALL = ImagesConfig(size=32, stored_size=32)


def in_folder(folder, name, patient="p", **labels):
    return Record(id=name, image=folder / name, labels=labels, patient=patient)


@pytest.fixture
def folder(tmp_path):
    """Two pictures; the first once more as it is, and once stored in another way."""
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        Image.fromarray(rng.integers(0, 255, (40, 40), np.uint8)).save(tmp_path / name)
    shutil.copy(tmp_path / "a.png", tmp_path / "copy.png")
    Image.open(tmp_path / "a.png").save(tmp_path / "again.png", compress_level=1, pnginfo=None)
    return tmp_path


def contents(records):
    return decode_sample(records, SMALL, progress=False).contents


def test_copies_and_reencoded_files_have_the_same_content(folder):
    assert (folder / "a.png").read_bytes() != (folder / "again.png").read_bytes()
    content = contents([in_folder(folder, name) for name in ("a.png", "b.png", "copy.png", "again.png")])
    assert content["a.png"] == content["copy.png"] == content["again.png"]
    assert content["b.png"] != content["a.png"]


def test_a_duplicate_in_several_splits_is_reported_with_them(folder):
    parts = {
        "train": [in_folder(folder, "a.png"), in_folder(folder, "b.png")],
        "val": [in_folder(folder, "again.png", "q", Edema=1)],
        "test": [in_folder(folder, "copy.png")],
    }
    (twins,) = find_duplicates(parts, contents([r for part in parts.values() for r in part]))
    assert twins == (("a.png", "again.png", "copy.png"), ("train", "val", "test"), 2, False)


def test_d16_a_test_image_in_training_stops(folder):
    parts = {"train": [in_folder(folder, "a.png")], "test": [in_folder(folder, "copy.png", "q")]}
    twins = find_duplicates(parts, {"a.png": 1, "copy.png": 1})
    with pytest.raises(DataError, match="1 image of the test split is in another split too") as caught:
        check_duplicates(twins)
    assert caught.value.reason == "shared-images"
    assert ".png" not in str(caught.value)


def test_harmless_duplicates_are_ignored_and_doubtful_ones_counted(folder):
    same = [in_folder(folder, "a.png", Edema=1), in_folder(folder, "copy.png", Edema=1)]
    assert check_duplicates(find_duplicates({"train": same}, dict.fromkeys(["a.png", "copy.png"], 0))) == []
    parts = {"train": same[:1], "val": [in_folder(folder, "copy.png", "q", Edema=0)]}
    told = check_duplicates(find_duplicates(parts, dict.fromkeys(["a.png", "copy.png"], 0)))
    assert [sentence.split()[0] for sentence in told] == ["1", "1", "1"]
    assert "in training and in validation" in told[0]


def test_records_without_content_are_skipped(folder):
    assert find_duplicates({"train": [in_folder(folder, "a.png"), in_folder(folder, "b.png")]}, {"a.png": 1}) == []


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def found(root, *names):
    unlisted = find_unlisted([f"{root}/{name}" for name in names])
    return {left.reason: (left.count, left.examples) for left in unlisted.files}, unlisted.junk


def test_e9_files_without_a_row_are_counted_by_extension(tmp_path):
    touch(
        tmp_path, *(f"images/{i}.png" for i in range(6)), "images/deep/a.JPG", "images/deep/1.2.840.113", "images/b.tif"
    )
    assert found(tmp_path, "images/0.png", "images/1.png", "images/gone.png") == (
        {
            ".png": (4, ("2.png", "3.png", "4.png")),
            ".jpg": (1, ("deep/a.JPG",)),
            ".tif": (1, ("b.tif",)),
            "no extension": (1, ("deep/1.2.840.113",)),
        },
        0,
    )


@pytest.mark.parametrize(
    "name", [".DS_Store", "._p1.png", "Thumbs.db", "p9.png.part", "__MACOSX/p1.png", "deep/desktop.ini", "a.crdownload"]
)
def test_system_and_temporary_files_are_junk(tmp_path, name):
    touch(tmp_path, "images/p1.png", f"images/{name}")
    assert found(tmp_path, "images/p1.png") == ({}, 1)


def test_only_files_below_the_folder_of_all_images_count(tmp_path):
    touch(tmp_path, "a/b/1.png", "a/c/2.png", "a/3.png", "other/4.png", "5.png")
    assert found(tmp_path, "a/b/1.png", "a/c/2.png") == ({".png": (1, ("3.png",))}, 0)


def test_tables_and_documents_are_no_images(tmp_path):
    touch(tmp_path, "1.png", "manifest.csv", "manifest.csv.gz", "README.md", "report.PDF", "labels.zip")
    assert found(tmp_path, "1.png") == ({}, 0)


def test_links_are_not_entered(tmp_path):
    touch(tmp_path, "in/1.png", "away/2.png")
    (tmp_path / "in/link").symlink_to(tmp_path / "away")
    (tmp_path / "in/3.png").symlink_to(tmp_path / "away/2.png")
    assert found(tmp_path, "in/1.png") == ({}, 0)


def test_a_table_without_an_image_has_no_folder_to_look_into(tmp_path):
    touch(tmp_path, "1.png")
    assert find_unlisted([]) == find_unlisted([f"{tmp_path}/"]) == ((), 0)
