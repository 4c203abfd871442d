"""`allranks run`: a plain PyTorch script on all nodes, with our logs, signals, exit codes and clean-up."""

import json
import os
import signal
import sys
import time

import psutil
import pytest

from allranks.observe import RunDir
from tests.cluster.conftest import start_allranks
from tests.patience import TIMEOUT_SECONDS
from tests.ports import free_port

PROGRAM = """
import os, signal, sys, time
import torch, torch.distributed as dist

dist.init_process_group("gloo")
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
total = torch.tensor([float(os.environ["RANK"])])
dist.all_reduce(total)
print("rank", dist.get_rank(), "of", dist.get_world_size(), "sum", total.item(), sys.argv[1:], flush=True)
if "--wait" in sys.argv:
    open(f"ready-{dist.get_rank()}", "w").close()
    while not stop:
        time.sleep(0.05)
    print("saved", flush=True)
dist.barrier()
dist.destroy_process_group()
sys.exit(int(os.environ["RANK"]) * 3 if "--fail" in sys.argv else 0)
"""
AWKWARD = "a b; $(touch oops) 'x' \"y\"\n--nnodes"


@pytest.fixture
def start(tmp_path):
    """Start `allranks run` with these words; two nodes of it if there is a node."""
    (tmp_path / "train.py").write_text(PROGRAM)
    port = str(free_port())

    def start_run(*words: str, node: int | None = None):
        place = ["--nnodes", "2", "--node-rank", str(node), "--master-addr", "127.0.0.1", "--master-port", port]
        return start_allranks("run", *(place if node is not None else []), *words, cwd=tmp_path)

    return start_run


def finish(*launchers):
    outputs = [launcher.communicate(timeout=TIMEOUT_SECONDS)[0] for launcher in launchers]
    return [launcher.returncode for launcher in launchers], outputs


def wait_for_ranks(tmp_path):
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not all((tmp_path / f"ready-{rank}").exists() for rank in (0, 1)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_two_nodes(start, tmp_path):
    def run(*arguments):
        return [start("--nproc_per_node", "1", "--", "train.py", *arguments, node=node) for node in (0, 1)]

    launchers = run("--wait", AWKWARD)
    wait_for_ranks(tmp_path)
    for launcher in launchers:
        launcher.send_signal(signal.SIGTERM)
    codes, outputs = finish(*launchers)
    assert codes == [0, 0], "\n".join(outputs)
    said = f"rank {{}} of 2 sum 1.0 {['--wait', AWKWARD]}\n"
    assert said.format(0) in outputs[0] and "saved" in outputs[0] and "sum" not in outputs[1]
    folder = RunDir(tmp_path / "allranks-run")
    logs = [folder.log(rank, rank).read_text() for rank in (0, 1)]
    assert logs == [f"{said.format(rank)}saved\n" for rank in (0, 1)]
    manifest = json.loads(folder.manifest.read_text())
    assert manifest["argv"][-1] == AWKWARD and sorted(manifest["nodes"]) == ["0", "1"]
    assert not (tmp_path / "oops").exists()

    codes, outputs = finish(*run("--fail"))
    assert codes[1] == 3 and codes[0] != 0, "\n".join(outputs)
    assert "rank 1 (node 1) failed first: exit code 3" in outputs[1]


@pytest.mark.thorough
def test_nothing_outlives_a_killed_head_of_deepspeeds_launcher(start, tmp_path):
    """Its runner has no handler of its own here: it would die and leave the ranks."""
    pytest.importorskip("deepspeed")
    head = start("--nproc-per-node", "2", "--launcher", "deepspeed", "--", "train.py", "--wait")
    wait_for_ranks(tmp_path)
    family = psutil.Process(head.pid).children(recursive=True)
    assert len([process for process in family if process.environ().get("RANK")]) == 2
    os.kill(head.pid, signal.SIGKILL)
    head.communicate(timeout=TIMEOUT_SECONDS)
    _, alive = psutil.wait_procs(family, timeout=TIMEOUT_SECONDS)
    assert not alive


@pytest.mark.thorough
def test_over_ssh(lab):
    folder = lab.shared / "program"
    folder.mkdir()
    (folder / "train.py").write_text(PROGRAM)
    words = [sys.executable, "-m", "allranks", "run", "--hosts", "node[0-1]", "--nproc-per-node", "1", "--output-dir"]
    done = lab.node(0).run(
        [*words, "out 1", "--", "train.py", AWKWARD], env={"OMP_NUM_THREADS": "1"}, cwd=str(folder), timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = f"rank {{}} of 2 sum 1.0 {[AWKWARD]}\n"
    assert said.format(0) in done.stdout
    assert RunDir(folder / "out 1").log(1, 1).read_text() == said.format(1)
    assert not (folder / "oops").exists()

    head = lab.node(0).popen([*words, "out", "--", "train.py", "--wait"], cwd=str(folder))
    wait_for_ranks(folder)
    head.send_signal(signal.SIGKILL)
    head.communicate(timeout=TIMEOUT_SECONDS)
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while left := [node.processes() for node in lab.nodes if node.processes()]:
        assert time.monotonic() < deadline, left
        time.sleep(0.2)
