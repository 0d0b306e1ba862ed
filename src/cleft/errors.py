"""Errors of user input and environment, one class with its exit code per kind.

A message says what is wrong with which value, where, and how to fix it. It starts in lower case, quotes the value and
ends without a full stop. The command line prints it after `error: `.
"""


class CleftError(Exception):
    """Base class of all errors with a message for the user."""

    exit_code: int = 1
    """Exit code of the command line, one per kind of error."""
    rank: int | None = None
    """Rank of the process that raised the error; None for the first one, and before the processes are connected."""


class ConfigError(CleftError, ValueError):
    """A setting is unknown, of the wrong type, or contradicts another; or a run folder is in use."""

    exit_code = 2


class DataError(CleftError):
    """A table, image or folder is missing, unreadable, or has unexpected content.

    Args:
        message: Message for the user.
        reason: Short code for counting, such as `missing`, `truncated` or `outside-root`.
    """

    exit_code = 3

    def __init__(self, message: str, *, reason: str = "data") -> None:
        super().__init__(message)
        self.reason = reason


class CheckpointError(CleftError):
    """Weights or a training state do not match the model, are damaged, or are not trusted."""

    exit_code = 4


class NumericsError(CleftError, ArithmeticError):
    """A loss, gradient, weight or score is not finite."""

    exit_code = 5


class ResourceError(CleftError):
    """Disk, memory or file handles are exhausted, or a worker process was killed."""

    exit_code = 6


class Interrupted(CleftError):
    """Interrupted by Ctrl-C (SIGINT); progress is saved."""

    exit_code = 130


class Terminated(CleftError):
    """Terminated by SIGTERM; progress is saved."""

    exit_code = 143


class OtherRankFailed(CleftError):
    """Another process of the same training failed and reported its error.

    Args:
        exit_code: Of that process.
    """

    def __init__(self, exit_code: int) -> None:
        super().__init__("another process of this training failed and reported its error")
        self.exit_code = exit_code
