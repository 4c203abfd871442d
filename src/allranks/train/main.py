"""One rank from start to end: data, rendezvous, model, training, and what it leaves behind."""

from __future__ import annotations

import os
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from allranks import interrupt
from allranks.checkpoint.state import read_state
from allranks.cluster.expected import DATA_FINGERPRINT, EXPECTED_NODES, check_world_size
from allranks.cluster.gpus import count_gpus
from allranks.cluster.identity import Identity, identify
from allranks.cluster.timed import TIMED
from allranks.cluster.torchrun_agent import PROCESSES, same_on_all_nodes, told_to_torchrun
from allranks.config import RunConfig
from allranks.config.strategy import strategy
from allranks.data import Prepared, load_tokenizer, prepare
from allranks.disk import disk_told, refuse_unwritable
from allranks.errors import AllranksError, CheckpointError, OutOfMemoryError
from allranks.evidence.in_program.allranks_answers import answer
from allranks.exit_codes import DONE, INTERRUPTED, PREEMPTED
from allranks.model.build import build_model
from allranks.model.files import model_files
from allranks.model.placement import place
from allranks.model.quantized.settings import require_library
from allranks.model.train_model import TrainModel
from allranks.model.unseen import unseen_tokens
from allranks.observe import EventLog, RunDir, redirect_rank_output, say
from allranks.observe.events import ExitEvent, PhaseEvent, WarningEvent
from allranks.observe.trackers import Trackers, refuse_missing_packages
from allranks.train import world
from allranks.train.announce import announcement
from allranks.train.assemble import assemble
from allranks.train.beside import put_beside
from allranks.train.disk_room import room_warnings
from allranks.train.failure import print_error, tell_failure
from allranks.train.loop import Loop, TrainingEnd, train
from allranks.train.memory import memory_event, out_of_memory
from allranks.train.network import equal_settings, set_up_network
from allranks.train.pace import beside_plan, lengths_of
from allranks.train.replicas import check_replicas
from allranks.train.result import result_checkpoint, write_result
from allranks.train.resume import (
    archive_newer,
    check_trajectory,
    checkpoint_to_resume,
    global_batch_size,
    restore,
)
from allranks.train.signals import StopRequest
from allranks.train.smoke import GpuLoad, is_smoke, write_evidence
from allranks.train.storage import Storage, detect_shared, from_rank_0, replicate
from allranks.train.summary import summary

# What may take long, and would else pass in silence, with its time since this rank began.
_TOLD_PHASES = {
    "rendezvous": "joining the other ranks",
    "model": "loading the model",
    "train": "the first step",
    "export": "writing the result",
}


def main_rank(cfg: RunConfig, identity: Identity | None = None) -> int:
    """Run this process's part of the training; returns its exit code (0 done, 75 preempted, else failed).

    Errors are recorded in the rank's events and printed; none is raised.
    """
    identity = identity or identify(os.environ)
    run_dir = RunDir(cfg.checkpoint.output_dir)
    try:
        refuse_unwritable(run_dir.path)
        with disk_told("the record of this rank cannot be begun", run_dir.path):
            log = redirect_rank_output(identity.rank)
            events = EventLog(run_dir.events(identity.rank), identity.rank)
    except AllranksError as error:
        print_error(error, identity)
        return error.exit_code
    answer(identity.rank, str(run_dir.path))
    rank = _Rank(cfg, identity, run_dir, events)
    try:
        with interrupt.interruptible():
            ended = rank.run()
        code, reason = DONE, "done"
        if ended.reason == "preempted":
            code, reason = PREEMPTED, f"preempted by {ended.signal}"
    except KeyboardInterrupt:
        code, reason = INTERRUPTED, "interrupted"
        if identity.rank == 0:
            say("\ninterrupted: this step was not finished; checkpoints that are complete are kept", file=sys.stderr)
    except Exception as error:
        code, reason = tell_failure(error, identity, events, log, rank.out_of_memory)
    events.write(ExitEvent(code=code, reason=reason))
    if rank.trackers is not None:
        rank.trackers.close()
    return code


@dataclass
class _Rank:
    cfg: RunConfig
    identity: Identity
    run_dir: RunDir
    events: EventLog
    trackers: Trackers | None = None
    started: float = field(default_factory=time.monotonic)
    # As far as they are made.
    model: TrainModel | None = None
    loop: Loop | None = None

    def out_of_memory(self, error: BaseException) -> OutOfMemoryError | None:
        """What `error` says of memory, with what this rank holds."""
        return out_of_memory(error, self.cfg, self.identity, self.model, self.loop.strategy if self.loop else None)

    def run(self) -> TrainingEnd:
        with StopRequest() as stop_request:
            return self._run(stop_request)

    def _run(self, stop_request: StopRequest) -> TrainingEnd:
        cfg, identity = self.cfg, self.identity
        for line in set_up_network(cfg, identity, self.run_dir):
            self._warn(line)
        if identity.rank == 0:
            refuse_missing_packages(cfg)
        require_library(cfg)
        self._enter("data")
        # Taken out: what a rank starts has other data.
        prepared = prepare(cfg, known=os.environ.pop(DATA_FINGERPRINT, None), report=self._say)

        self._enter("rendezvous")
        check_world_size(identity)
        kind, _, _ = strategy(cfg, identity.world_size)
        wait_seconds, needs_group = cfg.parallel.start_timeout_seconds, kind in ("fsdp", "zero")
        device = world.join(identity, timeout_seconds=wait_seconds, needs_group=needs_group)
        told = {"prepared data": prepared.fingerprint, "--nnodes": os.environ.get(EXPECTED_NODES)}
        launched = same_on_all_nodes(told_to_torchrun(), os.environ, count_gpus())
        if "start.processes" in (cfg.preflight.settings.ignore or ()):
            launched.pop(PROCESSES, None)
        world.check_equal(equal_settings(cfg) | model_files(cfg) | told | launched, identity)
        storage = detect_shared(self.run_dir.path, identity)
        resume = checkpoint_to_resume(cfg, self.run_dir, storage, self._warn)

        self._enter("mesh")
        nodes = world.nodes_of_ranks(identity)
        placement = place(cfg, device, identity.rank, identity.world_size, nodes)

        self._enter("model")
        if device.type == "cuda" and cfg.precision.tf32:
            torch.set_float32_matmul_precision("high")
        tokenizer = load_tokenizer(cfg) if _may_add_tokens(cfg) else None
        self.model = model = build_model(cfg, placement, tokenizer=tokenizer)
        world.check_equal(model_files(cfg, from_hub=True), identity)  # by now it is in every node's cache
        check_replicas(model.hf_model, identity)
        if cfg.adapter.adapter and identity.rank == 0:
            self._warn_of_unseen_tokens(model, prepared)
        state = read_state(resume) if resume else None
        self.loop = loop = assemble(
            cfg,
            identity,
            prepared,
            model,
            global_batch=global_batch_size(cfg, identity.world_size, state, self._warn),
            run_dir=self.run_dir,
            storage=storage,
            events=self.events,
            stop_request=stop_request,
            warn=self._warn,
        )
        if os.environ.get(TIMED):
            loop.saves, loop.step_schedule = False, replace(loop.step_schedule, save_at=frozenset())
            self._say(f"only to be timed ({TIMED} is set): nothing is saved")
        loop.time_limit.begin()
        left_trajectory = False
        if resume is not None and state is not None:
            check_trajectory(resume, state, cfg, prepared.fingerprint, self._warn)
            restore(loop, resume, state)
            left_trajectory = archive_newer(self.run_dir, loop.step, storage, self._warn)
            self._say(f"resumed {resume} at step {loop.step} of {loop.step_schedule.num_steps}")
        if model.packed and (text := model.packed.warning(model.num_parameters)):
            self._warn(text)
        if cfg.parallel.ddp_timeout is not None and not identity.alone:
            self._say(f"a collective that does not finish ends the run after {wait_seconds} s (ddp_timeout)")
        self._tell(announcement(loop, identity.world_size))

        ended, first_step = TrainingEnd("done"), loop.step + 1
        if loop.step >= loop.step_schedule.num_steps:
            self._say(f"all {loop.step_schedule.num_steps} steps were done before; nothing is left to train")
        else:
            for line in room_warnings(cfg, loop, storage):
                self._warn(line)
            self.events.write(memory_event(cfg, model))  # for the launcher, should the kernel kill this rank
            self._enter("train", num_steps=loop.step_schedule.num_steps, full_speed=loop.full_speed)
            self._start_trackers(loop, fresh=resume is None or left_trajectory)
            load = GpuLoad(device)
            with load.watched() if is_smoke() else nullcontext():
                ended = self._train(loop)
            if is_smoke() and ended.reason == "done":
                write_evidence(loop, identity, self.run_dir, storage, load)
                self._enter("done")
                return ended
        written = None if ended.reason == "preempted" or not loop.saves else self._write_result(loop, storage)
        if identity.rank == 0:
            self._compare_with_plan(loop)
        self._enter("done")
        if identity.rank == 0:
            seconds = time.monotonic() - self.started
            self._tell(summary(loop, ended, self.run_dir, written, first_step=first_step, seconds=seconds))
        return ended

    def _compare_with_plan(self, loop: Loop) -> None:
        """Add what was predicted of this run and what it took to its record, and for later plans."""
        device = loop.model.placement.device
        try:
            told = beside_plan(
                self.cfg,
                loop.pace,
                loop.model.hf_model.config.to_dict(),
                lengths_of(loop.plan, padded_to=loop.pad_blocks_to),
                nodes=loop.model.placement.nodes,
                gpu=torch.cuda.get_device_name(device) if device.type == "cuda" else None,
            )
        except Exception as error:  # of a model nobody thought of; the run itself is done and well
            self.events.write(WarningEvent(message=f"this run could not be compared with a plan: {error!r}"))
            return
        if told is not None:
            self.events.write(told)

    def _start_trackers(self, loop: Loop, *, fresh: bool) -> None:
        if self.identity.rank == 0:
            self.trackers = Trackers(
                self.cfg,
                self.run_dir,
                self.events,
                start_step=loop.step,
                num_steps=loop.step_schedule.num_steps,
                log_every=loop.step_schedule.log_every,
                fresh=fresh,
                warn=self._warn,
            )

    def _train(self, loop: Loop) -> TrainingEnd:
        put_beside(loop, self.cfg, self.identity, self.run_dir, self.events, say=self._say, warn=self._warn)
        try:
            return train(loop)
        finally:
            if loop.progress is not None:
                loop.progress.close()

    def _write_result(self, loop: Loop, storage: Storage) -> Path | None:
        """Write the trained adapter or model for Hugging Face tools, where one is wanted; its folder."""
        if loop.checkpointer.home is not None:
            loop.checkpointer.home.refuse_another()  # else there seems to be nothing to make a result of
        checkpoint = from_rank_0(result_checkpoint(self.cfg, self.run_dir, loop))
        if checkpoint is None:
            return None
        self._enter("export")
        loop.time_limit.begin()  # each rank reads its part of the files, which takes as long as its storage does
        if storage.count > 1 and (lack := replicate(checkpoint, storage, self._say)):
            raise CheckpointError("the result cannot be written:\n  " + "\n  ".join(lack.problems))
        # Rank 0 writes alone, however long it takes; the others are done, and wait in no collective with a time-out.
        world.destroy_group()
        if self.identity.rank != 0:
            return None
        return write_result(self.cfg, self.run_dir, checkpoint, say=self._say)

    def _enter(self, phase: str, *, num_steps: int | None = None, full_speed: float | None = None) -> None:
        self.events.write(PhaseEvent(phase=phase, pid=os.getpid(), num_steps=num_steps, full_speed=full_speed))
        if phase in _TOLD_PHASES:
            self._say(f"{f'{time.monotonic() - self.started:.1f} s':<12}{_TOLD_PHASES[phase]}")

    def _say(self, text: str) -> None:
        if self.identity.rank == 0:
            say(text)

    def _tell(self, lines: list[str]) -> None:
        for line in lines:
            self._say(line)

    def _warn(self, text: str) -> None:
        self.events.write(WarningEvent(message=text))
        self._say(f"warning: {text}")

    def _warn_of_unseen_tokens(self, model: TrainModel, prepared: Prepared) -> None:
        used, new = (prepared.stats.get(key) for key in ("added_tokens", "new_tokens"))
        if used and (told := unseen_tokens(self.cfg, model.hf_model, used, new or [])):
            self._warn(told)


def _may_add_tokens(cfg: RunConfig) -> bool:
    """Whether the tokenizer may have more tokens than the model has embeddings; else it need not be loaded."""
    return bool(cfg.model.tokens or cfg.model.special_tokens or cfg.model.tokenizer_config)
