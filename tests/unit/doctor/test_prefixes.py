"""What stands before a line is told from its words: who wrote it, and when."""

import pytest

from allranks.doctor.reading.prefixes import without_prefixes

SAID = "RuntimeError: no"


@pytest.mark.parametrize(
    "prefix, rank, local_rank, node",
    [
        ("[rank3]: ", 3, None, None),
        ("[default3]:", None, 3, None),
        ("[trainer12]:[rank3]: ", 3, 12, None),
        ("7: ", 7, None, None),
        ("  7: [rank7]: ", 7, None, None),
        ("node1: ", None, None, "node1"),
        ("10.0.0.4: [rank9]: ", 9, None, "10.0.0.4"),
        ("gpu-a01: ", None, None, "gpu-a01"),
        ("(RayTrainWorker pid=1234, ip=10.0.0.5) ", None, None, "10.0.0.5"),
        ("(RayTrainWorker pid=1234) ", None, None, None),
        ("[1,3]<stderr>:", 3, None, None),
        ("[prterun-node0-123@1,3]<stderr>: ", 3, None, None),
        ("[rank1]:[E626 06:24:44.903881913 ProcessGroupNCCL.cpp:616] ", 1, None, None),
        ("[E ProcessGroupNCCL.cpp:474] ", None, None, None),
        ("E0103 10:00:00.123000 140 torch/distributed/elastic/multiprocessing/api.py:874] ", None, None, None),
        ("[2025-11-09 07:39:30] h100-28:238:1219 [0] ", None, 0, "h100-28"),
        ("2025-11-09 07:39:30,123 - ERROR - ", None, None, None),
        ("[2024-05-01 10:00:00,123] [ERROR] [axolotl.train:120] [PID:123] [RANK:3] ", 3, None, None),
        ("2025-11-09T07:39:30.123456789Z stderr F [rank2]: ", 2, None, None),
        ("Jun  6 06:24:44 node7 kernel: ", None, None, "node7"),
        ("[12345.678901] ", None, None, None),
        ("[Thu Jun 26 06:24:44 2025] ", None, None, None),
        ("stderr: ", None, None, None),
        ("stdout: [rank2]: ", 2, None, None),
        ("^C", None, None, None),
        ("> ", None, None, None),
        ("2025-01-01 10:00:00,123: rank3[208865][MainThread]: ERROR: ", 3, None, None),
        ("2023-02-17 22:40:24,367 (worker_7) : ", None, 7, None),
        ("[1,mpirank:5,algo-2]<stderr>:", 5, None, "algo-2"),
        ("algo-1-x8ab7  | ", None, None, "algo-1-x8ab7"),
        ("trainer/3 [rank3]: ", 3, 3, None),
        ("[2m[36m(RayTrainWorker pid=1942, ip=10.0.0.5)[0m ", None, None, "10.0.0.5"),
        ("09/16/2024 17:38:40 - ERROR - llamafactory.cli - ", None, None, None),
        ("12/09 06:49:23 - mmengine - ERROR - ", None, None, None),
        ("[04/10/23 16:14:26] ERROR     ", None, None, None),
        ("2025-10-31 03:11:02,478 - SimpleTuner - INFO - [rank0]: ", 0, None, None),
        ("[NeMo E 2025-04-30 22:15:36 nemo_logging:393] ", None, None, None),
        ("[ERROR|trainer.py:607] 2024-10-27 16:31:32,759 >> ", None, None, None),
        ("2023-04-17 16:36:41.156 | ERROR    | __main__:train:355 - ", None, None, None),
        ("2020-08-01 01:36:18 | ERROR | fairseq_cli.train | ", None, None, None),
        ("", None, None, None),
    ],
)
def test_prefixes_of_launchers_containers_and_libraries(prefix, rank, local_rank, node):
    told = without_prefixes(prefix + SAID)
    assert told.text.removeprefix("kernel: ") == SAID
    assert (told.rank, told.local_rank, told.node) == (rank, local_rank, node)


@pytest.mark.parametrize(
    "line",
    [
        "RuntimeError: CUDA error: device-side assert triggered",
        "OSError: [Errno 28] No space left on device",
        "torch.distributed.DistStoreError: Timed out after 7 seconds waiting for clients. 1/2 clients joined.",
        "slurmstepd: error: *** JOB 12 ON node1 CANCELLED AT 2025-01-01T00:00:00 DUE TO TIME LIMIT ***",
        "srun: error: node3: task 3: Killed",
        "  exitcode  : -9 (pid: 14840)",
        "bash: allranks: command not found",
        "FATAL:   image targets 'arm64', cannot run on 'amd64'",
        "step/10 loss 2.5",
        "epoch 001 | loss 2.5",
        ">>> import torch",
    ],
)
def test_words_are_no_prefix(line):
    assert without_prefixes(line).text == line


def test_the_level_is_of_the_line_itself_and_not_of_a_rank_that_is_logged():
    assert without_prefixes("2025-10-31 03:11:02,478 - Tuner - INFO - step 3").level == "INFO"
    assert without_prefixes("2025-10-31 03:11:02,478 - Tuner - INFO - [rank0]: RuntimeError: no").level == ""


def test_times_of_all_kinds_are_of_one_clock():
    alike = [
        "[rank1]:[E626 06:24:44.500 ProcessGroupNCCL.cpp:616] x",
        "2025-06-26 06:24:44,500 - INFO - x",
        "[2025-06-26T06:24:44.500] x",
        "[2025-06-26 06:24:44] h:1:2 [0] x",
        "Jun 26 06:24:44 node7 kernel: x",
    ]
    seconds = [without_prefixes(line).seconds for line in alike]
    assert None not in seconds and max(seconds) - min(seconds) <= 0.5
    assert without_prefixes("[12345.678901] x").seconds is None


def test_the_rank_within_a_line_of_torch_is_its_own():
    line = "[E626 06:24:44.9 ProcessGroupNCCL.cpp:616] [PG ID 0 PG GUID 0(default_pg) Rank 5] Watchdog caught"
    assert without_prefixes(line).rank == 5
