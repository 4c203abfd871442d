"""Check all nodes from one: each does what a user would type on it; where one cannot, the probe alone goes there."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import allranks
from allranks.cluster.account import NodeAccount
from allranks.cluster.fanout import Fanout, NodeLost, NodeRefused, fan_out
from allranks.cluster.link import NotOpened
from allranks.cluster.node_report import NodeReport
from allranks.cluster.probe import source_text
from allranks.cluster.probe_nodes import Probed, probe_nodes
from allranks.cluster.protocol import GRACE_SECONDS
from allranks.cluster.reach import Address, CannotMeet, find_address
from allranks.cluster.transports import ssh
from allranks.config import RunConfig
from allranks.errors import RefusedError
from allranks.exit_codes import DONE, REFUSED
from allranks.launch.describe import ONE_VOICE
from allranks.launch.preflight.asked import probe_request_of_all, wanted_of_all
from allranks.launch.preflight.so_far import SO_FAR
from allranks.launch.preflight.together import Judged, judged_of_reports
from allranks.launch.run_token import TOKEN, make_token
from allranks.launch.spec.by_hand import by_hand, without_options
from allranks.launch.spec.everywhere import Everywhere
from allranks.launch.spec.exports import exported, working_directory
from allranks.observe import say
from allranks.preflight.check import ClockOffset
from allranks.preflight.judge import Policy

_WORDS_SECONDS = 4.0
"""That the other nodes are left after one has failed: whose fault it was, that one says itself."""
_LONGEST_SECONDS = 180.0
"""For all of it, beyond the time to join: each part has a shorter deadline of its own."""
_KEPT_LINES = 50
_Reasons = dict[int, str]


def check_all_nodes(
    start: Everywhere,
    token: str,
    cfg: RunConfig,
    policy: Policy,
    join_seconds: float,
    env: Mapping[str, str] = os.environ,
) -> Judged:
    """What the nodes of `start` find together. Raises RefusedError where they answer and do not meet all the same."""
    variables, directory = exported(env, start.exports), working_directory(env)
    token = variables.pop(TOKEN, "") or token or make_token()
    return asyncio.run(_check(start, {**variables, ONE_VOICE: "1", TOKEN: token}, directory, cfg, policy, join_seconds))


async def _check(
    start: Everywhere,
    variables: Mapping[str, str],
    directory: str,
    cfg: RunConfig,
    policy: Policy,
    join_seconds: float,
) -> Judged:
    begun = time.monotonic()
    said = _Said()
    apart: set[int] = set()
    try:
        async with (
            asyncio.timeout(join_seconds + _LONGEST_SECONDS),
            fan_out(start.hosts, start.transport, said.take) as fanout,
        ):
            if start.transport.kind == "ssh":  # where it does not lead, it need not be tried again
                apart = {node for node, code in fanout.returncodes.items() if code == ssh.FAILED}
            reasons = dict(fanout.unreachable) or await _together(fanout, start, variables, directory, said)
    except NotOpened as error:  # nothing leads to any of them
        reasons = dict.fromkeys(range(len(start.hosts)), str(error))
    except TimeoutError:
        reasons = {0: f"the nodes did not end their checks within {join_seconds + _LONGEST_SECONDS:.0f} s"}
    if not reasons:
        return said.judged()
    names = ", ".join(start.hosts[node].name for node in sorted(reasons)[:4])
    say(f"{'preflight:':<12}asking each node by itself over {start.transport.kind}, because of {names}")
    request = probe_request_of_all(cfg, [host.name for host in start.hosts], start.address)
    asked = [node for node in range(len(start.hosts)) if node not in apart]
    hosts = [start.hosts[node] for node in asked]
    answers = await probe_nodes(hosts, start.transport, source_text(request), request.seconds)
    probed = [Probed(None)] * len(start.hosts)
    for node, answer in zip(asked, answers, strict=True):
        probed[node] = answer
    return _judged(start, cfg, policy, reasons, probed, time.monotonic() - begun)


async def _together(
    fanout: Fanout, start: Everywhere, variables: Mapping[str, str], directory: str, said: _Said
) -> _Reasons:
    """Let the nodes meet and check; returns why those that could not did not."""
    try:
        answers = await fanout.ask_all("account")
        accounts = [NodeAccount.from_message(answer["account"]) for answer in answers]
        if others := _other_versions(accounts):
            return others
        address = Address("", start.port, "", {})
        if len(accounts) > 1:
            address = await find_address(fanout, accounts, start.port, start.address)
    except (NodeLost, NodeRefused) as error:
        return {error.node: str(error)}
    except CannotMeet as error:
        return dict(error.reasons)
    words = [*without_options(start.words, {"--write-hosts"})]
    words = [word for word in words if word != "--json"]
    if len(accounts) > 1:
        say(f"{'rendezvous:':<12}{address.address} port {address.port} of {start.hosts[0].name}")
    commands = [
        by_hand(
            [*words[:1], "--json", *words[1:]],
            num_nodes=len(start.hosts),
            node_rank=node,
            address=address.address,
            port=address.port,
            nproc_per_node=host.slots,
        )
        for node, host in enumerate(start.hosts)
    ]
    python = [start.transport.python, "-P", "-m", "allranks"]
    return await _run(fanout, [[*python, *command] for command in commands], variables, directory, said)


def _other_versions(accounts: Sequence[NodeAccount]) -> _Reasons:
    return {
        node: f"it has allranks {account.allranks}, and this machine {allranks.__version__}: install the same there"
        for node, account in enumerate(accounts)
        if account.allranks != allranks.__version__
    }


async def _run(
    fanout: Fanout, commands: Sequence[Sequence[str]], variables: Mapping[str, str], directory: str, said: _Said
) -> _Reasons:
    running = {
        asyncio.create_task(fanout.run(node, command, variables, directory)): node
        for node, command in enumerate(commands)
    }
    reasons: _Reasons = {}
    stop_at: float | None = None
    while running:
        wait = None if stop_at is None else max(0.0, stop_at - time.monotonic())
        done, _ = await asyncio.wait(running, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            node = running.pop(task)
            if why := _why(task, node, said):
                reasons[node] = why
        if reasons and stop_at is None:
            stop_at = time.monotonic() + _WORDS_SECONDS
        elif not done and stop_at is not None:
            fanout.stop(GRACE_SECONDS, list(running.values()))
            stop_at = time.monotonic() + 2 * GRACE_SECONDS
    if not reasons and said.document is None:
        return {0: f"its check said nothing that can be read: {said.last_words(0)}"}
    return reasons


def _why(task: asyncio.Task[int], node: int, said: _Said) -> str:
    """Why a node's check came to nothing; "" where it did what it should."""
    try:
        code = task.result()
    except (NodeLost, NodeRefused) as error:
        return f"it was lost: {error}" if isinstance(error, NodeLost) else f"its check could not start: {error}"
    if code in (DONE, REFUSED):
        return ""
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return f"its check {how}: {said.last_words(node)}"


class _Said:
    """What the nodes' checks say: node 0's document, and of each the last words of what went wrong."""

    def __init__(self) -> None:
        self.document: dict[str, Any] | None = None
        self._errors: dict[int, deque[str]] = {}

    async def take(self, node: int, stream: str, lines: list[str]) -> None:
        if stream == "stderr":
            self._errors.setdefault(node, deque(maxlen=_KEPT_LINES)).extend(lines)
            for line in lines if node == 0 else ():
                if line.startswith(SO_FAR):
                    say(line, file=sys.stderr)
            return
        for line in lines if node == 0 else ():
            with contextlib.suppress(ValueError, RecursionError):
                read = json.loads(line)
                if isinstance(read, dict) and "refused" in read:
                    self.document = read

    def last_words(self, node: int) -> str:
        """From its last error on, else its last line."""
        lines = list(self._errors.get(node, ()))
        starts = [place for place, line in enumerate(lines) if line.startswith("error: ")]
        return "\n".join(lines[starts[-1] :])[len("error: ") :] if starts else "".join(lines[-1:]) or "it said nothing"

    def judged(self) -> Judged:
        """Raises RefusedError where the nodes did not meet."""
        assert self.document is not None
        if "error" in self.document:
            raise RefusedError(str(self.document["error"]))
        try:
            return Judged.from_message(self.document)
        except ValueError as error:
            raise RefusedError(f"node 0 said what is no judgement: {error}") from None


def _judged(
    start: Everywhere,
    cfg: RunConfig,
    policy: Policy,
    reasons: Mapping[int, str],
    probed: Sequence[Probed],
    seconds: float,
) -> Judged:
    """By the nodes' reports alone, and why they could not meet."""
    names = [host.name for host in start.hosts]
    reports: dict[str, NodeReport | None] = {}
    absent, refusals, clocks = {}, {}, {}
    for node, (name, one) in enumerate(zip(names, probed, strict=True)):
        reports[name] = one.report
        if one.report is None:
            absent[name] = reasons.get(node) or one.why
        elif node in reasons:
            refusals[name] = [reasons[node]]
        if one.report is not None and one.report.time is not None:
            within = (one.received - one.sent) / 2
            # The clock is read last, just before the report is sent.
            clocks[name] = ClockOffset(one.report.time - one.received + within, within)
    return judged_of_reports(wanted_of_all(cfg, start.hosts), policy, names, reports, absent, refusals, clocks, seconds)
