"""Start a run on all nodes from one of them: the command that a user would type on each by hand, over ssh or srun."""

import asyncio
import math
import os
import shlex
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import allranks
from allranks.cluster.account import NodeAccount
from allranks.cluster.fanout import Fanout, NodeLost, NodeRefused, fan_out
from allranks.cluster.link import NotOpened
from allranks.cluster.protocol import GRACE_SECONDS
from allranks.cluster.reach import Address, find_address
from allranks.doctor import causes
from allranks.doctor.first_failure import first_failure
from allranks.doctor.verdict import Verdict, interrupted
from allranks.errors import RefusedError, UsageError
from allranks.exit_codes import PREEMPTED
from allranks.findings import Finding, Who, from_message, printed
from allranks.launch.all_nodes.screen import Screen
from allranks.launch.describe import ONE_VOICE
from allranks.launch.node.supervise import FORWARDED
from allranks.launch.run_token import TOKEN, make_token
from allranks.launch.spec.by_hand import by_hand
from allranks.launch.spec.everywhere import Everywhere
from allranks.launch.spec.exports import exported, working_directory
from allranks.listing import few
from allranks.observe import say
from allranks.secrets import without_secret_words
from allranks.submit.lost_hosts import take_lost_hosts_file, write_lost_hosts

_HEAD = "the command that started all nodes"
_LOST = "was lost: "
_WORDS_SECONDS = 4.0  # longer than a failing node waits for the others' account of it
_TOLD = (UsageError.exit_code, RefusedError.exit_code)  # then every node has said the same, at length


def start_all_nodes(start: Everywhere, token: str = "", env: Mapping[str, str] = os.environ) -> int:
    """Run it on all hosts, the first of which is node 0, until all have ended; returns the exit code.

    0 if all nodes say so, 75 if all saved and stopped, else that of the node which failed first; the others are then
    ended. Signals to this process reach the run on every node. Raises RefusedError where the nodes cannot be reached or
    cannot meet, and UsageError. `token` is the user's, where there is one.
    """
    lost_hosts = take_lost_hosts_file()
    variables, directory = exported(env, start.exports), working_directory(env)
    # It crosses as all variables do, through the agents' standard input, and is shown nowhere.
    token = variables.pop(TOKEN, "") or token or make_token()
    verdict = asyncio.run(_Start(start, variables, token, directory, lost_hosts).run())
    if verdict.message:
        say(verdict.message, file=sys.stderr)
    return verdict.exit_code


class _Start:
    def __init__(
        self,
        start: Everywhere,
        variables: Mapping[str, str],
        token: str,
        directory: str,
        lost_hosts: Path | None = None,
    ) -> None:
        self._start, self._variables, self._token = start, variables, token
        self._directory, self._lost_hosts = directory, lost_hosts
        self._names = [host.name for host in start.hosts]
        self._received: list[signal.Signals] = []
        self._running: Fanout | None = None  # once commands run

    async def run(self) -> Verdict:
        self._screen = screen = Screen(self._names)
        work = asyncio.create_task(self._work())
        for number in FORWARDED:
            # nohup ignores SIGHUP on purpose: leave that.
            if signal.getsignal(number) is not signal.SIG_IGN:
                asyncio.get_running_loop().add_signal_handler(number, self._receive, number, work)
        try:
            return await work
        except asyncio.CancelledError:
            return interrupted(self._received[0], _HEAD, "stopped before anything was started")
        except NotOpened as error:
            raise RefusedError(f"the nodes cannot be reached: {error}") from None
        finally:
            await screen.close()

    async def _work(self) -> Verdict:
        start = self._start
        async with fan_out(start.hosts, start.transport, self._screen.show) as fanout:
            _refuse_unreachable(fanout)
            accounts = await self._accounts(fanout)
            address = Address("", start.port, "", {})
            if len(accounts) > 1:
                address = await find_address(fanout, accounts, start.port, start.address)
            commands = [
                by_hand(
                    start.words,
                    num_nodes=len(start.hosts),
                    node_rank=node,
                    address=address.address,
                    port=address.port,
                    nproc_per_node=host.slots,
                )
                for node, host in enumerate(start.hosts)
            ]
            await self._screen.show(0, "stdout", self._description(accounts, address, commands[0]))
            return await self._run_commands(fanout, commands)

    async def _accounts(self, fanout: Fanout) -> list[NodeAccount]:
        try:
            answers = await fanout.ask_all("account")
        except (NodeLost, NodeRefused) as error:
            raise RefusedError(f"{self._names[error.node]} was lost: {error}") from None
        accounts = [NodeAccount.from_message(answer["account"]) for answer in answers]
        versions = [(name, account.allranks) for name, account in zip(self._names, accounts, strict=True)]
        others = [f"{name} has {version}" for name, version in versions if version != allranks.__version__]
        if others:
            raise RefusedError(f"allranks is {allranks.__version__} here, but {few(others)}: install the same there")
        return accounts

    def _description(self, accounts: Sequence[NodeAccount], address: Address, command: Sequence[str]) -> list[str]:
        start = self._start
        lines = {"nodes": f"{len(self._names)} over {start.transport.kind}: {few(self._names)}"}
        gpus = [str(account.num_gpus) for account in accounts]
        if set(gpus) != {"0"}:
            lines["GPUs"] = (
                f"{gpus[0]} on each node" if len(set(gpus)) == 1 else f"{few(gpus)}, in the order of the nodes"
            )
        if address.address:
            on = f" ({address.interface})" if address.interface else ""
            by = sorted(set(address.interfaces.values()) - {""})
            lines["rendezvous"] = f"{address.address} port {address.port} of {self._names[0]}{on}" + (
                f"; the other nodes reach it by {', '.join(by)}" if by else ""
            )
        if self._variables:
            lines["exported"] = ", ".join(self._variables)
        on_each = "" if len(self._names) == 1 else "on each node with its own --node-rank, "
        shown = shlex.join([start.transport.python, "-P", "-m", "allranks", *without_secret_words(command)])
        lines["command"] = f"{on_each}in {shlex.quote(self._directory)}: {shown}"
        return "\n".join(f"{name + ':':<12}{value}" for name, value in lines.items()).split("\n")

    async def _run_commands(self, fanout: Fanout, commands: Sequence[Sequence[str]]) -> Verdict:
        running = {
            asyncio.create_task(
                fanout.run(
                    node,
                    [self._start.transport.python, "-P", "-m", "allranks", *command],
                    {**self._variables, ONE_VOICE: "1", TOKEN: self._token},
                    self._directory,
                )
            ): node
            for node, command in enumerate(commands)
        }
        await asyncio.sleep(0)  # now all are on their way: a signal cannot overtake them
        self._running = fanout
        ends: dict[int, tuple[int, str]] = {}  # node -> exit code and why that is a failure, in the order of the ends
        stop_at = math.inf
        while running:
            wait = None if stop_at == math.inf else max(0.0, stop_at - time.monotonic())
            done, _ = await asyncio.wait(running, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                node = running.pop(task)
                ends[node] = _end_of(task)
                if ends[node][1] and stop_at == math.inf:
                    # The nodes end each other; whose fault it was, that one says itself if it is left the time.
                    stop_at = time.monotonic() + _WORDS_SECONDS
            if running and time.monotonic() >= stop_at:
                stop_at = math.inf
                fanout.stop(GRACE_SECONDS, list(running.values()))
        if self._received.count(signal.SIGINT) > 1:
            told = "everything was ended at once; the newest complete checkpoint stays valid"
            return interrupted(signal.SIGINT, _HEAD, told)
        if not any(why for _, why in ends.values()):
            return Verdict(max(code for code, _ in ends.values()))
        return self._blame(ends, {node: from_message(said) for node, said in fanout.findings.items()})

    def _blame(self, ends: Mapping[int, tuple[int, str]], said: Mapping[int, Finding | None]) -> Verdict:
        """The exit code and words of the node whose failure ended all others."""
        failed = [node for node, (_, why) in ends.items() if why]
        lost = [node for node in failed if ends[node][1].startswith(_LOST)]
        # A node that ends because of another says so.
        elsewhere = {node for node in failed if (known := said.get(node)) and known.who.node not in (None, node)}
        if lost and self._lost_hosts is not None:
            write_lost_hosts(self._lost_hosts, [self._names[node] for node in lost])
        first = first_failure(known for node in failed if (known := said.get(node)))
        culprit = [node for node in failed if first is not None and first.who.node == node]
        own = [node for node in failed if node not in elsewhere]
        node = (lost or culprit or own or failed)[0]
        code, why = ends[node]
        kind = causes.NODE_LOST if node in lost else causes.NODE_ERROR
        here = Finding(kind, f"{self._names[node]} {why}", who=Who(node, host=self._names[node]))
        reason = here if lost or first is None else first
        last_words = self._screen.last_words(node)
        if code in _TOLD and all(ends[other][0] == code for other in failed):
            return Verdict(code, reason)
        lines = [printed(here)]
        if node in elsewhere and last_words:
            lines = [last_words]
        elif last_words and code not in _TOLD:
            lines.append(f"  its last words: {last_words}")
        if len(self._names) > 1:
            lines.append(f"  also ended: {few([name for name in self._names if name != self._names[node]])}")
        return Verdict(code, reason, "\n".join(lines))

    def _receive(self, number: signal.Signals, work: asyncio.Task) -> None:
        self._received.append(signal.Signals(number))
        if self._running is None:
            work.cancel()
        elif self._received.count(signal.SIGINT) > 1:
            self._running.stop(0)
        elif len(self._received) == 1:
            again = "; Ctrl-C again ends them at once" if number == signal.SIGINT else ""
            self._running.signal(FORWARDED[self._received[0]])
            self._screen.say(f"{self._received[0].name}: asked all nodes to save a checkpoint and stop{again}")


def _end_of(task: "asyncio.Task[int]") -> tuple[int, str]:
    """The exit code of a node's command, and why it counts as a failure, or ""."""
    try:
        code = task.result()
    except NodeLost as error:
        return 1, f"{_LOST}{error}"
    except NodeRefused as error:
        return 1, f"could not start it: {error}"
    if code < 0:
        return 1, f"failed first: killed by {signal.Signals(-code).name}"
    return code, "" if code in (0, PREEMPTED) else f"failed first, with exit code {code}"


def _refuse_unreachable(fanout: Fanout) -> None:
    if not fanout.unreachable:
        return
    number = len(fanout.unreachable)
    lines = [f"\n  {fanout.hosts[node]}: {why}" for node, why in sorted(fanout.unreachable.items())]
    listed = few(lines, between="", rest="\n  and {:,} more")
    raise RefusedError(f"{number} of {len(fanout.hosts)} node(s) cannot be reached; nothing was started{listed}")
