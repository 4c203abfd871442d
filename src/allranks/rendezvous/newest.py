"""What nodes tell each other beside the run, such as the state of their ranks: of each topic and node the newest."""

from __future__ import annotations

import json
import threading
from typing import Any

from allranks.listing import printable

MAX_PAYLOAD_BYTES = 256 * 2**10
"""Of one node about one topic: the summary of what its ranks do while they hang has that at most."""
_MAX_TOPICS = 16
_MAX_TOPIC = 100


class Newest:
    """Keeps one payload a topic and node: what nobody takes costs no more than that, however much is said."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of_topic: dict[str, dict[int, Any]] = {}

    def put(self, topic: object, node_rank: int, payload: Any) -> bool:
        """Keep it in the place of an older one; False for what is too large, or about one topic too many."""
        if not isinstance(topic, str) or not fits(topic, payload):
            return False
        topic = printable(topic, _MAX_TOPIC)
        with self._lock:
            if topic not in self._of_topic and len(self._of_topic) >= _MAX_TOPICS:
                return False
            self._of_topic.setdefault(topic, {})[node_rank] = payload
        return True

    def take(self, topic: str) -> list[tuple[int, Any]]:
        """What came since the last call, by node rank."""
        with self._lock:
            return sorted(self._of_topic.pop(topic, {}).items(), key=lambda one: one[0])


def fits(topic: str, payload: Any) -> bool:
    """Whether it may be sent. Raises TypeError for what is no JSON."""
    try:
        return len(topic) <= _MAX_TOPIC and len(json.dumps(payload)) <= MAX_PAYLOAD_BYTES
    except (ValueError, RecursionError):
        return False
