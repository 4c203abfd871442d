"""How many workers a cluster gets, and what is said when it has not enough."""

import pytest

from allranks.config.sections.launch import LaunchConfig
from allranks.launch.ray_train.resources import awaited, demand, fitting, local_size, shortage

GPU_NODES = {"10.0.0.1": {"CPU": 16.0, "GPU": 4.0, "memory": 1e9}, "10.0.0.2": {"CPU": 16.0, "GPU": 2.0}}
CPU_NODES = {"10.0.0.1": {"CPU": 8.0}, "10.0.0.2": {"CPU": 8.0}, "10.0.0.3": {"CPU": 1.0}}


def test_there_is_a_worker_for_each_gpu():
    wanted = demand(LaunchConfig(use_ray=True), GPU_NODES)
    assert (wanted.num_workers, wanted.resources, wanted.placement_strategy) == (6, {"CPU": 1, "GPU": 1}, "PACK")
    assert fitting(wanted.resources, GPU_NODES) == 6


def test_without_gpus_there_is_a_worker_on_each_node():
    wanted = demand(LaunchConfig(use_ray=True), CPU_NODES)
    assert (wanted.num_workers, wanted.resources, wanted.placement_strategy) == (3, {"CPU": 1}, "SPREAD")


def test_what_is_asked_for_holds():
    settings = LaunchConfig(use_ray=True, ray_num_workers=2, resources_per_worker={"GPU": 0, "CPU": 4, "tpu_pod": 0.5})
    wanted = demand(settings, GPU_NODES)
    assert (wanted.num_workers, wanted.resources) == (2, {"CPU": 4, "tpu_pod": 0.5})


@pytest.mark.parametrize(
    ("resources", "number"),
    [
        ({"CPU": 3}, 2 + 2 + 0),  # no worker lies on two nodes
        ({"CPU": 8.5}, 0),
        ({"GPU": 1}, 0),
        ({"CPU": 0.5}, 16 + 16 + 2),
    ],
)
def test_workers_are_counted_node_by_node(resources, number):
    assert fitting(resources, CPU_NODES) == number


def test_a_cluster_of_this_machine_has_cpus_for_all_workers_and_no_more_gpus_than_there_are():
    assert local_size(LaunchConfig(ray_num_workers=6), num_cores=2, num_gpus=0) == {"CPU": 6, "GPU": 0}
    assert local_size(LaunchConfig(), num_cores=4, num_gpus=8) == {"CPU": 8, "GPU": 8}
    asked = LaunchConfig(ray_num_workers=3, resources_per_worker={"CPU": 1.5})
    assert local_size(asked, num_cores=2, num_gpus=1) == {"CPU": 5, "GPU": 1}


def test_a_shortage_names_what_was_asked_for_and_what_there_is():
    wanted = demand(LaunchConfig(use_ray=True, ray_num_workers=8), GPU_NODES)
    text = shortage(wanted, GPU_NODES, {"CPU": 20.0, "GPU": 1.0})
    assert "asked for 8 x {CPU: 1, GPU: 1}" in text
    assert "2 node(s), which hold 6 such worker(s)" in text
    assert "10.0.0.1 {CPU: 16, GPU: 4}; 10.0.0.2 {CPU: 16, GPU: 2}" in text
    assert "free now, over all nodes: {CPU: 20, GPU: 1}" in text


@pytest.mark.parametrize(
    ("free", "num_started", "is_own", "starting"),
    [
        ({"CPU": 17.0}, 0, False, True),
        ({"CPU": 1.0}, 2, False, True),
        ({"CPU": 1.0}, 1, False, False),  # a third job has the rest
        ({"CPU": 0.0}, 1, True, True),  # all that is reserved is reserved for these workers
    ],
)
def test_who_waits_hears_whether_resources_or_processes_are_awaited(free, num_started, is_own, starting):
    wanted = demand(LaunchConfig(use_ray=True), CPU_NODES)
    text = awaited(wanted, CPU_NODES, free, num_started=num_started, is_own=is_own, busy="a load of 9 on 2 core(s)")
    assert text.startswith(shortage(wanted, CPU_NODES, free))
    assert text.endswith("processes of Ray are still starting: a load of 9 on 2 core(s)") == starting
