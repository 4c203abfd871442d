"""What a config and a launch ask of the nodes: of the probe, of the checks, and which findings are accepted."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from allranks.cluster.nodes import Host
from allranks.cluster.probe import ProbeRequest
from allranks.config import RunConfig
from allranks.config.sections.preflight import PreflightSettings
from allranks.config.yaml_lines import read_yaml
from allranks.errors import ConfigError
from allranks.launch.preflight.sizes import Sizes, sizes
from allranks.launch.spec.options import Launch
from allranks.plan.fit import Expected
from allranks.preflight.catalogue import CHECKS, named
from allranks.preflight.check import Wanted
from allranks.preflight.judge import Policy

_GPU_SECONDS = 15.0
"""Without persistence mode the driver starts each GPU anew for nvidia-smi: seconds a GPU, and a node has eight."""
_NEEDED = ("allranks", "torch", "transformers", "safetensors", "numpy", "pydantic", "PyYAML", "psutil")


def policy_of(cfg: RunConfig, *, quick: bool) -> Policy:
    """What the config says of checks. Raises ConfigError for an id that no check has, with its line and the nearest."""
    settings = cfg.preflight.settings
    chosen = {key: _named(cfg, key, _listed(settings, key)) for key in ("strict", "ignore", "skip")}
    for name in sorted(chosen["strict"] & chosen["ignore"]):
        raise ConfigError(f"{_place(cfg, 'ignore', name)}{name} is in preflight.strict, too: keep one of them")
    return Policy(chosen["strict"], chosen["ignore"], chosen["skip"], quick)


def is_skipped(cfg: RunConfig) -> bool:
    """Whether the config wants several nodes to start without any check."""
    return cfg.preflight.settings.skip is True


def probe_request(cfg: RunConfig, launch: Launch, names: Iterable[str] = ()) -> ProbeRequest:
    """What each node is to look at; `names` are those of the nodes, as far as they are known."""
    asked = {launch.address, *names} if launch.max_nodes > 1 else set(names)
    return _request(cfg, {*(name for name in asked if name), socket.gethostname()}, on_gpus=launch.num_gpus > 0)


def probe_request_of_all(cfg: RunConfig, names: Sequence[str], address: str | None) -> ProbeRequest:
    """The same for nodes that are asked from one of them, by the names that the user gave them."""
    return _request(cfg, {*names, *([address] if address else [])}, on_gpus=False)


def _request(cfg: RunConfig, names: Iterable[str], *, on_gpus: bool) -> ProbeRequest:
    hcas = cfg.network.settings.hcas
    return ProbeRequest(
        names=tuple(sorted(names)),
        paths=tuple(paths_of(cfg)),
        nccl_ib_hca="=" + ",".join(hcas) if hcas else None,
        gpu_deadline_seconds=_GPU_SECONDS if on_gpus else None,
    )


def needed_packages(cfg: RunConfig) -> tuple[str, ...]:
    """Without these a run of this config does not start."""
    more = {
        "deepspeed": cfg.deepspeed.stage,
        "bitsandbytes": cfg.adapter.adapter == "qlora",
        "peft": cfg.adapter.adapter,
    }
    return (*_NEEDED, *(name for name, wanted in more.items() if wanted))


def wanted_of(cfg: RunConfig, launch: Launch, expected: Expected | None = None) -> Wanted:
    """What the nodes must be able to do, but for `sizes_of`."""
    network = cfg.network.settings
    on_gpus = launch.num_gpus > 0
    return Wanted(
        nproc_per_node=launch.nproc_per_node,
        device="cuda" if on_gpus else "cpu",
        backend="nccl" if on_gpus else "gloo",
        master_addr=launch.address if launch.max_nodes > 1 else None,
        interface=network.interface,
        infiniband=network.infiniband,
        hcas=tuple(network.hcas or ()),
        gid_index=network.gid_index,
        packages=needed_packages(cfg),
        expected=expected,
    )


def sizes_of(cfg: RunConfig, launch: Launch) -> Callable[[], Sizes]:
    """What finds out how much it will take: it reads the model's folder, and a mount may not answer."""

    def read() -> Sizes:
        return sizes(cfg, num_nodes=launch.max_nodes, num_processes=launch.nproc_per_node, on_cpu=launch.num_gpus == 0)

    return read


def wanted_of_all(cfg: RunConfig, hosts: Sequence[Host]) -> Wanted:
    """The same as far as it is known where no node has counted its GPUs."""
    network = cfg.network.settings
    slots = {host.slots for host in hosts}
    processes = slots.pop() if len(slots) == 1 else None
    size = sizes(cfg, num_nodes=len(hosts), num_processes=processes, on_cpu=False)
    return Wanted(
        nproc_per_node=processes,
        interface=network.interface,
        infiniband=network.infiniband,
        hcas=tuple(network.hcas or ()),
        gid_index=network.gid_index,
        checkpoint_bytes=size.checkpoint_bytes,
        checkpoint_files=size.checkpoint_files,
        packages=needed_packages(cfg),
    )


def paths_of(cfg: RunConfig) -> Iterable[dict[str, str]]:
    """All that the config names, as the probe takes it; none is looked at here, where a dead mount would be felt."""
    named = [(cfg.checkpoint.output_dir, "output_dir"), (cfg.data.dataset_prepared_path, "cache")]
    named.append((os.environ.get("TMPDIR", "/tmp"), "tmp"))
    inputs = [(cfg.model.base_model, "model")]
    inputs += [(spec.path, "data") for spec in (*cfg.data.datasets, *(cfg.data.test_datasets or ()))]
    # A name of the Hub is written as a relative path is.
    named += [(name, purpose) for name, purpose in inputs if re.match(r"[/~.]", name) or Path(name).exists()]
    for name, purpose in named:
        yield {"path": _absolute(name), "purpose": purpose}


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def _listed(settings: PreflightSettings, key: str) -> list[str]:
    found = getattr(settings, key)
    return found if isinstance(found, list) else []


def _named(cfg: RunConfig, key: str, names: list[str]) -> frozenset[str]:
    for name in names:
        try:
            named([name])
        except ValueError as error:
            raise ConfigError(f"{_place(cfg, key, name)}{error}; docs/checks.md lists all {len(CHECKS)}") from None
    return frozenset(names)


def _place(cfg: RunConfig, key: str, name: str) -> str:
    """Where the file has it. Looked up only for an error: a resolved config does not keep the lines."""
    label = f"preflight.{key}: "
    try:
        data, lines = read_yaml(cfg.source)
        found = data["preflight"][key]
        index = found.index(name) if isinstance(found, list) else None
        path = ("preflight", key) if index is None else ("preflight", key, index)
        return f"{cfg.source}:{lines.get(path, lines['preflight', key])}: {label}"
    except (ConfigError, KeyError, TypeError, ValueError):  # an option, or a config that was never a file
        return label
