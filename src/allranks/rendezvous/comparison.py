"""Node 0's comparison of what all nodes hand in, and what of it each of them may read."""

from __future__ import annotations

from collections.abc import Sequence

from allranks.cluster.account_differences import Shown, in_full
from allranks.rendezvous.hidden import HIDDEN_NOTE, Hidden
from allranks.rendezvous.participant import Accounts, Agreement, Participant, differences


class Comparison:
    """By what `agreement` says of accounts. With `hidden`, values are shown on node 0 only."""

    def __init__(self, agreement: Agreement, hidden: Hidden | None) -> None:
        self._agreement, self._hidden = agreement, hidden

    def differ(self, nodes: Sequence[Participant]) -> bool:
        """Whether these nodes, of however many, cannot start together."""
        return bool(self._differences(nodes))

    def disagreement(self, nodes: Sequence[Participant], reader: Participant | None = None) -> str | None:
        """In what they differ, as node 0 may read it, or another `reader`; None if they agree."""
        found = self._differences(nodes)
        if found and reader is not None and self._hidden is not None:
            found = [*self._differences(nodes, self._hidden.but_of(reader, nodes)), HIDDEN_NOTE]
        return "\n  ".join(["the nodes do not agree:", *found]) if found else None

    def refusal(self, nodes: Sequence[Participant]) -> str | None:
        """Why nodes that agree cannot start as they are."""
        return self._agreement.refusal(_accounts(nodes))

    def notes(self, nodes: Sequence[Participant]) -> tuple[list[str], list[str]]:
        """In what they differ, and may: for node 0, and for all others."""
        own = self._agreement.notes(_accounts(nodes), in_full)
        if self._hidden is None or not own:
            return own, own
        return own, [*self._agreement.notes(_accounts(nodes), self._hidden.from_all), HIDDEN_NOTE]

    def _differences(self, nodes: Sequence[Participant], shown: Shown = in_full) -> list[str]:
        return [*differences(nodes), *self._agreement.differences(_accounts(nodes), shown)]


def _accounts(nodes: Sequence[Participant]) -> Accounts:
    return [(node.name, node.account) for node in nodes]
