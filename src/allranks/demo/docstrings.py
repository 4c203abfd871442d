"""Question/answer pairs from the documentation strings of this Python installation's own standard library.

The sources are parsed, never imported: some modules of the library act when they are imported (`antigravity`, `this`).
"""

import ast
import inspect
import re
import sysconfig
import zlib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from allranks.errors import DataError

# Parts of the library that are programs, tests or third-party code instead of documentation.
_SKIPPED_FOLDERS = {"test", "tests", "idlelib", "site-packages", "dist-packages", "lib2to3", "turtledemo", "ensurepip"}

# What people call these modules, where the file that holds them has another name.
_PUBLIC_NAMES = {"posixpath": "os.path", "_pydecimal": "decimal", "_pyio": "io", "_pydatetime": "datetime"}

_QUESTIONS = {
    "module": ("What is the module {name} for?", "What is {name}?", "Tell me about the module {name}."),
    "class": ("What is {name}?", "What does the class {name} do?", "What is the class {name} for?"),
    "function": ("What does {name} do?", "What is {name} for?", "Explain {name}."),
}

# An answer longer than this is cut after its last whole sentence: short answers are learnt in a minute on a laptop.
_MAX_ANSWER_CHARACTERS = 320
_MIN_ANSWER_CHARACTERS = 8

# Older documentation strings repeat the signature before they say anything: `getopt(args, options) -> opts, args`.
_SIGNATURE = re.compile(r"[\w.]+\([^)]*\)( ?->.*)?")


def question_answer_pairs(*, phrasings: int = 2, stdlib: Path | None = None) -> list[tuple[str, str]]:
    """(question, answer) pairs over every documented public module, class, method and function of the library.

    The same installation always gives the same list: files in sorted order, questions chosen by a checksum of the name.
    `phrasings` is how many different questions are asked about each name. `stdlib` is the folder to read (default: this
    installation's). Raises DataError where the installation carries no Python sources.
    """
    folder = stdlib or Path(sysconfig.get_paths()["stdlib"])
    pairs = []
    for name, (kind, doc) in _documented(folder).items():
        answer = _first_paragraph(doc)
        if len(answer) < _MIN_ANSWER_CHARACTERS or _SIGNATURE.fullmatch(answer):
            continue
        questions = _QUESTIONS[kind]
        first = zlib.crc32(name.encode())
        for offset in range(min(phrasings, len(questions))):
            pairs.append((questions[(first + offset) % len(questions)].format(name=name), answer))
    if not pairs:
        raise DataError(
            f"no documentation strings found under {folder}: this Python carries its standard library without sources. "
            "Run the demo with a Python that has them (python.org, a distribution's full package, uv, conda)."
        )
    return pairs


@cache  # seconds of parsing, the same for each folder of files
def _documented(folder: Path) -> Mapping[str, tuple[str, str]]:
    """Kind and documentation string by dotted name."""
    documented: dict[str, tuple[str, str]] = {}
    for path in _source_files(folder):
        for name, kind, doc in _documented_names(path, folder):
            documented.setdefault(name, (kind, doc))
    return documented


def _source_files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*.py")):
        if not _SKIPPED_FOLDERS.intersection(path.relative_to(folder).parts[:-1]):
            yield path


def _documented_names(path: Path, folder: Path) -> Iterator[tuple[str, str, str]]:
    """(dotted name, kind, documentation string) of what one file documents, public names only."""
    parts = list(path.relative_to(folder).with_suffix("").parts)
    if parts[-1] == "__init__":
        parts.pop()
    module = _PUBLIC_NAMES.get(".".join(parts), ".".join(parts))
    if any(part.startswith("_") for part in module.split(".")):
        return
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # the library keeps a few files that are wrong on purpose
        return
    if doc := ast.get_docstring(tree):
        yield module, "module", doc
    yield from _documented_members(tree, module)


def _documented_members(node: ast.Module | ast.ClassDef, prefix: str) -> Iterator[tuple[str, str, str]]:
    for child in node.body:
        if not isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or child.name.startswith("_"):
            continue
        name = f"{prefix}.{child.name}"
        if doc := ast.get_docstring(child):
            yield name, "class" if isinstance(child, ast.ClassDef) else "function", doc
        if isinstance(child, ast.ClassDef):
            yield from _documented_members(child, name)


def _first_paragraph(doc: str) -> str:
    """The first paragraph of a documentation string on one line, cut after a whole sentence where it is long."""
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", inspect.cleandoc(doc))]
    if len(paragraphs) > 1 and _SIGNATURE.fullmatch(paragraphs[0]):
        paragraphs.pop(0)
    text = paragraphs[0]
    if len(text) <= _MAX_ANSWER_CHARACTERS:
        return text
    sentence_end = text.rfind(". ", 0, _MAX_ANSWER_CHARACTERS)
    return text[: sentence_end + 1] if sentence_end > 0 else ""
