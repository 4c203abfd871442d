"""How the agents are reached, as it is told to every process of the tree."""

import sys
from dataclasses import dataclass

AGENT = ("-P", "-m", "allranks.cluster.agent")
"""After the interpreter. -P: nothing is imported from the directory in which a remote shell happens to start."""


@dataclass(frozen=True)
class Transport:
    """`kind`: ssh, srun, pbsdsh or local. `python`: the interpreter on the nodes, with allranks installed.

    Up to `flat` nodes are connected to directly: a tree would only add what can fail. Of more, `width` are, and each
    connects to an equal part of the others. (pbsdsh's agents all connect to the head: their `flat` is without limit.)
    """

    kind: str
    python: str = sys.executable
    connect_seconds: float = 30.0
    flat: int = 64
    width: int = 32
    # Connections that a process opens at the same time: sshd and jump hosts turn more away (MaxStartups).
    window: int = 32

    @property
    def agent(self) -> list[str]:
        return [self.python, *AGENT]
