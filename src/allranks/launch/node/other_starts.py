"""Other starts into this run's directory, as far as this node has to end, or to tell, for what was refused there."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable

from allranks.doctor.node_errors import node_error
from allranks.errors import RefusedError
from allranks.findings import Finding
from allranks.launch.node.this_node import Node
from allranks.launch.spec.options import Launch
from allranks.observe import read_events, say
from allranks.observe.events import StepEvent
from allranks.observe.refused_starts import Listening, RefusedStart, leave_words

_LAST_BYTES = 2**16


class OtherStarts:
    """A node that waits for others ends for any of them. One that nothing told of others ends for a start on another
    host, before its first step; later that is only told. Use as a context manager."""

    def __init__(
        self, launch: Launch, node: Node, say: Callable[[str], None] = lambda text: say(text, file=sys.stderr)
    ):
        self._launch, self._node, self._say = launch, node, say
        self._why: str | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> OtherStarts:
        lock = self._node.run.lock(self._node.name)
        self._listening = Listening(lock, self._hear) if self._node.locks else None
        return self

    def __exit__(self, *exception: object) -> None:
        if self._listening is not None:
            self._listening.end()

    def why(self) -> str | None:
        """Why this node is to end; None while nothing is known."""
        return self._why

    def finding(self) -> Finding | None:
        """The same as a finding."""
        return None if self._why is None else node_error(RefusedError(self._why), self._node.name)

    def refuse(self) -> None:
        """Raises RefusedError where this node trains alone and is not to."""
        if self._why is not None and not self._launch.meets:
            raise RefusedError(self._why)

    def tell(self, reason: str) -> None:
        """Tell the other nodes of the run why this one was refused."""
        if self._launch.meets and self._why is None and self._node.locks:
            name = f"node {self._node.name} ({socket.gethostname()})"
            own = self._node.run.logs(self._node.name)
            text = reason if reason.startswith(name) else f"{name} refused to start: {reason}"
            leave_words(own.parent, own, text)

    def _hear(self, word: RefusedStart) -> None:
        if self._launch.meets:
            self._why = self._why or word.text
        elif word.host == socket.gethostname():
            return  # the same command a second time
        elif self._launch.says_nnodes or self._has_begun():
            self._say(f"warning: {word.text}")
        elif self._why is None:
            self._say(f"warning: {word.text}; this start ends before its first step")  # its data may take long to read
            self._why = word.text

    def _has_begun(self) -> bool:
        events = read_events(self._node.run.events(0), last_bytes=_LAST_BYTES)
        return any(isinstance(event, StepEvent) and event.run == self._node.run_id for event in events)
