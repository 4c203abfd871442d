"""A node's report, from any version of the probe and from what is none."""

import json
import random
from dataclasses import is_dataclass
from typing import get_args, get_type_hints

import pytest

from allranks.cluster.node_report import Cpu, Gpu, InfinibandPort, NodeReport, Package, Process


def test_what_is_written_is_read_back():
    report = NodeReport(
        version=1,
        host="node3",
        time=1.5,
        unanswered={"gpus": "did not answer in 5 s"},
        infiniband=(InfinibandPort(device="mlx5_0", port=1, rate_gbits=400, counters={"symbol_error": 0}),),
        gpus=(Gpu(index=0, ecc_uncorrected=0, throttled=(), processes=(Process(pid=7),)),),
        cpu=Cpu(num_cores=224),
        packages={"torch": Package("2.13.0", "/opt/torch"), "deepspeed": Package()},
        names={"node3": ("10.0.0.3",), "node4": ()},
    )
    message = json.loads(json.dumps(report.to_message()))
    assert NodeReport.from_message(message) == report
    assert "interfaces" not in message  # not known, which is not the same as none


def test_nothing_is_known_of_an_empty_table():
    report = NodeReport.from_message({})
    assert report == NodeReport()
    assert report.gpus is None and report.memory.total is None and report.unreadable == ()


def test_what_a_later_version_writes_besides_is_kept_at_every_level():
    message = {
        "version": 9,
        "cooling": {"fans": 8},
        "gpus": [{"index": 0, "fan": 30}],
        "cpu": {"governor": "powersave"},
    }
    report = NodeReport.from_message(message)
    assert report.version == 9 and report.other == {"cooling": {"fans": 8}} and report.unreadable == ()
    assert report.gpus[0].other == {"fan": 30}
    assert report.to_message() == {**NodeReport().to_message(), **message}


@pytest.mark.parametrize(
    ("message", "unreadable"),
    [
        ({"host": 3}, ["host is a number, not text"]),
        ({"time": "noon"}, ["time is 'noon', not a finite number"]),
        ({"time": float("nan")}, ["time is a number, not a finite number"]),
        ({"uid": True}, ["uid is true, not a whole number"]),
        ({"uid": 1.5}, ["uid is a number, not a whole number"]),
        ({"memory": []}, ["memory is a list, not a table"]),
        ({"memory": {"total": "2 GB"}}, ["memory.total is '2 GB', not a whole number"]),
        ({"gpus": {}}, ["gpus is a table, not a list"]),
        ({"names": {"node0": "10.0.0.1"}}, ["names.node0 is '10.0.0.1', not a list"]),
        ({"unanswered": {"gpus": 5}}, ["unanswered.gpus is a number, not text"]),
        ({"interfaces": [{"carrier": 1}]}, ["interfaces[0].carrier is a number, not true or false"]),
        ({"other": 3, "unreadable": None, "names": {"node0": None}, "gpu_system": {"xids": [None]}}, []),
    ],
)
def test_a_value_that_no_version_writes_is_not_known(message, unreadable):
    report = NodeReport.from_message(message)
    assert report.unreadable == tuple(unreadable)
    # Handed on, it is still known that there was something.
    assert NodeReport.from_message(report.to_message()).unreadable == tuple(unreadable)


def test_an_item_that_cannot_be_read_still_counts():
    report = NodeReport.from_message({"gpus": [{"index": 0}, "broken"], "gpu_system": {"xids": ["Xid 79", 3]}})
    assert report.gpus == (Gpu(index=0), Gpu())
    assert report.gpu_system.xids == ("Xid 79",)
    assert report.unreadable == ("gpus[1] is 'broken', not a table", "gpu_system.xids[1] is a number, not text")


@pytest.mark.parametrize("message", [None, [], "report", 3, True, [{"version": 1}]])
def test_what_is_no_table_is_no_report(message):
    with pytest.raises(ValueError, match="a report is a table, not"):
        NodeReport.from_message(message)


def anything(source: random.Random, depth: int = 0) -> object:
    """A JSON value as a probe, or one who means ill, might send; with the keys of reports, wherever they stand."""
    simple = [None, True, False, 0, -1, 10**400, 1e308, float("inf"), "", "eth0", "\x1b[2J\ud800", "x" * 200]
    if depth > 4 or source.random() < 0.4:
        return source.choice(simple)
    items = [anything(source, depth + 1) for _ in range(source.randrange(4))]
    if source.random() < 0.4:
        return items
    return {source.choice(NAMES): item for item in items}


def names_of(kind: object) -> set[str]:
    found = set()
    for name, hint in get_type_hints(kind).items():
        parts = [hint, *get_args(hint), *(inner for part in get_args(hint) for inner in get_args(part))]
        found |= {name}.union(*(names_of(part) for part in parts if is_dataclass(part)))
    return found


NAMES = [*sorted(names_of(NodeReport)), "later", "", "other"]


def test_arbitrary_json_is_read_and_handed_on():
    source = random.Random(3)
    for _ in range(500):
        message = {source.choice(NAMES): anything(source) for _ in range(source.randrange(8))}
        report = NodeReport.from_message(message)
        again = NodeReport.from_message(report.to_message())
        assert again == report
        json.dumps(report.to_message())


def test_depth_and_size_are_no_way_to_break_it():
    deep: object = 1
    for _ in range(100_000):
        deep = [deep]
    report = NodeReport.from_message({"host": deep, "gpus": [deep], "later": deep, "memory": {"total": deep}})
    assert report.gpus == (Gpu(),) and len(report.unreadable) == 3
    assert report.to_message()["later"] is deep
