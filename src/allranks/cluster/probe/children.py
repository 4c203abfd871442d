"""Ask all sources at once, each in a child of its own, and be done by a deadline whatever they do.

A driver that hangs ignores signals, and a dead mount holds whoever looks at it in the kernel: such a child is killed,
with all that descends from it, and left to the kernel. It holds nothing open that a reader of our output waits for.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import selectors
import signal
import threading
import time
from typing import Any, Callable, Iterable, Mapping

from allranks.cluster.probe.node import ToolFailed, ToolMissing
from allranks.parent import die_with_parent

Found = Mapping[str, Any]
"""Parts of the document by section. Of one section a source gives a table piece by piece; a list it gives anew, longer
each time."""
Ask = Callable[["Reporter"], Iterable[Found]]

_PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
_ANSWER_BYTES = 8 * 2**20
"""More than 1,024 names with their addresses, or 256 ports with all their GIDs."""
_REAP_SECONDS = 0.2
"""For the killed to be gone, so that nobody finds them; who is held in the kernel is not waited for."""


class Reporter:
    """How a source's child tells its parent what it waits for, and what would need root."""

    def __init__(self, source: str, pipe: int) -> None:
        self.source = source
        self._pipe = pipe
        self._lock = threading.Lock()

    def doing(self, what: str) -> None:
        self.send({"doing": what})

    def withheld(self, place: str, why: str) -> None:
        self.send({"withheld": {place: why}})

    def failed(self, why: str, part: str = "") -> None:
        """This source, or a part of it, gave no answer."""
        self.send({"unanswered": {f"{self.source}: {part}" if part else self.source: why}})

    def send(self, message: Mapping[str, Any]) -> None:
        line = json.dumps(message).encode() + b"\n"
        with self._lock:
            while line:
                line = line[os.write(self._pipe, line) :]


class Answer:
    """What has come from one source."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}
        self.withheld: dict[str, str] = {}
        self.unanswered: dict[str, str] = {}
        self.doing = ""
        self.is_done = False
        self._rest = b""
        self._size = 0

    def take(self, data: bytes) -> None:
        """Raises ValueError for more than any source has to say."""
        self._size += len(data)
        if self._size > _ANSWER_BYTES:
            raise ValueError("answered without an end")
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            self.doing = message.get("doing", self.doing)
            self.is_done = self.is_done or "done" in message
            self.withheld.update(message.get("withheld", {}))
            self.unanswered.update(message.get("unanswered", {}))
            for section, value in message.get("found", {}).items():
                if isinstance(value, dict):
                    self.found.setdefault(section, {}).update(value)
                else:
                    self.found[section] = value


def ask_all(sources: Mapping[str, Ask], seconds: float, longer: Mapping[str, float] = {}) -> dict[str, Answer]:
    """The answers of all sources, as far as they came within `seconds`; each tells in `unanswered` what did not.

    `longer`: sources that may take so many seconds in place of those.
    """
    started = time.monotonic()
    allowed = {name: longer.get(name, seconds) for name in sources}
    with contextlib.suppress(OSError, AttributeError):  # so that no grandchild gets away
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    answers = {name: Answer() for name in sources}
    children: dict[str, int] = {}
    with selectors.DefaultSelector() as selector:
        for name, ask in sources.items():
            try:
                pid, pipe = _start(name, ask, allowed[name], [key.fd for key in selector.get_map().values()])
            except OSError as error:  # no more processes, or files, for this user
                answers[name].unanswered[name] = f"could not be asked: {error.strerror}"
                continue
            children[name] = pid
            selector.register(pipe, selectors.EVENT_READ, name)
        ended = _listen(selector, answers, {name: started + allowed[name] for name in children})
        for name in children:
            answer = answers[name]
            if name not in ended:
                waiting = f": {answer.doing}" if answer.doing else ""
                answer.unanswered[name] = f"did not answer in {allowed[name]:g} s{waiting}"
            elif not answer.is_done:
                answer.unanswered.setdefault(name, _how_it_ended(children[name]))
    end_all()
    return answers


def end_all() -> None:
    """Kill all that descends from this process, whatever session it made for itself."""
    deadline = time.monotonic() + _REAP_SECONDS
    while True:
        alive = _descendants(os.getpid())
        for pid in alive:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not alive or time.monotonic() > deadline:
            return
        time.sleep(0.002)


def _start(name: str, ask: Ask, seconds: float, others: list[int]) -> tuple[int, int]:
    """Raises OSError."""
    read, write = os.pipe()
    parent = os.getpid()
    try:
        pid = os.fork()
    except OSError:
        os.close(read)
        os.close(write)
        raise
    if pid:
        os.close(write)  # before the next child is made, which would keep it open
        return pid, read
    try:
        _be_a_child(parent, write, [read, *others], seconds)
        _answer(ask, Reporter(name, write))
    except BaseException:  # neither a traceback nor a second copy of the parent must come of it
        os._exit(1)
    os._exit(0)


def _be_a_child(parent: int, write: int, others: list[int], seconds: float) -> None:
    os.setsid()
    for ending in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(ending, signal.SIG_DFL)
    die_with_parent(parent_pid=parent)
    # Where the parent is killed while nothing else can be done about it, the kernel ends this one a little later.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds + 1)
    for number in others:
        os.close(number)
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):  # whoever reads the probe's output must not wait for this one
        os.dup2(nothing, number)


def _answer(ask: Ask, reporter: Reporter) -> None:
    try:
        for found in ask(reporter):
            reporter.send({"found": found})
    except ToolMissing:  # where it should be there, the source says so
        pass
    except ToolFailed as failure:
        reporter.failed(str(failure))
    except Exception as error:
        reporter.failed(f"ended with {type(error).__name__}: {error}"[:300])
    reporter.send({"done": True})


def _listen(
    selector: selectors.BaseSelector, answers: Mapping[str, Answer], deadlines: Mapping[str, float]
) -> set[str]:
    """Take what comes until each source's deadline; the sources that have ended, or said too much."""
    ended: set[str] = set()

    def forget(key: selectors.SelectorKey) -> None:
        selector.unregister(key.fd)
        os.close(key.fd)

    while True:
        now = time.monotonic()
        for key in [key for key in selector.get_map().values() if deadlines[key.data] <= now]:
            forget(key)
        left = [deadlines[key.data] - now for key in selector.get_map().values()]
        if not left:
            return ended
        for key, _ in selector.select(min(left)):
            data = os.read(key.fd, 2**16)
            try:
                answers[key.data].take(data)
            except ValueError as error:
                answers[key.data].unanswered[key.data] = f"could not be read: {error}"
                data = b""
            if not data:
                ended.add(key.data)
                forget(key)


def _how_it_ended(pid: int) -> str:
    deadline = time.monotonic() + _REAP_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(ChildProcessError):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done and os.WIFSIGNALED(status):
                return f"ended with {signal.Signals(os.WTERMSIG(status)).name}"
            if done:
                break
        time.sleep(0.002)
    return "ended without an answer"


def _descendants(top: int) -> list[int]:
    """All processes below `top` that are not dead yet. Reads only what answers for a hanging process too."""
    parents = {}
    try:
        processes = os.listdir("/proc")
    except OSError:
        return []
    for name in processes:
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError):
                with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                    state, parent = file.read().rpartition(")")[2].split()[:2]
                if state not in "ZX":
                    parents[int(name)] = int(parent)
    found: list[int] = []
    for pid in parents:
        above = pid
        while above in parents and above != top:
            above = parents[above]
        if above == top and pid != top:
            found.append(pid)
    return found
