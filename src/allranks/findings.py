"""A finding: one thing that was found, as a value from where it is first known to where it is printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# What arrives from another machine is cut to these; a message with its log lines has some kilobytes.
MAX_TEXT = 10_000
_MAX_WORD = 200
_MAX_EVIDENCE = 64


@dataclass(frozen=True)
class Who:
    """Whom it is about; None for what is not known, or is not about one."""

    node: int | str | None = None
    rank: int | None = None
    host: str | None = None


@dataclass(frozen=True)
class Evidence:
    """A line that shows it, and where that stands."""

    text: str
    file: str | None = None
    line: int | None = None


@dataclass(frozen=True)
class Finding:
    """`code` says the kind of thing in one word (see doctor/causes.py), `what` in a sentence, `remedy` the next action.

    `known_at` is the node that knew it first. `said` are a rank's own words, with which `what` then ends. `is_certain`:
    False where what was seen speaks for it and does not prove it.
    """

    code: str
    what: str
    severity: str = "error"
    who: Who = Who()
    evidence: Sequence[Evidence] = ()
    remedy: str = ""
    known_at: int | str | None = None
    said: str = ""
    is_certain: bool = True

    def to_message(self) -> dict[str, Any]:
        """Plain JSON types, bounded in size."""
        return {
            "code": self.code[:_MAX_WORD],
            "what": self.what[:MAX_TEXT],
            "severity": self.severity[:_MAX_WORD],
            "who": {"node": self.who.node, "rank": self.who.rank, "host": self.who.host},
            "evidence": [
                {"text": one.text[:MAX_TEXT], "file": one.file, "line": one.line}
                for one in self.evidence[:_MAX_EVIDENCE]
            ],
            "remedy": self.remedy[:MAX_TEXT],
            "known_at": self.known_at,
            "said": self.said[:MAX_TEXT],
            "is_certain": self.is_certain,
        }


def from_message(message: object) -> Finding | None:
    """The finding in a message of whatever version, or of a stranger; None if that is none.

    Fields that are missing, unknown or of another type are passed over, and control characters become spaces.
    """
    if not isinstance(message, Mapping):
        return None
    code, what = _text(message.get("code"), _MAX_WORD), _text(message.get("what"))
    if not code or not what:
        return None
    who = message.get("who")
    who = who if isinstance(who, Mapping) else {}
    evidence = message.get("evidence")
    shown = evidence[:_MAX_EVIDENCE] if isinstance(evidence, list) else []
    return Finding(
        code=code,
        what=what,
        severity=_text(message.get("severity"), _MAX_WORD) or "error",
        who=Who(_name(who.get("node")), _number(who.get("rank")), _text(who.get("host"), _MAX_WORD) or None),
        evidence=tuple(
            Evidence(_text(one.get("text")), _text(one.get("file"), 4096) or None, _number(one.get("line")))
            for one in shown
            if isinstance(one, Mapping)
        ),
        remedy=_text(message.get("remedy")),
        known_at=_name(message.get("known_at")),
        said=_text(message.get("said")),
        is_certain=message.get("is_certain") is not False,
    )


def printed(finding: Finding) -> str:
    """The finding for a terminal: what it is, then what shows it, then what to do."""
    lines = [f"{finding.severity}: {finding.what}"]
    lines += [f"  | {one.text}" for one in finding.evidence]
    lines += [f"  {line}" for line in finding.remedy.splitlines()]
    return "\n".join(lines)


def told(finding: Finding) -> str:
    """The same without the word for its severity, to be put behind another."""
    return printed(finding).removeprefix(f"{finding.severity}: ")


def _text(value: object, most: int = MAX_TEXT) -> str:
    if not isinstance(value, str):
        return ""
    return "".join(char if char.isprintable() or char == "\n" else " " for char in value[:most])


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53 else None


def _name(value: object) -> int | str | None:
    return _number(value) if isinstance(value, int) else _text(value, _MAX_WORD) or None
