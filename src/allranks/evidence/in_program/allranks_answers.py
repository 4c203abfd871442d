"""What a rank lets its node look at while it hangs: its Python stacks and PyTorch's flight recorder.

Both lie in memory that the launcher reads through /proc: a rank that waits for a dead disk can write to none. Nothing
is done until somebody asks, and no answer touches a device or a collective.

It is in our own ranks and in those of anyone's program, before that begins and in whatever Python it takes. So it knows
nothing of ours, and imports at first only what is built into Python: any other name may be that of a file of the
user's.
"""

from __future__ import annotations

import atexit
import faulthandler
import fcntl
import os
import sys
from _thread import get_ident, get_native_id, start_new_thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

NAME = "allranks-evidence"
VERSION = 1
# A real-time signal, SIGRTMAX - 3: programs and runtimes have uses of their own for SIGUSR1 and SIGUSR2 (Slurm's
# requeueing, Java), glibc and Mono for the lowest of these, and Valgrind for the highest.
STACKS_SIGNAL = 61
LAST_ENTERED = "entered.json"
"""After a rank's number, beside its log: see doctor/last_entered.py."""

_C10D = "torch.distributed.distributed_c10d"
_installed: list[object] = []  # kept open, and alive, until the process ends


def answer(rank: int, output_dir: str) -> bool:
    """Let this process answer who asks for its stacks or its flight recorder; False where the system lacks the means.

    A signal makes the C code of faulthandler write the stacks of all threads, whatever the main thread does. A line in
    a pipe wakes a thread that writes the flight recorder's entries: it needs the interpreter's lock, which collectives
    give up while they wait. The thread begins with torch.distributed: programs without it stay without threads.
    """
    if _installed or not hasattr(os, "memfd_create"):
        return bool(_installed)
    try:
        description, stacks, recorder = (_memory(f"{NAME}{kind}") for kind in ("", "-stacks", "-recorder"))
        asking, ask = os.pipe()
    except OSError:  # too many open files: the run does not need this
        return False
    numbers = {
        "version": VERSION,
        "rank": rank,
        "pid": os.getpid(),
        "thread": get_ident(),
        "native_thread": get_native_id(),
        "ask_fd": ask,
        "stacks_fd": stacks,
        "recorder_fd": recorder,
    }
    # Which run it is, the launcher says in the environment; without one of ours nobody does.
    words = {name.lower(): os.environ.get(f"ALLRANKS_{name}_ID", "") for name in ("RUN", "LAUNCH")}
    words["output_dir"] = os.path.realpath(output_dir)
    said = [f'"{name}": {number}' for name, number in numbers.items()]
    said += [f'"{name}": {_quoted(word)}' for name, word in words.items()]
    os.write(description, f"{{{', '.join(said)}}}".encode())
    faulthandler.register(STACKS_SIGNAL, file=stacks, all_threads=True, chain=False)
    begins = _WithTorch(asking, recorder)
    if _C10D in sys.modules:
        begins()
    else:
        sys.meta_path.insert(0, begins)
    _installed.extend((description, stacks, recorder, asking, ask))
    if folder := os.environ.get("ALLRANKS_LOG_DIR"):  # of the node's logs
        atexit.register(_keep_last_entered, f"{folder}/rank-{rank:05d}.{LAST_ENTERED}")
    return True


def recorded() -> dict[str, Any]:
    """What the flight recorders of this process hold now, with the ranks of each process group."""
    import contextlib
    import json

    torch = sys.modules.get("torch")
    dumps: dict[str, Any] = {"version": VERSION, "recorders": [], "groups": {}}
    # None before torch is imported: it has entered no collective yet.
    c10d = getattr(getattr(torch, "_C", None), "_distributed_c10d", None)
    # With their stacks the entries take seconds to write down, some 16 for a dozen: the C++ frames are looked up.
    for name in ("_dump_fr_trace_json", "_dump_nccl_trace_json"):
        dump = getattr(c10d, name, None)
        if dump is not None:
            with contextlib.suppress(RuntimeError, ValueError, TypeError):
                dumps["recorders"].append(json.loads(dump(True, False)))
    distributed = sys.modules.get(_C10D)
    if distributed is not None:
        dumps["groups"] = _groups(distributed)
    return dumps


def _keep_last_entered(path: str) -> None:
    """At the end of a program that an error of a collective ended, write down which one it had entered last.

    gloo ends the rank that is sent more than it asked for, which says nothing any more; those that lose it can.
    """
    if not isinstance(getattr(sys, "last_value", None), RuntimeError):  # set for what nobody has caught
        return
    import contextlib
    import json

    with contextlib.suppress(Exception):  # nothing of ours may show in how the program ends
        if told := last_entered(recorded()["recorders"]):
            with open(path, "w") as file:  # noqa: PTH123
                json.dump(told, file)


def last_entered(recorders: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The collective that was entered last, how often it had followed on the one before it until then, and what most
    often did; None where none was. Ranks repeat what they do from step to step."""
    entries = [one for dump in recorders for one in dump.get("entries", []) if not one.get("is_p2p")]
    if not entries:
        return None
    entries.sort(key=lambda one: one["time_created_ns"])
    group = entries[-1]["process_group"]
    told = [_entered(one) for one in entries if one["process_group"] == group]
    *earlier, before, last = [None, *told]
    followed: dict[str, int] = {}
    for one, after in zip(earlier, told):
        if one == before:
            followed[after] = followed.get(after, 0) + 1
    usual = max(followed, key=lambda name: followed[name], default="")
    return {
        "entered": last,
        "times": followed.get(last or "", 0),
        "usual": usual,
        "usual_times": followed.get(usual, 0),
    }


def _entered(one: dict[str, Any]) -> str:
    name = str(one.get("profiling_name", "")).partition(":")[2] or str(one.get("profiling_name", ""))
    shapes = " ".join("x".join(map(str, size)) or "scalar" for size in one.get("input_sizes", [])[:3])
    dtypes = one.get("input_dtypes") or [""]
    return f"{name} of {shapes} {str(dtypes[0]).lower()}".strip()


def _groups(distributed: Any) -> dict[str, Any]:
    """By name: gloo's recorder does not say which ranks a group has."""
    import contextlib

    world = distributed._world
    found: dict[str, Any] = {}
    for group, name in list(world.pg_names.items()):
        with contextlib.suppress(AttributeError, KeyError):
            desc = getattr(group, "group_desc", "")
            found[str(name)] = {"desc": str(desc), "ranks": sorted(world.pg_group_ranks[group])}
    return found


class _WithTorch:
    """Begins to answer when torch loads what makes process groups. As a finder of modules it finds none itself."""

    def __init__(self, asking: int, recorder: int) -> None:
        self._asking, self._recorder = asking, recorder

    def __call__(self) -> None:
        _write(self._recorder, b"{}")  # who asks sees that somebody will answer
        start_new_thread(_answer, (self._asking, self._recorder))

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: object = None) -> None:
        if name == _C10D and self in sys.meta_path:
            sys.meta_path.remove(self)
            self()


def _answer(asking: int, recorder: int) -> None:
    import contextlib
    import json

    while True:
        request = os.read(asking, 64)
        if not request:
            return
        try:
            told = recorded()
        except Exception as error:  # whatever a version of torch does: a rank does not end of being asked
            told = {"version": VERSION, "error": f"{type(error).__name__}: {error}"}
        # The number of the newest request says that this is the answer to it.
        told["request"] = request.split()[-1].decode(errors="replace") if request.split() else ""
        with contextlib.suppress(OSError):  # no memory is left
            os.ftruncate(recorder, 0)
            _write(recorder, json.dumps(told).encode())


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _quoted(text: str) -> str:
    """As JSON has it, without its module."""
    units = text.encode("utf-16-be", "surrogatepass")
    return '"' + "".join(f"\\u{units[at] << 8 | units[at + 1]:04x}" for at in range(0, len(units), 2)) + '"'


def _memory(name: str) -> int:
    """A file in memory that is written at its end, wherever that has been cut to."""
    fd = os.memfd_create(name)
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_APPEND)
    return fd
