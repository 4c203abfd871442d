"""Ask a rank of this machine for its stacks and its flight recorder, through /proc: see in_program/allranks_answers.py.

What is read and signalled is only a process that holds the files in memory which ranks of ours make, and which say of
which run it is: no file, and no number that somebody wrote down, can direct a signal at another one.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from allranks.evidence.in_program.allranks_answers import NAME, STACKS_SIGNAL

RUN_ID, LAUNCH_ID = "ALLRANKS_RUN_ID", "ALLRANKS_LAUNCH_ID"

_POLL_SECONDS = 0.02
_SETTLED_SECONDS = 0.15  # faulthandler writes line by line and marks no end
_DESCRIPTION_BYTES = 16_384
_STACKS_BYTES = 2**20
_RECORDER_BYTES = 16 * 2**20  # 2,000 entries have about 1 MB
_LINK = f"/memfd:{NAME}"


@dataclass(frozen=True)
class Description:
    """What a rank says of itself: which it is, and the descriptors, in its own process, by which it can be asked.

    `run` and `launch` are "" where a launcher of the user's started it.
    """

    rank: int
    run: str
    launch: str
    output_dir: str
    pid: int
    thread: int
    """Its identifier in Python: the one that trains."""
    native_thread: int
    """The same to the kernel."""
    ask_fd: int
    stacks_fd: int
    recorder_fd: int

    def to_message(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class RankProcess:
    """A process that is a rank. `start_time` (see below) tells it from a later one of its number; `said` is None for
    one that cannot be asked: anyone's program that is not Python's, or was started without our hook."""

    rank: int
    pid: int
    start_time: int
    said: Description | None = None


def ranks_here(*, run_id: str = "", output_dir: str | Path = "", launch_id: str = "") -> list[RankProcess]:
    """The processes on this machine that are the run's ranks, by rank; with `launch_id` only those of one launch.

    A run is told by its id, or without one by the folder that its ranks write into. Processes of other users that may
    not be looked at are passed over.
    """
    place = os.path.realpath(output_dir) if output_dir and not run_id else ""
    found: dict[tuple[str, int], RankProcess] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        process = _rank_of(int(folder.name), run_id, place, launch_id)
        if process is not None:
            # What a rank of anyone's program starts inherits its environment, and began later. Where a script of the
            # shell starts it, the one that answers is meant.
            launch = process.said.launch if process.said else environment(process.pid).get(LAUNCH_ID, "")
            first = found.get((launch, process.rank))
            if first is None or _order(process) < _order(first):
                found[launch, process.rank] = process
    return sorted(found.values(), key=lambda one: one.rank)


def _order(process: RankProcess) -> tuple[bool, int]:
    return process.said is None, process.start_time


def _rank_of(pid: int, run_id: str, output_dir: str, launch_id: str) -> RankProcess | None:
    started = start_time(pid)
    if started is None:
        return None
    said = describe(pid)
    if said is not None:
        if said.pid != _own_number(pid):
            return None  # what the rank has forked, such as workers that load data, has its memory
        is_of_run = (run_id and said.run == run_id) or (output_dir and said.output_dir == output_dir)
        if is_of_run and launch_id in ("", said.launch):
            return RankProcess(said.rank, pid, started, said)
        return None
    if is_in_the_kernel(pid):
        return None  # to read its environment may take as long as it waits
    env = environment(pid)
    rank = env.get("RANK", "")
    if not run_id or env.get(RUN_ID) != run_id or not rank.isdecimal() or launch_id not in ("", env.get(LAUNCH_ID)):
        return None
    return RankProcess(int(rank), pid, started)


def describe(pid: int) -> Description | None:
    """What the process says of itself; None where it is no rank that can be asked."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            if _links_to(fd, f"{_LINK} (deleted)"):
                said = json.loads(_head(fd, _DESCRIPTION_BYTES))
                kinds = Description.__annotations__
                given = {name: said[name] for name in kinds}
                if all(isinstance(given[name], int if kinds[name] == "int" else str) for name in kinds):
                    return Description(**given)
    return None


def python_stacks(process: RankProcess, *, deadline: float) -> str:
    """faulthandler's text of all threads of a rank; raises CannotAsk.

    `deadline` is of time.monotonic(). A process that is stopped or held in the kernel does not answer.
    """
    pid = process.pid
    with _held(process) as (description, send):
        if not handles(pid, STACKS_SIGNAL):  # it would die of the signal
            raise CannotAsk(f"it has no handler of signal {STACKS_SIGNAL}")
        path = Path(f"/proc/{pid}/fd/{description.stacks_fd}")
        if not _links_to(path, f"{_LINK}-stacks (deleted)"):
            raise CannotAsk("its file of stacks has been closed")
        with _alone(path, deadline):
            os.truncate(path, 0)
            send(STACKS_SIGNAL)
            return _settled(path, deadline)


def stacks_of_worker(process: RankProcess, pid: int, *, deadline: float) -> str:
    """The same of `pid`, a process that the rank has forked, such as one that loads data; raises CannotAsk.

    It has the rank's handler and, as its own descriptor, the same file in memory.
    """
    with _held(process) as (description, _):
        own, path = (Path(f"/proc/{one}/fd/{description.stacks_fd}") for one in (process.pid, pid))
        try:
            pidfd = os.pidfd_open(pid)
            try:
                if not _links_to(path, f"{_LINK}-stacks (deleted)") or not path.samefile(own):
                    raise CannotAsk("it has not been forked by the rank")
                if not handles(pid, STACKS_SIGNAL):
                    raise CannotAsk(f"it has no handler of signal {STACKS_SIGNAL}")
                with _alone(path, deadline):
                    os.truncate(path, 0)
                    signal.pidfd_send_signal(pidfd, STACKS_SIGNAL)
                    return _settled(path, deadline)
            finally:
                os.close(pidfd)
        except OSError as error:
            raise CannotAsk(f"process {pid}: {error.strerror}") from None


def flight_recorder(process: RankProcess, *, deadline: float) -> dict[str, Any]:
    """What `recorded` in the rank says; raises CannotAsk."""
    pid = process.pid
    with _held(process) as (description, _):
        answer = Path(f"/proc/{pid}/fd/{description.recorder_fd}")
        ask = Path(f"/proc/{pid}/fd/{description.ask_fd}")
        if not _links_to(answer, f"{_LINK}-recorder (deleted)") or not str(ask.readlink()).startswith("pipe:"):
            raise CannotAsk("its flight recorder's file has been closed")
        if not answer.stat().st_size:
            raise CannotAsk("it has not loaded torch.distributed")
        with _alone(answer, deadline):
            return _dumped(ask, answer, deadline)


def _dumped(ask: Path, answer: Path, deadline: float) -> dict[str, Any]:
    number = f"{os.getpid()}.{time.monotonic_ns()}"
    pipe = os.open(ask, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.write(pipe, f"{number}\n".encode())
    except BlockingIOError:
        raise CannotAsk("it has not answered earlier questions") from None
    finally:
        os.close(pipe)
    while time.monotonic() < deadline:
        with contextlib.suppress(ValueError):
            said = json.loads(_head(answer, _RECORDER_BYTES))
            if isinstance(said, dict) and said.get("request") == number:
                return said
        time.sleep(_POLL_SECONDS)
    raise CannotAsk("its thread for that got no turn: the interpreter's lock is held, or the process does not run")


@contextlib.contextmanager
def _alone(path: Path, deadline: float) -> Iterator[None]:
    """Nobody else asks meanwhile, as a launcher and somebody at a terminal would: the answer would be cut."""
    with path.open("rb") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise CannotAsk("somebody else has been asking it all the time") from None
            time.sleep(_POLL_SECONDS)
        yield


class CannotAsk(Exception):
    """Why a process was not asked, or did not answer."""


@contextlib.contextmanager
def _held(process: RankProcess) -> Iterator[tuple[Description, Callable[[int], None]]]:
    """What the process says of itself, and how to send it a signal: to it and to no later one of its number."""
    if process.said is None:
        raise CannotAsk("nothing of ours is in it, which only Python takes in, and not with --no-ask-ranks")
    try:
        pidfd = os.pidfd_open(process.pid)
        try:
            # Only now, when the number cannot become another's unnoticed.
            if start_time(process.pid) != process.start_time or describe(process.pid) != process.said:
                raise CannotAsk(f"process {process.pid} has ended")
            yield process.said, lambda number: signal.pidfd_send_signal(pidfd, number)
        finally:
            os.close(pidfd)
    except OSError as error:
        raise CannotAsk(f"process {process.pid}: {error.strerror}") from None


def handles(pid: int, number: int) -> bool:
    """Whether the process has a handler of its own for the signal (SigCgt of proc(5))."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        status = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
        caught = next(line for line in status if line.startswith("SigCgt:"))
        return bool(int(caught.split()[1], 16) >> (number - 1) & 1)
    return False


def environment(pid: int) -> Mapping[str, str]:
    """The environment that the process began with; empty where it may not be read."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
        return dict(word.split("=", 1) for word in words if "=" in word)
    return {}


def _own_number(pid: int) -> int:
    """The process's number as it knows it itself: in a container that is another one (NSpid of proc(5))."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        status = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
        return int(next(line for line in status if line.startswith("NSpid:")).split()[-1])
    return pid


def is_in_the_kernel(pid: int) -> bool:
    """Whether the process waits in the kernel, as for a disk, and hears nothing meanwhile: state D."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] == "D"
    return False


def start_time(pid: int) -> int | None:
    """In clock ticks since the machine began: with its number, what tells a process from any other."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[19])
    return None


def _settled(path: Path, deadline: float) -> str:
    size, since = 0, time.monotonic()
    while (now := time.monotonic()) < deadline:
        found = path.stat().st_size
        if found != size:
            size, since = found, now
        elif size and now - since >= _SETTLED_SECONDS:
            break
        time.sleep(_POLL_SECONDS)
    if not size:
        raise CannotAsk("it did not answer: it is stopped, or waits in the kernel")
    return _head(path, _STACKS_BYTES).decode(errors="replace")


def _head(path: Path, most: int) -> bytes:
    with path.open("rb") as file:
        return file.read(most)


def _links_to(path: Path, target: str) -> bool:
    with contextlib.suppress(OSError):
        return str(path.readlink()) == target
    return False
