"""What a rank has held at its fullest: on Linux, which tells it."""

import mmap
import sys
from pathlib import Path

import psutil
import pytest
import torch

from allranks.train import memory_meter as module
from allranks.train.memory_meter import memory_meter

CPU = torch.device("cpu")
BYTES, SLACK = 256 * 2**20, 32 * 2**20


def _touch() -> None:
    """Hold so much for a moment; the system has it back at once."""
    with mmap.mmap(-1, BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as given:
        torch.frombuffer(given, dtype=torch.uint8).zero_()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak of a process")
def test_what_was_freed_within_a_step_counts_and_what_was_before_does_not():
    _touch()
    meter = memory_meter(CPU)
    before = meter()
    assert abs(before - psutil.Process().memory_info().rss) < SLACK
    _touch()
    assert psutil.Process().memory_info().rss < before + SLACK, "it is gone"
    assert meter() == pytest.approx(before + BYTES, abs=SLACK)
    assert meter() >= before + BYTES - SLACK, "and stays the peak"


def test_where_no_peak_is_told_it_is_what_the_process_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_PROC", tmp_path / "none")
    meter = memory_meter(CPU)
    _touch()
    assert meter() == pytest.approx(psutil.Process().memory_info().rss, abs=SLACK)
