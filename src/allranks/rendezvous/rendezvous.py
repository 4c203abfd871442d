"""This node's side of the rendezvous, run by a thread of its own while the launcher does its work."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from allranks.doctor.causes import CHANNEL_FAULT, is_cause
from allranks.doctor.first_failure import first_failure, goes_before
from allranks.doctor.node_errors import unexplained
from allranks.errors import RefusedError
from allranks.exit_codes import FAILED
from allranks.findings import Finding, Who, from_message, told
from allranks.rendezvous.hidden import Hidden
from allranks.rendezvous.newest import Newest, fits
from allranks.rendezvous.participant import Agreement, Participant
from allranks.rendezvous.signs_of_life import SignsOfLife
from allranks.rendezvous.terms import Terms

_TELL_FIRST_SECONDS = 5.0
"""Whoever starts nodes by hand still looks at this terminal; nodes that are started at once have met by then."""
_TELL_EVERY_SECONDS = 30.0
# That a failing node waits for the others' account of it: longer than their launchers take for their last words.
_WORD_SECONDS = 3.0
# Preparing data may keep Python's lock for long; a lost connection is seen at once all the same.
PATIENT_SECONDS = 180.0
# A round is closed by node 0; its answer may be under way for so long.
ANSWER_SECONDS = 10.0
MOST_STOPPED = 64  # ranks of a node that are told of
MOST_ROUNDS = 64
"""Open at a time, as far as another node may say."""

_T = TypeVar("_T")


class Rendezvous(ABC):
    """What node 0 and every other node have in common: what is known, and the thread that talks."""

    def __init__(self, own: Participant, terms: Terms, agreement: Agreement, say: Callable[[str], None]) -> None:
        self.own, self.terms, self.agreement, self._say = own, terms, agreement, say
        self.run_id = terms.run_id
        self.hidden: Hidden | None = None  # on node 0: how to write what not every node may read
        self.nodes: list[Participant] = []  # by node rank, once all have met; without what the others handed in
        self.notes: list[str] = []  # in what the nodes differ, and may
        self.accounts: dict[int, Mapping[str, Any]] = {}  # by node rank; on node 0, once all are ready
        self._changed = threading.Condition()
        self._refused: str | None = None
        self._first: Finding | None = None  # why another node failed, as far as that is known
        self.parting = False  # another node has said good-bye
        self.gone: Finding | None = None
        """The first node that has left, or was lost, whatever had ended the run before: who takes part no more."""
        self.stopping = False  # another node was asked to stop the run
        self.stopped: dict[int, tuple[Finding, ...]] = {}  # by node rank: ranks that do not run, as that node sees it
        self._news, self._asked = Newest(), Newest()
        self.signs_of_life = SignsOfLife(say)
        self.refused_elsewhere: Callable[[], str | None] = lambda: None
        self._leaving: tuple[int, Finding | None] | None = None
        self._ended = False  # the thread that talks
        self._patient = True
        self._wake: Callable[[], None] = lambda: None
        self._up = threading.Event()
        self._loop: asyncio.AbstractEventLoop
        self._thread = threading.Thread(target=self._run, name="rendezvous", daemon=True)

    @property
    def world_size(self) -> int:
        """The number of ranks that all nodes together will start."""
        return sum(node.num_processes for node in self.nodes)

    @abstractmethod
    def gather(self) -> None:
        """Start talking; returns when all nodes are there and agree. Raises RefusedError."""

    @abstractmethod
    def round(
        self,
        name: str,
        payload: object,
        deadline_seconds: float | None = None,
        *,
        decide: Callable[[Sequence[Any]], object] | None = None,
    ) -> Any:
        """Every node hands in a `payload` (plain JSON); when all have, each gets the list of all, by node rank.

        With `decide` each gets what that makes of the list on node 0, where alone it is called; a RefusedError of its
        is raised everywhere. Raises RefusedError that names who was missing `deadline_seconds` after node 0 came to
        the round itself; without a deadline it lasts as long as all nodes are alive. A name serves for one round of a
        run.
        """

    def ready(self, account: Mapping[str, Any]) -> None:
        """Wait until every node is ready to start its ranks, and all agree by their accounts. Raises RefusedError.

        Node 0 then finds all of them in `accounts`. There is no deadline as long as all nodes are alive: preparing data
        takes what it takes.
        """
        self.round("ready", dict(account), decide=self._all_ready)
        self._patient = False

    def _all_ready(self, told: Sequence[Any]) -> None:
        """On node 0: compare what all are about to run, and make room for the launcher. Raises RefusedError."""
        raise NotImplementedError  # no other node is asked

    def run(self, work: Coroutine[Any, Any, _T], waiting_for: str) -> _T:
        """Do `work` beside the talking; `waiting_for` says what this node is waiting for. Raises what it raises, and
        RefusedError when another node fails or is lost meanwhile."""
        try:
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:  # nobody is left to talk to
            work.close()
            raise RefusedError(self.stop_reason() or f"the other nodes have gone: {waiting_for}") from None
        future.add_done_callback(lambda _: self._set())
        try:
            self._wait(future.done, lambda: waiting_for)
            return future.result()
        finally:
            future.cancel()

    def stop_finding(self) -> Finding | None:
        """Why this node has to stop: another one failed or was lost. None while all is well."""
        return self._first

    def stop_reason(self) -> str | None:
        """What `stop_finding` tells, for a message."""
        return None if self._first is None else told(self._first)

    def settled_finding(self, known: Finding) -> Finding:
        """Why to stop, where this node did so for `known`: what another node felt first may have had a cause.

        Waits as long as a failing node does for the others' account.
        """
        with self._changed, contextlib.suppress(TimeoutError):
            if not is_cause(known.code) and self._first is known:
                self._changed.wait_for(lambda: self._first is not known or self._ended, _WORD_SECONDS)
        return self._first or known

    def fail(self, finding: Finding) -> Finding | None:
        """Tell the others why this node fails, so that they stop; returns why another one failed, if one did first."""
        if self._first is None:
            self._tell_failure(finding)
            with self._changed, contextlib.suppress(TimeoutError):
                # What began elsewhere often shows here first, as a broken connection.
                self._changed.wait_for(lambda: self._first is not None, _WORD_SECONDS)
        if self._first is not None and first_failure([self._first, finding]) is finding:
            return None  # that one follows from ours
        return self._first

    def tell_cause(self, finding: Finding) -> None:
        """Tell the others of what another node's failure, of which all know, follows from. Waits for nobody."""
        if goes_before(finding, self._first):
            self._set(_first=finding)
            self._tell_failure(finding)

    def _hear(self, name: str, said: object, node: int | str | None = None) -> bool:
        """Called by the talking thread: the node `name` failed, with a finding in its message, or none.

        Whether this comes before what was known.
        """
        finding = from_message(said) or unexplained(node, name)
        if not goes_before(finding, self._first):
            return False
        self._set(_first=finding)
        return True

    @abstractmethod
    def _tell_failure(self, finding: Finding) -> None: ...

    def end_all(self, finding: Finding) -> None:
        """On node 0: end the run on every node, this one among them, for something that is no failure of its own."""
        raise NotImplementedError  # no other node is asked

    def tell_stopped(self, findings: Sequence[Finding]) -> None:
        """Tell the others which ranks of this node do not run at present; instead of what was told before."""
        self.stopped[self.own.node_rank] = tuple(findings)
        self._tell_all({"stopped": [finding.to_message() for finding in findings[:MOST_STOPPED]]})

    def tell_stopping(self) -> None:
        """Tell the others that this node was asked to stop the run: ranks that are stopped must hear of it."""
        self._tell_all({"stopping": True})

    @abstractmethod
    def _tell_all(self, message: dict[str, Any]) -> None: ...

    @abstractmethod
    def tell(self, topic: str, payload: object) -> bool:
        """Tell node 0 a `payload` (plain JSON) about a topic, in the place of what it has not taken yet.

        Never waits. False for a payload that is too large. What cannot be sent, as when the other side takes nothing,
        is given up for what is newer.
        """

    def take(self, topic: str) -> list[tuple[int, Any]]:
        """On node 0: what the nodes, itself among them, told of the topic since the last call, by node rank.

        Whatever JSON another node sent: who takes it checks it.
        """
        return self._news.take(topic)

    def ask_all(self, topic: str, payload: object) -> bool:
        """On node 0: ask every node, itself among them, something. False for a payload that is too large."""
        if not fits(topic, payload):
            return False
        self._asked.put(topic, 0, payload)
        self._tell_all({"ask": topic, "payload": payload})
        return True

    def asked(self, topic: str) -> list[Any]:
        """What node 0 asked of the topic since the last call: the newest, or nothing."""
        return [payload for _, payload in self._asked.take(topic)]

    def _hear_of_ranks(self, node_rank: int, message: Mapping[str, Any]) -> None:
        """Called by the talking thread with what a node says by `tell_stopped` or `tell_stopping`."""
        if "stopping" in message:
            self._set(stopping=True)
        elif isinstance(said := message["stopped"], list):
            found = tuple(finding for one in said[:MOST_STOPPED] if (finding := from_message(one)) is not None)
            self._set(stopped={**self.stopped, node_rank: found})

    def leave(self, code: int, finding: Finding | None = None) -> None:
        """Say good-bye; `code` and, for a failure, `finding` tell the others how it ended here."""
        with self._changed:
            if self._leaving is not None:
                return
            self._leaving = (code, finding)
        with contextlib.suppress(RuntimeError):  # it has ended by itself
            self._wake()
        if self._thread.is_alive():
            self._thread.join(timeout=3.0)

    def _start_talking(self) -> None:
        self._thread.start()
        self._up.wait()

    def _run(self) -> None:
        try:
            asyncio.run(self._talk())
        except BaseException as error:
            self._fail(error)
        finally:
            self._up.set()
            self._set(_ended=True)

    @abstractmethod
    async def _talk(self) -> None: ...

    def _fail(self, error: BaseException) -> Finding:
        """A fault of ours in the talking thread: who waits for it must hear of it, and the run ends with its reason."""
        what = f"{self.own.name}: what talks to the other nodes failed: {error!r}"
        finding = Finding(CHANNEL_FAULT, what, who=Who(self.own.id), known_at=self.own.id)
        if self._leaving is None and self._first is None:
            self._set(_first=finding)
        return finding

    @property
    def _last_words(self) -> dict[str, Any]:
        code, finding = self._leaving or (FAILED, None)
        return {"bye": code, "finding": told_by(self.own, finding).to_message() if finding else None}

    def _set(self, **values: object) -> None:
        """Called by the talking thread: what it learnt, for the thread that waits."""
        with self._changed:
            for name, value in values.items():
                setattr(self, name, value)
            self._changed.notify_all()

    def _wait_for_nodes(self, done: Callable[[], bool], waiting: Callable[[], str], deadline: float) -> bool:
        """`_wait` where the nodes have not met yet: who does not come, and why, is told early.

        It also ends, as if done, when `refused_elsewhere` says why.
        """
        return self._wait(
            lambda: done() or self.refused_elsewhere() is not None,
            waiting,
            deadline,
            first_word_seconds=_TELL_FIRST_SECONDS,
        )

    def _wait(
        self,
        done: Callable[[], bool],
        waiting: Callable[[], str],
        deadline: float | None = None,
        *,
        first_word_seconds: float | None = None,
    ) -> bool:
        """Wait for `done`, a refusal (raised) or the deadline (False); from time to time `waiting` says for what."""
        next_word = time.monotonic() + (first_word_seconds or _TELL_EVERY_SECONDS)
        while True:
            with self._changed:
                if not done() and self._refused is None and self._first is None:
                    # Short waits: a signal's handler runs only between them.
                    self._changed.wait(0.2)
                if done():  # it holds, whatever has come after it
                    return True
                if self._refused is not None:
                    raise RefusedError(self._refused)
                if (why := self.stop_reason()) is not None:
                    raise RefusedError(why)
                if self._ended:
                    raise RefusedError(f"the other nodes have gone: {waiting()}")
            now = time.monotonic()
            if deadline is not None and now > deadline:
                return False
            if now > next_word:
                next_word = now + _TELL_EVERY_SECONDS
                self._say(waiting())

    @property
    def _silence_seconds(self) -> float:
        return max(PATIENT_SECONDS, self.terms.silence_seconds) if self._patient else self.terms.silence_seconds


def told_by(node: Participant, finding: Finding) -> Finding:
    """What a node tells of itself, as it is told on: with its name."""
    what = finding.what if finding.what.startswith(node.name) else f"{node.name}: {finding.what}"
    who = finding.who if finding.who.node is not None else replace(finding.who, node=node.id)
    return replace(finding, what=what, who=who)
