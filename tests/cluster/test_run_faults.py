"""The same faults as of our own training, under `allranks run`, with a plain script of PyTorch: DDP on gloo, torch's
DataLoader and torch.save. Every terminal that is left names the fault, and the doctor says the same of what is left.

The script puts the fault into rank 1 after its third step, and writes down when.
"""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from allranks.doctor import causes
from allranks.doctor.collective_abort import DIFFERS
from allranks.doctor.diagnosis import EXCEPTION
from allranks.doctor.read_logs import diagnosis_of_logs
from tests.cluster.injected import PYTHONPATH
from tests.cluster.lab import Lab
from tests.cluster.moments import Terminal, record_failure, record_fault
from tests.cluster.test_out_of_memory import cgroup
from tests.cluster.training import ENVIRONMENT
from tests.patience import TIMEOUT_SECONDS

HANG_SECONDS = 20.0
WAIT_SECONDS = 8.0
SILENCE_SECONDS = 10.0
PORT = 29547
SCRIPT = Path(__file__).with_name("plain_trainer.py")


def stop(lab: Lab) -> None:
    (rank,) = [one for one in lab.node(1).processes() if "plain_trainer.py" in one.argv[2:3]]
    os.kill(rank.pid, signal.SIGSTOP)


def drop_one_direction(lab: Lab) -> None:
    lab.filter(1, "INPUT", "-s", lab.node(0).ip, "-j", "DROP")


def cut_the_ranks_off(lab: Lab) -> None:
    """The launchers still hear of each other."""
    ports = ("-m", "multiport", "!", "--ports", str(PORT))
    lab.filter(1, "INPUT", "-p", "tcp", "-s", lab.node(0).ip, *ports, "-j", "DROP")


@dataclass(frozen=True)
class Fault:
    """What every terminal in `on` says of it, and what the doctor does: the cause, of which rank, on which node.

    `deadline`: after how many seconds it may be noticed. `inject` is done to the lab while the script trains; without
    it the script does what has this name itself.
    """

    name: str
    says: tuple[str, ...]
    cause: str = causes.NODE_LOST
    rank: int | None = 1
    """None where the doctor cannot know it."""
    node: int | None = 1
    deadline: float = 0.0
    inject: Callable[[Lab], None] | None = None
    on: tuple[int, ...] = (0, 1)
    evidence: str = ""
    """What the doctor shows of it."""
    code: int = 1
    """With which the command of node 1 ends."""


RANK_1 = "rank 1 (node 1, node1)"
EXITED = "rank 1 (node 1) failed first: exit code 1"
KILLED = "rank 1 (node 1) failed first: killed by SIGKILL"
ABORTED = "rank 0 (node 0) was aborted in a collective at {script}:"
LEFT = "rank 1 (node 1) ended with exit code 0 after step 3 while other ranks still needed it"
SILENT = "it printed no error: look for sys.exit({0}) or os._exit({0})"
NAN = "the program ended with exit code 0 all the same; what it saved after that is spoilt"
DEATHS = (
    Fault("exception", (EXITED, "ValueError: bad batch 17"), EXCEPTION, evidence="ValueError: bad batch 17"),
    Fault("killed", (KILLED,), causes.RANK_KILLED),
    Fault("eats memory", (KILLED, "by the kernel: its cgroup ran out of memory"), causes.OUT_OF_MEMORY),
    Fault("cuda memory", (EXITED, "CUDA out of memory. Tried to"), "cuda-out-of-memory", evidence="CUDA out of memory"),
    Fault("not a number", (EXITED, "loss is nan at step 4"), "nan-loss", evidence="loss is nan at step 4"),
    Fault("full disk", (EXITED, "a disk is full"), "disk-full", evidence="unexpected pos"),
    Fault("ends early", (LEFT,), causes.RANK_LEFT),
    Fault("exits with 3", ("rank 1 (node 1) failed first: exit code 3", SILENT.format(3)), causes.RANK_EXIT, code=3),
    Fault("exits with 7", ("rank 1 (node 1) failed first: exit code 7", SILENT.format(7)), causes.RANK_EXIT, code=7),
    Fault("exits with 0", (LEFT,), causes.RANK_LEFT),
    Fault("ends with nan", ("prints is not finite: step", NAN), "nan-loss", evidence="step 4 loss nan", code=0),
    Fault("flood", (EXITED, "ValueError: bad batch 17"), EXCEPTION, evidence="ValueError: bad batch 17"),
    # gloo aborts the one that is sent more than it asked for.
    Fault(
        "skipped",
        (f"{DIFFERS}rank 1 (node 1) has left out a collective of step 4", ABORTED),
        "unequal-collectives",
        evidence="rank 1 (node 1) was at {script}:",
    ),
    Fault(
        "other shape",
        (
            f"{DIFFERS}rank 1 (node 1) entered all_reduce of 9 float, where all_reduce of scalar float had come",
            ABORTED,
        ),
        "unequal-collectives",
        evidence="rank 1 (node 1) was at {script}:",
    ),
)
HANGS = (
    Fault("stopped", (f"{RANK_1} is stopped by a signal (state T)",), causes.RANK_STOPPED, inject=stop),
    Fault(
        "other collective", ("perhaps: ranks entered different operations", f"{RANK_1}: broadcast of 8"), causes.HANG
    ),
    Fault("blocked loader", (f"{RANK_1} never entered all_reduce of 5 float", "in __getitem__"), causes.HANG),
    Fault("deadlock", (f"{RANK_1} never entered all_reduce of scalar float", "in take"), causes.HANG),
)
CUT_OFF = Fault(
    "ranks cut off",
    ("what rank 0 (node 0, node0) sends to rank 1 (node 1, node1) does not arrive",),
    causes.HANG,
    rank=None,  # it lies between two
    node=None,
    deadline=HANG_SECONDS,
    inject=cut_the_ranks_off,
)
TOKENIZES = f"{RANK_1} did not come to the collective in which rank 0 (node 0) has waited in vain"
LOST = (
    Fault("node lost", ("node 1 (node1) was lost: ",), inject=lambda lab: lab.kill(1), on=(0,)),
    Fault("head lost", ("node 0 (node0) was lost: ",), inject=lambda lab: lab.kill(0), on=(1,), node=0),
)
NO_SIGN = "node 1 (node1) was lost: no sign of life for 10 s; "
# The launcher of the node that is cut off has a view of its own: that it is the other one that was lost.
CUT = (
    Fault(
        "link cut", (f"{NO_SIGN}nothing that is sent to it is acknowledged",), inject=lambda lab: lab.cut(1), on=(0,)
    ),
    Fault(
        "one direction dropped", (f"{NO_SIGN}what is sent to it does not arrive",), inject=drop_one_direction, on=(0,)
    ),
)
FAULTS = (
    *DEATHS,
    *(replace(fault, deadline=HANG_SECONDS) for fault in HANGS),
    Fault("tokenizes", (TOKENIZES,), causes.HANG, deadline=WAIT_SECONDS),
    *(replace(fault, rank=None) for fault in LOST),
    *(replace(fault, rank=None, deadline=SILENCE_SECONDS) for fault in CUT),
    CUT_OFF,
)


@contextlib.contextmanager
def memory_of(launcher: Terminal, fault: Fault) -> Iterator[None]:
    """Where the fault eats memory, the launcher and what it starts have little."""
    if fault.name != "eats memory":
        yield
        return
    with cgroup(1_500_000_000) as group:
        for child in Path(f"/proc/{launcher.process.pid}/task/{launcher.process.pid}/children").read_text().split():
            (group / "tasks").write_text(child)
        yield
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while (group / "tasks").read_text() and time.monotonic() < deadline:
            time.sleep(0.1)


def start(lab: Lab, folder: Path, fault: str, *more: str) -> list[Terminal]:
    env = {**ENVIRONMENT, "PYTHONPATH": PYTHONPATH}
    words = [sys.executable, "-m", "allranks", "run", "--nnodes", "2", "--master-addr", "node0"]
    words += ["--master-port", str(PORT), "--nproc-per-node", "1", "--hang-timeout", f"{HANG_SECONDS:g}"]
    words += ["--output-dir", "run", *more]
    program = ["--", SCRIPT.name, fault]
    return [
        Terminal(lab.node(rank).popen([*words, "--node-rank", str(rank), *program], env=env, cwd=str(folder)))
        for rank in (0, 1)
    ]


@pytest.mark.thorough
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_of_a_plain_script_is_named_on_every_node_and_by_the_doctor(
    fault: Fault, lab: Lab, record_property: Callable[[str, object], None]
) -> None:
    folder = lab.shared / f"run-{fault.name.replace(' ', '-')}"
    folder.mkdir()
    script = folder / SCRIPT.name
    script.write_text(SCRIPT.read_text())
    terminals = start(lab, folder, "waits" if fault.inject else fault.name)
    if fault.name == "full disk":
        lab.node(1).fill_disk()
    with memory_of(terminals[1], fault):
        terminals[0].wait_for("step 3 ")
        if fault.inject is not None:
            injected = time.time()
            fault.inject(lab)
        outputs = {rank: terminals[rank].finish() for rank in fault.on}
        if fault.inject is None:
            injected = float((folder / "injected").read_text())
    told = record_failure(
        record_property,
        folder / "run",
        [terminals[rank] for rank in fault.on],
        fault.says[0],
        fault=fault.name,
        way="run",
        injected=injected,
        deadline=fault.deadline,
    )
    for rank, output in outputs.items():
        assert terminals[rank].returncode == (fault.code if rank == 1 else min(fault.code, 1)), (
            f"node {rank}:\n{output}"
        )
        for said in fault.says:
            said = said.format(script=script)
            assert said in output, f"nowhere on node {rank}: {said}\n{output}"
    assert told.cause == fault.cause, told
    assert told.rank == fault.rank, told
    assert told.node in (None if fault.node is None else f"node{fault.node}", str(fault.node)), told
    assert fault.evidence.format(script=script) in "\n".join(one.text for one in told.evidence), told


@pytest.mark.thorough
@pytest.mark.parametrize(
    "fault", [one for one in DEATHS if one.cause == "unequal-collectives"], ids=lambda one: one.name
)
def test_nodes_that_do_not_see_each_others_logs_name_the_rank_that_differs_too(
    fault: Fault, lab: Lab, record_property: Callable[[str, object], None]
) -> None:
    folder = lab.shared / f"own-disks-{fault.name.replace(' ', '-')}"
    folder.mkdir()
    script = folder / SCRIPT.name
    script.write_text(SCRIPT.read_text())
    terminals = start(lab, folder, fault.name, "--output-dir", "/root/run")
    outputs = [terminal.finish() for terminal in terminals]
    command = [sys.executable, "-m", "allranks", "doctor", "/root/run", "--json"]
    env = {**ENVIRONMENT, "PYTHONPATH": PYTHONPATH}
    told = json.loads(lab.node(0).run(command, env=env).stdout)
    record_fault(
        record_property,
        fault=f"{fault.name}, disks of their own",
        way="run",
        injected=float((folder / "injected").read_text()),
        told=[terminal.moment_of(DIFFERS) for terminal in terminals],
        cause=told["cause"],
        rank=told["rank"],
        node=told["node"],
    )
    for output in outputs:
        assert f"{DIFFERS}rank 1 (node 1) " in output and ABORTED.format(script=script) in output, output
    assert (told["cause"], told["rank"]) == (fault.cause, 1) and told["node"] in ("1", "node1"), told
    assert any(f"rank 1 (node 1) was at {script}:" in one["text"] for one in told["evidence"]), told


@pytest.mark.thorough
def test_a_port_that_another_program_has(lab: Lab, record_property: Callable[[str, object], None]) -> None:
    folder = lab.shared / "run-port-taken"
    folder.mkdir()
    (folder / SCRIPT.name).write_text(SCRIPT.read_text())
    lab.node(0).popen([sys.executable, "-m", "http.server", str(PORT)])
    listening = ["sh", "-c", f"until ss -ltn | grep -q :{PORT}; do sleep 0.1; done"]
    lab.node(0).run(listening, check=True)
    injected = time.time()
    terminals = start(lab, folder, "waits", "--join-timeout", "20")
    outputs = [terminal.finish() for terminal in terminals]
    (folder / "node-0.out").write_text(outputs[0])
    told = diagnosis_of_logs([folder / "node-0.out"])
    said = f"cannot listen on node0:{PORT}: the port is in use by pid "
    named = [terminal.moment_of(said) for terminal in terminals if said in terminal.output]
    record_fault(
        record_property,
        fault="port taken",
        way="run",
        injected=injected,
        told=named,
        cause=told.cause,
        node="node0",
    )
    assert said in outputs[0] and f"-m http.server {PORT}); stop that process" in outputs[0], outputs[0]
    # Node 1 hears it of node 0 (that over another way than the port), or finds what else listens there.
    refused = "node 0 (node0) refused to start: node 0 cannot listen"
    assert refused in outputs[1] or "something else than this version of allranks" in outputs[1], outputs[1]
    assert terminals[0].returncode == 3 and terminals[1].returncode != 0, outputs
    assert (told.cause, told.certainty) == ("port-in-use", "sure"), told
