"""Defaults that follow from what other keys say."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from allranks.config.foreign.deepspeed import resolved
from allranks.config.optimizers import WITH_FSDP
from allranks.config.run import RunConfig
from allranks.config.sections.kernels import CUT_CROSS_ENTROPY

if TYPE_CHECKING:
    from allranks.config.rules import Given


def finish(config: RunConfig, given: Given) -> RunConfig:
    """The config with every default filled in that follows from another key."""
    if config.deepspeed.settings:
        settings, of_precision, of_optimizer = resolved(config, given.values)
        config = replace(
            config,
            deepspeed=config.deepspeed.model_copy(update={"deepspeed": settings}),
            precision=config.precision.model_copy(update=of_precision),
            optimizer=config.optimizer.model_copy(update=of_optimizer),
        )
    data, optimizer, checkpoint = config.data, config.optimizer, config.checkpoint
    if config.parallel.uses_fsdp and optimizer.optimizer in WITH_FSDP:
        optimizer = optimizer.model_copy(update={"optimizer": WITH_FSDP[optimizer.optimizer][0]})
    evaluation, parallel, precision = config.evaluation, config.parallel, config.precision
    jinja = "jinja" if data.chat_template_jinja else None
    data = _fill(
        data,
        eval_sample_packing=data.sample_packing,
        # `auto` is known only on the device; see `train.assemble`.
        pad_to_sequence_len=True if parallel.torch_compile is True else None,
        chat_template=jinja,
        data_seed=optimizer.seed,
        shuffle_merged_datasets=not data.curriculum_sampling,
        sample_packing_sequentially=data.sample_packing and data.curriculum_sampling,
    )
    by_steps = checkpoint.save_steps or checkpoint.saves_per_epoch
    checkpoint = _fill(checkpoint, save_strategy="steps" if by_steps else "epoch")
    by_steps = evaluation.eval_steps or evaluation.evals_per_epoch
    strategy = ("steps" if by_steps else "epoch") if config.has_evaluation_data else "no"
    evaluation = _fill(evaluation, eval_strategy=strategy, eval_batch_size=optimizer.micro_batch_size)
    adapter = config.adapter
    if adapter.adapter == "qlora":
        adapter = adapter.model_copy(update={"load_in_4bit": True})
    tracking = config.tracking
    if tracking.loss_watchdog_threshold is not None:
        tracking = _fill(tracking, loss_watchdog_patience=3)
    kernels = config.kernels
    if CUT_CROSS_ENTROPY in (kernels.plugins or []):
        kernels = _fill(kernels, cut_cross_entropy=True)  # as the plugin's own default is
    fsdp = parallel.fsdp_config
    if fsdp is not None:
        final = fsdp.final_state_dict_type or fsdp.state_dict_type
        fsdp = fsdp.model_copy(update={"state_dict_type": final, "final_state_dict_type": None})
        parallel = parallel.model_copy(update={"fsdp_config": fsdp})
        if precision.compute == "auto" and fsdp.mixed_precision_policy:
            precision = precision.model_copy(update={"bf16": fsdp.mixed_precision_policy == "bf16"})
    return replace(
        config,
        data=data,
        optimizer=optimizer,
        adapter=adapter,
        checkpoint=checkpoint,
        evaluation=evaluation,
        parallel=parallel,
        kernels=kernels,
        precision=precision,
        tracking=tracking,
    )


def _fill(section: Any, **values: Any) -> Any:
    """The section with values for the keys that have none."""
    missing = {key: value for key, value in values.items() if getattr(section, key) is None and value is not None}
    return section.model_copy(update=missing)
