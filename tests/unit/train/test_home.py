"""A save goes to the folder that the run began in, or is refused in words."""

import os
import shutil
import subprocess

import pytest
import torch
from torch import nn

from allranks.checkpoint import commit
from allranks.checkpoint.state import RunState
from allranks.errors import DiskError
from allranks.observe import EventLog, RunDir
from allranks.observe.events import StepEvent
from allranks.train import home
from allranks.train.checkpoint import Checkpointer
from allranks.train.home import Home
from allranks.train.storage import ALONE
from allranks.train.strategies.native import NativeState


@pytest.fixture
def place(tmp_path):
    """An output_dir that may be mounted, moved and replaced."""
    (tmp_path / "out").mkdir()
    yield tmp_path / "out"
    if os.path.ismount(tmp_path / "out"):
        subprocess.run(["umount", "--lazy", tmp_path / "out"], check=True)


def begin(place):
    run = RunDir(place)
    log = EventLog(run.events(0), 0, run_id="now")
    log.write(StepEvent(step=1))
    model = nn.Linear(4, 4)
    trained = NativeState(model, torch.optim.AdamW(model.parameters()))
    settings = {"group": None, "storage": ALONE, "asynchronous": False, "keep": None}
    return Checkpointer(run.checkpoints, trained, home=Home(run.path, log.is_in_place), **settings), log


def remade(place):
    place.rename(place.with_name("moved"))
    place.mkdir()


def removed(place):
    shutil.rmtree(place)


def with_an_older_record(place):
    """The disk below has what an earlier run left there, under the same names."""
    remade(place)
    EventLog(RunDir(place).events(0), 0, run_id="before").write(StepEvent(step=1))


@pytest.mark.parametrize("happened", [remade, removed, with_an_older_record])
def test_another_folder_is_refused_and_left_as_it_is(place, happened):
    checkpointer, log = begin(place)
    checkpointer.save(1, RunState(1, {}))
    happened(place)
    before = sorted(place.rglob("*"))
    with pytest.raises(DiskError, match="no longer the folder that this run began in") as refused:
        checkpointer.save(2, RunState(2, {}))
    assert sorted(place.rglob("*")) == before and place.exists() == bool(happened is not removed)
    assert str(place) in str(refused.value) and "Nothing is saved there" in str(refused.value)
    log.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_mount_that_goes_away_in_the_middle_is_told_and_the_disk_below_stays_empty(place):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "none", place], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    checkpointer, log = begin(place)
    checkpointer.save(1, RunState(1, {}))
    subprocess.run(["umount", "--lazy", place], check=True)  # the log keeps it busy
    with pytest.raises(DiskError, match="another file system is there"):
        checkpointer.save(2, RunState(2, {}))
    assert list(place.iterdir()) == []
    log.close()


def test_a_folder_that_is_only_numbered_anew_is_the_same(place, monkeypatch):
    """As some network file systems do after a while; what the run has written tells."""
    checkpointer, log = begin(place)
    monkeypatch.setattr(home, "_identity", lambda folder: (7, 7))
    log.write(StepEvent(step=2))
    checkpointer.save(2, RunState(2, {}))
    assert [commit.step_of(path) for path in commit.complete_checkpoints(checkpointer.directory)] == [2]
    log.close()


def test_a_record_that_was_removed_is_not_missed(place):
    checkpointer, log = begin(place)
    shutil.rmtree(place / "events")
    checkpointer.save(2, RunState(2, {}))
    assert len(commit.complete_checkpoints(checkpointer.directory)) == 1
    log.close()
