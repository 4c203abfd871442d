"""Who shares a folder is found out by trying, on real processes; what a node lacks is sent to it."""

import re
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from allranks.checkpoint import commit
from allranks.cluster.identity import Identity
from allranks.train.storage import Storage, _announce, detect_shared, replicate
from tests.power_cut import recorded
from tests.ranks import run_ranks

RANKS = 3

# The folder of each rank, under what the launcher says of nodes: nothing, the truth, or something wrong.
LAYOUTS: dict[str, tuple[str, list[int | None]]] = {
    "all shared": ("aaa", [None, None, None]),
    "two nodes": ("abb", [0, 1, 1]),
    "two nodes, nobody counts them": ("abb", [None, None, None]),
    "two nodes, out of order": ("aba", [0, 0, 1]),
    "shared by two of three nodes": ("abb", [0, 1, 2]),
    "a folder each on one node": ("abc", [0, 0, 0]),
}


def _rank(rank: int, base: Path) -> None:
    me = Identity(rank, RANKS, rank, None, None, "127.0.0.1", 0, "test")
    found = {
        name: detect_shared(base / name / folders[rank], replace(me, node_rank=nodes[rank]))
        for name, (folders, nodes) in LAYOUTS.items()
    }
    said: list[str] = []
    # Rank 0's folder lacks a shard; the other has one, and nothing else.
    checkpoint = base / "fetched" / "abb"[rank] / "step-00000004"
    if rank < 2:
        checkpoint.mkdir(parents=True)
        (checkpoint / f"shard-{rank}").write_bytes(bytes([rank]) * 300_000)
    dist.barrier()
    if rank == 0:
        shards = [checkpoint / "shard-0", base / "fetched" / "b" / checkpoint.name / "shard-1"]
        commit.commit(checkpoint, {shard.name: commit.digest(shard) for shard in shards})
        # What is to be brought here must not go where this leads.
        (base / "outside").write_text("somebody else's")
        (checkpoint / "shard-1").symlink_to(base / "outside")
    dist.barrier()

    def check(place: Path) -> None:
        for path in commit.complete_checkpoints(place):
            assert commit.verify(path) == []

    with recorded(checkpoint.parent, base / "cuts", check) if rank == 1 else nullcontext():
        lack = replicate(checkpoint, found["two nodes"], said.append)
    torch.save({"found": {k: vars(v) for k, v in found.items()}, "said": said, "lack": bool(lack)}, base / f"{rank}.pt")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("storage")
    run_ranks(_rank, folder, num_ranks=RANKS)
    return folder


@pytest.fixture(scope="module")
def results(base) -> list[dict[str, Any]]:
    return [torch.load(base / f"{rank}.pt") for rank in range(RANKS)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ranks_know_who_shares_their_folder(results, base, layout):
    folders = LAYOUTS[layout][0]
    names = list(dict.fromkeys(folders))
    for rank, result in enumerate(results):
        together = [other for other in range(RANKS) if folders[other] == folders[rank]]
        want = Storage(names.index(folders[rank]), len(names), together.index(rank), len(together))
        assert Storage(**result["found"][layout]) == want
    assert [path.name for path in (base / layout).rglob("*") if path.is_file()] == []


def test_every_node_gets_what_it_lacks_and_is_told_once(results, base):
    for folder in "ab":
        checkpoint = base / "fetched" / folder / "step-00000004"
        assert commit.verify(checkpoint) == []
    assert (base / "outside").read_text() == "somebody else's"
    for result in results:
        assert not result["lack"]
        (said,) = result["said"]
        assert re.fullmatch(r"step-00000004: sending 2 files \(\d+(\.\d\d)? (bytes|kB)\) to nodes that lack them", said)


def test_much_to_send_comes_with_advice():
    assert "output_dir on a file system that all nodes share" in _announce("step-00000004", 9, 2_000_000_000)
