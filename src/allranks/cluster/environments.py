"""Compare how the nodes of a run are set up for NCCL and gloo."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from allranks.cluster.nccl_catalogue import CATALOGUE
from allranks.cluster.nccl_lookalikes import REMOVED
from allranks.cluster.nccl_variables import number, settings
from allranks.listing import few

NOT_SET = "not set"
# Each node has names of its own for these: not worth a word.
_ALWAYS_OWN = ("NCCL_DEBUG_FILE", "NCCL_CONF_FILE", "NCCL_HOSTID", "NCCL_COMM_ID")
_EQUAL_OUTSIDE_NCCL = ("GLOO_DEVICE_TRANSPORT", "TORCH_NCCL_BLOCKING_WAIT", "TORCH_NCCL_USE_COMM_NONBLOCKING")
_SHOWN_NODES = 4


@dataclass(frozen=True)
class Difference:
    """A variable whose value is not the same everywhere. `is_refused`: the nodes cannot work together so."""

    name: str
    is_refused: bool
    message: str


def network_settings(env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What a node tells the others of its settings: NCCL_*, TORCH_NCCL_*, TORCH_FR_* and GLOO_*, nccl.conf included.

    Of a secret (NCCL_PSK) only a digest is told.
    """
    return of_network(settings(env))


def of_network(variables: Mapping[str, str]) -> dict[str, str]:
    """Of variables as NCCL, PyTorch and gloo see them, what is told and compared."""
    facts = {name: value for name, value in variables.items() if name not in _ALWAYS_OWN and name not in REMOVED}
    if "NCCL_PSK" in facts:
        facts["NCCL_PSK"] = f"sha256 {hashlib.sha256(facts['NCCL_PSK'].encode()).hexdigest()[:16]}"
    return facts


def must_be_equal(facts: Mapping[str, str]) -> dict[str, str]:
    """Those settings that all nodes must share, in one spelling: `0x1` is `1`, and a default is as good as not set."""
    equal = {}
    for name, value in facts.items():
        variable = CATALOGUE.get(name)
        spelled = _canonical(value, is_number=variable is not None and variable.is_number)
        if binds(name) and not (variable and spelled == variable.default):
            equal[name] = spelled
    return equal


def differences(
    environments: Mapping[str, Mapping[str, str]],
    shown: Callable[[str, Collection[str]], str] = lambda value, holders: value,
) -> list[Difference]:
    """What differs between nodes, given each node's `network_settings` by its name; those that are refused first.

    `shown` writes a value, given the names of the nodes that have it.
    """
    refused = _differing({node: must_be_equal(facts) for node, facts in environments.items()})
    noted = [name for name in _differing(environments) if not binds(name)]
    return [
        *(
            Difference(n, True, f"{n} must be the same on all nodes, but is {_holders(n, environments, shown)}")
            for n in refused
        ),
        *(Difference(n, False, f"{n} is not the same on all nodes: {_holders(n, environments, shown)}") for n in noted),
    ]


def binds(name: str) -> bool:
    """Whether all nodes must share it."""
    return CATALOGUE[name].equal if name in CATALOGUE else name in _EQUAL_OUTSIDE_NCCL


def _differing(environments: Mapping[str, Mapping[str, str]]) -> list[str]:
    names = {name for facts in environments.values() for name in facts}
    return sorted(name for name in names if len({facts.get(name) for facts in environments.values()}) > 1)


def _holders(
    name: str, environments: Mapping[str, Mapping[str, str]], shown: Callable[[str, Collection[str]], str]
) -> str:
    """`4194304 on node0 and node1, not set on node2`."""
    nodes: dict[str, list[str]] = {}
    for node, facts in environments.items():
        nodes.setdefault(facts.get(name, _default(name)), []).append(node)
    return ", ".join(f"{shown(value, holders)} on {few(holders, _SHOWN_NODES)}" for value, holders in nodes.items())


def _default(name: str) -> str:
    variable = CATALOGUE.get(name)
    return f"{NOT_SET} (default {variable.default})" if variable and variable.default else NOT_SET


def _canonical(value: str, *, is_number: bool) -> str:
    # NCCL compares words without regard to case (AF_INET aside, of which there is one spelling).
    return str(number(value)) if is_number else value.upper()
