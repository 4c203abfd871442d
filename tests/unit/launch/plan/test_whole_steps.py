"""Whole steps of a small model, which a calibration has its pieces compared with."""

import contextlib
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import psutil
import pytest

from allranks.errors import AllranksError
from allranks.launch.plan import whole_steps
from allranks.plan.kept_calibration import load
from tests.patience import await_end

_SMALL = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}


@pytest.fixture(autouse=True)
def _small(tmp_path, monkeypatch):
    monkeypatch.setattr(
        whole_steps, "_MODEL", {**whole_steps._MODEL, **_SMALL, "num_attention_heads": 2, "num_key_value_heads": 2}
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "cache").mkdir()


def _only(monkeypatch: pytest.MonkeyPatch, keys: Mapping[str, Any]) -> None:
    monkeypatch.setattr(whole_steps, "_METHODS", {"full": keys})


def test_every_later_plan_knows_what_they_took(tmp_path):
    whole_steps.measure_whole_steps(1, 1)
    known = load("cpu")
    assert known is not None and len({run.like for run in known.runs}) == len(whole_steps._METHODS)
    assert all(run.measured > 0 and run.predicted > 0 for run in known.runs)
    assert not [*tmp_path.glob("allranks-*")], "nothing is left"


def test_two_ranks_meet(monkeypatch):
    _only(monkeypatch, {})
    whole_steps.measure_whole_steps(2, 1)
    known = load("cpu")
    assert known is not None and len(known.runs) == 1


def test_ranks_that_fail_say_why_and_leave_none_behind(tmp_path, monkeypatch):
    _only(monkeypatch, {"lora_r": 0, "adapter": "lora"})
    with pytest.raises(AllranksError, match=r"whole steps of this node could not be measured(.|\n)*lora_r"):
        whole_steps.measure_whole_steps(2, 1)
    assert load("cpu") is None
    assert not _ranks_left()
    assert not [*tmp_path.glob("allranks-*")]


# Prints the id of a rank that would train for hours, and ends without it.
LEAVES_A_RANK = """
import os, subprocess, threading
from allranks.launch.plan import whole_steps
class Told(subprocess.Popen):
    def __init__(self, *args, **keys):
        super().__init__(*args, **keys)
        print(self.pid, flush=True)
        threading.Timer(0.2, os._exit, [0]).start()
whole_steps.subprocess.Popen = Told
whole_steps._KEYS = {**whole_steps._KEYS, "max_steps": 10**6, "num_epochs": 10**6}
whole_steps.measure_whole_steps(1, 1)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_a_rank_whose_starter_is_killed_trains_no_longer():
    done = subprocess.run([sys.executable, "-c", LEAVES_A_RANK], capture_output=True, text=True, timeout=60)
    await_end(int(done.stdout))


def _ranks_left() -> list[psutil.Process]:
    found = []
    for one in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # others end meanwhile
            if "allranks.train" in one.cmdline():
                found.append(one)
    return found
