"""Why a node itself ends the run, as a finding: what it refused, a fault of allranks, a signal to its command."""

from __future__ import annotations

from allranks.disk import told_to_user
from allranks.doctor import causes
from allranks.errors import DiskError, OutOfMemoryError
from allranks.findings import Finding, Who

CANNOT_GO_ON = "this node cannot go on"
_CODES = ((DiskError, causes.DISK), (OutOfMemoryError, causes.OUT_OF_MEMORY))


def node_error(error: BaseException, node: int | str) -> Finding:
    """What `error`, which ends the work of `node` outside of its ranks, is to the other nodes."""
    told = told_to_user(error, CANNOT_GO_ON)
    if told is not None:
        code = next((code for kind, code in _CODES if isinstance(told, kind)), causes.REFUSED)
        return _finding(code, str(told), node)
    if not isinstance(error, Exception):  # a signal
        return _finding(causes.INTERRUPTED, f"stopped{f' by {error}' if str(error) else ''} before the start", node)
    text = f"allranks itself crashed on this node: {error!r}; its terminal has the traceback"
    return _finding(causes.FAULT, text, node)


def unexplained(node: int | str | None, name: str) -> Finding:
    """That a node failed and did not say why."""
    return Finding(causes.NODE_ERROR, f"{name} failed, and did not say why", who=Who(node), known_at=node)


def _finding(code: str, what: str, node: int | str) -> Finding:
    return Finding(code, what, who=Who(node), known_at=node)
