import errno
import json
import os
import pickle
import shutil
import signal
import time
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image
from tests.fakes.dicom import write_dicom
from tests.tools.forks import dies_at_call, forked
from tests.tools.lethal import prepare_or_die
from tests.tools.replacing import replace_keeping_size_and_time

from cleft.config import DataConfig, ImagesConfig
from cleft.data import read_dataset
from cleft.data.images import cache, cache_files, decode, decode_pool
from cleft.data.images.cache import (
    PrepareOptions,
    cache_folder,
    find_images,
    obtain_images,
    preparation_digest,
    prepare_images,
)
from cleft.data.images.decode import read_gray
from cleft.data.images.preprocess import prepare_image
from cleft.errors import DataError, ResourceError
from cleft.files import Output, file_key
from cleft.types import Record

CONFIG = ImagesConfig(stored_size=32, size=28)


def write_images(root, count, seed=0):
    """Noise, told apart by its seed."""
    rng = np.random.default_rng(seed)
    root.mkdir(exist_ok=True, parents=True)
    records = []
    for number in range(count):
        path = root / f"{number}.png"
        Image.fromarray(rng.integers(0, 256, (40, 36), dtype=np.uint8)).save(path)
        records.append(Record(id=f"{number}.png", image=path, labels={}, patient=str(number)))
    return records


@pytest.fixture
def records(tmp_path):
    return write_images(tmp_path / "images", 7)


@pytest.fixture
def prepare(tmp_path):
    """Prepares in parts of three images, and tells how many files were decoded."""

    def prepare(records, config=CONFIG, folder=tmp_path / "cache", **options):
        return prepare_images(records, config, folder, PrepareOptions(part_rows=3, **options))

    return prepare


def noting(note):
    """`prepare_pool`, which calls `note` with each file whose pixels were made or refused."""

    @contextmanager
    def spy(*arguments):
        with decode_pool.prepare_pool(*arguments) as prepare:

            def noted(paths):
                for outcome in prepare(paths):
                    if outcome.pixels is not None or (outcome.reason and outcome.source):
                        note(outcome.path)
                    yield outcome

            yield noted

    return spy


@pytest.fixture
def decoded(monkeypatch):
    """Names of the files whose pixels were made or refused, in order."""
    names = []
    monkeypatch.setattr("cleft.data.images.cache.prepare_pool", noting(lambda path: names.append(path.name)))
    return names


def right(images, records):
    return all(
        np.array_equal(images.pixels(record.id), prepare_image(read_gray(record.image), CONFIG)) for record in records
    )


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("part-*"))}


def test_prepared_pixels_are_those_of_the_files(records, prepare):
    images = prepare(records)
    assert len(images) == 7
    assert right(images, records)
    assert not images.pixels("0.png").flags.writeable


@pytest.mark.parametrize("jobs", [0, 1, 2])
@pytest.mark.parametrize("recipe", ["pad", "released"])
def test_every_format_is_prepared_as_by_hand_whatever_the_number_of_processes(tmp_path, jobs, recipe):
    rng = np.random.default_rng(1)
    scene = cv2.GaussianBlur(rng.integers(0, 4096, (90, 70)).astype(np.float32), (9, 9), 3)
    deep = cv2.normalize(scene, None, 300, 3800, cv2.NORM_MINMAX).astype(np.uint16)
    shallow = (deep // 16).astype(np.uint8)
    for name, pixels in (("8.png", shallow), ("16.png", deep), ("75.jpg", shallow), ("odd.jpg", shallow[:71, 3:])):
        Image.fromarray(pixels).save(tmp_path / name)
    records = [
        Record(id=name, image=tmp_path / name, labels={}, patient=name)
        for name in ("8.png", "16.png", "75.jpg", "odd.jpg")
    ]
    config = ImagesConfig(stored_size=48, size=32, recipe=recipe)
    images = prepare_images(records, config, tmp_path / "cache", PrepareOptions(jobs=jobs))
    for record in records:
        by_hand = prepare_image(decode.decode_gray(record.image.read_bytes(), record.image), config)
        assert np.array_equal(images.pixels(record.id), by_hand)
    with Image.open(tmp_path / "16.png") as file:
        assert file.mode.startswith("I;16")


def test_what_is_prepared_is_not_decoded_again(records, prepare, decoded):
    first = prepare(records[:5])
    again = prepare(records)
    assert decoded == [f"{number}.png" for number in range(7)]
    assert right(again, records)
    assert first.digest != again.digest
    assert prepare(records).digest == again.digest


def test_f8_rows_are_keyed_by_content_not_by_name(tmp_path, prepare, decoded):
    one, other = write_images(tmp_path / "a", 3, seed=1), write_images(tmp_path / "b", 3, seed=2)
    prepare(one)
    assert right(prepare(other), other)
    assert len(decoded) == 6


def test_f2_a_moved_root_finds_its_pixels_again(tmp_path, records, prepare, decoded):
    prepare(records)
    shutil.copytree(tmp_path / "images", tmp_path / "moved", copy_function=shutil.copyfile)
    moved = [replace(record, image=tmp_path / "moved" / record.id) for record in records]
    decoded.clear()
    images = prepare(moved)
    assert right(images, moved)
    assert decoded == []
    files = contents(images.folder)
    prepare(moved)
    assert contents(images.folder) == files


def test_c12_a_changed_file_is_decoded_again_and_a_touched_one_is_not(records, prepare, decoded):
    prepare(records)
    decoded.clear()
    Image.fromarray(np.arange(1600, dtype=np.uint16).reshape(40, 40).astype(np.uint8)).save(records[2].image)
    os.utime(records[4].image, ns=(1, 1))
    images = prepare(records)
    assert decoded == ["2.png"]
    assert right(images, records)


def test_the_same_content_twice_is_stored_once(tmp_path, records, prepare):
    shutil.copy(records[0].image, tmp_path / "twin.png")
    twin = replace(records[0], id="twin", image=tmp_path / "twin.png")
    images = prepare([*records, twin])
    assert np.array_equal(images.pixels("twin"), images.pixels("0.png"))
    assert sum(path.stat().st_size for path in images.folder.glob("*.u8")) == 7 * 32 * 32


@pytest.mark.parametrize("field", [field.name for field in fields(ImagesConfig)])
def test_f2_the_key_depends_on_exactly_the_settings_that_decide_a_pixel(field):
    other = {
        "recipe": "released",
        "intensity": "percentile",
        "dicom": "released",
        "window": 1,
        "frame": "middle",
        "stored_size": 300,
        "size": 200,
        "mean": (0.4, 0.4, 0.4),
        "std": (0.2, 0.2, 0.2),
        "augment": replace(ImagesConfig().augment, jitter=0.1),
    }[field]
    changed = preparation_digest(replace(ImagesConfig(), **{field: other})) != preparation_digest(ImagesConfig())
    assert changed == (field in {"recipe", "intensity", "dicom", "window", "frame", "stored_size"})


def test_f2_the_key_depends_on_decoders_and_schema(monkeypatch):
    before = preparation_digest(CONFIG)
    with monkeypatch.context() as patch:
        patch.setattr(cache, "SCHEMA", cache.SCHEMA + 1)
        assert preparation_digest(CONFIG) != before
    for name in cache_files.decoder_versions():
        with monkeypatch.context() as patch:
            patch.setattr(cache, "decoder_versions", lambda name=name: {**cache_files.decoder_versions(), name: "0"})
            assert preparation_digest(CONFIG) != before
    monkeypatch.setattr("cv2.__version__", "0")
    assert preparation_digest(CONFIG) != before


def test_f2_order_and_number_of_processes_change_no_pixel_and_no_digest(records, prepare, tmp_path):
    one = prepare(records)
    other = prepare(records[::-1], folder=tmp_path / "other")
    assert one.digest == other.digest
    assert right(other, records)


def test_several_processes_write_the_same_cache(records, prepare, tmp_path):
    one, two = prepare(records), prepare(records, folder=tmp_path / "two", jobs=2)
    assert contents(one.folder) == contents(two.folder)


@pytest.mark.parametrize("suffix", [".u8", ".json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "longer", "gone"])
def test_f1_a_damaged_part_is_rebuilt(records, prepare, decoded, suffix, damage):
    images = prepare(records)
    whole = contents(images.folder)
    decoded.clear()
    victim = sorted(images.folder.glob(f"*{suffix}"))[0]
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    changed = {"flip": bytes(data), "cut": bytes(data[:-1]), "empty": b"", "longer": bytes(data) + b"0", "gone": None}
    if changed[damage] is None:
        victim.unlink()
    else:
        victim.write_bytes(changed[damage])
    again = prepare(records)
    assert right(again, records)
    assert len(decoded) in (1, 3)
    assert again.rebuilt == (0 if (suffix, damage) == (".json", "gone") else 1)
    assert contents(images.folder) == whole


def test_f1_bytes_that_change_under_a_reader_are_refused(records, prepare):
    images = prepare(records)
    images.pixels("0.png")
    for file in images.folder.glob("*.u8"):
        with file.open("r+b") as bytes_:
            bytes_.write(b"\0" * file.stat().st_size)
    with pytest.raises(DataError, match="differs from its checksum") as caught:
        images.pixels("0.png")
    assert caught.value.reason == "cache"


def test_f5_planted_links_and_foreign_indices_are_ignored(tmp_path, records, prepare):
    folder = prepare(records).folder
    victim = sorted(folder.glob("*.u8"))[0]
    victim.rename(tmp_path / "outside.u8")
    victim.symlink_to(tmp_path / "outside.u8")
    promise = json.dumps({"rows": 3, "sources": None}).encode()
    (folder / f"{cache_files._name(promise)}.json").write_bytes(promise)
    images = prepare(records)
    assert images.rebuilt == 2
    assert not any(path.is_symlink() for path in folder.iterdir())
    assert right(images, records)


def test_f4_killed_at_any_call_it_resumes_and_ends_in_the_same_bytes(tmp_path, records, prepare):
    whole = contents(prepare(records).folder)

    @contextmanager
    def here(config, known, jobs):
        yield partial(map, partial(decode_pool.prepare_file, config=config, skip=known))

    def fill(folder, call):
        cache.prepare_pool = here  # Each fork would begin a process of its own.
        with dies_at_call(call, ("fsync", "replace", "unlink")):
            prepare(records, folder=folder)

    for call in range(100):
        folder = tmp_path / f"killed-{call}"
        status = forked(lambda folder=folder, call=call: fill(folder, call), quiet=True)
        images = prepare(records, folder=folder)
        assert right(images, records)
        assert contents(images.folder) == whole
        if status == 0:
            break
        assert status == -signal.SIGKILL
    # Per part: two files, each on disk before its name; the folder; tidying up. Before them the settings.
    assert call == 3 + 3 * 6


def test_f4_finished_parts_are_not_repeated_after_a_kill(tmp_path, records, prepare, decoded):
    def fill():
        with dies_at_call(7, ("fsync", "replace")):  # In the second of three parts.
            prepare(records)

    assert forked(fill, quiet=True) == -signal.SIGKILL
    prepare(records)
    assert decoded == ["3.png", "4.png", "5.png", "6.png"]


def test_f3_four_processes_share_the_work(tmp_path, records, prepare):
    log = tmp_path / "decoded"

    def write(path):
        with log.open("a") as file:
            file.write(f"{path.name}\n")
        time.sleep(0.02)

    def fill():
        cache.prepare_pool = noting(write)
        assert right(prepare(records), records)

    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            os._exit(forked(fill))
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4
    assert sorted(log.read_text().split()) == sorted(record.id for record in records)


def test_f6_a_complete_cache_is_only_read(records, prepare, monkeypatch):
    prepare(records)

    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert right(prepare(records), records)
    with pytest.raises(ResourceError, match=r"Read-only file system.*set data\.cache"):
        prepare(records, config=replace(CONFIG, stored_size=40))


def test_f6_too_little_disk_space_is_refused_before_work(records, prepare, monkeypatch, decoded):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=7_000))
    with pytest.raises(ResourceError, match=r"7,168 bytes, 7,000 are free"):
        prepare(records)
    assert decoded == []


@pytest.mark.parametrize("call", range(4))
def test_f6_a_full_disk_leaves_no_partial_file(records, prepare, monkeypatch, call, tmp_path):
    calls = iter(range(100))
    fsync = os.fsync

    def full(handle):
        if next(calls) == call:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ResourceError, match="No space left on device"):
            prepare(records)
    images = prepare(records)
    assert images.rebuilt == 0
    assert right(images, records)
    assert not list((tmp_path / "cache").rglob("*.tmp"))


def test_the_cache_is_readable_by_its_owner_only(records, prepare):
    folder = prepare(records).folder
    assert folder.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o77 == 0 for path in folder.glob("part-*"))


def test_rejected_images_are_named_with_their_reasons(records, prepare, decoded):
    records[1].image.unlink()
    records[3].image.write_bytes(records[3].image.read_bytes()[:-40])
    images = prepare(records, max_invalid=0.3)
    assert images.rejected == {"1.png": "missing", "3.png": "truncated"}
    assert [record.id for record in images.usable(records)] == ["0.png", "2.png", "4.png", "5.png", "6.png"]
    assert "1.png" not in images
    decoded.clear()
    assert prepare(records, max_invalid=0.3).rejected == images.rejected
    assert decoded == []


def test_c13_too_many_bad_images_stop_with_a_table_by_reason(records, prepare):
    for record in records[:4]:
        record.image.write_bytes(b"<html>")
    records[4].image.unlink()
    with pytest.raises(DataError) as caught:
        prepare(records, max_invalid=0.5)
    message = str(caught.value)
    assert "4 of 7 images cannot be used" in message
    assert "format             3" in message
    assert "missing            1" in message
    assert "raise data.max_invalid" in message
    assert caught.value.reason == "format"


def test_a_share_equal_to_the_limit_passes(records, prepare):
    records[0].image.unlink()
    assert len(prepare(records, max_invalid=1 / 7)) == 6
    with pytest.raises(DataError, match="1 of 7"):
        prepare(records, max_invalid=0.14)


def test_work_done_before_the_stop_is_kept(records, prepare, decoded):
    for record in records[3:]:
        record.image.write_bytes(b"GIF89a")
    with pytest.raises(DataError):
        prepare(records)
    decoded.clear()
    assert right(prepare(records, max_invalid=1), records[:3])
    assert not {"0.png", "1.png", "2.png"} & set(decoded)


def test_pixel_rows_are_pickled_without_pixels(records, prepare):
    images = prepare(records)
    images.pixels("3.png")
    data = pickle.dumps(images.rows)
    assert len(data) < 2_000
    assert np.array_equal(pickle.loads(data)[3], images.pixels("3.png"))  # noqa: S301 our own bytes


def test_rejected_images_are_written_with_id_and_reason_only(records, prepare, tmp_path):
    records[1].image.unlink()
    records[3].image.write_bytes(b"GIF89a")
    file = tmp_path / "lists" / "rejects.csv"
    output = Output(file, "--rejects", mode=0o600)
    images = prepare(records, max_invalid=0.3, rejects=output)
    assert file.read_text() == "id,reason\n1.png,missing\n3.png,format\n"
    assert file.stat().st_mode & 0o777 == 0o600
    assert images.messages["3.png"].startswith(f"{records[3].image}: format")
    records[0].image.write_bytes(b"GIF89a")
    with pytest.raises(DataError, match="cannot be used"):
        prepare(records, max_invalid=0.3, rejects=output)
    assert file.read_text().count("\n") == 4
    prepare(records[4:], rejects=output)
    assert file.read_text() == "id,reason\n"


def test_f3_without_locks_a_second_writer_keeps_the_drafts_of_the_first(records, prepare, tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("cleft.data.images.cache_files.lock_file", no_locks)
    prepare(records[:3])
    (folder,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    others = [folder / "part-other.tmp", folder / "part-0123456789abcdef.u8"]
    for path in others:
        path.write_bytes(b"being written")
    assert right(prepare(records), records)
    assert all(path.exists() for path in others)
    monkeypatch.undo()
    prepare(write_images(tmp_path / "more", 1, seed=9))
    assert not any(path.exists() for path in others)


def test_the_cache_contains_its_settings(records, prepare):
    made = json.loads((prepare(records).folder / "settings.json").read_text())
    assert made["stored_size"] == 32
    assert made["recipe"] == "pad"
    assert made["decoders"]["opencv"]


def test_decoding_again_logs_the_setting_that_differs(records, prepare, caplog):
    prepare(records)
    prepare(records, config=replace(CONFIG, recipe="released", stored_size=48))
    caplog.clear()
    with caplog.at_level("INFO", "cleft"):
        prepare(records, config=replace(CONFIG, stored_size=40))
    assert caplog.messages == ["images are decoded again: the existing cache has images.stored_size 32, wanted 40"]


def test_resuming_logs_how_much_is_done(records, prepare, caplog):
    prepare(records[:3])
    with caplog.at_level("INFO", "cleft"):
        prepare(records)
    assert caplog.messages == ["3 images are prepared already; 4 are new, changed or moved"]


def test_c11_an_image_that_crashes_the_decoder_is_rejected_until_it_is_retried(records, prepare, monkeypatch, decoded):
    for number, deed in ((2, "segfault"), (5, "loop")):
        records[number] = replace(
            records[number], image=records[number].image.rename(f"{records[0].image.parent}/{deed}.png")
        )
    with monkeypatch.context() as patch:
        patch.setattr("cleft.data.images.decode_pool._prepare_file_in_child", prepare_or_die)
        patch.setattr("cleft.data.images.decode_pool.Limits.__new__.__defaults__", (0.2, 2**31, 600.0))
        images = prepare(records, jobs=2, max_invalid=0.5)
    assert images.rejected == {"2.png": "crashed", "5.png": "timeout"}
    assert "segfault.png: crashed (it crashes the decoder (SIGSEGV); tried twice)" in images.messages["2.png"]
    assert right(images, images.usable(records))
    decoded.clear()
    assert prepare(records, max_invalid=0.5).rejected == images.rejected
    assert decoded == []
    tried = prepare(records, max_invalid=0.5, retry=True)
    assert decoded == ["segfault.png", "loop.png"]
    assert not tried.rejected
    assert right(tried, records)
    assert right(prepare(records), records)


AHEAD = DataConfig(prepare="required")


def test_required_uses_prepared_images_and_writes_nothing(records, prepare, tmp_path, decoded):
    records[5].image.write_bytes(b"GIF89a")
    made = prepare(records, max_invalid=0.2)
    before = {path: path.stat().st_mtime_ns for path in made.folder.rglob("*")}
    decoded.clear()
    images = obtain_images(records, replace(AHEAD, cache=tmp_path / "cache", max_invalid=0.2), CONFIG)
    assert (images.digest, images.rejected) == (made.digest, made.rejected)
    assert right(images, images.usable(records))
    assert decoded == []
    assert {path: path.stat().st_mtime_ns for path in made.folder.rglob("*")} == before


def test_required_refuses_another_preparation_with_its_differences_and_the_command(records, prepare, tmp_path, decoded):
    prepare(records)
    decoded.clear()
    data = replace(AHEAD, cache=tmp_path / "cache", root=tmp_path / "images")
    other = replace(CONFIG, stored_size=48, intensity="percentile")
    with pytest.raises(DataError) as caught:
        obtain_images(records, data, other)
    said = str(caught.value)
    assert caught.value.reason == "unprepared"
    assert "all 7 images are not prepared" in said
    assert "images.intensity min-max, wanted percentile, images.stored_size 32, wanted 48" in said
    assert f"run cleft data prepare cleft-paper --data.root={tmp_path / 'images'}" in said
    assert decoded == []
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [preparation_digest(CONFIG)]


@pytest.mark.parametrize("lack", ["new", "changed", "damaged"])
def test_required_refuses_a_cache_that_lacks_an_image(records, prepare, tmp_path, lack):
    folder = prepare(records[:-1] if lack == "new" else records).folder
    if lack == "changed":
        records[6].image.write_bytes(records[6].image.read_bytes() + b" ")
    if lack == "damaged":
        sorted(folder.glob("*.u8"))[0].write_bytes(b"")
    with pytest.raises(
        DataError, match=r"of 7 images (is|are) not prepared in the present state, the first is \d\.png"
    ) as got:
        find_images(records, replace(AHEAD, cache=tmp_path / "cache"), CONFIG)
    assert "other settings" not in str(got.value)


def test_as_needed_decodes_with_the_workers_of_the_run(records, tmp_path):
    images = obtain_images(records, DataConfig(cache=tmp_path / "cache", workers=1), CONFIG)
    assert right(images, records)


def test_no_images_need_no_work(prepare):
    assert len(prepare([])) == 0


def test_the_cache_is_in_the_folder_of_the_settings(tmp_path):
    assert cache_folder(DataConfig(cache=tmp_path)) == tmp_path
    assert cache_folder(DataConfig()) == Path.home() / ".cache" / "cleft"


def pad_files(records, size=4096, time_ns=10**18):
    """Give all files the same size and modification time; what follows a PNG's end is ignored."""
    for record in records:
        data = record.image.read_bytes()
        record.image.write_bytes(data + b" " * (size - len(data)))
        os.utime(record.image, ns=(time_ns, time_ns))


@pytest.mark.parametrize("prepare_mode", ["auto", "required"])
def test_two_projects_with_the_same_relative_root_share_no_pixels(tmp_path, monkeypatch, prepare_mode):
    cache = tmp_path / "cache"
    for project, seed in (("one", 1), ("two", 2)):
        root = tmp_path / project / "data"
        pad_files(write_images(root, 12, seed=seed))
        rows = "".join(f"{number}.png,text {number}\n" for number in range(12))
        (root / "manifest.csv").write_text("path,caption\n" + rows)
        config = DataConfig(dataset="manifest", root=Path("data"), cache=cache)
        monkeypatch.chdir(tmp_path / project)
        records = read_dataset(config).records
        if prepare_mode == "required" and project == "two":
            with pytest.raises(DataError, match="all 12 images are not prepared"):
                obtain_images(records, replace(config, prepare="required"), CONFIG)
        images = prepare_images(records, CONFIG, cache)
        assert len(images) == 12
        assert right(images, records)


@pytest.mark.parametrize("how", ["in place", "renamed over"])
def test_a_file_replaced_with_equal_size_and_time_is_decoded_again(tmp_path, prepare, decoded, how):
    records, others = write_images(tmp_path / "a", 12, seed=1), write_images(tmp_path / "b", 12, seed=2)
    pad_files([*records, *others])
    assert right(prepare(records), records)
    for record, other in zip(records, others, strict=True):
        replace_keeping_size_and_time(record.image, other.image.read_bytes(), how)
    decoded.clear()
    assert right(prepare(records), records)
    assert len(decoded) == 12


def test_a_root_given_through_links_and_dots_is_the_same_root(tmp_path, monkeypatch, prepare, decoded):
    write_images(tmp_path / "images", 3)
    (tmp_path / "images" / "manifest.csv").write_text("path,caption\n0.png,one\n1.png,two\n2.png,three\n")
    (tmp_path / "link").symlink_to("images")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "images")
    for root in ("../images", ".", "../link", "~/link", "../link/../images", str(tmp_path / "images")):
        records = read_dataset(DataConfig(dataset="manifest", root=Path(root))).records
        assert [record.image for record in records] == [tmp_path / "images" / f"{number}.png" for number in range(3)]
        assert right(prepare(records), records)
    assert len(decoded) == 3


def test_a_link_to_another_folder_gives_the_images_of_that_folder(tmp_path, prepare):
    one, two = write_images(tmp_path / "v1", 3, seed=1), write_images(tmp_path / "v2", 3, seed=2)
    pad_files([*one, *two])
    link = tmp_path / "current"
    linked = [replace(record, image=link / record.id) for record in one]
    for version in ("v1", "v2"):
        link.unlink(missing_ok=True)
        link.symlink_to(version)
        assert right(prepare(linked), linked)


@pytest.mark.parametrize("change", ["renamed folder", "hard link", "mode", "touched", "other device"])
def test_the_same_bytes_under_another_identity_are_hashed_and_not_decoded(
    tmp_path, records, prepare, decoded, monkeypatch, change
):
    made = prepare(records)
    if change == "renamed folder":
        (tmp_path / "images").rename(tmp_path / "moved")
        records = [replace(record, image=tmp_path / "moved" / record.id) for record in records]
    for record in records:
        if change == "hard link":
            os.link(record.image, record.image.with_suffix(".twin"))
        if change == "mode":
            record.image.chmod(0o400)
        if change == "touched":
            os.utime(record.image, ns=(1, 1))
    if change == "other device":

        def remounted(path, status=None, folders=None, original=file_key):
            return original(f"/mnt/{path}", status or os.stat(path))

        for module in ("source", "cache_files"):
            monkeypatch.setattr(f"cleft.data.images.{module}.file_key", remounted)
    decoded.clear()
    ahead = find_images(records, replace(AHEAD, cache=tmp_path / "cache"), CONFIG)
    assert (ahead.digest, decoded) == (made.digest, [])
    again = prepare(records)
    assert (again.digest, decoded) == (made.digest, [])
    assert right(again, records)
    files = contents(again.folder)
    prepare(records)
    assert contents(again.folder) == files


def test_a_cache_that_may_only_be_read_serves_moved_files_and_refuses_new_ones(
    tmp_path, records, prepare, decoded, monkeypatch
):
    made = prepare(records)
    (tmp_path / "images").rename(tmp_path / "moved")
    moved = [replace(record, image=tmp_path / "moved" / record.id) for record in records]

    def no_lock(folder):
        raise PermissionError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("cleft.data.images.cache.lock_folder", no_lock)
    before = contents(made.folder)
    decoded.clear()
    images = prepare(moved)
    assert (images.digest, decoded, contents(made.folder)) == (made.digest, [], before)
    assert right(images, moved)
    new = write_images(tmp_path / "more", 2, seed=9)
    with pytest.raises(ResourceError, match="the cache cannot be written"):
        prepare([*moved, replace(new[1], id="new")])


def test_old_file_identities_are_pruned(tmp_path, records, prepare, monkeypatch):
    monkeypatch.setattr("cleft.data.images.cache_files._MOST_IDENTITIES", 2)
    prepare(records)
    sizes = []
    for move in range(5):
        (tmp_path / "images").rename(tmp_path / f"moved{move}")
        records = [replace(record, image=tmp_path / f"moved{move}" / record.id) for record in records]
        images = prepare(records)
        assert right(images, records)
        (tmp_path / f"moved{move}").rename(tmp_path / "images")
        sizes.append(len(list(images.folder.glob("part-*.json"))))
    assert sizes[-1] == sizes[-2] == 3 + 2 * 3
    assert all(path.with_suffix(".u8").is_file() for path in images.folder.glob("part-*.json"))


def test_a_cache_of_an_old_layout_is_rebuilt_with_one_log_line(records, prepare, monkeypatch, caplog):
    caplog.set_level("INFO")
    with monkeypatch.context() as patch:
        patch.setattr(cache, "SCHEMA", 1)
        prepare(records)
    caplog.clear()
    assert right(prepare(records), records)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == f"images are decoded again: the existing cache has schema 1, wanted {cache.SCHEMA}"


def test_notes_of_decoding_are_kept_and_counted(tmp_path, prepare, decoded):
    scene = np.random.default_rng(0).integers(0, 4096, (40, 36), dtype=np.uint16)
    odd = {"half": {"RescaleSlope": "2"}, "again": {"RescaleSlope": "3"}, "shape": {"PresentationLUTShape": "INVERSE"}}
    files = [
        write_dicom(tmp_path / f"{name}.dcm", scene, bits=12, **tags) for name, tags in (*odd.items(), ("plain", {}))
    ]
    records = [Record(id=path.stem, image=path, labels={}, patient=path.stem) for path in files]
    assert prepare(records).notes == {"rescale": 2, "shape": 1}
    assert find_images(records[1:], replace(AHEAD, cache=tmp_path / "cache"), CONFIG).notes == {
        "rescale": 1,
        "shape": 1,
    }
    decoded.clear()
    assert (prepare(records).notes, decoded) == ({"rescale": 2, "shape": 1}, [])
