"""Reports of benchmarks: one of a part does not take the place of the whole one."""

from pathlib import Path

import pytest

from benchmarks import report


def test_a_part_has_a_file_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "REPORTS", tmp_path / "reports")
    whole = report.saved("live", "2 cores of X", ["all"])
    cost = report.saved("live", "2 cores of X", ["cost"], part="cost")
    chosen = report.saved("faults", "2 cores of X", ["some"], part="test_lost and not (ssh or slurm) " + "x" * 300)
    assert whole.name == f"live_2-cores-of-x_{report.today()}.md"
    assert cost.name == f"live-cost_2-cores-of-x_{report.today()}.md"
    assert chosen.name.startswith("faults-test-lost-and-not-ssh-or-slurm-xxx") and len(chosen.name) < 255
    assert (whole.read_text(), cost.read_text(), chosen.read_text()) == ("all", "cost", "some")


def test_all_that_there_is_is_no_part() -> None:
    assert report.part_of(["b", "a"], {"a": 1, "b": 2}) == ""
    assert report.part_of(["b"], {"a": 1, "b": 2}) == "b"
