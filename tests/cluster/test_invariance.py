"""Invariant 2: the loss at step k depends on config, data and k only."""

import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

from allranks.observe import RunDir
from allranks.verify import Check
from allranks.verify.run import verify_run
from tests.cluster.conftest import Run, largest_difference
from tests.patience import TIMEOUT_SECONDS

TOLERANCE = 1e-5  # relative, float32: the order of sums is all that may differ

FSDP = {"fsdp_version": 2, "fsdp_config": {"reshard_after_forward": True}}


@pytest.fixture
def alone(losses_alone) -> Callable[..., dict[int, float]]:
    """Losses of one process with the same keys, which learns."""

    def losses(*, learns: float = 0.9, **keys: object) -> dict[int, float]:
        first, *_, last = losses_alone(**keys).values()
        assert last < learns * first, "the model does not learn, so equal losses would mean little"
        return losses_alone(**keys)

    return losses


@pytest.mark.parametrize(
    ("world_size", "keys"),
    [
        # These two are trained to the same losses in test_matrix.py, too.
        pytest.param(2, {}, id="ddp2", marks=pytest.mark.thorough),
        pytest.param(2, FSDP, id="fsdp2", marks=pytest.mark.thorough),
        pytest.param(4, {**FSDP, "dp_replicate_size": 2, "dp_shard_size": 2}, id="hsdp2x2"),
        pytest.param(2, {**FSDP, "fsdp_config": {"offload_params": True, "sync_each_batch": True}}, id="fsdp2-offload"),
        pytest.param(1, {"micro_batch_size": 8}, id="one-large-micro-batch"),
        pytest.param(1, {"micro_batch_size": 1, "gradient_checkpointing": True}, id="eight-checkpointed-micro-batches"),
    ],
)
def test_losses_do_not_depend_on_the_topology(alone, run_forked, world_size, keys):
    expected = alone()
    result = run_forked(world_size, **keys)
    assert largest_difference(result.losses(), expected) < TOLERANCE
    for rank in range(world_size):
        assert [event.loss for event in result.events("step", rank)] == list(result.losses().values())
    assert _not_proved(result) == []


def test_a_global_batch_that_does_not_divide_by_the_ranks(alone, run_forked):
    expected = alone(batch_size=5)
    result = run_forked(2, batch_size=5, micro_batch_size=1, **FSDP)
    assert largest_difference(result.losses(), expected) < TOLERANCE
    assert _not_proved(result) == []


def _not_proved(run: Run) -> list[Check]:
    return [check for check in verify_run(run.directory.path)[1] if check.result != "ok"]


@pytest.mark.thorough
def test_lora_too(alone, run_forked):
    keys = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_linear": True, "learning_rate": 0.005}
    expected = alone(learns=0.996, **keys)  # the model under the adapter stays random
    result = run_forked(2, **keys, **FSDP)
    assert largest_difference(result.losses(), expected) < TOLERANCE


def test_a_mixtures_router_loss_too(run_forked, tiny, tmp_path):
    """It is no mean over tokens: its blocks must count by themselves, however they are dealt out."""
    keys = {"base_model": str(_mixture(tiny, tmp_path / "mixture")), "max_steps": 6, "batch_size": 5}
    keys["model_config"] = {"output_router_logits": True, "router_aux_loss_coef": 1.0}
    expected = run_forked(output_dir=tmp_path / "alone", **keys)
    ways = {"two": (2, {"micro_batch_size": 1, **FSDP}), "one": (1, {"micro_batch_size": 5})}
    for name, (world_size, more) in ways.items():
        result = run_forked(world_size, output_dir=tmp_path / name, **{**keys, **more})
        assert largest_difference(result.losses(), expected.losses()) < TOLERANCE
        balance = [{event.step: event.router_loss for event in each.events("step")} for each in (result, expected)]
        assert largest_difference(*balance) < TOLERANCE
    assert min(balance[0].values()) > 1 and "router loss x 1" in expected.output


def _mixture(tiny, folder: Path) -> Path:
    """A random mixture of experts that reads the tiny model's tokens."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    experts = {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
    model = MixtralForCausalLM(MixtralConfig(vocab_size=512, initializer_range=0.3, **shape, **experts))
    shutil.copytree(tiny.model, folder)
    model.save_pretrained(folder)
    return folder


def test_a_run_killed_at_a_random_step_and_resumed_on_other_ranks_ends_with_the_same_losses(
    alone, start_forked, run_forked, strike, tmp_path
):
    expected = alone()
    keys = {**FSDP, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 2}
    kill_after = random.randint(3, 15)
    print(f"killing after step {kill_after}")
    # A checkpoint is written beside training: some steps after the one that it is of, it counts.
    strike(kill_after + 1, rank=0, awaits=(tmp_path / "run/checkpoints/*/COMPLETE",))
    ranks = start_forked(2, **keys)
    ranks.processes[0].join(TIMEOUT_SECONDS)
    ranks.kill()
    first = Run(0, "", RunDir(tmp_path / "run"))
    assert ranks.processes[0].exitcode == -signal.SIGKILL, ranks.output.read_text()
    assert max(first.losses()) == kill_after

    resumed = run_forked(auto_resume_from_checkpoints=True, **keys)
    assert "resumed" in resumed.output
    assert largest_difference(resumed.losses(), expected) < TOLERANCE
    again_from = [event.step for event in resumed.events("step") if event.t > first_event_time(resumed)]
    assert again_from[0] > 1, "it started over instead of resuming"


def first_event_time(run: Run) -> float:
    """When the second start of a run directory began."""
    return [event.t for event in run.events("phase") if event.phase == "data"][-1]
