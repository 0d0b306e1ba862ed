"""`cleft data prepare` through the front door: stopped anywhere, two at once, and what it says of bad images."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from tests.fakes.dicom import write_dicom

from cleft.cli import main
from cleft.config import load_settings
from cleft.data import read_dataset
from cleft.data.images import decode_pool
from cleft.data.images.cache import PrepareOptions, obtain_images, prepare_images

IMAGES = 120


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    """A table of one's own with images of noise."""
    root = tmp_path_factory.mktemp("drawings")
    rng = np.random.default_rng(0)
    lines = ["image,patient,caption"]
    for number in range(IMAGES):
        Image.fromarray(rng.integers(0, 256, (40, 36), dtype=np.uint8)).save(root / f"{number}.png")
        lines.append(f"{number}.png,{number},noise")
    (root / "manifest.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def words(drawings, tmp_path):
    return _words(drawings, tmp_path / "cache")


def _words(root, cache):
    place = ["--data.dataset=manifest", f"--data.root={root}", f"--data.cache={cache}"]
    return ["data", "prepare", "tiny", "--jobs", "2", *place]


def start(words):
    command = [sys.executable, "-m", "tests.tools.slow_prepare", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def parts(cache):
    return {path.name: path.read_bytes() for path in cache.rglob("part-*") if path.suffix != ".tmp"}


def wait_for_part(cache):
    deadline = time.monotonic() + 120
    while not list(cache.rglob("part-*.json")):
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture(scope="module")
def whole(drawings, tmp_path_factory):
    """The parts that a run leaves which nobody disturbed."""
    settings = load_settings("tiny", _words(drawings, tmp_path_factory.mktemp("whole"))[5:])
    images = prepare_images(
        read_dataset(settings.data).records, settings.images, settings.data.cache, PrepareOptions(part_rows=20)
    )
    return parts(images.folder)


@pytest.mark.parametrize(
    ("number", "group", "code", "said"),
    [
        (signal.SIGINT, True, 130, "error: stopped by Ctrl-C\n"),
        (signal.SIGTERM, False, 143, "error: stopped by SIGTERM; repeat the command to start again\n"),
        # At every call of the system, and what becomes of the children: tests/data.
        pytest.param(signal.SIGKILL, False, -9, "", marks=pytest.mark.slow),
    ],
)
def test_a3_a4_stopped_anywhere_it_resumes_and_ends_in_the_same_bytes(
    words, tmp_path, whole, monkeypatch, capsys, number, group, code, said
):
    cache = tmp_path / "cache"
    for _ in range(5):  # A busy machine may be late with the signal: the work is done by then, and begun anew.
        with start(words) as run:
            wait_for_part(cache)
            (os.killpg if group else os.kill)(run.pid, number)
            output = run.communicate()
        if run.returncode:
            break
        shutil.rmtree(cache)
    assert (output, run.returncode) == (("settings: tiny\n", said), code)
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("part-*.json")}
    assert 20 <= 20 * len(before) < IMAGES
    monkeypatch.setitem(PrepareOptions.__init__.__kwdefaults__, "part_rows", 20)
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert (
        f"{20 * len(before)} images are prepared already; {IMAGES - 20 * len(before)} are new, changed or moved\n"
        in err
    )
    assert f"{IMAGES} images are prepared, 0 cannot be used" in out
    assert parts(cache) == whole
    assert all(path.stat().st_mtime_ns == time_ for path, time_ in before.items())
    assert not list(cache.rglob("*.tmp"))


def test_f3_concurrent_prepares_share_the_work(words, tmp_path, whole):
    with start(words) as one, start(words) as two:
        said = [run.communicate() for run in (one, two)]
    assert [run.returncode for run in (one, two)] == [0, 0]
    assert parts(tmp_path / "cache") == whole
    assert sum("another process is preparing images" in err for _, err in said) == 1
    assert all(f"{IMAGES} images are prepared" in out for out, _ in said)


def test_rejected_images_are_listed(drawings, tmp_path, capsys):
    root = shutil.copytree(drawings, tmp_path / "data")
    for number in range(5):
        (root / f"{number}.png").write_bytes(b"GIF89a")
    (root / "7.png").unlink()
    words = _words(root, tmp_path / "cache")
    assert main([*words, "--data.max_invalid=0.5"]) == 0
    out = capsys.readouterr().out
    assert "114 images are prepared, 5 cannot be used" in out
    assert re.search(r"\n  format +5\n    .*/0\.png: format \(.*\n    .*/1\.png: .*\n    .*/2\.png: .*\n    …\n", out)
    assert "rows of the table left out, missing: 1\n" in out
    listed = "id,reason\n" + "".join(f"{number}.png,format\n" for number in range(5))
    assert (tmp_path / "cache" / "rejects-manifest.csv").read_text() == listed
    assert main([*words, "--rejects", str(tmp_path / "mine.csv")]) == 3
    assert "raise data.max_invalid" in capsys.readouterr().err
    assert (tmp_path / "mine.csv").read_text() == listed


def test_assumptions_about_dicom_headers_are_counted(tmp_path, capsys):
    scene = np.random.default_rng(0).integers(0, 4096, (40, 36), dtype=np.uint16)
    for number in range(3):
        write_dicom(tmp_path / f"{number}.dcm", scene + number, bits=13, RescaleSlope="2")
    lines = ["image,patient,caption", *(f"{number}.dcm,{number},noise" for number in range(3))]
    (tmp_path / "manifest.csv").write_text("\n".join(lines) + "\n")
    for _ in range(2):
        assert main(_words(tmp_path, tmp_path / "cache")) == 0
        out = capsys.readouterr().out
        assert (
            "3 images declare a rescale slope without an intercept, or the reverse; the missing value is read as" in out
        )


def test_folder_of_the_reject_list_is_created(words, tmp_path):
    assert main([*words, "--rejects", str(tmp_path / "absent" / "rejects.csv")]) == 0
    assert (tmp_path / "absent" / "rejects.csv").read_text() == "id,reason\n"


def test_all_cores_decode_by_default(words, monkeypatch):
    asked = []

    def spy(records, images, folder, options):
        asked.append(options.jobs)
        raise KeyboardInterrupt

    monkeypatch.setattr("cleft.data.images.cache.prepare_images", spy)
    monkeypatch.setattr(decode_pool, "usable_cores", lambda: 24)
    without = [word for word in words if word not in ("--jobs", "2")]
    main(words)
    main(without)
    monkeypatch.setattr(decode_pool, "usable_cores", lambda: 200)
    main(without)
    assert asked == [2, 24, 64]


def test_command_in_the_message_prepares_missing_images(drawings, tmp_path, capsys):
    place = ["--data.dataset=manifest", f"--data.root={drawings}", f"--data.cache={tmp_path / 'cache'}"]
    run = ["pretrain", "tiny", "--run", str(tmp_path / "run"), *place, "--data.prepare=required"]
    assert main(["data", "prepare", "tiny", *place, "--images.stored_size=128", "--jobs=1"]) == 0
    assert main(run) == 3
    said = capsys.readouterr().err
    assert f"{tmp_path / 'cache'}" in said
    assert "images.stored_size 128, wanted 64" in said
    assert not list((tmp_path / "run").glob("*.safetensors"))
    command = shlex.split(re.search(r"run (cleft data prepare .*)", said)[1])
    assert main([*command[1:], "--jobs=1"]) == 0
    settings = load_settings("tiny", run[4:])
    assert len(obtain_images(read_dataset(settings.data).records, settings.data, settings.images)) == IMAGES
