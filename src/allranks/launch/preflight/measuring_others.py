"""What else joins the nodes, one transport after the other, each by itself: within seconds, whatever there is."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from allranks.cluster.measure.schedule import ALL_PAIRS_OF_OTHERS
from allranks.cluster.measure.values import TransportMeasured
from allranks.launch.preflight.measuring_links import ROUND_SECONDS, Links, Transport
from allranks.rendezvous import Rendezvous

OTHERS_SECONDS = 120.0
"""After which no other transport is begun: eight adapters take some 90 s in two rounds of pairs, of about 3 s each."""


def measure_others(
    rendezvous: Rendezvous,
    names: Sequence[str],
    transports: Sequence[Transport],
    seconds: float = OTHERS_SECONDS,
) -> list[TransportMeasured]:
    """In two rounds of pairs each, and again what is slow; whole on node 0. `transports` are the same on all nodes."""
    found = []
    until = time.monotonic() + seconds

    def is_time_left(said: Sequence[Any]) -> object:
        return time.monotonic() < until

    for transport in transports:
        if rendezvous.round(f"measure: {transport.name}", None, ROUND_SECONDS, decide=is_time_left) is not True:
            why = f"others had taken the {seconds:.0f} s that there are"
            found.append(TransportMeasured(transport.kind, transport.name, skipped=why))
            continue
        links = Links(rendezvous, names, transport, ALL_PAIRS_OF_OTHERS)
        links.measure_all()
        found.append(TransportMeasured(transport.kind, transport.name, links.best(), links.share))
    return found
