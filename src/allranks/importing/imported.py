"""What an import gives, and how the keys of another trainer are taken."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from allranks.config.yaml_lines import parse_yaml
from allranks.errors import ConfigError

_TRUE, _FALSE = ("true", "yes", "t", "y", "1"), ("false", "no", "f", "n", "0")
_NOTHING = ("", "none", "null")


@dataclass
class Imported:
    """The config that another trainer's file stands for.

    `lost`: a line for each key that could not be carried over. `notes`: what is said or done otherwise here.
    """

    tool: str
    source: str
    flat: dict[str, Any] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def set(self, key: str, value: Any) -> None:
        """Set a key, where there is a value for it; `a.b` is key b of the mapping a."""
        if value is None:
            return
        *above, last = key.split(".")
        holder = self.flat
        for name in above:
            holder = holder.setdefault(name, {})
        holder[last] = value

    def default(self, key: str, value: Any) -> None:
        """What the other trainer does without a word, where nothing else was said."""
        self.flat.setdefault(key, value)


@dataclass
class Foreign:
    """Keys of another trainer with their values. Each is taken once; what is left was understood by nobody.

    `places` says where a key was written. `folders`: where files that are named may lie. `num_ranks`, `num_nodes`: what
    the command starts, where it says so.
    """

    tool: str
    source: str
    values: dict[str, Any]
    places: dict[str, str]
    folders: list[Path]
    num_ranks: int | None = None
    num_nodes: int | None = None
    command: str = ""

    def label(self, key: str) -> str:
        return f"{self.places.get(key, self.source)}: {key}"

    def given(self, key: str) -> bool:
        """Whether there is a value."""
        return not _is_nothing(self.values.get(key))

    def take(self, key: str) -> Any:
        """The value as it was written, or None."""
        value = self.values.pop(key, None)
        return None if _is_nothing(value) else value

    def pass_over(self, without_effect: Iterable[str], neutral: Mapping[str, str], imported: Imported) -> None:
        """Take keys that change nothing, and those that change nothing at one value, in lower case; at any other they
        are told as lost."""
        for key in without_effect:
            self.take(key)
        for key, value in neutral.items():
            label, given = self.label(key), self.take(key)
            if given is not None and str(given).lower() != value:
                imported.lost.append(f"{label}: {given}: not carried over")

    def text(self, key: str) -> str | None:
        value = self.take(key)
        if value is None:
            return None
        if isinstance(value, dict):
            raise self.wrong(key, "a text", value)
        return ",".join(map(str, value)) if isinstance(value, list) else str(value)

    def words(self, key: str) -> list[str]:
        """Several words: a list, or one text with spaces or commas."""
        value = self.take(key)
        if value is None:
            return []
        parts = value if isinstance(value, list) else [value]
        return [word for part in parts for word in str(part).replace(",", " ").split()]

    def number(self, key: str) -> int | float | None:
        value = self.take(key)
        if isinstance(value, str):
            value = parse_yaml(value, self.source)[0]
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise self.wrong(key, "a number", value)
        return value

    def whole(self, key: str) -> int | None:
        value = self.number(key)
        if value is not None and value != int(value):
            raise self.wrong(key, "a whole number", value)
        return None if value is None else int(value)

    def switch(self, key: str) -> bool | None:
        value = self.take(key)
        if value is None or isinstance(value, bool):
            return value
        word = str(value).lower()
        if word not in (*_TRUE, *_FALSE):
            raise self.wrong(key, "true or false", value)
        return word in _TRUE

    def mapping(self, key: str) -> dict[str, Any] | None:
        """A mapping, written as one, as JSON, or as the path of a JSON file."""
        value = self.take(key)
        if value is None or isinstance(value, dict):
            return value
        text = str(value)
        if not text.lstrip().startswith("{"):
            path = self.find(text)
            if path is None:
                raise self.wrong(key, "a JSON object, or the path of a file with one", value)
            text = path.read_text(encoding="utf-8")
        try:
            found = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"{self.label(key)}: not valid JSON: {error}") from None
        if not isinstance(found, dict):
            raise self.wrong(key, "a JSON object", found)
        return found

    def find(self, name: str) -> Path | None:
        """An existing file or folder of this name: from here, or from the folders above the file."""
        path = Path(name).expanduser()
        candidates = [path] if path.is_absolute() else [path, *(folder / path for folder in self.folders)]
        return next((candidate for candidate in candidates if candidate.exists()), None)

    def wrong(self, key: str, expected: str, value: Any) -> ConfigError:
        return ConfigError(f"{self.label(key)}: expected {expected}, got {value!r}")


def asks_for_nothing(value: Any) -> bool:
    """Whether a value switches nothing on."""
    return value in (False, None, 0, -1, [], {}) or str(value).strip().lower() in (*_FALSE, *_NOTHING, "-1", "0.0")


def refused(foreign: Foreign, reasons: Mapping[str, str]) -> None:
    """Raise for a key that asks for another kind of training: a config without it would train something else."""
    for key, why in reasons.items():
        value = foreign.take(key)
        if not asks_for_nothing(value):
            raise ConfigError(f"{foreign.label(key)}: {why}; nothing was imported")


def _is_nothing(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value.strip().lower() in _NOTHING)
