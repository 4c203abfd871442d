"""What is asked of all nodes from one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from allranks.cluster.nodes import Host
from allranks.cluster.transports import Transport


@dataclass(frozen=True)
class Everywhere:
    """What is to run where. `words` follow `PYTHON -m allranks`, without anything about nodes.

    `address`: of node 0, None to find it. A host with `slots` runs so many processes, others as many as they have GPUs.
    """

    hosts: Sequence[Host]
    transport: Transport
    words: Sequence[str]
    port: int
    address: str | None = None
    exports: Sequence[str] = ()
