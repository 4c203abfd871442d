"""The run's proof: after the first step of a start every rank says of itself what it is and what it did; rank 0 keeps
it (proof.json) and judges it. At each checkpoint the replicas' parameters are compared again.

It costs one reading of the rank's part of the model and one gathering of a few kilobytes a rank, at the end of the
first step, where ranks wait for each other anyway; the steps after it do nothing of it.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from allranks import durable
from allranks.cluster.connections import open_connections, own_addresses
from allranks.cluster.identity import Identity
from allranks.config import RunConfig
from allranks.data import BatchPlan, StepPlan
from allranks.errors import AllranksError, RefusedError
from allranks.findings import told
from allranks.listing import few
from allranks.model.train_model import TrainModel
from allranks.observe import EventLog, RunDir
from allranks.observe.events import ProofEvent
from allranks.observe.nccl_log import NcclLog, read_log
from allranks.train.devices import claim
from allranks.train.network import nccl_log_file
from allranks.train.replicas import Compared, compare_replicas
from allranks.train.storage import from_rank_0
from allranks.train.taken import Taken, planned_for_next
from allranks.verify import Blocks, Connection, Proof, RankProof, findings, judge, sentence
from allranks.verify.record import MOST_BLOCKS

# What ends a run by itself: what it was measured by itself. NCCL's words are read, and may be read wrongly.
_MOST_TENSORS = 64
_ENDS = ("verify-parameters", "verify-data", "verify-GPUs", "verify-network.require")


class Proving:
    """Makes the proof of one start, whose first step is `step` (from 1). All ranks call all of it."""

    def __init__(
        self,
        cfg: RunConfig,
        identity: Identity,
        run_dir: RunDir,
        model: TrainModel,
        events: EventLog,
        *,
        step: int,
        say: Callable[[str], None],
        warn: Callable[[str], None],
    ) -> None:
        self.step = step
        self.taken = Taken(step - 1)
        self._require = cfg.network.settings.require
        self._identity, self._run_dir, self._model, self._events = identity, run_dir, model, events
        self._say, self._warn = say, warn
        self._is_one_kind = True

    def before_first_step(self) -> None:
        """With `network.require`: let the ranks talk, and raise RefusedError on all if they do otherwise."""
        if self._require is None or self._identity.alone:
            return
        device = self._model.placement.device
        if device.type == "cuda":  # NCCL connects when it is first used
            dist.all_reduce(torch.ones(1, device=device))
            torch.cuda.synchronize(device)
        ranks = self._gathered(self._rank(step=0, compared=Compared("", "", "", []), blocks=None))
        wrong = ""
        if ranks is not None:
            proof = self._proof(ranks, step=0)
            checks = [check for check in judge(proof) if check.name == "network.require"]
            wrong = "\n".join(map(told, findings(checks, proof)))
            if wrong:
                self._keep(proof)
        if wrong := from_rank_0(wrong):
            raise RefusedError(f"before the first step: {wrong}")

    def after_first_step(
        self, plan: BatchPlan, todo: StepPlan, loss_sums: torch.Tensor, loss: float, *, pad_to: int | None, pad_id: int
    ) -> None:
        """Gather, keep, judge and tell; raises RefusedError on all ranks for what makes a mixture of the run."""
        blocks = self._blocks(plan, loss_sums, pad_to=pad_to, pad_id=pad_id)
        compared = compare_replicas(self._model.hf_model, self._identity)
        mine = self._rank(step=self.step, compared=compared, blocks=blocks)
        ranks = self._gathered(mine)
        self._events.write(
            ProofEvent(
                step=self.step,
                host=mine.host,
                pid=mine.pid,
                gpu=mine.gpu,
                num_blocks=blocks.number,
                parameters=compared.sums,
                different=tuple(compared.different[:_MOST_TENSORS]),
            )
        )
        verdict: tuple[str, bool] = ("", True)
        if ranks is not None:
            ids = plan.order.block_ids(*_positions(plan, self.step - 1))
            proof = self._proof(
                ranks,
                step=self.step,
                ids=tuple(int(block) for block in ids) if len(ids) <= MOST_BLOCKS else None,
                num_blocks=todo.num_blocks,
                num_target_tokens=todo.num_target_tokens,
                loss=loss if self._model.router is None else None,
                different=tuple(compared.different[:_MOST_TENSORS]),
            )
            self._keep(proof)
            verdict = self._judged(proof)
        ending, self._is_one_kind = from_rank_0(verdict)
        if ending:
            raise RefusedError(f"after step {self.step}: {ending}")

    def before_save(self, step: int) -> None:
        """Compare the replicas; raises AllranksError on all ranks, so that no checkpoint is made of a mixture."""
        if self._identity.alone:
            return
        compared = compare_replicas(self._model.hf_model, self._identity)
        differing = tuple(compared.different[:_MOST_TENSORS])
        self._events.write(ProofEvent(step=step, parameters=compared.sums, different=differing))
        if not differing:
            return
        said = (
            f"step {step}: ranks that hold the same parameters hold different ones: {few(differing, 4, between='; ')}"
        )
        if not self._is_one_kind:
            self._warn(f"{said}. The ranks' processors are not of one kind, which round differently")
            return
        raise AllranksError(f"{said}; stopped before a checkpoint could be made of it. Resume from the last one")

    def _judged(self, proof: Proof) -> tuple[str, bool]:
        """What ends the run, and whether all devices are of one kind."""
        is_one_kind = len({rank.device for rank in proof.ranks}) == 1
        try:
            checks = judge(proof)
        except Exception as error:  # the others wait for this verdict: a fault of ours ends no run
            self._warn(f"the run could not be judged ({type(error).__name__}: {error}); it goes on")
            return "", is_one_kind
        wrong = findings(checks, proof)
        for finding in wrong:
            if finding.code not in _ENDS:
                self._warn(told(finding))
        for check in checks:
            if check.result == "warning":
                self._warn(f"{check.name}: {check.said}")
        if not wrong:
            self._say(f"verified: {sentence(proof, checks)}")
        ending = "\n".join(told(finding) for finding in wrong if finding.code in _ENDS)
        return ending, is_one_kind

    def _blocks(self, plan: BatchPlan, loss_sums: torch.Tensor, *, pad_to: int | None, pad_id: int) -> Blocks:
        following = planned_for_next(plan, self.step - 1, pad_to=pad_to, pad_token_id=pad_id)
        ids = tuple(self.taken.ids)
        return Blocks(
            number=len(ids),
            ids=ids if len(ids) <= MOST_BLOCKS // plan.world_size + 1 else None,
            content=self.taken.content,
            content_of_next=following.content,
            target_tokens=self.taken.num_target_tokens,
            loss_sum=float(loss_sums[0]),
        )

    def _rank(self, *, step: int, compared: Compared, blocks: Blocks | None) -> RankProof:
        identity, placement = self._identity, self._model.placement
        device = placement.device
        connections = None if identity.alone else open_connections(but_ports=(identity.master_port,))
        file, nccl = (None, None) if device.type != "cuda" or identity.alone else own_nccl_log(os.environ)
        return RankProof(
            rank=identity.rank,
            world_size=identity.world_size,
            host=socket.gethostname(),
            node=placement.nodes[identity.rank],
            local_rank=identity.local_rank,
            pid=os.getpid(),
            step=step,
            gpu=claim(device).gpu,
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
            addresses=tuple(own_addresses()),
            connections=None if connections is None else tuple(Connection(*one) for one in connections),
            whole=compared.whole,
            parts=compared.parts,
            sums=compared.sums,
            blocks=blocks,
            nccl=nccl,
            nccl_file=str(file or ""),
        )

    def _gathered(self, mine: RankProof) -> list[RankProof] | None:
        """All ranks' on rank 0, None on the others."""
        if self._identity.alone:
            return [mine]
        box: list[Any] | None = [None] * self._identity.world_size if self._identity.rank == 0 else None
        dist.gather_object(mine, box, dst=0)
        return box

    def _proof(self, ranks: list[RankProof], *, step: int, **of_step: Any) -> Proof:
        on_gpus = self._model.placement.device.type == "cuda"
        return Proof(
            run=self._events.run_id,
            t=time.time(),
            step=step,
            world_size=self._identity.world_size,
            backend="" if self._identity.alone else "nccl" if on_gpus else "gloo",
            ranks=tuple(ranks),
            require=self._require,
            **of_step,
        )

    def _keep(self, proof: Proof) -> None:
        """A proof that cannot be written is a warning: the run goes on."""
        try:
            durable.write(self._run_dir.proof, json.dumps(proof.to_message(), separators=(",", ":")) + "\n")
        except (OSError, AllranksError) as error:
            self._warn(f"the run's proof cannot be kept: {error}")


def own_nccl_log(env: Mapping[str, str]) -> tuple[Path | None, NcclLog | None]:
    """This process's NCCL log and what it says; None for what there is not."""
    file = nccl_log_file(env)
    with suppress(OSError, ValueError):
        if file is not None and (logs := read_log(file)):
            return file, next((log for log in logs if log.pid == os.getpid()), logs[0])
    return file, None


def _positions(plan: BatchPlan, k: int) -> tuple[int, int]:
    return k * plan.global_batch, min((k + 1) * plan.global_batch, plan.total_blocks)


def _processor() -> str:
    """The model of this machine's processor."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()
