import json
import socket
from dataclasses import replace

import pytest

from allranks.errors import RefusedError
from allranks.launch.node.other_starts import OtherStarts
from allranks.launch.node.this_node import Node, give_up_locks, this_node
from allranks.launch.spec.options import Launch, LaunchOptions, resolve
from allranks.observe import refused_starts
from allranks.observe.lock import InUse
from allranks.observe.refused_starts import RefusedStart, leave_word, words_left


def alone(**options: object) -> Launch:
    return resolve(LaunchOptions(**options), num_gpus=0)


def one_of_two(rank: int) -> Launch:
    return resolve(LaunchOptions(nnodes="2", node_rank=rank, master_addr="node0"), num_gpus=0)


@pytest.fixture
def held(tmp_path, monkeypatch):
    """Take the lock of a node of the run; it is given up in the end."""
    monkeypatch.setattr(refused_starts, "_LOOK_SECONDS", 0.01)
    nodes: list[Node] = []

    def hold(launch: Launch) -> Node:
        nodes.append(this_node(tmp_path / "run", launch))
        return nodes[-1]

    yield hold
    for node in nodes:
        give_up_locks(node)


def wait_for(said) -> None:
    while not said():
        pass


def lock_of(node: Node):
    return node.run.logs(node.name) / "lock"


def test_of_two_nodes_with_one_rank_the_first_hears_of_the_second(held):
    launch = one_of_two(0)
    with OtherStarts(launch, held(launch)) as others:
        assert others.why() is None
        with pytest.raises(InUse, match="two nodes of one run need two --node-rank"):
            held(launch)
        wait_for(others.why)
        assert others.why().endswith("was given --node-rank 0 too, as this node was: give every node its own")
        assert "--node-rank 0" in others.finding().what and others.finding().code == "refused"


def test_a_node_that_is_refused_tells_the_others_that_wait(held):
    first, second = held(one_of_two(0)), held(one_of_two(1))
    with OtherStarts(one_of_two(0), first) as waits, OtherStarts(one_of_two(1), second) as refused:
        refused.tell("the name nodezero is not known")
        wait_for(waits.why)
        assert waits.why() == f"node 1 ({socket.gethostname()}) refused to start: the name nodezero is not known"
        assert refused.why() is None and words_left(lock_of(second)) == [], "not told to itself"
        waits.tell("of what it was told")
        assert words_left(lock_of(second)) == [], "what it has from another is not told again"


@pytest.mark.parametrize(
    ("options", "host", "has_begun", "ends"),
    [
        ({}, "elsewhere", False, True),
        ({}, "elsewhere", True, False),
        ({}, socket.gethostname(), False, False),
        ({"nnodes": "1"}, "elsewhere", False, False),
    ],
    ids=["nothing names others", "has begun", "the same command twice", "meant to be alone"],
)
def test_a_node_alone_ends_for_a_start_on_another_host_before_its_first_step(held, options, host, has_begun, ends):
    launch = alone(**options)
    node = held(launch)
    if has_begun:
        event = {"t": 1.0, "rank": 0, "run": node.run_id, "kind": "step", "step": 1, "loss": 2.0}
        node.run.events(0).parent.mkdir(parents=True)
        node.run.events(0).write_text(json.dumps(event) + "\n")
    said: list[str] = []
    others = OtherStarts(launch, node, said.append)
    others._hear(RefusedStart(host, "was started as well"))
    if ends:
        with pytest.raises(RefusedError, match="was started as well"):
            others.refuse()
        assert said == ["warning: was started as well; this start ends before its first step"]
    else:
        others.refuse()
        is_told = has_begun or bool(options)
        assert others.why() is None and said == (["warning: was started as well"] if is_told else [])


def test_where_another_node_is_meant_the_remedy_says_so(held):
    launch = alone()
    node = held(launch)
    lock_of(node).write_text("pid 7 on elsewhere\n")
    with pytest.raises(InUse) as refused:
        held(launch)
    assert "if elsewhere and this node are to be nodes of one run, start each with --nnodes N" in str(refused.value)
    (word,) = words_left(lock_of(node))
    assert "was started into this output_dir as well" in word.text and word.host == socket.gethostname()


def test_lines_that_are_no_words_are_left_out(tmp_path):
    lock = tmp_path / "lock"
    lock.write_bytes(b'pid 1 on a\n{"host": 1}\nnull\n\xff\n{"host": "b", "text": "x\\u001b[31m"}\n')
    leave_word(lock, "why")
    assert words_left(lock) == [
        RefusedStart("b", "x\ufffd[31m"),
        RefusedStart(socket.gethostname(), "why"),
    ]
    leave_word(tmp_path / "none", "why")
    assert not (tmp_path / "none").exists()


def test_a_launch_says_whether_the_number_of_nodes_was_given():
    assert not alone().says_nnodes and alone(nnodes="1").says_nnodes
    assert replace(one_of_two(1)).says_nnodes
