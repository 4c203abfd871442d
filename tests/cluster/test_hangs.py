"""Other ways to hang in a real run, and to be slow: what holds it up is said on every node, with the rank and its node.

test_live.py tries the first; each of these is put into ranks by a `sitecustomize`, by the name in `FAULT`, or into the
network and the processes of a node while it trains.
"""

import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from allranks.observe import read_events
from allranks.observe.events import PhaseEvent, StragglerEvent, WarningEvent
from tests.cluster.lab import Lab
from tests.cluster.training import make_training

TRAIN = (sys.executable, "-m", "allranks", "train", "c.yaml", "--nnodes", 2, "--master-addr", "node0")
HANG_SECONDS = 10
INJECTED = """
import os, sys, threading, time

FAULT, RANK = os.environ.get("FAULT"), os.environ.get("RANK")

def when_loaded(module, name, spoil):
    while not hasattr(sys.modules.get(module), name):
        time.sleep(0.01)
    owner = sys.modules[module]
    setattr(owner, name, spoil(getattr(owner, name)))

def each_step(do):
    def spoil(reader):
        push = reader.push
        def spoilt(self, step, *args, **kwargs):
            if step == 4:
                do()
            return push(self, step, *args, **kwargs)
        reader.push = spoilt
        return reader
    return spoil

def leave_out(reader):
    push = reader.push
    def spoilt(self, step, *args, **kwargs):
        import torch
        all_reduce = torch.distributed.all_reduce
        if step == 4:
            torch.distributed.all_reduce = lambda *args, **kwargs: None
        try:
            return push(self, step, *args, **kwargs)
        finally:
            torch.distributed.all_reduce = all_reduce
    reader.push = spoilt
    return reader

def other_shape():
    import torch
    torch.distributed.all_reduce(torch.zeros(9 if RANK == "1" else 8))

def deadlock():
    one, other, met = threading.Lock(), threading.Lock(), threading.Barrier(2)
    def take(first, second):
        with first:
            met.wait()
            with second:
                pass
    threading.Thread(target=take, args=(other, one), daemon=True).start()
    take(one, other)

STATS = ("allranks.train.stats", "StatsReader")
FAULTS = {
    "deadlock": ("1", *STATS, each_step(deadlock)),
    "left out": ("1", *STATS, leave_out),
    "other shape": ("01", *STATS, each_step(other_shape)),
}
if RANK and FAULT in FAULTS and RANK in FAULTS[FAULT][0]:
    threading.Thread(target=when_loaded, args=FAULTS[FAULT][1:], daemon=True).start()
"""

# What is said of each: of the rank that differs, with its node, and where in the code it is.
SAID = {
    "deadlock": ("error: rank 1 (node 1, node1) never entered all_reduce of 12 float ", "{fault}:45 in take"),
    "left out": (
        "ranks do not enter the same collectives: rank 1 (node 1, node1) has left out a collective of step 4: it has "
        "done that step, and rank 0, without which it cannot be done, only step 3; rank 0 (node 0) was aborted in a ",
        "stats.py:",
    ),
    "other shape": (
        "rank 0 (node 0) was aborted in a collective at {fault}:38 in other_shape: ",
        "rank 1 (node 1, node1)",
    ),
}


@pytest.mark.thorough
@pytest.mark.parametrize("fault", SAID)
def test_what_holds_the_run_up_is_named_on_every_node(
    fault: str, lab: Lab, base_config: dict, request: pytest.FixtureRequest
) -> None:
    keys = {"max_steps": 1000, "num_epochs": 1000, "hang_timeout": {"step": HANG_SECONDS}, "save_strategy": "no"}
    training = make_training(lab, request.node.name, base_config, **keys)
    folder = Path(training.config.parent, "fault")
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(INJECTED)
    env = {"PYTHONPATH": str(folder), "FAULT": fault}
    words = [(*TRAIN, "--master-port", 29542, "--node-rank", rank) for rank in range(2)]
    outputs = training.finish([training.start(rank, each, **env) for rank, each in enumerate(words)], expect=[1, 1])
    for output in outputs:
        for said in SAID[fault]:
            assert said.format(fault=folder / "sitecustomize.py") in output, output
        assert "failed first" not in output, output
    training.wait_until_gone()


def cut_one_direction(lab: Lab) -> None:
    lab.filter(1, "INPUT", "-s", lab.node(0).ip, "-j", "DROP")


def cut_the_ranks_off(lab: Lab) -> None:
    """The launchers still hear of each other."""
    ports = ("-m", "multiport", "!", "--ports", str(PORT))
    lab.filter(1, "INPUT", "-p", "tcp", "-s", lab.node(0).ip, *ports, "-j", "DROP")


PORT = 29543
NO_SIGN = "error: node 1 (node1) was lost: no sign of life for 10 s; "
NETWORK: dict[str, tuple[Callable[[Lab], None], str]] = {
    "frozen": (lambda lab: lab.freeze(1), f"{NO_SIGN}its machine takes what is sent to it"),
    "cut": (lambda lab: lab.cut(1), f"{NO_SIGN}nothing that is sent to it is acknowledged"),
    "one direction": (cut_one_direction, f"{NO_SIGN}what is sent to it does not arrive"),
    "ranks": (cut_the_ranks_off, "error: what rank 0 (node 0, node0) sends to rank 1 (node 1, node1) does not arrive"),
}


@pytest.mark.thorough
@pytest.mark.parametrize("fault", NETWORK)
def test_what_comes_between_nodes_is_told_from_nodes_that_do_not_run(
    fault: str, lab: Lab, base_config: dict, request: pytest.FixtureRequest
) -> None:
    keys = {"max_steps": 1000, "num_epochs": 1000, "hang_timeout": {"step": HANG_SECONDS}, "save_strategy": "no"}
    training = make_training(lab, request.node.name, base_config, **keys)
    words = [(*TRAIN, "--master-port", PORT, "--node-rank", rank) for rank in range(2)]
    processes = [training.start(rank, each) for rank, each in enumerate(words)]
    training.wait_for_step(3, processes[0])
    inject, said = NETWORK[fault]
    inject(lab)
    (output,) = training.finish(processes[:1], expect=[1])
    assert said in output, output
    lab.restore()


@pytest.mark.thorough
def test_a_rank_that_is_slow_and_a_link_that_is_slow_are_told_apart(
    lab: Lab, base_config: dict, request: pytest.FixtureRequest
) -> None:
    keys = {"max_steps": 100_000, "num_epochs": 1000, "lr_scheduler": "constant", "save_strategy": "no"}
    training = make_training(lab, request.node.name, base_config, **keys)
    words = [(*TRAIN, "--master-port", 29544, "--node-rank", rank) for rank in range(2)]
    processes = [training.start(rank, each) for rank, each in enumerate(words)]
    training.wait_for_step(20, processes[0])
    pid = next(event.pid for event in read_events(training.run.events(1)) if isinstance(event, PhaseEvent))
    # As cpulimit does it.
    often = "while kill -STOP $0; do sleep 0.5; kill -CONT $0; sleep 0.3; done"
    stopping = lab.node(1).popen(["sh", "-c", often, str(pid)])

    def slow() -> list[StragglerEvent]:
        events = read_events(training.run.events(0))
        return [event for event in events if isinstance(event, StragglerEvent) and event.is_slow]

    def links() -> list[str]:
        events = read_events(training.run.events(0))
        return [event.message for event in events if isinstance(event, WarningEvent) and "the link" in event.message]

    training.wait_until(lambda: bool(slow()), processes[0])
    assert [(event.of_rank, event.node) for event in slow()[:1]] == [(1, 1)], slow()
    assert links() == []
    stopping.send_signal(signal.SIGKILL)
    stopping.wait()
    lab.node(1).run(["kill", "-CONT", str(pid)], check=True)
    lab.limit(1, "2mbit")
    training.wait_until(lambda: bool(links()), processes[0])
    assert links()[0].startswith("warning: the link between node 0 (node0) and node 1 (node1) is slow: it carries ")
    lab.heal(1)
    for process in processes:
        process.send_signal(signal.SIGTERM)
    training.finish(processes, expect=[75, 75])
