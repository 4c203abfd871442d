"""The bundle of a run from all of its nodes: what is on this disk, and what others have on theirs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from allranks.bundle.from_nodes import from_nodes
from allranks.bundle.of_node import OfNode
from allranks.bundle.pack import Bundle, nodes_elsewhere, pack
from allranks.cluster.transports.ssh import is_this_machine
from allranks.errors import UsageError
from allranks.launch.spec.options import LaunchOptions
from allranks.launch.spec.where import NodeOptions, find_nodes
from allranks.observe import RunDir


def bundle_of_all(
    run: RunDir, target: Path | BinaryIO, asked: NodeOptions, *, only_here: bool = False, more: Mapping[str, str]
) -> Bundle:
    """Write the bundle of `run` to `target`. Asked are the nodes of `asked`, else those of the run's manifest of which
    nothing is on this disk; with `only_here` none. Who gives no answer is named in the list, and the rest is packed.

    Raises UsageError for what is no list of hosts, and OSError where `target` cannot be written.
    """
    return pack(run, target, more=more, elsewhere=[] if only_here else _elsewhere(run, asked))


def _elsewhere(run: RunDir, asked: NodeOptions) -> list[OfNode]:
    if asked.hosts is None and asked.hostfile is None:
        hosts = list(dict.fromkeys(host for host in nodes_elsewhere(run).values() if host))
        if not hosts:
            return []
        asked = replace(asked, hosts=",".join(hosts))
        try:
            start = find_nodes(asked, LaunchOptions(), [])
        except UsageError as error:  # of the manifest, and not of the user's making
            return [OfNode(host, missing=str(error)) for host in hosts]
    else:
        start = find_nodes(asked, LaunchOptions(), [])
    assert start is not None
    others = [host for host in start.hosts if not is_this_machine(host)]
    return from_nodes(others, start.transport, run.path.absolute()) if others else []
