"""Read the commands of a shell script without running it: variables, arithmetic and quotes, nothing else."""

import ast
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from allranks.errors import ConfigError

_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)(\+?)=")
_NAME = re.compile(r"[A-Za-z_]\w*")
_LIST = re.compile(r'"\$\{([A-Za-z_]\w*)\[@\]\}"')
_SETTERS = ("export", "declare", "local", "readonly")
_BREAKS = "\n;&|"


@dataclass
class Command:
    """One simple command: the line it begins on, its words with the line of each, and variables set for it alone."""

    line: int
    words: list[str] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    variables: dict[str, list[str]] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        return {name: " ".join(values) for name, values in self.variables.items()}


def commands(text: str, source: str) -> list[Command]:
    """The simple commands of a script, in their order, with variables replaced by what the script gave them.

    A variable that the script does not set is kept as it is written (`$NAME`). Nothing is run: of command
    substitutions only `$(expr …)` has a value.
    """
    return _Reader(text, source).read()


class _Reader:
    def __init__(self, text: str, source: str) -> None:
        self.text, self.source = text, source
        self.at = 0
        self.variables: dict[str, list[str]] = {}
        self.exported: dict[str, list[str]] = {}
        self.found: list[Command] = []

    def read(self) -> list[Command]:
        command = Command(1)
        while self.at < len(self.text):
            character = self.text[self.at]
            if self.text.startswith("\\\n", self.at):
                self.at += 2
            elif character in " \t\r":
                self.at += 1
            elif character == "#":
                self._skip_line()
            elif character in _BREAKS:
                self.at += 1
                self._end(command)
                command = Command(self._line())
            elif redirection := re.compile(r"\d*(>>?|<<?<?)&?").match(self.text, self.at):
                self.at = redirection.end()
                self._blanks()
                self._word()  # a file, which is no argument
            else:
                self._add(command)
        self._end(command)
        return self.found

    def _add(self, command: Command) -> None:
        """The next word: a variable for this command, or one of its words."""
        line = self._line()
        assigned = _ASSIGNMENT.match(self.text, self.at)
        if assigned and (not command.words or command.words[0] in _SETTERS):
            self.at = assigned.end()
            name, adds = assigned[1], bool(assigned[2])
            values = self._array() if self.text.startswith("(", self.at) else [" ".join(self._word())]
            if adds:
                values = [*self.variables.get(name, []), *values]
            command.variables[name] = values
        else:
            words = self._word()
            command.words += words
            command.lines += [line] * len(words)

    def _end(self, command: Command) -> None:
        if not command.words or command.words[0] in _SETTERS:
            self.variables |= command.variables
            self.exported |= command.variables if command.words[:1] == ["export"] else {}
        else:
            command.variables = self.exported | command.variables
            self.found.append(command)

    def _array(self) -> list[str]:
        self.at += 1
        values: list[str] = []
        while self.at < len(self.text) and self.text[self.at] != ")":
            if self.text[self.at] == "#":
                self._skip_line()
            elif self.text[self.at].isspace() or self.text.startswith("\\\n", self.at):
                self.at += 1 if self.text[self.at].isspace() else 2
            else:
                values += self._word(end=")")
        self.at += 1
        return values

    def _word(self, end: str = "") -> list[str]:
        """The words that one written word becomes: a list of values without quotes becomes several."""
        parts: list[str] = [""]
        was_quoted = False
        while self.at < len(self.text):
            character = self.text[self.at]
            if self.text.startswith("\\\n", self.at):
                self.at += 2
            elif character.isspace() or character in _BREAKS + end or (character in "<>" and not was_quoted):
                break
            elif character == "\\":
                parts[-1] += self.text[self.at + 1 : self.at + 2]
                self.at += 2
            elif character == "'":
                parts[-1] += self._until("'")
                was_quoted = True
            elif whole_list := _LIST.match(self.text, self.at):
                self.at = whole_list.end()
                values = self.variables.get(whole_list[1], [])
                parts[-1] += values[0] if values else ""
                parts += values[1:]
                was_quoted = was_quoted or bool(values)
            elif character == '"':
                parts[-1] += self._double_quoted()
                was_quoted = True
            elif character in "$`":
                values = [word for value in self._value() for word in value.split()]
                parts[-1] += values[0] if values else ""
                parts += values[1:]
            else:
                parts[-1] += character
                self.at += 1
        return parts if was_quoted or parts != [""] else []

    def _double_quoted(self) -> str:
        self.at += 1
        text = ""
        while self.at < len(self.text) and self.text[self.at] != '"':
            character = self.text[self.at]
            if character == "\\" and self.text[self.at + 1 : self.at + 2] in ('"', "\\", "$", "`", "\n"):
                text += self.text[self.at + 1].strip("\n")
                self.at += 2
            elif character in "$`":
                text += " ".join(self._value())
            else:
                text += character
                self.at += 1
        if self.at >= len(self.text):
            raise ConfigError(f"{self.source}: a quote is opened and never closed")
        self.at += 1
        return text

    def _value(self) -> list[str]:
        """What stands for `$NAME`, `${NAME}`, `${NAME:-word}`, `${NAME[@]}`, `$((sum))` and `$(expr sum)`."""
        written = self.at
        if self.text.startswith("$((", self.at):
            return [self._sum(self._inside("$((", "))"))]
        if self.text.startswith("$(", self.at) or self.text[self.at] == "`":
            inside = self._inside("$(", ")") if self.text[self.at] == "$" else self._until("`")
            words = inside.split()
            if words[:1] == ["expr"]:
                return [self._sum(" ".join(words[1:]).replace("\\", ""))]
            return [self.text[written : self.at]]
        if self.text.startswith("${", self.at):
            name, default = self._braced()
        else:
            match = _NAME.match(self.text, self.at + 1)
            self.at = match.end() if match else self.at + 2
            name, default = (match[0] if match else ""), None
        if name in self.variables:
            return self.variables[name]
        return [default if default is not None else self.text[written : self.at]]

    def _braced(self) -> tuple[str, str | None]:
        inside = self._inside("${", "}")
        match = re.fullmatch(r"(\w+)(?:\[@\]|\[\*\])?(?::?[-=](.*))?", inside, re.DOTALL)
        if match is None:
            return "", None
        default = match[2]
        return match[1], default if default is None else _Reader(f'"{default}"', self.source)._with(self.variables)

    def _with(self, variables: dict[str, list[str]]) -> str:
        self.variables = variables
        return " ".join(self._word())

    def _sum(self, text: str) -> str:
        def value(match: re.Match[str]) -> str:
            name = match[1]
            return " ".join(self.variables.get(name, [match[0]]))

        replaced = re.sub(r"\$?\{?([A-Za-z_]\w*)\}?", value, text)
        number = _evaluated(replaced)
        return f"$(({text}))" if number is None else str(number)

    def _inside(self, opening: str, closing: str) -> str:
        start = self.at + len(opening)
        depth, at = 0, start
        while at < len(self.text):
            if depth == 0 and self.text.startswith(closing, at):
                self.at = at + len(closing)
                return self.text[start:at]
            depth += {opening[-1]: 1, closing[-1]: -1}.get(self.text[at], 0)
            at += 1
        raise ConfigError(f"{self.source}:{self._line()}: {opening} is opened and never closed")

    def _until(self, quote: str) -> str:
        end = self.text.find(quote, self.at + 1)
        if end < 0:
            raise ConfigError(f"{self.source}:{self._line()}: a quote is opened and never closed")
        inside = self.text[self.at + 1 : end]
        self.at = end + 1
        return inside

    def _blanks(self) -> None:
        while self.at < len(self.text) and self.text[self.at] in " \t":
            self.at += 1

    def _skip_line(self) -> None:
        end = self.text.find("\n", self.at)
        self.at = len(self.text) if end < 0 else end

    def _line(self) -> int:
        return self.text.count("\n", 0, self.at) + 1


_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.floordiv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


def _evaluated(text: str) -> int | None:
    """The value of a sum of whole numbers; None for anything else."""

    def value(node: ast.expr) -> int:
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](value(node.left), value(node.right))
        raise ValueError(node)

    try:
        return value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None
