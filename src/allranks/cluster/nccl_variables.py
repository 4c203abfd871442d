"""Are the environment's settings of NCCL, PyTorch's process groups and gloo what the user thinks they are?"""

from __future__ import annotations

import difflib
import importlib.metadata
import os
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase

from allranks.cluster.nccl_catalogue import (
    CATALOGUE,
    DEBUG_LEVELS,
    NCCL_VERSION,
    SUBSYSTEMS,
    UNDOCUMENTED,
    Variable,
)
from allranks.cluster.nccl_files import from_files
from allranks.cluster.nccl_lookalikes import NEVER_EXISTED, NOT_NCCLS_OWN, REMOVED, REPLACED, TORCHS_OWN

PREFIXES = ("NCCL_", "TORCH_NCCL_", "TORCH_FR_", "GLOO_")
_KNOWN = frozenset([*CATALOGUE, *UNDOCUMENTED, *TORCHS_OWN, *REPLACED])
# A number as C's strtoll takes it with base 0.
_NUMBER = re.compile(r"\s*[-+]?(0[xX][0-9a-fA-F]+|\d+)")


def settings(env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables that NCCL, PyTorch's process groups and gloo will see, those of NCCL's own files included."""
    found = {name: value for name, value in env.items() if name.startswith(PREFIXES) and value}
    return {name: value for name, (value, _) in from_files(env).items()} | found


def installed_nccl() -> str | None:
    """Version of the NCCL that PyTorch brought, found without importing PyTorch; None on a CPU installation."""
    for package in ("nvidia-nccl-cu13", "nvidia-nccl-cu12"):
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def number(text: str) -> int:
    """A number as NCCL reads it: C's strtoll with base 0, which stops at the first sign that is no digit."""
    match = _NUMBER.match(text)
    if match is None:
        return 0
    digits = match[0].strip()
    is_octal = re.fullmatch(r"[-+]?0[0-7]+", digits)
    return int(digits, 8 if is_octal else 16 if "x" in digits.lower() else 10)


def unreadable(env: Mapping[str, str]) -> list[str]:
    """One line for each value that NCCL would not read as it is written; it would go on with another and not say so."""
    return [line for name, value in sorted(env.items()) if value and (line := _unreadable(name, value)) is not None]


def doubts(env: Mapping[str, str], installed: str | None = None) -> list[str]:
    """One line for each variable that does nothing, or not for long: unknown, misspelt, removed, deprecated, too new.

    `installed` is the version of NCCL that will run. Unknown names are doubts and no errors, because plugins and newer
    versions have names of their own.
    """
    lines = []
    for name in sorted(name for name, value in env.items() if name.startswith(PREFIXES) and value):
        if name in NEVER_EXISTED:
            lines.append(f"{name}: there is no such variable; {NEVER_EXISTED[name]}")
        elif name in REMOVED:
            lines.append(f"{name}: NCCL no longer reads it; its place took {REMOVED[name]}")
        elif name in REPLACED:
            lines.append(f"{name}: deprecated; use {REPLACED[name]}")
        elif name in _KNOWN:
            lines += _too_new(CATALOGUE.get(name), installed)
            lines += _unknown_subsystems(env[name]) if name == "NCCL_DEBUG_SUBSYS" else []
        elif not any(fnmatchcase(name, pattern) for pattern in NOT_NCCLS_OWN):
            lines.append(_unknown(name))
    return lines


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, _KNOWN | NEVER_EXISTED.keys(), n=1, cutoff=0.8)
    if near and near[0] in NEVER_EXISTED:
        return f"{name}: there is no such variable; {NEVER_EXISTED[near[0]]}"
    owner = "NCCL" if name.startswith("NCCL_") else "gloo" if name.startswith("GLOO_") else "PyTorch"
    version = f" {NCCL_VERSION}" if owner == "NCCL" else ""
    return f"{name}: {owner}{version} knows no such variable" + (f"; did you mean {near[0]}?" if near else "")


def _too_new(variable: Variable | None, installed: str | None) -> list[str]:
    if variable is None or installed is None or not variable.since or _numbers(variable.since) <= _numbers(installed):
        return []
    return [f"{variable.name}: came with NCCL {variable.since}; the installed {installed} does not read it"]


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)[:3]]


def _unknown_subsystems(value: str) -> list[str]:
    words = [word.strip().lstrip("^") for word in value.split(",")]
    unknown = [word for word in words if word.upper() not in SUBSYSTEMS]
    return [f"NCCL_DEBUG_SUBSYS: NCCL has no subsystem {word}" + _near(word) for word in unknown]


def _near(word: str) -> str:
    near = difflib.get_close_matches(word.upper(), SUBSYSTEMS, n=1)
    return f"; did you mean {near[0]}?" if near else f"; it has {', '.join(SUBSYSTEMS)}"


def _unreadable(name: str, value: str) -> str | None:
    if name == "NCCL_DEBUG" and value.upper() not in DEBUG_LEVELS:
        return f"{name}={value}: NCCL knows VERSION, WARN, INFO and TRACE, and logs nothing for another word"
    if name == "NCCL_SOCKET_FAMILY" and value not in ("AF_INET", "AF_INET6"):
        return f"{name}={value}: NCCL knows AF_INET and AF_INET6, and takes no notice of another word"
    variable = CATALOGUE.get(name)
    if variable is None or not variable.is_number:
        return None
    match = _NUMBER.match(value)
    if match and not value[match.end() :].strip():
        return None
    return f"{name}={value}: NCCL takes only a whole number here, and would read {number(value)}"
