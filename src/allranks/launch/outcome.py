"""How did the run end? The ranks' own events know; torchrun's exit status says only whether all is well."""

import re
import signal
from dataclasses import dataclass
from typing import Any

from allranks.checkpoint.commit import complete_checkpoints, step_of
from allranks.launch.log_tail import last_lines, read_from
from allranks.launch.node.supervise import Ended
from allranks.launch.node.this_node import Node
from allranks.launch.spec.options import Launch
from allranks.observe import RunDir, read_events

PREEMPTED = 75
_LAST_EVENTS_BYTES = 2**20  # errors and exits are the last events of a rank; a traceback has some kilobytes
# torchrun's report of a worker that ended with an error, as torch 2.6 to 2.13 print it.
_WORKER = re.compile(r"rank +: (\d+) \(local_rank: \d+\)\s+exitcode +: (-?\d+) \(pid: (\d+)\)")

# What to tell of a run that a signal ended.
_NOTHING = "stopped before the first step; nothing was lost: start the same command again"
_ALL = "training is complete and saved; the rest, its result for Hugging Face tools, is made by: allranks export {run}"
_SAVED = "step {step} is saved in {run}; start the same command again with --auto-resume-from-checkpoints true"


@dataclass(frozen=True)
class Outcome:
    """`message` is for stderr; empty where there is nothing to say."""

    exit_code: int
    message: str = ""


def outcome(at: Node, launch: Launch, ended: Ended, *, ranks: range | None = None, log_start: int = 0) -> Outcome:
    """The exit code of this node's launcher and, for a failure, what failed first and where to look.

    `ranks` are those of this node, where it is known which; `log_start` is the size that the agent's log had before.
    """
    run, node = at.run, at.name
    events = _events(run, at.run_id)
    tail = read_from(run.agent_log(node), log_start)
    if ended.lost:
        # Where a rank of this node was killed, it began here: elsewhere only the broken connection was felt.
        began_here = _killed_worker(tail) is not None
        return Outcome(1, _failure(run, node, events, tail) if began_here else f"error: {ended.lost}\n  {_left(run)}")
    # A restarted rank writes another `exit`: the last one counts.
    codes = {
        event["rank"]: int(event.get("code", 1))
        for event in events
        if event["kind"] == "exit" and (ranks is None or event["rank"] in ranks)
    }
    if ended.killed:
        late = "the ranks did not stop in time and were killed"
        if ended.signal is not None and _kept(events) == _ALL:
            return _stopped(run, events, ended.signal, late)
        return Outcome(130 if ended.signal == signal.SIGINT else 1, f"error: {late}")
    if codes and len(codes) >= launch.nproc_per_node and set(codes.values()) <= {0, PREEMPTED}:
        return Outcome(PREEMPTED if PREEMPTED in codes.values() else 0)
    # DeepSpeed's launcher returns 0 also when the process that watches over the ranks was killed.
    if ended.returncode == 0 and not (launch.launcher == "deepspeed" and len(codes) < launch.nproc_per_node):
        return Outcome(0)
    if ended.signal is not None and _kept(events) and not any(event["kind"] == "error" for event in events):
        return _stopped(run, events, ended.signal)
    failing = {code for code in codes.values() if code not in (0, PREEMPTED)}
    code = failing.pop() if len(failing) == 1 else 1
    if not events:
        return Outcome(1, _never_started(run, launch, node, tail))
    return Outcome(code, _failure(run, node, events, tail))


def stopped(run: RunDir, run_id: str, received: signal.Signals) -> Outcome:
    """Of a run without torchrun that `received` ended while nobody listened for it."""
    return _stopped(run, _events(run, run_id), received)


def _left(run: RunDir) -> str:
    """What a run that was cut off leaves."""
    newest = complete_checkpoints(run.checkpoints)
    if not newest:
        return "the ranks of this node were ended; no checkpoint was complete yet: start the same command again"
    return (
        f"the ranks of this node were ended; step {step_of(newest[0])} is saved in {run.path}: start the same command "
        "again on all nodes with --auto-resume-from-checkpoints true"
    )


def _kept(events: list[dict[str, Any]]) -> str | None:
    """What to tell of a run that a signal ended, or None if it lost steps."""
    steps = [event["step"] for event in events if event["kind"] == "step"]
    committed = [event["step"] for event in events if event["kind"] == "checkpoint" and event["state"] == "committed"]
    if any(event["kind"] == "phase" and event["phase"] == "export" for event in events):
        return _ALL  # no rank enters it before the last checkpoint is committed
    if not steps:
        return _NOTHING
    return _SAVED if max(committed, default=0) >= max(steps) else None


def _stopped(run: RunDir, events: list[dict[str, Any]], received: signal.Signals, how: str = "") -> Outcome:
    steps = [event["step"] for event in events if event["kind"] == "step"]
    text = _kept(events) or "stopped; the steps after the newest checkpoint in {run} are lost"
    told = text.format(run=run.path, step=max(steps, default=0))
    code = 130 if received == signal.SIGINT else PREEMPTED
    return Outcome(code, ": ".join(part for part in (received.name, how, told) if part))


def _events(run: RunDir, run_id: str) -> list[dict[str, Any]]:
    """The last events of every rank in this start, in the order of time."""
    events = [
        event
        for path in run.all_events()
        for event in read_events(path, last_bytes=_LAST_EVENTS_BYTES)
        if event.get("run") == run_id
    ]
    return sorted(events, key=lambda event: event["t"])


def _failure(run: RunDir, node: int | str, events: list[dict[str, Any]], tail: str) -> str:
    first = next((event for event in events if event["kind"] == "error"), None)
    killed = _killed_worker(tail)
    if killed is not None:
        # Its peers' errors, though written first, are of the connection that it left behind.
        rank, text = killed
        lines = [f"error: rank {rank} (node {node}) failed first: {text}"]
        lines += [f"  | {line}" for line in last_lines(read_from(run.log(node, rank)))]
    elif first is not None:
        rank = first["rank"]
        # Rank 0 has told the terminal itself.
        message = "its message is above" if rank == 0 and node == 0 else first.get("message", "no message")
        lines = [f"error: rank {rank} (node {first.get('node', node)}{_on_host(first)}) failed first: {message}"]
    else:
        rank = None
        lines = [f"error: the ranks of node {node} ended without saying why; the end of {run.agent_log(node)}:"]
        lines += [f"  | {line}" for line in last_lines(tail)]
    if rank is not None and run.log(node, rank).is_file():
        lines.append(f"  its log: {run.log(node, rank)}")
    lines.append(f"  all logs: {run.logs(node)}, events: {run.path / 'events'}")
    return "\n".join(lines)


def _never_started(run: RunDir, launch: Launch, node: int | str, tail: str) -> str:
    killed = _killed_worker(tail)
    if killed is not None:
        head = f"error: rank {killed[0]} (node {node}) {killed[1]} before it said anything"
    elif launch.max_nodes > 1:
        head = (
            f"error: node {node} started no rank: the {launch.max_nodes} nodes did not meet at {launch.endpoint} "
            f"({launch.backend} rendezvous). Is node 0 running there, is the port open to this node, do all nodes say "
            f"--nnodes {launch.max_nodes} --nproc-per-node {launch.nproc_per_node}, and has each its own --node-rank?"
        )
    else:
        head = "error: no rank reported anything before it ended"
    return "\n".join([head, f"  the end of {run.agent_log(node)}:", *(f"  | {line}" for line in last_lines(tail))])


def _killed_worker(tail: str) -> tuple[int, str] | None:
    """(rank, what happened) of a worker that a signal ended before it could say anything.

    torchrun lists only the workers that ended by themselves, not those that it ended afterwards.
    """
    for rank, exitcode, pid in _WORKER.findall(tail):
        if int(exitcode) < 0:
            return int(rank), killed_by(-int(exitcode), f" (pid {pid})")
    return None


def killed_by(number: int, whom: str = "") -> str:
    """That a signal ended a process, and what that often means."""
    hint = "; the kernel kills so when memory runs out (dmesg tells)" if number == signal.SIGKILL else ""
    return f"killed by {signal.Signals(number).name}{whom}{hint}"


def _on_host(event: dict[str, Any]) -> str:
    return f", {event['host']}" if event.get("host") else ""
