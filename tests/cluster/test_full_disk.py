"""A whole run on a disk that becomes full: warned of at the start, told in words, nothing half-written."""

import socket

import pytest
import yaml

from tests.small_disk import run_on_small_disk


@pytest.mark.thorough
def test_a_run_of_two_ranks_whose_disk_becomes_full(base_config, tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    place = tmp_path / "disk"
    keys = {"output_dir": str(place / "run"), "save_steps": 4, "save_strategy": "steps", "max_steps": 12, "seed": 1}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**base_config, **keys}))
    words = ["train", str(tmp_path / "c.yaml"), "--nproc-per-node", "2"]
    output = run_on_small_disk(place, 1_600_000, "tests.run_and_look", place / "run", *words, seconds=240)
    assert "EXIT CODE 1" in output and "Traceback" not in output
    host = socket.gethostname()
    assert f"warning: output_dir: {place}/run on {host} has" in output and "3 checkpoints of" in output
    assert "step 4: checkpoint" in output
    assert "error (rank 0): " in output
    error = next(line for line in output.splitlines() if line.startswith("error (rank 0): "))
    assert "step 8 is not saved: the disk is full (No space left on device)" in error
    assert "are needed there; " in error and f"on {host}" in error and "--auto-resume-from-checkpoints true" in error
    assert "LEFT ['step-00000004']" in output
    assert list((tmp_path / "temporary").iterdir()) == [], "launcher and ranks leave nothing among temporary files"
