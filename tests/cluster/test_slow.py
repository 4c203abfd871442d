"""What slows a real run down while it trains: a rank that is slow by itself and a link that is slow are told apart, and
named within 20 steps."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from allranks.live.slow_links import SLOW_LINK
from allranks.live.stragglers import STRAGGLER
from allranks.observe import read_events
from allranks.observe.events import PhaseEvent, StepEvent, StragglerEvent, WarningEvent
from tests.cluster.lab import Lab
from tests.cluster.moments import record_fault, start_by_hand
from tests.cluster.training import Training, make_training

MOST_STEPS = 20


@contextmanager
def limited_cpu(lab: Lab, training: Training) -> Iterator[None]:
    lab.limit_cpu(1, 0.1)
    yield


@contextmanager
def stopped_again_and_again(lab: Lab, training: Training) -> Iterator[None]:
    """As cpulimit does it."""
    pid = next(event.pid for event in read_events(training.run.events(1)) if isinstance(event, PhaseEvent))
    often = "while kill -STOP $0; do sleep 0.5; kill -CONT $0; sleep 0.3; done"
    stopping = lab.node(1).popen(["sh", "-c", often, str(pid)])
    yield
    stopping.send_signal(signal.SIGKILL)
    stopping.wait()
    lab.node(1).run(["kill", "-CONT", str(pid)], check=True)


@contextmanager
def limited_link(lab: Lab, training: Training) -> Iterator[None]:
    lab.limit(1, "2mbit")
    yield
    lab.heal(1)


RANK = "rank 1 (node 1, node1) is slow by itself: "
LINK = "the link between node 0 (node0) and node 1 (node1) is slow: "
SLOW: dict[str, tuple[Callable[[Lab, Training], AbstractContextManager[None]], str]] = {
    "CPU limit": (limited_cpu, RANK),
    "stopped again and again": (stopped_again_and_again, RANK),
    "slow link": (limited_link, LINK),
}


def named_slow(training: Training) -> list[tuple[float, str]]:
    """When what was said to be slow."""
    events = read_events(training.run.events(0))
    return [
        (event.t, event.message.removeprefix("warning: "))
        for event in events
        if (isinstance(event, StragglerEvent) and event.is_slow)
        or (isinstance(event, WarningEvent) and " slow: " in event.message)
    ]


@pytest.mark.thorough
@pytest.mark.parametrize("fault", SLOW)
def test_a_rank_that_is_slow_and_a_link_that_is_slow_are_told_apart_within_20_steps(
    fault: str,
    lab: Lab,
    base_config: dict,
    request: pytest.FixtureRequest,
    record_property: Callable[[str, object], None],
) -> None:
    keys = {"max_steps": 100_000, "num_epochs": 100_000, "lr_scheduler": "constant", "save_strategy": "no"}
    # Steps of a second and more where the rank is slow: in shorter ones it has to be so for ten seconds, too.
    keys |= {"batch_size": 64, "hang_timeout": {"step": 600}}
    training = make_training(lab, request.node.name, base_config, **keys)
    terminals = start_by_hand(training, 29544)
    training.wait_for_step(20, terminals[0])
    assert named_slow(training) == []
    slow_down, said = SLOW[fault]
    injected = time.time()
    with slow_down(lab, training):
        training.wait_until(lambda: bool(named_slow(training)), terminals[0])
        (moment, message), *others = named_slow(training)
    steps = sum(
        isinstance(event, StepEvent) and injected < event.t <= moment for event in read_events(training.run.events(0))
    )
    of_rank = said is RANK
    record_fault(
        record_property,
        fault=f"{fault} (named after {steps} steps)",
        way="train",
        injected=injected,
        told=[terminals[0].moment_of(said)],
        cause=STRAGGLER if of_rank else SLOW_LINK,
        rank=1 if of_rank else None,
        node="node1" if of_rank else "node0, node1",
    )
    assert message.startswith(said) and not others, [message, *others]
    # Beside other programs on all cores a rank is called slow only after a minute.
    is_loaded = os.getloadavg()[0] > len(os.sched_getaffinity(0))
    assert steps <= MOST_STEPS or (is_loaded and of_rank), message
    for terminal in terminals:
        terminal.send_signal(signal.SIGTERM)
    training.finish(terminals, expect=[75, 75])


@pytest.mark.thorough
def test_a_link_that_loses_packets_is_named_and_not_a_rank_nor_a_machine(
    lab: Lab,
    base_config: dict,
    request: pytest.FixtureRequest,
    record_property: Callable[[str, object], None],
) -> None:
    """Three of ten, and two of three after that: a step of a megabyte takes minutes then, or does not end at all, and
    sooner or later the launchers do not hear each other for so long that a node is lost to them."""
    keys = {"max_steps": 100_000, "num_epochs": 100_000, "lr_scheduler": "constant", "save_strategy": "no"}
    training = make_training(lab, request.node.name, base_config, **keys, hang_timeout={"step": 600}, batch_size=12)
    terminals = start_by_hand(training, 29545, "--node-timeout", 20, num_nodes=3)
    training.wait_for_step(20, terminals[0])
    injected, lossy = time.time(), "has to be sent again; "
    lab.lose(1, 0.3)
    training.wait_until(lambda: bool(named_slow(training)), terminals[0])
    (moment, message), *others = named_slow(training)
    assert not others and message.startswith("the link") and "node 1 (node1)" in message, message
    events = read_events(training.run.events(0))
    assert sum(isinstance(one, StepEvent) and injected < one.t <= moment for one in events) <= MOST_STEPS, message

    lab.lose(1, 0.5)
    outputs = training.finish(terminals, expect=[1, 1, 1])
    record_fault(
        record_property,
        fault="30 % of the packets to and from a node are lost",
        way="train",
        injected=injected,
        deadline=0,
        told=[terminals[0].moment_of(lossy)],
        cause=SLOW_LINK,
        rank=None,
        node="node1",
    )
    # On the other nodes the ranks' broken connections may be heard of before why the first node gave up.
    for output in outputs:
        assert "no sign of life" not in output or "the network to it loses packets: " in output, output
        assert "machine went down" not in output and "machine is off" not in output, output
