"""Putting the loop together: the config's words become the loop's parts."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Callable

import torch
import torch.distributed as dist

from allranks import durable
from allranks.checkpoint.state import RunState
from allranks.cluster.identity import Identity
from allranks.config import RunConfig
from allranks.config.batch import num_micro_batches
from allranks.config.optimizers import SAVED_AT_ONCE
from allranks.data import BatchPlan, BlockOrder, BlockSet, Prepared
from allranks.errors import DataError
from allranks.model.files import stored_config
from allranks.model.positions import position_warning
from allranks.model.stored_kind import stored_kind_warning
from allranks.model.train_model import TrainModel
from allranks.observe import EventLog, RunDir
from allranks.observe.slow_steps import SlowSteps
from allranks.plan.flops import peak_flops, training_flops_per_token
from allranks.train.checkpoint import Checkpointer
from allranks.train.garbage import garbage
from allranks.train.home import Home
from allranks.train.loop import Limits, Loop
from allranks.train.memory_meter import memory_meter
from allranks.train.own_work import own_work
from allranks.train.profile import between_steps
from allranks.train.schedule import learning_rate_schedule, warmup_warning
from allranks.train.side_files import make_side_files
from allranks.train.signals import StopRequest
from allranks.train.stats import StatsReader
from allranks.train.step_schedule import lay_out
from allranks.train.storage import Storage
from allranks.train.strategies import make_strategy, strategy_warnings
from allranks.train.time_limit import TimeLimit
from allranks.train.traffic import CHECKPOINT_GROUP


def assemble(
    cfg: RunConfig,
    identity: Identity,
    prepared: Prepared,
    model: TrainModel,
    *,
    global_batch: int,
    run_dir: RunDir,
    storage: Storage,
    events: EventLog,
    stop_request: StopRequest,
    warn: Callable[[str], None],
) -> Loop:
    """The loop of a run that starts at step 0; call it on all ranks, because it makes a process group."""
    device = model.placement.device
    step_schedule = lay_out(
        cfg, num_blocks=len(prepared.train), global_batch=global_batch, has_eval=bool(prepared.eval)
    )
    micro_batches = num_micro_batches(global_batch, cfg.optimizer.micro_batch_size, identity.world_size)
    strategy = make_strategy(cfg, model, num_micro_batches=micro_batches)
    if strategy.engine_settings is not None and identity.rank == 0:
        durable.write(run_dir.deepspeed, json.dumps(strategy.engine_settings, indent=2) + "\n")
    of_config = (
        position_warning(model.config.to_dict(), cfg),
        stored_kind_warning(stored_config(cfg), cfg),  # as it is stored: what was loaded is a plain model
        warmup_warning(cfg, step_schedule.num_steps),
    )
    for line in (*strategy_warnings(cfg, model, identity, micro_batches), *filter(None, of_config)):
        warn(line)
    side_files = make_side_files(cfg, model, storage, run_dir, warn)
    return Loop(
        model=model,
        strategy=strategy,
        base_rates=[group["lr"] for group in strategy.optimizer.param_groups],
        schedule=learning_rate_schedule(cfg, step_schedule.num_steps),
        plan=_plan(cfg, identity, prepared.train, step_schedule.total_blocks, global_batch),
        eval_plan=_eval_plan(cfg, identity, prepared.eval) if prepared.eval else None,
        step_schedule=step_schedule,
        checkpointer=Checkpointer(
            run_dir.checkpoints,
            strategy.state,
            # A group of its own: a save behind the training must not share one with the training's collectives.
            group=_group_for_saving(cfg.parallel.start_timeout_seconds) if dist.is_initialized() else None,
            storage=storage,
            asynchronous=saves_behind(cfg),
            keep=cfg.checkpoint.num_kept,
            only_model=cfg.checkpoint.save_only_model,
            write_extras=side_files.write,
            warn=warn,
            home=Home(run_dir.path, events.is_in_place),
        ),
        stats=StatsReader(
            rank=identity.rank,
            world_size=identity.world_size,
            device=device,
            router_coefficient=model.router.coefficient if model.router else None,
        ),
        events=events,
        progress=None,
        limits=Limits(
            loss_threshold=cfg.tracking.loss_watchdog_threshold,
            loss_patience=cfg.tracking.loss_watchdog_patience or 3,
            eval_patience=cfg.evaluation.early_stopping_patience,
        ),
        stop_request=stop_request,
        describe_state=lambda loop: _state(cfg, loop, prepared.fingerprint),
        seed=cfg.optimizer.seed,
        pad_blocks_to=cfg.data.sequence_len if _pads(cfg, model) else None,
        pad_token_id=model.config.pad_token_id or 0,
        garbage=garbage(cfg, step_schedule),
        after_step=between_steps(cfg, run_dir.profiles, identity.rank, device),
        save_best=cfg.checkpoint.save_strategy == "best" or cfg.checkpoint.load_best_model_at_end,
        memory_bytes=memory_meter(device),
        full_speed=_full_speed(model, identity.world_size),
        slow_steps=SlowSteps(model.placement.nodes),
        own_work=own_work(model.hf_model, model.layer_classes, on_gpu=device.type == "cuda", compiled=model.compiled),
        time_limit=TimeLimit(cfg.parallel.ddp_timeout, events),
    )


def _group_for_saving(timeout_seconds: float) -> dist.ProcessGroup:
    timeout = datetime.timedelta(seconds=timeout_seconds)
    group = dist.new_group(backend="gloo", timeout=timeout, group_desc=CHECKPOINT_GROUP)
    assert group is not None
    return group


def saves_behind(cfg: RunConfig) -> bool:
    """Whether checkpoints are written while training goes on."""
    return cfg.checkpoint.save_async is not False and cfg.optimizer.optimizer not in SAVED_AT_ONCE


def data_seed(cfg: RunConfig) -> int:
    """The seed of the order of the data."""
    return cfg.optimizer.seed if cfg.data.data_seed is None else cfg.data.data_seed


def _plan(cfg: RunConfig, identity: Identity, blocks: BlockSet, total_blocks: int, global_batch: int) -> BatchPlan:
    return BatchPlan(
        blocks,
        block_order(cfg, blocks, global_batch),
        global_batch=global_batch,
        micro_batch_size=cfg.optimizer.micro_batch_size,
        rank=identity.rank,
        world_size=identity.world_size,
        total_blocks=total_blocks,
    )


def block_order(cfg: RunConfig, blocks: BlockSet, global_batch: int) -> BlockOrder:
    """The order of the training blocks that the config asks for."""
    if cfg.data.curriculum_sampling:
        return BlockOrder(len(blocks), seed=None)
    lengths = blocks.token_counts if cfg.data.group_by_length else None
    return BlockOrder(len(blocks), data_seed(cfg), lengths=lengths, step=global_batch)


def _eval_plan(cfg: RunConfig, identity: Identity, blocks: BlockSet) -> BatchPlan:
    """The whole evaluation set as one step. Raises DataError if nothing in it is a target."""
    if not blocks.target_counts.any():
        raise DataError(
            "the evaluation set (val_set_size, test_datasets) has no target token, so it has no loss: look at it with "
            "`allranks preprocess CONFIG --show 3`, or make it larger"
        )
    return BatchPlan(
        blocks,
        BlockOrder(len(blocks), data_seed(cfg)),
        global_batch=len(blocks),
        micro_batch_size=cfg.evaluation.eval_batch_size or cfg.optimizer.micro_batch_size,
        rank=identity.rank,
        world_size=identity.world_size,
    )


def _state(cfg: RunConfig, loop: Loop, fingerprint: str) -> RunState:
    return RunState(
        step=loop.step,
        num_steps=loop.step_schedule.num_steps,
        global_batch=loop.plan.global_batch,
        tokens=loop.tokens,
        loss=loop.last_loss if math.isfinite(loop.last_loss) else None,
        best_loss=loop.best_loss,
        best_checkpoint=loop.best_checkpoint,
        evals_without_improvement=loop.evals_without_improvement,
        fingerprint=fingerprint,
        data_seed=data_seed(cfg),
        world_size=loop.plan.world_size,
        adapter=cfg.adapter.adapter is not None,
        only_model=cfg.checkpoint.save_only_model,
        scaler=loop.strategy.scaler_state(),
        config=cfg.flat(),
    )


def _pads(cfg: RunConfig, model: TrainModel) -> bool:
    asked = cfg.data.pad_to_sequence_len
    return model.compiled if asked is None else asked


def _full_speed(model: TrainModel, world_size: int) -> float | None:
    """Tokens per second of all ranks at the peak of their GPUs; None on other devices and unknown GPUs."""
    device = model.placement.device
    if device.type != "cuda":
        return None
    peak = peak_flops(torch.cuda.get_device_name(device), half=model.precision.compute != torch.float32)
    needed = training_flops_per_token(model.num_parameters, model.num_trainable)
    return peak * world_size / needed if peak and needed else None
