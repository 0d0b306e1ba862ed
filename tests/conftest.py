"""Shared fixtures: single-threaded torch, no network, a clean logger, the folder of real data."""

import logging
import os
import signal
import socket
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

_USER = tempfile.TemporaryDirectory(prefix="cleft-user-")  # no test reads or writes the secret of the user who runs it
os.environ["CLEFT_USER_DIR"] = _USER.name
torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell has it for what runs in its background
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(os.environ.get("CLEFT_TEST_DATA", Path(__file__).parents[2] / "shared"))
"""Real radiographs, tables and reference values; the environment variable names another folder, or none."""


@pytest.fixture
def shared() -> Path:
    """Folder of real radiographs, real tables and the authors' reference values; skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("the folder of real data and reference values is not beside the checkout")
    return SHARED


@pytest.fixture(autouse=True)
def _quiet_logger():
    """Resets what the command line did to the logger, so that tests do not share handlers."""
    logger = logging.getLogger("cleft")
    logger.handlers[:], logger.level, logger.propagate = [], logging.NOTSET, True
    yield
    logger.handlers[:], logger.level, logger.propagate = [], logging.NOTSET, True


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """Fails any connection that leaves this machine."""
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test tried to reach {address[0]}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
