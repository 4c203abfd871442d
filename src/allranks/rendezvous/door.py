"""The door of node 0: whoever connects is unknown until it has said who it is, and may cost little before that."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from allranks.listing import printable
from allranks.rendezvous import wire
from allranks.rendezvous.channel import Channel
from allranks.rendezvous.participant import Participant
from allranks.rendezvous.silence import Silence
from allranks.rendezvous.wire import WireError

_MOST_UNKNOWN = 256
"""Connections at a time that have not said who they are; more than the nodes of a run that come in the same moment."""
_MOST_REJECTED = 64


@dataclass
class Peer:
    """Another node that has been let in."""

    node: Participant
    channel: Channel
    heard: float = field(default_factory=time.monotonic)  # when it gave the last sign of life
    done: bool = False  # it said good-bye
    tasks: set[asyncio.Task] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.silence = Silence(self.channel.writer)


class Door:
    """`rejected` tells who was turned away, and why."""

    def __init__(self) -> None:
        self.rejected: set[str] = set()
        self._unknown = 0
        self._most_unknown = min(_MOST_UNKNOWN, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)

    async def let_in(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        take_up: Callable[[wire.Lines, asyncio.StreamWriter], Awaitable[Peer | None]],
    ) -> Peer | None:
        """What `take_up` makes of a connection; None, and the connection is closed, where it is nobody of the run."""
        if self._unknown >= self._most_unknown:  # whoever floods the port must not cost descriptors and memory
            writer.transport.abort()
            return None
        self._unknown += 1
        peer = None
        try:
            peer = await take_up(wire.Lines(reader), writer)
        except asyncio.CancelledError:
            pass  # this node leaves; asyncio would print it as an error
        except WireError as error:
            self.reject(f"{_address_of(writer)} ({error})")
        except OSError:
            pass
        except Exception as error:  # whatever a stranger says ends no run
            self.reject(f"{_address_of(writer)} ({error!r})")
        finally:
            self._unknown -= 1
            if peer is None:
                writer.close()
        return peer

    def reject(self, who: str) -> None:
        """Remember who was turned away, of so many as help."""
        if len(self.rejected) < _MOST_REJECTED:
            self.rejected.add(printable(who, 300))


def _address_of(writer: asyncio.StreamWriter) -> str:
    name = writer.get_extra_info("peername")
    return str(name[0]) if name else "unknown"
