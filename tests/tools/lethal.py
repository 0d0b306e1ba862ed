"""Functions that crash, hang or exhaust the child process that runs them."""

import ctypes
import importlib
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np


class Panic(BaseException):
    """The exception of a decoder written in Rust."""


def do(item):
    """Runs the action of an item: `<action>`, or `<action>:<file>` to run it once only."""
    action, _, once = str(item).partition(":")
    if once:
        try:
            os.close(os.open(once, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return item
    return _action(action, item)


def _action(action, item):
    if action == "segfault":
        ctypes.string_at(0)
    elif action == "abort":
        os.abort()
    elif action == "exit":
        os._exit(7)
    elif action == "loop":
        while True:
            pass
    elif action == "sleep":
        time.sleep(0.5)
    elif action == "panic":
        raise Panic("index out of bounds")
    elif action == "raise":
        raise TypeError("unexpected")
    elif action == "print":
        os.write(2, b"the content of a header")
        print("the content of a header", flush=True)
    elif action == "torch":
        importlib.import_module("cleft.data.images.decode_pool")
        importlib.import_module("cleft.data.images.dicom")
        return "torch" in sys.modules
    elif action == "cwd":
        return os.getcwd()
    elif action == "allocate":
        return len(bytearray(2**28))
    elif action.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, action))
    elif action == "pid":
        return os.getpid()
    return item


def prepare_or_die(path, config, skip):
    """Preprocesses a file; a file named after an action runs the action first."""
    from cleft.data.images.decode_pool import prepare_file  # slow import that few tests need

    action = Path(path).stem.rstrip("0123456789")
    if action:
        _action(action, path)
    return prepare_file(Path(path), config, skip)[1:]


def array_of(size):
    """Returns arrays that depend on `size`: bytes, a transposed one, and one that is not contiguous bytes."""
    rng = np.random.default_rng(size)
    return rng.integers(0, 256, size, dtype=np.uint8), rng.random((3, 5)).T, rng.integers(0, 9, (size % 7, 2))
