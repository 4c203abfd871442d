"""The config's `network:` section as environment variables of this node's ranks."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from allranks.cluster import infiniband
from allranks.cluster.infiniband import Port, ports
from allranks.cluster.interfaces import (
    Interface,
    facing,
    interfaces,
    is_loopback,
    listed,
    own_name_is_loopback,
    select,
)
from allranks.cluster.nccl_files import from_files
from allranks.cluster.nccl_variables import (
    PREFIXES,
    doubts,
    installed_nccl,
    number,
    settings,
    unreadable,
)
from allranks.config.sections.network import NetworkSettings
from allranks.errors import RefusedError, UsageError

NCCL_INTERFACE = "NCCL_SOCKET_IFNAME"
GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"
DEBUG_FILE = "NCCL_DEBUG_FILE"
VERBOSE = ("INFO", "TRACE")
"""Values of NCCL_DEBUG that log more than a few lines: each rank then needs a file of its own."""
DEFAULT_LOG = {"NCCL_DEBUG": "INFO", "NCCL_DEBUG_SUBSYS": "INIT,BOOTSTRAP,ENV,NET"}
"""What NCCL logs where nobody says otherwise: where it makes connections and where it fails, nothing in between."""
REQUIRED_KINDS = ("ib", "roce", "gdr")
"""Words that network.require knows beside names of interfaces and adapters."""
NCCL_DEFAULT_BUFFER_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class NetworkEnvironment:
    """What becomes of the network's settings on this node.

    `added`: variables to set for the ranks. `kept`: variables that the user had set to something else than the config
    asks for, name -> (the user's value, which wins; the config's). `findings`: what the user should be told.
    `shown`: the settings that hold, one line each.
    """

    added: dict[str, str] = field(default_factory=dict)
    kept: dict[str, tuple[str, str]] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)


def network_environment(
    network: NetworkSettings,
    env: Mapping[str, str] = os.environ,
    *,
    uses_gpus: bool,
    peer: str | None = None,
    nics: Sequence[Interface] | None = None,
    ib_ports: Sequence[Port] | None = None,
) -> NetworkEnvironment:
    """Render `network` for the ranks of this node, in the light of what `env` says already.

    `peer` is where the nodes meet, if there are several. `nics` and `ib_ports` default to this node's.
    Raises RefusedError for an interface or adapter that this node does not have, or where InfiniBand is required and it
    has no active port; UsageError for a variable whose value NCCL would read as another one.
    """
    nics = interfaces() if nics is None else nics
    ib_ports = ports() if ib_ports is None else ib_ports
    before = settings(env)
    if problems := unreadable(before):
        raise UsageError("environment: " + "\n  ".join(problems))

    _check_infiniband(network, env, ib_ports)
    if peer is not None:
        _check_required(network.require, nics, ib_ports, uses_gpus=uses_gpus)
    wanted = _rendered(network, nics)
    pattern = env.get(NCCL_INTERFACE) or wanted.get(NCCL_INTERFACE) or before.get(NCCL_INTERFACE)
    chosen = select(pattern, nics) if pattern else []
    # A prefix takes in what nobody thought of: ib0 also ib0p, which may have a link-local address only.
    usable = [nic for nic in chosen if nic.has_address_for_others]
    gloo = usable[0] if usable else _instead_of_loopback(peer, nics)
    if gloo:
        # Exact names only, and each rank must name as many as its peers: the first of NCCL's.
        wanted[GLOO_INTERFACE] = gloo.name
    _check_gloo(env.get(GLOO_INTERFACE), nics)

    explicit = {name: env[name] for name in wanted if env.get(name)}
    added = {name: value for name, value in wanted.items() if name not in explicit}
    kept = {name: (value, wanted[name]) for name, value in explicit.items() if value != wanted[name]}
    if network.interface is None:
        kept.pop(GLOO_INTERFACE, None)  # that was our guess, and no wish of the config's
    after = before | explicit | added
    findings = doubts(before, installed_nccl()) + _about_files(env, added)
    if pattern and not usable:
        consequence = "NCCL will find no way to the other ranks" if uses_gpus else "no harm as long as no GPU is used"
        selects = f"only {listed(chosen)}, with a link-local address," if chosen else "no running interface"
        findings.append(
            f"{NCCL_INTERFACE}={pattern} selects {selects} of this node, which has {listed(nics)}: {consequence}"
        )
    if chosen and peer and not is_loopback(peer) and is_loopback(chosen[0].addresses[0]):
        findings.append(f"interface {chosen[0]} reaches no other node; the nodes meet at {peer}")
    return NetworkEnvironment(added, kept, findings, _shown(after, kept, chosen, ib_ports))


def _instead_of_loopback(peer: str | None, nics: Sequence[Interface]) -> Interface | None:
    """The interface that gloo must be told where its own choice would lead the other nodes to themselves."""
    if peer is None or is_loopback(peer) or not own_name_is_loopback():
        return None
    nic = facing(peer, nics)
    if nic and not is_loopback(nic.addresses[0]):
        return nic
    # On node 0 the rendezvous's name may lead to loopback as well: an only other interface must be the one.
    others = select("^lo,docker,virbr", nics)
    return others[0] if len(others) == 1 else None


def _rendered(network: NetworkSettings, nics: Sequence[Interface]) -> dict[str, str]:
    """What the config alone asks for."""
    rendered = {}
    if network.interface is not None:
        rendered[NCCL_INTERFACE] = "=" + ",".join(nic.name for nic in _required_nics(network.interface, nics))
    if network.infiniband != "auto":
        rendered["NCCL_IB_DISABLE"] = "1" if network.infiniband == "off" else "0"
    if network.hcas:
        rendered["NCCL_IB_HCA"] = "=" + ",".join(network.hcas)
    if network.debug_subsystems:
        rendered["NCCL_DEBUG_SUBSYS"] = ",".join(network.debug_subsystems)
    plain = {
        "NCCL_IB_GID_INDEX": network.gid_index,
        "NCCL_BUFFSIZE": network.buffer_size,
        "NCCL_DEBUG": network.debug,
        "CUDA_DEVICE_MAX_CONNECTIONS": network.cuda_device_max_connections,
    }
    return rendered | {name: str(value) for name, value in plain.items() if value is not None}


def _required_nics(pattern: str, nics: Sequence[Interface]) -> list[Interface]:
    found = select(pattern, nics)
    if not found:
        raise RefusedError(
            f"network.interface: {pattern} selects no running interface of this node ({socket.gethostname()}), which "
            f"has {listed(nics)}"
        )
    exact = [nic for nic in found if nic.name == pattern]
    # A whole name asks for that interface, not for its VLANs too, as the prefix eth0 would (eth0.100).
    return exact or [nic for nic in found if nic.has_address_for_others] or found


def _check_gloo(names: str | None, nics: Sequence[Interface]) -> None:
    known = {nic.name for nic in nics}
    missing = [name for name in (names or "").split(",") if name and name not in known]
    if missing:
        raise RefusedError(
            f"{GLOO_INTERFACE}={names}: this node ({socket.gethostname()}) has no interface {', '.join(missing)}, but "
            f"{listed(nics)}; gloo takes exact names, without prefixes"
        )


def _check_infiniband(network: NetworkSettings, env: Mapping[str, str], ib_ports: Sequence[Port]) -> None:
    here = f"this node ({socket.gethostname()})"
    usable: list[Port] = []
    for name in network.hcas or ():
        hca, _, port = name.partition(":")
        named = [found for found in ib_ports if found.hca == hca and port in ("", str(found.number))]
        if not named:
            raise RefusedError(
                f"network.hcas: {here} has no {name}; its InfiniBand and RoCE ports: {infiniband.listed(ib_ports)}"
            )
        usable += named
    if network.infiniband != "required":
        return
    if number(env.get("NCCL_IB_DISABLE", "")):
        raise UsageError(
            f"NCCL_IB_DISABLE={env['NCCL_IB_DISABLE']} contradicts `network.infiniband: required`: unset it, or change "
            "the config"
        )
    if not any(port.is_active for port in usable or ib_ports):
        raise RefusedError(
            f"network.infiniband: required, but {here} has no active InfiniBand or RoCE port; found: "
            f"{infiniband.listed(usable or ib_ports)}. Look at `ibstat`, or go on over sockets with "
            "`network.infiniband: auto`"
        )


def _check_required(
    require: str | None, nics: Sequence[Interface], ib_ports: Sequence[Port], *, uses_gpus: bool
) -> None:
    """What cannot be had is refused before anything is started; whether it is used shows when the ranks talk."""
    if require is None:
        return
    here = f"this node ({socket.gethostname()})"
    if require.lower() in REQUIRED_KINDS:
        if uses_gpus and not any(port.is_active for port in ib_ports):
            raise RefusedError(
                f"network.require: {require}, but {here} has no active InfiniBand or RoCE port; found: "
                f"{infiniband.listed(ib_ports)}. Look at `ibstat`, or take network.require out of the config"
            )
        return
    names = {nic.name for nic in nics} | {port.hca for port in ib_ports}
    names |= {f"{port.hca}:{port.number}" for port in ib_ports}
    if not names & {name.strip() for name in require.split(",")}:
        raise RefusedError(
            f"network.require: {require} is none of {', '.join(REQUIRED_KINDS)}, and no interface or adapter of "
            f"{here}, which has {listed(nics)}; InfiniBand and RoCE ports: {infiniband.listed(ib_ports)}"
        )


def _about_files(env: Mapping[str, str], added: Mapping[str, str]) -> list[str]:
    """NCCL's own files are easily forgotten: name what they set, and what is taken instead."""
    return [
        f"{name} is set in {path}" + (f", but the config's {added[name]} is taken" if name in added else "")
        for name, (_, path) in sorted(from_files(env).items())
        if name.startswith(PREFIXES)
    ]


def _shown(
    after: Mapping[str, str],
    kept: Mapping[str, tuple[str, str]],
    chosen: Sequence[Interface],
    ib_ports: Sequence[Port],
) -> list[str]:
    lines = []
    gloo = after.get(GLOO_INTERFACE)
    if chosen:
        lines.append(
            f"interface {listed(chosen)}" + (f"; gloo uses {gloo}" if gloo != chosen[0].name or chosen[1:] else "")
        )
    elif gloo:
        lines.append(f"gloo uses interface {gloo}")
    if "NCCL_IB_DISABLE" in after:
        lines.append(_about_infiniband(bool(number(after["NCCL_IB_DISABLE"])), ib_ports))
    if "NCCL_BUFFSIZE" in after:
        lines.append(_about_buffer(number(after["NCCL_BUFFSIZE"])))
    if after:
        lines.append(
            " ".join(f"{name}={'…' if name == 'NCCL_PSK' else value}" for name, value in sorted(after.items()))
        )
    lines += [
        f"{name}={theirs} of the environment wins over the config's {ours}" for name, (theirs, ours) in kept.items()
    ]
    return lines


def _about_infiniband(is_off: bool, ib_ports: Sequence[Port]) -> str:
    if is_off:
        return "InfiniBand off: NCCL uses sockets"
    active = [port for port in ib_ports if port.is_active]
    if active:
        return f"InfiniBand on: {infiniband.listed(active)}"
    return "InfiniBand allowed, but this node has no active port: NCCL uses sockets"


def _about_buffer(size: int) -> str:
    is_default = size == NCCL_DEFAULT_BUFFER_BYTES
    return f"buffer {size / 2**20:g} MiB, " + (
        "NCCL's default" if is_default else "not NCCL's default of 4 MiB; all nodes need the same"
    )
