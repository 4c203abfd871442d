"""The loss on the evaluation set, over all ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist

from allranks.data import BatchPlan
from allranks.model.train_model import TrainModel
from allranks.train.feed import feed


def evaluate(model: TrainModel, plan: BatchPlan, *, pad_blocks: bool, pad_token_id: int) -> float:
    """Mean cross entropy over all target tokens of the evaluation set; the same number on every rank."""
    device = model.placement.device
    pad_blocks_to = plan.blocks.sequence_len if pad_blocks else None
    total = torch.zeros((), device=device)
    num_targets = 0
    model.module.eval()
    try:
        with torch.no_grad():
            for step in feed(plan, start=0, pad_blocks_to=pad_blocks_to, pad_token_id=pad_token_id, device=device):
                num_targets += step.plan.num_target_tokens
                for batch in step.batches:
                    total += model.forward_loss(batch)
    finally:
        model.module.train()
    model.reshard()  # without a backward pass FSDP leaves the root gathered
    if plan.world_size > 1:
        dist.all_reduce(total)
    return total.item() / num_targets
