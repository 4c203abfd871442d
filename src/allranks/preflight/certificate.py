"""What a smoke run proved, as one hash over its parts, and in what a later start differs from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from allranks import durable
from allranks.json_types import is_a
from allranks.listing import few, printable
from allranks.preflight.stated import kind_of

VERSION = 1
"""Raised when a part gets another meaning: certificates of another version are not compared."""
Part = Literal["config", "model", "data", "code", "environment", "nodes", "transport"]
PARTS: tuple[Part, ...] = get_args(Part)
Parts = Mapping[Part, Mapping[str, str]]
"""Of each part its fields, as texts. A part that is not known is not there, and is then not compared."""

NOT_SET = "not set"
_PART_OF: Mapping[str, Part] = {
    "config": "config",
    "model": "model",
    "tokenizer": "model",
    "data": "data",
    "code": "code",
    "python": "environment",
    "packages": "environment",
    "nccl": "environment",
}
# They say from where a run begins and which findings are accepted, not what is trained.
_NOT_COMPARED = ("auto_resume_from_checkpoints", "resume_from_checkpoint", "preflight.")
_SHOWN_FIELDS = 4
_LONGEST_VALUE = 60


@dataclass(frozen=True)
class Certificate:
    """`t`: when the smoke run ended (unix seconds); `run`: its id; `evidence`: what its ranks showed."""

    parts: Parts
    t: float = 0.0
    run: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """The one hash over all parts."""
        return _sha256(hashes(self.parts))

    def write(self, path: Path) -> None:
        """Write it atomically. Raises OSError."""
        document = {
            "format": "allranks-certificate",
            "version": VERSION,
            "sha256": self.sha256,
            "t": self.t,
            "run": self.run,
            "hashes": hashes(self.parts),
            "parts": self.parts,
            "evidence": self.evidence,
        }
        durable.write(path, json.dumps(document, indent=1) + "\n", make_parents=True)


@dataclass(frozen=True)
class Difference:
    """A field that is not as the smoke run had it; both values as text."""

    part: Part
    name: str
    then: str
    now: str

    def __str__(self) -> str:
        return f"{self.name} was {_short(self.then)}, is {_short(self.now)}"


def read_certificate(path: Path) -> Certificate | str | None:
    """The certificate in a file; None where there is none, and why not where it cannot be read or is damaged."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != "allranks-certificate":
            raise ValueError
        if document["version"] != VERSION:
            return f"{path} is of version {str(document['version'])[:20]}, and this allranks compares {VERSION}"
        found = Certificate(_parts(document["parts"]), float(document["t"]), str(document["run"]))
        if found.sha256 != document["sha256"]:
            return f"{path} was changed: its parts have not the hash that it names"
        return found
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{path} is damaged: it is no certificate that allranks wrote"


def parts_of(same: Mapping[str, str]) -> dict[Part, dict[str, str]]:
    """The parts that are told by what all nodes must have alike (`launch.must_match`)."""
    parts: dict[Part, dict[str, str]] = {"config": {}, "model": {}, "code": {}, "environment": {}}
    for name, value in sorted(same.items()):
        part = _PART_OF[kind_of(name)]
        if part != "config" or not name.startswith(_NOT_COMPARED):
            parts.setdefault(part, {})[name] = value
    return parts


def hashes(parts: Parts) -> dict[Part, str]:
    """The hash of each part."""
    return {part: _sha256(parts[part]) for part in PARTS if part in parts}


def differences(proved: Parts, now: Parts) -> list[Difference]:
    """Each field that is not alike, in the order of the parts. Parts that only one side knows are left out."""
    return [
        Difference(part, name, proved[part].get(name, NOT_SET), now[part].get(name, NOT_SET))
        for part in PARTS
        if part in proved and part in now
        for name in sorted({*proved[part], *now[part]})
        if proved[part].get(name) != now[part].get(name)
    ]


def told(found: list[Difference]) -> list[str]:
    """One line for each part that differs."""
    return list(_lines(found))


def _lines(found: list[Difference]) -> Iterator[str]:
    for part in PARTS:
        if of_part := [str(one) for one in found if one.part == part]:
            yield f"{part}: {few(of_part, _SHOWN_FIELDS, between='; ', rest='; and {:,} more')}"


def _parts(found: object) -> Parts:
    if not is_a(found, Mapping[str, dict]) or not isinstance(found, Mapping):
        raise ValueError
    for table in found.values():
        if not is_a(table, Mapping[str, str]):
            raise ValueError
    return {part: found[part] for part in PARTS if part in found}


def _short(text: str) -> str:
    text = printable(text, 10_000)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 1]}…"


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
