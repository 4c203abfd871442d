"""Ranks that really hang are photographed, and who holds the others up is named, with the line that it is at."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import re
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset

from allranks.evidence.collectives import analyse
from allranks.evidence.diagnose import diagnose, frames_of, ranks_of, recording_of, with_nodes
from allranks.evidence.gather import gather_node
from allranks.evidence.node import began
from allranks.evidence.python_stacks import own_frame
from allranks.evidence.rank_memory import RankProcess
from allranks.findings import Finding, from_message, printed
from allranks.train.feed import feed
from tests.unit.evidence.hanging_ranks import THIS_RUN, entered, hanging, main_thread_in, when


def photographed(folder: Path, **how) -> dict:
    return gather_node(folder, name="now", node=0, run_id=THIS_RUN, seconds=20.0, **how)


def _skips(rank: int, ready) -> None:
    dist.all_reduce(torch.ones(3))
    if rank == 1:
        ready()
        time.sleep(1000)  # a condition on the rank
    when(entered(2), ready)
    dist.all_reduce(torch.ones(4))


def _calls_another(rank: int, ready) -> None:
    when(entered(1), ready)
    if rank == 1:
        dist.barrier()
    dist.all_reduce(torch.ones(4))


def _other_shape(rank: int, ready) -> None:
    when(entered(2), ready)
    dist.all_gather([torch.empty(5), torch.empty(5), torch.empty(5)], torch.ones(5))
    work = dist.all_reduce(torch.ones(6 if rank == 1 else 5), async_op=True)
    with contextlib.suppress(RuntimeError):
        work.wait()
    time.sleep(1000)


class _Blocks(Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, at: int) -> int:
        if at == 1:
            time.sleep(1000)  # a dead mount
        return at


def _data_loader(rank: int, ready) -> None:
    if rank == 1:
        when(main_thread_in("_try_get_data"), ready)
        for _ in DataLoader(_Blocks(), num_workers=1, multiprocessing_context="fork"):
            dist.all_reduce(torch.ones(1))
    when(entered(2), ready)
    for _ in range(2):
        dist.all_reduce(torch.ones(1))


def _deadlock(rank: int, ready) -> None:
    if rank == 1:
        first, second = threading.Lock(), threading.Lock()
        both = threading.Barrier(2)

        def take(one, other) -> None:
            with one:
                both.wait()
                with other:
                    pass

        threading.Thread(target=take, args=(first, second), daemon=True).start()
        when(main_thread_in("take"), ready)
        take(second, first)
    when(entered(1), ready)
    dist.all_reduce(torch.ones(1))


def _line_of(function, text: str) -> int:
    lines, start = inspect.getsourcelines(function)
    return next(start + number for number, line in enumerate(lines) if text in line)


@pytest.mark.parametrize(
    ("function", "at", "says"),
    [
        (_skips, "a condition on the rank", "rank 1 (node 0, {host}) never entered all_reduce of 4 float"),
        (_calls_another, "dist.barrier", "rank 1 (node 0, {host}): barrier; rank"),
        (_data_loader, "a dead mount", "rank 1 (node 0, {host}) never entered all_reduce of 1 float"),
        (_deadlock, "both.wait()", "rank 1 (node 0, {host}) never entered all_reduce of 1 float"),
    ],
)
def test_who_holds_the_others_up_is_named(tmp_path, function, at, says):
    with hanging(function, tmp_path, num_ranks=3):
        told = photographed(tmp_path)
    finding = diagnose([told])
    assert says.format(host=socket.gethostname()) in finding.what, printed(finding)
    assert finding.who.rank == 1
    # Of a rank that waits for its data, where the worker that reads them is.
    line = _line_of(_Blocks if function is _data_loader else function, at)
    line += function is _deadlock  # where it waits for the other lock
    assert f"rank 1 is at {__file__}:{line} in " in finding.what
    assert "ranks 0, 2" in finding.what
    assert from_message(finding.to_message()) == finding  # it is sent to the other nodes
    assert sorted(path.name for path in (tmp_path / "evidence" / "now" / "node-0").iterdir()) == sorted(
        ["node.json", *(f"rank-0000{rank}.{what}" for rank in range(3) for what in ("recorder.json", "stacks.txt"))]
    )


def test_another_shape_is_named(tmp_path):
    """gloo itself may fail of it at once: then its entries still tell."""
    with hanging(_other_shape, tmp_path, num_ranks=3):
        told = photographed(tmp_path, keep=False)
    (stall, *_) = analyse({rank: recording_of(about) for rank, about in ranks_of([told]).items()})
    assert (stall.ranks, stall.sure) == ((1,), True)
    assert "rank 1: all_reduce of 6 float; ranks 0, 2: all_reduce of 5 float" in stall.what


def test_a_stopped_rank_comes_before_what_it_brings_about(tmp_path):
    with hanging(_skips, tmp_path, num_ranks=2) as pids:
        os.kill(pids[1], signal.SIGSTOP)
        # Two fifths of it are waited for each of its answers, and may be for the other one's.
        told = gather_node(tmp_path, name="now", node=0, run_id=THIS_RUN, seconds=15.0, keep=False)
    finding = diagnose([told], [Finding("hang", "step 3 is overdue")])
    assert f"rank 1 (node 0, {socket.gethostname()}) is stopped by a signal (state T)" in finding.what
    assert (finding.code, finding.who.rank) == ("hang", 1)
    assert "step 3 is overdue" in printed(finding)
    assert frames_of(ranks_of([told])[0])  # the other one has answered all the same


def test_what_is_sent_is_bounded_and_what_is_kept_is_whole(tmp_path):
    logs = tmp_path / "logs" / "node-0"
    logs.mkdir(parents=True)
    secret = "hf_" + "a1B2" * 8
    (logs / "rank-00001.log").write_text("x" * 100_000 + f"\nthe last line, with {secret}\n")
    with hanging(_skips, tmp_path, num_ranks=2):
        told = photographed(tmp_path)
    assert len(json.dumps(told)) < 200 * 2**10
    of_1 = ranks_of([told])[1]
    assert of_1["log"][-1] == "the last line, with <removed>"
    assert secret not in json.dumps(told)
    assert own_frame(frames_of(of_1)).function == "_skips"
    assert any(one["state"] == "ESTABLISHED" and re.fullmatch(r".*:\d+", one["peer"]) for one in of_1["sockets"])
    assert of_1["process"]["state"] == "S"
    kept = json.loads((tmp_path / "evidence/now/node-0/rank-00000.recorder.json").read_text())
    assert kept["recorders"][0]["entries"][-1]["input_sizes"] == [[4]]


def test_no_rank_and_no_disk(tmp_path):
    told = gather_node(tmp_path / "none", name="../x", node=0, run_id="nobody", seconds=2.0)
    assert told["ranks"] == []
    assert not (tmp_path / "x").exists()
    file = tmp_path / "file"
    file.touch()
    told = gather_node(file, name="now", node=0, run_id="nobody", seconds=2.0)
    assert "Not a directory" in told["not_kept"]


@pytest.mark.parametrize(
    "message",
    [
        None,
        {},
        {"ranks": 3},
        {
            "ranks": [
                None,
                {"rank": "x"},
                {"rank": True},
                {"rank": 1, "threads": [3, {"trains": True, "frames": [1, [2]]}]},
            ]
        },
        {
            "ranks": [{"rank": 1, "recording": 3, "process": 4, "sockets": [5], "memory": "x"}],
            "kernel": 3,
            "problems": 1,
        },
    ],
)
def test_what_another_node_says_harms_nobody(message):
    assert diagnose([message]).what
    assert diagnose([message], [Finding("hang", "step 3 is overdue")]).what == "step 3 is overdue"


def test_only_what_the_kernel_said_since_the_ranks_began_is_evidence():
    ranks = [RankProcess(0, 1, 500_000, None), RankProcess(1, 2, 400_000, None)]
    assert began(ranks, os.getpid()) == 400_000 / os.sysconf("SC_CLK_TCK")
    assert 0 < began([], os.getpid()) <= time.clock_gettime(time.CLOCK_BOOTTIME)


@pytest.mark.parametrize(
    ("blamed", "said"),
    [
        ((1,), "rank 1 (node 0, a) never came; rank 10 waits; rank 1 is at x"),
        ((10,), "rank 1 never came; rank 10 (node 1, b) waits; rank 1 is at x"),
        ((1, 10), "rank 1 (node 0, a) never came; rank 10 (node 1, b) waits; rank 1 is at x"),
        ((3,), "rank 1 never came; rank 10 waits; rank 1 is at x"),
        ((), "rank 1 never came; rank 10 waits; rank 1 is at x"),
    ],
)
def test_the_node_stands_beside_the_first_mention_of_who_is_blamed(blamed, said):
    ranks = {1: {"node": 0, "host": "a"}, 10: {"node": 1, "host": "b"}, 3: {"node": None, "host": 5}}
    assert with_nodes("rank 1 never came; rank 10 waits; rank 1 is at x", blamed, ranks) == said


def test_the_nodes_of_several_are_named_together():
    ranks = {rank: {"node": rank // 2, "host": "ab"[rank // 2]} for rank in range(4)}
    assert with_nodes("ranks 0-3 are stuck", (0, 1, 2, 3), ranks) == "ranks 0-3 (node 0, a; node 1, b) are stuck"


def test_of_a_rank_that_waits_for_its_data_the_place_is_where_the_data_is_read():
    """The names are of train/feed.py, whose thread makes the batches."""
    of_feed = {code.co_name for code in _codes_of(feed.__code__)}
    assert {"make", "batches_of"} <= of_feed
    waits = {
        "trains": True,
        "frames": [["/p/threading.py", 3, "wait"], ["/s/allranks/train/feed.py", 70, "batches_of"]],
    }
    reads = {"trains": False, "frames": [["/u/data.py", 5, "read"], ["/s/allranks/train/feed.py", 45, "make"]]}
    other = {"trains": False, "frames": [["/u/other.py", 9, "run"]]}
    assert str(own_frame(frames_of({"threads": [waits, other, reads]}))) == "/u/data.py:5 in read"
    assert frames_of({"threads": [waits, other]})[0].function == "wait"
    busy = {"trains": True, "frames": [["/u/loss.py", 1, "forward"]]}
    assert frames_of({"threads": [busy, reads]})[0].file == "/u/loss.py"


def _codes_of(code):
    for const in code.co_consts:
        if inspect.iscode(const):
            yield const
            yield from _codes_of(const)
