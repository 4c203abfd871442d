"""In what the accounts of a run's nodes differ: what cannot work, and what is only worth knowing."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from allranks.cluster import environments
from allranks.cluster.account import NodeAccount
from allranks.cluster.environments import NOT_SET
from allranks.cluster.majority import groups
from allranks.listing import few, printable

LONGEST_VALUE = 120  # characters of a differing value that are shown
_LONGEST_NAME = 256
_SHOWN_NODES = 4

Shown = Callable[[str, Collection[str]], str]
"""How a differing value is written, given the names of the nodes that have it."""
Named = Sequence[tuple[str, NodeAccount]]
"""The accounts, each with its node's name."""


def in_full(value: str, holders: Collection[str]) -> str:
    """The value itself."""
    return value


def differences(accounts: Named, shown: Shown = in_full) -> list[str]:
    """Everything in which the nodes differ and must not, one line each; the majority's value comes first."""
    names = sorted({name for _, account in accounts for name in account.must_match})
    found = [
        difference(name, [(node, account.must_match.get(name, NOT_SET)) for node, account in accounts], shown)
        for name in names
    ]
    return [
        *(line for line in found if line is not None),
        *(one.message for one in _of_networks(accounts, shown) if one.is_refused),
    ]


def notes(accounts: Named, shown: Shown = in_full) -> list[str]:
    """In which settings of the network they differ, and may."""
    return [one.message for one in _of_networks(accounts, shown) if not one.is_refused]


def difference(name: str, values: Sequence[tuple[str, str]], shown: Shown = in_full) -> str | None:
    """`NAME: this on node 0, node 2; that on node 1`, of (node, value) each; None where all have the same."""
    found = groups(values)
    if len(found.of) == 1:
        return None
    parts = (
        f"{printable(shown(value, nodes), LONGEST_VALUE)} on {few(nodes, _SHOWN_NODES)}" for value, nodes in found.of
    )
    return f"{printable(name, _LONGEST_NAME)}: {'; '.join(parts)}"


def _of_networks(accounts: Named, shown: Shown) -> list[environments.Difference]:
    return environments.differences({node: account.network for node, account in accounts}, shown)
