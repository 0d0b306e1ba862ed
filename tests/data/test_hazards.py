"""What goes wrong with real data, and what is done about it: one row of the dossier's table after the other.

Each test builds the hazard on disk and looks at it through a public door: `check_dataset`, `read_dataset` or
`prepare_images`. Single modules have finer tests of their own; here stands that the doors lead there.
"""

import gzip
import io
import json
import shutil
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLSLossless
from tests.fakes.chexpert import chexpert_row, write_fake_chexpert, write_full_chexpert
from tests.fakes.dicom import dicom_bytes
from tests.fakes.embed import both_breasts, file_row, finding_row, write_fake_embed
from tests.fakes.iu_xray import write_fake_openi
from tests.fakes.manifest import write_fake_manifest
from tests.fakes.mimic import odd_studies, write_fake_mimic, write_sectioned

from cleft.config import DataConfig, ImagesConfig
from cleft.data import read_dataset
from cleft.data.census.check import CheckOptions, check_dataset
from cleft.data.census.image_files import check_duplicates, decode_sample, find_duplicates
from cleft.data.images.cache import PrepareOptions, prepare_images
from cleft.data.splits.recipes import split_records
from cleft.errors import DataError

IMAGES = ImagesConfig(size=48, stored_size=64)
ALL = CheckOptions(decode=None)


def scene(seed=0, shape=(80, 64)):
    """A gray image whose corners can be told apart."""
    rows, columns = np.mgrid[0 : shape[0], 0 : shape[1]]
    noise = np.random.default_rng(seed).integers(0, 40, shape)
    return np.uint8(rows * 120 // shape[0] + columns * 60 // shape[1] + noise)


def stored(pixels=None, kind="PNG", mode=None, **options):
    image = Image.fromarray(scene() if pixels is None else pixels)
    buffer = io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def own(tmp_path):
    """Writes an own table, and files with their bytes beside it; a table without lines has one row per file."""

    def write(files, table=None, header="image,Edema", name="manifest.csv"):
        for number, (path, data) in enumerate(files.items()):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_bytes(data if data is not None else stored(scene(number)))
        lines = [f"{path},{number % 2}" for number, path in enumerate(files)] if table is None else table
        body = table if isinstance(table, bytes) else "\n".join([header, *lines]).encode() + b"\n"
        (tmp_path / name).write_bytes(body)
        return tmp_path

    return write


def check(root, effort=ALL, dataset="manifest", **settings):
    settings = {"max_invalid": 0.9, "val_fraction": 0, "test_fraction": 0, **settings}
    return check_dataset(DataConfig(dataset=dataset, root=root, **settings), IMAGES, effort).census


def records(root, dataset="manifest", **settings):
    return read_dataset(DataConfig(dataset=dataset, root=root, **settings)).records


def prepared(root, **settings):
    """Pixels of every image that can be used, by id, and the reason of every other."""
    made = prepare_images(
        records(root, **settings), IMAGES, root.parent / f"{root.name}-cache", PrepareOptions(max_invalid=1.0)
    )
    return {name: made.pixels(name) for name in made.numbers}, dict(made.rejected)


# Where images lie


@pytest.mark.parametrize("write", [write_fake_chexpert, write_full_chexpert])
@pytest.mark.parametrize("level", ["the release", "the folder above"])
def test_a_wrong_release_prefix_or_folder_level_is_corrected(tmp_path, write, level):
    root = write(tmp_path)
    inner = [path for path in sorted(root.iterdir()) if path.is_dir()]
    root = inner[0] if level == "the release" and write is write_fake_chexpert else root
    assert len(records(root, "chexpert")) == 6
    assert check(root, dataset="chexpert").faults == ()


def test_an_unknown_layout_stops_with_the_paths_that_were_tried(tmp_path):
    root = write_fake_chexpert(tmp_path)
    shutil.rmtree(root / "CheXpert-v1.0-small/train")
    (fault,) = check(root, dataset="chexpert").faults
    assert "looked for" in fault
    assert "train/patient00001" in fault


def test_system_and_temporary_files_are_ignored_and_counted(own):
    root = own({"images/a.png": None, "images/b.png": None})
    for name in (".DS_Store", "._a.png", "Thumbs.db", "c.png.part", "train.zip.part"):
        (root / "images" / name).write_bytes(b"\0\5\x16\7")
    census = check(root)
    assert (census.junk, census.unlisted, census.faults) == (5, (), ())


def test_a_row_without_a_file_is_left_out_and_counted_and_too_many_stop(own):
    root = own({"images/a.png": None, "images/b.png": None, "images/c.png": None})
    (root / "images/b.png").unlink()
    (left,) = check(root, max_invalid=0.5).excluded_rows
    assert (left.reason, left.count, left.examples) == ("missing", 1, ("images/b.png",))
    assert "1 of 3 images is not on disk" in check(root, max_invalid=0.01).faults[0]
    with pytest.raises(DataError, match=r"data\.max_invalid allows 1\.0%"):
        records(root)


def test_a_file_without_a_row_is_reported_and_nothing_else(own):
    root = own({"images/a.png": None, "images/b.png": None})
    (root / "images/new").mkdir()
    shutil.copy(root / "images/a.png", root / "images/new/c.png")
    census = check(root)
    assert [(left.reason, left.count, left.examples) for left in census.unlisted] == [(".png", 1, ("new/c.png",))]
    assert (census.images, census.faults) == (2, ())


def test_case_and_accents_that_differ_on_disk_are_matched_if_unambiguous(own):
    root = own({"Images/A.PNG": None, "Images/e\u0301.png": None}, ["images/a.png,1", "images/\u00e9.png,0"])
    census = check(root)
    assert (census.images, census.faults, census.undecodable) == (2, (), ())
    assert any("2 images have another spelling on disk" in note for note in census.notes)
    (root / "images").mkdir()
    shutil.copy(root / "Images/A.PNG", root / "images/a.PNG")
    assert [left.count for left in check(root).excluded_rows] == [1]


@pytest.mark.parametrize("path", ["images\\a.png", "C:\\images\\a.png", "\\\\server\\a.png"])
def test_windows_paths_of_a_users_table_are_refused_with_a_message(own, path):
    (fault,) = check(own({"images/a.png": None}, [f"{path},1", "images/a.png,1"])).faults
    assert "line 2" in fault
    assert "write paths below data.root with /" in fault


def test_windows_paths_of_chexpert_are_read(tmp_path):
    row = chexpert_row("patient00001/study1/view1_frontal.jpg")
    root = write_fake_chexpert(tmp_path, [row])
    table = root / "CheXpert-v1.0-small/train.csv"
    table.write_text(
        table.read_text().replace("CheXpert-v1.0-small/train/patient00001/study1/", r"C\train\patient00001\study1" "\\")
    )
    assert [record.patient for record in records(root, "chexpert", val_fraction=0, test_fraction=0)] == ["patient00001"]


def test_spaces_in_folders_and_names_are_part_of_them(own):
    root = own({"RSNA Pneumonia (1)/first batch/p 1.png": None, "RSNA Pneumonia (1)/ü & co.png": None})
    pixels, rejected = prepared(root)
    assert (len(pixels), rejected) == (2, {})


# What files hold


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (stored(kind="JPEG")[:700], "truncated"),
        (stored()[:700], "truncated"),
        (stored(kind="JPEG")[:3] + b"\xff\xd9", "malformed"),
        (b"", "empty"),
        (b"<html>not found</html>", "format"),
        (stored(np.zeros((80, 64), np.uint8)), "constant"),
        (stored(np.full((80, 64), 255, np.uint8), "JPEG"), "constant"),
        (stored(scene(shape=(8, 64))), "geometry"),
        (stored(np.stack([scene(), 255 - scene(), scene(2)], 2)), "colour"),
        (stored(kind="JPEG", mode="CMYK"), "colour"),
        (stored(kind="BMP"), "format"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_image_that_cannot_be_used_is_found_before_training_and_left_out_with_its_reason(own, data, reason):
    root = own({"images/good.png": None, "images/better.png": None, "images/bad.png": data})
    (left,) = check(root).undecodable
    assert (left.reason, left.count) == (reason, 1)
    assert left.examples[0].startswith(f"images/bad.png: {reason} (")
    pixels, rejected = prepared(root)
    assert (sorted(pixels), rejected) == (["images/better.png", "images/good.png"], {"images/bad.png": reason})
    assert "1 of 3 decoded images cannot be used" in check(root, max_invalid=0.01).faults[0]


def test_content_decides_the_decoder_not_the_name(own):
    lossless = scene()
    root = own(
        {
            "a.jpg": stored(lossless),
            "b.png": stored(lossless, "JPEG", quality=100),
            "c": stored(lossless),
            "d.dcm": stored(lossless),
        }
    )
    pixels, rejected = prepared(root)
    assert rejected == {}
    assert np.array_equal(pixels["a.jpg"], pixels["c"])
    assert np.array_equal(pixels["a.jpg"], pixels["d.dcm"])
    assert np.abs(pixels["b.png"].astype(int) - pixels["c"]).max() <= 2
    assert dict(next(tally for tally in check(root).file_tallies if tally.name == "format").counts) == {
        "PNG": 3,
        "JPEG": 1,
    }


def test_exif_orientation_is_applied_once(own):
    turned = Image.Exif()
    turned[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    upright, lying = scene(), np.ascontiguousarray(np.rot90(scene()))
    pixels, _ = prepared(own({"upright.png": stored(upright), "lying.png": stored(lying, exif=turned)}))
    assert np.array_equal(pixels["upright.png"], pixels["lying.png"])


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P"])
def test_gray_stored_as_colour_palette_or_with_transparency_is_gray(own, mode):
    gray = Image.fromarray(scene() // 2 * 2)
    buffer = io.BytesIO()
    (gray.quantize(256) if mode == "P" else gray.convert(mode)).save(buffer, "PNG")
    pixels, rejected = prepared(own({"gray.png": stored(np.asarray(gray)), "other.png": buffer.getvalue()}))
    assert rejected == {}
    assert np.abs(pixels["gray.png"].astype(int) - pixels["other.png"]).max() <= 1


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_sixteen_bit_png_keeps_its_range(own, bits):
    deep = (scene().astype(np.float64) / scene().max() * (2**bits - 1)).astype(np.uint16)
    pixels, _ = prepared(own({"a.png": stored(deep)}))
    inside = pixels["a.png"][:, 8:56]
    assert inside.max() > 230
    assert len(np.unique(inside)) > 100


# What DICOM files hold


def deep(seed=0):
    """Twelve bits; the darkest and the brightest value occur."""
    pixels = scene(seed).astype(np.uint16) * 15
    pixels[0, 0], pixels[-1, -1] = 0, 4095
    return pixels


def test_monochrome1_is_inverted_once(own):
    files = {
        "plain": dicom_bytes(deep(), bits=12),
        "one": dicom_bytes(4095 - deep(), bits=12, photometric="MONOCHROME1"),
        "said twice": dicom_bytes(4095 - deep(), bits=12, photometric="MONOCHROME1", PresentationLUTShape="INVERSE"),
    }
    pixels, rejected = prepared(own(files))
    assert rejected == {}
    assert np.array_equal(pixels["plain"], pixels["one"])
    assert np.array_equal(pixels["plain"], pixels["said twice"])


def test_the_first_legal_window_is_used(own):
    window = {"WindowCenter": 1000, "WindowWidth": 500}
    several = {"WindowCenter": [1000, 3000], "WindowWidth": [500, 10]}
    files = {
        "none": dicom_bytes(deep(), bits=12),
        "one": dicom_bytes(deep(), bits=12, **window),
        "several": dicom_bytes(deep(), bits=12, **several),
        "sigmoid": dicom_bytes(deep(), bits=12, VOILUTFunction="SIGMOID", **window),
        "illegal": dicom_bytes(deep(), bits=12, WindowCenter=1000, WindowWidth=0),
    }
    pixels, _ = prepared(own(files))
    assert np.array_equal(pixels["one"], pixels["several"])
    assert np.array_equal(pixels["none"], pixels["illegal"])
    assert (pixels["one"] == 255).sum() > (pixels["none"] == 255).sum() + 100
    assert not np.array_equal(pixels["sigmoid"], pixels["one"])


def test_signed_values_slope_and_intercept_keep_their_order(own):
    signed = deep().astype(np.int16) - 1024
    files = {
        "plain": dicom_bytes(deep(), bits=12),
        "signed": dicom_bytes(signed),
        "rescaled": dicom_bytes(deep() // 2, bits=12, RescaleSlope=2, RescaleIntercept=-500),
    }
    pixels, _ = prepared(own(files))
    assert np.array_equal(pixels["plain"], pixels["signed"])
    assert np.abs(pixels["plain"].astype(int) - pixels["rescaled"]).max() <= 1


def test_overlays_in_high_bits_and_padding_are_ignored(own):
    padded = deep() // 2
    padded[:, :20] = 4095
    bare = padded.copy()
    bare[:, :20] = padded[:, 20:].min()
    files = {
        "plain": dicom_bytes(deep(), bits=12),
        "overlays": dicom_bytes(deep() | 0xF000, bits=12, overlays=range(12, 16)),
        "padded": dicom_bytes(padded, bits=12, PixelPaddingValue=4095),
        "bare": dicom_bytes(bare, bits=12),
    }
    pixels, _ = prepared(own(files))
    assert np.array_equal(pixels["plain"], pixels["overlays"])
    assert np.array_equal(pixels["padded"], pixels["bare"])


def test_the_dicom_policy_is_part_of_the_preparation(own, tmp_path):
    root = own({"a": dicom_bytes(deep(), bits=12, WindowCenter=1000, WindowWidth=500)})
    made = {}
    for policy in ("voi", "percentile", "released"):
        images = replace(IMAGES, dicom=policy)
        made[policy] = prepare_images(records(root), images, tmp_path / "cache")
        assert json.loads((made[policy].folder / "settings.json").read_text())["dicom"] == policy
    assert len({one.folder for one in made.values()}) == 3
    assert len({one.pixels("a").tobytes() for one in made.values()}) == 3


def test_one_of_several_frames_is_read_if_set(own, tmp_path):
    three = np.stack([deep(), deep(1), deep(2)])
    root = own({"three": dicom_bytes(three, bits=12, frames=True), "middle": dicom_bytes(three[1], bits=12)})
    made = prepare_images(records(root), replace(IMAGES, frame="middle"), tmp_path / "cache")
    assert np.array_equal(made.pixels("three"), made.pixels("middle"))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (dicom_bytes(np.stack([deep(), deep(1)]), bits=12, frames=True), "frames"),
        (dicom_bytes(np.stack([scene(), 255 - scene(), scene(2)], 2), photometric="RGB"), "colour"),
        (dicom_bytes(np.zeros((80, 64), np.uint16), bits=12), "constant"),
        (dicom_bytes(deep(), bits=12)[:-3000], "truncated"),
        (dicom_bytes(None, SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11"), "no-image"),
    ],
    ids=["several frames", "colour", "one value", "broken off", "a report"],
)
def test_a_dicom_file_that_is_no_radiograph_is_found_before_training(own, data, reason):
    root = own({"a.dcm": dicom_bytes(deep(), bits=12), "bad": data})
    assert [(left.reason, left.count) for left in check(root).undecodable] == [(reason, 1)]
    assert prepared(root)[1] == {"bad": reason}


def test_an_encoding_that_cannot_be_decoded_is_named_with_what_is_missing(own, monkeypatch):
    root = own({"a.dcm": dicom_bytes(deep(), bits=12), "b": dicom_bytes(deep(1), bits=12, syntax=JPEGLSLossless)})
    names = {tally.name: dict(tally.counts) for tally in check(root).file_tallies}
    assert names["transfer syntax"] == {"Explicit VR Little Endian": 1, "JPEG-LS Lossless Image Compression": 1}
    remedy = "run: pip install 'cleft[dicom]'"
    monkeypatch.setattr(
        "cleft.data.images.dicom.syntax_support", lambda uid, deep: ("JPEG-LS", remedy * uid.endswith("80"))
    )
    assert f"1 image is encoded as JPEG-LS, which cannot be decoded here; {remedy}" in check(root).notes


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_a_file_without_preamble_or_transfer_syntax_is_read_and_counted(own, syntax):
    files = {
        "plain": dicom_bytes(deep(), bits=12),
        "unmarked": dicom_bytes(deep(), bits=12, syntax=syntax, preamble=False),
        "untold": dicom_bytes(deep(), bits=12, syntax=syntax, has_syntax=False),
    }
    root = own(files)
    pixels, rejected = prepared(root)
    assert rejected == {}
    assert np.array_equal(pixels["plain"], pixels["unmarked"])
    assert any(note.startswith("2 images have no transfer syntax") for note in check(root).notes)


def test_an_image_sent_twice_with_other_ids_is_a_duplicate(own):
    root = own({f"{n}.dcm": dicom_bytes(deep(), bits=12, SOPInstanceUID=f"1.2.{n}") for n in range(2)})
    contents = decode_sample(records(root), IMAGES, progress=False).contents
    assert contents["0.dcm"] == contents["1.dcm"]
    with pytest.raises(DataError, match="1 image of the test split is in another split too"):
        check_duplicates(find_duplicates({"train": records(root)[:1], "test": records(root)[1:]}, contents))


# What tables say


def test_several_equal_rows_of_an_image_are_one_and_conflicting_ones_stop(own):
    files = {"a.png": None, "b.png": None}
    (left,) = check(own(files, ["a.png,1", "b.png,0", "./a.png,1.0"])).excluded_rows
    assert (left.reason, left.count, left.examples) == ("duplicate", 1, ("line 4",))
    (fault,) = check(own(files, ["a.png,1", "b.png,0", "a.png,0"])).faults
    assert "lines 2, 4: two rows of the same image disagree" in fault


def test_one_image_under_two_names_is_flagged_and_stops_across_test(own):
    names = [f"p{number}.png" for number in range(40)]
    root = own(dict.fromkeys(names))
    assert check(root).faults == ()
    config = DataConfig(dataset="manifest", root=root)
    splits = split_records(read_dataset(config), config)
    train, test = splits.train[0].id, splits.test[0].id
    shutil.copy(root / train, root / test)
    (fault,) = check(root, val_fraction=0.05, test_fraction=0.2).faults
    assert "1 image of the test split is in another split too" in fault
    assert train in fault
    assert test in fault


def test_ids_are_read_as_text(own):
    ids = ["0001", "2", "1e5", "00300", "a1e5", "12345678901234567", "12345678901234568", "NA", "None", "1.5"]
    lines = [f"{number}.png,{patient},1" for number, patient in enumerate(ids)]
    root = own({f"{number}.png": None for number in range(len(ids))}, lines, "image,patient,Edema")
    assert [record.patient for record in records(root)] == ids


def test_codes_are_read_by_value_in_any_notation(own):
    cells = ["1", "1.0", '"1"', " 1 ", "-1.0", "0.0", ""]
    root = own({f"{n}.png": None for n in range(7)}, [f"{n}.png,{cell}" for n, cell in enumerate(cells)])
    assert check(root).labels["Edema"] == (4, 1, 1, 1)


PLAIN = 'image,caption,Edema\na.png,"left, and right",1\nb.png,nothing,0\n'


def zipped(text):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("table.csv", text)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "table",
    [
        PLAIN.encode(),
        b"\xef\xbb\xbf" + PLAIN.encode(),
        PLAIN.replace("\n", "\r\n").encode(),
        gzip.compress(PLAIN.encode(), mtime=0),
        zipped(PLAIN),
        zipped("\ufeff" + PLAIN.replace("\n", "\r\n")),
        (",\n0,".join(PLAIN.splitlines()) + "\n").encode()
        and b',image,caption,Edema\n0,a.png,"left, and right",1\n1,b.png,nothing,0\n',
        PLAIN.replace("image,caption", " Image , TEXT").encode(),
    ],
    ids=["plain", "mark", "crlf", "gzip", "zip", "zip of marks and crlf", "index column", "header of another form"],
)
def test_bom_line_ends_compression_quotes_and_index_columns_change_nothing(own, table):
    found = records(own({"a.png": None, "b.png": None}, table))
    assert [(record.id, record.caption, record.labels["Edema"]) for record in found] == [
        ("a.png", "left and right", 1),
        ("b.png", "nothing", 0),
    ]


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ("image,Edema\na.png,1,\nb.png,0,\n", "lines 2, 3: 3 cells where the header has 2; fix the commas"),
        ("image,Edema\na.png\nb.png,0\n", "line 2: 1 cell where the header has 2"),
        ("image,Edema,Edema\na.png,1,0\n", "column 'Edema' occurs at positions [2, 3]; rename or remove"),
        ("image;Edema\na.png;1\n", "separates its cells by semicolons; save it with commas"),
        (
            "imag,Edema\na.png,1\n",
            "no column 'image'; found ['imag', 'Edema']; name the column of the images' paths so, nearest to",
        ),
        ('image,Edema\na.png,"1\nb.png,0\n', "a quote is not closed"),
    ],
)
def test_a_header_or_row_of_another_length_is_reported_with_its_line(own, table, told):
    assert told in check(own({"a.png": None, "b.png": None}, table.encode())).faults[0]


def test_unexpected_codes_keep_their_row_and_count_as_unknown(own):
    lines = ["a.png,Unknown,155,LL,1", "b.png,F,061Y,X,1", "c.png,M,61, ap ,1"]
    root = own({"a.png": None, "b.png": None, "c.png": None}, lines, "image,sex,age,view,Edema")
    found = records(root)
    assert [(record.sex, record.age, record.view) for record in found] == [
        (None, None, "LL"),
        ("Female", None, "X"),
        ("Male", 61.0, "AP"),
    ]
    notes = " ".join(check(root).notes)
    assert "1 row with a sex other" in notes
    assert "2 rows with an age outside 0 to 120" in notes


def test_padded_codes_other_columns_and_special_views_of_mammograms_are_read_and_noted(tmp_path):
    files = [*both_breasts(), file_row("spot", view="ML", spot_mag="1.0", BreastImplantPresent="YES")]
    finding = {f"{key} ".strip().upper(): value for key, value in finding_row(" S ", " L ", " 3.0 ").items()}
    finding["ETHNICITY_DESC"] = finding.pop("RACE_DESC")
    root = write_fake_embed(tmp_path, files, [finding])
    found = {record.id.rpartition("/")[2]: record for record in records(root, "embed")}
    assert [found[name].labels[code] for name, code in (("left.dcm", "BI-RADS 4"), ("spot.dcm", "Density C"))] == [1, 1]
    assert found["right.dcm"].labels["BI-RADS 1"] == 1, "the silent breast of a bilateral exam is negative"
    notes = " ".join(check(root, CheckOptions(inspect=0), dataset="embed").notes)
    assert "implied-negative: 1 image has" in notes
    assert "1 compressed or magnified view, and ML 1" in notes
    assert "1 image shows an implant; it is kept" in notes


def test_the_digest_of_a_table_is_recorded(own):
    digests = [check(own({"a.png": None}, [f"a.png,{code}"])).sources["manifest.csv"] for code in (1, 1, 0)]
    assert digests[0] == digests[1] != digests[2]


# Reports


def openi(root, change=lambda text: text):
    file = write_fake_openi(root) / "ecgen-radiology" / "2.xml"
    file.write_text(change(file.read_text()))
    return check(root, dataset="iu-xray").faults


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda text: text[:200], "1 file is damaged XML, such as 2.xml"),
        (lambda text: text.replace("?>", '?><!DOCTYPE e [<!ENTITY a "ha">]>', 1), "1 file declares XML entities"),
        (lambda text: text.replace("2_IM-0002-1001", "1_IM-0001-1001"), "1 image is in two reports"),
    ],
)
def test_damaged_or_hostile_xml_reports_are_reported_by_file(tmp_path, change, told):
    assert openi(tmp_path / "sound") == ()
    (fault,) = openi(tmp_path / "torn", change)
    assert told in fault


def test_reports_of_another_release_match_nothing_and_stop(tmp_path):
    root = write_fake_mimic(tmp_path, reports="")
    write_sectioned(root / "mimic_cxr_sectioned.csv", [odd_studies()[0]._replace(study="1")])
    (fault,) = check(root, dataset="mimic").faults
    assert "names 1 study, none of which is among the 6 of the images" in fault


def test_empty_and_one_word_reports_are_counted_and_dropped_if_set(own):
    lines = ["a.png,No effusion.", "b.png,", "c.png,Normal.", "d.png,___ XXXX", "e.png,Clear lungs."]
    root = own({f"{name}.png": None for name in "abcde"}, lines, header="image,report")
    assert len(records(root)) == 5
    left = {left.reason: left.count for left in check(root, missing_report="drop").excluded_rows}
    assert left == {"no-report": 1, "no-text": 2}
    root = own({}, ["a.png,1,", "b.png,0, "], header="image,Edema,report")
    (fault,) = check(root, missing_report="drop").faults
    assert "none of 2 images of manifest has a report that can be read" in fault


def test_every_planted_fault_is_reported_once_with_an_example_and_the_remedy(tmp_path):
    """A dozen kinds in one table: what `cleft data check` is for."""
    good = [f"images/g{number}.png,g{number},{number % 2}," for number in range(120)]
    planted = [
        "images/short.png,p",
        "images/label.png,p,yes,",
        "images/text.png,p,1,",
        "../out.png,p,1,",
        ",p,1,",
        "images/nobody.png,,1,",
        "images/g3.png,g3,0,",
        "images/gone.png,p,1,",
        "images/cut.png,q,1,",
        "images/flat.png,q,1,",
        "images/web.png,q,1,",
        "images/colour.png,q,1,",
        "images/g5.png,g5,1,",
    ]
    root = write_fake_manifest(tmp_path, [*good, *planted], header="image,patient,Edema,Fracture")
    for number in range(120):
        (root / f"images/g{number}.png").write_bytes(stored(scene(number)))
    for name, data in {
        "cut": stored()[:700],
        "flat": stored(np.zeros((80, 64), np.uint8)),
        "web": b"<html>",
        "colour": stored(np.stack([scene(), 255 - scene(), scene(2)], 2)),
    }.items():
        (root / f"images/{name}.png").write_bytes(data)
    (root / "images/gone.png").unlink()
    (root / "images/extra.png").write_bytes(stored())
    (root / "images/.DS_Store").write_bytes(b"x")
    lines = check_dataset(DataConfig(dataset="manifest", root=root, max_invalid=0.005), IMAGES, ALL).lines
    for kind, example, remedy in (
        ("2 cells where the header has 4", "line 122", "fix the commas"),
        ("column 'Edema' holds 'yes'", "line 123", "allowed are 1, 0, -1 and empty"),
        ("image '../out.png' leaves", "line 125", "write paths below data.root"),
        ("column 'image' is empty", "line 126", "fill in the path"),
        ("column 'patient' is empty", "line 127", "fill in a patient"),
        ("two rows of the same image disagree", "lines 5, 128", "keep the correct row"),
        ("is not on disk", "images/gone.png", "complete the download"),
        ("decoded images cannot be used", "4 of ", "fix these files"),
        ("cannot be decoded, truncated", "images/cut.png", "copy the file again"),
        ("cannot be decoded, constant", "images/flat.png", "every pixel has the value 0"),
        ("cannot be decoded, format", "images/web.png", "content"),
        ("cannot be decoded, colour", "images/colour.png", "convert it to grayscale"),
        ("left out, duplicate", "line 134", ""),
        ("files that no row names, .png", "extra.png", ""),
        ("system and temporary files", ".DS_Store", "ignored"),
    ):
        told = [line for line in lines if kind in line]
        assert len(told) == 1, kind
        assert example in told[0]
        assert remedy in told[0]
    assert len(lines) < 60
