"""What a rank lets its node look at while it hangs: its Python stacks and PyTorch's flight recorder.

Both lie in memory that the launcher reads through /proc: a rank that waits for a dead disk can write to none. Nothing
is done until somebody asks, and no answer touches a device or a collective.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from allranks.evidence.rank_memory import LAUNCH_ID, NAME, RUN_ID, VERSION, Description

STACKS_SIGNAL = signal.SIGUSR2

_installed: list[object] = []  # kept open, and alive, until the process ends


def install_evidence(rank: int, output_dir: Path) -> bool:
    """Let this process answer who asks for its stacks or its flight recorder; False where the system lacks the means.

    SIGUSR2 makes the C code of faulthandler write the stacks of all threads, whatever the main thread does. A byte into
    a pipe wakes a thread that writes the flight recorder's entries: it needs the interpreter's lock, which
    collectives give up while they wait.
    """
    if _installed or not hasattr(os, "memfd_create"):
        return bool(_installed)
    try:
        description, stacks, recorder = (_memory(f"{NAME}{kind}") for kind in ("", "-stacks", "-recorder"))
        asking, ask = os.pipe()
    except OSError:  # too many open files: the run does not need this
        return False
    said = Description(
        rank=rank,
        run=os.environ.get(RUN_ID, ""),
        launch=os.environ.get(LAUNCH_ID, ""),
        output_dir=os.path.realpath(output_dir),
        pid=os.getpid(),
        thread=threading.get_ident(),
        native_thread=threading.get_native_id(),
        ask_fd=ask,
        stacks_fd=stacks,
        recorder_fd=recorder,
    )
    os.write(description, json.dumps(said.to_message()).encode())
    faulthandler.register(STACKS_SIGNAL, file=stacks, all_threads=True, chain=False)
    thread = threading.Thread(target=_answer, args=(asking, recorder), name="evidence", daemon=True)
    thread.start()
    _installed.extend((description, stacks, recorder, asking, ask, thread))
    return True


def recorded() -> dict[str, Any]:
    """What the flight recorders of this process hold now, with the ranks of each process group."""
    torch = sys.modules.get("torch")
    dumps: dict[str, Any] = {"version": VERSION, "recorders": [], "groups": {}}
    # None before torch is imported: it has entered no collective yet.
    c10d = getattr(getattr(torch, "_C", None), "_distributed_c10d", None)
    # With their stacks the entries take seconds to write down, some 16 for a dozen: the C++ frames are looked up.
    for name in ("_dump_fr_trace_json", "_dump_nccl_trace_json"):
        if (dump := getattr(c10d, name, None)) is not None:
            with contextlib.suppress(RuntimeError, ValueError, TypeError):
                dumps["recorders"].append(json.loads(dump(True, False)))
    if (distributed := sys.modules.get("torch.distributed.distributed_c10d")) is not None:
        dumps["groups"] = _groups(distributed)
    return dumps


def _groups(distributed: Any) -> dict[str, Any]:
    """By name: gloo's recorder does not say which ranks a group has."""
    world = distributed._world
    found: dict[str, Any] = {}
    for group, name in list(world.pg_names.items()):
        with contextlib.suppress(AttributeError, KeyError):
            desc = getattr(group, "group_desc", "")
            found[str(name)] = {"desc": str(desc), "ranks": sorted(world.pg_group_ranks[group])}
    return found


def _answer(asking: int, recorder: int) -> None:
    while request := os.read(asking, 64):
        try:
            answer = recorded()
        except Exception as error:  # whatever a version of torch does: a rank does not end of being asked
            answer = {"version": VERSION, "error": f"{type(error).__name__}: {error}"}
        # The number of the newest request says that this is the answer to it.
        answer["request"] = request.split()[-1].decode(errors="replace") if request.split() else ""
        with contextlib.suppress(OSError):  # no memory is left
            os.ftruncate(recorder, 0)
            _write(recorder, json.dumps(answer).encode())


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _memory(name: str) -> int:
    """A file in memory that is written at its end, wherever that has been cut to."""
    fd = os.memfd_create(name)
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_APPEND)
    return fd
