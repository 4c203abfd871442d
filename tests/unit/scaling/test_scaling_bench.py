"""What is refused before anything is started; a size that fails; what is left of one that is interrupted."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from allranks.cluster.nodes import Host
from allranks.cluster.transports import Transport
from allranks.config import load_config
from allranks.demo.commands import Command
from allranks.errors import AllranksError
from allranks.launch.spec.everywhere import Everywhere
from allranks.launch.spec.options import LaunchOptions
from allranks.launch.spec.where import NodeOptions
from allranks.scaling import ScalingBench, bench_scaling
from allranks.scaling.from_here import run_from_here
from allranks.scaling.here import configs_of, remove
from tests.patience import TIMEOUT_SECONDS, has_ended
from tests.unit.scaling.test_scaling_measured import size


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def write(**keys):
        base = {"base_model": str(tmp_path / "model"), "learning_rate": 1e-4, "output_dir": str(tmp_path / "out")}
        base["datasets"] = [{"path": str(tmp_path / "d.jsonl"), "type": "chat_template"}]
        path = tmp_path / "c.yaml"
        path.write_text(yaml.safe_dump(base | keys))
        return path

    return write


OF_TWO = LaunchOptions(nnodes="2", node_rank=0, master_addr="127.0.0.1")


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"steps": 0}, "--steps 0: expected 1 or more"),
        ({"sizes": (1, 2)}, "without --hosts or a job there is 1 node: give --nodes 1"),
        ({"sizes": (1, 4), "launch": OF_TWO}, "--nnodes says 2 nodes: give --nodes 1"),
        ({"sizes": (3,), "nodes": NodeOptions(hosts="a,b")}, "there are 2 nodes: name more nodes"),
        ({"launch": LaunchOptions(launcher="ray")}, "Ray does not let it"),
        ({"launch": LaunchOptions(nnodes="1:2", rdzv_backend="c10d", rdzv_endpoint="h:1")}, "a fixed number of nodes"),
    ],
)
def test_what_cannot_be_timed_is_refused_before_anything_starts(config, tmp_path, asked, told):
    with pytest.raises(AllranksError) as caught:
        bench_scaling(ScalingBench(config(), **asked))
    assert told in str(caught.value) and caught.value.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_a_batch_that_cannot_be_shared_is_refused_wherever_it_starts(config, tmp_path):
    path = config(batch_size=7, micro_batch_size=1)
    for more in ({"launch": OF_TWO}, {"nodes": NodeOptions(hosts="a,b")}):
        with pytest.raises(AllranksError, match="batch_size: 7, 1 of 2 nodes"):
            bench_scaling(ScalingBench(path, sizes=(1, 2), **more))
    assert not (tmp_path / "out").exists()


def started_as(monkeypatch, program):
    """Every command of ours is this Python program."""
    monkeypatch.setattr(Command, "argv", property(lambda command: [sys.executable, "-c", program, *command.args]))


def test_a_size_that_fails_is_named_and_leaves_nothing(config, tmp_path, capsys, monkeypatch):
    started_as(
        monkeypatch, "print('a line'); print('error: no such model'); print('  look there'); raise SystemExit(2)"
    )
    table = tmp_path / "t.csv"
    assert bench_scaling(ScalingBench(config(), csv=table, as_json=True)) == 2
    [one] = json.loads(capsys.readouterr().out)["sizes"]
    assert (one["nodes"], one["ok"], one["exit_code"]) == (1, False, 2)
    assert one["error"] == "no such model\n    look there"
    assert not (tmp_path / "out").exists() and table.read_text().startswith("nodes,ok,exit_code\n1,False,2")


@pytest.mark.parametrize("on", [{}, {"nodes": NodeOptions(hosts="a")}])
@pytest.mark.parametrize("name", ["", "a-file/t.csv", "a-folder"])
def test_a_table_that_cannot_be_written_is_refused_before_anything_starts(config, tmp_path, monkeypatch, on, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-file").touch()
    (tmp_path / "a-folder").mkdir()
    started_as(monkeypatch, "open('it-was-started', 'w')")
    with pytest.raises(AllranksError, match="--csv"):
        bench_scaling(ScalingBench(config(), csv=Path(name), **on))
    assert not (tmp_path / "out").exists() and not (tmp_path / "it-was-started").exists()


def test_the_table_of_all_nodes_is_written_here_also_beside_json(config, tmp_path, monkeypatch):
    started_as(monkeypatch, "raise SystemExit(3)")
    table = tmp_path / "t.csv"
    asked = ScalingBench(config(), csv=table, as_json=True, nodes=NodeOptions(hosts="a"), argv=["--csv", str(table)])
    assert bench_scaling(asked) == 3
    assert table.read_text().startswith("nodes,ok,exit_code\n1,False,3")


def test_an_error_of_an_earlier_start_is_not_told_of_this_one(config, tmp_path, capsys, monkeypatch):
    for word in ("first", "second"):
        started_as(monkeypatch, f"print('error: the {word}'); raise SystemExit(2)")
        assert bench_scaling(ScalingBench(config(), keep=True)) == 2
    assert "failed on 1 node (exit code 2): the second" in capsys.readouterr().out


def test_what_is_to_be_kept_is_left(config, tmp_path, capsys, monkeypatch):
    started_as(monkeypatch, "raise SystemExit(3)")
    assert bench_scaling(ScalingBench(config(), keep=True)) == 3
    assert (tmp_path / "out/bench-scaling/nodes-1/config.yaml").exists()
    told = capsys.readouterr().out
    assert f"all of it is in {tmp_path}/out/bench-scaling" in told and "failed on 1 node (exit code 3)" in told


def test_a_run_that_recorded_nothing_is_no_measurement(config, tmp_path, capsys, monkeypatch):
    started_as(monkeypatch, "pass")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/of-another-run").touch()
    assert bench_scaling(ScalingBench(config())) == 1
    assert "its record cannot be read" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["of-another-run"]


def test_the_other_nodes_leave_a_shared_disk_to_node_0_and_clear_their_own(config, tmp_path):
    configs = configs_of(load_config(config(), {}), (1, 2), num_steps=9, keep_batch=False)
    run = tmp_path / "out/bench-scaling/nodes-2"
    for name in ("node-0.log", "node-1.log"):
        run.mkdir(parents=True, exist_ok=True)
        (run / name).touch()
    remove(configs, 1)
    assert (run / "node-0.log").exists()
    (run / "node-0.log").unlink()  # as on a disk of node 1's own
    remove(configs, 1)
    assert not (tmp_path / "out").exists()


def test_ctrl_c_ends_what_was_started_and_removes_it(config, tmp_path):
    # Of a data set that is a pipe nothing comes: the start waits.
    (tmp_path / "model").mkdir()
    os.mkfifo(tmp_path / "d.jsonl")
    process = subprocess.Popen(
        [sys.executable, "-m", "allranks", "bench-scaling", str(config()), "--nodes", "1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not (children := psutil.Process(process.pid).children(recursive=True)):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=TIMEOUT_SECONDS)[1]
    assert process.returncode == 130 and "interrupted: not all numbers of nodes were timed" in told
    assert not (tmp_path / "out").exists()
    assert all(has_ended(child.pid) for child in children)


def from_here(tmp_path, monkeypatch, program):
    """The outcomes of sizes 1 and 2 where each start is a Python program."""
    hosts = [Host("a", slots=2), Host("b", user="me"), Host("c")]
    started_as(monkeypatch, program)
    everywhere = Everywhere(hosts, Transport("ssh", sys.executable), [], 29500)
    words = {nodes: ["c.yaml", "--nodes", f"{nodes}"] for nodes in (1, 2)}
    begun: list[tuple[int, Path]] = []
    found = list(run_from_here(everywhere, (1, 2), words, tmp_path, begins=lambda *one: begun.append(one)))
    assert [nodes for nodes, _ in begun] == [2, 1]
    assert (tmp_path / "nodes-1.hosts").read_text() == "a slots=2\n"
    assert (tmp_path / "nodes-2.hosts").read_text() == "a slots=2\nme@b\n"
    return found


def test_each_size_is_a_start_of_its_own_whose_word_is_taken(tmp_path, monkeypatch):
    two = json.dumps({"sizes": [{**size(2, 1.5).to_message(), "ok": True, "error": None, "exit_code": 0}]})
    program = f"import sys\nprint('words', sys.argv[1:])\nprint({two!r})"
    found = from_here(tmp_path, monkeypatch, program)
    assert found[0].measured == size(2, 1.5)
    # What the second start says is about another size than it was asked for.
    assert found[1].measured is None and "said nothing of its end" in found[1].error and found[1].exit_code == 1


def test_a_start_that_is_refused_does_not_keep_the_others_from_theirs(tmp_path, monkeypatch):
    refused = json.dumps({"error": "b cannot be reached\n  ssh: no route", "exit_code": 3, "refused": True})
    program = f"print('a line'); print({refused!r}); raise SystemExit(3)"
    found = from_here(tmp_path, monkeypatch, program)
    assert [one.nodes for one in found] == [2, 1] and {one.exit_code for one in found} == {3}
    assert found[0].error == "b cannot be reached\n  ssh: no route"
