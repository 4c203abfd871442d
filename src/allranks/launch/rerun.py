"""`allranks train --from-manifest FILE`: start a run again from the record that it left."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Collection, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from allranks import durable
from allranks.cluster.allocation import find_allocation
from allranks.cluster.environments import must_be_equal
from allranks.cluster.nccl_variables import PREFIXES
from allranks.cluster.network import network_environment
from allranks.config import RunConfig
from allranks.config.load import resolve_mapping
from allranks.config.run import SECTION_OF
from allranks.disk import refuse_unwritable
from allranks.errors import UsageError
from allranks.launch.manifest import REMOVED, code_state, package_versions
from allranks.launch.spec.options import LaunchOptions
from allranks.launch.spec.where import NodeOptions
from allranks.observe import say

# Where the nodes are and meet: of no use on other nodes than those of the record.
_PLACE = ("nnodes", "master_addr", "master_port", "rdzv_backend", "rdzv_id", "rdzv_endpoint")
_DECIDES_THE_DATA = ("data", "model")  # sections


@dataclass(frozen=True)
class Again:
    """What `start` needs. `fingerprint` of the prepared data must come out again; None where it may differ."""

    config: Path
    options: LaunchOptions
    fingerprint: str | None


def from_manifest(
    path: str | Path,
    overrides: Mapping[str, str],
    options: LaunchOptions,
    nodes: NodeOptions,
    *,
    chosen: Collection[str],
    env: MutableMapping[str, str] = os.environ,
) -> Again:
    """The resolved config and the launch options of a recorded run, with what is given here in their place.

    `path` is a manifest or a run's directory, `chosen` the fields of `options` that the user gave. The run gets a
    directory of its own, OUTPUT_DIR-again, unless `overrides` name one; its config is written there. Variables of NCCL
    that all nodes share are set in `env` as they were. Tells what is not as it was then: code, packages, environment.
    Raises UsageError for what is no manifest of a training, and for a secret in it that must be given again.
    """
    path = Path(path)
    path = path / "manifest.json" if path.is_dir() else path
    manifest = _read(path)
    flat = dict(manifest["config"])
    _refuse_removed(path, flat, overrides)
    _take_consent_away(path, flat, overrides)
    flat["output_dir"] = f"{str(flat.get('output_dir', './model-out')).rstrip('/')}-again"
    cfg = resolve_mapping(flat, str(path), overrides)

    say(f"{'again:':<12}{_described(manifest)}")
    elsewhere = bool(nodes.hosts or nodes.hostfile) or (options.node_rank is None and find_allocation(env) is not None)
    changes = [*_differences(manifest)]
    if not elsewhere:
        changes += _restore(manifest.get("environment") or {}, cfg, env)
    for line in changes:
        say(f"warning: {line}", file=sys.stderr)
    written = Path(cfg.checkpoint.output_dir) / "from-manifest.yaml"
    head = f"# The config of run {manifest.get('run')}, from {path}\n"
    refuse_unwritable(written.parent)
    durable.write(written, head + yaml.safe_dump(flat, sort_keys=False, allow_unicode=True))
    changed = {SECTION_OF.get(key.replace("-", "_").partition(".")[0]) for key in overrides}
    fingerprint = None if changed & {*_DECIDES_THE_DATA} else manifest.get("data_fingerprint")
    return Again(written, _merged(manifest, options, chosen, elsewhere), fingerprint)


def _read(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--from-manifest {path}: {error.strerror}; give manifest.json of a run's directory") from None
    except ValueError:
        raise UsageError(f"--from-manifest {path}: not JSON; give manifest.json of a run's directory") from None
    if not isinstance(manifest, dict) or "config" not in manifest or "run" not in manifest:
        raise UsageError(f"--from-manifest {path}: no manifest of allranks: it has no `run` and `config`")
    if not isinstance(manifest["config"], dict):
        raise UsageError(
            f"--from-manifest {path}: the record of a program that `allranks run` started; its command line is in "
            "`argv`, to be started so again"
        )
    return manifest


def _refuse_removed(path: Path, flat: Mapping[str, Any], overrides: Mapping[str, str]) -> None:
    given = {key.replace("-", "_") for key in overrides}
    removed = [key for key in _removed(flat) if not any(key == name or key.startswith(f"{name}.") for name in given)]
    if removed:
        raise UsageError(
            f"--from-manifest {path}: {', '.join(removed)} held a secret, which no manifest keeps: give it again, "
            f"as in --{removed[0].replace('_', '-')} VALUE"
        )


def _take_consent_away(path: Path, flat: dict[str, Any], overrides: Mapping[str, str]) -> None:
    """Whoever starts a run consents to running a model's code, not whoever wrote the record of another one."""
    if flat.pop("trust_remote_code", False) and "trust_remote_code" not in {key.replace("-", "_") for key in overrides}:
        raise UsageError(
            f"--from-manifest {path}: trust_remote_code: true: that run ran Python code that came with the model "
            f"{flat.get('base_model')}. A record is no consent to run it here: read the code, then give "
            "--trust-remote-code true (or false, if transformers has this model itself)"
        )


def _removed(value: Any, prefix: str = "") -> Iterator[str]:
    """Dotted keys of the values that hold a removed secret."""
    if isinstance(value, str) and REMOVED in value:
        yield prefix
    entries = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, item in entries:
        yield from _removed(item, f"{prefix}.{key}" if prefix else str(key))


def _described(manifest: Mapping[str, Any]) -> str:
    accounts = manifest.get("nodes") or {}
    ranks = sum(account.get("processes", 0) for account in accounts.values())
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(manifest.get("t", 0)))
    return f"run {manifest['run']} of {when} on {manifest.get('host')}: {ranks} rank(s) on {len(accounts)} node(s)"


def _differences(manifest: Mapping[str, Any]) -> Iterator[str]:
    """What is not as it was, one line each: code, Python, packages, working directory."""
    then, now = manifest.get("code") or {}, code_state() or {}
    if then.get("commit") != now.get("commit"):
        yield f"code: commit {then.get('commit')} then, {now.get('commit')} now"
    elif now.get("dirty") or then.get("dirty"):
        which = " and ".join(word for word, state in (("then", then), ("now", now)) if state.get("dirty"))
        yield f"code: changed since commit {now.get('commit')} ({which}), and the manifest does not hold the changes"
    if manifest.get("python") != platform.python_version():
        yield f"python: {manifest.get('python')} then, {platform.python_version()} now"
    packages, installed = manifest.get("packages") or {}, package_versions()
    for name in sorted({*packages, *installed}):
        if packages.get(name) != installed.get(name):
            yield f"package {name}: {packages.get(name) or 'none'} then, {installed.get(name) or 'none'} now"
    if manifest.get("directory") != str(Path.cwd()):
        yield (
            f"directory: {manifest.get('directory')} then, {Path.cwd()} now; relative paths of the config start here"
        )


def _restore(recorded: Mapping[str, str], cfg: RunConfig, env: MutableMapping[str, str]) -> list[str]:
    """Set what all nodes share of NCCL's settings, as it was; returns what is a node's own and not as it was."""
    # What the config makes of itself needs no help.
    rendered = network_environment(cfg.network.settings, env, uses_gpus=False).added
    shared, lines = must_be_equal(recorded).keys(), []
    for name in sorted(name for name in {*recorded, *env} if name.startswith(PREFIXES) and name not in rendered):
        then, now = recorded.get(name), env.get(name)
        if name in shared and now is None and then and REMOVED not in then:
            env[name] = then
            say(f"{'network:':<12}{name}={then}, as then")
        elif then != now:
            lines.append(f"{name}: {then or 'not set'} then, {now or 'not set'} now")
    return lines


def _merged(
    manifest: Mapping[str, Any], options: LaunchOptions, chosen: Collection[str], elsewhere: bool
) -> LaunchOptions:
    """The recorded options under those that the user gave."""
    known = {field.name for field in fields(LaunchOptions)}
    recorded = {key: value for key, value in (manifest.get("launch") or {}).items() if key in known}
    # Words of a launcher can name a program to start; only the command line of this start may.
    words = recorded.pop("launcher_args", None) or ()
    if words and "launcher_args" not in chosen:
        say(
            f"warning: launcher options {shlex.join(map(str, words))} then, not taken from a record, as they can start "
            "programs; give them again after a lone --",
            file=sys.stderr,
        )
    left_out: tuple[str, ...] = ()
    if (options.launcher if "launcher" in chosen else recorded.get("launcher")) == "ray":
        # Ray's cluster knows its nodes; how many ranks, and how often restarted, is said in the config.
        left_out = (*_PLACE, "nproc_per_node", "max_restarts", "launcher_args")
    elif elsewhere:
        # Each node is started by a command of its own, which says all this anew.
        left_out = (*_PLACE, "nproc_per_node")
    elif "nnodes" in chosen:
        left_out = _PLACE
    elif {"master_addr", "rdzv_endpoint"} & {*chosen}:
        left_out = ("master_addr", "master_port", "rdzv_endpoint")
    account = (manifest.get("nodes") or {}).get(str(options.node_rank or 0)) or {}
    if "processes" in account:
        recorded["nproc_per_node"] = account["processes"]
    kept = {key: value for key, value in recorded.items() if key not in chosen and key not in left_out}
    return replace(options, **kept)
