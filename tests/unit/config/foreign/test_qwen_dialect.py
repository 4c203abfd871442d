import json

import pytest

from allranks.config.foreign.finetune import in_our_words
from allranks.config.foreign.qwen import (
    METHODS,
    is_chat_model,
    is_qwen1,
    qwen_config,
    refuse_quantized,
    refuse_with_zero3,
)
from allranks.config.load import resolve_mapping
from allranks.config.overrides import parse_overrides
from allranks.errors import ConfigError, UsageError


def resolved(method: str, *words: str, model: str = "Qwen/Qwen2.5-7B-Instruct", deepspeed: bool = False):
    overrides = parse_overrides(in_our_words(words)[0])
    flat = qwen_config(method, model, "data.json", overrides.keys(), deepspeed=deepspeed)
    return resolve_mapping(flat, "allranks qwen", overrides)


def test_what_the_scripts_say_of_every_run():
    for method in METHODS:
        flat = resolved(method).flat()
        asked = {
            "bf16": True,
            "gradient_checkpointing": True,
            "sequence_len": 512,
            "num_epochs": 5.0,
            "optimizer": "adamw_torch",
            "adam_beta2": 0.95,
            "weight_decay": 0.1,
            "lr_scheduler": "cosine",
            "warmup_ratio": 0.01,
            "save_strategy": "steps",
            "save_steps": 1000,
            "save_total_limit": 10,
            "logging_steps": 1,
            "output_dir": "output_qwen",
            "excess_length_strategy": "truncate",
            "sample_packing": False,
            "train_on_inputs": False,
        }
        assert {key: flat[key] for key in asked} == asked
        assert flat["network"]["cuda_device_max_connections"] == 1
        assert (flat["datasets"][0]["path"], flat["datasets"][0]["type"]) == ("data.json", "qwen")


def test_what_each_script_says():
    full, lora = resolved("full"), resolved("lora")
    batch = [(run.optimizer.micro_batch_size, run.optimizer.gradient_accumulation_steps) for run in (full, lora)]
    assert batch == [(1, 16), (2, 8)]
    assert (full.optimizer.learning_rate, lora.optimizer.learning_rate) == (1e-5, 3e-4)
    assert full.parallel.uses_fsdp and full.adapter.adapter is None
    assert full.parallel.fsdp_settings.reshard_after_forward, "as ZeRO-3"
    adapter = lora.adapter
    assert not lora.parallel.uses_fsdp
    assert (adapter.adapter, adapter.lora_r, adapter.lora_alpha, adapter.lora_dropout) == ("lora", 64, 16, 0.05)


def test_the_ranks_share_the_model_as_in_the_scripts():
    runs = [resolved(method, deepspeed=True) for method in METHODS]
    assert [run.deepspeed.stage for run in runs] == [3, 2, 2]
    assert not any(run.parallel.uses_fsdp for run in runs)


def test_q_lora_trains_the_adapter_alone_on_4_bit_weights():
    adapter = resolved("qlora", model="Qwen/Qwen2.5-7B").adapter
    assert (adapter.adapter, adapter.load_in_4bit, adapter.lora_modules_to_save) == ("qlora", True, None)
    assert adapter.lora_target_modules == resolved("lora").adapter.lora_target_modules


def test_sharding_of_the_users_own_takes_its_place():
    mine = resolved("full", "--fsdp_version", "2", deepspeed=True)
    assert mine.parallel.uses_fsdp and not mine.deepspeed.settings
    mapping = "{zero_optimization: {stage: 1}}"
    mine = resolved("full", "--deepspeed", mapping)
    assert mine.deepspeed.settings == {"zero_optimization": {"stage": 1}} and not mine.parallel.uses_fsdp


def test_the_embedding_of_a_base_model_is_not_trained_with_zero_3():
    zero_3 = ("--deepspeed", "{zero_optimization: {stage: 3}}")
    base, chat = "Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B-Instruct"
    with pytest.raises(UsageError, match=r"too, which finetune\.py refuses with ZeRO-3"):
        refuse_with_zero3(base, resolved("lora", *zero_3, model=base))
    refuse_with_zero3(chat, resolved("lora", *zero_3, model=chat))
    refuse_with_zero3(base, resolved("lora", *zero_3, "--lora_modules_to_save", "null", model=base))
    refuse_with_zero3(base, resolved("lora", model=base, deepspeed=True))
    refuse_with_zero3(base, resolved("full", model=base, deepspeed=True))


@pytest.mark.parametrize(
    ("model", "targets", "whole"),
    [
        ("Qwen/Qwen-7B-Chat", ["c_attn", "c_proj", "w1", "w2"], None),
        ("Qwen/Qwen-1_8B", ["c_attn", "c_proj", "w1", "w2"], ["wte", "lm_head"]),
        ("/models/qwen-72b/", ["c_attn", "c_proj", "w1", "w2"], ["wte", "lm_head"]),
        ("Qwen/Qwen1.5-7B-Chat", "modern", None),
        ("Qwen/Qwen2.5-7B-Instruct", "modern", None),
        ("Qwen/Qwen2.5-7B", "modern", ["embed_tokens", "lm_head"]),
        ("Qwen/Qwen3-8B", "modern", None),
        ("Qwen/Qwen3-8B-Base", "modern", ["embed_tokens", "lm_head"]),
        ("/home/chat/Qwen2-7B", "modern", ["embed_tokens", "lm_head"]),
    ],
)
def test_which_modules_lora_trains(model, targets, whole):
    if targets == "modern":
        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    adapter = resolved("lora", model=model).adapter
    assert (adapter.lora_target_modules, adapter.lora_modules_to_save) == (targets, whole)


def test_the_generation_of_a_folder_is_in_its_config(tmp_path):
    for model_type, first in (("qwen", True), ("qwen2", False)):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
        assert is_qwen1(str(tmp_path)) is first
    for broken in ("[]", "{", "\udcff"):
        (tmp_path / "config.json").write_text(broken, errors="surrogateescape")
        assert not is_qwen1(str(tmp_path))


def test_chat_models_by_name():
    assert all(map(is_chat_model, ("Qwen-7B-Chat", "x/QwQ-chat", "Qwen/Qwen3-4B", "Qwen3-Next-Thinking", "Qwen10-1B/")))
    assert not any(map(is_chat_model, ("Qwen-7B", "chat/Qwen2-7B", "Qwen3-4B-Base", "my-model")))


def test_finetunes_own_names_are_understood():
    words = [
        "--model_max_length",
        "1024",
        "--num-train-epochs=3",
        "--per_device_train_batch_size",
        "4",
        "--bf16",
        "True",
    ]
    run = resolved("lora", *words, "--lr_scheduler_type", "linear", "--eval_data_path", "dev.json")
    assert (run.data.sequence_len, run.optimizer.num_epochs, run.optimizer.micro_batch_size) == (1024, 3.0, 4)
    assert run.optimizer.lr_scheduler == "linear" and run.precision.bf16 is True
    assert [(spec.path, spec.type) for spec in run.data.test_datasets or []] == [("dev.json", "qwen")]


@pytest.mark.parametrize(
    ("words", "gone"),
    [
        (["--batch-size", "64"], "gradient_accumulation_steps"),
        (["--warmup-steps", "3"], "warmup_ratio"),
        (["--saves-per-epoch", "2"], "save_steps"),
        (["--save-strategy", "epoch"], "save_steps"),
        (["--fp16", "true"], "bf16"),
    ],
)
def test_what_the_user_sets_replaces_what_it_excludes(words, gone):
    flat = resolved("lora", *words).flat()
    assert gone not in flat or flat[gone] is None


@pytest.mark.parametrize(
    ("model", "usual"),
    [
        ("Qwen/Qwen-7B-Chat-Int4", "Qwen/Qwen-7B-Chat"),
        ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int8", "Qwen/Qwen2.5-7B-Instruct"),
        ("Qwen/Qwen3-8B-AWQ", "Qwen/Qwen3-8B"),
    ],
)
def test_a_quantized_model_leads_to_the_one_it_was_made_from(model, usual):
    with pytest.raises(UsageError, match=f"Give {usual}: qlora quantizes it"):
        refuse_quantized(model)
    refuse_quantized(usual)


def test_a_deepspeed_file_that_is_not_there():
    with pytest.raises(ConfigError, match=r"--deepspeed: ds_config_zero3\.json: no such file"):
        resolved("full", "--deepspeed", "ds_config_zero3.json")
    assert METHODS == ("full", "lora", "qlora")
