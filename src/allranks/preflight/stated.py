"""What the nodes say must match between them, by the check that compares it."""

from __future__ import annotations

import re

from allranks.preflight.check import Subject

NOT_INSTALLED = "not installed"
PACKAGE, PYTHON, CODE = "package ", "python", "code of allranks"
_NCCL = ("nvidia-nccl", "rccl")
# `KEY: FILE` and what it is (model.files); a key of the config has no blank in it.
_FILE = re.compile(r"[a-z_]+: (?P<file>.+)", re.DOTALL)
_OF_TOKENIZERS = re.compile(r"(tokenizer|vocab|merges|special_tokens|added_tokens|chat_template)|.*\.(tiktoken|jinja)$")
_DATA = ("data fingerprint", "data: ")
MAJORITY = "Whoever deviates from more than half of the nodes is named; where there is no such majority, as with two, "
MAJORITY += "both values are told. "
"""What does not count, for every comparison."""


def kind_of(name: str) -> str:
    """Which check a field that must match belongs to."""
    if name in (PYTHON, CODE):
        return {PYTHON: "python", CODE: "code"}[name]
    if name.startswith(PACKAGE):
        return "nccl" if name.removeprefix(PACKAGE).startswith(_NCCL) else "packages"
    if name.startswith(_DATA):
        return "data"
    if (file := _FILE.fullmatch(name)) is not None:
        is_tokenizer = name.startswith("tokenizer") or _OF_TOKENIZERS.match(file["file"])
        return "tokenizer" if is_tokenizer else "model"
    return "config"


def fields_of(subject: Subject, kind: str) -> dict[str, dict[str, str] | None]:
    """Of what must match, the fields of one kind; None where a node did not say what it has.

    One that has nothing of a kind, of which others have something, did not read it: all have the same kinds of things.
    """
    tables = {
        node: {name: value for name, value in table.items() if kind_of(name) == kind}
        for node, table in subject.must_match.items()
    }
    nothing: dict[str, str] | None = None if any(tables.values()) else {}
    return {node: tables[node] or nothing if node in tables else None for node in subject.nodes}


def all_say(subject: Subject, name: str) -> dict[str, str | None] | None:
    """The field's value on every node, if all that reported have it."""
    values: dict[str, str | None] = {node: subject.must_match.get(node, {}).get(name) for node in subject.nodes}
    return values if subject.reported and all(values[node] is not None for node, _ in subject.reported) else None
