"""A config while it is put together: values under their current spelling, and where each one was written."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

from allranks.config.explain import as_yaml, forms
from allranks.config.spellings import ATTENTION, current_spelling
from allranks.config.yaml_lines import KeyPath, parse_yaml
from allranks.errors import ConfigError


class ConfigSource:
    """Values from the file, then from the command line, which wins.

    `values` is nested as in the YAML; a null says nothing and is left out. `problems` are lines for the user.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.values: dict[str, Any] = {}
        self.problems: list[str] = []
        self._labels: dict[KeyPath, str] = {}

    def add_file(self, data: Mapping[str, Any], lines: Mapping[KeyPath, int]) -> None:
        """Add what a file says. `lines` may be empty, for a mapping that was never a file."""

        def label(written: KeyPath) -> str:
            # What was written as one text, such as `optim_args: a=1,b=2`, has lines only as a whole.
            parts = (written[:length] for length in range(len(written), 0, -1))
            line = next((lines[part] for part in parts if part in lines), None)
            return f"{self.source}:{line}: {dotted(written)}" if line else f"{self.source}: {dotted(written)}"

        for key, value in data.items():
            self._add((), key, value, (key,), label)

    def add_override(self, key: str, text: str, flag: str | None = None) -> None:
        """Replace one value by a YAML text given as an option, such as `fsdp_config.offload_params` by `true`.

        `flag` is the option that was written, where it is not named after the key.
        """
        flag = flag or flag_name(key)
        written: KeyPath = tuple(int(part) if part.isdecimal() else part for part in key.replace("-", "_").split("."))
        try:
            value = _value_of(written, text, flag)
        except ConfigError as error:
            self.problems.append(f"{flag}: {str(error).removeprefix(f'{flag}:1: ')}")
            return
        spelled = current_spelling(written, value)
        if spelled is None:
            switch = ATTENTION.get(str(written[0]))
            if switch is None:
                self._remove(written)
            elif self.values.get("attn_implementation") == switch:
                self._remove(("attn_implementation",))
            return
        path, value = spelled
        problem = self._cannot_hold(path)
        if problem:
            self.problems.append(f"{flag}: {problem}")
            return
        earlier, before = self._labels.get(path, ""), self._get(path)
        if earlier.startswith("--") and before != value:
            self.problems.append(self._contradiction(flag, value, path))
            return
        self._remove(path)
        if value is not None:
            for parent in range(1, len(path)):
                self._labels.setdefault(path[:parent], flag)
            self._add(path[:-1], path[-1], value, written, lambda below: _below(flag, below[len(written) :]))

    def replace(self, key: str, value: Any, label: Callable[[KeyPath], str]) -> None:
        """Put `value` in the place of a key's, with `label` telling where each part of it was written."""
        self._remove((key,))
        self._add((), key, value, (key,), label)

    def label(self, path: KeyPath) -> str:
        """Where a value was written: `config.yaml:12: learning_rate` or `--learning-rate`."""
        if path not in self._labels:  # a mapping that came to be by a key with another name, such as its part
            path = next((known for known in self._labels if known[: len(path)] == path), path)
        for length in range(len(path), 0, -1):
            found = self._labels.get(path[:length])
            if found:
                rest = path[length:]
                return _below(found, rest) if found.startswith("--") else dotted((found, *rest))
        return f"{self.source}: {dotted(path)}"

    def _add(
        self, parent: KeyPath, key: str | int, value: Any, written: KeyPath, label: Callable[[KeyPath], str]
    ) -> None:
        spelled = current_spelling((*parent, key), value)
        if spelled is None or (value is None and isinstance(key, str)):
            return
        path, value = spelled
        clash = self._cannot_hold(path)
        if clash:
            self.problems.append(f"{label(written)}: {clash}")
            return
        before = self._get(path)
        is_container = isinstance(value, dict | list)
        if before is not None and (type(before) is not type(value) if is_container else before != value):
            self.problems.append(self._contradiction(label(written), value, path))
            return
        if before is None:
            self._set(path, type(value)() if is_container else value)
            self._labels[path] = label(written)
        if is_container:
            for child, item in value.items() if isinstance(value, dict) else enumerate(value):
                self._add(path, child, item, (*written, child), label)

    def _contradiction(self, label: str, value: Any, path: KeyPath) -> str:
        return f"{label}: {as_yaml(value)} contradicts {self.label(path)}: {as_yaml(self._get(path))}; keep one of them"

    def _get(self, path: KeyPath) -> Any:
        value: Any = self.values
        for part in path:
            if isinstance(value, dict):
                value = value.get(part)
            elif isinstance(value, list) and isinstance(part, int) and part < len(value):
                value = value[part]
            else:
                return None
        return value

    def _set(self, path: KeyPath, leaf: Any) -> None:
        container: Any = self.values
        for part, following in itertools.pairwise(path):
            empty: Any = [] if isinstance(following, int) else {}
            if isinstance(container, list):
                if part == len(container):
                    container.append(empty)
                container = container[part]  # type: ignore[index]
            else:
                container = container.setdefault(part, empty)
        if isinstance(container, list) and path[-1] == len(container):
            container.append(leaf)
        else:
            container[path[-1]] = leaf

    def _remove(self, path: KeyPath) -> None:
        container = self._get(path[:-1])
        if isinstance(container, dict):
            container.pop(path[-1], None)
        for known in [known for known in self._labels if known[: len(path)] == path]:
            del self._labels[known]

    def _cannot_hold(self, path: KeyPath) -> str | None:
        """Why there is no place for a value at a path."""
        for length in range(1, len(path)):
            here, part = path[:length], path[length]
            holder = self._get(here)
            if isinstance(holder, list):
                if not isinstance(part, int):
                    return f"{dotted(here)} is a list; name an entry, as in {dotted((*here, 0, part))}"
                if part > len(holder):
                    return f"{dotted(here)} has {len(holder)} entries; the next is {dotted((*here, len(holder)))}"
            elif holder is None and isinstance(part, int) and part > 0:
                return f"{dotted(here)} is empty; its first entry is {dotted((*here, 0))}"
            elif holder is not None and (not isinstance(holder, dict) or isinstance(part, int)):
                return f"{dotted(here)} has no entry {part}"
        return None


def _value_of(written: KeyPath, text: str, flag: str) -> Any:
    """What an option's text says. A key that takes text takes it as it is, with `#` and `&`; `null` is no value.

    Where it takes a list or a mapping as well, text that is one of these is that.
    """
    spelled = current_spelling(written, text)
    taken = forms(spelled[0] if spelled else written)
    if "text" not in taken:
        return parse_yaml(text, flag)[0]
    if text == "null":
        return None
    try:
        value, _ = parse_yaml(text, flag)
    except ConfigError:
        return text
    is_other = ("list" in taken and isinstance(value, list)) or ("mapping" in taken and isinstance(value, dict))
    return value if is_other else text


def dotted(path: KeyPath) -> str:
    """A path as users write it: `datasets.0.path`."""
    return ".".join(str(part) for part in path)


def _below(flag: str, rest: KeyPath) -> str:
    """An option that names a part of what `flag` names."""
    return dotted((flag, *rest)).replace("_", "-") if rest else flag


def flag_name(key: str) -> str:
    """A key as an option: `--learning-rate`."""
    return "--" + key.replace("_", "-")
