"""One start of all ranks of a run, as this node takes part in it: from its lock to what is known of its end.

Nothing of it is left when it returns, so whoever may try again does so by another attempt.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from allranks import interrupt
from allranks.checkpoint.holdings import Held
from allranks.cluster.account import NodeAccount
from allranks.cluster.environments import network_settings
from allranks.cluster.gather import gather_account
from allranks.doctor.attempt import Ended, Started
from allranks.doctor.failures import seen_before
from allranks.doctor.left_early import left_early
from allranks.doctor.training_end import own_end
from allranks.doctor.verdict import Verdict
from allranks.errors import AllranksError
from allranks.findings import Finding
from allranks.launch.between_starts import BetweenStarts
from allranks.launch.describe import end_of_node, what_came_before_ranks
from allranks.launch.finding_to_head import tell_head
from allranks.launch.joining import join_peers, refusals_told
from allranks.launch.node.local import RunInputs, run_local
from allranks.launch.node.other_starts import OtherStarts
from allranks.launch.node.this_node import Node, give_up_locks, refusals_leave_nothing, this_node
from allranks.launch.peers import Peers
from allranks.launch.preflight.answering import refuse_what_does_not_answer
from allranks.launch.preflight.together import Preflight
from allranks.launch.ranks_of_others import tell_of_ranks, with_others
from allranks.launch.spec.options import Launch
from allranks.launch.spec.program import Program
from allranks.launch.stop import NO_RANK_LEFT, Stopped, stop_at_once
from allranks.live.live_file import write_end, write_own_end
from allranks.observe import say


@dataclass(frozen=True)
class Checked:
    """What checking came to on this node alone: `variables` are added for its ranks, `must_match` has to be equal on
    all nodes, `held` is what it has of the run's checkpoints."""

    variables: Mapping[str, str]
    must_match: Mapping[str, str]
    held: Held | None = None


class Work(Protocol):
    """What is started: our engine on a config, or anyone's program."""

    @property
    def is_engine(self) -> bool: ...

    @property
    def output_dir(self) -> str | Path: ...

    def check(self, node: Node) -> Checked:
        """Check what can be checked alone, and say what is about to happen. Raises AllranksError."""
        ...

    def preflight(self) -> Preflight | None:
        """What all nodes are to be checked for when they meet; looking at this one begins now. None for nothing."""
        ...

    def prepare(self, checked: Checked, peers: Peers) -> RunInputs:
        """Make ready what the ranks need, after all nodes have met. Raises AllranksError."""
        ...

    def alone(self, peers: Peers, inputs: RunInputs, stop_if_asked: Callable[[], None]) -> int | None:
        """Do it in this process, where that needs no launcher; its exit code, or None."""
        ...

    def program(self, node: Node) -> Program:
        """What every rank runs."""
        ...

    def conclude(self, started: Started, ended: Ended) -> Verdict:
        """How it ended, as far as this node can tell."""
        ...

    def stopped(self, node: Node, received: signal.Signals) -> Verdict:
        """How it ended where a signal came while no launcher ran."""
        ...


def told_attempt(launch: Launch, work: Work) -> int:
    """One attempt, whose end is told on this terminal; returns the exit code."""
    return tell_end(launch, attempt(launch, work))


def tell_end(launch: Launch, verdict: Verdict) -> int:
    """Tell on this terminal how an attempt ended; returns the exit code."""
    if verdict.message:
        say(verdict.message, file=sys.stderr)
    elif end := end_of_node(launch, verdict.exit_code):
        say(end)
    return verdict.exit_code


def attempt(launch: Launch, work: Work, between: BetweenStarts | None = None) -> Verdict:
    """Take this node's lock, meet the others, start the ranks and watch over them until their end, and tell the others
    how it ended here. Raises AllranksError for what is refused before any rank starts. `between`: of several attempts,
    what is known of the nodes between them."""
    with refusals_told(launch):
        refuse_what_does_not_answer([{"purpose": "output_dir", "path": str(work.output_dir)}])
        node = this_node(work.output_dir, launch)
    try:
        with OtherStarts(launch, node) as others:
            try:
                return _attempt(launch, work, node, others, between)
            except AllranksError as error:
                others.tell(str(error))
                raise
    finally:
        give_up_locks(node)


def _attempt(
    launch: Launch, work: Work, node: Node, others: OtherStarts, between: BetweenStarts | None = None
) -> Verdict:
    with refusals_told(launch):
        with refusals_leave_nothing(node):
            preflight = work.preflight() if launch.meets else None
            checked = work.check(node)
        log_starts = {path: path.stat().st_size for path in node.run.logs(node.name).glob("*.log")}
    try:
        with (
            stop_at_once() as stop_if_asked,
            refusals_leave_nothing(node),
            join_peers(
                launch,
                node,
                own_account(launch, checked),
                checked.variables,
                is_engine=work.is_engine,
                preflight=preflight,
                others=others,
                between=between,
            ) as peers,
        ):
            node = peers.node
            inputs = work.prepare(checked, peers)
            stop_if_asked()
            others.refuse()
            if (code := work.alone(peers, inputs, stop_if_asked)) is not None:
                started = _started(launch, work, peers, log_starts)
                verdict = seen_before(own_end(started, code), started)
                write_end(node.run, node.run_id, verdict.exit_code, verdict.reason)
                return verdict
            started = _started(launch, work, peers, log_starts)
            # Our engine ends all its ranks together.
            left = None if work.is_engine else partial(_left, started)
            ended = run_local(launch, work.program(node), peers, inputs, left)
            if not work.is_engine:
                ended = peers.with_others_end(ended)
            others.refuse()
            concluded = work.conclude(started, ended)
            tell_of_ranks(peers.rendezvous, started, concluded.reason)
            verdict = peers.ended(concluded, started, ended)
            known = with_others(peers.rendezvous, started, verdict.reason)
            if known is not started:
                # Another node may have told of it only after the ranks here had lost the aborted one.
                anew = ended if verdict.reason is concluded.reason else replace(ended, lost=verdict.reason)
                verdict = peers.concluded_anew(work.conclude(known, anew))
            restarts = peers.restarts if ended.signal is None else None
            if restarts is None:
                tell_head(peers.first_failure())
            if peers.keeps_the_record:
                verdict = seen_before(verdict, started)
            if restarts is not None:
                if between is not None:
                    between.keep(peers.rendezvous, started)
                return replace(verdict, restarts=restarts)
            if peers.keeps_the_record:
                write_end(node.run, node.run_id, verdict.exit_code, verdict.reason)
            elif verdict.reason is not None:
                write_own_end(node.run, node.name, node.run_id, verdict.exit_code, verdict.reason)
    except Stopped as stop:
        verdict = work.stopped(node, stop.received)
    interrupt.means(NO_RANK_LEFT)
    return verdict


def own_account(launch: Launch, checked: Checked) -> NodeAccount:
    """What this node says about itself to the others."""
    must_match = {**checked.must_match, **({"--rdzv-id": launch.rdzv_id} if launch.backend == "c10d" else {})}
    return replace(
        gather_account(launch.num_gpus),
        must_match=must_match,
        network=network_settings({**os.environ, **checked.variables}),
        checkpoints=checked.held.to_message() if checked.held is not None else None,
    )


def _left(started: Started, lost: Finding, ranks: Mapping[int, int], alive: frozenset[int]) -> Finding | None:
    return left_early(started, Ended(0, None, False, lost, ranks=ranks, alive=alive))


def _started(launch: Launch, work: Work, peers: Peers, log_starts: Mapping[Path, int]) -> Started:
    node = peers.node
    return Started(
        node.run,
        node.run_id,
        node.name,
        launch.launcher,
        launch.nproc_per_node,
        launch.world_size,
        num_nodes=launch.max_nodes,
        ranks=peers.ranks,
        log_starts=log_starts,
        told_of_none=what_came_before_ranks(launch, node.name),
        is_ours=work.is_engine,
    )
