"""Runs `cleft data prepare` slowly and in small parts, so that a test can interrupt it."""

import time
from pathlib import Path

from cleft.cli import entry
from cleft.data.images import decode_pool
from cleft.data.images.cache import PrepareOptions
from cleft.data.images.decode_pool import prepare_file


def prepare_slowly(path, config, skip):
    time.sleep(0.03)
    return prepare_file(Path(path), config, skip)[1:]


if __name__ == "__main__":
    from tests.tools import slow_prepare  # Under this name children find it.

    decode_pool._prepare_file_in_child = slow_prepare.prepare_slowly
    PrepareOptions.__init__.__kwdefaults__["part_rows"] = 20
    entry()
