"""Without a token, on an address that others can reach: who connects learns no value that it did not bring."""

import itertools
import json
import socket
from collections.abc import Iterator

import pytest

from allranks.errors import RefusedError
from allranks.rendezvous import tell_node_0
from allranks.rendezvous.hidden import Hidden
from allranks.rendezvous.terms import Terms
from allranks.rendezvous.wire import GREETING
from tests.unit.rendezvous.nodes import Nodes, differing, listening_port, node_of

SECRET = {"learning_rate": "0.00317", "output_dir": '"/home/alice/secret-project"', "seed": "42"}
VARIABLES = {"NCCL_ALGO": "Ring", "NCCL_IB_HCA": "mlx5_7"}


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    # Of all interfaces: what others can reach.
    all_nodes = Nodes(address="0.0.0.0")
    yield all_nodes
    all_nodes.wait()
    all_nodes.leave()


def _warned(nodes: Nodes) -> bool:
    return any("ALLRANKS_TOKEN" in line for line in nodes.said)


def test_a_stranger_learns_no_value_and_node_0_reads_all(nodes: Nodes) -> None:
    nodes.start(node_of(0, same=SECRET, environment=VARIABLES))
    with socket.create_connection(("127.0.0.1", listening_port(nodes))) as raw:
        raw.sendall(json.dumps({"hello": node_of(1).hello(), "proof": "", "nonce": ""}).encode() + b"\n")
        guess = {"seed": "42", **{f"guess {value}": value for value in SECRET.values()}}
        stranger = node_of(1, same=guess, environment={"NCCL_ALGO": "Tree"})
        raw.sendall(json.dumps({"account": dict(stranger.account)}).encode() + b"\n")
        heard = raw.makefile().read()
    assert f'"greeting": "{GREETING}"' in heard and "the nodes do not agree" in heard
    unknown = {**SECRET, **VARIABLES}
    del unknown["seed"]  # which it knew
    for line in json.loads(heard.splitlines()[2])["refused"].splitlines():
        name, _, told = line.partition(": ")
        if not name.strip().startswith("guess"):
            assert not any(value.strip('"') in told for value in unknown.values()), line
    assert "learning_rate: #" in heard and "NCCL_ALGO must be the same" in heard
    told_here = str(nodes.wait()[0])
    assert "learning_rate: 0.00317 on node 0 (host0)" in told_here and "secret-project" in told_here
    (warning,) = [line for line in nodes.said if "ALLRANKS_TOKEN" in line]
    assert warning.startswith("warning: ") and "openssl rand -hex 32" in warning


def test_each_node_reads_its_own_value_beside_the_marks(nodes: Nodes) -> None:
    for rank, value in enumerate(("0.1", "0.1", "0.2")):
        nodes.start(node_of(rank, 3, same={"learning_rate": value}))
    told = {rank: str(error) for rank, error in nodes.wait().items()}
    assert "learning_rate: 0.1 on node 0 (host0), node 1 (host1); 0.2 on node 2 (host2)" in told[0]
    assert "learning_rate: 0.1 on node 0 (host0), node 1 (host1); #" in told[1] and "0.2" not in told[1]
    assert "; 0.2 on node 2 (host2)" in told[2] and "0.1" not in told[2]
    assert "without an ALLRANKS_TOKEN they are shown on node 0 only" in told[1] and "ALLRANKS_TOKEN" not in told[0]


def test_a_nodes_own_refusal_is_told_in_full_on_node_0_only(nodes: Nodes) -> None:
    nodes.start(node_of(0, 3))
    nodes.start(node_of(1, 3))
    nodes_terms = Terms(run_id="", **nodes.terms)
    assert tell_node_0(node_of(2, 3), nodes_terms, "learning_rate: 0.00317 is too much")
    told = {rank: str(error) for rank, error in nodes.wait().items()}
    assert "node 2 (host2) refused to start: learning_rate: 0.00317 is too much" in told[0]
    assert "node 2 (host2) refused to start; it says why on its own terminal" in told[1] and "0.00317" not in told[1]


def test_with_a_token_or_on_this_machine_only_all_is_told_to_all_and_nobody_is_warned(nodes: Nodes) -> None:
    for address, token in (("0.0.0.0", "right"), ("127.0.0.1", "")):
        nodes.results.clear()
        for rank, value in enumerate(("0.1", "0.2")):
            nodes.start(node_of(rank, same={"learning_rate": value}), address=address, token=token)
        for error in nodes.wait().values():
            assert isinstance(error, RefusedError)
            assert "learning_rate: 0.1 on node 0 (host0); 0.2 on node 1 (host1)" in str(error)
    assert not _warned(nodes)


@pytest.mark.parametrize("has_rank", [True, False])
def test_no_reader_is_shown_a_value_that_is_not_its_own(has_rank: bool) -> None:
    """Whichever names they give themselves: every arrangement of three values on three nodes, and of their names."""
    for values, hosts in itertools.product(itertools.product(("aa", "bb", "cc"), repeat=3), [("x", "x", "y"), "xyz"]):
        group = [
            node_of(rank, 3, host=host, pid=1, same={"key": value}, environment={"NCCL_ALGO": value}, has_rank=has_rank)
            for rank, (value, host) in enumerate(zip(values, hosts, strict=True))
        ]
        for reader, own in zip(group, values, strict=True):
            told = "\n".join(differing(group, Hidden().but_of(reader, group)))
            marks = told.replace("NCCL_ALGO must be the same on all nodes, but is", "")
            others = {"aa", "bb", "cc"} - {own}
            shown = {word for word in marks.split() if word in others}
            assert not shown, (values, hosts, told)


def test_marks_of_two_runs_have_nothing_in_common() -> None:
    group = [node_of(rank, same={"key": str(rank)}) for rank in range(2)]
    told = {differing(group, Hidden().but_of(group[1], group))[0] for _ in range(2)}
    assert len(told) == 2
