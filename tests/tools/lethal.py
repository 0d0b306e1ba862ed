"""Work that ends the process which does it; found by name in a spawned child."""

import ctypes
import os
import signal
import time

from cleft.data.pixels.decoding import prepare_file


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
    elif deed == "allocate":
        return len(bytearray(2**28))
    elif deed.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, deed))
    elif deed == "pid":
        return os.getpid()
    return item


def prepare_or_die(path, config, known):
    """Prepares a file like the real thing, but a file whose name is a deed is the end of it."""
    deed = path.stem.rstrip("0123456789")
    if deed:
        _deed(deed, path)
    return prepare_file(path, config, known)
