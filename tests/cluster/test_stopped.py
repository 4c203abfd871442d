"""A rank that is stopped keeps all others waiting: it is named while they wait, at their time-out, and on Ctrl-C."""

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from allranks.doctor import causes
from allranks.observe import read_events
from allranks.observe.events import PhaseEvent
from tests.cluster.lab import Lab
from tests.cluster.moments import Terminal, record_failure, start_by_hand
from tests.cluster.training import GONE_AFTER_SECONDS, Training, make_training

ENDLESS = {"max_steps": 100_000, "num_epochs": 1000, "lr_scheduler": "constant", "save_strategy": "steps"}
STOPPED = "rank 1 (node 1, node1, pid {pid}) is stopped, as by SIGSTOP, state T, in phase train after step "


@dataclass(frozen=True)
class Stopped:
    """A training on two nodes, node 1's rank stopped: its commands, that rank's pid on its node, and since when."""

    training: Training
    terminals: list[Terminal]
    pid: int
    since: float


@pytest.fixture
def stopped(request: pytest.FixtureRequest, lab: Lab, base_config: dict) -> Stopped:
    keys = getattr(request, "param", {})
    training = make_training(lab, request.node.name, base_config, **ENDLESS, save_steps=100_000, **keys)
    terminals = start_by_hand(training, 29519)
    training.wait_for_step(3, terminals[0])
    pid = next(event.pid for event in read_events(training.run.events(1)) if isinstance(event, PhaseEvent))
    since = time.time()
    lab.node(1).run(["kill", "-STOP", str(pid)], check=True)
    return Stopped(training, terminals, pid, since)


def end(terminal: Terminal, code: int) -> str:
    output = terminal.finish(GONE_AFTER_SECONDS)
    assert terminal.returncode == code, output
    return output


def test_a_stopped_rank_is_told_on_every_node_and_ctrl_c_lets_it_save(stopped: Stopped, lab: Lab) -> None:
    pid, continued = stopped.pid, f"kill -CONT {stopped.pid}"
    for terminal in stopped.terminals:
        terminal.wait_for(continued)
        told = terminal.output
        assert STOPPED.format(pid=pid) in told, told
        assert "the other ranks wait for it, each collective for 300 s at most" in told
    lab.node(1).run(["kill", "-CONT", str(pid)], check=True)
    for terminal in stopped.terminals:
        terminal.wait_for("rank 1 (node 1) runs again, after ")
    again = time.time()
    lab.node(1).run(["kill", "-STOP", str(pid)], check=True)
    stopped.terminals[0].wait_for(continued, after=again)
    # The nodes' own launchers were not told: node 0's tells node 1's, whose rank could not hear of it.
    stopped.terminals[0].send_signal(signal.SIGINT)
    outputs = [end(terminal, 75) for terminal in stopped.terminals]
    assert "saved" in outputs[0]
    assert len(list(stopped.training.run.checkpoints.glob("step-*/COMPLETE"))) == 1
    stopped.training.wait_until_gone()


COLLECTIVE_SECONDS = 8


@pytest.mark.thorough
@pytest.mark.parametrize("stopped", [{"ddp_timeout": COLLECTIVE_SECONDS}], indirect=True)
def test_at_the_time_out_the_stopped_rank_is_to_blame_and_not_the_healthy_one(
    stopped: Stopped, record_property: Callable[[str, object], None]
) -> None:
    for terminal in stopped.terminals:
        terminal.wait_for("error: ")
    outputs = [end(terminal, 1) for terminal in stopped.terminals]
    said = "the others waited for it in vain"
    told = record_failure(
        record_property,
        stopped.training.run.path,
        stopped.terminals,
        said,
        fault="SIGSTOP, until a collective's time-out",
        injected=stopped.since,
        deadline=COLLECTIVE_SECONDS,
    )
    for output in outputs:
        [*_, last] = [line for line in output.splitlines() if line.startswith("error: ")]
        assert STOPPED.format(pid=stopped.pid) in last and "the others waited for it in vain" in last, output
        assert "rank 0 (node 0, node0) failed first" not in output
        assert "start the same command again on all nodes" in output and "end in the same way" not in output, output
    assert (told.cause, told.rank, told.node) == (causes.RANK_STOPPED, 1, "node1"), told
    stopped.training.wait_until_gone()
