"""The commit of the code, and a hash of what differs from it; without git the commit alone, as its files show it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sys
from collections.abc import Iterator

from allranks.cluster.probe.children import Found, Reporter
from allranks.cluster.probe.node import Node, ToolFailed, ToolMissing

_MOST_FILES = 5000  # a project's; not a whole home directory
# A repository's own settings may name programs, which must not run because somebody looked.
_GIT = ("git", "--no-optional-locks", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null")


def look_at_code(node: Node, reporter: Reporter, path: str | None) -> Iterator[Found]:
    """Of `path`, or of allranks, wherever this Python would import it from."""
    if path is None and node.is_live:
        path = next(
            (f"{folder}/allranks" for folder in sys.path if folder and os.path.isdir(f"{folder}/allranks")), None
        )
    if path is None:
        return
    reporter.doing(path)
    yield {"code": {"path": path, "digest": _digest(node, path)}}
    top = next((folder for folder in _above(path) if node.exists(f"{folder}/.git")), None)
    if top is None:
        yield {"code": {"commit": None, "dirty": None}}
        return
    commit = _commit(node, top)
    yield {"code": {"commit": commit, "dirty": None}}
    try:
        in_path = (*_GIT, "-C", str(node.place(path)))
        if node.run(*in_path, "ls-files", "--", ".").strip():
            # Untracked files are named, not read: they may be data.
            changed = node.run(*in_path, "diff", "--no-ext-diff", "--no-textconv", "--binary", "HEAD", "--", ".")
            changed += node.run(*in_path, "ls-files", "--others", "--exclude-standard", "--", ".")
            digest = hashlib.sha256(changed.encode()).hexdigest() if changed else ""
            yield {"code": {"commit": node.run(*in_path, "rev-parse", "HEAD").strip(), "dirty": digest}}
        else:  # installed inside somebody else's repository: that commit says nothing
            yield {"code": {"commit": None}}
    except ToolMissing:
        pass
    except ToolFailed as failure:  # another user's folder, for one, which git does not trust
        reporter.failed(str(failure))


def _digest(node: Node, path: str) -> str | None:
    """Of all its Python files, names and contents, wherever they came from; None for more than code has."""
    digest, num_files = hashlib.sha256(), 0
    for folder, folders, files in os.walk(node.place(path)):
        folders.sort()
        for name in sorted(files):
            if name.endswith(".py"):
                num_files += 1
                if num_files > _MOST_FILES:
                    return None
                place = os.path.join(folder, name)
                content = ""
                with contextlib.suppress(OSError), open(place, "rb") as file:  # an editor's lock is a link to nowhere
                    content = hashlib.sha256(file.read()).hexdigest()
                digest.update(
                    f"{os.path.relpath(place, node.place(path))}\0{content}\n".encode(errors="surrogateescape")
                )
    return digest.hexdigest() if num_files else None


def _above(path: str) -> Iterator[str]:
    while True:
        yield path.rstrip("/")
        if path in ("/", ""):
            return
        path = os.path.dirname(path)


def _commit(node: Node, top: str) -> str | None:
    """What .git/HEAD means; a worktree has a file in place of the folder."""
    folder = f"{top}/.git"
    elsewhere = re.match(r"gitdir: (.+)", node.text(folder) or "")
    if elsewhere:
        folder = os.path.normpath(os.path.join(top, elsewhere[1]))
    head = node.text(f"{folder}/HEAD") or ""
    if not head.startswith("ref: "):
        return head or None
    common = os.path.normpath(os.path.join(folder, node.text(f"{folder}/commondir") or "."))
    name = head[len("ref: ") :]
    loose = node.text(f"{folder}/{name}") or node.text(f"{common}/{name}")
    packed = re.search(rf"^([0-9a-f]+) {re.escape(name)}$", node.text(f"{common}/packed-refs") or "", re.MULTILINE)
    return loose or (packed[1] if packed else None)
