"""Which Python this is, which packages it would import and where each lies; nothing of them is imported."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import sys
import urllib.parse
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from allranks.cluster.probe.children import Found, Reporter
from allranks.cluster.probe.node import Node

DEFAULT = (
    *("allranks", "torch", "transformers", "peft", "safetensors", "datasets", "tokenizers", "numpy", "accelerate"),
    *("deepspeed", "ray", "bitsandbytes", "triton", "flash-attn", "torchao", "liger-kernel"),
    *("nvidia-nccl-cu*", "nvidia-cudnn-cu*", "nvidia-cuda-runtime*", "pytorch-triton-rocm"),
)


def look_at_packages(node: Node, reporter: Reporter, wanted: Sequence[str]) -> Iterator[Found]:
    """`wanted` are names, or patterns with * of which only what is installed is told."""
    version = ".".join(map(str, sys.version_info[:3]))
    yield {
        "python": {"executable": sys.executable, "version": version} if node.is_live else node.recorded.get("python")
    }
    path = _search_path(node)
    names = [name for name in wanted if "*" not in name]
    patterns = [_normal(name) for name in wanted if "*" in name]
    if patterns:
        names += sorted(name for name in _installed(reporter, path) if any(fnmatchcase(name, one) for one in patterns))
    for name in dict.fromkeys(names):
        reporter.doing(name)
        try:
            yield {"packages": {name: _package(name, path)}}
        except Exception as error:  # metadata may lack anything, and each Python fails in a way of its own
            reporter.failed(f"its metadata cannot be read: {type(error).__name__}: {error}"[:200], name)


def _search_path(node: Node) -> list[str]:
    if not node.is_live:
        return [str(node.place(folder)) for folder in node.recorded.get("sys_path", [])]
    return list(sys.path)


def _installed(reporter: Reporter, path: Sequence[str]) -> set[str]:
    found = set()
    for folder in path:
        reporter.doing(folder)
        try:
            entries = os.listdir(folder)
        except OSError:
            continue
        found |= {_normal(entry.rpartition(".")[0].split("-")[0]) for entry in entries if entry.endswith(".dist-info")}
    return found


def _package(name: str, path: list[str]) -> dict[str, Any]:
    found = next(iter(importlib.metadata.distributions(name=name, path=path)), None)
    if found is None:
        return {"version": None, "path": None}
    return {"version": found.version, "path": _editable(found) or str(found.locate_file("")).rstrip("/")}


def _editable(found: importlib.metadata.Distribution) -> str | None:
    """Where the source lies of a package that was installed to be edited (PEP 610)."""
    try:
        origin = json.loads(found.read_text("direct_url.json") or "{}")
        if origin["dir_info"]["editable"]:
            return str(Path(urllib.parse.unquote(urllib.parse.urlparse(origin["url"]).path)))
    except (KeyError, ValueError, TypeError):
        pass
    return None


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
