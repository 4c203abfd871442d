"""`allranks check` on real nodes: each fault is named with its node and remedy, and nothing starts."""

from __future__ import annotations

import importlib.metadata
import json
import sys
import sysconfig
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import allranks
from tests.cluster.lab import Lab
from tests.cluster.moments import Terminal, record_fault
from tests.cluster.training import TOKEN, Training, make_training
from tests.patience import TIMEOUT_SECONDS

CHECK = (sys.executable, "-m", "allranks", "check", "c.yaml", "--nproc-per-node", 1, "--join-timeout", 20)
QUICK = "--quick"  # without measuring links and devices, which finds none of these faults
PORT = 29541
BY_HAND = (*CHECK, "--nnodes", 2, "--master-addr", "node0", "--master-port", PORT)


@pytest.fixture
def checked(lab: Lab, base_config: dict, request: pytest.FixtureRequest) -> Training:
    """Model and data in a folder that all nodes share; the output directory is each node's own."""
    return make_training(lab, request.node.name, base_config, output_dir="/root/run")


def test_healthy_nodes_pass_without_a_warning(lab: Lab, checked: Training) -> None:
    command = (*CHECK, "--hosts", "node[0-2]", "--json", "--write-hosts", "lists")
    (output,) = checked.finish([checked.start(0, command)])
    said = json.loads(output.splitlines()[-1])
    worse = [one for one in said["findings"] if one["state"] != "noted"]
    assert worse == [] and not said["refused"], worse
    (figures,) = [one["what"] for one in said["findings"] if one["code"] == "measured.figures"]
    assert "links carry" in figures and "an all-reduce of 34 MB over 3 ranks" in figures
    assert said["hosts"] == said["nodes"] == said["passing"] == ["node0", "node1", "node2"]
    lists = {path.name: path.read_text() for path in (checked.config.parent / "lists").iterdir()}
    assert lists["passing"].split() == ["node0", "slots=1", "node1", "slots=1", "node2", "slots=1"]
    assert (lists["failing"], lists["slurm-exclude"]) == ("", "")
    assert lists["pbs-select"] == "1:host=node0+1:host=node1+1:host=node2\n"
    kept = json.loads(lab.node(0).run(["cat", "/root/run/preflight.json"], check=True).stdout)
    assert sorted(kept["reports"]) == ["node0", "node1", "node2"]


@dataclass(frozen=True)
class Fault:
    """What is wrong with node 1, and what both terminals must then say, in the finding's line and below it."""

    name: str
    check: str
    """The id of the check that finds it."""
    says: tuple[str, ...]
    arrange: Callable[[Lab], object] = lambda lab: None
    words: tuple[object, ...] = ()
    """Of node 1's command alone."""
    env: dict[str, str] = field(default_factory=dict)
    """The same of its environment."""
    kind: tuple[str, ...] = (QUICK,)


def _packages(name: str) -> Path:
    """The folder of an installed package's metadata."""
    return Path(str(importlib.metadata.distribution(name)._path))  # type: ignore[attr-defined]


def _other_version(lab: Lab) -> None:
    metadata = _packages("safetensors") / "METADATA"
    lab.node(1).write(metadata, metadata.read_text().replace("\nVersion: ", "\nVersion: 9.", 1))


def _other_code(lab: Lab) -> None:
    source = Path(allranks.__file__)
    lab.node(1).write(source, source.read_text() + "# changed here\n")


def _without(lab: Lab, *folders: Path) -> None:
    """Take folders away from node 1: nothing is left of what was in them."""
    lab.node(1).dirty = True
    for folder in folders:
        lab.node(1).run(["mount", "-t", "tmpfs", "none", folder], check=True)


def _clock(lab: Lab) -> None:
    """A namespace has no clock of its own: every Python of the node reads one that is 150 s behind.

    What is told is off by as much as the answers took: it must not lie where words change, as at two minutes.
    """
    lab.node(1).write(
        Path(sysconfig.get_path("purelib"), "zz_clock.pth"),
        "import time; time.time = lambda c=time: c.clock_gettime(c.CLOCK_REALTIME) - 150\n",
    )


def _loopback_name(lab: Lab) -> None:
    """As Debian's installer writes it."""
    hosts = lab.node(1).run(["cat", "/etc/hosts"], check=True).stdout
    lab.node(1).write("/etc/hosts", hosts.replace(lab.node(1).ip, "127.0.1.1"))


def _full_disk(lab: Lab) -> None:
    lab.node(1).run(["mkdir", "-p", "/root/run"], check=True)
    lab.node(1).fill_disk()


def _hanging_mount(lab: Lab) -> None:
    """A file system whose server took the connection and never answers."""
    program = (
        "import ctypes, os, time\n"
        "os.makedirs('/mnt/dead', exist_ok=True)\n"
        "fd = os.open('/dev/fuse', os.O_RDWR)\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "options = f'fd={fd},rootmode=40000,user_id=0,group_id=0'.encode()\n"
        "assert libc.mount(b'dead', b'/mnt/dead', b'fuse', 0, options) == 0, os.strerror(ctypes.get_errno())\n"
        "print('mounted', flush=True)\n"
        "time.sleep(1000)\n"
    )
    node = lab.node(1)
    node.dirty = True
    server = node.popen([sys.executable, "-c", program])
    assert server.stdout.readline() == "mounted\n"


def _slow_tool(lab: Lab) -> None:
    lab.node(1).write("/usr/local/bin/nvidia-smi", "#!/bin/sh\nexec sleep 1000\n")
    lab.node(1).run(["chmod", "+x", "/usr/local/bin/nvidia-smi"], check=True)


def _own_copy(lab: Lab, name: str, change: str) -> None:
    """A file of the shared folder as node 1 has it: something else lies over it there."""
    path = max(lab.shared.glob(f"*/{name}"), key=lambda path: path.stat().st_ctime)
    node = lab.node(1)
    node.write("/root/other", path.read_text().replace(*change.split("->"), 1))
    node.run(["mount", "--bind", "/root/other", path], check=True)


FAULTS = (
    Fault("config field", "parity.config", ("learning_rate", "0.02", "0.01"), words=("--learning-rate", 0.02)),
    Fault(
        "data byte",
        "parity.data",
        ("datasets.0: train.jsonl", "sha256"),
        lambda lab: _own_copy(lab, "train.jsonl", "e->E"),
        kind=(),  # a quick check is over before the nodes have read their data
    ),
    Fault(
        "tokenizer file",
        "parity.tokenizer",
        ("base_model: tokenizer.json",),
        lambda lab: _own_copy(lab, "model/tokenizer.json", '"version"->"version" '),
    ),
    Fault("package version", "parity.packages", ("safetensors",), _other_version),
    Fault("code", "parity.code", ("the code of allranks",), _other_code),
    Fault(
        "clock",
        "clock.spread",
        ("the clocks are not the same: that of node0 (here) is 2.5 min ahead of that of node1",),
        _clock,
    ),
    Fault("full disk", "start.refused", ("node1: output_dir: /root/run cannot be written", "No space"), _full_disk),
    Fault(
        "interface that it lacks",
        "start.refused",
        ("node1: GLOO_SOCKET_IFNAME=ib0: this node (node1) has no interface ib0",),
        env={"GLOO_SOCKET_IFNAME": "ib0"},
    ),
    Fault(
        "no torch",
        "parity.installed",
        ("node1: ", "torch"),
        lambda lab: _without(lab, _packages("torch").with_name("torch"), _packages("torch")),
    ),
    Fault(
        "mount that hangs",
        "report.unanswered",
        ("node1: paths: output_dir /mnt/dead/run did not answer in 5 s",),
        _hanging_mount,
        words=("--output-dir", "/mnt/dead/run"),
    ),
    Fault(
        "ephemeral ports closed",
        "reach.pairs",
        ("node1: not reached by node0", "node0 to node1 at 10.77.0.2", "no route to host", "32768 to 60999"),
        lambda lab: [
            lab.filter(1, "INPUT", "-p", "tcp", "--sport", str(PORT), "-j", "ACCEPT"),
            lab.filter(1, "INPUT", "-p", "tcp", "--syn", "-j", "REJECT", "--reject-with", "icmp-host-prohibited"),
        ],
    ),
    Fault(
        "big packets vanish",
        "reach.pairs-large",
        ("node1: ", "a message of 96 KiB: timed out", "the MTU is not the same all the way"),
        lambda lab: [
            lab.filter(1, "INPUT", "-p", "tcp", "--sport", str(PORT), "-j", "ACCEPT"),
            lab.filter(1, "INPUT", "-p", "tcp", "-m", "length", "--length", "1400:65535", "-j", "DROP"),
        ],
    ),
)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_of_one_node_is_told_on_every_terminal(
    lab: Lab, checked: Training, record_property: Callable[[str, object], None], fault: Fault
) -> None:
    fault.arrange(lab)
    first = checked.start(0, (*BY_HAND, *fault.kind, "--node-rank", 0), **TOKEN)
    came = time.time()
    last = checked.start(1, (*BY_HAND, *fault.kind, "--node-rank", 1, *fault.words), **TOKEN, **fault.env)
    terminals = [Terminal(first), Terminal(last)]
    for terminal in terminals:
        terminal.finish()
    told = [terminal.moment_of(f"[{fault.check}]") for terminal in terminals]
    record_fault(
        record_property,
        fault=fault.name,
        way="check",
        injected=came,
        told=told,
        cause=fault.check,
        node="node1",
    )
    for output in checked.finish(terminals, expect=[3, 3]):
        told = [line for line in output.splitlines() if f"[{fault.check}]" in line and line.startswith("error: ")]
        assert any(fault.says[0] in line for line in told) and all(words in output for words in fault.says), output
        assert "nothing was started" in output
    assert not list(checked.run.all_events())


UNREACHED = {
    "unreachable": (lambda lab: lab.cut(1), ("node1: ssh says: ", "reach.node")),
    "changed host key": (
        lambda lab: lab.node(0).write(
            "/root/.ssh/known_hosts",
            "\n".join(
                line.replace("AAAAC3NzaC1lZDI1NTE5AAAAI", "AAAAC3NzaC1lZDI1NTE5AAAAIA", 1)
                if line.startswith("node1")
                else line
                for line in lab.node(0).run(["cat", "/root/.ssh/known_hosts"]).stdout.splitlines()
            ),
        ),
        ("node1: ssh says: ", "Host key verification failed", "reach.node"),
    ),
    "no allranks": (
        lambda lab: _without(lab, Path(allranks.__file__).parent),
        ("node1: ", "has no allranks", "start.refused"),
    ),
    "master port dropped": (
        lambda lab: lab.drop_port(0, PORT),
        (f"node1 cannot reach node0 at 10.77.0.1:{PORT} (eth0): timed out: a firewall?", "start.refused"),
    ),
}


@pytest.mark.parametrize("fault", UNREACHED)
def test_nodes_that_cannot_take_part_are_asked_by_themselves(
    lab: Lab, checked: Training, record_property: Callable[[str, object], None], fault: str
) -> None:
    arrange, says = UNREACHED[fault]
    arrange(lab)
    came = time.time()
    terminal = Terminal(checked.start(0, (*CHECK, "--hosts", "node[0-1]", "--master-port", PORT, QUICK)))
    output = terminal.finish()
    record_fault(
        record_property,
        fault=fault,
        way="check",
        injected=came,
        told=[terminal.moment_of(f"[{says[-1]}]")],
        cause=says[-1],
        node="node1",
    )
    checked.finish([terminal], expect=[3])
    (told,) = [line for line in output.splitlines() if line.startswith("error: ") and "node1" in line]
    assert all(words in told for words in says), output


DOUBTFUL = {
    "name that means loopback": (_loopback_name, ("node1: its own name, node1, means 127.0.1.1", "[reach.own-name]")),
    "GPU tool that hangs": (_slow_tool, ("node1: nvidia", "did not answer in 5 s", "[report.unanswered]")),
}


@pytest.mark.parametrize("doubt", DOUBTFUL)
def test_what_this_run_does_not_need_is_told_and_refuses_nothing(lab: Lab, checked: Training, doubt: str) -> None:
    arrange, says = DOUBTFUL[doubt]
    arrange(lab)
    started = [checked.start(rank, (*BY_HAND, QUICK, "--node-rank", rank), **TOKEN) for rank in (0, 1)]
    for output in checked.finish(started):
        told = [line for line in output.splitlines() if line.startswith(("warning: ", "note: "))]
        assert any(all(words in line for words in says) for line in told), output


ORDINARY_USER = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs", "env", "HOME=/tmp")


def test_an_ordinary_user_checks_all_but_what_only_root_may_read(lab: Lab, checked: Training) -> None:
    """He is told of what root would add, and of what he cannot read though all nodes have it alike."""
    reached = (sys.prefix, sys.base_prefix, allranks.__file__, checked.config)
    folders = {str(folder) for path in reached for folder in Path(path).resolve().parents}
    for node in lab.nodes[:2]:  # as Python and the repository of whoever runs this may lie in a home of root's
        node.dirty = True
        node.run(["chmod", "o+x", *folders, sys.base_prefix], check=True)
    weights = checked.config.parent / "model/model.safetensors"

    def told(mode: int, expect: int) -> list[str]:
        weights.chmod(mode)
        command = (
            *ORDINARY_USER,
            *BY_HAND,
            QUICK,
            "--output-dir",
            "/tmp/run",
            "--dataset-prepared-path",
            "/tmp/prepared",
        )
        started = [checked.start(rank, (*command, "--node-rank", rank), **TOKEN) for rank in (0, 1)]
        return checked.finish(started, expect=[expect, expect])

    for output in told(0o600, expect=3):
        assert "error: node[0-1]: base_model: model.safetensors cannot be read: Permission denied" in output
    for output in told(0o644, expect=0):
        assert "could not be read: root alone" in output and "[report.withheld]" in output, output
        assert not [line for line in output.splitlines() if line.startswith(("error: ", "warning: "))], output


def test_a_wrong_master_address_is_told_on_both_sides(lab: Lab, checked: Training) -> None:
    # The kernel takes three seconds to find that nobody has an address.
    words = (*CHECK, QUICK, "--join-timeout", 12, "--nnodes", 2, "--master-port", PORT)
    nobody = "10.77.0.99"
    started = [
        checked.start(rank, (*words, "--node-rank", rank, "--master-addr", address), **TOKEN)
        for rank, address in ((0, "node0"), (1, nobody))
    ]
    here, there = checked.finish(started, expect=[3, 3])
    assert "1 of 2 nodes have come to node0:29541; missing: node 1" in here
    assert f"could not meet node 0 at {nobody}:{PORT} within 12 s" in there
    assert "is this the address of node 0" in there


def test_a_start_does_not_hang_where_a_mount_does(lab: Lab, checked: Training) -> None:
    _hanging_mount(lab)
    words = [word if word != "check" else "train" for word in BY_HAND]
    started = [
        checked.start(0, (*words, "--node-rank", 0), **TOKEN),
        checked.start(1, (*words, "--node-rank", 1, "--output-dir", "/mnt/dead/run"), **TOKEN),
    ]
    here, there = checked.finish(started, expect=[3, 3])
    why = "output_dir /mnt/dead/run: no answer in 5 s on node1: the file system there hangs"
    assert f"error: node 1 (node1) refused to start: {why}" in here and f"error: {why}" in there


def test_in_a_job_all_its_nodes_are_asked(lab: Lab, checked: Training) -> None:
    """Under Slurm by srun and under PBS by pbsdsh, whose nodes share the folder; also where allranks does not start."""
    lab.slurm()
    pbs = lab.pbs()
    folder = checked.config.parent

    def in_pbs() -> str:
        script = f"#PBS -l select=2:ncpus=1 -l place=scatter\n#PBS -j oe -o {folder}/log\n"
        script += f"cd {folder} && {' '.join(map(str, CHECK))} {QUICK} --json; echo exit code $?\n"
        job = lab.node(0).run(["qsub"], input=script, check=True, cwd=folder).stdout.strip()
        pbs.wait(job, timeout=TIMEOUT_SECONDS)
        return (folder / "log").read_text()

    log = in_pbs()
    said = json.loads(next(line for line in log.splitlines() if line.startswith("{")))
    assert "exit code 0" in log and said["passing"] == ["node0", "node1"], log

    _without(lab, Path(allranks.__file__).parent)
    (output,) = checked.finish([checked.start(0, ("salloc", "-Q", "-N", 2, *CHECK, QUICK))], expect=[3])
    (told,) = [line for line in output.splitlines() if line.startswith("error: ") and "[start.refused]" in line]
    assert "node1: " in told and "has no allranks" in told, output
    log = in_pbs()
    said = json.loads(next(line for line in log.splitlines() if line.startswith("{")))
    (finding,) = [one for one in said["findings"] if one["code"] == "start.refused"]
    assert "exit code 3" in log and finding["nodes"] == ["node1"] and "has no allranks" in finding["what"], log
