"""Errors that a user can cause or must act on. The command line prints them as one message, without a traceback."""

from collections.abc import Sequence

from allranks.exit_codes import FAILED, REFUSED, USAGE


class AllranksError(Exception):
    """A failure with a message for the user: what happened, where, what was expected, what to do next."""

    exit_code = FAILED
    ranks: tuple[int, ...] = ()
    """On which it happened, where every rank raises what happened on some; empty: on the one that raises it."""


class UsageError(AllranksError):
    """Wrong usage: of the command line, of a config or of the data it names."""

    exit_code = USAGE


class ConfigError(UsageError):
    """A config that cannot be run as written."""


class DataError(UsageError):
    """Training data that is missing, empty or malformed."""


class CheckpointError(AllranksError):
    """A checkpoint that is missing, incomplete, damaged or does not belong to this run."""


class DiskError(AllranksError):
    """A disk that is full, read-only, gone or failing (see disk.py): the system's number for it, and on which host."""

    def __init__(self, message: str, errno: int | None = None, host: str | None = None) -> None:
        super().__init__(message)
        self.errno = errno
        self.host = host


class OutOfMemoryError(AllranksError):
    """Memory that could not be had. `account`: what holds how much; `remedies`: what to change, best first."""

    def __init__(self, message: str, account: Sequence[str] = (), remedies: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.account = tuple(account)
        self.remedies = tuple(remedies)


class RefusedError(AllranksError):
    """A run that was refused before it started: the nodes do not agree, or one is not as it should be."""

    exit_code = REFUSED
