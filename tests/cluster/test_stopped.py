"""A rank that is stopped keeps all others waiting: it is named while they wait, at their time-out, and on Ctrl-C."""

import signal
import sys
from typing import Any

import pytest

from allranks.observe import read_events
from allranks.observe.events import PhaseEvent
from tests.cluster.lab import Lab
from tests.cluster.training import GONE_AFTER_SECONDS, Training, make_training

ENDLESS = {"max_steps": 100_000, "num_epochs": 1000, "lr_scheduler": "constant", "save_strategy": "steps"}
TRAIN = (sys.executable, "-m", "allranks", "train", "c.yaml", "--nnodes", 2, "--master-addr", "node0")
STOPPED = "rank 1 (node 1, node1, pid {pid}) is stopped, as by SIGSTOP, state T, in phase train after step "


@pytest.fixture
def stopped(request: pytest.FixtureRequest, lab: Lab, base_config: dict) -> tuple[Training, list[Any], int]:
    """A training on two nodes, node 1's rank stopped; its commands, and the pid of that rank on its node."""
    keys = getattr(request, "param", {})
    training = make_training(lab, request.node.name, base_config, **ENDLESS, save_steps=100_000, **keys)
    words = [(*TRAIN, "--master-port", 29519, "--node-rank", rank) for rank in range(2)]
    processes = [training.start(rank, command) for rank, command in enumerate(words)]
    training.wait_for_step(3, processes[0])
    pid = next(event.pid for event in read_events(training.run.events(1)) if isinstance(event, PhaseEvent))
    lab.node(1).run(["kill", "-STOP", str(pid)], check=True)
    return training, processes, pid


def lines_until(process: Any, text: str) -> str:
    """Read what the command prints up to a line with `text`; pytest's time-out ends a wait in vain."""
    seen = ""
    for line in process.stdout:
        seen += line
        if text in line:
            return seen
    raise AssertionError(seen)


def end(process: Any, code: int) -> str:
    output = process.communicate(timeout=GONE_AFTER_SECONDS)[0]
    assert process.returncode == code, output
    return str(output)


def test_a_stopped_rank_is_told_on_every_node_and_ctrl_c_lets_it_save(
    stopped: tuple[Training, list[Any], int], lab: Lab
) -> None:
    training, processes, pid = stopped
    for process in processes:
        told = lines_until(process, f"kill -CONT {pid}")
        assert STOPPED.format(pid=pid) in told, told
        assert "the other ranks wait for it, each collective for 300 s at most" in told
    lab.node(1).run(["kill", "-CONT", str(pid)], check=True)
    for process in processes:
        lines_until(process, "rank 1 (node 1) runs again, after ")
    lab.node(1).run(["kill", "-STOP", str(pid)], check=True)
    lines_until(processes[0], f"kill -CONT {pid}")
    # The nodes' own launchers were not told: node 0's tells node 1's, whose rank could not hear of it.
    processes[0].send_signal(signal.SIGINT)
    outputs = [end(process, 75) for process in processes]
    assert "saved" in outputs[0]
    assert len(list(training.run.checkpoints.glob("step-*/COMPLETE"))) == 1
    training.wait_until_gone()


@pytest.mark.thorough
@pytest.mark.parametrize("stopped", [{"ddp_timeout": 8}], indirect=True)
def test_at_the_time_out_the_stopped_rank_is_to_blame_and_not_the_healthy_one(
    stopped: tuple[Training, list[Any], int],
) -> None:
    training, processes, pid = stopped
    for process in processes:
        output = lines_until(process, "error: ") + "".join(process.stdout)  # what comes with it lies in its buffer
        assert process.wait(GONE_AFTER_SECONDS) == 1, output
        [*_, last] = [line for line in output.splitlines() if line.startswith("error: ")]
        assert STOPPED.format(pid=pid) in last and "the others waited for it in vain" in last, output
        assert "rank 0 (node 0, node0) failed first" not in output
        assert "start the same command again on all nodes" in output and "end in the same way" not in output, output
    training.wait_until_gone()
