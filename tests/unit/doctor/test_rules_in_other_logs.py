"""The same lines under the prefixes of other launchers, among what runs print before and after, are the same cause."""

import pytest

from allranks.doctor.read_logs import diagnosis_of_text
from allranks.doctor.ruleset import CAUSE, Rule, all_rules

BEFORE = """\
W1115 18:00:00.000000 140 torch/distributed/run.py:793] Setting OMP_NUM_THREADS environment variable for each process
node0:100:100 [0] NCCL INFO Bootstrap : Using eth0:10.0.0.4<0>
node0:100:100 [0] NCCL INFO NET/IB : No device found.
Loading checkpoint shards: 100%|##########| 4/4 [00:03<00:00]
"""
AFTER = """\
[rank1]:[W1115 19:03:44.113 TCPStore.cpp:106] [c10d] recvValue failed on SocketImpl(fd=18): failed to recv, got 0 bytes
W1115 19:03:45.0 140 torch/distributed/elastic/multiprocessing/api.py:900] Sending process 4321 closing signal SIGTERM
E1115 19:03:46.0 140 torch/distributed/elastic/multiprocessing/api.py:87] failed (exitcode: 1) local_rank: 0 (pid: 4320)
Traceback (most recent call last):
  File "/opt/env/lib/python3.11/site-packages/torch/distributed/launcher/api.py", line 264, in launch_agent
    raise ChildFailedError(
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
train.py FAILED
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  rank      : 0 (local_rank: 0)
  exitcode  : 1 (pid: 4320)
"""


def _under(prefix: str, log: str) -> str:
    return "".join(f"{prefix}{line}\n" for line in log.strip("\n").splitlines())


WAYS = {
    "a whole run of torchrun": lambda log: BEFORE + _under("[rank0]: ", log) + AFTER,
    "mpirun": lambda log: _under("[1,3]<stderr>:", log),
    "Ray": lambda log: _under("(RayTrainWorker pid=4012, ip=10.0.0.7) ", log),
    "a time stamp": lambda log: _under("2025-03-01T10:00:00.123456789Z ", log),
}


def _differing(rule: Rule) -> list[str]:
    return [
        f"{rule.id}, case {number}, in {way}: {told.cause}"
        for number, case in enumerate(rule.cases, 1)
        for way, put in WAYS.items()
        if (told := diagnosis_of_text(put(case))).cause != rule.answer
    ]


@pytest.mark.parametrize("family", sorted({rule.family for rule in all_rules()}))
def test_a_cause_is_the_same_in_the_log_of_any_launcher(family: str) -> None:
    rules = [rule for rule in all_rules() if rule.family == family and rule.kind == CAUSE]
    assert [problem for rule in rules for problem in _differing(rule)] == []
