"""Text of a run's files without secrets: by name, by shape, and what any of the files calls a secret in all of them."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

from allranks.bundle.broken_lines import Joined
from allranks.secret_names import is_secret_name
from allranks.secrets import REMOVED, known_secrets, without_secret_words, without_secrets

_SHORTEST = 8  # signs; shorter ones are removed where their name stands, and not wherever they occur
_SHORTEST_WORD = 16  # of small letters alone: `required` after `password:` is no password
_ESCAPES = re.compile(r"\x1b(?:\[[0-9;:?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|.)")
# NAME=VALUE, NAME: VALUE, 'NAME': b"VALUE", --name VALUE, "--name", "VALUE": also within JSON within a log.
_ASSIGNED = re.compile(
    r"""(?<![\w.-])(?P<name>[\w.-]+)[\\"'\]]*[ \t]*(?::=|=>|=|:)[ \t]*[bBrRuUfF]{0,2}[\\]*"""
    r"""(?:"(?P<double>(?:[^"\\\n]|\\.){1,8192})"|'(?P<single>(?:[^'\\\n]|\\.){1,8192})'|(?P<bare>[^\s"']{1,8192}))"""
)
_OPTION = re.compile(
    r"""(?<![\w.-])(?P<name>--?[A-Za-z][\w.-]*)(?P<between>["']?,?[ \t]+["']?)(?P<value>[^\s"',-][^\s"',]*)"""
)
# netrc: `login me password VALUE`.
_NETRC = re.compile(r"(?i)\b(?P<name>password|passwd|passphrase)(?P<between>[ \t]+)(?P<value>[^\s:=]\S*)")
_HEADS = re.compile(r"(?i)\b(?:bearer|basic|token)[ \t]+(?P<value>[\w.~+/=-]{16,})")
_BACKSLASHED = re.compile(r"\\(u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|.)")
# Of a private key whose beginning was cut off with the beginning of the text.
_END_OF_KEY = re.compile(r"\A(?:(?!-----BEGIN ).)*?-----END [A-Z ]*PRIVATE KEY-----", re.DOTALL)


class Cleaner:
    """Learns from all texts first, then cleans each: what one file names as a secret is none in another."""

    def __init__(self, env: Mapping[str, str] = os.environ) -> None:
        self._known: set[str] = set()
        self._ordered: tuple[str, ...] = ()
        self.learn_values(known_secrets(env))

    def learn_values(self, secrets: Iterable[str]) -> None:
        """Take in values that are known to be secrets."""
        for value in secrets:
            self._learn(value)

    def learn(self, text: str) -> None:
        """Take in what a text calls a secret, as assignments or as JSON or YAML."""
        text = without_escapes(text)
        once = _unescaped(text)
        for view in dict.fromkeys((text, once, _unescaped(once))):  # JSON within JSON within a log
            self._learn_assigned(view)
        for value in _structures(text):
            for secret in _named_secrets(value):
                self._learn(secret)
        for secret in Joined(text).secrets():
            self._learn_word(secret)

    def clean(self, text: str) -> str:
        """`text` without what is a secret; what is no text for a terminal goes as well."""
        if len(self._ordered) != len(self._known):
            self._ordered = tuple(sorted(self._known, key=lambda one: (-len(one), one)))
        text = without_escapes(text)
        if "PRIVATE KEY-----" in text:
            text = _END_OF_KEY.sub(REMOVED, text)
        text = Joined(text).without(self._ordered)
        for secret in self._ordered:
            if secret in text:
                text = text.replace(secret, REMOVED)
        text = without_secrets(text)
        return "".join(_clean_line(line) for line in text.splitlines(keepends=True))

    def _learn_assigned(self, text: str) -> None:
        at = 0
        while (found := _ASSIGNED.search(text, at)) is not None:
            at = found.end("name")  # what is assigned may hold an assignment
            if is_secret_name(found["name"]):
                value = found["double"] or found["single"] or found["bare"]
                self._learn_word(value)
                self._learn_word(re.split(r"[,;&})\]]", value)[0])
        for pattern in (_OPTION, _NETRC):
            for found in pattern.finditer(text):
                if is_secret_name(found["name"].lstrip("-")):
                    self._learn_word(found["value"])
        for found in _HEADS.finditer(text):
            self._learn_word(found["value"])

    def _learn_word(self, value: str) -> None:
        if not (value.isalpha() and value.islower()) or len(value) >= _SHORTEST_WORD:
            for form in {value, plain := _unescaped(value), _unescaped(plain)}:
                self._learn(form)

    def _learn(self, value: str) -> None:
        for part in {value, value.strip(), *value.splitlines()}:
            if len(part) < _SHORTEST or part.startswith(("/", "~", "./", "${", REMOVED)) or REMOVED in part:
                continue
            if part.isdigit() and len(part) < 12:  # a count of tokens
                continue
            escaped = json.dumps(part)[1:-1]
            self._known |= {part, escaped, json.dumps(escaped)[1:-1], json.dumps(part, ensure_ascii=False)[1:-1]}
            self._known |= {repr(part)[1:-1], repr(escaped)[1:-1], quote(part, safe="", errors="replace")}
            self._known.add(base64.b64encode(part.encode("utf-8", "replace")).decode())


def without_escapes(text: str) -> str:
    """Colours of terminals away, which may stand within a secret; so is what would command a reader's terminal."""
    plain = _ESCAPES.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    return "\n".join(one if one.isprintable() else _printable(one) for one in plain.split("\n"))


def _printable(line: str) -> str:
    return "".join(char for char in line if char == "\t" or char.isprintable())


def _unescaped(text: str) -> str:
    """One level of JSON's and Python's backslashes away."""
    return _BACKSLASHED.sub(_unescape, text) if "\\" in text else text


def _unescape(found: re.Match[str]) -> str:
    sign = found[1]
    if len(sign) > 1:
        return chr(int(sign[1:], 16))
    return {"n": "\n", "t": "\t", "r": "\n"}.get(sign, sign)


def _clean_line(line: str) -> str:
    if not line.strip():
        return line
    line = _OPTION.sub(_without_value, line)
    line = _NETRC.sub(_without_value, line)
    body = line.rstrip("\n")
    body = _ASSIGNED.sub(_without_assigned, body)
    return without_secret_words([body])[0] + line[len(line.rstrip("\n")) :]


def _without_value(found: re.Match[str]) -> str:
    return f"{found['name']}{found['between']}{REMOVED}" if is_secret_name(found["name"].lstrip("-")) else found[0]


def _without_assigned(found: re.Match[str]) -> str:
    value = found["double"] or found["single"] or found["bare"]
    if not is_secret_name(found["name"]) or value in ("null", "None", "true", "false", "{", "[", "|", ">"):
        return found[0]
    return (
        found[0][: len(found[0]) - len(value) - (found["bare"] is None)]
        + REMOVED
        + ("" if found["bare"] else found[0][-1])
    )


def _structures(text: str) -> Iterator[Any]:
    """What a text is as JSON, as lines of JSON, or as YAML."""
    start = text.lstrip()[:1]
    try:
        yield json.loads(text)
        return
    except (ValueError, RecursionError):
        pass
    if start == "{":
        for line in text.splitlines():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError):
                continue
        return
    if len(text) < 2**18 and ":" in text[:2000]:
        import yaml

        try:
            yield yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        except (yaml.YAMLError, ValueError, RecursionError, TypeError):
            return


def _named_secrets(value: Any, depth: int = 0) -> Iterator[str]:
    if depth > 40:
        return
    if isinstance(value, Mapping):
        for key, item in value.items():
            if is_secret_name(str(key)):
                yield from _leaves(item)
            else:
                yield from _named_secrets(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            yield from _named_secrets(item, depth + 1)


def _leaves(value: Any, depth: int = 0) -> Iterable[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, int) and not isinstance(value, bool):
        return [str(value)]
    if depth > 40:
        return []
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return [leaf for item in items for leaf in _leaves(item, depth + 1)]
