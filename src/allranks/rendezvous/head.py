"""Node 0's side of the rendezvous: it listens, compares, answers, and watches every other node."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

from allranks.cluster.interfaces import is_loopback
from allranks.doctor.causes import NODE_ERROR
from allranks.doctor.first_failure import first_failure, goes_before
from allranks.doctor.node_errors import unexplained
from allranks.doctor.nodes import node_lost
from allranks.errors import RefusedError
from allranks.exit_codes import DONE, PREEMPTED
from allranks.findings import Finding, Who, from_message
from allranks.listing import few, printable
from allranks.rendezvous import wire
from allranks.rendezvous.another_node_0 import refused_by_another
from allranks.rendezvous.comparison import Comparison
from allranks.rendezvous.door import Door, Peer
from allranks.rendezvous.hidden import Hidden
from allranks.rendezvous.introduction import hear_introduction, no_place_for
from allranks.rendezvous.listen import listen
from allranks.rendezvous.missing import missing, what_to_try
from allranks.rendezvous.participant import Agreement, Participant
from allranks.rendezvous.rendezvous import MOST_ROUNDS, Rendezvous, told_by
from allranks.rendezvous.terms import Terms
from allranks.rendezvous.wire import WireError

# After the first difference, how long the others may still come to be compared too.
_SETTLE_SECONDS = 3.0
_LOOK_EVERY_SECONDS = 2.0


class Head(Rendezvous):
    def __init__(self, own: Participant, terms: Terms, agreement: Agreement, say: Callable[[str], None]) -> None:
        super().__init__(own, terms, agreement, say)
        self._peers: dict[int, Peer] = {}
        self._withdrawn: dict[int, tuple[str, str]] = {}  # by node rank: who will not come, and why
        self._door = Door()
        self._doubled: set[str] = set()  # hosts that were turned away because another has their node rank
        self._rounds: dict[str, dict[int, Any]] = {}  # what has been handed in, by name and node rank
        self._failed: Finding | None = None  # how this node itself failed, once it has told the others
        self._socket, self._note = listen(terms)
        # Whoever reaches the port is told what a refused node is told.
        self.hidden = None if terms.token or is_loopback(self._socket.getsockname()[0]) else Hidden()
        self._comparison = Comparison(agreement, self.hidden)

    def gather(self) -> None:
        if self._note:
            self._say(f"warning: {self._note}")
        if self.hidden is not None:
            self._say(
                f"warning: whoever reaches {self.terms.endpoint} can take a node's place or end the run: set the same "
                "ALLRANKS_TOKEN on all nodes before the start (openssl rand -hex 32 makes one)"
            )
        self._start_talking()
        deadline = time.monotonic() + self.terms.join_seconds
        came = self._wait_for_nodes(self._all_came_or_differ, self._missing_and_why, deadline)
        if not self._all_came_or_differ() and (why := self.refused_elsewhere()) is not None:
            self._refuse(why)
        if came and len(self._peers) < self.own.nnodes - 1:
            settle = time.monotonic() + _SETTLE_SECONDS
            self._wait(lambda: len(self._peers) + len(self._withdrawn) >= self.own.nnodes - 1, self._missing, settle)
        with self._changed:
            nodes = [self.own, *(peer.node for _, peer in sorted(self._peers.items()))]
        if self._withdrawn:
            withdrawn = [self._withdrawn[rank] for rank in sorted(self._withdrawn)]
            briefly = "\n  ".join(f"{name} refused to start; it says why on its own terminal" for name, _ in withdrawn)
            whole = "\n  ".join(f"{name} refused to start: {reason}" for name, reason in withdrawn)
            self._refuse(whole, lambda peer: briefly if self.hidden else whole)
        self._refuse_differences(nodes)
        if len(nodes) < self.own.nnodes and self._all_are_here_with_ranks_twice():
            self._refuse(f"as many nodes as should have come, and two of them with one rank: {self._missing()}")
        if len(nodes) < self.own.nnodes:
            self._refuse(
                f"{self._missing()}; gave up after {self.terms.join_seconds:.0f} s{what_to_try(self.terms, self._note)}"
            )
        if refusal := self._comparison.refusal(nodes):
            self._refuse(refusal)
        self.nodes = [replace(node, account={}) for node in nodes]
        self.notes, for_others = self._comparison.notes(nodes)
        for peer in self._peers.values():
            peer.node = replace(peer.node, account={})
        # Of 64 nodes what has been compared would be megabytes, and each is sent to each.
        told = [node.hello() for node in self.nodes]
        self._post({"go": {"run": self.run_id, "nodes": told, "notes": for_others}})

    def turn_away(self, reason: str, seconds: float) -> None:
        """Tell each node that comes within `seconds` that this one refuses to start, and why; less if all have come."""
        self._start_talking()
        deadline = time.monotonic() + seconds
        with contextlib.suppress(RefusedError):
            self._wait(lambda: len(self._peers) + len(self._withdrawn) >= self.own.nnodes - 1, self._missing, deadline)
            briefly = f"{self.own.name} refused to start; it says why on its own terminal"
            whole = f"{self.own.name} refused to start: {reason}"
            self._refuse(whole, lambda peer: briefly if self.hidden else whole)

    def round(
        self,
        name: str,
        payload: object,
        deadline_seconds: float | None = None,
        *,
        decide: Callable[[Sequence[Any]], object] | None = None,
    ) -> Any:
        with self._changed:
            given = self._rounds.setdefault(name, {})
            given[0] = payload

        def waiting() -> str:
            late = [node.name for node in self.nodes if node.node_rank not in given]
            return f"{name}: waiting for {few(late)}"

        deadline = None if deadline_seconds is None else time.monotonic() + deadline_seconds
        if not self._wait(lambda: len(given) == len(self.nodes), waiting, deadline):
            self._refuse(f"{waiting()}; gave up after {deadline_seconds:.0f} s")
        payloads = [given[node.node_rank] for node in self.nodes]
        try:
            answer = payloads if decide is None else decide(payloads)
        except _Disagreement as error:
            self._refuse_differences(error.nodes)
        except RefusedError as error:
            self._refuse(str(error))
        with self._changed:
            del self._rounds[name]
        self._post({"round": name, "answer": answer})
        return answer

    def _all_ready(self, told: Sequence[Any]) -> None:
        ready = []
        for node, said in zip(self.nodes, told, strict=True):
            account = said if isinstance(said, dict) else {}
            try:
                self.agreement.check(account)
            except ValueError as error:
                raise RefusedError(f"{node.name} does not say what it starts: {error}") from None
            self.accounts[node.node_rank] = account
            ready.append(replace(node, account=account))
        if self._comparison.differ(ready):
            raise _Disagreement(ready)
        # The launcher's own store listens on this port next.
        self.run(self._close_door(), "closing the port")

    async def _close_door(self) -> None:
        self._server.close()

    def _tell_failure(self, finding: Finding) -> None:
        self._failed = finding
        self._post({"stop": told_by(self.own, finding).to_message()})

    def end_all(self, finding: Finding) -> None:
        if self._leaving is None and goes_before(finding, self._first):
            self._post({"stop": finding.to_message()})
            self._set(_first=finding)

    def _tell_all(self, message: dict[str, Any]) -> None:
        self._post({**message, "node": 0})

    def tell(self, topic: str, payload: object) -> bool:
        return self._news.put(topic, 0, payload)

    def _all_came_or_differ(self) -> bool:
        nodes = [self.own, *(peer.node for peer in self._peers.values())]
        is_full = len(nodes) == self.own.nnodes or self._all_are_here_with_ranks_twice()
        return is_full or bool(self._withdrawn) or self._comparison.differ(nodes)

    def _all_are_here_with_ranks_twice(self) -> bool:
        """Whether nobody else is to be expected. Nodes of one machine are not told apart, and may come again."""
        hosts = {self.own.host, *(peer.node.host for peer in self._peers.values())}
        return len(self._peers) + 1 + len(self._doubled - hosts) >= self.own.nnodes

    def _missing_and_why(self) -> str:
        return f"{self._missing()}{what_to_try(self.terms, self._note)}"

    def _missing(self) -> str:
        came = {rank: peer.node for rank, peer in self._peers.items()}
        return missing(self.own, self.terms, came, self._door.rejected)

    def _refuse_differences(self, nodes: Sequence[Participant]) -> None:
        if found := self._comparison.disagreement(nodes):
            self._refuse(found, lambda peer: self._comparison.disagreement(nodes, peer.node) or found)

    def _refuse(self, text: str, told: Callable[[Peer], str] | None = None) -> NoReturn:
        """`told`: what a peer gets to read of it."""
        with contextlib.suppress(RuntimeError):
            for peer in list(self._peers.values()):
                self._loop.call_soon_threadsafe(self._send, peer, {"refused": told(peer) if told else text})
        raise RefusedError(text)

    def _post(self, message: dict[str, Any]) -> None:
        """Send to every peer, from the thread that waits."""
        with contextlib.suppress(RuntimeError):  # nobody is left to talk to
            self._loop.call_soon_threadsafe(self._broadcast, message)

    def _waker(self, over: asyncio.Event) -> Callable[[], None]:
        def wake() -> None:
            self._loop.call_soon_threadsafe(over.set)

        return wake

    def _broadcast(self, message: dict[str, Any], but: Peer | None = None) -> None:
        for peer in self._peers.values():
            if peer is not but:
                self._send(peer, message)

    def _send(self, peer: Peer, message: dict[str, Any]) -> None:
        if not peer.done:
            task = asyncio.ensure_future(self._send_or_fail(peer, message))
            peer.tasks.add(task)
            task.add_done_callback(peer.tasks.discard)

    async def _send_or_fail(self, peer: Peer, message: dict[str, Any]) -> None:
        try:
            await _send_quietly(peer, message)
        except Exception as error:  # who waits for it would wait for ever
            self._fail_all(error)

    def _fail_all(self, error: Exception) -> None:
        """A fault of ours: the other nodes hear of it too."""
        if self._first is None:
            self._broadcast({"stop": self._fail(error).to_message()})

    async def _talk(self) -> None:
        self._loop = asyncio.get_running_loop()
        over = asyncio.Event()
        with self._changed:
            self._wake = self._waker(over)
            if self._leaving is not None:
                over.set()
        self._server = await asyncio.start_server(self._welcome, sock=self._socket, limit=wire.CHUNK_BYTES)
        self._up.set()
        asking = asyncio.ensure_future(self._look_for_another_node_0())
        try:
            clock = wire.Clock()
            while not over.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wire.PULSE_SECONDS):
                        await over.wait()
                self._broadcast({"pulse": True})
                if clock.on_time():
                    self._find_silent()
        except Exception as error:  # told before the good-bye below, which the others answer by going
            self._fail_all(error)
            raise
        finally:
            asking.cancel()
            self._server.close()
            self._broadcast(self._last_words)
            pending = [task for peer in self._peers.values() for task in peer.tasks]
            if pending:
                await asyncio.wait(pending, timeout=1.0)
            for peer in self._peers.values():
                peer.channel.writer.close()

    async def _look_for_another_node_0(self) -> None:
        """The others go to an address that is not this machine's: perhaps to the node 0 that they mean."""
        while self._note and self.own.has_rank and not self.nodes:
            if (refusal := await refused_by_another(self.own, self.terms)) is not None:
                self._set(_refused=f"{self.own.name}: {refusal}\n  {self._note}")
                return
            await asyncio.sleep(_LOOK_EVERY_SECONDS)

    def _find_silent(self) -> None:
        limit = self._silence_seconds
        for peer in list(self._peers.values()):
            peer.silence.look(time.monotonic() - peer.heard)
            if not peer.done and self.signs_of_life.is_lost(peer.node.name, peer.heard, limit):
                self._lost(peer, peer.silence.why(limit))

    async def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = await self._door.let_in(reader, writer, self._take_up)
        if peer is None:
            return
        try:
            await self._watch(peer)
        except asyncio.CancelledError:
            pass
        except Exception as error:  # else that peer would only seem silent
            self._fail_all(error)

    async def _take_up(self, lines: wire.Lines, writer: asyncio.StreamWriter) -> Peer | None:
        """Whoever came, if it has a place among the nodes."""
        came = await hear_introduction(lines, writer, self.terms, self.run_id, self.agreement.check)
        node = came.node
        if (node.host, node.pid) == (self.own.host, self.own.pid):  # by a way that leads back here
            return None
        refusal = no_place_for(node, self.own, {rank: peer.node for rank, peer in self._peers.items()})
        if came.refuses is not None:
            if refusal is None:
                self._hear_refusal(node, came.refuses)
            await came.channel.send({"heard": True})
            return None
        if refusal is not None:
            await came.channel.send({"refused": refusal})
            self._door.reject(f"{node.name}: {refusal}")
            if node.has_rank and node.node_rank in (0, *self._peers):
                self._set_doubled(node.host)
            return None
        with self._changed:
            if not node.has_rank:
                free = next(rank for rank in range(1, self.own.nnodes) if rank not in self._peers)
                node = replace(node, node_rank=free)
            peer = self._peers[node.node_rank] = Peer(node, came.channel)
            self._changed.notify_all()
        return peer

    def _set_doubled(self, host: str) -> None:
        if len(self._doubled) < self.own.nnodes:
            self._set(_doubled={*self._doubled, host})

    def _hear_refusal(self, node: Participant, reason: str) -> None:
        """A node will not come: all others need not wait for it."""
        if self.nodes:
            return
        with self._changed:
            key = node.node_rank if node.has_rank else -1 - len(self._withdrawn)
            self._withdrawn[key] = node.name, reason
            self._changed.notify_all()

    async def _watch(self, peer: Peer) -> None:
        try:
            while True:
                message = await peer.channel.receive()
                peer.heard = time.monotonic()
                if "round" in message:
                    self._hand_in(peer, message)
                elif "stopped" in message or "stopping" in message:
                    self._hear_of_ranks(peer.node.node_rank, message)
                    self._broadcast({**message, "node": peer.node.node_rank}, but=peer)
                elif "tell" in message:
                    self._news.put(message["tell"], peer.node.node_rank, message.get("payload"))
                elif "failed" in message:
                    self._stop_all(peer, message["failed"])
                elif "bye" in message:
                    peer.done = self.parting = True
                    peer.channel.writer.close()
                    self._set_gone(peer, message.get("finding"))
                    if not isinstance(message["bye"], int) or message["bye"] not in (DONE, PREEMPTED):
                        self._stop_all(peer, message.get("finding"))
                    return
        except WireError as error:
            if not peer.done:
                self._lost(peer, str(error))

    def _hand_in(self, peer: Peer, message: Mapping[str, Any]) -> None:
        name = printable(message["round"], 100)
        with self._changed:
            if name not in self._rounds and len(self._rounds) >= MOST_ROUNDS:
                raise WireError("takes part in rounds that there are not")
            self._rounds.setdefault(name, {})[peer.node.node_rank] = message.get("payload")
            self._changed.notify_all()

    def _lost(self, peer: Peer, how: str) -> None:
        peer.done = True
        peer.channel.writer.transport.abort()  # it takes nothing any more: nobody waits for what is still to be sent
        if self.nodes:
            reason = f"{peer.node.name} was lost: {peer.silence.gone(how)}"
            lost = node_lost(peer.node.id, peer.node.host, reason, self.own.id).to_message()
            self._set_gone(peer, lost)
            self._stop_all(peer, lost)
            return
        # It has only left the waiting room, and may come again.
        with self._changed:
            self._peers.pop(peer.node.node_rank, None)

    def _set_gone(self, peer: Peer, said: object) -> None:
        if self.gone is None and self._leaving is None:
            who = Who(peer.node.id, host=peer.node.host)
            has_ended = Finding(NODE_ERROR, f"{peer.node.name} has ended, and takes part in no other start", who=who)
            gone = told_by(peer.node, from_message(said) or has_ended)
            self._set(gone=gone)
            self._broadcast({"gone": gone.to_message()}, but=peer)

    def _stop_all(self, peer: Peer, said: object) -> None:
        finding = told_by(peer.node, from_message(said) or unexplained(peer.node.id, peer.node.name))
        if self._leaving is None and goes_before(finding, first_failure(filter(None, [self._failed, self._first]))):
            self._broadcast({"stop": finding.to_message()}, but=peer)
            self._set(_first=finding)


class _Disagreement(Exception):
    """What the nodes are about to start is not the same."""

    def __init__(self, nodes: Sequence[Participant]) -> None:
        super().__init__()
        self.nodes = nodes


async def _send_quietly(peer: Peer, message: Mapping[str, Any]) -> None:
    # A peer that cannot be reached is found out by its silence.
    with contextlib.suppress(OSError, RuntimeError):
        if "go" in message:
            message = {"go": {**message["go"], "you": peer.node.node_rank}}
        await peer.channel.send(message)
