"""A job is requeued for a lost node only, without that node where there are others, and not for ever."""

import json
import os
import subprocess
import sys

import pytest

from allranks.submit import lost_node
from allranks.submit.lost_hosts import LOST_HOSTS, read_lost_hosts, take_lost_hosts_file, write_lost_hosts
from allranks.submit.lost_node import MOST_TIMES, requeue_if_node_lost

SCONTROL = """\
case "$1 $2" in
"show job") echo "JobId=77 ReqNodeList=(null) ExcNodeList=$EXCLUDED" ;;
"show hostnames") echo "$3" | tr , '\\n' ;;
*) echo "scontrol $*" >>"$CALLS"; exit "$CODE" ;;
esac
"""
SINFO = 'printf "node%s\\n" 0 1 2 2\n'
RECORDER = 'echo "{name} $*" >>"$CALLS"\nexit "${{{name}:-0}}"\n'
PBSNODES = 'n=$(cat "$CALLS.asked" 2>/dev/null || echo 0); echo $((n + 1)) >"$CALLS.asked"\n'
PBSNODES += (
    'echo "$1"; echo "     Mom = $1"; [ "$n" -lt 2 ] && echo "     state = free" || echo "     state = down,offline"\n'
)


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Stand-ins for the schedulers' commands; returns what was called, and has a script and a file of lost hosts."""
    folder = tmp_path / "bin"
    folder.mkdir()
    recorders = {name: RECORDER.format(name=name) for name in ("qrerun", "qsub")}
    for name, text in {"scontrol": SCONTROL, "sinfo": SINFO, "pbsnodes": PBSNODES, **recorders}.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    for name, value in {"CALLS": tmp_path / "calls", "CODE": "0", "EXCLUDED": "(null)"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("SLURM_JOB_PARTITION", "gpu")
    monkeypatch.setattr(lost_node, "_POLL_SECONDS", 0.0)
    return tmp_path


def called(cluster):
    return (cluster / "calls").read_text().splitlines() if (cluster / "calls").exists() else []


def requeue(cluster, scheduler="slurm", lost=("node1",), num_nodes=2):
    write_lost_hosts(cluster / "lost-hosts.json", lost)
    return requeue_if_node_lost(scheduler, "77", num_nodes, cluster / "lost-hosts.json", cluster / "submit-1.sh")


def test_slurm_requeues_the_job_and_only_then_takes_the_node_away_from_it(cluster, monkeypatch, capfd):
    monkeypatch.setenv("EXCLUDED", "node7,node8")
    assert requeue(cluster)
    assert called(cluster) == ["scontrol requeue 77", "scontrol update JobId=77 ExcNodeList=node7,node8,node1"]
    assert "node1 was lost: the job is requeued without it (1 of at most 5 times)" in capfd.readouterr().out


def test_a_job_that_needs_every_node_of_its_partition_keeps_them(cluster, capfd):
    assert requeue(cluster, num_nodes=3)
    assert called(cluster) == ["scontrol requeue 77"]
    assert "partition gpu has no 3 nodes without it" in capfd.readouterr().out


def test_nodes_that_were_lost_before_stay_excluded_as_long_as_there_are_others(cluster):
    assert requeue(cluster, num_nodes=1)
    assert requeue(cluster, lost=["node2"], num_nodes=1)
    assert called(cluster)[-1] == "scontrol update JobId=77 ExcNodeList=node1,node2"


@pytest.mark.parametrize("scheduler", ["slurm", "pbs"])
def test_it_is_bounded_and_says_what_to_do_then(cluster, capfd, scheduler):
    for _ in range(MOST_TIMES):
        assert requeue(cluster, scheduler)
    known = called(cluster)
    assert not requeue(cluster, scheduler)
    assert called(cluster) == known
    said = capfd.readouterr().err
    assert "not requeued, as it was 5 times before" in said and "submit-1.lost" in said


def test_pbs_is_waited_for_until_it_knows_that_the_node_is_down(cluster, capfd):
    # Requeueing kills who asks for it.
    (cluster / "bin" / "qrerun").write_text('#!/bin/sh\necho "qrerun $*" >>"$CALLS"\necho killed\n')
    assert requeue(cluster, "pbs")
    assert capfd.readouterr().out.splitlines()[-2:] == [
        "allranks: node1 was lost: the job is requeued (1 of at most 5 times)",
        "killed",
    ]
    assert (cluster / "calls.asked").read_text().strip() == "3"
    assert called(cluster) == ["qrerun 77"]


def test_where_qrerun_is_for_operators_the_script_becomes_a_new_job(cluster, monkeypatch):
    monkeypatch.setenv("qrerun", "1")
    assert requeue(cluster, "pbs")
    assert called(cluster)[1:] == [f"qsub -W depend=afterany:77 {cluster}/submit-1.sh"]


def test_a_scheduler_that_refuses_is_said_with_the_script_to_submit(cluster, monkeypatch, capfd):
    monkeypatch.setenv("CODE", "1")
    assert not requeue(cluster)
    assert f"submit it again: {cluster}/submit-1.sh" in capfd.readouterr().err


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"cause": "not-a-number", "hosts": ["a"]}', '{"cause": "node-lost", "hosts": 7}']
)
def test_no_other_file_requeues(cluster, text):
    (cluster / "lost-hosts.json").write_text(text)
    assert not requeue_if_node_lost("slurm", "77", 2, cluster / "lost-hosts.json", cluster / "submit-1.sh")
    assert not requeue_if_node_lost("slurm", "77", 2, cluster / "none", cluster / "submit-1.sh")
    assert called(cluster) == []


def test_the_file_is_of_the_command_that_started_all_nodes_alone(tmp_path):
    env = {LOST_HOSTS: str(tmp_path / "lost-hosts.json"), "OTHER": "x"}
    path = take_lost_hosts_file(env)
    assert env == {"OTHER": "x"} and path is not None and take_lost_hosts_file(env) is None
    write_lost_hosts(path, ["a", "b"])
    assert read_lost_hosts(path) == ["a", "b"]
    assert json.loads(path.read_text())["cause"] == "node-lost"


def test_started_by_hand_it_says_that_it_is_none_to_start_by_hand():
    done = subprocess.run([sys.executable, "-m", "allranks.submit.lost_node", "slurm"], capture_output=True, text=True)
    assert done.returncode == 2 and "the script of `allranks submit --requeue` starts this" in done.stderr
