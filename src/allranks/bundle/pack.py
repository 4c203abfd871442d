"""The bundle itself: the files of a run that is on this disk, cleaned, with a list of what is in it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
import os
import platform
import socket
import tarfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, BinaryIO

from allranks import durable
from allranks.bundle.choose import Chosen, choose
from allranks.bundle.clean import Cleaner
from allranks.bundle.of_node import OfNode
from allranks.listing import printable
from allranks.observe import RunDir
from allranks.secrets import REMOVED

CONTENTS = "CONTENTS"
_LONGEST_LINE = 2**13
_PACKAGES = ("allranks", "torch", "transformers", "peft", "datasets", "accelerate", "deepspeed", "ray", "numpy")


@dataclass(frozen=True)
class Bundle:
    """A bundle that has been written: where, if it is a file, and its list, as it is in it, too."""

    path: Path | None
    contents: str


def pack(
    run: RunDir,
    target: Path | BinaryIO,
    *,
    more: Mapping[str, str] | None = None,
    env: Mapping[str, str] = os.environ,
    elsewhere: Sequence[OfNode] = (),
) -> Bundle:
    """Write the bundle of `run` to `target`, a .tar.gz; to a file at once or not at all. `more` are texts by name to be
    in it, `elsewhere` what other nodes have: what any of them calls a secret is removed from all.

    Raises OSError where `target` cannot be written.
    """
    chosen = [_short_lines(one) for one in choose(run)]
    elsewhere = _without_what_is_here(elsewhere, chosen)
    for node in elsewhere:
        chosen += [replace(one, path=f"from-{node.name}/{one.path}") for one in node.chosen]
    texts = {"versions.json": _versions(), **(more or {})}
    cleaner = Cleaner(env)
    for node in elsewhere:
        cleaner.learn_values(node.secrets)
    for text in (*texts.values(), *(one.text for one in chosen)):
        cleaner.learn(text)
    files: dict[str, bytes] = {}
    listed = []
    for name, text in texts.items():
        files[name] = cleaner.clean(text).encode("utf-8", "replace")
        listed.append(_listed(name, len(files[name]), "made for this bundle"))
    for one in chosen:
        name = _name(cleaner, one.path, files)
        if one.left_out:
            listed.append(f"{'-':>10}  {name}: left out: {one.left_out}")
            continue
        text, note = _end(cleaner, one)
        files[name] = text.encode("utf-8", "replace")
        removed = text.count(REMOVED)
        notes = [note, f"{removed:,} secrets removed" if removed else ""]
        listed.append(_listed(name, len(files[name]), "; ".join(part for part in notes if part)))
    head = [
        f"of the run in {cleaner.clean(run.path.name)}, made on {socket.gethostname()} at {_now()}",
        *(cleaner.clean(line) for line in _nodes_told(run, elsewhere)),
        f"{REMOVED} stands where a secret was; look through it all the same before you hand it on",
    ]
    contents = printable("\n".join([*head, "", *listed]), 10**8) + "\n"
    entries = {CONTENTS: contents.encode("utf-8", "replace"), **files}
    if isinstance(target, Path):
        _write(target, cleaner.clean(_stem(target.name)), entries)
    else:
        _archive(target, cleaner.clean(f"bundle-{run.path.resolve().name}"), entries)
    return Bundle(target if isinstance(target, Path) else None, contents)


def _without_what_is_here(elsewhere: Sequence[OfNode], chosen: Sequence[Chosen]) -> list[OfNode]:
    """On a disk that nodes share, they have the same files. Long lines are shortened, as in those here."""
    here = {(one.path, one.text) for one in chosen}
    short = ((node, [_short_lines(one) for one in node.chosen]) for node in elsewhere)
    return [replace(node, chosen=tuple(one for one in of if (one.path, one.text) not in here)) for node, of in short]


def _short_lines(one: Chosen) -> Chosen:
    """JSON in lines of its own, and other lines cut that nobody reads: cleaning takes long on long ones."""
    text = one.text
    if one.path.endswith(".json") and not one.is_cut:
        with contextlib.suppress(ValueError, RecursionError):
            text = json.dumps(json.loads(text), indent=1, ensure_ascii=False)
    if len(text) > _LONGEST_LINE:
        text = "\n".join(
            line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE].rpartition(' ')[0]} … (a long line, cut)"
            for line in text.split("\n")
        )
    return replace(one, text=text, margin=min(one.margin, len(text)))


def _end(cleaner: Cleaner, one: Chosen) -> tuple[str, str]:
    """What is kept of a file, cleaned together with what stands before it."""
    text = cleaner.clean(one.text)
    if not one.margin:
        return text, f"the last of {one.size:,} bytes" if one.is_cut else ""
    before = cleaner.clean(one.text[: one.margin])
    at = text.find("\n", max(0, min(len(before), len(text)) - 1)) + 1
    return text[at:], f"the last of {one.size:,} bytes"


def _name(cleaner: Cleaner, path: str, taken: Mapping[str, bytes]) -> str:
    parts = [cleaner.clean(part).replace("\n", "?").replace("/", "?") for part in path.split("/")]
    name = "/".join(part for part in parts if part not in ("", ".", "..")) or "unnamed"
    number, free = 1, name
    while free in taken or free == CONTENTS:
        number += 1
        free = f"{name}.{number}"
    return free


def _listed(name: str, size: int, note: str) -> str:
    return f"{size:>10,}  {name}" + (f": {note}" if note else "")


def nodes_elsewhere(run: RunDir) -> dict[str, str]:
    """Nodes that the run has and of which no log is here: their disks are others. Their hosts by name."""
    try:
        nodes = json.loads(run.manifest.read_text(encoding="utf-8", errors="replace"))["nodes"]
        named = {str(name): str(node.get("host", "")) for name, node in nodes.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    here = {path.name.removeprefix("node-") for path in run.path.glob("logs/node-*")}
    return {name: host for name, host in named.items() if name not in here}


def _nodes_told(run: RunDir, elsewhere: Sequence[OfNode]) -> list[str]:
    """Who was asked and what came of it, and of whom there is nothing."""
    told = [f"{one.name}: {len(one.chosen):,} files of its own, in from-{one.name}" for one in elsewhere if one.chosen]
    told += [
        f"{one.name}: {'nothing: ' + one.missing if one.missing else 'nothing but what is here, too'}"
        for one in elsewhere
        if not one.chosen
    ]
    brought = {path.split("/")[1].removeprefix("node-") for path in _logs_of(elsewhere)}
    named = {one.name for one in elsewhere}
    away = [
        f"{name} ({host})" if host else name
        for name, host in nodes_elsewhere(run).items()
        if name not in brought and host not in named
    ]
    return told + (
        [f"of these nodes nothing is here, run the same there, or name them by --hosts: {', '.join(away[:16])}"]
        if away
        else []
    )


def _logs_of(elsewhere: Sequence[OfNode]) -> list[str]:
    return [one.path for node in elsewhere for one in node.chosen if one.path.startswith("logs/")]


def _versions() -> str:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return json.dumps({"python": platform.python_version(), "platform": platform.platform(), **found}, indent=1)


def _stem(name: str) -> str:
    return name.removesuffix(".gz").removesuffix(".tar").removesuffix(".tgz")


def _write(target: Path, folder: str, files: Mapping[str, bytes]) -> None:
    with durable.replacing(target) as out:
        os.fchmod(out.fileno(), 0o600)  # for whoever made it, until they hand it on
        _archive(out, folder, files)


def _archive(out: IO[bytes], folder: str, files: Mapping[str, bytes]) -> None:
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size, entry.mode, entry.mtime = len(content), 0o644, int(time.time())
            archive.addfile(entry, io.BytesIO(content))


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %z")
