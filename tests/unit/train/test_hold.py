"""One start at a time in a run's directory, under launchers that know nothing of it."""

from __future__ import annotations

import fcntl
import os
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from allranks.cluster.identity import Identity
from allranks.errors import DiskError, RefusedError
from allranks.observe import refused_starts
from allranks.observe.lock import Holder, InUse
from allranks.observe.rundir import RunDir
from allranks.train import hold
from allranks.train.hold import run_held

ALONE = Identity(0, 2, 0, 2, 0, "127.0.0.1", 29500, "torchrun")
OF_TWO_NODES = Identity(0, 2, 0, 1, 0, "node0", 29500, "torchrun")
NO_LAUNCHER_OF_OURS: dict[str, str] = {}


def second_rank_of(identity: Identity) -> Identity:
    return replace(identity, rank=1, local_rank=0)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "run")


def held(run: RunDir, identity: Identity, **env: str) -> object:
    return run_held(str(run.path), identity, env)


def test_a_second_start_is_refused_with_all_that_is_known_of_the_first(run: RunDir) -> None:
    with (
        held(run, OF_TWO_NODES),
        pytest.raises(InUse, match=rf"pid \d+ on {socket.gethostname()}, since 20.* UTC, ranks of node0:29500\): stop"),
        held(run, replace(OF_TWO_NODES, master_port=29501)),
    ):
        pass
    with held(run, replace(OF_TWO_NODES, master_port=29501)):
        pass


def test_its_other_ranks_refuse_too_before_they_write_there(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hold, "_AFTER_RANK_0_SECONDS", 0.0)
    another = second_rank_of(replace(OF_TWO_NODES, master_port=29501))
    with held(run, OF_TWO_NODES):
        with held(run, second_rank_of(OF_TWO_NODES)):
            pass
        with pytest.raises(InUse, match=r"ranks of node0:29500.*choose another output_dir"), held(run, another):
            pass
        with held(run, another, TORCHELASTIC_RESTART_COUNT="1"):
            pass
    with held(run, another):
        pass


def test_ranks_that_look_keep_the_lock_from_nobody(run: RunDir) -> None:
    with held(run, OF_TWO_NODES):
        pass
    looking = os.open(run.logs(0) / "lock", os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    threading.Timer(0.2, os.close, [looking]).start()
    with held(run, replace(OF_TWO_NODES, master_port=29501)):
        pass


def test_other_ranks_wait_until_their_rank_0_has_put_its_name_there(run: RunDir) -> None:
    """The lock that a dead start has left names that one until then."""
    with held(run, OF_TWO_NODES):
        name = (run.logs(0) / "lock").read_text()
        (run.logs(0) / "lock").write_text("pid 7 on node9, since 2026-01-01 00:00:00 UTC, ranks of node9:29500\n")
        threading.Timer(0.3, (run.logs(0) / "lock").write_text, [name]).start()
        with held(run, second_rank_of(OF_TWO_NODES)):
            pass


def test_ranks_that_allranks_started_are_let_through(run: RunDir) -> None:
    with held(run, ALONE), held(run, ALONE, ALLRANKS_RUN_ID="ours"):
        pass
    assert run.logs(0).is_dir()


def test_a_start_on_another_host_without_nnodes_is_told_how_to_be_one_run(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the first hears of it."""
    monkeypatch.setattr(refused_starts, "_LOOK_SECONDS", 0.01)
    with held(run, ALONE):
        here = socket.gethostname()
        monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
        with (
            pytest.raises(InUse, match=f"if {here} and elsewhere are to be nodes of one run, tell torchrun.* --nnodes"),
            held(run, ALONE),
        ):
            pass
        monkeypatch.undo()
        said = ""
        while "warning" not in said:
            said += capsys.readouterr().err
            time.sleep(0.01)
    assert "elsewhere (pid" in said and "was started into this output_dir as well, and refused" in said


def test_a_folder_that_cannot_be_taken_is_told_as_what_a_disk_refuses(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises((DiskError, RefusedError), match="run"), held(RunDir(tmp_path / "run"), ALONE):
        pass


def test_where_ranks_meet_tells_starts_apart() -> None:
    of_one_node = hold._meeting(ALONE, NO_LAUNCHER_OF_OURS)
    assert socket.gethostname() in of_one_node  # each machine has a 127.0.0.1 of its own
    assert hold._meeting(OF_TWO_NODES, {"TORCHELASTIC_RUN_ID": "job1"}) == "node0:29500 (job1)"
    assert str(Holder(7, "node0", "today", of_one_node)).endswith(f"since today, ranks of {of_one_node}")
