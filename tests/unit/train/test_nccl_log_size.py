"""NCCL's logs stay small, however often a rank starts and however much NCCL writes."""

import os

from allranks.observe.nccl_log import read_log
from allranks.train.nccl_log_size import BoundedLog, remove_old_logs
from tests.nccl_logs import Cluster, rank_log

WARNING = "node0:4000:4000 [0] misc/socket.cc:49 NCCL WARN socketProgress: Connection closed by remote peer x\n"


def test_a_log_that_grows_keeps_its_beginning_and_its_end_while_nccl_writes_on(tmp_path):
    path = tmp_path / "rank-00000.4000.log"
    log = BoundedLog(path, most_bytes=2**20, ends_bytes=2**17)
    with path.open("w") as file:  # as NCCL does: written on at its own place, not appended
        file.write(rank_log(Cluster(), 0))
        file.flush()
        small = path.read_bytes()
        log.bound()
        assert path.read_bytes() == small
        for _ in range(4):
            file.write("node0:4000:4000 [0] NCCL INFO noise\n" * 30_000)
            file.flush()
            log.bound()
        file.write(WARNING)
    assert path.stat().st_blocks * 512 <= 2**20 < path.stat().st_size
    assert path.read_bytes().startswith(small)
    (found,) = read_log(path)
    assert found.links and "closed by remote peer" in found.problems[-1]


def test_a_log_that_is_gone_is_no_error(tmp_path):
    BoundedLog(tmp_path / "none").bound()
    remove_old_logs(tmp_path / "nowhere" / "rank-00000")


def test_of_a_rank_s_starts_the_newest_logs_are_kept(tmp_path):
    for number in range(8):
        for rank in (3, 13):
            log = tmp_path / f"rank-{rank:05d}.{100 + number}.log"
            log.write_text("")
            os.utime(log, (number, number))
    remove_old_logs(tmp_path / "rank-00003")
    assert sorted(path.name for path in tmp_path.glob("rank-00003.*")) == [
        f"rank-00003.{n}.log" for n in range(104, 108)
    ]
    assert len(list(tmp_path.glob("rank-00013.*"))) == 8
