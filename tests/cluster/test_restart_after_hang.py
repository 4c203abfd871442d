"""A run that hangs once and is started again: all ranks go on from the newest checkpoint, and lose nothing.

The fault is put into one rank by a `sitecustomize` on its path, in the first start only: a file tells of that.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from allranks.doctor import causes
from allranks.doctor.failures import failures_of
from allranks.live.from_events import table_of
from allranks.observe import RunDir, read_events
from allranks.observe.events import PhaseEvent, StepEvent
from tests.cluster.conftest import ENVIRONMENT, largest_difference, strike_variables
from tests.cluster.lab import Lab
from tests.cluster.moments import Terminal, record_failure
from tests.cluster.training import Training, make_training
from tests.ports import free_port

# Python runs it in every process: in a rank it waits, beside the imports, for what it spoils.
INJECTED = """
import os, pathlib, sys, threading, time

ONCE = pathlib.Path(os.environ.get("HANGS_ONCE", "/nowhere"))

def spoil():
    while not hasattr(sys.modules.get("allranks.train.stats"), "StatsReader"):
        time.sleep(0.02)
    reader = sys.modules["allranks.train.stats"].StatsReader
    push = reader.push
    def spoilt(self, step, *args, **kwargs):
        if step == 7 and (os.environ.get("HANGS_EACH_TIME") or not ONCE.exists()):
            ONCE.touch()
            threading.Event().wait()  # as on a link that no longer carries anything
        return push(self, step, *args, **kwargs)
    reader.push = spoilt

if os.environ.get("RANK") == "1":
    threading.Thread(target=spoil, daemon=True).start()
"""
KEYS = {"max_steps": 12, "save_strategy": "steps", "save_steps": 3, "on_hang": "restart"}
TRAIN = (sys.executable, "-m", "allranks", "train", "c.yaml", "--max-restarts", 1)
Meanwhile = Callable[[list[Terminal]], object] | None
KEYS |= {"hang_timeout": {"step": 8, "first_step": 8}}  # after the restart it is the first one


@pytest.fixture
def hanging(tmp_path: Path, write_config: Callable[..., Path]) -> Callable[..., list[str]]:
    """Run two nodes on this machine, a rank each, to their end; what they printed. A code but `expect` fails."""
    (tmp_path / "fault").mkdir()
    (tmp_path / "fault" / "sitecustomize.py").write_text(INJECTED)

    def run(*words: str, expect: int | tuple[int, int], meanwhile: Meanwhile = None, **env: str) -> list[str]:
        config = write_config(**KEYS)
        path = os.pathsep.join([str(tmp_path / "fault"), *filter(None, [os.environ.get("PYTHONPATH")])])
        variables = {**ENVIRONMENT, "PYTHONPATH": path, "HANGS_ONCE": str(tmp_path / "hung"), **env}
        place = ["--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port", str(free_port())]
        command = [sys.executable, "-m", "allranks", "train", str(config), *place, "--nproc-per-node", "1", *words]
        nodes = [
            subprocess.Popen(
                [*command, "--node-rank", str(rank)],
                env=variables,
                cwd=tmp_path,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            for rank in range(2)
        ]
        terminals = [Terminal(node) for node in nodes]
        if meanwhile is not None:
            meanwhile(terminals)
        outputs = [terminal.finish() for terminal in terminals]
        codes = (expect, expect) if isinstance(expect, int) else expect
        assert tuple(node.returncode for node in nodes) == codes, "\n".join(outputs)
        return outputs

    return run


@pytest.mark.thorough
@pytest.mark.parametrize("launcher", ("torchrun", "accelerate"))
def test_ranks_that_hang_once_start_again_and_end_as_if_they_had_not(
    launcher: str, hanging: Callable[..., list[str]], tmp_path: Path, losses_alone: Callable[..., dict[int, float]]
) -> None:
    outputs = hanging("--max-restarts", "2", "--launcher", launcher, expect=0)
    for output in outputs:
        assert "never entered all_reduce" in output, output
        assert "on_hang: restart: all nodes start their ranks again, 1 of 2 times" in output, output
        assert "start the same command again" not in output, output
    assert "resume:     automatic: from step 6" in outputs[0], outputs[0]
    run = RunDir(tmp_path / "run")
    events = read_events(run.events(0))
    steps = [event.step for event in events if isinstance(event, StepEvent)]
    assert steps == [*range(1, 7), *range(7, 13)], outputs[0]
    pids = {event.pid for event in read_events(run.events(1)) if isinstance(event, PhaseEvent)} - {None}
    assert len(pids) == 2
    losses = {
        int(event.step): float(event.loss) for event in read_events(run.events(0)) if isinstance(event, StepEvent)
    }
    assert largest_difference(losses, losses_alone(max_steps=12)) < 1e-5
    table = table_of(run)
    assert table.attempt == 2
    assert table.ended is not None and table.ended.exit_code == 0
    assert [one.restart.step for one in failures_of(run)] == [6]


@pytest.mark.thorough
def test_what_hangs_in_the_same_way_after_the_same_step_again_is_not_started_a_third_time(
    hanging: Callable[..., list[str]], tmp_path: Path
) -> None:
    outputs = hanging("--max-restarts", "5", expect=1, HANGS_EACH_TIME="1")
    for output in outputs:
        assert output.count("on_hang: restart: all nodes start their ranks again") == 1, output
        assert "all ranks had been started again 1 of 5 times (--max-restarts)" in output, output
    assert "failed in the same way after the same step, 6" in outputs[0]


AGAIN = "on_hang: restart: all nodes start their ranks again"


@pytest.mark.thorough
@pytest.mark.parametrize("gone", (0, 1))
def test_a_launcher_that_is_killed_between_two_starts_is_named_by_the_others_which_do_not_wait_for_it(
    gone: int, hanging: Callable[..., list[str]], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    killed, others = [], []

    def kill(terminals: list[Terminal]) -> None:
        others.append(terminals[1 - gone])
        terminals[gone].wait_for(AGAIN)
        killed.append(time.time())
        terminals[gone].process.kill()

    codes = (-9, 1) if gone == 0 else (1, -9)
    output = hanging("--max-restarts", "2", expect=codes, meanwhile=kill)[1 - gone]
    said = "was lost: the connection was closed: its launcher was killed"
    fault = f"launcher of node {gone} killed between starts"
    told = record_failure(record_property, tmp_path / "run", others, said, fault=fault, injected=killed[0])
    assert AGAIN in output, output
    assert said in output.partition(AGAIN)[2], output
    assert "gave up after" not in output, output
    assert "start the same command again on all nodes with --auto-resume-from-checkpoints true" in output, output
    assert (told.cause, told.rank) == (causes.NODE_LOST, None), told


def over_ssh(training: Training, **variables: str) -> Any:
    exports = [word for name in variables for word in ("--export", name)]
    return training.start(0, (*TRAIN, "--hosts", "node[0-1]", *exports), **variables)


def in_slurm(training: Training, **variables: str) -> Any:
    training.lab.slurm()
    exports = [word for name in variables for word in ("--export", name)]
    return training.start(0, ("salloc", "-Q", "-N", 2, *TRAIN, *exports), **variables)


@pytest.mark.thorough
@pytest.mark.parametrize("start", (over_ssh, in_slurm))
def test_started_from_one_node_a_run_whose_rank_is_stopped_starts_again_by_itself(
    start: Callable[..., Any],
    lab: Lab,
    base_config: dict,
    losses_alone: Callable[..., dict[int, float]],
    request: pytest.FixtureRequest,
) -> None:
    keys = {**KEYS, "max_steps": 40, "learning_rate": 1e-3}
    training = make_training(lab, request.node.name, base_config, **keys)
    saved = training.run.checkpoints / "*/COMPLETE"
    variables = strike_variables(training.config.parent, 5, signal.SIGSTOP, rank=1, awaits=(saved,))
    (output,) = training.finish([start(training, **variables)])
    pid = next(event.pid for event in read_events(training.run.events(1)) if isinstance(event, PhaseEvent))
    assert output.count("on_hang: restart: all nodes start their ranks again, 1 of 1 times") == 2, output
    assert f"rank 1 (node 1, node1, pid {pid}) is stopped" in output, output
    alone = losses_alone(max_steps=40, learning_rate=1e-3)
    assert largest_difference(training.losses(), alone) < 1e-5
    training.wait_until_gone()
