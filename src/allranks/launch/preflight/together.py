"""Each node hands in what it reports, node 0 judges all of it, and every node hears what came of it.

The probe works beside the rendezvous, which usually takes longer. Every round has a deadline, and a node whose probe
does not end is one that reports nothing: that is for the checks to judge.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from allranks import durable
from allranks.cluster.account import NodeAccount
from allranks.cluster.measure.values import Measurements
from allranks.cluster.node_report import NodeReport
from allranks.cluster.pairs import Unreached
from allranks.cluster.probe import ProbeRequest, probe_this_node
from allranks.doctor.pairs import Place, unreachable
from allranks.findings import Finding
from allranks.json_types import is_a
from allranks.launch.preflight.deadline import Beside
from allranks.launch.preflight.refusals import Refusals
from allranks.launch.preflight.sizes import Sizes
from allranks.launch.preflight.so_far import tell_so_far
from allranks.listing import printable
from allranks.observe import RunDir
from allranks.preflight.catalogue import CHECKS
from allranks.preflight.check import ClockOffset, Pairs, Subject, Wanted
from allranks.preflight.effective import completed
from allranks.preflight.judge import Policy, judge
from allranks.preflight.judgement import STATES, Judgement
from allranks.preflight.measured_step import measured_link
from allranks.rendezvous import Rendezvous
from allranks.rendezvous.hidden import Hidden

Measure = Callable[[Callable[[Measurements], None]], Measurements]
"""All that is measured; it calls what it is given with what it knows by then, on all nodes."""
_COMPARING = ("parity.", "environment.must-match", "environment.differs")
_ROUND_SECONDS = 60.0
"""For what takes milliseconds, on nodes that are busy with something else."""
_WRITE_SECONDS = 10.0
_MARGIN_SECONDS = 10.0
"""For the probe's own process, beyond the deadline of its sources."""


@dataclass(frozen=True)
class Judged:
    """What came of it, as every node hears it. `hosts` are the nodes' names, by node rank."""

    judgement: Judgement
    hosts: Sequence[str]
    seconds: float
    is_hidden: bool = False
    """Whether values of other nodes are marks in their place."""
    reports: Mapping[str, Any] = field(default_factory=dict)
    """On node 0 only."""
    link: Mapping[str, float] = field(default_factory=dict)
    """What a node sends to others, as it was measured: `bytes_per_second`, `latency_seconds`. On node 0 only."""

    @property
    def is_refused(self) -> bool:
        return self.judgement.is_refused

    @classmethod
    def from_message(cls, said: object) -> Judged:
        """What `to_message` made. Raises ValueError: it comes from the wire."""
        if not isinstance(said, Mapping) or not is_a(said.get("hosts"), Sequence[str]):
            raise ValueError("no judgement")
        seconds, hosts = said.get("seconds"), tuple(printable(host, 256) for host in said["hosts"])
        seconds = float(seconds) if is_a(seconds, float) and isinstance(seconds, int | float) else 0.0
        return cls(Judgement.from_message(said), hosts, seconds, said.get("is_hidden") is True)

    def to_message(self) -> dict[str, Any]:
        """Also what --json prints."""
        own = {"hosts": list(self.hosts), "seconds": self.seconds, "is_hidden": self.is_hidden}
        return {**self.judgement.to_message(), **own}

    def record(self) -> dict[str, Any]:
        """What the manifest keeps: what a run was started with in spite of it."""
        shown = [one for one in self.judgement.reported if one.state in ("warned", "accepted")]
        found = [{**one.finding.to_message(), "nodes": list(one.nodes), "state": one.state} for one in shown]
        return {"seconds": self.seconds, "findings": found}

    def keep(self, run: RunDir) -> None:
        """Write preflight.json, on node 0: what was found, and the reports that it was found in."""
        if not self.reports:
            return
        kept = {"t": time.time(), **self.to_message(), "link": dict(self.link), "reports": self.reports}
        text = json.dumps(kept, indent=1, ensure_ascii=False) + "\n"
        with contextlib.suppress(OSError):  # that nothing can be written there has been found already
            Beside(lambda: durable.write(run.preflight, text, make_parents=True)).result(_WRITE_SECONDS)


class Preflight:
    """One node's part. It begins to look at this node when it is made, and never takes longer than its deadline."""

    def __init__(
        self,
        request: ProbeRequest,
        wanted: Wanted,
        policy: Policy,
        refusals: Refusals | None = None,
        sizes: Callable[[], Sizes] = Sizes,
    ) -> None:
        self._wanted, self.policy, self._refusals = wanted, policy, refusals or Refusals()
        self.pairs: tuple[Sequence[Place], Sequence[tuple[int, Unreached]]] | None = None
        """Who did not reach whom, on node 0, once that has been tried."""
        self.measured: Measurements | None = None
        """What was measured, on node 0, where it was."""
        self.started = time.monotonic()
        self._deadline = self.started + request.seconds + _MARGIN_SECONDS
        self._probe = Beside(lambda: probe_this_node(request))
        self._sizes, self._sizes_deadline = Beside(sizes), self.started + request.deadline_seconds

    @property
    def wanted(self) -> Wanted:
        """What the nodes must be able to do; without sizes where the model's folder gives no answer."""
        known = self._sizes.result(self._sizes_deadline - time.monotonic()) or Sizes()
        return replace(
            self._wanted,
            checkpoint_bytes=known.checkpoint_bytes,
            checkpoint_files=known.checkpoint_files,
            load_bytes=known.load_bytes,
            steps=known.steps,
            expected=known.expected,
        )

    def report(self) -> NodeReport | None:
        """What was found here; None where the probe has not ended in time."""
        return self._probe.result(self._deadline - time.monotonic())

    def take_pairs(self, places: Sequence[Place], found: Sequence[tuple[int, Unreached]]) -> None:
        """Is told, on node 0, who did not reach whom."""
        self.pairs = places, found

    def take_pairs_or_refuse(self, places: Sequence[Place], found: Sequence[tuple[int, Unreached]]) -> Finding | None:
        """The same where a run starts, which needs all of them."""
        self.take_pairs(places, found)
        return unreachable(places, found)

    def alone(self, account: NodeAccount) -> Judged:
        """Judge this node by itself."""
        return _judged(self, [socket.gethostname()], [self._handed_in(account)], None)

    def together(self, rendezvous: Rendezvous, account: NodeAccount, measure: Measure | None = None) -> Judged:
        """Judge all nodes, on node 0, and hear what came of it. Raises RefusedError where a node is lost meanwhile.

        Where nothing refuses the run, all nodes `measure`, if that is given, and are judged again.
        """
        names = node_names(rendezvous)
        clocks = _clocks(rendezvous, names)
        handed_in: list[Sequence[Any]] = []
        kept: list[Judged] = []

        def decide(said: Sequence[Any]) -> object:
            handed_in[:] = handed_in or [said]
            own = _judged(self, names, handed_in[0], clocks)
            kept[:] = [own]
            hidden = rendezvous.hidden
            return (own if hidden is None else _with_marks(own, self, names, handed_in[0], hidden)).to_message()

        def judged(name: str, said: object) -> Judged:
            answer = rendezvous.round(name, said, _ROUND_SECONDS, decide=decide)
            return kept[0] if kept else Judged.from_message(answer)

        first = judged("preflight", self._handed_in(account))
        if measure is None or first.is_refused:
            return first

        def tell(found: Measurements) -> None:
            self.measured = found
            tell_so_far(rendezvous, lambda: _judged(self, names, handed_in[0], clocks).judgement)

        self.measured = measure(tell)
        return judged("preflight: measured", None)

    def _handed_in(self, account: NodeAccount) -> dict[str, Any]:
        report = self.report()
        return {
            "report": report.to_message() if report is not None else None,
            "must_match": dict(account.must_match),
            "network": dict(account.network),
            "refusals": self._refusals.texts,
            "num_processes": self._wanted.nproc_per_node,
        }


def judged_of_reports(
    wanted: Wanted,
    policy: Policy,
    names: Sequence[str],
    reports: Mapping[str, NodeReport | None],
    absent: Mapping[str, str],
    refusals: Mapping[str, Sequence[str]],
    clocks: Mapping[str, ClockOffset],
    seconds: float,
) -> Judged:
    """Judge nodes that were asked one by one, and did not meet."""
    subject = Subject(
        reports=reports,
        starting=names[0],
        wanted=completed(wanted, reports.values()),
        absent=absent,
        refusals=refusals,
        clocks=clocks,
    )
    found = judge(subject, policy)
    return Judged(found, names, round(seconds, 3))


def _judged(
    preflight: Preflight, names: Sequence[str], said: Sequence[Any], clocks: Mapping[str, ClockOffset] | None
) -> Judged:
    subject = _subject(preflight, names, said, clocks)
    found = judge(subject, preflight.policy)
    reports = {node: report.to_message() for node, report in subject.reported}
    seconds = round(time.monotonic() - preflight.started, 3)
    return Judged(found, names, seconds, False, reports, measured_link(preflight.measured))


def _with_marks(
    judged: Judged, preflight: Preflight, names: Sequence[str], said: Sequence[Any], hidden: Hidden
) -> Judged:
    """The same for nodes that may not read each other's values: marks are compared in their place.

    Only by checks that do no more with them than compare: to all others a mark would be a wrong value.
    """
    subject = _subject(preflight, names, said, None)
    marked = replace(subject, must_match=_marked(subject.must_match, hidden), network=_marked(subject.network, hidden))
    comparing = [check for check in CHECKS if check.id.startswith(_COMPARING)]
    found = judge(marked, preflight.policy, comparing).reported
    kept = tuple(one for one in judged.judgement.reported if not one.finding.code.startswith(_COMPARING))
    reported = tuple(sorted((*kept, *found), key=lambda one: STATES.index(one.state)))
    return replace(judged, judgement=replace(judged.judgement, reported=reported), is_hidden=True, reports={})


def _marked(tables: Mapping[str, Mapping[str, str]], hidden: Hidden) -> dict[str, dict[str, str]]:
    return {node: {key: hidden.from_all(value, ()) for key, value in table.items()} for node, table in tables.items()}


def _subject(
    preflight: Preflight,
    names: Sequence[str],
    said: Sequence[Any],
    clocks: Mapping[str, ClockOffset] | None,
) -> Subject:
    """What all nodes have handed in, as the checks take it: it comes from the wire."""
    reports: dict[str, NodeReport | None] = {}
    absent: dict[str, str] = {}
    tables: dict[str, dict[str, Mapping[str, str]]] = {"must_match": {}, "network": {}}
    refusals: dict[str, Sequence[str]] = {}
    num_processes: dict[str, int] = {}
    for name, one in zip(names, said, strict=True):
        one = one if isinstance(one, dict) else {}
        try:
            reports[name] = NodeReport.from_message(one.get("report"))
        except ValueError:
            reports[name], absent[name] = None, "the probe did not end in time on it"
        for key, table in tables.items():
            if is_a(handed_in := one.get(key), Mapping[str, str]) and handed_in:
                table[name] = handed_in
        if isinstance(started := one.get("num_processes"), int):
            num_processes[name] = started
        if is_a(words := one.get("refusals"), Sequence[str]) and words:
            refusals[name] = [printable(word, 2000) for word in words[:16]]
    pairs = None
    if preflight.pairs is not None:
        places, found = preflight.pairs
        pairs = Pairs([replace(place, name=name) for place, name in zip(places, names, strict=True)], found)
    return Subject(
        reports=reports,
        starting=names[0],
        wanted=preflight.wanted,
        absent=absent,
        must_match=tables["must_match"],
        network=tables["network"],
        pairs=pairs,
        clocks=clocks,
        refusals=refusals,
        num_processes=num_processes,
        have_met=True,
        measured=preflight.measured,
    )


def node_names(rendezvous: Rendezvous) -> list[str]:
    """By node rank: host names, or what tells apart those that share one."""
    hosts = [node.host for node in rendezvous.nodes]
    return [host if hosts.count(host) == 1 else node.name for node, host in zip(rendezvous.nodes, hosts, strict=True)]


def _clocks(rendezvous: Rendezvous, names: Sequence[str]) -> Mapping[str, ClockOffset]:
    """How far the nodes' clocks are from node 0's: all read theirs between two moments that node 0 takes down."""
    begun: list[tuple[float, float]] = []
    offsets: dict[str, ClockOffset] = {}

    def begin(said: Sequence[Any]) -> None:
        begun.append((time.monotonic(), time.time()))

    def compare(said: Sequence[Any]) -> None:
        ((before, own),) = begun
        within = (time.monotonic() - before) / 2
        for name, read in zip(names, said, strict=True):
            if is_a(read, float):
                offsets[name] = ClockOffset(read - own - within, within)

    rendezvous.round("preflight: all are there", None, _ROUND_SECONDS, decide=begin)
    rendezvous.round("preflight: clocks", time.time(), _ROUND_SECONDS, decide=compare)
    return offsets
