"""From what the ranks of a smoke run saw to what it proves: go or no-go, point by point."""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from allranks.cluster.interfaces import Interface, select
from allranks.cluster.smoke import NUM_STEPS
from allranks.config.sections.network import NetworkSettings
from allranks.json_types import is_a
from allranks.listing import few, printable, si_bytes

State = Literal["ok", "failed", "not judged"]
# Ranks read one all-reduced sum; more than the rounding of its last bits is another sum.
_EQUAL = 1e-5


@dataclass(frozen=True)
class Point:
    """One line of the checklist. `remedy`: what to do where it failed."""

    name: str
    state: State
    text: str
    remedy: str = ""


def judge(evidence: Mapping[str, Any], network: NetworkSettings) -> list[Point]:
    """The checklist, from the evidence that a node's first rank wrote (`train.smoke`). Raises ValueError for none."""
    ranks = evidence.get("ranks")
    if not isinstance(ranks, list) or not ranks or not is_a(ranks, Sequence[dict]):
        raise ValueError("no ranks are in it")
    told = evidence.get("differing_tensors")
    differing = [str(one) for one in told] if isinstance(told, list) else []
    return [
        _losses(ranks),
        _weights(differing, len(ranks)),
        _gpus(ranks),
        _checkpoint(ranks),
        _transport(ranks, network),
    ]


def _losses(ranks: Sequence[dict[str, Any]]) -> Point:
    steps = [str(step) for step in range(1, NUM_STEPS + 1)]
    told = [{step: _number(_table(rank, "losses").get(step)) for step in steps} for rank in ranks]
    wrong = [
        f"{_name(rank)}: {', '.join(f'step {step}: {losses[step]}' for step in steps if not _finite(losses[step]))}"
        for rank, losses in zip(ranks, told, strict=True)
        if not all(map(_finite, losses.values()))
    ]
    if wrong:
        remedy = "look at the data (`allranks preprocess CONFIG --show 3`), learning_rate and the precision"
        return Point("losses", "failed", f"not finite, or not there: {few(wrong)}", remedy)
    first = told[0]
    other = [
        f"{_name(rank)} {losses[step]} at step {step}"
        for rank, losses in zip(ranks, told, strict=True)
        for step in steps
        if not math.isclose(losses[step], first[step], rel_tol=_EQUAL)
    ]
    if other:
        text = f"not equal: {_name(ranks[0])} has {', '.join(str(first[step]) for step in steps)}; {few(other)}"
        return Point("losses", "failed", text, "do not train like this: the ranks do not work on one run")
    shown = " -> ".join(f"{first[step]:.4f}" for step in steps)
    alike = f", finite and equal on all {len(ranks)} ranks" if len(ranks) > 1 else ", finite"
    return Point("losses", "ok", shown + alike)


def _weights(differing: Sequence[str], num_ranks: int) -> Point:
    if differing:
        text = few([printable(one, 300) for one in differing], 4, between="; ")
        return Point("weights", "failed", f"not alike after {NUM_STEPS} steps: {text}", "the ranks drift apart: report")
    if num_ranks == 1:
        return Point("weights", "not judged", "one rank has nothing to be compared with")
    return Point("weights", "ok", f"alike after {NUM_STEPS} steps, on all ranks that share them")


def _gpus(ranks: Sequence[dict[str, Any]]) -> Point:
    on_cpu = [rank for rank in ranks if rank.get("device") == "CPU"]
    if len(on_cpu) == len(ranks):
        return Point("GPUs", "not judged", "the ranks ran on the CPU")
    if on_cpu:
        text = f"{few(map(_name, on_cpu))} ran on the CPU, the others on a GPU"
        return Point("GPUs", "failed", text, "see why torch finds no GPU there: `allranks check CONFIG`")
    idle = [rank for rank in ranks if rank.get("busy_percent") == 0]
    if idle:
        text = f"idle in both steps: {few(map(_name, idle))}"
        return Point("GPUs", "failed", text, "look at nvidia-smi there while `allranks train --smoke` runs again")
    unseen = [rank for rank in ranks if not is_a(rank.get("busy_percent"), int)]
    if unseen:
        return Point("GPUs", "not judged", f"the driver does not tell how busy they are: {few(map(_name, unseen))}")
    least = min(int(rank["busy_percent"]) for rank in ranks)
    return Point("GPUs", "ok", f"all {len(ranks)} busy, {least} % or more at their best moment")


def _checkpoint(ranks: Sequence[dict[str, Any]]) -> Point:
    told = [(rank, rank["checkpoint"]) for rank in ranks if isinstance(rank.get("checkpoint"), dict)]
    problems = [
        f"{_name(rank)}: {printable(problem, 500)}" for rank, one in told for problem in one.get("problems") or ()
    ]
    if problems or not told:
        text = few(problems, 4, between="; ") or "no rank says that it was written"
        return Point("checkpoint", "failed", text, "look at the disk of output_dir: space, permissions, the mount")
    size = sum(int(one.get("bytes") or 0) for _, one in told)
    on = f" on {len(told)} disks" if len(told) > 1 else ""
    files = sum(int(one.get("files") or 0) for _, one in told)
    return Point("checkpoint", "ok", f"{files} files, {si_bytes(size)} written{on}, verified and deleted")


def _transport(ranks: Sequence[dict[str, Any]], network: NetworkSettings) -> Point:
    if len(ranks) == 1:
        return Point("transport", "not judged", "one rank talks to nobody")
    seen = [(rank, _table(rank, "transport")) for rank in ranks]
    backends = sorted({str(one.get("backend")) for _, one in seen})
    networks = sorted({str(one["nccl"]) for _, one in seen if one.get("nccl")})
    hosts = {str(rank.get("host")) for rank in ranks}
    if len(networks) > 1:
        which = few([f"{_name(rank)} {one['nccl']}" for rank, one in seen if one.get("nccl")])
        return Point("transport", "failed", f"NCCL does not use the same on all: {which}", _NETWORK)
    if network.infiniband == "required" and networks and networks != ["IB"]:
        return Point("transport", "failed", f"InfiniBand is required, and NCCL uses {networks[0]}", _NETWORK)
    alone = [
        _name(rank)
        for rank, one in seen
        if len(hosts) > 1 and one.get("backend") == "gloo" and not _leave(_table(one, "local"))
    ]
    if alone:
        text = f"no connection to another node was seen: {few(alone)}"
        return Point("transport", "failed", text, _NETWORK)
    if network.interface and len(hosts) > 1 and (off := [_name(rank) for rank, one in seen if not _on(network, one)]):
        text = f"network.interface is {network.interface}, and {few(off)} talked over another one"
        return Point("transport", "failed", text, _NETWORK)
    ways = sorted({f"{printable(a, 64)} ({printable(n, 32)})" for _, one in seen for a, n in _ways(one)})
    how = f"NCCL over {networks[0]}" if networks else "NCCL" if "nccl" in backends else "gloo"
    over = f", between {few(ways)}" if ways else ""
    return Point("transport", "ok", f"{how}{over}")


_NETWORK = "look at `network:` in the config and NCCL_*, GLOO_* on that node: `allranks check CONFIG` shows what holds"


def _ways(one: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Addresses for other nodes, where there are any, else all: nodes of one machine talk over loopback."""
    local = {address: str(name) for address, name in _table(one, "local").items()}
    return (_leave(local) or local).items()


def _on(network: NetworkSettings, one: Mapping[str, Any]) -> bool:
    """Whether some connection with another node goes over the interface that the config names."""
    nics = [Interface(str(name), (address,), True) for address, name in _leave(_table(one, "local")).items()]
    return network.interface is None or bool(select(network.interface, nics))


def _leave(local: Mapping[str, str]) -> dict[str, str]:
    return {address: name for address, name in local.items() if not _is_loopback(address)}


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return True


def _name(rank: Mapping[str, Any]) -> str:
    return f"rank {rank.get('rank')} on {printable(rank.get('host'), 64)}"


def _table(found: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = found.get(key)
    return value if isinstance(value, dict) else {}


def _number(value: object) -> float:
    return float(value) if is_a(value, float) and isinstance(value, int | float) else math.nan


def _finite(value: float) -> bool:
    return math.isfinite(value)
