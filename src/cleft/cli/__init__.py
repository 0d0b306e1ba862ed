"""Command line: parses what is typed, runs one command, and turns errors into messages and exit codes."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from types import FrameType

from cleft.cli import data, evaluation, models, training
from cleft.cli.options import COMMANDS, Command, CommandParser, add_command, make_request, split_settings
from cleft.errors import CleftError, ConfigError, OtherRankFailed, ResourceError, Terminated
from cleft.grammar import verb
from cleft.launch import LAUNCHER_VARIABLES, Launch, find_launch, is_first
from cleft.version import __version__

__all__ = ["build_parser", "entry", "main"]

_ORDER = [module.__name__ for module in (data, training, evaluation, models)]
"""Order of commands in `cleft --help`."""

EPILOG = """\
example, from a folder of images to a report:
  cleft data phantoms phantoms              # synthetic images, in place of your own CheXpert or table
  cleft pretrain demo --run runs/first --data.root phantoms
  cleft learn-context runs/first
  cleft evaluate runs/first-context --task zero-shot
  cleft report runs/first runs/first-context --out report.html

exit codes:
  0 success, 1 part of a study failed, 2 settings or options, 3 data, 4 weights, 5 non-finite number,
  6 disk or memory, 130 and 143 interrupted (repeat the command to resume)

Not a medical device. Nothing is sent over the network except downloads of models that you name.
"""


def main(words: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    Args:
        words: Command-line words after `cleft`; by default those of this process.

    Returns:
        0, or the exit code of the class of the error: 2 settings, 3 data, 4 weights, 5 numbers, 6 disk or memory,
        130 and 143 when stopped by a signal.
    """
    words, settings = split_settings(sys.argv[1:] if words is None else words)
    values, rest = build_parser().parse_known_args(words)
    debug, command = values.debug, COMMANDS[values.command]
    try:
        return _run(command, values, [*rest, *settings])
    except OtherRankFailed as error:
        return error.exit_code
    except KeyboardInterrupt:
        return _report("stopped by Ctrl-C", 130, debug=debug)
    except CleftError as error:
        if isinstance(error, ConfigError) and error.rank is None and _is_repeated():
            return error.exit_code
        rank = "" if error.rank is None else f"rank {error.rank}: "
        return _report(f"{rank}{error}", error.exit_code, debug=debug)
    except (MemoryError, RuntimeError) as error:
        explained = _explain_machine(error)
        if explained is None:
            raise
        return _report(str(explained), explained.exit_code, debug=debug)
    except BrokenPipeError:  # the reader of our output, such as head, has ended
        sys.stdout = open(os.devnull, "w")
        return 0
    except OSError as error:
        return _report(_explain_disk(error), ResourceError.exit_code, debug=debug)


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="cleft",
        description="Train, evaluate and use CLIP-like models, with a large language model as text encoder, on your "
        "own medical images.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"cleft {__version__}")
    parser.add_argument("--debug", action="store_true", help="print the traceback of an error")
    commands = parser.add_subparsers(title="commands", metavar="<command>", required=True, parser_class=CommandParser)
    groups = {"": commands}
    for command in sorted(COMMANDS.values(), key=lambda each: _ORDER.index(each.run.__module__)):
        group = command.name.rpartition(" ")[0]
        if group not in groups:
            below = commands.add_parser(
                group, help=GROUPS[group], description=f"{GROUPS[group].capitalize()}.", allow_abbrev=False
            )
            groups[group] = below.add_subparsers(
                title="commands", metavar="<command>", required=True, parser_class=CommandParser
            )
        add_command(groups[group], command)
    return parser


GROUPS = {"data": "check, split, preprocess or synthesise a dataset"}
"""Groups of commands with their help."""


def _run(command: Command, values: argparse.Namespace, settings: list[str]) -> int:
    if settings and command.settings is None:
        raise ConfigError(f"unexpected {' '.join(settings)!r}; see cleft {command.name} --help")
    launch = find_launch()
    _configure_logging(is_first())
    if launch is not None and command.name != "pretrain":
        if launch.rank > 0:
            return 0
        _ignore_launcher(launch, command.name)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its warnings are about its own calls, once per process
    if command.loads_torch and is_first():
        print("loading PyTorch and the other libraries ...", file=sys.stderr, flush=True)
    given = {name: value for name, value in vars(values).items() if name not in ("command", "debug")}
    return command.run(make_request(command, given), settings) or 0


def _is_repeated() -> bool:
    """Whether another process of this machine was started with the same command, and reports the same error."""
    try:
        launch = find_launch()
    except ConfigError:
        return False
    return launch is not None and launch.local_rank > 0


def _ignore_launcher(launch: Launch, command: str) -> None:
    """Makes this process independent of the launcher that started it: only stage one uses several processes."""
    others = launch.world_size - 1
    if others:
        print(
            f"cleft {command} uses one process; the other {others} that {launch.launcher} started "
            f"{verb(others, 'does', 'do')} nothing",
            file=sys.stderr,
        )
    for name in LAUNCHER_VARIABLES:
        os.environ.pop(name, None)


def entry() -> None:
    """Entry point of the installed command."""
    signal.signal(signal.SIGTERM, _stop)
    sys.exit(main())


def _stop(number: int, frame: FrameType | None) -> None:
    """Stops on SIGTERM outside of training as on Ctrl-C, removing drafts; training handles signals itself."""
    raise Terminated("stopped by SIGTERM; repeat the command to start again")


def _explain_machine(error: MemoryError | RuntimeError) -> CleftError | None:
    """Returns what a failure of memory or of a loader worker outside of training means; None for any other error."""
    if isinstance(error, MemoryError) or "out of memory" in str(error):
        return ResourceError("out of memory; lower train.batch_size or images.size")
    if "DataLoader" not in str(error):
        return None
    from cleft.data.batches import explain_worker_error

    return explain_worker_error(error)


def _explain_disk(error: OSError) -> str:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    remedy = "free space on the disk" if full else "check the path and its permissions"
    return f"{error.filename or 'the disk'}: {error.strerror or error}; {remedy}"


def _configure_logging(is_first: bool) -> None:
    """Sends log messages to standard error; of several processes only the first reports more than errors."""
    log = logging.getLogger("cleft")
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
        log.propagate = False
        log.setLevel(logging.INFO if is_first else logging.ERROR)
        if not is_first:
            warnings.simplefilter("ignore")


def _report(message: str, code: int, *, debug: bool) -> int:
    if debug:
        print("--debug: the lines below may contain file names and values of your data", file=sys.stderr)
        traceback.print_exc()
    print(f"error: {message}", file=sys.stderr)
    return code
