"""What the links have shown is told at once, on every node: what is measured after them takes longer than they did."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from allranks.json_types import is_a
from allranks.listing import printable
from allranks.observe import say
from allranks.preflight.judgement import Judgement
from allranks.preflight.table import finding
from allranks.rendezvous import Rendezvous

SO_FAR = "so far:"
"""How such a line begins, on stderr."""
_ROUND_SECONDS = 60.0
"""For what takes milliseconds, on nodes that are busy with something else."""
_MOST = 4


def tell_so_far(rendezvous: Rendezvous, judgement: Callable[[], Judgement]) -> None:
    """Say what fails by now, which `judgement` knows on node 0. All nodes call it. Raises RefusedError where one is
    lost."""

    def decide(said: Sequence[Any]) -> object:
        failed = [one for one in judgement().reported if one.state == "failed"]
        return [". ".join(line.strip() for line in finding(one)) for one in failed]

    answer = rendezvous.round("preflight: so far", None, _ROUND_SECONDS, decide=decide)
    for text in answer[:_MOST] if is_a(answer, Sequence[str]) else ():
        say(f"{SO_FAR:<12}{printable(text, 1000)}", file=sys.stderr)
