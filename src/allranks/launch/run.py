"""Run anyone's program on all nodes, with the same rendezvous, logs, record and clean-up that our own engine has."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from allranks import interrupt
from allranks.errors import UsageError
from allranks.launch.all_nodes.start import start_all_nodes
from allranks.launch.describe import describe_program, speaks_for_all
from allranks.launch.finding_to_head import tell_head
from allranks.launch.must_match import what_must_be_equal
from allranks.launch.node.environment import network_variables
from allranks.launch.node.local import RunInputs, run_local
from allranks.launch.node.this_node import Node, refusals_leave_nothing, this_node
from allranks.launch.outcome import Outcome
from allranks.launch.peers import join_peers, refusals_told
from allranks.launch.program_outcome import program_outcome
from allranks.launch.run_token import take_token
from allranks.launch.spec.from_environment import tell, with_environment
from allranks.launch.spec.options import LaunchOptions, resolve
from allranks.launch.spec.program import anyones
from allranks.launch.spec.where import NodeOptions, find_nodes
from allranks.launch.start import refuse_nested_launch
from allranks.launch.stop import NO_RANK_LEFT, Stopped, stop_at_once
from allranks.observe import say


def run_program(
    words: Sequence[str],
    options: LaunchOptions,
    nodes: NodeOptions,
    output_dir: str | Path,
    *,
    argv: Sequence[str] = (),
) -> int:
    """Start the program that `words` name, with as many ranks as asked for, on this node or on all.

    Returns the exit code: 0 if every rank ended with 0, else that of the rank that failed first. Raises AllranksError
    for what can be refused before any rank starts.
    """
    program = anyones(words)
    if options.launcher == "ray":
        raise UsageError("--launcher ray is for `allranks train`: Ray's workers start allranks' own engine only")
    token = take_token()
    options, notes = with_environment(options, nodes)
    tell(notes)
    everywhere = find_nodes(nodes, options, argv)
    if everywhere is not None:
        interrupt.means(NO_RANK_LEFT)
        return start_all_nodes(everywhere, token)
    launch = replace(resolve(options), token=token)
    refuse_nested_launch(launch, "the program itself; `allranks run`")
    nodes_made: list[Node] = []
    with refusals_told(launch), refusals_leave_nothing(nodes_made):
        node = this_node(output_dir, launch)
        nodes_made.append(node)
        if speaks_for_all(launch):
            say(describe_program(words, launch, node.run))
        log_starts = {path: path.stat().st_size for path in node.run.logs(node.name).glob("*.log")}
        variables = network_variables(None, launch, node.run.logs(node.name))
        same = what_must_be_equal(None) if launch.max_nodes > 1 else {}
    try:
        with (
            stop_at_once() as stop_if_asked,
            refusals_leave_nothing([node]),
            join_peers(launch, node, same, variables, is_engine=False) as peers,
        ):
            stop_if_asked()
            ended = run_local(launch, program, peers, RunInputs(argv, variables=variables))
            result = program_outcome(peers.node, launch, ended, log_starts, peers.elsewhere())
            result = peers.ended(result, ended)
            tell_head(peers.first_failure())
    except Stopped as stop:
        result = Outcome(128 + stop.received, f"{stop.received.name}: stopped before the program was started")
    interrupt.means(NO_RANK_LEFT)
    if result.message:
        say(result.message, file=sys.stderr)
    return result.exit_code
