"""What the tests of the rendezvous share: launchers in threads, over real sockets of this machine."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable

from allranks.errors import AllranksError
from allranks.findings import Finding
from allranks.rendezvous import NodeFacts, Rendezvous, join
from allranks.rendezvous.terms import Terms


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def facts_of(rank: int, nnodes: int = 2, **changed) -> NodeFacts:
    values = {"host": f"host{rank}", "num_processes": 1, "pid": 100 + rank, "launcher": "torchrun"}
    return NodeFacts(node_rank=rank, nnodes=nnodes, **{**values, "same": {"learning_rate": "0.1"}, **changed})


class Nodes:
    """Launchers, each in a thread of its own; what each came to is kept."""

    def __init__(self, **terms) -> None:
        self.terms = {"address": "127.0.0.1", "port": free_port(), "join_seconds": 20.0, **terms}
        self.results: dict[int, Rendezvous | AllranksError] = {}
        self.said: list[str] = []
        self._threads: list[threading.Thread] = []

    def start(self, facts: NodeFacts, key: int | None = None, **changed) -> None:
        terms = Terms(run_id=f"proposed by {facts.node_rank}", **{**self.terms, **changed})

        def work() -> None:
            try:
                self.results[facts.node_rank if key is None else key] = join(facts, terms, say=self.said.append)
            except AllranksError as error:
                self.results[facts.node_rank if key is None else key] = error

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


def say_hello(raw: socket.socket, facts: NodeFacts) -> None:
    raw.makefile().readline()
    raw.sendall(json.dumps({"hello": facts.hello(), "proof": "", "nonce": ""}).encode() + b"\n")
    raw.sendall(json.dumps({"facts": facts.to_message()}).encode() + b"\n")


def join_all(nodes: Nodes, *facts: NodeFacts) -> list[Rendezvous]:
    for one in facts:
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
