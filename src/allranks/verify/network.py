"""Whether the ranks are joined as one, and over which network."""

from __future__ import annotations

from allranks.cluster.network import REQUIRED_KINDS
from allranks.listing import few
from allranks.verify.check import ALONE, Check, Result
from allranks.verify.record import Proof
from allranks.verify.transports import fails, in_groups, of_ranks, pairs, ways_of_ranks, why_no_gdr, why_sockets


def communicator(proof: Proof) -> Check:
    """Whether all ranks are in one: by NCCL's log, or by gloo's connections."""
    name = "communicator"
    if proof.world_size == 1:
        return Check(name, "ok", "one rank needs none")
    if proof.backend != "nccl":
        return _gloo_communicator(proof)
    silent = [rank.rank for rank in proof.ranks if rank.nccl is None or not rank.nccl.communicators]
    if silent:
        why = "set network.debug: INFO, or leave it out" if len(silent) == proof.world_size else "look at its log"
        return Check(name, "unknown", f"NCCL logged nothing on {of_ranks(silent, proof)}", why, tuple(silent))
    of_rank = {
        rank.rank: {
            comm.key
            for comm in (rank.nccl.communicators if rank.nccl else ())
            if comm.num_ranks == proof.world_size and comm.rank == rank.rank and not comm.is_split
        }
        for rank in proof.ranks
    }
    if common := set.intersection(*of_rank.values()):
        return Check(name, "ok", f"one of {proof.world_size} ranks ({sorted(common)[0]}, by NCCL's log)")
    if outside := [rank for rank, keys in of_rank.items() if not keys]:
        log = next(rank.nccl for rank in proof.ranks if rank.rank == outside[0])
        sizes = few(sorted({f"{comm.num_ranks} ranks" for comm in (log.communicators if log else ())}))
        said = f"{of_ranks(outside, proof)} was in no communicator of all {proof.world_size} ranks, but of {sizes}"
        return Check(name, "wrong", said, ALONE, tuple(outside))
    groups: dict[str, list[int]] = {}
    for rank, keys in of_rank.items():
        groups.setdefault(sorted(keys)[-1], []).append(rank)
    listed = few([f"{of_ranks(ranks, proof)} in {key}" for key, ranks in groups.items()], 4, between="; ")
    return Check(name, "wrong", f"the ranks are in different communicators: {listed}", ALONE)


def _gloo_communicator(proof: Proof) -> Check:
    """On gloo every rank holds connections to all others."""
    name = "communicator"
    if any(rank.connections is None for rank in proof.ranks):
        return Check(name, "unknown", "gloo; this system does not tell which connections a process has")
    ways, num_nodes = ways_of_ranks(proof), len({rank.node for rank in proof.ranks})
    alone = [rank.rank for rank in proof.ranks if num_nodes > 1 and rank.rank not in ways]
    if alone:
        said = f"{of_ranks(alone, proof)} has no connection to an address of another node"
        # Behind a translation of addresses the ends have others than the nodes know.
        return Check(name, "unknown", said, ranks=tuple(alone))
    return Check(name, "ok", f"gloo, {proof.world_size} ranks that are connected with each other")


def transports(proof: Proof) -> Check:
    """What the ranks of different nodes talk over, and why some fell back to something slower."""
    name = "transports"
    num_nodes = len({rank.node for rank in proof.ranks})
    ways = ways_of_ranks(proof)
    if not ways:
        if num_nodes == 1:
            inside = sorted({how.partition(" ")[0] for found in pairs(proof).values() for how in found})
            return Check(name, "ok", "within one node" + (f", by {few(inside)}" if inside else ""))
        return Check(name, "unknown", "how the nodes talk is not known: no rank's log or connections tell")
    groups = in_groups(ways)
    total = len(ways)
    logs = {rank.rank: rank.nccl for rank in proof.ranks}
    usual, members = groups[0]
    others = [(way, ranks) for way, ranks in groups if way is not usual]
    # Rank by rank the fastest is what the others should have too.
    best = max(groups, key=lambda group: (group[0].is_fast, group[0].gdr, len(group[1])))[0]
    if not others:
        why = why_no_gdr(logs[members[0]]) if usual.is_fast and not usual.gdr else ""
        why = why or (why_sockets(logs[members[0]]) if not usual.is_fast else "")
        silent = proof.world_size - total
        more = f"; of {silent} ranks it is not known" if silent and num_nodes > 1 else ""
        everyone = f"all {total} ranks talk" if total > 1 else "1 rank talks"
        return Check(name, "ok", f"{everyone} over {usual}" + (f" ({why})" if why else "") + more)
    told = f"{len(dict(groups)[best])} of {total} ranks talk over {best}"
    slower = [(way, ranks) for way, ranks in groups if way is not best]
    fallen = []
    for way, ranks in slower:
        verb = "fell back to" if best.is_fast and not way.is_fast else "talk over" if len(ranks) > 1 else "talks over"
        reason = why_sockets(logs[ranks[0]]) if not way.is_fast else why_no_gdr(logs[ranks[0]])
        fallen.append(f"{of_ranks(ranks, proof)} {verb} {way}" + (f", because {reason}" if reason else ""))
    lost = sorted(rank for way, ranks in slower if not way.is_fast for rank in ranks)
    result: Result = "wrong" if best.is_fast and lost else "warning"
    remedy = "Look at `ibstat` and NCCL_IB_HCA there; `allranks check` compares the nodes" if result == "wrong" else ""
    return Check(name, result, f"{told}; {'; '.join(fallen)}", remedy, tuple(lost))


def require(proof: Proof) -> list[Check]:
    """Whether every rank talks over what `network.require` asks for, where it does."""
    if proof.require is None:
        return []
    name, ways = "network.require", ways_of_ranks(proof)
    if len({rank.node for rank in proof.ranks}) == 1:
        return [Check(name, "ok", f"{proof.require}: there is one node only, and no network to require")]
    silent = [rank.rank for rank in proof.ranks if rank.rank not in ways]
    wrong = {rank: way for rank, found in ways.items() if (way := fails(proof.require, found)) is not None}
    if wrong:
        way = next(iter(wrong.values()))
        ranks = [rank for rank, found in wrong.items() if found == way]
        log = next(rank.nccl for rank in proof.ranks if rank.rank == ranks[0])
        why = why_sockets(log) if not way.is_fast else why_no_gdr(log) if proof.require.lower() == "gdr" else ""
        if proof.backend != "nccl" and proof.require.lower() in REQUIRED_KINDS:
            why = "without GPUs ranks talk by gloo, which knows only sockets"
        said = f"{proof.require} is required, and {of_ranks(ranks, proof)} talk{'s' * (len(ranks) == 1)} over {way}"
        card = f" ({way.card})" if way.is_fast and way.card else ""
        remedy = "Mend the network there, or take network.require out of the config"
        return [Check(name, "wrong", said + card + (f", because {why}" if why else ""), remedy, tuple(ranks))]
    # Whoever has no link to another node needs none, where NCCL has told of the others.
    if not ways or (silent and proof.backend != "nccl"):
        said = f"{proof.require} is required, and how {of_ranks(silent, proof)} talks is not known"
        return [
            Check(name, "wrong", said, "Leave network.debug out, or set it to INFO: NCCL's log tells", tuple(silent))
        ]
    return [Check(name, "ok", f"{proof.require}, on every rank")]
