"""A smoke run's ranks say what they saw: losses, weights, GPU, checkpoint and transport, for the launcher to judge."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from allranks import durable
from allranks.checkpoint import commit
from allranks.cluster.identity import Identity
from allranks.cluster.smoke import EVIDENCE, SMOKE
from allranks.observe import RunDir, read_events
from allranks.observe.events import StepEvent
from allranks.train.loop import Loop
from allranks.train.replicas import differing_tensors
from allranks.train.storage import Storage
from allranks.train.transport import Transport, transport

_SAMPLE_SECONDS = 0.05


def is_smoke(env: Mapping[str, str] = os.environ) -> bool:
    """Whether `allranks train --smoke` started this rank."""
    return bool(env.get(SMOKE))


@dataclass
class GpuLoad:
    """How busy this rank's GPU was, as its driver tells it: the highest of all looks. None on a CPU, or not known."""

    device: torch.device
    busy_percent: int | None = None
    _ended: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Within, the GPU is looked at all the time."""
        if self.device.type != "cuda":
            yield
            return
        thread = threading.Thread(target=self._watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def _watch(self) -> None:
        # Where NVML has no such number (MIG, some drivers) it stays unknown, which is told.
        with contextlib.suppress(Exception):
            while not self._ended.wait(_SAMPLE_SECONDS):
                self.busy_percent = max(self.busy_percent or 0, torch.cuda.utilization(self.device))


def write_evidence(loop: Loop, identity: Identity, run_dir: RunDir, storage: Storage, load: GpuLoad) -> None:
    """Verify and remove the checkpoint, and write what all ranks saw into this node's logs; call it on all ranks."""
    checkpoint = _checkpoint(loop, storage)
    mine = {
        "rank": identity.rank,
        "host": socket.gethostname(),
        "device": _device(load.device),
        "busy_percent": load.busy_percent,
        "losses": _losses(run_dir, identity.rank),
        "memory_bytes": loop.memory_bytes(),
        "checkpoint": checkpoint,
        "transport": _transport(identity, run_dir, load.device).to_message(),
    }
    differing = differing_tensors(loop.model.hf_model, identity)
    ranks: list[Any] = [mine]
    if not identity.alone:
        ranks = [None] * identity.world_size
        dist.all_gather_object(ranks, mine)
    if identity.local_rank == 0:
        logs = os.environ.get("ALLRANKS_LOG_DIR") or run_dir.logs(socket.gethostname())
        evidence = {"run": os.environ.get("ALLRANKS_RUN_ID"), "ranks": ranks, "differing_tensors": differing[:16]}
        durable.write(Path(logs) / EVIDENCE, json.dumps(evidence, indent=1) + "\n", make_parents=True)


def _checkpoint(loop: Loop, storage: Storage) -> dict[str, Any] | None:
    """What this rank's folder has of the checkpoint; None on ranks that do not act for one. It is then removed."""
    path = loop.checkpointer.newest
    told: dict[str, Any] | None = None
    if storage.leads and path is None:
        told = {"problems": ["no checkpoint was written"]}
    elif storage.leads and path is not None:
        files = [file for file in path.rglob("*") if file.is_file()]
        problems = commit.verify(path) if storage.count == 1 else _own_problems(path)
        size = sum(file.stat().st_size for file in files)
        told = {"problems": problems, "files": len(files), "bytes": size}
    if dist.is_initialized():
        dist.barrier()
    if told is not None and path is not None and path.exists():
        try:
            commit.remove(path)
            told["removed"] = True
        except OSError as error:
            told["removed"] = False
            told["problems"] = [*told["problems"], f"{path} cannot be removed: {error.strerror}"]
    return told


def _own_problems(path: Path) -> list[str]:
    """Of a checkpoint whose parts lie on several disks: of the files that are here."""
    files = commit.read_marker(path)["files"]
    here = {name: recorded for name, recorded in files.items() if (path / name).exists()}
    return list(commit.verify_files(path, here)[1].values())


def _losses(run_dir: RunDir, rank: int) -> dict[str, float]:
    run = os.environ.get("ALLRANKS_RUN_ID")
    events = read_events(run_dir.events(rank))
    return {str(event.step): event.loss for event in events if isinstance(event, StepEvent) and event.run == run}


def _transport(identity: Identity, run_dir: RunDir, device: torch.device) -> Transport:
    return Transport() if identity.alone else transport(identity, run_dir, uses_nccl=device.type == "cuda")


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
