"""Child processes that are the ranks of one training, started as by a launcher."""

import logging
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable


def free_port() -> int:
    """Returns a free port."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


def start_ranks(count: int, work: Callable[[], object], output: str | None = None) -> list[int]:
    """Starts `work` once per rank; returns the process ids. `output` is a file for what the ranks print."""
    port = free_port()
    return [_start(rank, count, port, work, output) for rank in range(count)]


def end_of(children: list[int], seconds: float = 120) -> list[int]:
    """Returns the exit codes of all ranks, negative for a signal, None for a rank that was killed at the timeout."""
    codes: list[int | None] = [None] * len(children)
    deadline = time.monotonic() + seconds
    while None in codes and time.monotonic() < deadline:
        for place, child in enumerate(children):
            if codes[place] is None:
                ended, status = os.waitpid(child, os.WNOHANG)
                codes[place] = os.waitstatus_to_exitcode(status) if ended else None
        time.sleep(0.02)
    for place, child in enumerate(children):
        if codes[place] is None:
            os.kill(child, 9)
            os.waitpid(child, 0)
    return codes


def _start(rank: int, count: int, port: int, work: Callable[[], object], output: str | None) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        if output:
            file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(file, 1)
            os.dup2(file, 2)
            sys.stdout = sys.stderr = os.fdopen(file, "w", buffering=1)
            logging.getLogger("cleft").addHandler(logging.StreamHandler(sys.stderr))
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            LOCAL_WORLD_SIZE=str(count),
            WORLD_SIZE=str(count),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
        )
        from lightning.fabric.utilities.rank_zero import rank_zero_only

        rank_zero_only.rank = rank
        work()
        code = 0
    except BaseException as error:  # noqa: BLE001 a child reports whatever ended it
        traceback.print_exc()
        code = getattr(error, "exit_code", 1)
    finally:
        os._exit(code)
