"""A node as the rendezvous knows it, and what it compares by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

from allranks.cluster.account_differences import Shown, difference
from allranks.listing import printable

_LONGEST_NAME = 256
Accounts = Sequence[tuple[str, Mapping[str, Any]]]
"""What nodes hand in, each with its node's name."""


@dataclass(frozen=True)
class Participant:
    """Who a node is, and the `account` that it hands in, which is carried and not looked into."""

    node_rank: int
    nnodes: int
    num_processes: int
    host: str
    pid: int
    launcher: str
    has_rank: bool = True
    """Whether it was started with its node rank. Under c10d torchrun deals ranks out later: `node_rank` is then the
    order in which the nodes came, which node 0 tells them, and -1 before."""
    account: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"node {self.node_rank} ({self.host})" if self.has_rank else f"{self.host} (pid {self.pid})"

    @property
    def id(self) -> int | str:
        """As logs and findings name it."""
        return self.node_rank if self.has_rank else self.host

    def to_message(self) -> dict[str, Any]:
        return {**self.hello(), "account": dict(self.account)}

    def hello(self) -> dict[str, Any]:
        """Who it is, in a few hundred bytes: all that is said before either side is known."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name != "account"}

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> Participant:
        """Raises ValueError for what is no node: this comes from the wire."""
        kinds = {"node_rank": int, "nnodes": int, "num_processes": int, "pid": int, "host": str, "launcher": str}
        values: dict[str, Any] = {}
        for name, kind in kinds.items():
            value = message.get(name)
            if not isinstance(value, kind) or isinstance(value, bool):
                raise ValueError(f"{name} is missing or no {kind.__name__}")
            values[name] = printable(value, _LONGEST_NAME) if isinstance(value, str) else value
        values["has_rank"] = message.get("has_rank") is not False
        values["account"] = message.get("account", {})
        if not isinstance(values["account"], dict):
            raise ValueError("its account is no table")
        return cls(**values)


class Agreement(Protocol):
    """What nodes have to agree on, by the accounts that they hand in: whoever starts the run knows what is in them."""

    def check(self, account: Mapping[str, Any]) -> None:
        """Raises ValueError for what is no account: it comes from the wire."""
        ...

    def differences(self, accounts: Accounts, shown: Shown) -> list[str]:
        """Everything in which the nodes differ and must not, one line each."""
        ...

    def notes(self, accounts: Accounts, shown: Shown) -> list[str]:
        """In what they differ, and may: told to all when all are there."""
        ...

    def refusal(self, accounts: Accounts) -> str | None:
        """Why nodes that are all there and alike cannot start as they are; None where they can."""
        ...


def differences(nodes: Sequence[Participant]) -> list[str]:
    """In which options of the rendezvous itself the nodes differ and must not, one line each."""
    found = [
        line
        for name, values in {
            "--launcher": [(node.name, node.launcher) for node in nodes],
            "--nnodes": [(node.name, str(node.nnodes)) for node in nodes],
        }.items()
        if (line := difference(name, values))
    ]
    # Accelerate divides the total by the number of nodes; torchrun counts what comes, DeepSpeed gets a host file.
    launchers = {node.launcher for node in nodes}
    if launchers == {"accelerate"}:
        processes = [(node.name, str(node.num_processes)) for node in nodes]
        if line := difference("processes per node", processes):
            (launcher,) = launchers
            found.append(
                f"{line}; {launcher} starts the same number on every node: give all --nproc-per-node "
                f"{min(node.num_processes for node in nodes)}, or start with --launcher torchrun, which takes them"
            )
    return found
