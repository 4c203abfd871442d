"""A slow link, by the table alone: named with its nodes, told from slow ranks, and from healthy networks."""

import random
from dataclasses import replace

from allranks.cluster.tcp_info import TcpInfo
from allranks.live import LiveTable, NodeState, RankState
from allranks.live.links import LinkCounter
from allranks.live.slow_links import SlowLinks
from allranks.live.state import LinkState
from allranks.live.stragglers import slow_ranks

STEP_BYTES = 2**20


class Run:
    """A ring of nodes, each of which sends `STEP_BYTES` in a step to the next at the link's rate."""

    def __init__(self, num_nodes: int, work: float = 0.1) -> None:
        self.num_nodes, self.work, self.step, self.t = num_nodes, work, 0, 1000.0
        self.rates = dict.fromkeys(range(num_nodes), 1e9)  # of the link from each node to the next
        self.lost = dict.fromkeys(range(num_nodes), 0.0)
        self.links = {node: LinkState(local=f"10.0.0.{node}", peer=f"10.0.0.{self.next(node)}") for node in self.rates}
        self.seconds: list[float] = []

    def next(self, node: int) -> int:
        return (node + 1) % self.num_nodes

    def make_step(self, work: dict[int, float] | None = None) -> LiveTable:
        self.step += 1
        works = {node: (work or {}).get(node, self.work) for node in self.rates}
        carrying = {node: STEP_BYTES / rate for node, rate in self.rates.items()}
        delay = 2.0 if any(self.lost.values()) else 0.0
        self.seconds = [*self.seconds, max(works.values()) + max(carrying.values()) + delay][-10:]
        self.t += self.seconds[-1]
        for node, link in self.links.items():
            segments = STEP_BYTES // 1448
            self.links[node] = LinkState(
                local=link.local,
                peer=link.peer,
                acked_bytes=link.acked_bytes + STEP_BYTES,
                carrying_seconds=link.carrying_seconds + carrying[node],
                num_segments=link.num_segments + segments,
                num_retransmits=link.num_retransmits + int(segments * self.lost[node]),
            )
        median = sorted(self.seconds)[len(self.seconds) // 2]
        nodes = tuple(
            NodeState(
                node=node,
                host=f"gpu{node}",
                t=self.t,
                links=(self.links[node],),
                ranks=(
                    RankState(
                        rank=node, step=self.step, median_step_seconds=median, median_compute_seconds=works[node]
                    ),
                ),
            )
            for node in self.rates
        )
        return LiveTable(step=self.step, t=self.t, nodes=nodes)

    def first_word(self, slow: SlowLinks, within: int = 20) -> str:
        for _ in range(within):
            for finding in slow.read(table := self.make_step()):
                assert slow_ranks(table) == {}
                return finding.what
        return ""

    def settle(self, slow: SlowLinks, num_steps: int = 60) -> None:
        for _ in range(num_steps):
            assert slow.read(self.make_step()) == []


def test_a_link_that_becomes_slow_is_named_within_twenty_steps():
    run, slow = Run(2), SlowLinks()
    run.settle(slow)
    run.rates[0] = 2e6
    told = run.first_word(slow)
    assert told.startswith("the link between node 0 (gpu0) and node 1 (gpu1) is slow: it carries 2.0 MB/s, and it has ")
    assert "it has carried 1.0 GB/s; all ranks wait, for 84 % of a step of 0.624 s" in told
    assert [one.code for one in slow.found] == ["slow-link"]
    run.rates[0] = 1e9
    for _ in range(60):
        assert slow.read(run.make_step()) == []
    assert slow.found == ()


def test_a_link_that_is_slower_than_the_others_from_the_start_is_named():
    run, slow = Run(4), SlowLinks()
    run.rates[2] = 50e6
    for node in (0, 1, 3):
        run.rates[node] = 5e6 * 25
    run.work = 0.001
    told = run.first_word(slow, within=400)
    assert "between node 2 (gpu2) and node 3 (gpu3) is slow: it carries 50.0 MB/s" in told
    assert "the median of the others carries 125.0 MB/s" in told


def test_the_node_that_all_slow_links_have_in_common_is_named():
    run, slow = Run(4), SlowLinks()
    run.settle(slow)
    run.rates |= {0: 2e6, 1: 2e6}
    assert run.first_word(slow).startswith("the link of node 1 (gpu1) is slow, to node 0 (gpu0), node 2 (gpu2): ")


def test_lost_packets_are_told_as_such():
    run, slow = Run(2), SlowLinks()
    run.settle(slow)
    run.lost[0] = 0.3
    assert "30 % of what is sent has to be sent again" in run.first_word(slow)


def test_lost_packets_are_told_while_a_step_does_not_end():
    run, slow = Run(3), SlowLinks()
    run.settle(slow)
    told, table = [], run.make_step()
    for second in range(45):
        again = second + 1
        nodes = [
            replace(
                node,
                t=table.t + second,
                links=tuple(
                    replace(
                        link,
                        num_segments=link.num_segments + 3 * again,
                        num_retransmits=link.num_retransmits + (again if node.node == 1 else 0),
                    )
                    for link in node.links
                ),
            )
            for node in table.nodes
        ]
        told += slow.read(replace(table, t=table.t + second, nodes=tuple(nodes)))
    (finding,) = told
    assert finding.what == (
        "the link between node 1 (gpu1) and node 2 (gpu2) is slow: 33 % of what is sent has to be sent again; no step "
        "was done in 10 s"
    )


def test_ranks_that_compute_for_longer_than_a_window_do_not_wait():
    run, slow = Run(2, work=60.0), SlowLinks()
    run.lost[0] = 0.3
    run.settle(slow, 20)


def test_a_few_packets_that_are_sent_again_are_chance():
    run, slow = Run(2, work=0.01), SlowLinks()
    for _ in range(300):
        table = run.make_step()
        nodes = []
        for node in table.nodes:
            links = [replace(one, num_segments=run.step, num_retransmits=run.step // 25) for one in node.links]
            nodes.append(replace(node, links=tuple(links)))
        assert slow.read(replace(table, nodes=tuple(nodes))) == []


def test_two_nodes_whose_link_came_up_at_a_tenth_of_the_slowest_speed_there_is():
    run, slow = Run(2), SlowLinks()
    run.rates = dict.fromkeys(run.rates, 1e6)
    assert "no network for training is so slow" in run.first_word(slow)


def test_a_slow_rank_is_no_slow_link():
    run, slow = Run(3), SlowLinks()
    run.settle(slow)
    for _ in range(40):
        assert slow.read(table := run.make_step({1: 2.0})) == []
    assert list(slow_ranks(table)) == [1]


def test_a_healthy_run_that_waits_for_a_busy_network_names_none():
    """All links are alike, carry what they can, and differ by a third from moment to moment."""
    dice, slow = random.Random(3), SlowLinks()
    run = Run(4, work=0.001)
    for _ in range(2000):
        run.rates = {node: dice.uniform(2e8, 3e8) for node in run.rates}
        assert slow.read(run.make_step()) == []


def test_what_nodes_do_not_tell_says_nothing():
    slow = SlowLinks()
    for step in range(0, 100, 5):
        assert slow.read(LiveTable(step=step, t=float(step), nodes=(NodeState(node=0), NodeState(node=1)))) == []


def test_links_are_told_in_messages_and_strange_ones_are_left_out():
    link = LinkState(local="10.0.0.1", peer="10.0.0.2", acked_bytes=7, carrying_seconds=0.5, num_segments=3)
    state = NodeState(node=0, links=(link,))
    message = state.to_message()
    assert NodeState.from_message(message) == state
    message["links"] += ["no", {"acked_bytes": "many"}]
    assert NodeState.from_message(message).links == (link, LinkState())


def test_a_counter_adds_up_connections_of_one_link(monkeypatch):
    told = {}
    monkeypatch.setattr("allranks.live.links.socket_inodes", lambda pid: {1, 2, 3})
    monkeypatch.setattr("allranks.live.links.connections_of", lambda inodes: dict(told))
    counter = LinkCounter()

    def info(acked: int, peer: str = "b", segments: int = 0) -> TcpInfo:
        return TcpInfo("a", peer, acked, segments, 0, acked / 100)

    told |= {1: info(1000), 2: info(500), 3: info(10**9, peer="a")}
    (link,) = counter.read([7])
    assert (link.local, link.peer, link.acked_bytes, link.carrying_seconds) == ("a", "b", 0, 0.0)
    told |= {1: info(1000), 2: info(501, segments=2)}
    (link,) = counter.read([7])
    assert (link.acked_bytes, link.num_segments) == (1, 2)
    assert 0.009 < link.carrying_seconds < 0.011
    del told[1]
    told[2] = info(3)  # another connection under the same number
    (link,) = counter.read([7])
    assert link.acked_bytes == 1


def test_where_the_kernel_tells_nothing_of_connections_there_are_none(monkeypatch):
    def refuse(inodes):
        raise OSError(93, "Protocol not supported")

    monkeypatch.setattr("allranks.live.links.socket_inodes", lambda pid: {1})
    monkeypatch.setattr("allranks.live.links.connections_of", refuse)
    assert LinkCounter().read([7]) == ()
