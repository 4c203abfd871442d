"""What a rehearsal replaces of a config, told key by key, and what it keeps."""

import json
from pathlib import Path

import pytest

from allranks.config.load import resolve_mapping
from allranks.config.strategy import strategy
from allranks.data.splits import parse_split
from allranks.errors import AllranksError
from allranks.model.needs_gpu import refuse_without_gpu
from allranks.rehearse.config import NUM_RECORDS, bounded_split, rehearsal_config

MODEL = Path("/small/model")


def rehearsed(world_size=2, **keys):
    least = {"base_model": "/large/model", "learning_rate": 1e-4, "output_dir": "/out"}
    least |= {"datasets": [{"path": "/data.jsonl", "type": "chat_template"}]}
    real = resolve_mapping(least | keys, "c.yaml", {})
    made = rehearsal_config(real, MODEL, Path("/folder"), world_size=world_size)
    return resolve_mapping(dict(made.flat), "c.yaml", {}), made.replaced


GPU_ONLY = {
    "attn_implementation": {"attn_implementation": "flash_attention_2"},
    "attn_implementation by its old name": {"flash_attention": True},
    "liger_rope": {"liger_rope": True, "liger_rms_norm": True, "liger_glu_activation": True},
    "liger_fused_linear_cross_entropy": {"liger_fused_linear_cross_entropy": True},
    "cut_cross_entropy": {"plugins": ["axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin"]},
    "plugins": {"plugins": ["axolotl.integrations.liger.LigerPlugin"], "liger_rope": True},
    "optimizer paged": {"optimizer": "paged_adamw_8bit"},
    "optimizer ademamix": {"optimizer": "ademamix"},
    "optimizer adamw_bnb_8bit": {"optimizer": "adamw_bnb_8bit"},
    "fp16": {"fp16": True},
    "bf16": {"bf16": True},
    "bf16 full": {"bf16": "full"},
    "bfloat16": {"bfloat16": True},
    "tf32": {"tf32": True},
    "torch_compile": {"torch_compile": True, "torch_compile_backend": "inductor"},
}


@pytest.mark.parametrize("name", GPU_ONLY)
def test_what_only_a_gpu_does_is_replaced_and_told(name):
    small, told = rehearsed(**GPU_ONLY[name])
    refuse_without_gpu(small, 0)
    assert small.precision.compute in ("auto", "float32") and not small.parallel.torch_compile
    assert any(line.startswith(name.split()[0]) for line in told), told


def test_nothing_that_a_cpu_can_do_is_replaced():
    keys = {
        "adapter": "lora",
        "lora_r": 8,
        "lora_alpha": 16,
        "lora_target_linear": True,
        "sequence_len": 512,
        "sample_packing": True,
    }
    small, told = rehearsed(**keys, fsdp_version=2, gradient_checkpointing=True, weight_decay=0.1, bf16=False)
    assert [line for line in told if not line.startswith("datasets")] == []
    flat = small.flat()
    assert {key: flat[key] for key in keys} == keys
    assert (flat["weight_decay"], flat["gradient_checkpointing"], flat["fsdp_version"]) == (0.1, True, 2)


def test_it_writes_below_its_folder_and_tells_no_tracker():
    small, _ = rehearsed(wandb_project="p", use_tensorboard=True, dataset_prepared_path="/mine", save_strategy="no")
    assert small.checkpoint.output_dir == "/folder/run" and small.data.dataset_prepared_path == "/folder/prepared"
    assert not small.tracking.use_wandb and not small.tracking.use_tensorboard
    assert small.model.base_model == str(MODEL)


def test_the_large_models_own_sizes_are_left_behind():
    keys = {"overrides_of_model_config": {"rope_scaling": None}, "base_model_config": "/c", "revision_of_model": "x"}
    small, told = rehearsed(
        **keys, adapter="lora", lora_r=8, lora_alpha=8, lora_target_linear=True, peft_layers_to_transform=[31]
    )
    assert not small.model.overrides_of_model_config and not small.model.revision_of_model
    assert any(line.startswith("peft_layers_to_transform: [31]") for line in told)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 5, 8, 16])
@pytest.mark.parametrize(
    "keys",
    [
        {"dp_replicate_size": 8, "dp_shard_size": 8},
        {"dp_shard_size": 64},
        {"dp_replicate_size": 4, "fsdp_version": 2},
        {"dp_shard_size": "node", "fsdp_version": 2},
        {"deepspeed": {"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 8}, "bf16": {"enabled": "auto"}}},
        {"deepspeed": {"zero_optimization": {"stage": 2}, "train_batch_size": 512}, "micro_batch_size": 8,
         "gradient_accumulation_steps": 64},
    ],
)  # fmt: skip
def test_every_strategy_fits_the_ranks_that_there_are(world_size, keys):
    try:
        small, _ = rehearsed(world_size, **keys)
    except AllranksError as error:
        pytest.fail(str(error))
    kind, replicas, shards = strategy(small, world_size, node_size=1)
    assert replicas * shards == world_size
    assert (kind == "zero") == ("deepspeed" in keys)


def test_long_and_large_steps_are_bounded():
    small, told = rehearsed(sequence_len=32768, micro_batch_size=16, gradient_accumulation_steps=64)
    assert (small.data.sequence_len, small.data.excess_length_strategy) == (2048, "truncate")
    assert (small.optimizer.micro_batch_size, small.optimizer.gradient_accumulation_steps) == (2, 2)
    assert len([line for line in told if not line.startswith("datasets")]) == 4
    assert rehearsed(batch_size=512, micro_batch_size=1)[0].optimizer.batch_size == 4


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", f"train[:{NUM_RECORDS}]"),
        ("train[100:]", f"train[100:{100 + NUM_RECORDS}]"),
        ("validation[:7]", "validation[:7]"),
        ("train[:100000]", f"train[:{NUM_RECORDS}]"),
        ("train[10%:20%]", "train[10%:20%]"),
        ("train[-50:]", "train[-50:]"),
        ("no split at all", "no split at all"),
    ],
)
def test_data_is_bounded_and_said(split, expected):
    assert bounded_split(split) == expected
    if "no" not in split:
        parse_split(expected)
    _, told = rehearsed(datasets=[{"path": "/d", "type": "alpaca", "split": split}])
    assert f"datasets: /d: {expected} (a part of it)" in told


def test_layers_by_number_are_replaced():
    small, told = rehearsed(unfrozen_parameters=["^lm_head.weight$", "model.layers.2[0-9]+.mlp"])
    assert small.optimizer.unfrozen_parameters == ["^lm_head.weight$"] and any("unfrozen" in line for line in told)


def test_what_is_told_can_be_printed_as_json():
    json.dumps(rehearsed(sequence_len=9999, fp16=True)[1])
