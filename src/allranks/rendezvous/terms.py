"""How a node takes part in the rendezvous."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Terms:
    """How a node takes part. Times are seconds: to wait for the others, and of silence after which one is lost."""

    address: str
    port: int
    run_id: str  # what node 0 proposes; its is everybody's
    token: str = ""
    join_seconds: float = 600.0
    silence_seconds: float = 10.0
    is_host: bool = False
    """Whether the others come to this node."""
    by_c10d: bool = False
    """Nodes have no ranks of their own, which torchrun deals out later."""

    @property
    def endpoint(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"

    @property
    def host(self) -> str:
        """Whom the others come to, before it has said its name."""
        return "the node of --rdzv-endpoint" if self.by_c10d else "node 0"

    @property
    def address_option(self) -> str:
        return "--rdzv-endpoint" if self.by_c10d else "--master-addr"

    @property
    def port_option(self) -> str:
        return "--rdzv-endpoint" if self.by_c10d else "--master-port"
