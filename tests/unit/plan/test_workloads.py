"""What a config would be under each strategy and method, from its model's config.json."""

from __future__ import annotations

import pytest

from allranks.config.load import resolve_mapping
from allranks.errors import ConfigError
from allranks.plan.config_workload import num_frozen, step_sizes
from allranks.plan.workloads import workloads
from tests.planned import TINY_CONFIG

MODEL = {
    "model_type": "llama",
    "num_hidden_layers": 4,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 1024,
}
OF_A_LAYER = 2 * 256 * 256 + 2 * 128 * 256 + 3 * 704 * 256
NUM_PARAMETERS = 2 * 1024 * 256 + 256 + 4 * (OF_A_LAYER + 2 * 256)
LORA = {"adapter": "lora", "lora_r": 8, "lora_alpha": 16, "lora_target_linear": True}
NUM_LORA = 4 * 8 * (2 * (256 + 256) + 2 * (128 + 256) + 3 * (704 + 256))


def config(**keys):
    return resolve_mapping({**TINY_CONFIG, **keys})


def found(num_nodes=2, gpus_per_node=4, on_cpu=False, **keys):
    return workloads(config(**keys), MODEL, num_nodes=num_nodes, gpus_per_node=gpus_per_node, on_cpu=on_cpu)


def test_the_configs_own_is_first_and_every_strategy_and_method_comes_once():
    all_of = found()
    own = all_of[0]
    assert own.is_own and own.name == "DDP" and not own.changes
    assert (own.num_trained, own.tokens, own.micro_batch_size, own.num_micro_batches) == (NUM_PARAMETERS, 512, 2, 4)
    assert [one.is_own for one in all_of].count(True) == 1
    names = {one.name for one in all_of}
    assert {"DDP", "FSDP2", "HSDP (dp_shard_size: node)", "ZeRO-2", "ZeRO-3"} <= names
    assert {one.method for one in all_of} == {"full", "lora", "qlora"}
    rows = [(one.name, one.method, one.micro_batch_size, one.recomputes) for one in all_of]
    assert len(set(rows)) == len(rows)
    # The global batch stays what it is, whatever the micro-batch.
    assert {one.micro_batch_size * one.num_micro_batches for one in all_of} == {8}
    assert {one.micro_batch_size for one in all_of} == {1, 2, 4, 8}


def test_changes_make_the_config_that_they_belong_to():
    given = {"fsdp_version": 2, **LORA}
    # Of each strategy and method the plainest, and some of their micro-batches.
    for one in found(**given)[::5]:
        keys = {**given, **one.changes}
        changed = config(**{key: value for key, value in keys.items() if value is not None})
        again = workloads(changed, MODEL, num_nodes=2, gpus_per_node=4)[0]
        for part in (
            "layout",
            "method",
            "micro_batch_size",
            "num_micro_batches",
            "recomputes",
            "element",
            "num_trained",
        ):
            assert getattr(again, part) == getattr(one, part), (one.name, one.changes, part)


def test_an_adapter_is_trained_beside_the_frozen_model():
    own = found(**LORA)[0]
    assert (own.method, own.num_trained, num_frozen(own)) == ("lora", NUM_LORA, NUM_PARAMETERS)
    assert len(own.adapted) == 4 * 7 and not own.trains_embeddings and not own.num_packed
    packed = found(**{**LORA, "adapter": "qlora"})[0]
    assert packed.num_packed == 4 * OF_A_LAYER
    assert 0.5 < packed.element.packed < 0.52
    usual = found(adapter="lora", lora_r=8, lora_alpha=16)[0]
    assert {name.rpartition(".")[2] for name in usual.adapted} == {"q_proj", "v_proj"}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, (2, 4, 4, 8)),
        ({"bf16": "full"}, (2, 2, 2, 4)),
        ({"bf16": False}, (4, 4, 4, 8)),
        ({"fsdp_version": 2, "fsdp_config": {"reduce_dtype": "bfloat16"}}, (2, 4, 2, 8)),
        ({"optimizer": "sgd"}, (2, 4, 4, 0)),
    ],
)
def test_elements_have_the_sizes_that_the_config_asks_for(keys, expected):
    element = found(**keys)[0].element
    assert (element.compute, element.trained, element.gradient, element.state) == expected


def test_weights_in_4_bits_travel_as_they_are_held():
    plain, packed = found(**LORA)[0], found(**{**LORA, "adapter": "qlora"})[0]
    assert step_sizes(plain).parameter_bytes == 2
    assert 0.5 < step_sizes(packed).parameter_bytes < 2
    assert step_sizes(plain).num_trained == step_sizes(packed).num_trained == NUM_LORA


def test_ranks_that_the_config_cannot_be_divided_over_are_an_error():
    with pytest.raises(ConfigError, match="dp_shard_size"):
        found(dp_shard_size=3)


def test_a_rank_on_cpus_has_the_threads_that_its_user_asks_for(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert {one.num_threads for one in found(1, 2, on_cpu=True)} == {3}
    assert {one.num_threads for one in found(1, 2)} == {0}
