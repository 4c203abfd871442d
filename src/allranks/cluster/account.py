"""All that a node says about itself: one type, versioned, whoever asks and however it crosses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar, get_type_hints

from allranks.json_types import is_a

VERSION = 1
"""Raised when a key gets another meaning, never for a new key: those have defaults."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class NodeAddress:
    """An address by which another node could reach this one, and the interface that has it."""

    interface: str = ""
    address: str = ""


@dataclass(frozen=True)
class NodeStart:
    """What a node starts as its part of a run; `files` are those that its launcher reads, by name."""

    processes: int = 0
    command: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class NodeAccount:
    """What is not known, or was not asked for, has its default. `other` are keys that this version does not know.

    A node says of itself as much as the occasion needs: where it is found and what is installed when it is to be
    reached, what must match and what it has when the nodes meet, what it starts when all are ready.
    """

    version: int = VERSION
    host: str = ""
    python: str = ""
    """The interpreter's path."""
    python_version: str = ""
    allranks: str = ""
    """The version of the package."""
    num_gpus: int = 0
    num_cores: int = 0
    addresses: Sequence[NodeAddress] = ()
    """In the kernel's order."""
    must_match: Mapping[str, str] = field(default_factory=dict)
    """What has to be equal on every node: field -> value, as text."""
    network: Mapping[str, str] = field(default_factory=dict)
    """Settings of NCCL and gloo, of which some may differ (`environments.network_settings`)."""
    checkpoints: Mapping[str, Any] | None = None
    """What it has of the run's checkpoints (`checkpoint.holdings.Held`); None where the run asks for none."""
    start: NodeStart | None = None
    other: Mapping[str, Any] = field(default_factory=dict)

    def interface_of(self, address: str) -> str:
        """The interface that has `address`; "" for none."""
        return next((one.interface for one in self.addresses if one.address == address), "")

    def to_message(self) -> dict[str, Any]:
        """Plain JSON types. What this version does not know is handed on as it came."""
        own = asdict(self)
        del own["other"]
        return {**self.other, **own, "addresses": list(own["addresses"])}

    @classmethod
    def from_message(cls, message: object) -> NodeAccount:
        """The account that any version wrote. Raises ValueError for what is none: this may come from the wire."""
        if not isinstance(message, Mapping):
            raise ValueError("an account is no table")
        known = {name: message[name] for name in _NAMES if name in message}
        if "addresses" in known:
            if not is_a(known["addresses"], Sequence[dict]):
                raise ValueError("addresses is no list of tables")
            known["addresses"] = tuple(_read(NodeAddress, one) for one in known["addresses"])
        if known.get("start") is not None:
            known["start"] = _read(NodeStart, known["start"])
        for name, value in known.items():
            if name not in ("addresses", "start") and not is_a(value, _KINDS[name]):
                raise ValueError(f"{name} is {str(value)[:80]!r}, which no version writes")
        return cls(**known, other={name: value for name, value in message.items() if name not in _NAMES})


_KINDS = get_type_hints(NodeAccount)
_NAMES = [each.name for each in fields(NodeAccount) if each.name != "other"]


def _read(kind: type[_T], message: object) -> _T:
    """A part of an account; of a part, what a later version has besides is passed over."""
    if not isinstance(message, Mapping):
        raise ValueError(f"{kind.__name__} is no table")
    kinds = get_type_hints(kind)
    known = {name: message[name] for name in kinds if name in message}
    for name, value in known.items():
        if not is_a(value, kinds[name]):
            raise ValueError(f"{name} is {str(value)[:80]!r}, which no version writes")
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in known.items()})
