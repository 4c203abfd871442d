"""What a node says about itself, and what must be equal on all nodes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from allranks.checkpoint.holdings import Held
from allranks.cluster import environments
from allranks.cluster.environments import NOT_SET
from allranks.listing import few
from allranks.rendezvous.wire import printable

_LONGEST_VALUE = 120  # characters of a differing value that are shown
_LONGEST_NAME = 256
Shown = Callable[[str, Collection[str]], str]
"""How a differing value is written, given the names of the nodes that have it."""
_LARGE = ("same", "environment", "held")


@dataclass(frozen=True)
class NodeFacts:
    """One node's own account. `same` holds what must be equal on every node: field -> value, as text.

    `environment` are its `network_facts`: settings of NCCL and gloo, of which some may differ. `held` is what it has of
    the run's checkpoints, which only node 0 is told; None where the run has none.
    """

    node_rank: int
    nnodes: int
    num_processes: int
    host: str
    pid: int
    launcher: str
    same: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    held: Held | None = None
    has_rank: bool = True
    """Whether it was started with its node rank. Under c10d torchrun deals ranks out later: `node_rank` is then the
    order in which the nodes came, which node 0 tells them, and -1 before."""

    @property
    def name(self) -> str:
        return f"node {self.node_rank} ({self.host})" if self.has_rank else f"{self.host} (pid {self.pid})"

    @property
    def id(self) -> int | str:
        """As logs and findings name it."""
        return self.node_rank if self.has_rank else self.host

    def to_message(self) -> dict[str, Any]:
        return {**asdict(self), "held": None if self.held is None else self.held.to_message()}

    def hello(self) -> dict[str, Any]:
        """Who it is, in a few hundred bytes: all that is said before either side is known."""
        return {name: value for name, value in self.to_message().items() if name not in _LARGE}

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> NodeFacts:
        """Raises ValueError for what is no node's facts: this comes from the wire."""
        kinds = {"node_rank": int, "nnodes": int, "num_processes": int, "pid": int, "host": str, "launcher": str}
        values: dict[str, Any] = {}
        for name, kind in kinds.items():
            value = message.get(name)
            if not isinstance(value, kind) or isinstance(value, bool):
                raise ValueError(f"{name} is missing or no {kind.__name__}")
            values[name] = printable(value, _LONGEST_NAME) if isinstance(value, str) else value
        values["has_rank"] = message.get("has_rank") is not False
        for name in ("same", "environment"):
            table = message.get(name, {})
            if not isinstance(table, dict) or not all(isinstance(value, str) for value in table.values()):
                raise ValueError(f"{name} is no table of texts")
            values[name] = table
        if message.get("held") is not None:
            values["held"] = Held.from_message(message["held"])
        return cls(**values)


def in_full(value: str, holders: Collection[str]) -> str:
    """The value itself."""
    return value


def differences(nodes: Sequence[NodeFacts], shown: Shown = in_full) -> list[str]:
    """Everything in which the nodes differ and must not, one line each; the majority's value comes first."""
    found = [
        line
        for name in sorted({name for node in nodes for name in node.same})
        if (line := _difference(name, [(node, node.same.get(name, NOT_SET)) for node in nodes], shown))
    ]
    for name, values in {
        "--nnodes": [(node, str(node.nnodes)) for node in nodes],
        "--launcher": [(node, node.launcher) for node in nodes],
    }.items():
        if line := _difference(name, values):
            found.insert(0, line)
    # Accelerate divides the total by the number of nodes; torchrun counts what comes, DeepSpeed gets a host file.
    launchers = {node.launcher for node in nodes}
    if launchers == {"accelerate"}:
        processes = [(node, str(node.num_processes)) for node in nodes]
        if line := _difference("processes per node", processes):
            (launcher,) = launchers
            found.append(
                f"{line}; {launcher} starts the same number on every node: give all --nproc-per-node "
                f"{min(node.num_processes for node in nodes)}, or start with --launcher torchrun, which takes them"
            )
    return found + [one.message for one in environment_differences(nodes, shown) if one.is_refused]


def environment_differences(nodes: Sequence[NodeFacts], shown: Shown = in_full) -> list[environments.Difference]:
    """In which settings of NCCL and gloo the nodes differ: what cannot work, and what is only worth knowing."""
    return environments.differences({node.name: node.environment for node in nodes}, shown)


def _difference(name: str, values: Sequence[tuple[NodeFacts, str]], shown: Shown = in_full) -> str | None:
    holders: dict[str, list[NodeFacts]] = {}
    for node, value in values:
        holders.setdefault(value, []).append(node)
    if len(holders) == 1:
        return None
    by_number = sorted(holders.items(), key=lambda item: -len(item[1]))
    parts = (f"{_short(shown(value, [node.name for node in nodes]))} on {_names(nodes)}" for value, nodes in by_number)
    return f"{printable(name, _LONGEST_NAME)}: {'; '.join(parts)}"


def _short(value: str) -> str:
    return printable(value, _LONGEST_VALUE)


def _names(nodes: Sequence[NodeFacts]) -> str:
    return few([node.name for node in nodes], 4)
