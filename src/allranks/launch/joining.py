"""The nodes of a run meet: where, what each says of itself, and whether ranks on each can talk to the others'."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace

from allranks.cluster.account import NodeAccount
from allranks.cluster.rank_addresses import RankAddress, rank_addresses
from allranks.disk import told_to_user
from allranks.doctor.node_errors import CANNOT_GO_ON, node_error
from allranks.doctor.pairs import unreachable
from allranks.errors import AllranksError, RefusedError, UsageError
from allranks.exit_codes import DONE, FAILED
from allranks.findings import told
from allranks.launch.agreement import NothingToAgree, RunAgreement
from allranks.launch.between_starts import BetweenStarts
from allranks.launch.describe import speaks_for_all
from allranks.launch.finding_to_head import has_head
from allranks.launch.node.other_starts import OtherStarts
from allranks.launch.node.this_node import Node
from allranks.launch.peers import Peers
from allranks.launch.preflight.text import of_start
from allranks.launch.preflight.together import Preflight
from allranks.launch.spec.options import Launch
from allranks.launch.spec.rdzv_conf import is_host
from allranks.launch.stopped_ranks import StoppedRanks
from allranks.listing import few
from allranks.observe import say
from allranks.rendezvous import (
    Agreement,
    Participant,
    Rendezvous,
    Terms,
    Tried,
    is_here,
    join,
    prove_pairs,
    tell_all,
    tell_node_0,
)


@contextlib.contextmanager
def join_peers(
    launch: Launch,
    node: Node,
    account: NodeAccount,
    variables: Mapping[str, str],
    *,
    is_engine: bool = True,
    preflight: Preflight | None = None,
    others: OtherStarts | None = None,
    between: BetweenStarts | None = None,
) -> Iterator[Peers]:
    """Meet the other nodes, and see that ranks on each can talk to those on each other.

    `account` is what this node says about itself, `variables` what its ranks get beside its environment; `is_engine`
    says whether they run our engine. With `preflight` all nodes are checked, too. What is kept `between` this start and
    the next is not left. Raises RefusedError.
    """
    if not launch.meets:
        yield Peers(node, account=account, others=others)
        return
    speaks = speaks_for_all(launch)
    rendezvous = _joined(launch, node, account, RunAgreement(), others, between)
    peers = Peers(replace(node, run_id=rendezvous.run_id), rendezvous, account)
    if not speaks:
        peers.stopped = StoppedRanks(rendezvous, say=lambda text: None)  # node 0 tells it
    try:
        tried = unreachable if preflight is None else preflight.take_pairs_or_refuse
        found = prove_pairs(
            rendezvous, addresses_of_ranks(launch, variables, is_engine), skip=launch.skip_connection_check, tried=tried
        )
        if found is not None:
            peers.finding = found
            raise RefusedError(told(found))
        if preflight is not None:
            peers.judged = preflight.together(rendezvous, account)
            peers.judged.keep(node.run)
            if peers.judged.is_refused:
                raise RefusedError(of_start(peers.judged))
            if speaks:
                say(of_start(peers.judged))
        yield peers
    except BaseException as error:
        # A refusal that another node has told goes on with that one's reason.
        peers.finding = peers.finding or rendezvous.stop_finding() or node_error(error, peers.node.name)
        refusal = told_to_user(error, CANNOT_GO_ON)
        peers.code = refusal.exit_code if refusal else FAILED
        if refusal in (error, None):
            raise
        raise refusal from error
    finally:
        if between is None or not between.keeps(rendezvous):
            rendezvous.leave(peers.code, peers.finding)


@contextlib.contextmanager
def join_to_compare(launch: Launch, node: Node, variables: Mapping[str, str], tried: Tried) -> Iterator[Rendezvous]:
    """Meet the other nodes without agreeing on a run; `tried` is told, on node 0, who did not reach whom.

    Raises RefusedError where they do not meet.
    """
    rendezvous = _joined(launch, node, NodeAccount(), NothingToAgree())
    code, finding = FAILED, None
    try:
        addresses = addresses_of_ranks(launch, variables, is_engine=True)
        prove_pairs(rendezvous, addresses, skip=launch.skip_connection_check, tried=tried)
        yield rendezvous
        code = DONE
    except BaseException as error:
        finding = rendezvous.stop_finding() or node_error(error, node.name)
        raise
    finally:
        rendezvous.leave(code, finding)


def _joined(
    launch: Launch,
    node: Node,
    account: NodeAccount,
    agreement: Agreement,
    others: OtherStarts | None = None,
    between: BetweenStarts | None = None,
) -> Rendezvous:
    def refused_elsewhere() -> str | None:
        return (others.why() if others is not None else None) or (between.why() if between is not None else None)

    own = replace(_who(launch), account=account.to_message())
    terms = _terms(launch, node.run_id)
    speaks = speaks_for_all(launch)
    if speaks:
        say(f"{'rendezvous:':<12}{_going(own, terms)}")
    started = time.monotonic()
    rendezvous = join(own, terms, agreement, refused_elsewhere=refused_elsewhere)
    if between is not None:
        between.have_met()
    hosts = few([f"{one.host} ({one.num_processes})" for one in rendezvous.nodes])
    if speaks:
        say(f"{'joined:':<12}{hosts}: {rendezvous.world_size} ranks, after {time.monotonic() - started:.0f} s")
        for note in rendezvous.notes:
            say(f"{'note:':<12}{note}")
    return rendezvous


def addresses_of_ranks(launch: Launch, variables: Mapping[str, str], is_engine: bool) -> list[RankAddress]:
    """Where ranks of this node will listen."""
    # Our engine has a group of gloo beside NCCL's; of another program on GPUs it is not known.
    uses_nccl = launch.num_gpus > 0
    return rank_addresses({**os.environ, **variables}, uses_nccl=uses_nccl, uses_gloo=is_engine or not uses_nccl)


@contextlib.contextmanager
def refusals_told(launch: Launch | None) -> Iterator[None]:
    """Within, what this node refuses itself, or its disk, is told to node 0 before it is raised further.

    Node 0 tells those that come to it, unless it is a fault of the config or the command, which are theirs as well, or
    a command of ours started all nodes: that one ends them.
    """
    try:
        yield
    except (AllranksError, OSError) as error:
        refusal = told_to_user(error, CANNOT_GO_ON)
        if launch is not None and launch.meets and not _is_host(launch):
            tell_node_0(_who(launch), _terms(launch, run_id=""), str(refusal or error))
        elif launch is not None and launch.meets and not isinstance(refusal, UsageError) and not has_head():
            tell_all(_who(launch), _terms(launch, run_id=""), NothingToAgree(), str(refusal or error))
        if refusal in (error, None):
            raise
        raise refusal from error


def _who(launch: Launch) -> Participant:
    by_c10d = launch.backend == "c10d"
    assert by_c10d or launch.node_rank is not None
    return Participant(
        node_rank=-1 if by_c10d or launch.node_rank is None else launch.node_rank,
        has_rank=not by_c10d,
        nnodes=launch.max_nodes,
        num_processes=launch.nproc_per_node,
        host=socket.gethostname(),
        pid=os.getpid(),
        launcher=launch.launcher,
    )


def _terms(launch: Launch, run_id: str) -> Terms:
    return Terms(
        address=launch.address,
        port=launch.port,
        run_id=run_id,
        token=launch.token,
        by_c10d=launch.backend == "c10d",
        join_seconds=launch.join_seconds,
        silence_seconds=launch.silence_seconds,
        is_host=_is_host(launch),
    )


def _is_host(launch: Launch) -> bool:
    """Whether the others come to this node."""
    if launch.backend != "c10d":
        return launch.node_rank == 0
    said = is_host(launch.launcher_args)
    return is_here(launch.address) if said is None else said


def _going(own: Participant, terms: Terms) -> str:
    if terms.is_host:
        return f"waiting for {own.nnodes - 1} other node(s) at {terms.endpoint}"
    return f"going to {terms.host} at {terms.endpoint}"
