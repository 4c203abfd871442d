"""What the nodes of a run have to agree on before it starts, by their accounts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from allranks.checkpoint import holdings
from allranks.checkpoint.holdings import Held
from allranks.cluster import account_differences
from allranks.cluster.account import NodeAccount
from allranks.cluster.account_differences import Named, Shown
from allranks.rendezvous import Accounts


class RunAgreement:
    """The rendezvous' `Agreement` over `NodeAccount`s."""

    def check(self, account: Mapping[str, Any]) -> None:
        checkpoints = NodeAccount.from_message(account).checkpoints
        if checkpoints is not None:
            Held.from_message(checkpoints)

    def differences(self, accounts: Accounts, shown: Shown) -> list[str]:
        return account_differences.differences(_read(accounts), shown)

    def notes(self, accounts: Accounts, shown: Shown) -> list[str]:
        return account_differences.notes(_read(accounts), shown)

    def refusal(self, accounts: Accounts) -> str | None:
        held = {name: account.checkpoints for name, account in _read(accounts) if account.checkpoints is not None}
        return holdings.refusal({name: Held.from_message(one) for name, one in held.items()})


class NothingToAgree:
    """Of nodes that only meet: in what they differ is found later."""

    def check(self, account: Mapping[str, Any]) -> None:
        return None

    def differences(self, accounts: Accounts, shown: Shown) -> list[str]:
        return []

    def notes(self, accounts: Accounts, shown: Shown) -> list[str]:
        return []

    def refusal(self, accounts: Accounts) -> str | None:
        return None


def _read(accounts: Accounts) -> Named:
    return [(name, NodeAccount.from_message(account)) for name, account in accounts]
