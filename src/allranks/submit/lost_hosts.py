"""The hosts for whose loss a run ended, for its batch script, which then starts the job again by itself."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path

from allranks import durable

LOST_HOSTS = "ALLRANKS_LOST_HOSTS"
"""The file that the script reads, where a script waits for one."""
_NODE_LOST = "node-lost"


def take_lost_hosts_file(env: MutableMapping[str, str] = os.environ) -> Path | None:
    """Where to write them. Taken out of `env`: it is of the command that started all nodes, not of each node."""
    path = env.pop(LOST_HOSTS, None)
    return Path(path) if path else None


def write_lost_hosts(path: Path, lost: Sequence[str]) -> None:
    """Keep that the hosts `lost` did not answer any more, for which the run ended."""
    durable.write(path, json.dumps({"cause": _NODE_LOST, "hosts": list(lost)}))


def read_lost_hosts(path: Path) -> list[str]:
    """The hosts for whose loss the run ended; none if it ended for another reason, or the file cannot be read."""
    try:
        said = json.loads(path.read_text())
    except (OSError, ValueError):
        return []
    hosts = said.get("hosts") if isinstance(said, Mapping) and said.get("cause") == _NODE_LOST else None
    return [host for host in hosts if isinstance(host, str) and host] if isinstance(hosts, list) else []
