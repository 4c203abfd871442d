"""Every other node's side of the rendezvous: it goes to node 0, hands in its account, and hears what to do."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from allranks.doctor.node_errors import unexplained
from allranks.doctor.nodes import node_lost
from allranks.errors import RefusedError
from allranks.exit_codes import DONE, PREEMPTED
from allranks.findings import Finding, from_message
from allranks.listing import printable
from allranks.rendezvous import wire
from allranks.rendezvous.channel import Channel, NotProven, foreign, introduce
from allranks.rendezvous.newest import fits
from allranks.rendezvous.not_there import NeverThere, why_not_there
from allranks.rendezvous.participant import Agreement, Participant
from allranks.rendezvous.rendezvous import ANSWER_SECONDS, MOST_ROUNDS, Rendezvous
from allranks.rendezvous.silence import Silence
from allranks.rendezvous.terms import Terms
from allranks.rendezvous.wire import WireError

_CONNECT_SECONDS = 3.5
"""A lost SYN is sent again after 1 and 3 s; then another connection is tried."""
_RETRY_SECONDS = 0.5
_HOPELESS_SECONDS = 3.0
"""Beyond the first proof: another try or more. With it a terminal has the reason within 10 s of the command."""
_MOST_NOTES = 64


class Member(Rendezvous):
    def __init__(self, own: Participant, terms: Terms, agreement: Agreement, say: Callable[[str], None]) -> None:
        super().__init__(own, terms, agreement, say)
        self._trouble = "still trying"
        self._hopeless: float | None = None  # since when it is so that waiting does not mend it
        self._told = ""  # what node 0 last said of our coming
        self._answers: dict[str, Any] = {}  # of node 0, by the name of the round
        self._reached: float | None = None  # when node 0 first took us in
        self._heard = 0.0  # when node 0 gave the last sign of life
        self._to_tell: dict[str, object] = {}  # by topic: what has not been sent yet

    def gather(self) -> None:
        self._start_talking()
        started = time.monotonic()
        self._wait_for_nodes(
            lambda: bool(self.nodes) or self._gives_up, self._waiting, started + self.terms.join_seconds
        )
        if self.nodes:
            return
        if (why := self.refused_elsewhere()) is not None:
            raise RefusedError(why)
        if self._gives_up:
            raise RefusedError(
                f"{self.own.name} cannot meet {self.terms.host} at {self.terms.endpoint}, and does not wait for what "
                f"waiting will not mend: {self._trouble}"
            )
        # Node 0 says who is missing when its own time is over: ours begins where we reached it.
        if self._reached is not None and not self._trouble:
            end = self._reached + self.terms.join_seconds + ANSWER_SECONDS
            if self._wait(lambda: bool(self.nodes), self._waiting, end):
                return
        trouble = self._trouble or "it is there, and did not say that all nodes are"
        told = f"\n  of this node it said: {self._told}" if self._told else ""
        raise RefusedError(
            f"{self.own.name} could not meet {self.terms.host} at {self.terms.endpoint} within "
            f"{self.terms.join_seconds:.0f} s: {trouble}{told}"
        )

    @property
    def _gives_up(self) -> bool:
        return self._hopeless is not None and time.monotonic() - self._hopeless > _HOPELESS_SECONDS

    def round(
        self,
        name: str,
        payload: object,
        deadline_seconds: float | None = None,
        *,
        decide: Callable[[Sequence[Any]], object] | None = None,
    ) -> Any:
        self._post({"round": name, "payload": payload})
        deadline = None if deadline_seconds is None else time.monotonic() + deadline_seconds + ANSWER_SECONDS
        if not self._wait(lambda: name in self._answers, lambda: f"{name}: waiting for the other nodes", deadline):
            raise RefusedError(f"{name}: {self.nodes[0].name} gave no answer in {deadline_seconds:.0f} s")
        with self._changed:
            return self._answers.pop(name)

    def _tell_failure(self, finding: Finding) -> None:
        self._post({"failed": finding.to_message()})

    def _tell_all(self, message: dict[str, Any]) -> None:
        self._post(message)

    def tell(self, topic: str, payload: object) -> bool:
        if not fits(topic, payload):
            return False
        with self._changed:
            waits = topic in self._to_tell
            self._to_tell[topic] = payload
        if not waits:  # else what waits to be sent is the newer one now
            self._post({"tell": topic})
        return True

    def _waiting(self) -> str:
        there = (
            f"it is there, and said of this node: {self._told}"
            if self._told
            else "it is there, and waits for the other nodes"
        )
        trouble = self._trouble or there
        return f"waiting for {self.terms.host} at {self.terms.endpoint}: {trouble}"

    def _post(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(RuntimeError):  # nobody is left to talk to
            self._loop.call_soon_threadsafe(self._outbox.put_nowait, message)

    async def _talk(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._outbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        with self._changed:
            self._wake = lambda: self._post({"bye": True})
        self._up.set()
        while self._leaving is None and self._refused is None:
            try:
                reader, writer = await self._reach()
            except WireError as error:
                since = (self._hopeless or time.monotonic()) if isinstance(error, NeverThere) else None
                self._set(_trouble=str(error), _hopeless=since)
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            silence = Silence(writer)
            try:
                await self._stay(reader, writer, silence)
                return
            except WireError as error:
                how = str(error)
                if self.nodes:
                    if self._leaving is None:
                        host = self.nodes[0]
                        what = f"{host.name} was lost: {silence.gone(how)}"
                        lost = node_lost(host.id, host.host, what, self.own.id)
                        self._set(gone=self.gone or lost, _first=self._first or lost)
                    return
                self._set(_trouble=how)
            finally:
                writer.close()
            await asyncio.sleep(_RETRY_SECONDS)

    async def _reach(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                return await asyncio.open_connection(self.terms.address, self.terms.port, limit=wire.CHUNK_BYTES)
        except OSError as error:
            raise await why_not_there(error, self.terms, self.own.host, _CONNECT_SECONDS) from None

    async def _stay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, silence: Silence) -> None:
        self._set(_trouble=foreign(self.terms))
        lines = wire.Lines(reader)
        try:
            channel, first = await introduce(lines, writer, self.own.hello(), self.terms)
        except NotProven:
            # Also the answer to a token that is not node 0's.
            self._set(
                _refused=f"what listens at {self.terms.endpoint} does not know our ALLRANKS_TOKEN: set the same on "
                "all nodes, or on none"
            )
            return
        lines.limit = wire.MAX_LINE_BYTES
        if "welcome" in first:
            await channel.send({"account": dict(self.own.account)})
            now = time.monotonic()
            self._set(_trouble="", _heard=now, _reached=self._reached or now)
        elif self._take_in(first):
            return
        hearing = asyncio.ensure_future(self._hear_on(channel))
        # Apart from each other: what cannot be sent must not keep silence from being noticed, nor a fault of ours.
        tasks = [hearing, asyncio.ensure_future(self._talk_on(channel)), asyncio.ensure_future(self._watch(silence))]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if hearing not in done and not any(task.exception() for task in done):
                await asyncio.wait([hearing], timeout=1.0)  # we said good-bye: node 0 closes when it has heard it
        finally:
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
        for end in ends:
            if isinstance(end, Exception):
                raise end

    async def _hear_on(self, channel: Channel) -> None:
        """Take in all that node 0 says, until its last word."""
        while True:
            message = await channel.receive()
            self._heard = time.monotonic()
            if self._take_in(message):
                return

    def _take_in(self, message: dict[str, Any]) -> bool:
        """Take in what node 0 says; True when that was the last word."""
        if "refused" in message:
            self._set(_refused=printable(message["refused"]))
            return True
        if "go" in message:
            try:
                nodes = [Participant.from_message(node) for node in message["go"]["nodes"]]
                if len(nodes) != self.own.nnodes:
                    raise ValueError(f"it has {len(nodes)} nodes")
                own = self.own if self.own.has_rank else replace(self.own, node_rank=int(message["go"]["you"]))
                if not 0 < own.node_rank < len(nodes):
                    raise ValueError(f"it has no place for {self.own.name}")
                notes = [printable(note, 1000) for note in message["go"].get("notes", [])[:_MOST_NOTES]]
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise WireError(f"its list of nodes cannot be read: {error}") from None
            self._set(notes=notes, run_id=printable(message["go"].get("run"), 100), own=own, nodes=nodes)
        elif "round" in message:
            if not self.nodes or len(self._answers) >= MOST_ROUNDS:
                raise WireError("answers what nobody asked")
            with self._changed:
                self._answers[printable(message["round"], 100)] = message.get("answer")
                self._changed.notify_all()
        elif "stopped" in message or "stopping" in message:
            if isinstance(node := message.get("node"), int) and 0 <= node < len(self.nodes):
                self._hear_of_ranks(node, message)
        elif "ask" in message:
            self._asked.put(message["ask"], 0, message.get("payload"))
        elif "trouble" in message:
            self._set(_told=printable(message["trouble"], 1000))
        elif "gone" in message:
            self._set(gone=self.gone or from_message(message["gone"]))
        elif "stop" in message:
            self._hear("another node", message["stop"])
        elif "bye" in message:
            self.parting = True
            if message["bye"] not in (DONE, PREEMPTED):
                host = self.nodes[0].name if self.nodes else f"{self.terms.host} at {self.terms.endpoint}"
                node = self.nodes[0].id if self.nodes else None
                self._set(gone=self.gone or from_message(message.get("finding")) or unexplained(node, host))
                self._hear(host, message.get("finding"), node)
            return True
        return False

    async def _talk_on(self, channel: Channel) -> None:
        """Pulses, and what the other thread has to say; ends with the good-bye."""
        while True:
            message: dict[str, Any] = {"pulse": True}
            with contextlib.suppress(TimeoutError):
                # Not wait_for, which in Python 3.11 may forget that it was cancelled.
                async with asyncio.timeout(wire.PULSE_SECONDS):
                    message = await self._outbox.get()
            is_last = "bye" in message
            if is_last:
                message = self._last_words
            elif "tell" in message:
                with self._changed:
                    message["payload"] = self._to_tell.pop(message["tell"])
            try:
                await channel.send(message)
            except OSError:
                # Nothing more can be said; what node 0 said before may still be read, and how it ended.
                await asyncio.get_running_loop().create_future()
            if is_last:
                return

    async def _watch(self, silence: Silence) -> None:
        """Raises WireError when node 0 has fallen silent."""
        clock = wire.Clock()
        while True:
            await asyncio.sleep(wire.PULSE_SECONDS)
            silence.look(time.monotonic() - self._heard)
            node_0 = self.nodes[0].name if self.nodes else "node 0"
            if clock.on_time() and self.signs_of_life.is_lost(node_0, self._heard, self._silence_seconds):
                raise WireError(silence.why(self._silence_seconds))
