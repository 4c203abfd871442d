"""The memory of a rank in closed form: what must hold whatever the numbers are."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import cache

import pytest

from allranks.config.load import resolve_mapping
from allranks.plan.counted import num_parameters
from allranks.plan.hardware import find_device
from allranks.plan.memory import rank_memory
from allranks.plan.remedies import remedies
from allranks.plan.workload import RankMemory, Workload
from allranks.plan.workloads import workloads
from tests.planned import TINY_CONFIG

MODEL = {
    "model_type": "llama",
    "num_hidden_layers": 12,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
}
MIXTURE = {
    **MODEL,
    "model_type": "qwen3_moe",
    "num_experts": 16,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 768,
}
KEYS = {**TINY_CONFIG, "sequence_len": 1024}
LORA = {"adapter": "lora", "lora_r": 16, "lora_alpha": 32, "lora_target_linear": True}
FSDP, ZERO2, ZERO3 = (
    {"fsdp_version": 2},
    {"deepspeed": {"zero_optimization": {"stage": 2}}},
    {"deepspeed": {"zero_optimization": {"stage": 3}}},
)


def made(ranks: int = 8, model=MODEL, **keys) -> Workload:
    return workloads(resolve_mapping({**KEYS, **keys}), model, num_nodes=1, gpus_per_node=ranks)[0]


@cache
def every(is_mixture: bool) -> list[Workload]:
    model = MIXTURE if is_mixture else MODEL
    return workloads(resolve_mapping(KEYS), model, num_nodes=2, gpus_per_node=4)


@pytest.mark.parametrize("is_mixture", [False, True])
def test_parts_are_sums_and_none_is_negative(is_mixture):
    for workload in every(is_mixture):
        memory = rank_memory(workload)
        parts = [getattr(memory, part.name) for part in fields(RankMemory) if part.name != "host"]
        assert min(parts) >= 0 and sum(parts) == pytest.approx(memory.total)
        assert memory.host > 0


@pytest.mark.parametrize("is_mixture", [False, True])
def test_more_tokens_and_larger_micro_batches_never_need_less(is_mixture):
    for workload in every(is_mixture):
        longer = replace(workload, tokens=2 * workload.tokens)
        larger = replace(workload, micro_batch_size=2 * workload.micro_batch_size)
        # As much, where a rank holds most before its first step.
        assert rank_memory(workload).total <= rank_memory(longer).total
        assert rank_memory(workload).total <= rank_memory(larger).total


def test_recomputation_needs_less_and_offloading_less_still():
    plain, again = made(gradient_checkpointing=False), made(gradient_checkpointing=True)
    offloaded = made(gradient_checkpointing="offload")
    assert rank_memory(offloaded).total < rank_memory(again).total < rank_memory(plain).total
    assert rank_memory(offloaded).host > rank_memory(again).host


@pytest.mark.parametrize("bf16", [True, False])
def test_zero_offload_takes_sixteen_bytes_of_each_parameter_of_the_hosts_memory(bf16):
    """Float32 weights, gradients and two states of AdamW, in whatever precision the GPUs compute
    (https://deepspeed.readthedocs.io/en/latest/memory.html)."""
    settings = {"stage": 2, "offload_optimizer": {"device": "cpu"}}
    kept = made(**ZERO2, bf16=bf16)
    offloaded = made(deepspeed={"zero_optimization": settings}, bf16=bf16)
    more = rank_memory(offloaded).host - rank_memory(kept).host
    assert more == pytest.approx(16 * num_parameters(kept.shape) * kept.ranks_per_node / kept.num_ranks, rel=1e-6)


def test_a_single_process_holds_sixteen_bytes_of_each_parameter_and_its_activations():
    """Float32 weights, gradients and two states of AdamW."""
    workload = made(ranks=1)
    memory = rank_memory(workload)
    elements = num_parameters(workload.shape)
    assert memory.parameters == memory.gradients == 4 * elements  # it accumulates
    assert memory.optimizer == 8 * elements


@pytest.mark.parametrize(("keys", "part"), [(FSDP, "parameters"), (FSDP, "optimizer"), (ZERO3, "optimizer")])
def test_shards_divide_what_is_held(keys, part):
    two, eight = (getattr(rank_memory(made(ranks=ranks, **keys)), part) for ranks in (2, 8))
    assert two == pytest.approx(4 * eight, rel=0.01)


def test_what_a_strategy_shards_it_needs_less_of():
    ddp, zero2, zero3, fsdp = (rank_memory(made(**keys)) for keys in ({}, ZERO2, ZERO3, FSDP))
    assert fsdp.parameters < ddp.parameters and zero3.parameters < zero2.parameters
    assert zero2.optimizer < ddp.optimizer and fsdp.optimizer < ddp.optimizer
    kept = rank_memory(made(fsdp_version=2, fsdp_config={"reshard_after_forward": False}))
    assert kept.communication > fsdp.communication


def test_an_adapter_has_gradients_and_states_of_its_own_only():
    lora, full = rank_memory(made(ranks=1, **LORA)), rank_memory(made(ranks=1))
    assert lora.gradients < 0.1 * full.gradients and lora.optimizer < 0.1 * full.optimizer
    packed = rank_memory(made(ranks=1, **{**LORA, "adapter": "qlora"}))
    assert packed.parameters < 0.6 * lora.parameters


def test_logits_of_all_positions_need_more_than_those_of_a_chunk():
    chunked, full = made(ranks=1), made(ranks=1, chunked_cross_entropy=False)
    assert rank_memory(full).logits > rank_memory(chunked).logits
    few = replace(chunked, labelled=0.1)
    assert rank_memory(few).logits < rank_memory(chunked).logits


def test_a_gpu_has_a_driver_and_a_cpu_none():
    assert rank_memory(made()).reserve > 5e8
    on_cpu = workloads(resolve_mapping(KEYS), MODEL, num_nodes=1, gpus_per_node=1, on_cpu=True)[0]
    assert rank_memory(on_cpu).reserve == 0


EVALUATES = {"val_set_size": 0.1, "micro_batch_size": 1}


@pytest.mark.parametrize(
    "keys", [{}, {"chunked_cross_entropy": False}, {**LORA, "gradient_checkpointing": True}], ids=str
)
def test_larger_micro_batches_of_an_evaluation_count(keys):
    keys = {**EVALUATES, **keys}
    usual, larger, largest = (
        rank_memory(made(ranks=1, eval_batch_size=size, **keys)).total for size in (None, 64, 128)
    )
    assert usual == rank_memory(made(ranks=1, eval_batch_size=1, **keys)).total
    assert usual < larger < largest
    # Without data to evaluate on nothing is evaluated.
    assert usual == rank_memory(made(ranks=1, **{**keys, "val_set_size": 0, "eval_batch_size": 64})).total


def test_what_helps_where_an_evaluation_does_not_fit():
    own = made(ranks=1, eval_batch_size=64, **EVALUATES)
    needs = rank_memory(replace(own, evaluation_batch_size=0)).total
    device = replace(find_device("h100-80gb"), memory_bytes=1.1 * needs)
    [first, *_] = remedies(own, [], device, own.tokens, 1)
    assert first.keys == {"eval_batch_size": 1} and first.is_enough
