"""`allranks verify RUN`: what a directory holds, in lines and as JSON; and directories of any other kind."""

import json
import random
from dataclasses import replace

import pytest

from allranks.cli.main import main
from allranks.observe import EventLog, RunDir
from allranks.observe.events import PhaseEvent, ProofEvent, StepEvent
from tests.nccl_logs import Cluster, rank_log
from tests.unit.verify.test_verify_checks import a_run, change


def keep(folder, proof):
    folder.mkdir(exist_ok=True)
    RunDir(folder).proof.write_text(json.dumps(proof.to_message()))
    return folder


def verify(folder, capsys, *options):
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(folder), *options])
    said = capsys.readouterr()
    return ended.value.code or 0, said.out, said.err


def test_a_right_run_ends_with_0_and_a_wrong_one_with_3_and_the_reason(tmp_path, capsys):
    run = keep(tmp_path / "run", a_run(Cluster(), require="ib"))
    code, out, _ = verify(run, capsys)
    assert code == 0 and out.splitlines()[-1] == f"{run}, after step 1: as it was asked"
    code, out, _ = verify(run, capsys, "--json")
    found = json.loads(out)
    assert code == 0 and found["ok"] and found["world_size"] == 4
    assert {"from": 1, "to": 2, "over": ["NET/IB/GDRDMA on mlx5_0:1", "NET/IB/GDRDMA on mlx5_1:1"]} in found["pairs"]
    assert {"from": 0, "to": 1, "over": ["P2P"]} in found["pairs"]

    keep(run, change(a_run(Cluster()), 3, gpu="GPU-00000001"))
    code, out, _ = verify(run, capsys)
    assert code == 3 and "WRONG     GPUs:            ranks 1 and 3" in out and "1 thing is not as asked" in out
    code, out, _ = verify(run, capsys, "--json")
    assert code == 3 and [finding["code"] for finding in json.loads(out)["findings"]] == ["verify-GPUs"]


def test_logs_that_lie_in_the_run_count_more_than_what_was_read_after_the_first_step(tmp_path, capsys):
    run = keep(tmp_path / "run", a_run(Cluster()))
    fallen = Cluster(on_sockets=(2,))
    for rank in range(4):
        log = run / "logs" / f"node-{rank // 2}" / "nccl" / f"rank-{rank:05d}.{4000 + rank}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(rank_log(fallen, rank))
    code, out, _ = verify(run, capsys)
    assert code == 3 and "rank 2 (node 1, node1) fell back to sockets on eno1" in out
    # Emptied since: what was read then still stands.
    for log in run.glob("logs/*/nccl/*.log"):
        log.write_text("")
    assert verify(run, capsys)[0] == 0


def test_nodes_of_the_manifest_and_events_of_the_run_are_looked_at_too(tmp_path, capsys):
    run = keep(tmp_path / "run", a_run())
    nodes = {name: {"host": f"node{name}", "processes": 2} for name in "01"}
    RunDir(run).manifest.write_text(json.dumps({"run": "r", "nodes": nodes}))
    for rank, step in ((0, 9), (3, 4)):
        log = EventLog(RunDir(run).events(rank), rank, run_id="r")
        log.write(StepEvent(step=step))
        if rank == 0:
            log.write(ProofEvent(step=5))
    code, out, _ = verify(run, capsys)
    assert code == 0
    assert "replicas were equal again before the checkpoints of step 5" in out
    assert "rank 3 has done step 4, and others step 9" in out
    RunDir(run).manifest.write_text(json.dumps({"run": "r", "nodes": {**nodes, "2": nodes["0"]}}))
    code, out, _ = verify(run, capsys)
    assert code == 3 and "4 ranks on 2 nodes, and the nodes were to start 6" in out


def test_what_is_no_run_or_has_no_proof_is_told_in_a_line(tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("x")
    (tmp_path / "empty").mkdir()
    old = tmp_path / "old"
    EventLog(RunDir(old).events(0), 0).write(StepEvent(step=1))
    newer = keep(tmp_path / "newer", a_run())
    RunDir(newer).manifest.write_text(json.dumps({"run": "another"}))
    future = keep(tmp_path / "future", a_run())
    RunDir(future).proof.write_text(json.dumps({"version": 2}))
    for folder, told in (
        (tmp_path / "missing", "is no folder on this node"),
        (file, "is no folder on this node"),
        (tmp_path / "empty", "is no run's directory"),
        (old, "this run has no proof.json"),
        (newer, "has not done its first step"),
        (future, "is damaged (version 2, and this allranks reads 1)"),
    ):
        code, out, err = verify(folder, capsys)
        assert (code, out) == (2, "") and told in err and err.count("\n") == 1, (folder, err)


def test_a_start_that_had_no_step_left_to_do_leaves_the_proof_of_the_one_before(tmp_path, capsys):
    run = keep(tmp_path / "run", a_run())
    more = {"0": {"host": "node0", "processes": 2}}
    RunDir(run).manifest.write_text(json.dumps({"run": "again", "nodes": more}))
    log = EventLog(RunDir(run).events(0), 0, run_id="again")
    log.write(PhaseEvent(phase="model"))
    assert verify(run, capsys)[0] == 2  # it may have one yet
    log.write(PhaseEvent(phase="done"))
    code, out, _ = verify(run, capsys)
    assert code == 0 and "the last, again, had no step left to do; all this is of r, the one before" in out


@pytest.mark.parametrize("seed", range(60))
def test_a_damaged_proof_is_told_in_a_line_or_judged_and_never_a_traceback(tmp_path, capsys, seed):
    chance = random.Random(seed)
    run = keep(tmp_path / "run", a_run(Cluster()))
    text = RunDir(run).proof.read_text()
    if seed % 3 == 0:
        text = text[: chance.randrange(len(text))]
    elif seed % 3 == 1:
        place = chance.randrange(len(text))
        text = text[:place] + chance.choice(["\0", "\x1b[2J", "}", "9" * 30, "null", "-"]) + text[place + 1 :]
    else:
        found = json.loads(text)
        where = found if seed % 2 else chance.choice(found["ranks"])
        where[chance.choice(list(where))] = chance.choice([None, [], {}, "x", -1, 1e300, [[1]], {"a": []}, 2**70])
        text = json.dumps(found)
    RunDir(run).proof.write_text(text)
    code, out, err = verify(run, capsys)
    assert code in (0, 2, 3) and "Traceback" not in out + err and "\x1b" not in out + err
    assert code != 2 or err.count("\n") == 1


def test_a_proof_of_any_size_is_judged_in_one_pass(tmp_path, capsys):
    run = keep(tmp_path / "run", replace(a_run(num_nodes=128, per_node=8), require="eth0"))
    code, out, _ = verify(run, capsys)
    assert code == 0 and "1024 ranks on 128 nodes" in out
