"""Run anyone's program on all nodes, with the same rendezvous, logs, record and clean-up that our own engine has."""

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from allranks import interrupt
from allranks.doctor.attempt import Ended, Started
from allranks.doctor.program_end import program_end, stopped_program
from allranks.doctor.verdict import Verdict
from allranks.errors import UsageError
from allranks.launch.all_nodes.start import start_all_nodes
from allranks.launch.attempt import Checked, told_attempt
from allranks.launch.describe import describe_program, speaks_for_all
from allranks.launch.must_match import what_must_be_equal
from allranks.launch.node.environment import network_variables
from allranks.launch.node.local import RunInputs
from allranks.launch.node.this_node import Node
from allranks.launch.peers import Peers
from allranks.launch.place import refuse_nested_launch
from allranks.launch.preflight.together import Preflight
from allranks.launch.run_token import take_token
from allranks.launch.spec.from_environment import tell, with_environment
from allranks.launch.spec.options import Launch, LaunchOptions, resolve
from allranks.launch.spec.program import Program, anyones
from allranks.launch.spec.where import NodeOptions, find_nodes
from allranks.launch.stop import NO_RANK_LEFT
from allranks.observe import say


def run_program(
    words: Sequence[str],
    options: LaunchOptions,
    nodes: NodeOptions,
    output_dir: str | Path,
    *,
    argv: Sequence[str] = (),
    hang_seconds: float | None = None,
    asks: bool = True,
) -> int:
    """Start the program that `words` name, with as many ranks as asked for, on this node or on all.

    Returns the exit code: 0 if every rank ended with 0, else that of the rank that failed first. Raises AllranksError
    for what can be refused before any rank starts. `hang_seconds`: the run ends when no rank has written anything for
    so long. `asks`: its ranks can be asked what they do, if they are Python's.
    """
    if hang_seconds is not None and not 1 <= hang_seconds < float("inf"):
        raise UsageError(f"--hang-timeout {hang_seconds:g}: expected at least 1 second")
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
    return told_attempt(launch, _AnyProgram(launch, words, program, output_dir, argv, hang_seconds, asks))


@dataclass(frozen=True)
class _AnyProgram:
    launch: Launch
    words: Sequence[str]
    what: Program
    output_dir: str | Path
    argv: Sequence[str]
    hang_seconds: float | None = None
    asks: bool = True
    is_engine: bool = False

    def check(self, node: Node) -> Checked:
        if speaks_for_all(self.launch):
            say(describe_program(self.words, self.launch, node.run))
        variables = network_variables(None, self.launch, node.run.logs(node.name))
        return Checked(variables, what_must_be_equal(None) if self.launch.max_nodes > 1 else {})

    def preflight(self) -> Preflight | None:
        return None  # there is no config that says what it needs

    def prepare(self, checked: Checked, peers: Peers) -> RunInputs:
        return RunInputs(self.argv, variables=checked.variables, hang_seconds=self.hang_seconds, asks=self.asks)

    def alone(self, peers: Peers, inputs: RunInputs, stop_if_asked: Callable[[], None]) -> int | None:
        return None

    def program(self, node: Node) -> Program:
        return self.what

    def conclude(self, started: Started, ended: Ended) -> Verdict:
        return program_end(started, ended)

    def stopped(self, node: Node, received: signal.Signals) -> Verdict:
        return stopped_program(node.name, received)
