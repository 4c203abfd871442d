"""Start this node's launcher, and watch over it until all its ranks have ended."""

from __future__ import annotations

import os
import shlex
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import psutil

from allranks import durable
from allranks.cluster.account import NodeStart
from allranks.cluster.expected import DATA_FINGERPRINT, EXPECTED_NODES, EXPECTED_WORLD_SIZE
from allranks.config import RunConfig
from allranks.doctor.attempt import Ended
from allranks.doctor.stopped import rank_stopped
from allranks.evidence.hook import ANSWERS
from allranks.findings import Finding, Who
from allranks.launch.describe import place_of_node, speaks_for_all
from allranks.launch.joining import addresses_of_ranks
from allranks.launch.manifest import launch_options, make_manifest, node_start, started_node, write_manifest
from allranks.launch.node.live import LiveNode
from allranks.launch.node.live_table import AfterHang
from allranks.launch.node.ranks import LAUNCH_ID, RUN_ID
from allranks.launch.node.starters import Place, Starting, starting
from allranks.launch.node.starters.threads import thread_variables
from allranks.launch.node.supervise import supervise
from allranks.launch.node.temporary import own_temporary_folder
from allranks.launch.node.terminal import terminal_path
from allranks.launch.node.this_node import Node
from allranks.launch.node.waited_for import Left, WaitedFor
from allranks.launch.peers import Peers
from allranks.launch.spec.options import Launch
from allranks.launch.spec.program import Program, as_a_rank
from allranks.live.deadlines import Limits, limits_of
from allranks.live.silence import Silence
from allranks.observe import read_events, say

_LAST_EVENTS_BYTES = 2**16  # hundreds of steps


@dataclass(frozen=True)
class RunInputs:
    """What the manifest says beside the launch itself. `variables` are added for the ranks. `certificate`: in what this
    start differs from what a smoke run proved, if there was one."""

    argv: Sequence[str]
    cfg: RunConfig | None = None
    fingerprint: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    certificate: Mapping[str, Any] | None = None
    after_hang: AfterHang | None = None
    """Whether all ranks are to be started again after a hang; None where it ends the run."""
    hang_seconds: float | None = None
    """After which anyone's program, which writes nothing, is taken to hang; None where that is not looked for."""
    asks: bool = True
    """Whether ranks of anyone's program, if they are Python's, are to answer what they do: see evidence/hook.py."""


def run_local(launch: Launch, program: Program, peers: Peers, inputs: RunInputs, left: Left | None = None) -> Ended:
    """Start this node's ranks and wait for their end, or until another node of the peers ends the run.

    `left` makes the finding of ranks that end before others still need them, where that is looked for. Signals that
    come before the launcher runs raise what the caller's handlers raise.
    """
    node = peers.node
    processes = tuple(one.num_processes for one in peers.nodes) or (launch.nproc_per_node,) * launch.max_nodes
    start = starting(launch, as_a_rank(program), Place(node.run, node.name, processes, inputs.cfg))
    for path, text in start.files.items():
        durable.write(path, text, make_parents=True)
    added = {**inputs.variables, **start.variables, **_run_variables(launch, node, inputs, peers.world_size)}
    own = _node_start(launch, node, start, added)
    must_match = (
        {"prepared data": inputs.fingerprint or ""} if program.is_engine else {"program": shlex.join(program.words())}
    )
    accounts = peers.ready(must_match, own)
    hosts = {name: started_node(account.host, account.start or NodeStart()) for name, account in accounts.items()}
    if peers.keeps_the_record:
        judged = peers.judged.record() if peers.judged is not None else None
        _write_record(launch, node, inputs, start.command, added, hosts, judged)
    shown = [f"{name}={value}" for name, value in added.items() if not name.startswith("ALLRANKS_")]
    if speaks_for_all(launch):
        say(f"{'command:':<12}{shlex.join([*shown, *start.command])}")
    if told := place_of_node(launch, peers.ranks, node.run.logs(node.name)):
        say(told)
    if launch.is_elastic:
        say(
            f"{'rendezvous:':<12}torchrun's alone, for {launch.join_seconds:.0f} s at most: waiting for "
            f"{launch.min_nodes} nodes at {launch.endpoint} ({launch.backend}). Nodes may come and go, so nothing of "
            "ours watches over them: one that is lost shows when a collective's time-out (ddp_timeout) has passed"
        )
    # Our engine keeps rank 0's log itself.
    log_of_rank_0 = None if program.is_engine else node.run.log(node.name, 0)
    compiles = inputs.cfg is not None and bool(inputs.cfg.parallel.torch_compile)
    with (
        terminal_path(log_of_rank_0) as terminal,
        own_temporary_folder(compiles=compiles) as temporary,
        _watched(launch, peers, inputs, added) as live,
    ):
        waited_for = WaitedFor(peers, left)

        def seen(ranks: Sequence[psutil.Process]) -> None:
            live.seen(ranks)
            waited_for.seen(ranks)

        return supervise(
            start.command,
            _without_launchers_variables(os.environ) | temporary | added | {"ALLRANKS_TERMINAL": terminal},
            log=node.run.agent_log(node.name),
            launch_id=node.launch_id,
            grace_seconds=launch.grace_seconds,
            num_ranks=launch.nproc_per_node,
            keep_open=node.locks,
            lost=lambda: waited_for.explained(peers.lost() or live.hang()),
            parting=peers.parting,
            describe=partial(_stopped, node),
            report=peers.stopped.update,
            asked=peers.asked,
            stopping=peers.stopping,
            seen=seen,
        )


def _watched(launch: Launch, peers: Peers, inputs: RunInputs, variables: Mapping[str, str]) -> LiveNode:
    """Without a config there are no phases that could last too long: it is anyone's program, which can only be silent
    for too long."""
    cfg = inputs.cfg
    limits: Limits | Silence | None = limits_of(cfg) if cfg is not None else None
    if cfg is None and inputs.hang_seconds is not None:
        limits = Silence(inputs.hang_seconds)
    ends = cfg is None or cfg.live.on_hang != "report"
    addresses = addresses_of_ranks(launch, variables, cfg is not None) if launch.max_nodes > 1 else []
    return LiveNode(
        peers,
        limits=limits,
        ends=ends,
        num_gpus=launch.num_gpus,
        say=partial(say, file=sys.stderr),
        interfaces=[one.interface for one in addresses if one.interface],
        num_restarts=launch.num_restarts,
        after_hang=inputs.after_hang,
    )


def _stopped(node: Node, rank: int, pid: int, state: str, seconds: float) -> Finding:
    events = read_events(node.run.events(rank), last_bytes=_LAST_EVENTS_BYTES)
    own = (event for event in events if event.run == node.run_id)
    return rank_stopped(Who(node.name, rank, socket.gethostname()), pid, state, seconds, own)


def prepare_this_process(launch: Launch, node: Node, inputs: RunInputs) -> None:
    """Write the manifest, and make this process ready to be the only rank itself."""
    added = {**inputs.variables, **thread_variables(launch), **_run_variables(launch, node, inputs)}
    start = Starting([sys.executable, "-m", "allranks", *inputs.argv])
    own = started_node(socket.gethostname(), _node_start(launch, node, start, added))
    _write_record(launch, node, inputs, start.command, added, {str(node.name): own})
    # Torch reads OMP_NUM_THREADS when it is imported, which is why it is not imported before.
    os.environ.update(added)


def _run_variables(launch: Launch, node: Node, inputs: RunInputs, world_size: int | None = None) -> dict[str, str]:
    """What our engine reads: see observe/output.py, observe/events.py and cluster/expected.py."""
    variables = {RUN_ID: node.run_id, LAUNCH_ID: node.launch_id}
    variables["ALLRANKS_LOG_DIR"] = str(node.run.logs(node.name).absolute())
    if inputs.cfg is None and inputs.asks:
        variables[ANSWERS] = os.path.realpath(node.run.path)
    if inputs.fingerprint is not None:
        variables[DATA_FINGERPRINT] = inputs.fingerprint
    if launch.min_nodes == launch.max_nodes:
        variables[EXPECTED_NODES] = str(launch.max_nodes)
        if world_size or launch.equal_nodes:
            variables[EXPECTED_WORLD_SIZE] = str(world_size or launch.world_size)
    return variables


def _node_start(launch: Launch, node: Node, start: Starting, added: Mapping[str, str]) -> NodeStart:
    """What this node starts, also kept beside its logs: node 0's manifest has it only where the nodes meet."""
    own = node_start(
        processes=launch.nproc_per_node,
        command=start.command,
        environment={**os.environ, **added},
        files={os.path.relpath(path, node.run.path): text for path, text in start.files.items()},
    )
    entry = started_node(socket.gethostname(), own)
    write_manifest(node.run.started(node.name), {"run": node.run_id, **entry})
    return own


def _write_record(
    launch: Launch,
    node: Node,
    inputs: RunInputs,
    command: Sequence[str],
    added: Mapping[str, str],
    nodes: Mapping[str, Mapping[str, Any]],
    judged: Mapping[str, Any] | None = None,
) -> None:
    manifest = make_manifest(
        run_id=node.run_id,
        argv=["allranks", *inputs.argv],
        config=inputs.cfg.flat() if inputs.cfg else None,
        config_source=inputs.cfg.source if inputs.cfg else None,
        fingerprint=inputs.fingerprint,
        nodes=nodes,
        command=command,
        environment={**os.environ, **added},
        launch=launch_options(launch),
        preflight=judged,
        certificate=inputs.certificate,
    )
    write_manifest(node.run.manifest, manifest)


def _without_launchers_variables(env: Mapping[str, str]) -> dict[str, str]:
    """PET_* are torchrun's defaults for its options: ours are all on its command line, and none may come unseen.

    Ranks' numbers come from the launcher only; with them in its environment it would look like a rank itself.
    """
    numbers = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    return {name: value for name, value in env.items() if not name.startswith("PET_") and name not in numbers}
