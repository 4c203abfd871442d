"""Read YAML and remember the line of every key."""

import re
from pathlib import Path
from typing import Any

import yaml

from allranks.errors import ConfigError

KeyPath = tuple[str | int, ...]
"""Where a value is, such as `("datasets", 0, "path")`."""

# Aliases can make a small file expand without end; no config comes near this number of values.
MAX_VALUES = 100_000


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, but `1e-5` is a number and `2024-01-01` is text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_yaml(path: str | Path) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    """The mapping in a YAML file, and the line (from 1) of each key and list item, by its path.

    Raises ConfigError for a file that cannot be read, is not UTF-8, is not YAML, is empty, does not hold a mapping at
    the top, or gives a key twice.
    """
    text = _read_text(Path(path))
    data, lines = parse_yaml(text, str(path))
    if data is None:
        raise ConfigError(f"{path}: the config is empty; it needs at least base_model, datasets and learning_rate")
    if not isinstance(data, dict):
        raise ConfigError(f"{path}:1: expected `key: value` lines at the top, found {_kind(data)}")
    return data, lines


def parse_yaml(text: str, source: str) -> tuple[Any, dict[KeyPath, int]]:
    """The value in a YAML text, and the lines of its keys and items. `source` names the text in errors."""
    loader = None
    lines: dict[KeyPath, int] = {}
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        value = None if node is None else _Builder(loader, source, lines).build(node, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        what = ": ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(f"{source}:{line}: not valid YAML: {what}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(
            f"{source}:{line}: not valid YAML: the character {chr(error.character)!r} is not allowed"
        ) from None
    except RecursionError:
        raise ConfigError(f"{source}: nested too deeply") from None
    finally:
        if loader is not None:
            loader.dispose()
    return value, lines


class _Builder:
    """Turns YAML nodes into Python values, noting lines on the way."""

    def __init__(self, loader: _Loader, source: str, lines: dict[KeyPath, int]) -> None:
        self.loader, self.source, self.lines = loader, source, lines
        self.open_nodes: set[int] = set()
        self.flattened: set[int] = set()
        self.num_values = 0

    def build(self, node: yaml.Node, path: KeyPath) -> Any:
        self.num_values += 1
        if id(node) in self.open_nodes:
            raise self._error(node, "an alias refers to the value that it is part of")
        if self.num_values > MAX_VALUES:
            raise self._error(node, f"more than {MAX_VALUES} values, counting aliases each time")
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        self.open_nodes.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, path)
            return self._sequence(node, path)
        finally:
            self.open_nodes.discard(id(node))

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        try:
            value = self.loader.construct_object(node, deep=True)
        except (ValueError, KeyError, AttributeError):  # `!!int abc` and the like, each with its own exception
            raise self._error(node, f"{node.value[:40]!r} is not what its tag {node.tag} says") from None
        if not isinstance(value, str | bool | int | float | None):
            raise self._error(node, f"the tag {node.tag} is not allowed")
        return value

    def _sequence(self, node: yaml.Node, path: KeyPath) -> list[Any]:
        if node.tag != "tag:yaml.org,2002:seq":
            raise self._error(node, f"the tag {node.tag} is not allowed")
        items = []
        for index, child in enumerate(node.value):
            self.lines[(*path, index)] = child.start_mark.line + 1
            items.append(self.build(child, (*path, index)))
        return items

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        if node.tag != "tag:yaml.org,2002:map":
            raise self._error(node, f"the tag {node.tag} is not allowed")
        if id(node) not in self.flattened:  # a mapping may come again, through an alias
            self.flattened.add(id(node))
            self._refuse_duplicates(node, nested=bool(path))
            # Puts what `<<: *anchor` brings in before the mapping's own keys, which therefore win.
            self.loader.flatten_mapping(node)
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = self._key(key_node, nested=bool(path))
            self.lines[(*path, key)] = key_node.start_mark.line + 1
            result[key] = self.build(value_node, (*path, key))
        return result

    def _refuse_duplicates(self, node: yaml.MappingNode, *, nested: bool) -> None:
        first_lines: dict[str, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self._key(key_node, nested=nested)
            if key in first_lines:
                raise self._error(key_node, f"{key}: given twice; it is on line {first_lines[key]} too")
            first_lines[key] = key_node.start_mark.line + 1

    def _key(self, node: yaml.Node, *, nested: bool) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise self._error(node, "a key must be text")
        if node.tag in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:value"):
            return node.value
        if (
            nested
            and node.tag == "tag:yaml.org,2002:int"
            and (node.value == "0" or re.fullmatch(r"[1-9]\d*", node.value))
        ):
            return node.value  # the number of a token, in `added_tokens_overrides`
        raise self._error(node, f"the key {node.value or 'null'} is not read as text by YAML; put it in quotes")

    def _error(self, node: yaml.Node, what: str) -> ConfigError:
        return ConfigError(f"{self.source}:{node.start_mark.line + 1}: {what}")


def _read_text(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give the path of a YAML config") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a directory; give the path of a YAML config") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path}:{line}: not UTF-8 text (byte 0x{raw[error.start]:02x}); save the file as UTF-8"
        ) from None


def _kind(value: Any) -> str:
    return "a list" if isinstance(value, list) else f"only the value {value!r}"
