"""The rendezvous of the nodes' launchers, over real sockets of this machine."""

import asyncio
import contextlib
import errno
import json
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace

import pytest

from allranks.cluster.account import NodeAccount
from allranks.cluster.interfaces import Interface
from allranks.doctor.causes import PEER_GONE, RANK_ERROR, RANK_KILLED, REFUSED
from allranks.errors import RefusedError, UsageError
from allranks.exit_codes import REFUSED as REFUSED_CODE
from allranks.findings import Finding, Who
from allranks.launch.agreement import NothingToAgree
from allranks.rendezvous import (
    Participant,
    Rendezvous,
    door,
    head,
    member,
    not_there,
    refusal,
    tell_all,
    tell_node_0,
    wire,
)
from allranks.rendezvous.terms import Terms
from tests.ports import free_port
from tests.unit.rendezvous.conftest import Deadline
from tests.unit.rendezvous.nodes import (
    Nodes,
    differing,
    failure,
    join_all,
    listening_port,
    node_of,
    ready,
    say_hello,
    until,
)

GREETING = {"greeting": wire.GREETING, "nonce": "1"}


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    all_nodes = Nodes()
    yield all_nodes
    all_nodes.wait()
    all_nodes.leave()


def test_all_nodes_learn_of_each_other_and_share_one_run(nodes: Nodes) -> None:
    joined = join_all(nodes, node_of(1, 3), node_of(2, 3, num_processes=4), node_of(0, 3))
    for rendezvous in joined:
        assert rendezvous.run_id == "proposed by 0"
        assert [node.host for node in rendezvous.nodes] == ["host0", "host1", "host2"]
        assert rendezvous.world_size == 6
        assert rendezvous.stop_reason() is None
    assert all(not node.account for node in joined[1].nodes), "what was compared goes to node 0 only"


def test_the_port_is_free_for_the_launcher_once_all_are_ready(nodes: Nodes) -> None:
    joined = join_all(nodes, node_of(0), node_of(1))
    threads = [threading.Thread(target=ready, args=(rendezvous, {"data": "x"})) for rendezvous in joined]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # As torchrun's store binds it, with the connections of the rendezvous still open.
    with socket.create_server(("127.0.0.1", nodes.terms["port"])):
        assert [rendezvous.stop_reason() for rendezvous in joined] == [None, None]


def test_differing_facts_refuse_every_node_with_the_difference(nodes: Nodes) -> None:
    for facts in (node_of(0, 3), node_of(1, 3), node_of(2, 3, same={"learning_rate": "0.2"})):
        nodes.start(facts)
    errors = list(nodes.wait().values())
    assert len(errors) == 3
    for error in errors:
        assert isinstance(error, RefusedError)
        assert "learning_rate: 0.1 on node 0 (host0), node 1 (host1); 0.2 on node 2 (host2)" in str(error)


def test_data_that_differs_is_refused_before_the_start(nodes: Nodes) -> None:
    joined = join_all(nodes, node_of(0), node_of(1))
    errors = []

    def refused(rendezvous: Rendezvous, data: str) -> None:
        with pytest.raises(RefusedError) as caught:
            ready(rendezvous, {"data": data})
        errors.append(str(caught.value))

    threads = [threading.Thread(target=refused, args=(m, d)) for m, d in zip(joined, ("aa", "bb"), strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 2
    assert all("data: aa on node 0 (host0); bb on node 1 (host1)" in error for error in errors)


def test_node_0_learns_what_every_node_starts(nodes: Nodes) -> None:
    joined = join_all(nodes, node_of(0, 3), node_of(1, 3), node_of(2, 3))
    threads = [
        threading.Thread(target=ready, args=(rendezvous, {}), kwargs={"command": ["torchrun", str(rank)]})
        for rank, rendezvous in enumerate(joined)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told = {rank: NodeAccount.from_message(account) for rank, account in joined[0].accounts.items()}
    assert {rank: list(one.start.command) for rank, one in told.items()} == {
        rank: ["torchrun", str(rank)] for rank in range(3)
    }


def test_another_number_of_nodes_is_refused(nodes: Nodes) -> None:
    nodes.start(node_of(0, 2))
    nodes.start(node_of(1, 3))
    assert all("--nnodes: 2 on node 0 (host0); 3 on node 1 (host1)" in str(error) for error in nodes.wait().values())


def test_a_second_node_with_the_same_rank_is_refused_by_name(nodes: Nodes) -> None:
    nodes.start(node_of(0, 3))
    with socket.create_connection(("127.0.0.1", listening_port(nodes))) as raw:
        say_hello(raw, node_of(1, 3))
        nodes.start(node_of(1, 3, host="other"))
        until(lambda: 1 in nodes.results)
        assert "--node-rank 1 is taken by host1 (pid 101)" in str(nodes.results[1])
        nodes.start(node_of(2, 3))
        results = nodes.wait()
        assert isinstance(results[0], Rendezvous)
        assert isinstance(results[2], Rendezvous)


def test_a_rank_twice_is_refused_everywhere_once_as_many_nodes_have_come(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "_SETTLE_SECONDS", 0.1)
    nodes.start(node_of(0, 3))
    with socket.create_connection(("127.0.0.1", listening_port(nodes))) as raw:
        say_hello(raw, node_of(1, 3))
        nodes.start(node_of(1, 3, host="other"), key=2)
        results = nodes.wait()
    taken = "--node-rank 1 is taken by host1 (pid 101)"
    assert taken in str(results[2])
    assert "two of them with one rank: 2 of 3 nodes" in str(results[0])
    assert "missing: node 2 (here: node 1 (host1)); turned away: " in str(results[0])
    assert f"node 1 (other): {taken}" in str(results[0])


def test_nodes_of_one_machine_may_come_again_with_another_rank(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "_SETTLE_SECONDS", 0.0)
    nodes.start(node_of(0, 3, host="alone"))
    with socket.create_connection(("127.0.0.1", listening_port(nodes))) as raw:
        say_hello(raw, node_of(1, 3, host="alone"))
        nodes.start(node_of(1, 3, host="alone", pid=7), key=2)
        until(lambda: 2 in nodes.results)
        nodes.start(node_of(2, 3, host="alone"))
        assert isinstance(nodes.wait()[0], Rendezvous)


def test_of_two_nodes_0_the_one_to_which_nobody_goes_finds_the_other(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "_SETTLE_SECONDS", 0.1)
    nodes.start(node_of(0))
    listening_port(nodes)
    elsewhere = socket.create_server(("127.0.0.1", 0))
    elsewhere.setblocking(False)
    monkeypatch.setattr(head, "listen", lambda terms: (elsewhere, "that is no address of this machine"))
    nodes.start(node_of(0, host="other", pid=7), key=1)
    here, other = nodes.wait()[0], nodes.wait()[1]
    taken = "--node-rank 0 is taken by host0 (pid 100): give every node its own"
    assert f"node 0 (other): {taken}\n  that is no address of this machine" in str(other)
    assert f"node 0 (other): {taken}" in str(here)


def test_a_second_node_0_of_one_machine_is_told_on_the_first_ones_terminal_too(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["allranks.rendezvous.rendezvous"], "_TELL_EVERY_SECONDS", 0.1)
    nodes.start(node_of(0))
    listening_port(nodes)
    nodes.start(node_of(0, pid=7), key=1)
    until(lambda: 1 in nodes.results)
    assert "the port is in use" in str(nodes.results[1])
    until(lambda: any("node 0 (host0): --node-rank 0 is taken by host0 (pid 100)" in line for line in nodes.said))
    nodes.start(node_of(1), key=2)
    assert isinstance(nodes.wait()[0], Rendezvous)


def test_a_node_0_behind_an_address_translation_is_not_taken_for_another(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str | None] = []
    ask = head.refused_by_another

    async def heard(*who: object) -> str | None:
        asked.append(await ask(*who))
        return asked[-1]

    listen = head.listen
    monkeypatch.setattr(head, "refused_by_another", heard)
    monkeypatch.setattr(head, "listen", lambda terms: (listen(terms)[0], "that is no address of this machine"))
    nodes.start(node_of(0))
    until(lambda: asked)
    nodes.start(node_of(1))
    assert isinstance(nodes.wait()[0], Rendezvous) and asked[0] is None


def test_who_is_missing_is_told_early(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["allranks.rendezvous.rendezvous"], "_TELL_FIRST_SECONDS", 0.1)
    nodes.start(node_of(1, 3))
    until(lambda: any("waiting for node 0" in line and "connection refused" in line for line in nodes.said))
    nodes.said.clear()
    nodes.start(node_of(0, 3))
    until(lambda: any("of 3 nodes have come" in line and "; missing: node " in line for line in nodes.said))
    nodes.start(node_of(2, 3))


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        (True, "though port {other} of 127.0.0.1 answers: a firewall there or on the way drops port {port}; open it"),
        (False, "nor from port {other} of 127.0.0.1: is that machine up, is this the address of node 0"),
    ],
)
def test_a_port_without_an_answer_is_told_with_what_its_machine_answers_elsewhere(
    monkeypatch: pytest.MonkeyPatch, answers: bool, told: str, deadline: Deadline
) -> None:
    monkeypatch.setattr(member, "_CONNECT_SECONDS", 0.3)
    monkeypatch.setattr(not_there, "_OTHER_SECONDS", 0.3)
    with no_answers() as port, no_answers() as silent:
        other = free_port() if answers else silent
        monkeypatch.setattr(not_there, "_OTHER_PORTS", (other,))
        nodes = Nodes(port=port)
        nodes.start(node_of(1))
        deadline.passes_once(lambda: any("no answer in 0.3 s, " in line for line in nodes.said))
        assert f"no answer in 0.3 s, {told.format(other=other, port=port)}" in str(nodes.wait()[1])


def test_a_name_of_node_0_that_means_this_node_is_told(deadline: Deadline) -> None:
    nodes = Nodes(address="127.1")  # a name that no address is made of, as resolvers take it
    nodes.start(node_of(1))
    assert "the name 127.1 means 127.0.0.1 on host1, which is host1 itself: mend /etc/hosts there" in (
        str(nodes.wait()[1])
    )
    nodes = Nodes(address="localhost")
    nodes.start(node_of(1))
    deadline.passes_once(lambda: any("connection refused" in line for line in nodes.said))
    assert "connection refused: is node 0 started" in str(nodes.wait()[1])


def test_what_waiting_does_not_mend_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(member, "_HOPELESS_SECONDS", 0.1)
    nodes = Nodes(join_seconds=100.0, address="127.1")
    nodes.start(node_of(1))
    said = str(nodes.wait()[1])
    assert "cannot meet node 0 at 127.1:" in said and "which is host1 itself: mend /etc/hosts there" in said


def test_a_port_that_refuses_is_waited_for(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(member, "_HOPELESS_SECONDS", 0.0)
    monkeypatch.setattr(sys.modules["allranks.rendezvous.rendezvous"], "_TELL_FIRST_SECONDS", 0.1)
    nodes.start(node_of(1))
    until(lambda: any("connection refused" in line for line in nodes.said))
    nodes.start(node_of(0))
    assert isinstance(nodes.wait()[1], Rendezvous)


def test_node_0_that_refuses_to_start_is_told_of_to_all_that_come() -> None:
    nodes = Nodes(join_seconds=100.0)
    for rank in (1, 2):
        nodes.start(node_of(rank, 3))
    terms = Terms("127.0.0.1", nodes.terms["port"], "run", is_host=True)
    tell_all(node_of(0, 3), terms, NothingToAgree(), "its disk is full")
    told = nodes.wait()
    for rank in (1, 2):
        assert isinstance(told[rank], RefusedError)
        assert "node 0 (host0) refused to start: its disk is full" in str(told[rank])


def test_a_node_0_that_refuses_alone_goes_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusal, "PATIENCE_SECONDS", 0.1)
    terms = Terms("127.0.0.1", free_port(), "run", is_host=True)
    tell_all(node_of(0, 3), terms, NothingToAgree(), "its disk is full")
    with socket.create_server(("127.0.0.1", terms.port)) as taken:
        tell_all(node_of(0, 3), replace(terms, port=taken.getsockname()[1]), NothingToAgree(), "and nobody can come")


def test_a_link_without_a_carrier_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(not_there, "facing", lambda address, found: Interface("eth0", (address,), False))
    monkeypatch.setattr(member, "_HOPELESS_SECONDS", 0.1)
    nodes = Nodes(join_seconds=100.0)
    nodes.start(node_of(1))
    said = str(nodes.wait()[1])
    assert "does not wait for what waiting will not mend: connection refused: eth0 of host1, which leads there," in said
    assert "has no link: look at its cable" in said


@contextlib.contextmanager
def no_answers() -> Iterator[int]:
    """A port that drops whoever comes, as Linux does once a socket has as many as it takes."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server, contextlib.ExitStack() as stack:
        for _ in range(2):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        yield server.getsockname()[1]


def test_who_is_missing_is_named_at_the_deadline(deadline: Deadline) -> None:
    nodes = Nodes()
    nodes.start(node_of(0, 4))
    nodes.start(node_of(2, 4), join_seconds=1000.0)
    deadline.passes_once(lambda: any("2 of 4 nodes have come" in line for line in nodes.said))
    error = str(nodes.wait()[0])
    assert "2 of 4 nodes have come" in error
    assert "missing: node 1, 3 (here: node 2 (host2))" in error
    assert "missing: node 1, 3" in str(nodes.results[2])


def test_a_node_0_that_is_not_there_is_told_with_the_reason(deadline: Deadline) -> None:
    nodes = Nodes()
    nodes.start(node_of(1))
    deadline.passes_once(lambda: any("connection refused" in line for line in nodes.said))
    assert "connection refused: is node 0 started" in str(nodes.wait()[1])


def test_a_name_that_nobody_knows_is_told() -> None:
    nodes = Nodes(address="no-such-host.invalid")
    nodes.start(node_of(1))
    assert "the name no-such-host.invalid is not known on host1" in str(nodes.wait()[1])
    nodes.start(node_of(0))
    assert isinstance(nodes.wait()[0], UsageError) and nodes.results[0].exit_code == REFUSED_CODE


def test_a_name_that_nobody_knows_is_not_waited_for_but_under_kubernetes(monkeypatch: pytest.MonkeyPatch) -> None:
    """There a pod has a name once it runs; and a server of names that is slow gives another error."""
    monkeypatch.setattr(member, "_HOPELESS_SECONDS", 0.1)
    nodes = Nodes(join_seconds=2.0, address="no-such-host.invalid")
    unknown = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    monkeypatch.setattr(asyncio, "open_connection", _raising(unknown))
    nodes.start(node_of(1), join_seconds=100.0)
    assert "does not wait for what waiting will not mend: the name no-such-host.invalid" in str(nodes.wait()[1])
    monkeypatch.setattr(asyncio, "open_connection", _raising(socket.gaierror(socket.EAI_AGAIN, "Temporary failure")))
    nodes.start(node_of(1))
    assert "within 2 s: the name no-such-host.invalid" in str(nodes.wait()[1])
    monkeypatch.setattr(asyncio, "open_connection", _raising(unknown))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    nodes.start(node_of(1))
    assert "within 2 s: the name no-such-host.invalid" in str(nodes.wait()[1])


def _raising(error: OSError) -> Callable[..., Awaitable[None]]:
    async def connect(*address: object, **options: object) -> None:
        raise error

    return connect


def test_what_is_heard_of_a_refused_node_by_another_way_ends_the_waiting() -> None:
    nodes = Nodes()
    why = "node 2 (host2) refused to start: the name nodezero is not known on host2"
    heard: list[str] = []
    for rank, port in enumerate([nodes.terms["port"]] * 2 + [free_port()]):
        nodes.start(node_of(rank, 3), port=port, refused_elsewhere=lambda: heard[0] if heard else None)
    heard.append(why)
    assert {str(error) for error in nodes.wait().values()} == {why}
    assert all(isinstance(error, RefusedError) for error in nodes.results.values())


def test_an_address_of_another_machine_is_doubted() -> None:
    nodes = Nodes(join_seconds=1.0, address="192.0.2.77")
    nodes.start(node_of(0))
    assert "--master-addr 192.0.2.77 is no address of this machine, which has " in str(nodes.wait()[0])
    assert any(said.startswith("warning: --master-addr 192.0.2.77") for said in nodes.said)


def test_something_else_on_the_port_is_told(deadline: Deadline) -> None:
    nodes = Nodes()
    with socket.create_server(("127.0.0.1", nodes.terms["port"])):
        nodes.start(node_of(1))
        deadline.passes_once(lambda: any("something else" in line for line in nodes.said))
        assert "something else than this version of allranks listens there" in str(nodes.wait()[1])


def test_a_port_in_use_is_told() -> None:
    nodes = Nodes()
    with socket.create_server(("127.0.0.1", nodes.terms["port"])):
        nodes.start(node_of(0))
        assert "the port is in use" in str(nodes.wait()[0])


def test_a_node_that_fails_stops_the_others_with_its_message(nodes: Nodes) -> None:
    joined = join_all(nodes, node_of(0, 3), node_of(1, 3), node_of(2, 3))
    assert joined[1].fail(failure("rank 1 ran out of memory")) is None
    joined[1].leave(1)
    for rendezvous in (joined[0], joined[2]):
        until(rendezvous.stop_reason)
        assert rendezvous.stop_reason() == "node 1 (host1): rank 1 ran out of memory"


def test_a_failing_node_0_stops_the_others(nodes: Nodes) -> None:
    joined = join_all(nodes, node_of(0), node_of(1))
    assert joined[0].fail(failure("rank 0 failed")) is None
    joined[0].leave(1)
    assert joined[1].stop_reason() == "node 0 (host0): rank 0 failed"


def test_who_fails_second_hears_of_the_first(nodes: Nodes) -> None:
    joined = join_all(nodes, node_of(0, 3), node_of(1, 3), node_of(2, 3))
    threads = [threading.Thread(target=joined[1].fail, args=(failure("killed by SIGKILL", RANK_KILLED),))]
    threads[0].start()
    until(joined[0].stop_reason)
    felt = failure("connection closed by peer", PEER_GONE)
    for rank in (0, 2):
        assert joined[rank].fail(felt).what == "node 1 (host1): killed by SIGKILL"
    threads[0].join()
    assert joined[1].stop_reason() is None


@pytest.mark.parametrize("felt_by", [0, 1])
def test_a_cause_that_is_heard_of_after_its_consequence_is_what_all_are_told(nodes: Nodes, felt_by: int) -> None:
    joined = join_all(nodes, *(node_of(rank, 3) for rank in range(3)))
    where = 1 - felt_by
    felt = Finding(PEER_GONE, f"rank {felt_by} failed: closed by peer", who=Who(felt_by, felt_by), known_at=felt_by)
    cause = Finding(RANK_ERROR, f"rank {where} failed first: bad row", who=Who(where, where), known_at=where)
    told: list[Finding | None] = []
    failing = threading.Thread(target=lambda: told.append(joined[felt_by].fail(felt)))
    failing.start()
    for other in (where, 2):
        until(joined[other].stop_reason)
        assert joined[other].stop_reason() == f"node {felt_by} (host{felt_by}): {felt.what}"
    joined[where].leave(1, cause)
    failing.join()
    assert told == [replace(cause, what=f"node {where} (host{where}): {cause.what}")]
    assert joined[2].settled_finding(joined[2].stop_finding()) == joined[2].stop_finding() == told[0]


def test_a_consequence_is_not_told_to_who_knows_the_cause(nodes: Nodes) -> None:
    joined = join_all(nodes, *(node_of(rank, 3) for rank in range(3)))
    joined[1].leave(1, failure("rank 1 failed first: bad row"))
    until(joined[2].stop_reason)
    known = joined[2].stop_finding()
    felt = Finding(PEER_GONE, "closed by peer")
    assert joined[0].fail(felt) == known
    assert joined[2].stop_finding() == known == joined[2].settled_finding(known)


def test_a_node_that_leaves_with_an_error_stops_the_others(nodes: Nodes) -> None:
    joined = join_all(nodes, node_of(0), node_of(1))
    joined[1].leave(2, failure("its data is broken", REFUSED))
    until(joined[0].stop_reason)
    assert joined[0].stop_reason() == "node 1 (host1): its data is broken"


def test_nodes_that_end_well_disturb_nobody(nodes: Nodes) -> None:
    joined = join_all(nodes, node_of(0, 3), node_of(1, 3), node_of(2, 3))
    joined[1].leave(0)
    joined[0].leave(75)
    time.sleep(0.3)
    assert joined[2].stop_reason() is None


def test_a_node_that_is_gone_without_a_word_is_lost(nodes: Nodes) -> None:
    nodes.start(node_of(0, 3))
    nodes.start(node_of(2, 3))
    with socket.create_connection(("127.0.0.1", listening_port(nodes))) as raw:
        say_hello(raw, node_of(1, 3))
        results = nodes.wait()
    for rank in (0, 2):
        until(results[rank].stop_reason)
        assert results[rank].stop_reason() == (
            "node 1 (host1) was lost: the connection was closed: its launcher was killed, or its machine went down"
        )


def test_a_node_that_falls_silent_is_lost() -> None:
    nodes = Nodes(silence_seconds=1.5)
    nodes.start(node_of(0))
    with socket.create_connection(("127.0.0.1", listening_port(nodes))) as raw:
        say_hello(raw, node_of(1))
        rendezvous = nodes.wait()[0]
        raw.sendall(b'{"round": "ready", "payload": {}}\n')
        ready(rendezvous, {})
        until(rendezvous.stop_reason)
        assert "node 1 (host1) was lost: no sign of life" in rendezvous.stop_reason()
    nodes.leave()


def test_a_node_that_falls_silent_while_its_ranks_do_steps_is_told_of_and_lost_only_when_they_do_not() -> None:
    nodes = Nodes(silence_seconds=1.5)
    nodes.start(node_of(0))
    with socket.create_connection(("127.0.0.1", listening_port(nodes))) as raw:
        say_hello(raw, node_of(1))
        rendezvous = nodes.wait()[0]
        raw.sendall(b'{"round": "ready", "payload": {}}\n')
        ready(rendezvous, {})

        def told() -> list[str]:
            rendezvous.signs_of_life.step_done()
            return [text for text in nodes.said if text.startswith("warning: node 1 (host1) has said nothing for")]

        until(told)
        assert len(told()) == 1 and rendezvous.stop_reason() is None
        raw.sendall(b'{"pulse": true}\n')
        until(lambda: told() and "node 1 (host1) is heard of again" in nodes.said)
        assert rendezvous.stop_reason() is None
        until(rendezvous.stop_reason)  # no steps are done any more
        assert "node 1 (host1) was lost: no sign of life" in rendezvous.stop_reason()
    nodes.leave()


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x80\x04\x95pickle\n",
        b"[" * 100_000 + b"\n",
        b'{"hello": {"node_rank": true}}\n',
        b"\n",
    ],
    ids=["http", "pickle", "deep", "half a hello", "empty line"],
)
def test_foreign_programs_are_turned_away_and_named(nodes: Nodes, garbage: bytes) -> None:
    nodes.start(node_of(0))
    with socket.create_connection(("127.0.0.1", listening_port(nodes))) as raw:
        raw.sendall(garbage)
        with contextlib.suppress(ConnectionError):
            while raw.recv(65536):
                pass
    nodes.start(node_of(1))
    assert isinstance(nodes.wait()[0], Rendezvous)


def test_a_line_without_end_is_cut_off(nodes: Nodes) -> None:
    nodes.start(node_of(0))
    with socket.create_connection(("127.0.0.1", listening_port(nodes))) as raw, contextlib.suppress(ConnectionError):
        for _ in range(64):
            raw.sendall(b"x" * 2**20)
        raw.recv(65536)
    nodes.start(node_of(1))
    assert isinstance(nodes.wait()[0], Rendezvous)


def test_a_node_that_refuses_itself_keeps_nobody_waiting(nodes: Nodes) -> None:
    nodes.start(node_of(0, 3))
    nodes.start(node_of(2, 3))
    terms = Terms(run_id="", **nodes.terms)
    assert tell_node_0(node_of(1, 3), terms, "network.interface: \x1bib0 is no interface of this node")
    results = nodes.wait()
    for rank in (0, 2):
        assert isinstance(results[rank], RefusedError)
        assert str(results[rank]).startswith("node 1 (host1) refused to start: network.interface: \ufffdib0 is no")


def test_nobody_is_told_where_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusal, "PATIENCE_SECONDS", 0.5)
    assert not tell_node_0(node_of(1), Terms("127.0.0.1", free_port(), ""), "a reason")


def _head_goes_on(nodes: Nodes) -> None:
    nodes.start(node_of(1))
    assert isinstance(nodes.wait()[0], Rendezvous)


@pytest.mark.parametrize(
    "first",
    [
        {"hello": node_of(1).hello(), "proof": "é", "nonce": ""},
        {"hello": node_of(1).hello(), "proof": 7, "nonce": ["\x1b"]},
        {"hello": {**node_of(1).hello(), "node_rank": 2**80}, "proof": "", "nonce": ""},
        {"bye": {}},
    ],
    ids=["a proof that is not ASCII", "of another kind", "a number that is none", "bye first"],
)
def test_no_first_word_harms_node_0(nodes: Nodes, first: dict, capfd: pytest.CaptureFixture) -> None:
    nodes.start(node_of(0))
    with socket.create_connection(("127.0.0.1", listening_port(nodes))) as raw:
        raw.sendall(json.dumps(first).encode() + b"\n")
        raw.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while raw.recv(65536):
                pass
    _head_goes_on(nodes)
    assert "Traceback" not in capfd.readouterr().err


def test_who_has_not_said_who_it_is_may_send_little(nodes: Nodes) -> None:
    nodes.start(node_of(0))
    with socket.create_connection(("127.0.0.1", listening_port(nodes))) as raw, contextlib.suppress(ConnectionError):
        raw.settimeout(20)
        sent = 0
        while sent < 64 * 2**20:
            sent += raw.send(b"x" * 2**16)
        pytest.fail("64 MiB without a word were taken")
    _head_goes_on(nodes)


def test_idle_connections_take_no_more_than_their_share(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond it they are closed at once; when the others have gone, or had their time, nodes come in again."""
    monkeypatch.setattr(door, "_MOST_UNKNOWN", 5)
    nodes.start(node_of(0))
    port = listening_port(nodes)
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20)) for _ in range(12)]
        assert sum(map(_is_greeted, idle)) <= 5
    _head_goes_on(nodes)


def _is_greeted(raw: socket.socket) -> bool:
    try:
        return bool(raw.recv(1))
    except ConnectionError:
        return False


def test_facts_that_do_not_come_whole_are_told_as_such(
    monkeypatch: pytest.MonkeyPatch, nodes: Nodes, deadline: Deadline
) -> None:
    """As behind a switch that drops large packets: small ones pass."""
    monkeypatch.setattr(wire, "HANDSHAKE_SECONDS", 0.5)
    nodes.start(node_of(0))
    with socket.create_connection(("127.0.0.1", listening_port(nodes))) as raw:
        raw.sendall(json.dumps({"hello": node_of(1).hello(), "proof": "", "nonce": ""}).encode() + b"\n")
        deadline.passes_once(lambda: any("did not come whole" in line for line in nodes.said))
        refused = nodes.wait()[0]
    assert "what it has did not come whole" in str(refused) and "MTU" in str(refused)


def test_what_is_told_of_others_holds_no_control_characters(nodes: Nodes) -> None:
    nodes.start(node_of(0))
    nodes.start(node_of(1, host="\x1b[2J\x07evil", same={"learning\x1b_rate": "\x1b]0;x\x07"}))
    results = nodes.wait()
    for rank in (0, 1):
        text = str(results[rank])
        assert "evil" in text and not any(char in text for char in "\x1b\x07")


@pytest.mark.parametrize(
    "answers",
    [
        [{"welcome": True}, {"go": {"run": "x", "nodes": []}, "proof": ""}],
        [{"welcome": True}, {"go": 3, "proof": ""}],
        [{"bye": 0}],
        [{"welcome": True}, {"bye": 1}],
        [{"refused": "\x1b[2Jno"}],
    ],
    ids=["no nodes", "no table", "bye before all", "bye before go", "refused"],
)
def test_no_answer_of_a_false_node_0_keeps_a_node_waiting(
    nodes: Nodes, answers: list[dict], deadline: Deadline
) -> None:
    with socket.create_server(("127.0.0.1", nodes.terms["port"])) as false_node:
        nodes.start(node_of(1))
        raw, _ = false_node.accept()
        with raw:
            raw.sendall(json.dumps(GREETING).encode() + b"\n")
            raw.makefile().readline()
            raw.sendall(b"".join(json.dumps(answer).encode() + b"\n" for answer in answers))
            with contextlib.suppress(ConnectionError):
                while raw.recv(65536):  # until it has read them, and left
                    pass
            deadline.passes_once(lambda: True)
            refused = nodes.wait()[1]
    assert isinstance(refused, RefusedError) and "\x1b" not in str(refused)


def test_a_fault_of_ours_ends_the_run_with_its_reason(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: object) -> bool:
        raise TypeError("unsupported format string")

    joined = join_all(nodes, node_of(0), node_of(1))
    monkeypatch.setattr(wire.Clock, "on_time", broken)
    for rank in (0, 1):
        until(joined[rank].stop_reason)
    assert "failed: TypeError" in joined[0].stop_reason()


def test_a_time_out_of_the_kernels_is_a_lost_connection() -> None:
    """ETIMEDOUT is Python's TimeoutError, also where no deadline of ours was set."""

    class Dead:
        async def read(self, size: int) -> bytes:
            raise TimeoutError(errno.ETIMEDOUT, "Connection timed out")

    with pytest.raises(wire.WireError, match="Connection timed out"):
        asyncio.run(wire.receive(wire.Lines(Dead())))


def test_a_token_keeps_others_out(nodes: Nodes) -> None:
    nodes.start(node_of(0), token="right")
    nodes.start(node_of(1), key=11, token="wrong")
    until(lambda: 11 in nodes.results)
    assert "ALLRANKS_TOKEN" in str(nodes.results[11])
    nodes.start(node_of(1), token="right")
    results = nodes.wait()
    assert isinstance(results[0], Rendezvous)
    assert isinstance(results[1], Rendezvous)


def test_a_false_node_0_without_the_token_is_found_out(nodes: Nodes) -> None:
    with socket.create_server(("127.0.0.1", nodes.terms["port"])) as false_node:
        nodes.start(node_of(1), token="right")
        raw, _ = false_node.accept()
        with raw:
            raw.sendall(json.dumps(GREETING).encode() + b'\n{"welcome": true}\n')
            raw.makefile().readline()
            everyone = [node_of(0).to_message(), node_of(1).to_message()]
            raw.sendall(json.dumps({"go": {"run": "x", "nodes": everyone}, "proof": ""}).encode() + b"\n")
            assert "does not know our ALLRANKS_TOKEN" in str(nodes.wait()[1])


def test_unequal_nodes_are_torchruns_alone() -> None:
    pair = [node_of(0, num_processes=1), node_of(1, num_processes=2)]
    assert differing(pair) == []
    (found,) = differing([replace(node, launcher="accelerate") for node in pair])
    assert "processes per node: 1 on node 0 (host0); 2 on node 1 (host1)" in found
    assert "--launcher torchrun" in found


def test_a_participant_survives_the_wire() -> None:
    facts = node_of(1, environment={"NCCL_DEBUG": "INFO\n; rm -rf $(x)"})
    assert Participant.from_message(json.loads(json.dumps(facts.to_message()))) == facts
