"""Values that are not told to who has proven nothing: a node reads marks in their place, and its own values."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection, Sequence

from allranks.cluster.account_differences import Shown
from allranks.cluster.environments import NOT_SET
from allranks.rendezvous.participant import Participant

HIDDEN_NOTE = "(#… stands for a value of another node: without an ALLRANKS_TOKEN they are shown on node 0 only)"


class Hidden:
    """Equal values have equal marks. The marks are keyed, so that trying likely values does not tell what they mean."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def but_of(self, reader: Participant, nodes: Sequence[Participant]) -> Shown:
        """How to write to one of `nodes`, which has told its own values itself."""
        # Who gives itself the name of another node is shown nothing of it.
        has_own_name = [node.name for node in nodes].count(reader.name) == 1

        def shown(value: str, holders: Collection[str]) -> str:
            is_own = has_own_name and reader.name in holders
            return value if is_own or value.startswith(NOT_SET) else self._mark(value)

        return shown

    def from_all(self, value: str, holders: Collection[str]) -> str:
        """How to write where every node reads the same."""
        return value if value.startswith(NOT_SET) else self._mark(value)

    def _mark(self, value: str) -> str:
        return "#" + hashlib.blake2b(value.encode(errors="surrogatepass"), key=self._key, digest_size=4).hexdigest()
