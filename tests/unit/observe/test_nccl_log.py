"""NCCL's log: of every version, whole, cut, in several pieces, and with the lines of several ranks mixed up."""

import random
import re

import pytest

from allranks.observe.nccl_log import from_message, parse, read_log, to_message
from tests.nccl_logs import COMM_ID, VERSIONS, Cluster, rank_lines, rank_log


def logs_of(text):
    return {log.pid: log for log in parse(text)}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("inside", ["P2P", "SHM"])
@pytest.mark.parametrize("network", ["IB", "RoCE"])
def test_each_version_tells_of_its_communicator_network_and_links(version, inside, network):
    cluster = Cluster(version, network=network, inside=inside)
    for rank in range(cluster.world_size):
        (log,) = parse(rank_log(cluster, rank))
        assert (log.host, log.pid, log.networks) == (cluster.host(rank), cluster.pid(rank), ("IB",))
        assert log.version == (f"{version}+cuda12.4" if rank % 2 == 0 else "")
        assert log.out_of_band == f"eth0:10.0.0.{rank // 2}<0>"
        (comm,) = log.communicators
        assert (comm.key, comm.rank, comm.num_ranks, comm.nvml_device) == (COMM_ID, rank, 4, rank % 2)
        assert comm.complete and not comm.is_split and comm.bus_id == f"{rank % 2 + 1}b000"
        links = {(link.direction, link.peer, link.transport, link.card, link.kind, link.gdr) for link in log.links}
        after, before = (rank + 1) % 4, (rank - 1) % 4
        other = after if rank % 2 else before
        way = "send" if other == after else "receive"
        expected = {(way, other, "NET/IB", f"mlx5_{n}:1", network, True) for n in range(2)}
        if rank % 2 == 0:
            expected.add(("send", after, inside, "", "", False))
        assert links == expected
        assert {link.key for link in log.links} == {COMM_ID}
        assert not log.no_infiniband and not log.no_gdr and not log.problems


@pytest.mark.parametrize("version", VERSIONS)
def test_a_fall_back_to_sockets_tells_its_interface_and_why(version):
    cluster = Cluster(version, on_sockets=(1, 2))
    for rank in (1, 2):
        (log,) = parse(rank_log(cluster, rank))
        assert log.networks == ("Socket",)
        assert {(link.transport, link.card) for link in log.links if "NET" in link.transport} == {
            ("NET/Socket", "eno1")
        }
        assert log.no_infiniband == ("NET/IB : No device found.",)


@pytest.mark.parametrize("seed", range(40))
def test_ranks_that_write_into_one_file_between_each_other_s_lines_are_told_apart(seed):
    chance = random.Random(seed)
    cluster = Cluster(chance.choice(VERSIONS), on_sockets=(3,) if seed % 2 else ())
    waiting = {rank: rank_lines(cluster, rank) for rank in range(cluster.world_size)}
    text = ""
    while left := [rank for rank in waiting if waiting[rank]]:
        text += waiting[chance.choice(left)].pop(0) + "\n"
    found = logs_of(text)
    for rank in range(cluster.world_size):
        (alone,) = parse(rank_log(cluster, rank))
        mixed = found[cluster.pid(rank)]
        assert (mixed.communicators, mixed.links, mixed.cards) == (alone.communicators, alone.links, alone.cards)


@pytest.mark.parametrize("seed", range(40))
def test_a_line_that_another_one_broke_is_lost_alone_and_names_nobody_wrongly(seed):
    chance = random.Random(seed)
    cluster = Cluster(chance.choice(VERSIONS))
    text = "".join(rank_log(cluster, rank) for rank in range(cluster.world_size))
    lines = text.splitlines()
    broken = chance.randrange(len(lines) - 1)
    other = rank_lines(cluster, chance.randrange(cluster.world_size))[-1]
    cut = chance.randrange(len(lines[broken]))
    mixed = [*lines[:broken], lines[broken][:cut] + other + lines[broken][cut:], *lines[broken + 1 :]]
    whole, found = logs_of(text), logs_of("\n".join(mixed))
    assert set(found) == set(whole)  # nobody new
    for pid, log in found.items():
        assert log.host == whole[pid].host
        for link in log.links:
            assert any(link.peer == one.peer and link.transport == one.transport for one in whole[pid].links)
    lost = sum(len(whole[pid].links) - len(found[pid].links) for pid in whole)
    assert lost <= 1 + 1


@pytest.mark.parametrize("seed", range(30))
def test_a_log_that_ends_anywhere_or_has_holes_says_what_it_has(seed):
    chance = random.Random(seed)
    cluster = Cluster(chance.choice(VERSIONS))
    text = rank_log(cluster, 1)
    (whole,) = parse(text)
    cut = text[: chance.randrange(len(text))]
    for log in parse(cut):
        assert set(log.communicators) | set(whole.communicators)
        assert len(log.links) <= len(whole.links)
    hole = chance.randrange(len(text))
    assert parse(text[:hole] + "\0" * 5000 + text[hole:]) == [whole]


@pytest.mark.parametrize("seed", range(20))
def test_bytes_of_any_kind_raise_nothing_and_what_was_read_survives_the_wire(seed):
    chance = random.Random(seed)
    text = list(rank_log(Cluster(chance.choice(VERSIONS), gdr=False, on_sockets=(0,)), seed % 4))
    for _ in range(60):
        text[chance.randrange(len(text))] = chr(chance.randrange(1, 0x2FFF))
    for log in parse("".join(text)):
        again = from_message(to_message(log))
        assert again is not None and again.links == log.links


def test_a_message_from_a_stranger_is_taken_as_far_as_it_fits():
    assert from_message(None) is None and from_message({"host": 3}) is None
    found = from_message(
        {"host": "a\x1b[2J", "pid": "x", "links": [{"key": 1}, 7], "cards": "no", "networks": ["IB", 3]}
    )
    assert found.host == "a\ufffd[2J" and not found.links and not found.cards and found.networks == ("IB", "")


# Real lines, of public threads (nccl#1232, nccl#1105, nccl#1814, nccl#1905, …): [text, what is found].
RECORDED = {
    "mixed adapters": (
        "elsah100:186:303 [6] NCCL INFO NET/IB : Using [0]mlx5_0:1/IB [1]mlx5_1:1/RoCE [RO]; OOB eth0:10.0.0.4<0>",
        lambda log: [card.link for card in log.cards] == ["IB", "RoCE"] and log.out_of_band == "eth0:10.0.0.4<0>",
    ),
    "too far for GPUDirect": (
        "n1:1:1 [0] NCCL INFO GPU Direct RDMA Disabled for GPU 0 / HCA 0 (distance 8 > 5)",
        lambda log: log.no_gdr == ("Disabled for GPU 0 / HCA 0 (distance 8 > 5)",),
    ),
    "GPUDirect is on": (
        "n013:101855:101885 [0] NCCL INFO NET/IB : GPU Direct RDMA Enabled for HCA 0 'mlx5_0'",
        lambda log: not log.no_gdr,
    ),
    "socket": (
        "node0:13571:13571 [0] NCCL INFO Channel 00/0 : 0[0] -> 1[0] [send] via NET/Socket/0",
        lambda log: log.links[0].transport == "NET/Socket" and log.links[0].peer == 1,
    ),
    "GPUDirect": (
        "tpgds-aihub0008:207007:207007 [0] NCCL INFO Channel 00/0 : 1[1] -> 8[0] [receive] via NET/IB/0/GDRDMA",
        lambda log: (log.links[0].gdr, log.links[0].rank, log.links[0].peer) == (True, 8, 1),
    ),
    "P2P": (
        "tpgds-aihub0008:207007:207007 [0] NCCL INFO Channel 00/0 : 8[0] -> 15[7] via P2P/IPC",
        lambda log: log.links[0].transport == "P2P" and log.links[0].peer == 15,
    ),
    "shared memory": (
        "node0:13572:13572 [1] NCCL INFO Channel 00 : 2[1] -> 0[0] via SHM/direct/direct",
        lambda log: log.links[0].transport == "SHM" and log.links[0].rank == 2,
    ),
    "communicator": (
        "lccn09:2520148:2520240 [7] NCCL INFO ncclCommInitRank comm 0x559811bf9550 rank 7 nranks 16 cudaDev 7 nvmlDev "
        "7 busId e4000 commId 0x550eec01d7c8e9ff - Init COMPLETE",
        lambda log: (log.communicators[0].rank, log.communicators[0].num_ranks) == (7, 16),
    ),
    "no device": (
        "ps-8:796:796 [1] NCCL INFO NET/IB : No device found.\n"
        "ps-8:796:796 [1] NCCL INFO NET/Socket : Using [0]enp67s0:192.168.1.8<0>",
        lambda log: log.no_infiniband and log.cards[0].name == "enp67s0" and log.cards[0].link == "192.168.1.8<0>",
    ),
    "no route": (
        "node5:240:240 [6] misc/socket.cc:533 NCCL WARN socketPollConnect: Connect to 10.0.0.4<56849> returned 113(No "
        "route to host) errno 115(Operation now in progress)",
        lambda log: log.problems[0].startswith("misc/socket.cc:533 socketPollConnect: Connect to 10.0.0.4<56849>"),
    ),
    "completion error": (
        "hostname-test:984:1357 [4] ib_plugin.c:1615 NCCL WARN NET/IB : Got completion from peer 172.36.143.59<44206> "
        "with status=12 opcode=129 len=65536 vendor err 129 (Recv)",
        lambda log: "status=12" in log.problems[0],
    ),
    "asynchronous event, with a time": (
        "[2025-11-09 07:39:30] h100-28:238:1219 [0] transport/net_ib.cc:180 NCCL WARN NET/IB : mlx5_ib0:1 async fatal "
        "event on QP (0x7f69f01519a8): local access violation work queue error",
        lambda log: log.host == "h100-28" and "async fatal event" in log.problems[0],
    ),
    "refused": (
        "a:1:1 [0] NCCL INFO Call to connect returned Connection refused, retrying",
        lambda log: log.problems == ("Call to connect returned Connection refused, retrying",),
    ),
    "of torchrun, and of srun -l": (
        "[rank3]: 3: gpu004:2200689:2200706 [3] misc/socket.cc:49 NCCL WARN socketProgress: Connection closed by "
        "remote peer gpu005<55693>",
        lambda log: log.host == "gpu004" and "closed by remote peer" in log.problems[0],
    ),
}


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_lines(name):
    text, holds = RECORDED[name]
    (log,) = parse(text)
    assert holds(log), log


def test_parts_of_a_communicator_have_the_same_name_on_all_their_ranks():
    """Made from the formats of 2.30: two halves of four ranks, twice."""
    names = []
    for rank in range(4):
        head = f"n{rank // 2}:{rank}:{rank} [0] NCCL INFO "
        lines = rank_lines(Cluster("2.30.7"), rank)
        lines = [re.sub(r"^\S+ \[\d\]", f"n{rank // 2}:{rank}:{rank} [0]", line) for line in lines]
        for child in (1, 2):
            said = (
                f"ncclCommSplit comm 0x9{child}{rank} rank {rank % 2} nranks 2 cudaDev 0 nvmlDev 0 busId 1b000 "
                f"parent 0x55aa{rank:04x}9550 childCount {child} color {rank // 2} key {rank}"
            )
            lines += [f"{head}{said}- Init START", f"{head}{said} - Init COMPLETE"]
        (log,) = parse("\n".join(lines))
        names.append([one.key for one in log.communicators if one.is_split])
        assert all(one.complete for one in log.communicators)
    assert names[0] == names[1] != names[2] == names[3]
    assert len(set(names[0])) == 2


def test_of_a_file_of_any_size_the_ends_are_read(tmp_path):
    path = tmp_path / "rank-00000.1.log"
    text = rank_log(Cluster(), 0)
    with path.open("wb") as file:
        file.write(text.encode())
        file.truncate(100 * 2**20)  # a hole
        file.seek(0, 2)
        file.write(
            b"\nnode0:4000:4000 [0] misc/socket.cc:49 NCCL WARN socketProgress: Connection closed by remote peer x\n"
        )
    (log,) = read_log(path)
    assert log.links == parse(text)[0].links
    assert "closed by remote peer" in log.problems[0]


def test_what_is_no_log_is_passed_over_at_once():
    assert parse("a" * 2_000_000) == []  # minutes, if every character is tried as a host's first
    assert parse(("x" * 300 + "\n") * 10_000 + "NCCL INFO " * 20_000) == []
