"""The page docs/reference.md, made from the code (`python -m allranks.reference`)."""

import ast
import inspect
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import fields
from types import ModuleType

from allranks import exit_codes
from allranks.checkpoint.state import STATE_FILE, RunState
from allranks.config.sections.section import key_help
from allranks.observe import RunDir
from allranks.observe.events import KINDS, Event

INTRODUCTION = """\
# Reference: exit codes, files of a run, events, state of a checkpoint

Made from the code, by `python -m allranks.reference > docs/reference.md`. Keys of the config are in
[Config](config.md), names for Python in [From Python](python.md).
"""
_EVENTS = """
A rank appends to its file one JSON object a line, which is in the file at once. The key `kind` says which of the kinds
below it is; a field without a value (null) is left out, and numbers that are not finite are the texts `"nan"`, `"inf"`,
`"-inf"`. A line that a kill or a power cut left torn is none: pass over it. Later versions may add kinds and fields.
`allranks.read_events` reads all that into the class that is named.

Fields of every event:
"""
_STATE = f"""
`{STATE_FILE}` in a checkpoint's folder: JSON, which every later version reads. `version` is raised only when a key gets
another meaning.
"""


def markdown() -> str:
    """The page."""
    parts = [INTRODUCTION, "## Exit codes\n", _table(("code", "means"), _exit_codes()), _OF_A_RUN]
    parts += ["## Run directory\n", _table(("path in `output_dir`", "is"), _run_directory())]
    parts += ["## Events\n", _EVENTS.lstrip("\n"), _table(_FIELDS, _fields(Event, (), but=("other",)))]
    head = [each.name for each in fields(Event)]
    for kind, event in KINDS.items():
        parts += [f"### {kind}\n", f"`{event.__name__}`: {_one_line(event)}\n"]
        parts.append(_table(_FIELDS, _fields(event, head)))
    parts += ["## State of a checkpoint\n", _STATE.lstrip("\n"), _table(_FIELDS, _fields(RunState, (), but=("other",)))]
    return "\n".join(parts)


_FIELDS = ("field", "type", "is")
_OF_A_RUN = "`allranks run` ends with the code of the rank that failed first ([Run another trainer](run.md)).\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def _exit_codes() -> list[tuple[str, str]]:
    return [(str(getattr(exit_codes, name)), text) for name, text in _sentences(exit_codes).items()]


def _sentences(module: ModuleType) -> dict[str, str]:
    """Constant -> the sentence below it."""
    body = ast.parse(inspect.getsource(module)).body
    found = {}
    for statement, following in itertools.pairwise(body):
        match statement, following:
            case ast.Assign(targets=[ast.Name(id=name)]), ast.Expr(value=ast.Constant(value=str(sentence))):
                found[name] = sentence
    return found


def _run_directory() -> list[tuple[str, str]]:
    """Every path that `RunDir` knows, of rank 3 on node 0 and step 100."""
    example = {"rank": 3, "node_rank": 0, "step": 100}
    run, rows = RunDir("."), []
    for name, member in vars(RunDir).items():
        if isinstance(member, property):
            path, text = getattr(run, name), inspect.getdoc(member)
        elif inspect.isfunction(member) and not name.startswith(("_", "all_")):
            path = member(run, *(example[each] for each in list(inspect.signature(member).parameters)[1:]))
            text = inspect.getdoc(member)
        else:
            continue
        rows.append((f"`{path}`", " ".join((text or "").split())))
    return sorted(rows)


def _fields(kind: type, head: Sequence[str], but: Sequence[str] = ()) -> list[tuple[str, str, str]]:
    sentences = key_help(kind)
    return [
        (f"`{each.name}`", _type(str(each.type)), " ".join(sentences.get(each.name, "").split()))
        for each in fields(kind)
        if each.name not in (*head, *but)
    ]


def _type(annotation: str) -> str:
    """As JSON says it."""
    names = {
        "int": "whole number",
        "float": "number",
        "str": "text",
        "int | str": "whole number or text",
        "bool": "true or false",
        "Mapping[str, Any]": "object",
        "tuple[int, ...]": "list of whole numbers",
        "tuple[str, ...]": "list of texts",
        "tuple[Mapping[str, Any], ...]": "list of objects",
    }
    optional = annotation.endswith(" | None")
    return names[annotation.removesuffix(" | None")] + (", or null" if optional else "")


def _one_line(kind: type) -> str:
    return " ".join((inspect.getdoc(kind) or "").split())


if __name__ == "__main__":
    print(markdown(), end="")
