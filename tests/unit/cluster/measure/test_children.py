"""The programs that measure devices may hang or die: who started them hears why, and goes on."""

import json
import subprocess
import sys

import pytest

from allranks.cluster.measure.child import Request
from allranks.cluster.measure.children import AllReduce, DeviceMeasured, measure_devices
from tests.patience import await_end


def test_a_device_is_measured_one_that_is_not_there_is_told_and_no_child_is_left():
    absent = Request("cuda", local_rank=63, rank=1)
    here, gone = measure_devices([Request("cpu"), absent], {}, 120)
    assert here.done and not here.failed and here.matmul_flops > 0 and here.copy_bytes_per_second > 0
    assert not gone.done and gone.device == "cuda:63" and "Error" in gone.failed and gone.matmul_flops is None


def test_one_that_does_not_end_is_ended():
    (late,) = measure_devices([Request("cpu")], {}, 0.05)
    assert not late.done and late.failed == "it was still at its device after 0 s"


def test_what_is_measured_crosses_the_wire():
    one = DeviceMeasured(
        3, "cuda:1", 1e15, 2e12, True, [AllReduce(4096, 1e-4, True), AllReduce(8192, 0.5, False)], True
    )
    assert DeviceMeasured.from_message(json.loads(json.dumps(one.to_message()))) == one


@pytest.mark.parametrize(
    "said",
    [
        None,
        [],
        {"rank": "0"},
        {"rank": 0, "matmul_flops": "x", "all_reduces": 7},
        {"rank": 0, "all_reduces": [[1], ["a", 2, 3], [float("inf"), 1, True]], "copy_bytes_per_second": -1},
        {"rank": 0, "failed": "\x1b[31m", "matmul_flops": float("nan")},
    ],
)
def test_nonsense_from_the_wire_is_no_number(said):
    read = DeviceMeasured.from_message(said)
    if read is not None:
        assert read.matmul_flops is None and read.copy_bytes_per_second is None and read.all_reduces == []
        assert "\x1b" not in read.failed


def test_the_bus_of_an_all_reduce():
    assert AllReduce(10**9, 0.5, True).bus_bytes_per_second(4) == pytest.approx(3e9)


# Prints the id of the child that it waits for, and ends without it.
LEAVES_ONE_MEASURING = """
import os, subprocess, threading
from allranks.cluster.measure import children
class Told(subprocess.Popen):
    def __init__(self, *args, **keys):
        super().__init__(*args, **keys)
        print(self.pid, flush=True)
        threading.Timer(0.2, os._exit, [0]).start()
children.subprocess.Popen = Told
children.measure_devices([children.Request("cpu", rates_seconds=60.0)], {}, 600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_one_whose_starter_is_killed_measures_no_longer():
    done = subprocess.run([sys.executable, "-c", LEAVES_ONE_MEASURING], capture_output=True, text=True, timeout=60)
    await_end(int(done.stdout))
