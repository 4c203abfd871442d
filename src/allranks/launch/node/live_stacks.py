"""Where all ranks are, for somebody who asks from a terminal: node 0 takes the request, every node answers.

The run goes on, and nobody waits for it: all is done by threads that nothing else depends on.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from allranks.evidence.gather import STARTING_SECONDS, gather_node
from allranks.evidence.requests import MAX_SECONDS, MIN_SECONDS, Request, RequestFolder
from allranks.launch.node.live_evidence import EvidenceOfNode, answers_of_all
from allranks.launch.peers import Peers

_TOPIC = "stacks"
_LOOK_SECONDS = 0.5
_WAY_SECONDS = 3.0  # of question and answer between the nodes
_CLOSE_SECONDS = 1.0


class StacksRequests(threading.Thread):
    """On node 0: answers the requests in OUTPUT_DIR/evidence/requests, those of one moment together; see `close`."""

    def __init__(self, peers: Peers) -> None:
        super().__init__(name="live requests", daemon=True)
        self._peers, self._over = peers, threading.Event()

    def run(self) -> None:
        """A disk that is full or gone is told of by live.json's warning already."""
        folder = RequestFolder(self._peers.node.run.path)
        while not self._over.wait(_LOOK_SECONDS):
            with contextlib.suppress(OSError):
                if requests := folder.take():
                    folder.answer(requests, *self._told(requests))
        folder.close()

    def close(self) -> None:
        """Does not wait for a disk that does not answer, nor for nodes that are being asked."""
        self._over.set()
        self.join(_CLOSE_SECONDS)

    def _told(self, requests: Sequence[Request]) -> tuple[list[Mapping[str, Any]], list[str]]:
        """The nodes' answers by rank, and the nodes that gave none."""
        seconds = max(request.seconds for request in requests)
        rendezvous = self._peers.rendezvous
        if rendezvous is None:
            return [_gathered(self._peers, seconds)], []
        longest = seconds + STARTING_SECONDS + _WAY_SECONDS
        told = answers_of_all(self._peers, _TOPIC, {"seconds": seconds}, longest, self._over.is_set)
        names = [node.name for node in rendezvous.nodes]
        return [told[node] for node in sorted(told)], [name for node, name in enumerate(names) if node not in told]


def stacks_of_node(peers: Peers) -> EvidenceOfNode:
    """This node's answers to node 0."""
    return EvidenceOfNode(peers, _TOPIC, _answer)


def _answer(peers: Peers, question: object) -> Mapping[str, Any] | None:
    seconds = question.get("seconds") if isinstance(question, Mapping) else None
    if not isinstance(seconds, (int, float)) or not MIN_SECONDS <= seconds <= MAX_SECONDS:
        return None
    return _gathered(peers, float(seconds))


def _gathered(peers: Peers, seconds: float) -> Mapping[str, Any]:
    node = peers.node
    return gather_node(
        node.run.path,
        name="on-request",
        node=node.name,
        run_id=node.run_id,
        launch_id=node.launch_id,
        seconds=seconds,
        keep=False,
    )
