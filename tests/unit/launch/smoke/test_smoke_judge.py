"""What the ranks of a smoke run saw, and what it proves: each fault alone is a no-go that names it."""

import copy

import pytest

from allranks.config.sections.network import NetworkSettings
from allranks.launch.smoke.judge import judge


def rank(number, **changes):
    host = f"node{number // 2}"
    talk = {"backend": "gloo", "local": {f"10.0.0.{number // 2}": "eth0"}, "remote": ["10.0.0.9"], "nccl": None}
    checkpoint = {"problems": [], "files": 9, "bytes": 5_000_000, "removed": True} if number == 0 else None
    seen = {"rank": number, "host": host, "device": "CPU", "busy_percent": None, "losses": {"1": 8.25, "2": 8.125}}
    return {**seen, "checkpoint": checkpoint, "transport": talk, **changes}


def evidence(num_ranks=4):
    return {"run": "r", "differing_tensors": [], "ranks": [rank(number) for number in range(num_ranks)]}


def judged(of, **network):
    return {point.name: point for point in judge(of, NetworkSettings.model_validate(network))}


def failed(of, **network):
    return [name for name, point in judged(of, **network).items() if point.state == "failed"]


def test_healthy_ranks_pass_and_a_cpu_is_not_judged():
    points = judged(evidence())
    assert failed(evidence()) == []
    assert points["GPUs"].state == "not judged" and "CPU" in points["GPUs"].text
    assert points["losses"].text == "8.2500 -> 8.1250, finite and equal on all 4 ranks"
    assert "10.0.0.0 (eth0)" in points["transport"].text and points["checkpoint"].text.startswith("9 files, 5.0 MB")


def on_gpu(of, busy):
    for each, percent in zip(of["ranks"], busy, strict=True):
        each |= {"device": "H100", "busy_percent": percent}


FAULTS = {
    "a loss is not finite": ("losses", lambda ranks: ranks[2]["losses"].update({"2": float("nan")}), "rank 2 on node1"),
    "a step is missing": ("losses", lambda ranks: ranks[3]["losses"].pop("2"), "rank 3 on node1"),
    "a loss is another": ("losses", lambda ranks: ranks[1]["losses"].update({"1": 8.26}), "rank 1 on node0"),
    "no checkpoint": ("checkpoint", lambda ranks: ranks[0].update(checkpoint=None), "no rank"),
    "a bad file": ("checkpoint", lambda ranks: ranks[0]["checkpoint"].update(problems=["x: missing"]), "x: missing"),
    "alone": ("transport", lambda ranks: ranks[3]["transport"].update(local={"127.0.0.1": "lo"}), "rank 3 on node1"),
    "one on the CPU": ("GPUs", lambda ranks: ranks[0].update(device="H100", busy_percent=90), "rank 1 on node0"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_alone_is_named(name):
    point, fault, words = FAULTS[name]
    of = evidence()
    fault(of["ranks"])
    assert failed(of) == [point]
    assert words in judged(of)[point].text and judged(of)[point].remedy


def test_weights_that_drift_apart_are_named():
    of = evidence() | {"differing_tensors": ["layers.0.weight is one on rank 0 and another on rank 1"]}
    assert failed(of) == ["weights"] and "layers.0.weight" in judged(of)["weights"].text


def test_gpus_are_judged_where_their_driver_tells():
    of = evidence()
    on_gpu(of, [80, 70, 95, 60])
    assert judged(of)["GPUs"].text == "all 4 busy, 60 % or more at their best moment"
    on_gpu(of, [80, 0, 95, 60])
    assert failed(of) == ["GPUs"] and "rank 1 on node0" in judged(of)["GPUs"].text
    on_gpu(of, [80, None, 95, 60])
    assert judged(of)["GPUs"].state == "not judged"


def test_the_transport_that_the_config_asks_for():
    of = evidence()
    for each in of["ranks"]:
        each["transport"] |= {"backend": "nccl", "nccl": "Socket"}
    assert failed(of) == [] and "NCCL over Socket" in judged(of)["transport"].text
    assert failed(of, infiniband="required") == ["transport"]
    assert failed(of, interface="eth") == [] and failed(of, interface="=ib0") == ["transport"]
    mixed = copy.deepcopy(of)
    mixed["ranks"][2]["transport"]["nccl"] = "IB"
    assert failed(mixed) == ["transport"] and "rank 2 on node1 IB" in judged(mixed)["transport"].text


@pytest.mark.parametrize("of", [{}, {"ranks": []}, {"ranks": [1]}, {"ranks": "x"}])
def test_what_is_no_evidence_is_refused(of):
    with pytest.raises(ValueError):
        judge(of, NetworkSettings.model_validate({}))


@pytest.mark.parametrize("value", [None, 3, "x", [], {"losses": 3}, {"checkpoint": {"problems": [3]}}])
def test_ranks_that_say_nonsense_are_a_no_go_and_no_crash(value):
    of = evidence()
    for key in ("losses", "checkpoint", "transport", "host", "rank"):
        broken = copy.deepcopy(of)
        broken["ranks"][0][key] = value
        judge(broken, NetworkSettings.model_validate({}))
    broken = copy.deepcopy(of)
    broken["ranks"][0]["losses"] = value
    assert failed(broken) == ["losses"]
