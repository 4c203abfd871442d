"""What goes wrong on one node of two while they train, or before: its memory, its disk, its mounts, its port, and what
the scheduler takes back. The terminals name it with its node, and so does `allranks doctor` of what is left.

Each node has a run directory of its own, on its own disk.
"""

import json
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from allranks.doctor import causes
from tests.cluster.injected import happened, inject
from tests.cluster.lab import Lab, Node
from tests.cluster.moments import Terminal, record_fault, start_by_hand
from tests.cluster.training import ENVIRONMENT, Training, make_training

ALLRANKS = (sys.executable, "-m", "allranks")
PORT = 29546
OWN = "/var/run-of-this-node"
SAVED = {"save_strategy": "steps", "save_steps": 30, "logging_steps": 1, "output_dir": OWN}
ENDLESS = {"max_steps": 100_000, "num_epochs": 1000, "lr_scheduler": "constant"}

pytestmark = pytest.mark.thorough


@pytest.fixture
def make(lab: Lab, base_config: dict, request: pytest.FixtureRequest) -> Callable[..., Training]:
    for node in lab.nodes:
        node.dirty = True  # what they wrote on their disks is gone after the test

    def training(**keys: Any) -> Training:
        return make_training(lab, request.node.name, base_config, **{**ENDLESS, "save_strategy": "no", **keys})

    return training


def ask_doctor(node: Node, run: object) -> dict[str, Any]:
    done = node.run([*ALLRANKS, "doctor", str(run), "--json"], env=ENVIRONMENT)
    assert done.stdout.startswith("{"), done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def record(
    record_property: Callable[[str, object], None],
    terminals: list[Terminal],
    said: str,
    told: dict[str, Any],
    **more: Any,
) -> None:
    moments = [terminal.moment_of(said) for terminal in terminals]
    named = {key: told[key] for key in ("cause", "rank", "node")}
    record_fault(record_property, way="train", told=moments, **{**named, **more})


def test_a_rank_that_the_kernel_kills_for_want_of_memory(
    make: Callable[..., Training], lab: Lab, record_property: Callable[[str, object], None]
) -> None:
    lab.limit_memory(1, 1_500_000_000)
    training = make()
    terminals = start_by_hand(training, PORT, **inject(training, "eats memory"))
    outputs = training.finish(terminals, expect=[1, 1])
    told = ask_doctor(lab.node(0), training.run.path)
    said = "rank 1 (node 1) failed first: killed by SIGKILL (pid "
    record(record_property, terminals, said, told, fault="OOM killer", injected=happened(training))
    for output in outputs:
        assert said in output, output
        assert ") by the kernel: its cgroup ran out of memory (the cgroup's limit: 1.4 GiB)" in output, output
    assert (told["cause"], told["rank"], told["node"]) == (causes.OUT_OF_MEMORY, 1, "node1"), told
    assert told["certainty"] == "sure", told
    training.wait_until_gone()


def test_a_disk_of_one_node_that_is_full_at_a_checkpoint(
    make: Callable[..., Training], lab: Lab, record_property: Callable[[str, object], None]
) -> None:
    training = make(**SAVED)
    terminals = start_by_hand(training, PORT)
    terminals[0].wait_for("step 30: checkpoint")
    lab.node(1).fill_disk()
    outputs = training.finish(terminals, expect=[1, 1])
    saved = [int(step) for step in re.findall(r"^step (\d+): checkpoint", outputs[0], re.MULTILINE)]
    last_step = terminals[0].moment_of(f"step {saved[-1] + 30}/")
    assert last_step is not None, outputs[0]
    told = ask_doctor(lab.node(0), OWN)
    said = f"the ranks of node 1 ended without a word, and the disk of {OWN} is full (0 bytes "
    record(record_property, terminals, said, told, fault="disk full at a checkpoint", injected=last_step)
    for output in outputs:
        assert said in output, output
    there = ask_doctor(lab.node(1), OWN)  # whose own record has no word of it
    assert (there["cause"], there["node"]) == (causes.DISK, "node1"), there
    why = f"rank 1: step {saved[-1] + 30} is not saved: the disk is full (No space left on device)"
    assert why in outputs[0] and f"step {saved[-1]} is saved" in outputs[0], outputs[0]
    assert (told["cause"], told["rank"], told["node"]) == (causes.DISK, None, "node1"), told
    assert any(why in one["text"] for one in told["evidence"]), told
    training.wait_until_gone()


@pytest.fixture
def dead_mount(lab: Lab) -> Iterator[Callable[[], None]]:
    """Node 1's checkpoints lie on a file system of their own; the call makes all writes there wait, as on a network
    file system whose server is gone."""
    node, checkpoints = lab.node(1), f"{OWN}/checkpoints"
    node.dirty = True
    script = 'truncate -s 64M "$0.img" && mkfs.ext4 -q "$0.img" && mkdir -p "$1" && mount -o loop "$0.img" "$1"'
    node.run(["sh", "-c", f'{script} && rmdir "$1/lost+found"', "/var/disk", checkpoints], check=True)
    yield lambda: node.run(["fsfreeze", "--freeze", checkpoints], check=True) and None
    node.run(["fsfreeze", "--unfreeze", checkpoints])


def test_a_checkpoint_that_a_dead_mount_holds(
    dead_mount: Callable[[], None],
    make: Callable[..., Training],
    lab: Lab,
    record_property: Callable[[str, object], None],
) -> None:
    training = make(**SAVED, hang_timeout={"checkpoint": 10, "step": 10})
    terminals = start_by_hand(training, PORT)
    terminals[0].wait_for("step 30: checkpoint")
    dead_mount()
    outputs = training.finish(terminals, expect=[1, 1])
    last_step = terminals[0].moment_of("step 60/")
    assert last_step is not None, outputs[0]
    told = ask_doctor(lab.node(0), OWN)
    said = "rank 1 (node 1, node1) waits in the kernel, for storage or a device (state D)"
    more = {"fault": "checkpoint on a dead mount", "injected": last_step, "deadline": 10}
    record(record_property, terminals, said, told, **more)
    for output in outputs:
        assert said in output, output
    assert (told["cause"], told["rank"], told["node"]) == (causes.HANG, 1, "node1"), told
    # Whom a file system holds so cannot even be killed: that rank is there until it answers again.


def test_a_port_that_another_program_has(
    make: Callable[..., Training], lab: Lab, record_property: Callable[[str, object], None]
) -> None:
    training = make()
    taking = lab.node(0).popen([sys.executable, "-m", "http.server", str(PORT)])
    listening = ["sh", "-c", f"until ss -ltn | grep -q :{PORT}; do sleep 0.1; done"]
    lab.node(0).run(listening, check=True)
    injected = time.time()
    terminals = start_by_hand(training, PORT, "--join-timeout", 20)
    outputs = [terminal.finish() for terminal in terminals]
    log = training.config.parent / "node-0.out"
    log.write_text(outputs[0])
    told = ask_doctor(lab.node(0), log)
    said = f"cannot listen on node0:{PORT}: the port is in use by pid "
    # Node 1 hears it of node 0 (that over another way than the port), or finds what else listens there.
    refused, found = (
        "node 0 (node0) refused to start: node 0 cannot listen",
        "something else than this version of allranks",
    )
    named_on = [terminal for terminal in terminals if said in terminal.output]
    record(record_property, named_on, said, told, fault="port taken", injected=injected, node="node0")
    assert said in outputs[0] and f"-m http.server {PORT}); stop that process" in outputs[0], outputs[0]
    assert refused in outputs[1] or found in outputs[1], outputs[1]
    assert terminals[0].returncode == 3 and terminals[1].returncode != 0, outputs
    assert (told["cause"], told["certainty"]) == ("port-in-use", "sure"), told
    taking.send_signal(signal.SIGKILL)
    training.wait_until_gone()


def test_a_run_that_slurm_preempts(
    make: Callable[..., Training], lab: Lab, record_property: Callable[[str, object], None]
) -> None:
    slurm = lab.slurm()
    training = make(save_strategy="steps", save_steps=100_000, logging_steps=1)
    head, folder = lab.node(0), str(training.config.parent)
    words = [*ALLRANKS, "submit", "c.yaml", "--scheduler", "slurm", "--nodes", "2", "--time", "1:00:00", "--json"]
    exports = [word for variable in ENVIRONMENT for word in ("--export", variable)]
    job = json.loads(head.run([*words, *exports], cwd=folder, env=ENVIRONMENT, check=True).stdout)
    terminal = Terminal(training.start(0, ("tail", "--follow=name", "--retry", job["log"])))
    terminal.wait_for("step 3/")
    injected = time.time()
    urgent = ["sbatch", "--parsable", "--partition=urgent", "--nodes=3", "--exclusive", "--wrap", "sleep 1"]
    number = head.run(urgent, cwd=folder, check=True).stdout.strip()
    terminal.wait_for("preempted (SIGTERM) at step ")
    slurm.wait(number)
    head.run(["scancel", job["job"]])  # it would come back when the nodes are free
    told = ask_doctor(head, training.run.path)
    record(
        record_property, [terminal], "preempted (SIGTERM) at step ", told, fault="preempted by Slurm", injected=injected
    )
    assert (told["cause"], told["certainty"], told["rank"]) == (causes.INTERRUPTED, "sure", None), told
    assert told["title"].startswith("preempted by SIGTERM on node 0 (node0)"), told
    assert "rank 0: preempted by SIGTERM" in [one["text"] for one in told["evidence"]], told
    assert told["restart"]["verdict"] == "may-pass", told
