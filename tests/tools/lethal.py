"""Work that ends the process which does it; found by name in a spawned child."""

import ctypes
import importlib
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np


class Panic(BaseException):
    """What a decoder written in Rust raises."""


def do(item):
    """Does what an item says: `<deed>` or `<deed>:<file>`, where the file makes it a deed done once."""
    deed, _, once = str(item).partition(":")
    if once:
        try:
            os.close(os.open(once, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return item
    return _deed(deed, item)


def _deed(deed, item):
    if deed == "segfault":
        ctypes.string_at(0)
    elif deed == "abort":
        os.abort()
    elif deed == "exit":
        os._exit(7)
    elif deed == "loop":
        while True:
            pass
    elif deed == "sleep":
        time.sleep(0.5)
    elif deed == "panic":
        raise Panic("index out of bounds")
    elif deed == "raise":
        raise TypeError("unexpected")
    elif deed == "print":
        os.write(2, b"what a header says")
        print("what a header says", flush=True)
    elif deed == "torch":
        importlib.import_module("cleft.data.images.decode_pool")
        importlib.import_module("cleft.data.images.dicom")
        return "torch" in sys.modules
    elif deed == "cwd":
        return os.getcwd()
    elif deed == "allocate":
        return len(bytearray(2**28))
    elif deed.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, deed))
    elif deed == "pid":
        return os.getpid()
    return item


def prepare_or_die(path, config, known):
    """Prepares a file like the real thing, but a file whose name is a deed is the end of it."""
    from cleft.data.images.decode_pool import prepare_file  # Which most users of this module need not wait for.

    deed = Path(path).stem.rstrip("0123456789")
    if deed:
        _deed(deed, path)
    return prepare_file(Path(path), config, known)[1:]


def array_of(size):
    """Arrays whose values tell how large the first is: bytes, a transposed one, and one that is no row of bytes."""
    rng = np.random.default_rng(size)
    return rng.integers(0, 256, size, dtype=np.uint8), rng.random((3, 5)).T, rng.integers(0, 9, (size % 7, 2))
