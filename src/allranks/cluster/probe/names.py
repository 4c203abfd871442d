"""What this node's resolver makes of the other nodes' names."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Iterator, Sequence

from allranks.cluster.probe.children import Found, Reporter
from allranks.cluster.probe.node import Node

_AT_ONCE = 16  # a resolver that is slow for one name need not hold up the others, and is not flooded
_UNKNOWN = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))


def look_up_names(node: Node, reporter: Reporter, names: Sequence[str]) -> Iterator[Found]:
    if not node.is_live:
        recorded = node.recorded.get("names", {})
        yield {"names": {name: recorded.get(name, []) for name in names}}
        return
    waiting: queue.Queue[str] = queue.Queue()
    found: queue.Queue[tuple[str, list[str] | OSError]] = queue.Queue()
    left = list(dict.fromkeys(names))
    for name in left:
        waiting.put(name)
    for _ in range(min(_AT_ONCE, len(left))):
        threading.Thread(target=_look_up, args=(waiting, found), daemon=True).start()
    while left:
        reporter.doing(", ".join(left[:3]) + (" and others" if left[3:] else ""))
        name, addresses = found.get()
        left.remove(name)
        if isinstance(addresses, OSError):
            reporter.failed(f"the resolver failed: {addresses.strerror}", name)
        else:
            yield {"names": {name: addresses}}


def _look_up(waiting: queue.Queue[str], found: queue.Queue[tuple[str, list[str] | OSError]]) -> None:
    while True:
        name = waiting.get()
        try:
            answers = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
            found.put((name, list(dict.fromkeys(str(answer[4][0]) for answer in answers))))
        except OSError as error:
            found.put((name, [] if error.errno in _UNKNOWN else error))
        except UnicodeError:  # no name at all: an empty label, or one that is too long
            found.put((name, []))
