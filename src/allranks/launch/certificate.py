"""The certificate of a smoke run: what it is made of at a start, and what a later start is told of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from allranks.cluster.environments import network_settings
from allranks.cluster.nccl_variables import PREFIXES
from allranks.config import RunConfig
from allranks.errors import RefusedError
from allranks.launch.manifest import recorded_environment
from allranks.launch.must_match import what_must_be_equal
from allranks.launch.preflight.asked import policy_of
from allranks.launch.spec.options import Launch
from allranks.observe import RunDir, say
from allranks.preflight.catalogue import CERTIFICATE
from allranks.preflight.certificate import (
    Certificate,
    Part,
    Parts,
    differences,
    parts_of,
    read_certificate,
    told,
)
from allranks.rendezvous.participant import Participant

# They say how much is told, or where one start's ranks meet: a smoke run sets some itself.
_NOT_COMPARED = (
    "NCCL_DEBUG",
    "TORCH_DISTRIBUTED_DEBUG",
    "TORCH_CPP_LOG_LEVEL",
    "TORCHELASTIC_",
    "CUDA_VISIBLE_DEVICES",
)
_OF_NETWORK = (*PREFIXES, "GLOO_")


@dataclass(frozen=True)
class Starts:
    """What a start is made of, as far as this node knows once its data is prepared. `env`: of its ranks."""

    cfg: RunConfig
    fingerprint: str | None
    nodes: Mapping[str, str] | None
    uses_gpus: bool
    env: Mapping[str, str]


def parts_now(start: Starts) -> Parts:
    """The parts of this start, for a certificate or to be compared with one."""
    parts: dict[Part, dict[str, str]] = parts_of(what_must_be_equal(start.cfg))
    if start.fingerprint is not None:  # else the ranks prepare the data, on nodes of Ray
        parts["data"] = {**_data_files(start.cfg), "prepared data": start.fingerprint}
    recorded = recorded_environment(start.env)
    parts["environment"] |= {
        f"variable {name}": value
        for name, value in recorded.items()
        if not name.startswith((*_NOT_COMPARED, *_OF_NETWORK))
    }
    if start.nodes is not None:
        parts["nodes"] = dict(start.nodes)
    network = {name: value for name, value in network_settings(start.env).items() if not name.startswith(_NOT_COMPARED)}
    parts["transport"] = {"backend": "nccl" if start.uses_gpus else "gloo", **network}
    return parts


def nodes_of(launch: Launch, nodes: Sequence[Participant], host: str) -> dict[str, str]:
    """The nodes as a certificate names them; where c10d deals the ranks out, without an order."""
    own = f"{launch.nproc_per_node} process{'es' if launch.nproc_per_node > 1 else ''}, {launch.launcher}"
    if not nodes:
        return {"nodes": str(launch.max_nodes), "this node": f"{host}, {own}"}
    described = [f"{node.host}, {node.num_processes} process{'es' if node.num_processes > 1 else ''}" for node in nodes]
    if all(node.has_rank for node in nodes):
        return {f"node {rank}": f"{text}, {nodes[rank].launcher}" for rank, text in enumerate(described)}
    return {"nodes": "; ".join(sorted(described))}


def compare(start: Starts) -> dict[str, Any] | None:
    """What the manifest keeps of the certificate in this run's directory, after telling the user; None without one.

    Raises RefusedError where this start differs and `preflight.strict` names certificate.differs.
    """
    path = RunDir(start.cfg.checkpoint.output_dir).certificate
    policy = policy_of(start.cfg, quick=True)
    names = {CERTIFICATE, CERTIFICATE.partition(".")[0]}
    if names & set(policy.skip) or start.cfg.preflight.settings.skip is True:
        return None
    found = read_certificate(path)
    if found is None:
        return None
    is_strict, is_accepted = bool(names & set(policy.strict)), bool(names & set(policy.ignore))
    if isinstance(found, str):
        lines = [found]
        record: dict[str, Any] = {"unread": found}
    else:
        lines = told(differences(found.parts, parts_now(start)))
        record = {"sha256": found.sha256, "t": found.t, "run": found.run, "differs": lines, "accepted": is_accepted}
        lines = [f"{_named(found)}: this start is not what was proved", *lines] if lines else []
        if not lines:
            say(f"{'certificate:':<12}{_named(found)} holds for this start")
    if lines:
        again = f"`allranks train {start.cfg.source} --smoke` proves it anew"
        text = "\n  ".join([f"{CERTIFICATE}: {lines[0]}", *lines[1:], again])
        if is_strict:
            raise RefusedError(f"{text}, or take {CERTIFICATE} out of preflight.strict")
        say(f"{'note' if is_accepted else 'warning'}: {text}", file=sys.stderr)
    return record


def _named(certificate: Certificate) -> str:
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(certificate.t))
    return f"{certificate.sha256[:12]} of the smoke run of {when}"


def _data_files(cfg: RunConfig) -> dict[str, str]:
    from allranks.data.fingerprint import data_files  # numpy: 0.1 s that a usage error need not wait for

    return data_files(cfg)
