"""Configs in the shape of TRL, LLaMA-Factory and ms-swift mean the same here: batch, rates, data, adapters, formats."""

import json

import pytest
import yaml

from allranks.config import load_config
from allranks.errors import ConfigError, UsageError
from allranks.importing import import_config
from allranks.importing.write import written

LF = "model_name_or_path: org/model\nstage: sft\ndo_train: true\ndataset: talks\ntemplate: qwen\noutput_dir: saves/x\n"
TRL = "model_name_or_path: org/model\noutput_dir: out\n"
CHAT = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
SWIFT = "--model org/model --dataset data/talks.jsonl --output_dir out"
INFO = {
    "talks": {
        "file_name": "talks.jsonl",
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
    },
    "asked": {"file_name": "asked.json"},
    "web": {"hf_hub_url": "org/web", "subset": "en", "columns": {"prompt": "body"}},
    "pairs": {"file_name": "pairs.json", "ranking": True},
}

LLAMA_FACTORY_CASES = {
    "what it does without a word": (
        LF,
        {"lora_r": 8, "lora_alpha": 16, "lora_target_linear": True, "micro_batch_size": 8, "learning_rate": 5e-5}
        | {"num_epochs": 3.0, "lr_scheduler": "linear", "warmup_steps": 0, "weight_decay": 0.0, "sequence_len": 2048}
        | {"gradient_checkpointing": True, "save_steps": 500, "excess_length_strategy": "truncate"},
    ),
    "alpha follows the rank": (
        LF + "lora_rank: 32\nlora_target: q_proj,v_proj\n",
        {"lora_r": 32, "lora_alpha": 64, "lora_target_modules": ["q_proj", "v_proj"], "lora_target_linear": False},
    ),
    "a whole model in bfloat16": (
        LF
        + "finetuning_type: full\nbf16: true\ndeepspeed: ds_z3_offload_config.json\ngradient_accumulation_steps: 2\n",
        {"adapter": None, "bf16": True, "gradient_accumulation_steps": 2},
    ),
    "bfloat16 weights": (LF + "finetuning_type: full\npure_bf16: true\n", {"bf16": "full"}),
    "4 bits": (
        LF + "quantization_bit: 4\ndouble_quantization: false\nquantization_type: fp4\n",
        {"adapter": "qlora", "load_in_4bit": True}
        | {"bnb_config_kwargs": {"bnb_4bit_use_double_quant": False, "bnb_4bit_quant_type": "fp4"}},
    ),
    "8 bits": (LF + "quantization_bit: 8\n", {"adapter": "lora", "load_in_8bit": True}),
    "packed": (
        LF + "neat_packing: true\ncutoff_len: 4096\n",
        {"sample_packing": True, "sequence_len": 4096, "excess_length_strategy": "drop"},
    ),
    "instructions through the template": (
        LF.replace("talks", "asked") + "max_samples: 100\n",
        {"datasets": [{"path": "data/asked.json", "type": "alpaca:tokenizer_default", "split": "train[:100]"}]},
    ),
    "documents": (
        LF.replace("talks", "web").replace("sft", "pt"),
        {"datasets": [{"path": "org/web", "name": "en", "type": "completion", "field": "body", "split": "train"}]}
        | {"sample_packing": True},
    ),
    "held out": (
        LF + "val_size: 0.1\neval_strategy: steps\neval_steps: 50\nper_device_eval_batch_size: 2\n",
        {"val_set_size": 0.1, "eval_strategy": "steps", "eval_steps": 50, "eval_batch_size": 2},
    ),
    "rates": (
        LF + "learning_rate: 1.0e-4\nlr_scheduler_type: cosine\n"
        "warmup_ratio: 0.1\nloraplus_lr_ratio: 16.0\nmax_steps: 9\n",
        {
            "learning_rate": 1e-4,
            "lr_scheduler": "cosine",
            "warmup_ratio": 0.1,
            "loraplus_lr_ratio": 16.0,
            "max_steps": 9,
        },
    ),
    "prompts too, as chatml": (
        LF.replace("qwen", "chatml") + "train_on_prompt: true\ndefault_system: Be brief.\n",
        {"train_on_inputs": True, "chat_template": "chatml", "default_system_message": "Be brief."},
    ),
}

TRL_CASES = {
    "what it does without a word": (
        TRL + "dataset_name: data/talks.jsonl\n",
        {
            "learning_rate": 2e-5,
            "micro_batch_size": 8,
            "num_epochs": 3.0,
            "sequence_len": 1024,
            "lr_scheduler": "linear",
        }
        | {"bf16": True, "gradient_checkpointing": True, "train_on_inputs": True, "warmup_steps": 0, "adapter": None},
    ),
    "answers only": (
        TRL + "dataset_name: data/talks.jsonl\nassistant_only_loss: true\n",
        {"train_on_inputs": False},
    ),
    "an adapter": (
        TRL + "dataset_name: data/talks.jsonl\nuse_peft: true\n",
        {"adapter": "lora", "lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "lora_target_modules": None},
    ),
    "an adapter everywhere": (
        TRL + "dataset_name: data/talks.jsonl\nuse_peft: true\nlora_r: 64\nlora_target_modules: all-linear\n",
        {"lora_r": 64, "lora_target_linear": True},
    ),
    "4 bits, scales not quantized": (
        TRL + "dataset_name: data/talks.jsonl\nuse_peft: true\nload_in_4bit: true\n",
        {"adapter": "qlora", "bnb_config_kwargs": {"bnb_4bit_use_double_quant": False}},
    ),
    "adapter settings without an adapter": (
        TRL + "dataset_name: data/talks.jsonl\nlora_r: 8\nlora_alpha: 16\n",
        {"adapter": None},
    ),
    "bfloat16 weights": (TRL + "dataset_name: data/talks.jsonl\ndtype: bfloat16\n", {"bf16": "full"}),
    "float16": (TRL + "dataset_name: data/talks.jsonl\nfp16: true\n", {"fp16": True, "bf16": None}),
    "documents, packed": (
        TRL + "dataset_name: org/texts\ndataset_text_field: body\npacking: true\nmax_length: 4096\n",
        {"datasets": [{"path": "org/texts", "type": "completion", "field": "body", "split": "train"}]}
        | {"sample_packing": True, "sequence_len": 4096},
    ),
    "prompts and completions": (
        TRL + "dataset_name: data/prompts.jsonl\n",
        {"train_on_inputs": False},
    ),
    "evaluated": (
        TRL + "dataset_name: org/chats\ndataset_test_split: held\neval_strategy: steps\neval_steps: 100\n",
        {"eval_strategy": "steps", "eval_steps": 100},
    ),
    "rates and batch": (
        TRL + "dataset_name: data/talks.jsonl\nper_device_train_batch_size: 2\ngradient_accumulation_steps: 4\n"
        "learning_rate: 2.0e-4\nlr_scheduler_type: constant_with_warmup\nwarmup_steps: 10\noptim: adamw_8bit\n",
        {"micro_batch_size": 2, "gradient_accumulation_steps": 4, "learning_rate": 2e-4, "warmup_steps": 10}
        | {"lr_scheduler": "constant_with_warmup", "optimizer": "adamw_bnb_8bit"},
    ),
}

SWIFT_CASES = {
    "what it does without a word": (
        f"swift sft {SWIFT}",
        {"adapter": "lora", "lora_r": 8, "lora_alpha": 32, "lora_dropout": 0.05, "lora_target_linear": True}
        | {"learning_rate": 1e-4, "batch_size": 16, "micro_batch_size": 1, "weight_decay": 0.1, "adam_beta2": 0.95}
        | {"lr_scheduler": "cosine", "num_epochs": 3.0, "excess_length_strategy": "drop", "bf16": True},
    ),
    "a whole model": (
        f"swift sft {SWIFT} --tuner_type full --torch_dtype bfloat16",
        {"adapter": None, "learning_rate": 1e-5, "bf16": "full"},
    ),
    "a whole model, sharded": (
        f"swift sft {SWIFT} --train_type full --torch_dtype bfloat16 --deepspeed zero2",
        {"bf16": True},
    ),
    "sums of the shell": (
        f"n=2\nNPROC_PER_NODE=$n swift sft {SWIFT} \\\n  --gradient_accumulation_steps $(expr 16 / $n)",
        {"gradient_accumulation_steps": 8, "micro_batch_size": 1},
    ),
    "lists of the shell": (
        f'ARGS=(\n  --lora_rank 16 # rank\n  --lora_alpha "64"\n)\nswift sft {SWIFT} "${{ARGS[@]}}" > log.txt 2>&1',
        {"lora_r": 16, "lora_alpha": 64},
    ),
    "4 bits": (
        f"swift sft {SWIFT} --quant_method bnb --quant_bits 4 --bnb_4bit_quant_type nf4",
        {"adapter": "qlora", "bnb_config_kwargs": {"bnb_4bit_use_double_quant": True, "bnb_4bit_quant_type": "nf4"}},
    ),
    "packed": (
        f"swift sft {SWIFT} --packing true --max_length 8192 --attn_impl flash_attn",
        {"sample_packing": True, "sequence_len": 8192, "attn_implementation": "flash_attention_2"},
    ),
    "documents": (
        f"swift pt {SWIFT} --tuner_type full",
        {"datasets": [{"path": "data/talks.jsonl", "type": "completion", "split": "train"}]},
    ),
    "part of a data set": (
        f"swift sft {SWIFT}".replace("talks.jsonl", "talks.jsonl#500"),
        {"datasets": [{"path": "data/talks.jsonl", "type": "chat_template", "split": "train[:500]"}]},
    ),
    "held out": (
        f"swift sft {SWIFT} --split_dataset_ratio 0.01 --eval_strategy steps --eval_steps 50",
        {"val_set_size": 0.01, "eval_strategy": "steps", "eval_steps": 50},
    ),
    "all is trained": (
        f"swift sft {SWIFT} --loss_scale all --system 'You help.' --template chatml",
        {"train_on_inputs": True, "default_system_message": "You help.", "chat_template": "chatml"},
    ),
    "under torchrun": (
        f"torchrun --nproc_per_node=4 --nnodes=2 swift/cli/sft.py {SWIFT} "
        "--gradient_accumulation_steps 2 --num_train_epochs 1",
        {"gradient_accumulation_steps": 2, "num_epochs": 1.0},
    ),
}
CASES = [
    *((f"{name}.yaml", text, wanted) for name, (text, wanted) in LLAMA_FACTORY_CASES.items()),
    *((f"{name}.yaml", text, wanted) for name, (text, wanted) in TRL_CASES.items()),
    *((f"{name}.sh", text, wanted) for name, (text, wanted) in SWIFT_CASES.items()),
]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder as those trainers are started in."""
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data"
    data.mkdir()
    (data / "dataset_info.json").write_text(json.dumps(INFO))
    (data / "talks.jsonl").write_text(json.dumps(CHAT) + "\n")
    (data / "prompts.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    return tmp_path


def resolved(folder, name, text):
    """The resolved config of what the import writes."""
    file = folder / name
    file.write_text(text)
    (folder / "ours.yaml").write_text(written(import_config(file)))
    return load_config(folder / "ours.yaml").flat()


@pytest.mark.parametrize(("name", "text", "wanted"), CASES, ids=[f"{i}-{name}" for i, (name, *_) in enumerate(CASES)])
def test_it_means_the_same(folder, name, text, wanted):
    flat = resolved(folder, name, text)
    for key, value in wanted.items():
        found = flat.get(key)
        if key == "datasets":
            found = [{part: spec[part] for part in value[0]} for spec in found]
        elif isinstance(value, dict):
            found = {part: found[part] for part in value}
        assert found == value, key


def test_trl_evaluates_on_the_split_that_it_names(folder):
    flat = resolved(folder, "e.yaml", TRL_CASES["evaluated"][0])
    assert [spec["split"] for spec in flat["test_datasets"]] == ["held"]


def test_sharegpt_names_of_dataset_info(folder):
    (spec,) = resolved(folder, "s.yaml", LF)["datasets"]
    assert spec["path"] == "data/talks.jsonl"
    assert spec["field_messages"] == "messages"
    assert spec["message_property_mappings"] == {"role": "role", "content": "content"}


def test_no_warning_of_a_template_that_the_data_names_itself(folder):
    (folder / "c.yaml").write_text(LF.replace("talks", "asked"))
    (folder / "ours.yaml").write_text(written(import_config(folder / "c.yaml")))
    assert not [line for line in load_config(folder / "ours.yaml").warnings if "chat_template" in line]


def test_dataset_info_is_found_from_another_folder(folder, monkeypatch):
    inner = folder / "examples" / "lora"
    inner.mkdir(parents=True)
    (inner / "c.yaml").write_text(LF)
    monkeypatch.chdir("/")
    (spec,) = import_config(inner / "c.yaml").flat["datasets"]
    assert spec["path"] == str(folder / "data" / "talks.jsonl")


@pytest.mark.parametrize(
    "text",
    [
        LF.replace("sft", "dpo"),
        LF + "finetuning_type: freeze\n",
        LF + "use_galore: true\n",
        LF.replace("talks", "pairs"),
        TRL,
        TRL + "dataset_name: x\nloss_type: dft\n",
    ],
)
def test_another_kind_of_training_is_refused(folder, text):
    (folder / "c.yaml").write_text(text)
    with pytest.raises(UsageError):
        import_config(folder / "c.yaml")


def test_each_key_that_is_lost_has_a_line(folder):
    (folder / "c.yaml").write_text(
        LF + "mask_history: true\nlabel_smoothing_factor: 0.1\nnobody_knows: 3\noptim: apollo_x\n"
    )
    imported = import_config(folder / "c.yaml")
    text = "\n".join(imported.lost)
    for key in ("mask_history", "label_smoothing_factor", "c.yaml:9: nobody_knows", "optimizer: apollo_x"):
        assert key in text
    assert all(f"# - {' '.join(line.split())}" in written(imported) for line in imported.lost)
    assert yaml.safe_load(written(imported)) == imported.flat


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (LF, ["lora_bias: all", "resize_vocab: true", "pissa_iter: 4", "use_unsloth: true"]),
        (TRL + "dataset_name: data/talks.jsonl\n", ["truncation_mode: keep_end", "router_aux_loss_coef: 0.01"]),
        (
            "model: m\ndataset: [data/talks.jsonl]\ntuner_type: lora\n",
            ["freeze_llm: true", "add_non_thinking_prefix: false"],
        ),
    ],
)
def test_a_key_that_changes_training_is_told_unless_it_has_the_value_of_there(folder, text, lines):
    (folder / "c.yaml").write_text(text + "\n".join(lines) + "\n")
    lost = "\n".join(import_config(folder / "c.yaml").lost)
    assert all(f"{line.partition(':')[0]}: " in lost for line in lines), lost
    neutral = {
        "pissa_iter": "16",
        "lora_bias": "none",
        "truncation_mode": "keep_start",
        "add_non_thinking_prefix": "true",
    }
    keys = [line.partition(":")[0] for line in lines]
    (folder / "c.yaml").write_text(
        text + "".join(f"{key}: {neutral.get(key, '0.0' if 'coef' in key else 'false')}\n" for key in keys)
    )
    assert not any(key in line for line in import_config(folder / "c.yaml").lost for key in keys)


def test_a_variable_without_a_value_is_named_with_its_line(folder):
    (folder / "run.sh").write_text("#!/bin/bash\nswift sft \\\n  --model $MODEL --dataset d\n")
    with pytest.raises(ConfigError, match=r"run\.sh:3: model: \$MODEL has no value in the script"):
        import_config(folder / "run.sh")


def test_what_is_typed_wins_over_the_file(folder):
    (folder / "c.yaml").write_text(TRL + "dataset_name: data/talks.jsonl\nlearning_rate: 1.0e-3\n")
    words = ["trl", "sft", "--config", "c.yaml", "--learning_rate", "5e-4"]
    assert import_config(None, words).flat["learning_rate"] == 5e-4
    assert import_config(folder / "c.yaml", ["--learning_rate", "5e-4"]).flat["learning_rate"] == 5e-4


def test_the_processes_of_a_script_are_told_with_the_global_batch(folder):
    (folder / "c.sh").write_text(SWIFT_CASES["under torchrun"][0])
    (note,) = [line for line in import_config(folder / "c.sh").notes if "it starts" in line]
    assert "starts 8 processes" in note
    assert "the global batch is then 16" in note


def test_arguments_that_were_saved_as_json(folder):
    (folder / "args.json").write_text(json.dumps({"model": "m", "tuner_type": "lora", "dataset": ["data/talks.jsonl"]}))
    assert import_config(folder / "args.json").flat["batch_size"] == 16
