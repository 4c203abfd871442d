"""What a process's NCCL said, as values; and the same as JSON, bounded, for the way to rank 0."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from allranks.listing import printable

MOST = 512
"""Links, communicators or warnings of one process that are kept: a rank talks to few, and a log may be anything."""
_MOST_TEXT = 600
_T = TypeVar("_T")


@dataclass(frozen=True)
class Card:
    """A network card as NCCL numbers it; several that are used as one have their names joined by `+`."""

    network: str
    """IB, Socket, or the name of a plugin's network."""
    number: int
    name: str
    """mlx5_0:1 (with its port), eth0."""
    link: str
    """IB or RoCE; for sockets the address."""


@dataclass(frozen=True)
class Communicator:
    """One communicator that this process was in. `key` is the same on all its ranks, and another for each."""

    key: str
    rank: int
    """Of this process in it, which in a part of all ranks is not its rank in the run."""
    num_ranks: int
    nvml_device: int
    bus_id: str
    is_split: bool
    """Made out of another one; its `key` then tells of which."""
    complete: bool
    """Whether its ranks have met."""


@dataclass(frozen=True)
class Link:
    """How this process's `rank` sends to, or receives from, `peer`; both counted in the communicator `key`."""

    key: str
    rank: int
    peer: int
    direction: str
    """send or receive; of P2P and SHM only the sender writes."""
    transport: str
    """P2P, SHM, NET/IB, NET/Socket, or NET/ and a plugin's network."""
    card: str = ""
    """The name of the card, for NET."""
    kind: str = ""
    """IB or RoCE, for NET/IB."""
    gdr: bool = False
    """Between card and GPU directly (GPUDirect RDMA)."""
    channels: int = 1


@dataclass(frozen=True)
class NcclLog:
    """One process's log. What it did not say is empty."""

    host: str
    pid: int
    version: str = ""
    networks: tuple[str, ...] = ()
    """Chosen for its communicators, each once, in that order: IB, Socket, a plugin's."""
    cards: tuple[Card, ...] = ()
    out_of_band: str = ""
    """Interface and address of NCCL's own connections, as `eth0:10.0.0.1<0>`."""
    communicators: tuple[Communicator, ...] = ()
    links: tuple[Link, ...] = ()
    settings: Mapping[str, str] | None = None
    """NCCL_* variables that NCCL says it took from the environment or its files."""
    no_infiniband: tuple[str, ...] = ()
    """Why InfiniBand and RoCE are not used, as far as NCCL says."""
    no_gdr: tuple[str, ...] = ()
    """Why GPUDirect RDMA is not used, as far as NCCL says."""
    problems: tuple[str, ...] = ()
    """Warnings and errors, in NCCL's words, each once."""


def to_message(log: NcclLog) -> dict[str, Any]:
    """Plain JSON types."""
    return asdict(log)


def from_message(message: object) -> NcclLog | None:
    """The log in a message of whatever version, or of a stranger; None if it is none. What does not fit is left out."""
    if not isinstance(message, Mapping) or not isinstance(message.get("host"), str):
        return None
    settings = message.get("settings")
    settings = settings if isinstance(settings, Mapping) else {}
    pid = message.get("pid")
    return NcclLog(
        host=_text(message["host"]),
        pid=pid if isinstance(pid, int) else 0,
        version=_text(message.get("version")),
        networks=_texts(message.get("networks")),
        cards=_records(message.get("cards"), Card),
        out_of_band=_text(message.get("out_of_band")),
        communicators=_records(message.get("communicators"), Communicator),
        links=_records(message.get("links"), Link),
        settings={_text(name): _text(value) for name, value in list(settings.items())[:MOST]},
        no_infiniband=_texts(message.get("no_infiniband")),
        no_gdr=_texts(message.get("no_gdr")),
        problems=_texts(message.get("problems")),
    )


def _records(found: object, kind: type[_T]) -> tuple[_T, ...]:
    entries = found[:MOST] if isinstance(found, list | tuple) else ()
    return tuple(made for entry in entries if (made := _record(entry, kind)) is not None)


_KINDS: dict[str, type] = {"str": str, "int": int, "bool": bool}


def _record(entry: object, kind: type[_T]) -> _T | None:
    if not isinstance(entry, Mapping):
        return None
    values: dict[str, Any] = {}
    for each in fields(kind):  # type: ignore[arg-type]
        value, wanted = entry.get(each.name), _KINDS[str(each.type)]
        if type(value) is not wanted:
            return None
        values[each.name] = _text(value) if wanted is str else value
    return kind(**values)


def _texts(found: object) -> tuple[str, ...]:
    return tuple(map(_text, found[:MOST])) if isinstance(found, list | tuple) else ()


def _text(value: object) -> str:
    return printable(value, _MOST_TEXT) if isinstance(value, str) else ""
