"""finetune.py's argument list: every argument has its effect, its note or its refusal."""

import dataclasses
import json

import pytest
from transformers import TrainingArguments

from allranks.config.foreign.finetune import in_our_words, read_finetune
from allranks.config.foreign.finetune_arguments import ARGUMENTS, LISTS, MAPPINGS, SWITCHES
from allranks.config.foreign.qwen import qwen_config
from allranks.config.load import resolve_mapping
from allranks.errors import ConfigError, UsageError

NEEDED = ["--data_path", "data.json", "--output_dir", "output_qwen"]

# What the three scripts give in common, by their documentation.
SCRIPTS = """
    --data_path data.json --output_dir output_qwen --num_train_epochs 5 --per_device_eval_batch_size 1
    --evaluation_strategy no --save_strategy steps --save_steps 1000 --save_total_limit 10 --weight_decay 0.1
    --adam_beta2 0.95 --warmup_ratio 0.01 --lr_scheduler_type cosine --logging_steps 1 --report_to none
    --model_max_length 512 --lazy_preprocess True
"""
FULL = """
    --bf16 True --per_device_train_batch_size 1 --gradient_accumulation_steps 16 --learning_rate 1e-5
    --gradient_checkpointing True
"""
LORA = """
    --bf16 True --per_device_train_batch_size 2 --gradient_accumulation_steps 8 --learning_rate 3e-4 --use_lora
    --gradient_checkpointing
"""


def resolved(*words: str):
    asked = read_finetune(words)
    return resolve_mapping(asked.flat, "finetune.py", asked.overrides, flags=asked.written)


def with_needed(*words: str):
    return resolved(*NEEDED, *words)


def test_every_training_argument_of_the_installed_transformers_is_known():
    fields = dataclasses.fields(TrainingArguments)
    assert {field.name for field in fields} <= ARGUMENTS
    two_valued = {field.name for field in fields if field.type in (bool, bool | None)}
    assert two_valued <= SWITCHES <= ARGUMENTS
    assert LISTS | MAPPINGS <= ARGUMENTS


@pytest.mark.parametrize("model", ["Qwen/Qwen-7B", "Qwen/Qwen-7B-Chat", "Qwen/Qwen2.5-7B"])
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_the_scripts_arguments_are_what_the_command_stands_for(method, model):
    ours = resolve_mapping(qwen_config(method, model, "data.json"), "allranks qwen").flat()
    words = SCRIPTS + {"full": FULL, "lora": LORA, "qlora": f"{LORA} --q_lora"}[method]
    theirs = resolved("--model_name_or_path", model, *words.split()).flat()
    # The script sets CUDA_DEVICE_MAX_CONNECTIONS itself, and names the sharding in a file.
    for key in ("network", "fsdp_version", "fsdp_config", "deepspeed"):
        ours.pop(key, None), theirs.pop(key, None)
    assert theirs == ours


def test_what_finetune_does_without_arguments():
    flat = with_needed().flat()
    asked = {
        "base_model": "Qwen/Qwen-7B",
        "sequence_len": 8192,
        "excess_length_strategy": "truncate",
        "bf16": False,
        "micro_batch_size": 8,
        "num_epochs": 3.0,
        "learning_rate": 5e-5,
        "lr_scheduler": "linear",
        "optimizer": "adamw_torch",
        "save_strategy": "steps",
        "save_steps": 500,
        "logging_steps": 500,
        "seed": 42,
        "max_grad_norm": 1.0,
    }
    assert {key: flat[key] for key in asked} == asked
    assert "adapter" not in flat and flat["datasets"][0]["type"] == "qwen"


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        ("--bf16", {"bf16": True}),
        ("--bf16=False --fp16 yes", {"bf16": False, "fp16": True}),
        ("--bf16 1", {"bf16": True}),
        ("--learning-rate 1e-4 --learning-rate 2e-4", {"learning_rate": 2e-4}),
        ("--max_steps -1", {"num_epochs": 3.0}),
        ("--save_strategy epoch", {"save_strategy": "epoch"}),
        ("--save_strategy no", {"save_strategy": "no"}),
        ("--save_strategy steps", {"save_steps": 500}),
        ("--save_steps 0.25", {"save_steps": 0.25}),
        ("--warmup_steps 7", {"warmup_steps": 7}),
        ("--optim adafactor", {"optimizer": "adafactor"}),
        ("--adafactor True", {"optimizer": "adafactor"}),
        ("--seed 3", {"seed": 3, "data_seed": 3}),
        ("--ddp_timeout 60 --tf32 True", {"ddp_timeout": 60, "tf32": True}),
        ("--torch_compile", {"torch_compile": True}),
        ("--resume_from_checkpoint out/checkpoints/step-2", {"resume_from_checkpoint": "out/checkpoints/step-2"}),
        ("--resume_from_checkpoint True", {"auto_resume_from_checkpoints": True}),
        ("--eval_data_path e.json --eval_strategy epoch", {"eval_strategy": "epoch"}),
        ("--eval_data_path e.json --evaluation_strategy steps --logging_steps 9", {"eval_steps": 9}),
        ("--use_liger_kernel", {"liger_rope": True, "liger_glu_activation": True, "liger_layer_norm": False}),
        (
            '--use_liger_kernel --liger_kernel_config {"swiglu":false,"layer_norm":true}',
            {"liger_rms_norm": True, "liger_glu_activation": False, "liger_layer_norm": True},
        ),
        ("--report_to tensorboard wandb", {"use_tensorboard": True, "use_wandb": True}),
        ("--report_to wandb,mlflow --run_name 7", {"wandb_name": "7", "mlflow_run_name": "7", "use_mlflow": True}),
        ("--report_to trackio --project mine", {"use_trackio": True, "trackio_project_name": "mine"}),
        ("--use_lora --lora_r 8 --lora_alpha 32", {"adapter": "lora", "lora_r": 8, "lora_alpha": 32}),
        ("--use_lora --lora_target_modules q_proj v_proj", {"lora_target_modules": ["q_proj", "v_proj"]}),
        ("--use_lora --lora_weight_path old", {"lora_model_dir": "old"}),
        ("--use_lora", {"lora_modules_to_save": ["wte", "lm_head"], "lora_dropout": 0.05}),
        ("--use_lora --model_name_or_path Qwen/Qwen2-7B", {"lora_modules_to_save": ["embed_tokens", "lm_head"]}),
        ("--fsdp full_shard auto_wrap", {"fsdp": ["full_shard", "auto_wrap"]}),
        (
            "--gradient_checkpointing --sample_packing True --val_set_size 3",
            {"sample_packing": True, "val_set_size": 3},
        ),
    ],
)
def test_arguments_have_their_effect(words, keys):
    flat = with_needed(*words.split()).flat()
    assert {key: flat.get(key) for key in keys} == keys


def test_json_arguments_are_text_or_a_file(tmp_path):
    (tmp_path / "fsdp.json").write_text(json.dumps({"fsdp_transformer_layer_cls_to_wrap": "Layer"}))
    for given in (str(tmp_path / "fsdp.json"), '{"transformer_layer_cls_to_wrap": "Layer"}'):
        config = with_needed("--fsdp", "full_shard", "--fsdp_config", given)
        assert config.parallel.fsdp_settings.transformer_layer_cls_to_wrap == "Layer"
    with pytest.raises(UsageError, match=r"--fsdp_config none\.json: expected a JSON object, or the path of a file"):
        with_needed("--fsdp_config", "none.json")


def test_devices_and_folders_are_set_before_torch_is_imported(tmp_path):
    asked = read_finetune([*NEEDED, "--no_cuda", "--cache_dir", str(tmp_path)])
    assert asked.environment == {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_CACHE": str(tmp_path)}


@pytest.mark.parametrize(
    ("words", "note"),
    [
        ("--lazy_preprocess True", "--lazy_preprocess: has no effect"),
        ("--dataloader_num_workers 4", "--dataloader_num_workers: has no effect"),
        ("--lora_r 8", "--lora_r: has no effect without --use_lora"),
        ("--eval_data_path e.json", "nothing is evaluated with --evaluation_strategy no"),
        ("--include_num_input_tokens_seen", "--include_num_input_tokens_seen: has no effect"),
        ("--run_name mine", "--run_name: has no effect: --report_to has none of wandb, mlflow, trackio"),
        ("--use_lora", "Qwen/Qwen-7B is a base model by its name: it has never seen the tokens of a chat"),
    ],
)
def test_what_has_no_effect_is_said(words, note):
    (said,) = read_finetune([*NEEDED, *words.split()]).notes
    assert note in said


@pytest.mark.parametrize(
    "words", ["--lazy_preprocess False", "--dataloader_num_workers 0", "--label_smoothing_factor 0.0", "--local_rank=1"]
)
def test_what_asks_for_nothing_is_taken_in_silence(words):
    asked = read_finetune([*NEEDED, *words.split()])
    assert not asked.notes and with_needed(*words.split()) == with_needed()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--model_max_lenght 9", "--model_max_lenght: .* did you mean --model_max_length?"),
        ("--sample_pakcing True", "did you mean --sample_packing?"),
        ("stray", "unexpected argument 'stray'"),
        ("--bf16 maybe", "--bf16 maybe: expected True or False"),
        ("--model_max_length 0", "--model_max_length: expected an integer of at least 1, got 0"),
        ("--per_device_train_batch_size x", "--per_device_train_batch_size: expected an integer"),
        ("--learning_rate", "--learning_rate needs a value"),
        ("--label_smoothing_factor 0.1", "label smoothing is not supported"),
        ("--lora_bias all --use_lora", "--lora_bias all: training biases"),
        ("--q_lora", "--q_lora needs --use_lora"),
        ("--report_to all", "--report_to all: name the trackers"),
        ("--report_to neptune", "--report_to neptune: expected none, tensorboard"),
        ("--logging_strategy epoch", "only steps, as --logging_steps says"),
        ("--bf16 --fp16", "--fp16: excludes bf16 (--bf16)"),
        ("--fsdp shard_grad_op", "--fsdp: shard_grad_op: say it with"),
    ],
)
def test_what_is_refused_names_the_argument(words, message):
    with pytest.raises((UsageError, ConfigError)) as error:
        with_needed(*words.split())
    head, _, tail = message.partition(".*")
    assert head in str(error.value) and tail in str(error.value)


@pytest.mark.parametrize("name", ["data_path", "output_dir"])
def test_what_finetune_cannot_do_without(name):
    words = [word for pair in zip(NEEDED[::2], NEEDED[1::2], strict=True) if pair[0] != f"--{name}" for word in pair]
    with pytest.raises(UsageError, match=f"--{name} is required"):
        read_finetune(words)


def test_the_arguments_are_understood_by_the_command_too():
    words, notes = in_our_words(
        ["--lazy_preprocess", "True", "--report_to=wandb", "--lr_scheduler_type", "linear", "--"]
    )
    assert words == ["--use_wandb=true", "--lr_scheduler", "linear", "--"]
    assert len(notes) == 1 and "--lazy_preprocess" in notes[0]
    for refused in ("--use_lora", "--label_smoothing_factor=0.1", "--no_cuda"):
        with pytest.raises(UsageError, match=refused.partition("=")[0]):
            in_our_words([refused])
