"""The same run of two nodes with its watcher in trouble, for benchmarks.live: losses, and how it went on.

Both nodes are processes in a network and mount namespace of their own, where a disk can be filled and a port blocked.
Killing a launcher is no such trouble: it ends its ranks, so that nothing of a run goes on alone.
"""

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks import report
from benchmarks.contestants.allranks_without import KILL_AFTER_SECONDS
from benchmarks.live_cost import run_config, steps_of
from benchmarks.workload import Workload, read

_STEPS, _FAULT_AT = 250, 30
# Longer than a node may say nothing (--node-timeout, 10 s by default).
_FAULT_SECONDS = 15.0
_DEADLINE_SECONDS = 600.0
_DISK_BYTES = 2**28
_ALONE, _KILLED = "left alone", "its threads killed, on both nodes"


@dataclass(frozen=True)
class _Run:
    losses: dict[int, float]
    during: int
    """Steps that were done while the fault lasted."""
    tokens_per_second: float
    warnings: list[str]


def measure(workload: Workload, directory: Path, scratch: Path) -> list[str]:
    """The lines of the report. Without root there is only one that says so."""
    if os.geteuid() != 0:
        return ["Not measured: a full disk and a blocked port take root.", ""]
    scratch.mkdir(parents=True)
    command = ["unshare", "--net", "--mount", "--propagation", "private", sys.executable, "-m", __name__]
    subprocess.run([*command, str(directory), str(scratch)], check=True)
    runs = {name: _Run(**run) for name, run in json.loads((scratch / "runs.json").read_text()).items()}
    alone = runs[_ALONE]
    rows = []
    for name, run in runs.items():
        known = [step for step in alone.losses if step in run.losses]
        equal = sum(run.losses[step] == alone.losses[step] for step in known)
        ended = "yes" if run.losses.get(str(_STEPS)) == alone.losses[str(_STEPS)] else "NO"
        rows.append([name, f"{equal} of {len(known)}", ended, str(run.during), f"{run.tokens_per_second:.0f}"])
        rows[-1].append("; ".join(run.warnings) or "-")
    header = ["the watcher", "losses equal, bit for bit", "the last, too", "steps meanwhile", "tokens/s", "said"]
    return [
        f"{_STEPS} steps on two nodes of a rank each. From step {_FAULT_AT} on the fault lasts for "
        f"{_FAULT_SECONDS:.0f} s, that of the killed threads until the end. With a full disk the record of the steps "
        "meanwhile is lost, and told to be.",
        "",
        *report.table(header, rows),
    ]


def main() -> None:
    directory, scratch = Path(sys.argv[1]), Path(sys.argv[2])
    workload = read(directory)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    runs = {}
    for number, (name, fault) in enumerate(_FAULTS.items()):
        runs[name] = _run(workload, directory, scratch / str(number), name, fault).__dict__
        print(
            f"{name}: {runs[name]['during']} steps meanwhile, the last loss {runs[name]['losses'][_STEPS]}", flush=True
        )
    (scratch / "runs.json").write_text(json.dumps(runs))


Fault = Callable[[Path, list[subprocess.Popen]], AbstractContextManager[object]]


def _run(workload: Workload, directory: Path, scratch: Path, name: str, fault: Fault) -> _Run:
    disk = scratch / "disk"
    disk.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "none", disk], check=True)
    config = disk / "config.yaml"
    config.write_text(json.dumps(run_config(workload, directory, disk) | {"max_steps": _STEPS}, indent=1))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    words = ["train", str(config), "--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port", str(port)]
    program = ["allranks"]
    env = dict(os.environ)
    if name == _KILLED:
        program = ["benchmarks.contestants.allranks_without", "live-after-a-while"]
        env[KILL_AFTER_SECONDS] = "30"
    log = scratch / "output.log"
    with log.open("wb") as output:
        nodes = [
            subprocess.Popen(
                [sys.executable, "-m", *program, *words, "--node-rank", str(rank)],
                env=env,
                stdout=output,
                stderr=output,
            )
            for rank in (0, 1)
        ]
        try:
            _until(lambda: len(steps_of(disk / "run")) >= _FAULT_AT, nodes, log)
            began = time.time()
            with fault(disk, nodes):
                time.sleep(_FAULT_SECONDS)
            over = time.time()
            codes = [node.wait(_DEADLINE_SECONDS) for node in nodes]
        finally:
            for node in nodes:
                node.kill()
    if codes != [0, 0]:
        sys.exit(f"error: {name}: exit codes {codes}\n{log.read_text()[-3000:]}")
    steps = steps_of(disk / "run")
    losses = {step.number: step.loss for step in steps}
    # Where the record was lost, the steps before and after tell how many there were.
    inside = [step.number for step in steps if began <= step.end <= over]
    during = len(inside)
    if not during:
        before = max(step.number for step in steps if step.end < began)
        during = min((step.number for step in steps if step.end > over), default=_STEPS) - before - 1
    measured = steps[_FAULT_AT // 2 :]
    speed = sum(step.tokens for step in measured) / sum(step.end - step.begin for step in measured)
    said = [line for line in log.read_text().splitlines() if line.startswith("warning: ")]
    warnings = [line.removeprefix("warning: ").replace(str(scratch), "…")[:160] for line in dict.fromkeys(said)]
    return _Run(losses, during, speed, warnings)  # type: ignore[arg-type]


@contextlib.contextmanager
def _none(disk: Path, nodes: list[subprocess.Popen]) -> Iterator[None]:
    yield


@contextlib.contextmanager
def _stopped(disk: Path, nodes: list[subprocess.Popen]) -> Iterator[None]:
    nodes[1].send_signal(signal.SIGSTOP)
    yield
    nodes[1].send_signal(signal.SIGCONT)


@contextlib.contextmanager
def _full_disk(disk: Path, nodes: list[subprocess.Popen]) -> Iterator[None]:
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    yield
    filler.unlink()


@contextlib.contextmanager
def _blocked_port(disk: Path, nodes: list[subprocess.Popen]) -> Iterator[None]:
    """Of the connection between the launchers nothing passes, either way."""
    ends = [_connections(node.pid) for node in nodes]
    between = [(here, there) for here, there in ends[0] if (there, here) in ends[1]]
    assert between, "the launchers hold no connection"
    for here, there in itertools.chain(between, [pair[::-1] for pair in between]):
        rule = ["-p", "tcp", "--sport", str(here), "--dport", str(there), "-j", "DROP"]
        subprocess.run(["iptables", "-A", "INPUT", *rule], check=True)
    yield
    subprocess.run(["iptables", "-F", "INPUT"], check=True)


def _connections(pid: int) -> set[tuple[int, int]]:
    found = psutil.Process(pid).net_connections("tcp")
    return {(one.laddr.port, one.raddr.port) for one in found if one.status == psutil.CONN_ESTABLISHED and one.raddr}


_FAULTS: dict[str, Fault] = {
    _ALONE: _none,
    _KILLED: _none,
    "its process stopped, on node 1": _stopped,
    "its disk full": _full_disk,
    "its connection blocked": _blocked_port,
}


def _until(condition: Callable[[], bool], nodes: list[subprocess.Popen], log: Path) -> None:
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while not condition():
        if any(node.poll() is not None for node in nodes) or time.monotonic() > deadline:
            sys.exit("error: it does not train:\n" + log.read_text()[-3000:])
        time.sleep(0.2)


if __name__ == "__main__":
    main()
