"""What ended a rank, told: an error that the user can act on in words, anything else with its traceback."""

from __future__ import annotations

import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any, TextIO

from allranks.cluster.identity import Identity
from allranks.disk import told_to_user
from allranks.doctor import causes
from allranks.doctor.memory_remedies import listed
from allranks.errors import AllranksError, DiskError, OutOfMemoryError
from allranks.exit_codes import FAILED
from allranks.observe import EventLog, say
from allranks.observe.events import ErrorEvent


def tell_failure(
    error: Exception,
    identity: Identity,
    events: EventLog,
    log: TextIO | None,
    out_of_memory: Callable[[BaseException], OutOfMemoryError | None],
) -> tuple[int, str]:
    """Record and print it; returns the rank's exit code and the reason in one line.

    `out_of_memory` tells of an allocation that failed. A traceback goes to the terminal only where nothing better is
    known; the record always has it.
    """
    told = told_to_user(error, "the run cannot go on") or out_of_memory(error)
    text = "" if told is error else "".join(traceback.format_exception(error))
    message = str(told) if told else f"{type(error).__name__}: {error}"
    events.write(
        ErrorEvent(
            message=message,
            type=type(error).__name__,
            host=socket.gethostname(),
            node=identity.node_rank,
            log=log.name if log else None,
            **_more(told, identity.rank),
            traceback=text or None,
        )
    )
    if told:
        print_error(told, identity)
    elif log is not None and identity.rank == 0 and causes.code_of_error(message) == causes.PEER_GONE:
        # Its traceback shows where this rank waited, above the reason of the one that failed: it is in the log below.
        say(f"rank 0 has lost another rank: {message.splitlines()[0]}\n  its traceback: {log.name}", file=sys.stderr)
    else:
        say(text, file=sys.stderr)
    if text and log is not None and (told or identity.rank == 0):
        say(text, file=log)
    return told.exit_code if told else FAILED, message


def print_error(error: AllranksError, identity: Identity) -> None:
    """One message, with the rank where there are several."""
    where = f" (rank {identity.rank})" if identity.world_size > 1 else ""
    say(f"error{where}: {error}", file=sys.stderr)
    if isinstance(error, OutOfMemoryError):
        lines = [*(f"| {line}" for line in error.account), *listed(error.remedies).splitlines()]
        say("\n".join(f"  {line}" for line in lines), file=sys.stderr)


def _more(told: AllranksError | None, rank: int) -> dict[str, Any]:
    """What a launcher makes its finding of, beside the message."""
    if told is not None and told.ranks and rank not in told.ranks:
        return {"code": causes.PEER_GONE}  # another rank's error, which that one tells as its own
    if isinstance(told, OutOfMemoryError):
        return {"code": causes.OUT_OF_MEMORY, "evidence": tuple(told.account), "remedy": listed(told.remedies)}
    return {"code": causes.DISK} if isinstance(told, DiskError) else {}
