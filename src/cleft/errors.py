"""What can go wrong because of what we were given, and the exit code of each kind.

A message says what is wrong with the value in hand, where, and what to do. It starts in lower case,
quotes what was given and ends without a full stop. The command line prints it after `error: `.
"""


class CleftError(Exception):
    """Base of all errors raised on purpose."""

    exit_code: int = 1
    """What the command line exits with; one code per kind, so that scripts can tell them apart."""
    rank: int | None = None
    """Rank of the process that raised it; None for the first process, and before the processes are connected."""


class ConfigError(CleftError, ValueError):
    """A setting is unknown, of the wrong type, or contradicts another; or a run folder is in use."""

    exit_code = 2


class DataError(CleftError):
    """A table, image or folder is missing, unreadable, or does not say what the reader expects.

    Args:
        message: The sentence for the user.
        reason: A short code for counting, such as `missing`, `truncated` or `outside-root`.
    """

    exit_code = 3

    def __init__(self, message: str, *, reason: str = "data") -> None:
        super().__init__(message)
        self.reason = reason


class CheckpointError(CleftError):
    """Weights or a training state do not fit, are damaged, or are not trusted."""

    exit_code = 4


class NumericsError(CleftError, ArithmeticError):
    """A loss, gradient, weight or score is not finite."""

    exit_code = 5


class ResourceError(CleftError):
    """Disk, memory, file handles or a worker process ran out."""

    exit_code = 6


class Interrupted(CleftError):
    """Ctrl-C was pressed (SIGINT); what was under way is saved."""

    exit_code = 130


class Terminated(CleftError):
    """The process was asked to end (SIGTERM); what was under way is saved."""

    exit_code = 143


class OtherRankFailed(CleftError):
    """Another process of the same training failed and has reported why; there is nothing to add.

    Args:
        exit_code: Of that process.
    """

    def __init__(self, exit_code: int) -> None:
        super().__init__("another process of this training failed; its message says why")
        self.exit_code = exit_code
