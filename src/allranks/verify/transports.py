"""How ranks of different nodes talk, by NCCL's own log or, on gloo, by the connections that each rank has open."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from allranks.cluster.interfaces import is_loopback
from allranks.cluster.network import REQUIRED_KINDS
from allranks.listing import few
from allranks.observe.nccl_log import Link, NcclLog
from allranks.verify.record import Proof, RankProof


@dataclass(frozen=True)
class Way:
    """One way in which a rank talks to other nodes: `network` IB, RoCE, Socket or a plugin's, `card` mlx5_0:1, eth0."""

    network: str
    gdr: bool
    card: str

    @property
    def is_fast(self) -> bool:
        return self.network != "Socket"

    def __str__(self) -> str:
        name = {"IB": "InfiniBand", "Socket": "sockets"}.get(self.network, self.network)
        on = f" on {self.card}" if self.card else ""
        return f"{name}{' with GPUDirect' if self.gdr else ''}{on if self.network == 'Socket' else ''}"


def ways_of_ranks(proof: Proof) -> dict[int, tuple[Way, ...]]:
    """Rank -> the ways in which it talks to ranks of other nodes, the slowest first; a rank that is not in it has not
    told, or has nobody to talk to there."""
    found = {rank.rank: ways for rank in proof.ranks if (ways := _nccl_ways(rank, proof) or _gloo_ways(rank, proof))}
    return {
        rank: tuple(sorted(set(ways), key=lambda way: (way.is_fast, way.gdr, way.network, way.card)))
        for rank, ways in found.items()
    }


def pairs(proof: Proof) -> dict[tuple[int, int], set[str]]:
    """(rank, rank) -> how the first sends to the second, or the second receives, as NCCL said: P2P, SHM, NET/IB…"""
    named = _names(proof)
    found: dict[tuple[int, int], set[str]] = {}
    for rank in proof.ranks:
        for link in rank.nccl.links if rank.nccl else ():
            peer = _peer(link, rank.rank, named, proof)
            if peer is None:
                continue
            pair = (rank.rank, peer) if link.direction == "send" else (peer, rank.rank)
            how = link.transport + ("/GDRDMA" if link.gdr else "")
            found.setdefault(pair, set()).add(f"{how} on {link.card}" if link.card else how)
    return found


def _nccl_ways(rank: RankProof, proof: Proof) -> list[Way]:
    if rank.nccl is None:
        return []
    named, nodes = _names(proof), _nodes(proof)
    ways = []
    for link in rank.nccl.links:
        peer = _peer(link, rank.rank, named, proof)
        if not link.transport.startswith("NET/") or (peer is not None and nodes.get(peer) == rank.node):
            continue
        network = link.transport.removeprefix("NET/")
        kind = link.kind if network == "IB" and link.kind in ("IB", "RoCE") else network
        ways.append(Way(kind, link.gdr, link.card))
    return ways


def _names(proof: Proof) -> dict[tuple[str, int], int]:
    """(communicator, rank in it) -> rank of the run."""
    return {
        (comm.key, comm.rank): rank.rank
        for rank in proof.ranks
        for comm in (rank.nccl.communicators if rank.nccl else ())
    }


def _peer(link: Link, rank: int, named: Mapping[tuple[str, int], int], proof: Proof) -> int | None:
    """The rank of the run at the other end; None where NCCL's own number of it means another."""
    if (link.key, link.peer) in named:
        return named[link.key, link.peer]
    return link.peer if link.rank == rank and link.peer < proof.world_size else None


def _nodes(proof: Proof) -> dict[int, int]:
    return {rank.rank: rank.node for rank in proof.ranks}


def _gloo_ways(rank: RankProof, proof: Proof) -> list[Way]:
    if rank.connections is None or proof.backend == "nccl":
        return []
    # By its address an end is known to be of another node. Loopback leads to one only where they are one machine.
    others = [one for one in proof.ranks if one.node != rank.node]
    theirs = {address for one in others for address in one.addresses} - set(rank.addresses)
    shares_machine = any((one.host, one.addresses) == (rank.host, rank.addresses) for one in others)
    return [
        Way("Socket", False, connection.interface)
        for connection in rank.connections
        if connection.remote in theirs
        or (shares_machine and (is_loopback(connection.remote) or connection.remote in rank.addresses))
    ]


def why_sockets(log: NcclLog | None) -> str:
    """Why this rank's NCCL took sockets, in its words; "" where it does not say."""
    if log is None:
        return ""
    settings = log.settings or {}
    if settings.get("NCCL_IB_DISABLE", "0") not in ("", "0"):
        return f"NCCL_IB_DISABLE={settings['NCCL_IB_DISABLE']} is set there"
    if settings.get("NCCL_NET", "").lower() == "socket":
        return "NCCL_NET=Socket is set there"
    if log.no_infiniband:
        return f'its NCCL says "{log.no_infiniband[0]}"'
    return ""


def why_no_gdr(log: NcclLog | None) -> str:
    """Why this rank's NCCL has no GPUDirect RDMA, in its words; "" where it does not say."""
    if log is None or not log.no_gdr:
        return ""
    said = log.no_gdr[0]
    if "distance" in said:
        return f'its NCCL says "{said}": the card is too far from the GPU (NCCL_NET_GDR_LEVEL)'
    return f'its NCCL says "{said}": no nvidia-peermem or DMA-BUF there'


def of_ranks(ranks: Sequence[int], proof: Proof) -> str:
    """`ranks 9 and 13 (node 1)`."""
    told = {rank.rank: rank for rank in proof.ranks}
    places = dict.fromkeys(f"node {told[rank].node}, {told[rank].host}" for rank in ranks if rank in told)
    numbers = list(map(str, ranks))
    listed = " and ".join(numbers) if len(numbers) < 3 else few(numbers, 8)
    return f"rank{'s' * (len(ranks) > 1)} {listed} ({few(places, 3, between='; ')})"


def in_groups(ways: Mapping[int, tuple[Way, ...]]) -> list[tuple[Way, list[int]]]:
    """The slowest way of each rank -> the ranks, the largest group first; cards of the fast ones are not told apart."""
    groups: dict[Way, list[int]] = {}
    for rank, found in ways.items():
        slowest = found[0]
        way = Way(slowest.network, slowest.gdr, "" if slowest.is_fast else slowest.card)
        groups.setdefault(way, []).append(rank)
    return sorted(groups.items(), key=lambda group: (-len(group[1]), group[1]))


def fails(require: str, ways: Iterable[Way]) -> Way | None:
    """The first of `ways` that is not what `network.require` asks for."""
    require = require.lower() if require.lower() in REQUIRED_KINDS else require
    wanted = {name.strip() for name in require.split(",") if name.strip()}
    for way in ways:
        if require == "gdr":
            fits = way.gdr
        elif require in ("ib", "roce"):
            fits = way.network == {"ib": "IB", "roce": "RoCE"}[require]
        else:
            cards = {name for one in way.card.split("+") for name in (one, one.partition(":")[0])}
            fits = bool(cards & wanted)
        if not fits:
            return way
    return None
