"""What every rank does while the run hangs: gathered on all nodes at once when node 0 asks, and explained there."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from allranks import durable
from allranks.evidence.diagnose import diagnose
from allranks.evidence.gather import gather_node
from allranks.findings import Finding
from allranks.launch.peers import Peers
from allranks.live.deadlines import NONE_BEHIND

_TOPIC = "evidence"
_LOOK_SECONDS = 0.2
# Most is there within one; a node that is busy with other work needs them. With the look at the deadline once a second,
# and a moment each for question and answer, all is said within ten seconds.
_GATHER_SECONDS = 6.5
_ANSWER_SECONDS = _GATHER_SECONDS + 1.5
_NAME = re.compile(r"[\w-]{1,40}")  # it becomes a folder's


class EvidenceOfNode(threading.Thread):
    """Answers, whenever node 0 asks about `topic`, with what `answer` makes of the question; None is no answer.

    A thread of its own for each topic: a hang is not waited for behind somebody's look. Ends with `close`.
    """

    def __init__(
        self,
        peers: Peers,
        topic: str = _TOPIC,
        answer: Callable[[Peers, object], Mapping[str, Any] | None] | None = None,
    ) -> None:
        super().__init__(name=f"live {topic}", daemon=True)
        self._peers, self._topic, self._over = peers, topic, threading.Event()
        self._answer = answer or _of_a_hang

    def run(self) -> None:
        rendezvous = self._peers.rendezvous
        while rendezvous is not None and not self._over.wait(_LOOK_SECONDS):
            for question in rendezvous.asked(self._topic):
                if (said := self._answer(self._peers, question)) is not None:
                    rendezvous.tell(self._topic, said)

    def close(self) -> None:
        """Does not wait for what is being gathered."""
        self._over.set()


def _of_a_hang(peers: Peers, name: object) -> Mapping[str, Any] | None:
    return gather(peers, name) if isinstance(name, str) and _NAME.fullmatch(name) else None


def gather(peers: Peers, name: str) -> Mapping[str, Any]:
    """What this node's ranks do now; kept in OUTPUT_DIR/evidence/`name`."""
    node = peers.node
    return gather_node(
        node.run.path,
        name=name,
        node=node.name,
        run_id=node.run_id,
        launch_id=node.launch_id,
        seconds=_GATHER_SECONDS,
    )


def explained(peers: Peers, overdue: Sequence[Finding], given_up: Callable[[], bool]) -> Finding:
    """On node 0: have every node say what its ranks do, and what follows from it; without any answer, `overdue`.

    Waits for all nodes for some seconds, or until the hang is `given_up`: the ranks go on.
    """
    name = time.strftime("%Y%m%d-%H%M%S")
    if peers.rendezvous is None:
        summaries = {0: gather(peers, name)}
    else:
        summaries = answers_of_all(peers, _TOPIC, name, _ANSWER_SECONDS, given_up)
    finding = _without_contradiction(diagnose([summaries[node] for node in sorted(summaries)], overdue))
    # The disk may be what hangs: whoever writes is not waited for.
    writing = threading.Thread(target=_keep, args=(peers, name, finding), daemon=True)
    writing.start()
    writing.join(_LOOK_SECONDS)
    return finding


def _without_contradiction(finding: Finding) -> Finding:
    """Where the looks at the ranks name one, the deadlines' own line says no longer that none is behind."""
    if NONE_BEHIND in finding.what:
        return finding
    lines = (replace(one, text=one.text.replace(NONE_BEHIND, "")) for one in finding.evidence)
    return replace(finding, evidence=tuple(lines))


def answers_of_all(
    peers: Peers, topic: str, question: object, seconds: float, given_up: Callable[[], bool]
) -> dict[int, Mapping[str, Any]]:
    """On node 0: what the nodes answer within `seconds`, by node rank."""
    rendezvous = peers.rendezvous
    assert rendezvous is not None
    rendezvous.take(topic)  # what came too late for an earlier question
    rendezvous.ask_all(topic, question)
    found: dict[int, Mapping[str, Any]] = {}
    until = time.monotonic() + seconds
    while len(found) < len(rendezvous.nodes) and time.monotonic() < until and not given_up():
        time.sleep(_LOOK_SECONDS)
        found.update((node, said) for node, said in rendezvous.take(topic) if isinstance(said, Mapping))
    return found


def _keep(peers: Peers, name: str, finding: Finding) -> None:
    path = peers.node.run.evidence / name / "diagnosis.json"
    with contextlib.suppress(OSError):
        durable.write(path, json.dumps(finding.to_message(), indent=2) + "\n", make_parents=True)
