"""What nodes tell each other beside the run, such as the state of their ranks: of each topic and node the newest."""

from __future__ import annotations

import json
import threading
from typing import Any

MAX_PAYLOAD_BYTES = 256 * 2**10
"""Of one node about one topic: the summary of what its ranks do while they hang has that at most."""
_MAX_TOPICS = 16
_MAX_TOPIC = 100


class Newest:
    """Keeps one payload a topic and node: what nobody takes costs no more than that, however much is said."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of_node: dict[int, dict[str, Any]] = {}

    def put(self, topic: object, node_rank: int, payload: Any) -> bool:
        """Keep it in the place of an older one; False for what is too large, or of one topic too many."""
        if not isinstance(topic, str) or not fits(topic, payload):
            return False
        with self._lock:
            kept = self._of_node.setdefault(node_rank, {})
            if topic not in kept and len(kept) >= _MAX_TOPICS:
                return False
            kept[topic] = payload
        return True

    def take(self, topic: str) -> list[tuple[int, Any]]:
        """What came since the last call, by node rank."""
        with self._lock:
            return [(node, kept.pop(topic)) for node, kept in sorted(self._of_node.items()) if topic in kept]


def fits(topic: str, payload: Any) -> bool:
    """Whether it may be sent. Raises TypeError for what is no JSON."""
    try:
        return len(topic) <= _MAX_TOPIC and len(json.dumps(payload)) <= MAX_PAYLOAD_BYTES
    except (ValueError, RecursionError):
        return False
