"""`allranks train --smoke` where a run should not start like this: no-go by a real run, exit code 3, no certificate."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from allranks.observe import RunDir
from tests.cluster import conftest
from tests.patience import TIMEOUT_SECONDS
from tests.ports import free_port

# Ranks import it by themselves; what each fault does comes between the last step and what the ranks then look at.
SPOILT = """
import os, sys, threading, time

def write_evidence(loop, identity, run_dir, storage, load):
    fault = os.environ["FAULT"]
    if fault == "weights" and identity.rank == 1:
        next(loop.model.hf_model.parameters()).data.view(-1)[0] += 1e-3
    if fault == "checkpoint" and identity.rank == 0:
        path = max(run_dir.checkpoints.rglob("*.distcp"), key=lambda path: path.stat().st_size)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    really(loop, identity, run_dir, storage, load)

def spoil():
    global really
    while not hasattr(sys.modules.get("allranks.train.main"), "write_evidence"):
        time.sleep(0.01)
    module = sys.modules["allranks.train.main"]
    really, module.write_evidence = module.write_evidence, write_evidence

if "RANK" in os.environ and "FAULT" in os.environ:
    threading.Thread(target=spoil, daemon=True).start()
"""
FAULTS = {
    "weights": "\n  FAILED  weights     not alike after 2 steps: ",
    "checkpoint": "\n  FAILED  checkpoint  rank 0 on ",
}


@pytest.mark.thorough
@pytest.mark.parametrize("fault", FAULTS)
def test_what_two_steps_show_to_be_wrong_is_a_no_go_on_every_node(
    start: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(SPOILT)
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    for name, value in (("PYTHONPATH", path), ("FAULT", fault)):
        monkeypatch.setitem(conftest.ENVIRONMENT, name, value)
    place = ("--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", str(free_port()))
    launchers = [start("--smoke", *place, "--node-rank", str(rank)) for rank in (0, 1)]
    outputs = [launcher.communicate(timeout=TIMEOUT_SECONDS)[0] for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [3, 3], "\n".join(outputs)
    for output in outputs:
        assert FAULTS[fault] in output and f"\nno-go: {fault}; the real run should not start like this" in output
        assert "\n  ok      losses" in output
    run = RunDir(tmp_path / "run")
    assert not run.certificate.exists() and not list(RunDir(run.smoke).checkpoints.iterdir())
