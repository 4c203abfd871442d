"""One account of a node, that every version of allranks can read."""

import json
import random
from dataclasses import fields, replace

import pytest

from allranks.cluster.account import VERSION, NodeAccount, NodeAddress, NodeStart
from allranks.cluster.account_differences import differences
from allranks.cluster.gather import gather_account

FULL = NodeAccount(
    host="gpu1",
    python="/usr/bin/python3",
    python_version="3.11.7",
    allranks="0.1.0",
    num_gpus=8,
    num_cores=64,
    addresses=(NodeAddress("ib0", "10.0.0.1"), NodeAddress("eth0", "fd00::1")),
    must_match={"learning_rate": "0.1", "a; rm -rf $(x)": "\n"},
    network={"NCCL_DEBUG": "INFO"},
    checkpoints={"directory": "/out", "start": "fresh", "steps": []},
    start=NodeStart(2, ("torchrun", "--nnodes=2"), {"OMP_NUM_THREADS": "1"}, {"hosts": "gpu1 slots=8\n"}),
)


def over_the_wire(account):
    return NodeAccount.from_message(json.loads(json.dumps(account.to_message())))


def test_it_survives_the_wire():
    assert all(getattr(FULL, each.name) for each in fields(FULL) if each.name != "other"), "a field without a value"
    for account in (FULL, NodeAccount(), replace(FULL, start=None, checkpoints=None), gather_account(num_gpus=0)):
        assert over_the_wire(account) == account
        assert NodeAccount.from_message(account.to_message()) == account


def test_whatever_an_older_version_did_not_say_has_its_default():
    message = FULL.to_message()
    chance = random.Random(3)
    for _ in range(200):
        said = {key: value for key, value in message.items() if chance.random() < 0.5}
        account = NodeAccount.from_message(said)
        for each in fields(NodeAccount):
            if each.name != "other":
                assert getattr(account, each.name) == getattr(FULL if each.name in said else NodeAccount(), each.name)
    assert NodeAccount.from_message({}) == NodeAccount() and NodeAccount().version == VERSION


def test_what_a_later_version_says_besides_is_kept_and_handed_on():
    later = {**FULL.to_message(), "version": VERSION + 1, "gpus": [{"model": "H100"}]}
    account = NodeAccount.from_message(later)
    assert account.other == {"gpus": [{"model": "H100"}]} and account.version == VERSION + 1
    assert account.to_message() == later and over_the_wire(account) == account
    in_part = {**FULL.to_message(), "start": {"processes": 2, "unheard": 1}, "addresses": [{"address": "x", "mtu": 9}]}
    assert NodeAccount.from_message(in_part).start == NodeStart(2)
    assert NodeAccount.from_message(in_part).addresses == (NodeAddress(address="x"),)


NO_VALUES = {
    "version": ["1", None, True],
    "host": [1, None, ["a"]],
    "num_gpus": ["8", 1.5, False],
    "addresses": ["10.0.0.1", ["10.0.0.1"], [{"address": 1}], {}],
    "must_match": [[], {"a": 1}, "x", None],
    "network": [{"a": {}}, 3],
    "checkpoints": ["x", [], 1],
    "start": [[], "x", {"processes": "2"}, {"command": "torchrun"}, {"command": [1]}, {"files": {"a": 1}}],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in NO_VALUES.items() for value in values])
def test_what_no_version_writes_is_refused_by_its_name(name, value):
    with pytest.raises(ValueError, match=r"no version writes|is no list|is no table"):
        NodeAccount.from_message({**FULL.to_message(), name: value})


@pytest.mark.parametrize("message", [None, [], "x", 3, True])
def test_what_is_no_account_is_refused(message):
    with pytest.raises(ValueError, match="no table"):
        NodeAccount.from_message(message)


def test_differences_name_the_nodes_and_the_majority_comes_first():
    nodes = [(f"node {rank}", replace(FULL, must_match={"seed": seed})) for rank, seed in enumerate(["1", "2", "2"])]
    assert differences(nodes) == ["seed: 2 on node 1, node 2; 1 on node 0"]
    assert differences(nodes[1:]) == []
    nodes[0] = ("node 0", replace(FULL, must_match={}))
    assert differences(nodes) == ["seed: 2 on node 1, node 2; not set on node 0"]
