"""manifest.json: what was started, from what, with what, so that a run can be explained and repeated."""

import contextlib
import importlib.metadata
import json
import platform
import re
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import allranks
from allranks import durable
from allranks.cluster.account import NodeStart
from allranks.launch.spec.options import Launch
from allranks.secret_names import is_secret_name
from allranks.secrets import (
    REMOVED,
    known_secrets,
    without_secret_values,
    without_secret_words,
    without_secrets,
)

__all__ = [
    "REMOVED",
    "make_manifest",
    "node_start",
    "started_node",
    "without_secret_values",
    "write_manifest",
]

# Variables that change how ranks talk, compute or find models.
_RECORDED = (
    *("NCCL_", "TORCH_", "TORCHELASTIC_", "PYTORCH_", "GLOO_", "UCX_", "FI_", "CUDA_", "OMP_", "MKL_", "HF_"),
    *("ACCELERATE_", "RAY_"),
)


def write_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Write atomically: a reader sees the manifest of this start or of the one before."""
    durable.write(path, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", make_parents=True)


def make_manifest(
    *,
    run_id: str,
    argv: Sequence[str],
    config: Mapping[str, Any] | None,
    config_source: str | None,
    fingerprint: str | None,
    nodes: Mapping[str, Any],
    command: Sequence[str],
    environment: Mapping[str, str],
    launch: Mapping[str, Any] | None = None,
    preflight: Mapping[str, Any] | None = None,
    certificate: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything about a start, with secrets removed by name, by shape, and by what the environment calls one.

    `config` and `config_source` are None for a program that is not our engine. `command` and `environment` are of the
    node that writes it, `nodes` has what is known of each (see `started_node`), `launch` the options that start it
    again (see `launch_options`), `preflight` what was found on the nodes before and was accepted, `certificate` in what
    it differs from the smoke run that was made before, if one was. Times are unix
    seconds.
    """
    known = known_secrets(environment)
    return {
        "run": run_id,
        "t": time.time(),
        "argv": without_secret_words(argv, known),
        "directory": str(Path.cwd()),
        "config_file": config_source,
        "config": without_secret_values(config, known),
        "data_fingerprint": fingerprint,
        "launch": without_secret_values(launch, known),
        "code": code_state(),
        "packages": package_versions(),
        "python": platform.python_version(),
        "host": socket.gethostname(),
        "nodes": without_secret_values(nodes, known),
        "preflight": without_secret_values(preflight, known),
        "certificate": without_secret_values(certificate, known),
        "environment": recorded_environment(environment),
        "command": without_secret_words(command, known),
    }


def node_start(
    *, processes: int, command: Sequence[str], environment: Mapping[str, str], files: Mapping[str, str]
) -> NodeStart:
    """What one node starts, for its account and the manifest that node 0 keeps: without secrets."""
    known = known_secrets(environment)
    return NodeStart(
        processes=processes,
        command=without_secret_words(command, known),
        environment=recorded_environment(environment),
        files={path: without_secret_lines(text, known) for path, text in files.items()},
    )


def started_node(host: str, start: NodeStart) -> dict[str, Any]:
    """A node's entry in a manifest."""
    return {"host": host, **asdict(start)}


def without_secret_lines(text: str, known: frozenset[str]) -> str:
    """A file's text, line by line: in YAML, JSON and host files a name and its value share one."""
    whole = without_secrets(text, known)  # a private key has several lines
    return "".join(without_secret_words([line])[0] for line in whole.splitlines(keepends=True))


def launch_options(launch: Launch) -> dict[str, Any]:
    """The options of `allranks train` that start the same launch again, by their names in LaunchOptions."""
    options: dict[str, Any] = {
        "launcher": launch.launcher,
        "nproc_per_node": launch.nproc_per_node,
        "max_restarts": launch.max_restarts,
        "grace_seconds": launch.grace_seconds,
        "join_seconds": launch.join_seconds,
        "silence_seconds": launch.silence_seconds,
        "skip_connection_check": launch.skip_connection_check,
        "launcher_args": list(launch.launcher_args),
    }
    if launch.max_nodes == 1:
        return options
    least, most = launch.min_nodes, launch.max_nodes
    options |= {"nnodes": str(most) if least == most else f"{least}:{most}", "rdzv_backend": launch.backend}
    if launch.backend == "static":
        return options | {"master_addr": launch.address, "master_port": launch.port}
    return options | {"rdzv_endpoint": launch.endpoint, "rdzv_id": launch.rdzv_id}


def recorded_environment(env: Mapping[str, str]) -> dict[str, str]:
    """The variables that matter to a run, with secrets removed."""
    known = known_secrets(env)
    return {
        name: REMOVED if is_secret_name(name) else without_secrets(value, known)
        for name, value in sorted(env.items())
        if name.startswith(_RECORDED)
    }


def package_versions() -> dict[str, str]:
    """Versions of allranks and of all that it may use, as far as they are installed."""
    versions = {"allranks": allranks.__version__}
    try:
        requirements = importlib.metadata.requires("allranks") or []
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        requirements = []
    # NCCL comes with torch, in a package of its own.
    for requirement in [*requirements, "nvidia-nccl-cu13", "nvidia-nccl-cu12"]:
        match = re.match(r"[\w.-]+", requirement)
        if match and match[0] not in versions:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                # Of an installation that was broken off, or half removed, there is a folder and no version in it.
                if version := importlib.metadata.version(match[0]):
                    versions[match[0]] = version
    return versions


def code_state() -> dict[str, Any] | None:
    """Commit of allranks and whether its files differ from it; None where it is not run from a git checkout."""
    package = Path(allranks.__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(package), *words], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        # Installed inside somebody else's repository, the files are not tracked: that commit would say nothing.
        git("ls-files", "--error-unmatch", "__init__.py")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--", "."))}
    except (OSError, subprocess.SubprocessError):
        return None
