"""proof.json: what each rank said of itself after the first step of a start. Plain JSON, read with suspicion."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from allranks.errors import UsageError
from allranks.listing import printable
from allranks.observe.nccl_log import NcclLog, from_message

VERSION = 1
MOST_BLOCKS = 65_536
"""Of a rank in one step, whose numbers are kept; of more only how many they are, and their content."""
_MOST_RANKS = 65_536
_MOST_CONNECTIONS = 1_024
_MOST_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Connection:
    """Open TCP connections of a rank to one address of another node or its own. `interface` is this end's."""

    interface: str
    local: str
    remote: str
    number: int = 1


@dataclass(frozen=True)
class Blocks:
    """What a rank trained on in the step: as it was handed to the model, not as it was planned."""

    number: int
    ids: tuple[int, ...] | None = None
    """Numbers of the blocks in the data, in order; None where they are too many to keep."""
    content: str = ""
    """Digest of the tokens and labels."""
    content_of_next: str = ""
    """The same of what the rank after this one should have, made of this rank's own copy of the data."""
    target_tokens: int = 0
    loss_sum: float | None = None
    """Sum of the cross entropy over these target tokens."""


@dataclass(frozen=True)
class RankProof:
    """What one rank said."""

    rank: int
    world_size: int
    host: str
    node: int
    local_rank: int
    pid: int
    step: int
    gpu: str | None = None
    """UUID; None on a CPU."""
    device: str = ""
    """The GPU's or the processor's name."""
    addresses: tuple[str, ...] = ()
    """Of its node."""
    connections: tuple[Connection, ...] | None = None
    """None where this system does not tell."""
    whole: str = ""
    """Digest of the checksums of all parameters and buffers that every rank holds whole."""
    parts: str = ""
    """Digest of which parameters, and which parts of them, the rank holds."""
    sums: str = ""
    """Digest of the checksums of all that it holds."""
    blocks: Blocks | None = None
    nccl: NcclLog | None = None
    """What its NCCL logged; None on gloo, and where there is no log."""
    nccl_file: str = ""


@dataclass(frozen=True)
class Proof:
    """Of one start of a run."""

    run: str | None
    t: float
    step: int
    world_size: int
    backend: str
    """nccl, gloo, or empty for a rank that is alone."""
    ranks: tuple[RankProof, ...]
    ids: tuple[int, ...] | None = None
    """The blocks of the step's global batch, by the plan."""
    num_blocks: int = 0
    num_target_tokens: int = 0
    loss: float | None = None
    """Of the step, as recorded; without the router's part."""
    different: tuple[str, ...] = ()
    """Parameters of which ranks that hold the same one hold another value."""
    require: str | None = None
    nodes: Mapping[str, int] = field(default_factory=dict)
    """Ranks that each node was to start, by host, as far as the launcher said."""

    def to_message(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"version": VERSION, **asdict(self)}


def read_proof(path: Path) -> Proof:
    """The proof in the file at `path`. Raises UsageError that says in one line what is wrong with it; OSError."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError("it is too large")
        return proof_from_message(json.loads(path.read_bytes()))
    except FileNotFoundError:
        raise UsageError(
            f"{path.parent}: this run has no proof.json: none of its starts came to the end of the first step, or it "
            "was made by an allranks that wrote none. `allranks doctor` or the logs tell why it ended"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{path} is damaged ({printable(error, 200)}): start the run again (it goes on from its last checkpoint), "
            "and each start writes it anew"
        ) from None


def proof_from_message(message: object) -> Proof:
    """Raises ValueError for what is no proof. Unknown fields are left out."""
    top = _mapping(message, "a mapping")
    version = top.get("version")
    if version != VERSION:
        raise ValueError(f"version {version!r}, and this allranks reads {VERSION}")
    ranks = top.get("ranks")
    if not isinstance(ranks, list) or not 0 < len(ranks) <= _MOST_RANKS:
        raise ValueError("it tells of no ranks")
    nodes = top.get("nodes")
    return Proof(
        run=_text(top, "run") or None,
        t=_float(top.get("t")) or 0.0,
        step=_int(top, "step"),
        world_size=_int(top, "world_size"),
        backend=_text(top, "backend"),
        ranks=tuple(map(rank_from_message, ranks)),
        ids=_ids(top.get("ids")),
        num_blocks=_int(top, "num_blocks"),
        num_target_tokens=_int(top, "num_target_tokens"),
        loss=_float(top.get("loss")),
        different=_texts(top.get("different")),
        require=_text(top, "require") or None,
        nodes={
            printable(host, 200): number
            for host, number in (nodes.items() if isinstance(nodes, dict) else ())
            if isinstance(number, int)
        },
    )


def rank_from_message(message: object) -> RankProof:
    """Raises ValueError for what is none."""
    found = _mapping(message, "a rank")
    connections, blocks = found.get("connections"), found.get("blocks")
    return RankProof(
        rank=_int(found, "rank"),
        world_size=_int(found, "world_size"),
        host=_text(found, "host"),
        node=_int(found, "node"),
        local_rank=_int(found, "local_rank"),
        pid=_int(found, "pid"),
        step=_int(found, "step"),
        gpu=_text(found, "gpu") or None,
        device=_text(found, "device"),
        addresses=_texts(found.get("addresses")),
        connections=tuple(map(_connection, connections[:_MOST_CONNECTIONS])) if isinstance(connections, list) else None,
        whole=_text(found, "whole"),
        parts=_text(found, "parts"),
        sums=_text(found, "sums"),
        blocks=_blocks(blocks) if blocks is not None else None,
        nccl=from_message(found.get("nccl")),
        nccl_file=_text(found, "nccl_file"),
    )


def _connection(message: object) -> Connection:
    found = _mapping(message, "a connection")
    return Connection(_text(found, "interface"), _text(found, "local"), _text(found, "remote"), _int(found, "number"))


def _blocks(message: object) -> Blocks:
    found = _mapping(message, "blocks")
    return Blocks(
        number=_int(found, "number"),
        ids=_ids(found.get("ids")),
        content=_text(found, "content"),
        content_of_next=_text(found, "content_of_next"),
        target_tokens=_int(found, "target_tokens"),
        loss_sum=_float(found.get("loss_sum")),
    )


def _mapping(message: object, what: str) -> Mapping[str, Any]:
    if not isinstance(message, Mapping):
        raise ValueError(f"{what} was expected, not {type(message).__name__}")
    return message


def _int(found: Mapping[str, Any], name: str) -> int:
    value = found.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > 2**53:
        raise ValueError(f"{name} is {printable(repr(value), 60)}, not a whole number")
    return value


def _float(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _text(found: Mapping[str, Any], name: str) -> str:
    value = found.get(name)
    return printable(value, 4096) if isinstance(value, str) else ""


def _texts(value: object) -> tuple[str, ...]:
    return tuple(printable(one, 500) for one in value[:1024]) if isinstance(value, list | tuple) else ()


def _ids(value: object) -> tuple[int, ...] | None:
    if not isinstance(value, list | tuple) or not all(isinstance(one, int) for one in value):
        return None
    return tuple(value)
