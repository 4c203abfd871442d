"""What the tests of the rendezvous share: launchers in threads, over real sockets of this machine."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from allranks.cluster.account import NodeAccount, NodeStart
from allranks.cluster.account_differences import Shown, in_full
from allranks.errors import AllranksError
from allranks.findings import Finding
from allranks.launch.agreement import RunAgreement
from allranks.rendezvous import Participant, Rendezvous, differences, join
from allranks.rendezvous.terms import Terms
from tests.ports import free_port

SAME = {"learning_rate": "0.1"}


def node_of(rank: int, nnodes: int = 2, *, same=SAME, environment=None, held=None, **changed) -> Participant:
    """A node with an account: what must match, its settings of the network, and what it has of checkpoints."""
    values = {"host": f"host{rank}", "num_processes": 1, "pid": 100 + rank, "launcher": "torchrun", **changed}
    account = NodeAccount(must_match=same, network=environment or {}, checkpoints=held and held.to_message())
    return Participant(node_rank=rank, nnodes=nnodes, **values, account=account.to_message())


def differing(nodes: Sequence[Participant], shown: Shown = in_full) -> list[str]:
    """All that node 0 refuses these nodes for."""
    accounts = [(node.name, node.account) for node in nodes]
    return [*differences(nodes), *RunAgreement().differences(accounts, shown)]


def ready(rendezvous: Rendezvous, same: Mapping[str, str], **start) -> None:
    """This node is ready to start, which must match; `start` is what it starts."""
    rendezvous.ready(NodeAccount(host=rendezvous.own.host, must_match=same, start=NodeStart(**start)).to_message())


class Nodes:
    """Launchers, each in a thread of its own; what each came to is kept."""

    def __init__(self, **terms) -> None:
        self.terms = {"address": "127.0.0.1", "port": free_port(), "join_seconds": 20.0, **terms}
        self.results: dict[int, Rendezvous | AllranksError] = {}
        self.said: list[str] = []
        self._threads: list[threading.Thread] = []

    def start(
        self,
        node: Participant,
        key: int | None = None,
        *,
        refused_elsewhere: Callable[[], str | None] = lambda: None,
        **changed,
    ) -> None:
        terms = Terms(run_id=f"proposed by {node.node_rank}", **{**self.terms, **changed})

        def work() -> None:
            try:
                self.results[node.node_rank if key is None else key] = join(
                    node, terms, RunAgreement(), say=self.said.append, refused_elsewhere=refused_elsewhere
                )
            except AllranksError as error:
                self.results[node.node_rank if key is None else key] = error

        thread = threading.Thread(target=work)
        thread.start()
        self._threads.append(thread)

    def wait(self) -> dict[int, Rendezvous | AllranksError]:
        for thread in self._threads:
            thread.join()
        self._threads = []
        return self.results

    def leave(self) -> None:
        for result in self.results.values():
            if isinstance(result, Rendezvous):
                result.leave(0)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def listening_port(nodes: Nodes) -> int:
    port = nodes.terms["port"]

    def up() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        return False

    until(up)
    return port


def say_hello(raw: socket.socket, node: Participant) -> None:
    raw.makefile().readline()
    raw.sendall(json.dumps({"hello": node.hello(), "proof": "", "nonce": ""}).encode() + b"\n")
    raw.sendall(json.dumps({"account": dict(node.account)}).encode() + b"\n")


def join_all(nodes: Nodes, *node: Participant) -> list[Rendezvous]:
    for one in node:
        nodes.start(one)
    results = nodes.wait()
    assert all(isinstance(result, Rendezvous) for result in results.values()), results
    return [results[rank] for rank in sorted(results)]


def together(joined: list[Rendezvous], work: Callable[[Rendezvous], object]) -> list[object]:
    """What `work` returns, or the AllranksError that it raises, on each node."""
    results: list[object] = [None] * len(joined)

    def on(rank: int) -> None:
        try:
            results[rank] = work(joined[rank])
        except AllranksError as error:
            results[rank] = error

    threads = [threading.Thread(target=on, args=(rank,)) for rank in range(len(joined))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def failure(what: str, code: str = "rank-error", **more) -> Finding:
    """Why a node fails."""
    return Finding(code, what, **more)
