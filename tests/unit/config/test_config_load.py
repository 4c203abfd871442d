"""Configs that load, and configs that must not, each with what the user is told."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from allranks.config import RunConfig, load_config
from allranks.config.load import resolve_mapping
from allranks.config.yaml_lines import parse_yaml
from allranks.errors import ConfigError

MINIMAL = """\
base_model: model
learning_rate: 1e-4
datasets:
  - path: train.jsonl
    type: alpaca
"""

# Axolotl's public key names as a supervised fine-tuning config uses them, empty keys and old spellings included.
SFT = """\
base_model: NousResearch/Meta-Llama-3-8B
model_type: AutoModelForCausalLM
tokenizer_type: AutoTokenizer
is_llama_derived_model: true
strict: false

load_in_8bit: false
load_in_4bit: false

chat_template: llama3
datasets:
  - path: fozziethebeat/alpaca_messages_2k_test
    type: chat_template
    field_messages: conversations
    message_field_role: from
    message_field_content: value
    roles:
      user: [human, user]
      assistant:
        - gpt
        - assistant
dataset_prepared_path: last_run_prepared
dataset_processes: 4
val_set_size: 0.05
output_dir: ./outputs/lora-out

sequence_len: 4096
sample_packing: true
pad_to_sequence_len: true

adapter: lora
lora_model_dir:
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_linear: true
lora_fan_in_fan_out:

wandb_project:
wandb_entity:
wandb_log_model:

gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 4
optimizer: adamw_8bit
optim_args: amsgrad=True,foo=bar
lr_scheduler: cosine
learning_rate: 2e-4
train_on_inputs: false
group_by_length: false
bf16: auto
fp16:
tf32: false

gradient_checkpointing: true
gradient_checkpointing_kwargs:
  use_reentrant: false
early_stopping_patience:
resume_from_checkpoint:
local_rank:
logging_steps: 1
xformers_attention:
flash_attention: true
s2_attention:

warmup_steps: 10
evals_per_epoch: 4
eval_table_size:
saves_per_epoch: 1
debug_free: &anchor
weight_decay: 0.0
fsdp:
fsdp_config:
special_tokens:
  pad_token: <|end_of_text|>
""".replace("debug_free: &anchor\n", "")

# The FSDP2 block of a public guide to Axolotl on several nodes, comments and all.
FSDP2 = """\
fsdp_version: 2
fsdp_config:
  offload_params: true               # offload optimizer states to CPU; saves HBM at cost of throughput
  state_dict_type: FULL_STATE_DICT   # gather full weights on rank 0 for checkpointing
  auto_wrap_policy: TRANSFORMER_BASED_WRAP
  transformer_layer_cls_to_wrap: LlamaDecoderLayer   # match to your model architecture
  reshard_after_forward: true        # release parameter shards after forward pass; reduces peak HBM
"""


def load(tmp_path: Path, text: str, overrides: dict[str, str] | None = None, **options: bool) -> RunConfig:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    here = Path.cwd()
    os.chdir(tmp_path)  # so that messages start with the bare name
    try:
        return load_config("config.yaml", overrides or {}, **options)
    finally:
        os.chdir(here)


def test_a_supervised_axolotl_config_loads_as_it_is(tmp_path):
    config = load(tmp_path, SFT)
    assert config.model.attn_implementation == "flash_attention_2"
    assert config.model.special_tokens.pad_token == "<|end_of_text|>"
    (spec,) = config.data.datasets
    assert spec.message_property_mappings == {"role": "from", "content": "value"}
    assert spec.roles == {"user": ["human", "user"], "assistant": ["gpt", "assistant"]}
    assert (config.data.dataset_num_proc, config.data.val_set_size, config.data.eval_sample_packing) == (4, 0.05, True)
    assert config.adapter.lora_model_dir is None
    assert (config.optimizer.learning_rate, config.optimizer.optimizer) == (2e-4, "adamw_bnb_8bit")
    assert config.optimizer.optim_args == {"amsgrad": True, "foo": "bar"}
    assert (config.checkpoint.save_strategy, config.evaluation.eval_strategy) == ("steps", "steps")
    assert config.evaluation.eval_batch_size == 2
    assert config.precision.compute == "auto"
    assert not config.parallel.uses_fsdp
    assert config.warnings == (
        "config.yaml:4: is_llama_derived_model: has no effect: the architecture is found from the model",
    )


def test_the_fsdp2_block_of_the_guide_loads_as_it_stands(tmp_path):
    parallel = load(tmp_path, MINIMAL + FSDP2).parallel
    assert parallel.uses_fsdp
    assert parallel.fsdp_config.model_dump(exclude_none=True, exclude={"cpu_offload_pin_memory"}) == {
        "offload_params": True,
        "state_dict_type": "FULL_STATE_DICT",
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "transformer_layer_cls_to_wrap": "LlamaDecoderLayer",
        "reshard_after_forward": True,
        "sync_each_batch": False,
        "activation_checkpointing": False,
    }


GOOD = {
    "defaults": (
        "",
        {"data.sequence_len": 2048, "checkpoint.save_strategy": "epoch", "evaluation.eval_strategy": "no"},
    ),
    "exponent without a dot": ("weight_decay: 1e-2", {"optimizer.weight_decay": 0.01}),
    "exponent with a plus": ("adam_epsilon: 1E+0", {"optimizer.adam_epsilon": 1.0}),
    "a date is text": ("revision_of_model: 2024-01-01", {"model.revision_of_model": "2024-01-01"}),
    "an integer is a number": ("num_epochs: 3", {"optimizer.num_epochs": 3.0}),
    "validation by count": ("val_set_size: 100", {"data.val_set_size": 100, "evaluation.eval_strategy": "epoch"}),
    "old fsdp prefix": (
        "fsdp: [full_shard, auto_wrap]\nfsdp_config:\n  fsdp_offload_params: true\n  fsdp_use_orig_params: false\n"
        "  fsdp_limit_all_gathers: true\n  fsdp_cpu_ram_efficient_loading: true",
        {"parallel.fsdp_config.offload_params": True, "parallel.uses_fsdp": True},
    ),
    "fsdp in one word": ("fsdp: full_shard auto_wrap", {"parallel.fsdp": ["full_shard", "auto_wrap"]}),
    "version inside fsdp_config": ("fsdp_config:\n  version: 2", {"parallel.fsdp_version": 2}),
    "final state dict": (
        "fsdp_config:\n  state_dict_type: SHARDED_STATE_DICT\n  final_state_dict_type: FULL_STATE_DICT",
        {"parallel.fsdp_config.state_dict_type": "FULL_STATE_DICT"},
    ),
    "an empty fsdp_config asks for nothing": ("fsdp_config:\n  offload_params:", {"parallel.uses_fsdp": False}),
    "sharding by size": ("dp_shard_size: 2", {"parallel.uses_fsdp": True}),
    "attention by its old name": ("sdp_attention: true\nflash_attention: false", {"model.attn_implementation": "sdpa"}),
    "two spellings that agree": (
        "dataset_processes: 2\ndataset_num_proc: 2",
        {"data.dataset_num_proc": 2},
    ),
    "bf16": ("bf16: true\nfp16: false", {"precision.compute": "bfloat16"}),
    "fp16": ("bf16: false\nfp16: true", {"precision.compute": "float16"}),
    "float32 by its name": ("float32: true", {"precision.compute": "float32"}),
    "no low precision": ("bf16: false", {"precision.compute": "float32"}),
    "precision by FSDP's key": (
        "fsdp_config:\n  mixed_precision_policy: bf16",
        {"precision.compute": "bfloat16"},
    ),
    "falsy keys of later features": ("deepspeed:\nuse_wandb: false\nplugins: []\nrl: null", {}),
    "a fixed global batch": ("batch_size: 64", {"optimizer.batch_size": 64}),
    "a falsy partner excludes nothing": ("warmup_steps: 10\nwarmup_ratio: 0.0", {"optimizer.warmup_steps": 10}),
    "jinja given alone": ("chat_template_jinja: t.jinja", {"data.chat_template": "jinja"}),
    "a key switched off by its value": (
        "max_steps: -1\nevals_per_epoch: 0\nsaves_per_epoch: 0",
        {"optimizer.max_steps": None, "checkpoint.save_strategy": "epoch"},
    ),
    "the best checkpoint": (
        "val_set_size: 0.1\nsave_strategy: best\nmetric_for_best_model: eval_loss\ngreater_is_better: false",
        {"checkpoint.save_strategy": "best"},
    ),
    "arguments of an optimizer": ("optim_args: betas=0.9,eps=1e-6", {}),
    "an optimizer without betas": ("optimizer: sgd\noptim_args: {momentum: 0.9}", {"optimizer.optimizer": "sgd"}),
    "betas of Lion": ("optimizer: lion_pytorch\nadam_beta2: 0.95", {"optimizer.adam_beta2": 0.95}),
    "no is false in YAML": (
        "val_set_size: 0.1\nsave_strategy: no\neval_strategy: no",
        {"checkpoint.save_strategy": "no", "evaluation.eval_strategy": "no"},
    ),
    "no hook, by Accelerate's name": ("ddp_comm_hook: no", {"parallel.ddp_comm_hook": "none"}),
    "a hook by another name": (
        "ddp_comm_hook: powersgd\nddp_comm_state_option:\n  start_powerSGD_iter: 5",
        {"parallel.ddp_comm_hook": "power_sgd", "parallel.ddp_comm_state_option.start_powerSGD_iter": 5},
    ),
    "shards of a node": ("dp_shard_size: node", {"parallel.uses_fsdp": True}),
    "watchdog": ("loss_watchdog_threshold: 5", {"tracking.loss_watchdog_patience": 3}),
    "saving by fractions": ("save_steps: 0.25", {"checkpoint.save_steps": 0.25, "checkpoint.save_strategy": "steps"}),
    "seed of the data": ("seed: 7", {"data.data_seed": 7}),
    "anchors and merge keys": (
        "test_datasets:\n  - &first\n    path: a.jsonl\n    type: alpaca\n  - <<: *first\n    path: b.jsonl",
        {"data.test_datasets.1.path": "b.jsonl", "data.test_datasets.1.type": "alpaca"},
    ),
    "a prompt format of one's own": (
        "test_datasets:\n  - path: a\n    type:\n      field_instruction: q\n      format: '{instruction}'",
        {"data.test_datasets.0.type.field_instruction": "q"},
    ),
    "environment variables are not expanded": ("output_dir: $HOME/out", {"checkpoint.output_dir": "$HOME/out"}),
}


@pytest.mark.parametrize(("text", "expected"), GOOD.values(), ids=GOOD)
def test_good(tmp_path, text, expected):
    config = load(tmp_path, MINIMAL + text)
    for path, value in expected.items():
        found = config
        for part in path.split("."):
            found = found[int(part)] if part.isdecimal() else getattr(found, part)
        assert found == value, path
    again = resolve_mapping(config.flat())
    assert again.flat() == config.flat()
    assert again.sha256() == config.sha256()
    assert load(tmp_path, config.yaml()).sha256() == config.sha256()


@pytest.mark.parametrize("text", [text for text, _ in GOOD.values()], ids=GOOD)
def test_ranks_read_the_resolved_config_as_it_is(tmp_path, text):
    config = load(tmp_path, MINIMAL + text)
    written, _ = parse_yaml(config.yaml(), "resolved")
    for flat in (config.flat(), written):
        assert RunConfig.from_resolved(flat, source=config.source) == replace(config, warnings=())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rat": 1}, "run.yaml: learning_rat is no key of a resolved config"),
        ({"flash_attention": True}, "run.yaml: flash_attention is no key"),  # an old spelling is the user's
        ({"lora_r": "8"}, "run.yaml: lora_r: "),
    ],
)
def test_a_resolved_config_that_was_changed_is_refused(tmp_path, change, message):
    flat = load(tmp_path, MINIMAL).flat()
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_resolved({**flat, **change}, source="run.yaml")
    assert str(caught.value).startswith(message)


# name: (lines added to MINIMAL, whose last line is 5; parts of the message)
BAD = {
    "misspelt": ("learning_rte: 1e-4", ["config.yaml:6: learning_rte: unknown key; did you mean learning_rate?"]),
    "another trainer's key": ("per_device_train_batch_size: 2", ["config.yaml:6: ", "did you mean micro_batch_size?"]),
    "nothing alike": ("xyzzy: 1", ["config.yaml:6: xyzzy: unknown key; `allranks config schema` lists all"]),
    "misspelt inside": (
        "fsdp_config:\n  offload_parms: true",
        ["config.yaml:7: fsdp_config.offload_parms: unknown key; did you mean fsdp_config.offload_params?"],
    ),
    "misspelt in a list": (
        "test_datasets:\n  - path: a\n  - path: b\n    fild: text",
        ["config.yaml:9: test_datasets.1.fild: unknown key; did you mean test_datasets.1.field?"],
    ),
    "a hook of DDP with FSDP": (
        "fsdp_version: 2\nddp_comm_hook: bf16",
        ["config.yaml:7: ddp_comm_hook: is a hook of DDP", "`fsdp_config.reduce_dtype: bfloat16`"],
    ),
    "a hook of DDP with ZeRO": (
        "deepspeed:\n  zero_optimization:\n    stage: 2\nddp_comm_hook: bf16",
        ["config.yaml:9: ddp_comm_hook: is a hook of DDP, and ZeRO reduces gradients itself"],
    ),
    "PowerSGD with loss scaling": (
        "fp16: true\nddp_comm_hook: power_sgd",
        ["config.yaml:7: ddp_comm_hook: power_sgd does not work with fp16's loss scaling"],
    ),
    "options of PowerSGD without it": (
        "ddp_comm_hook: bf16\nddp_comm_state_option:\n  matrix_approximation_rank: 2",
        ["config.yaml:7: ddp_comm_state_option: belongs to `ddp_comm_hook: power_sgd`"],
    ),
    "a node of what": ("dp_shard_size: rack", ["config.yaml:6: dp_shard_size: expected ", "got 'rack'"]),
    "wrong type": (
        "micro_batch_size: two",
        ["config.yaml:6: micro_batch_size: expected an integer of at least 1, got 'two'"],
    ),
    "number in quotes": ("weight_decay: '0.1'", ["expected a number of at least 0, got '0.1'; leave out the quotes"]),
    "text without quotes": ("revision_of_model: 1234567", ["expected text, got 1234567; put it in quotes"]),
    "true is not a number": ("num_epochs: true", ["config.yaml:6: num_epochs: expected a number above 0, got true"]),
    "one is not true": ("sample_packing: 1", ["sample_packing: expected true or false, got 1"]),
    "a choice": ("lr_scheduler: cosin", ["lr_scheduler: expected cosine, linear, constant", "got 'cosin'"]),
    "a union": ("bf16: maybe", ["bf16: expected true, false, auto or full, got 'maybe'"]),
    "infinite": ("weight_decay: .inf", ["weight_decay: expected a number of at least 0, got inf"]),
    "inside a union": (
        "test_datasets:\n  - path: a\n    type:\n      formt: x",
        ["config.yaml:9: test_datasets.0.type.formt: unknown key; did you mean test_datasets.0.type.format?"],
    ),
    "missing in a list": ("test_datasets:\n  - type: alpaca", ["config.yaml:7: test_datasets.0.path: required: file"]),
    "a list for text": ("output_dir: [a]", ["output_dir: expected text that is not empty, got a list"]),
    "text for a list": ("tokens: abc", ["tokens: expected a list of texts, got 'abc'"]),
    "text for a mapping": ("fsdp_config: abc", ["config.yaml:6: fsdp_config: expected a mapping, got 'abc'"]),
    "null in a list": ("tokens: [a, null]", ["config.yaml:6: tokens.1: expected text, got null"]),
    "sequence length 0": ("sequence_len: 0", ["config.yaml:6: sequence_len: expected an integer of at least 1, got 0"]),
    "multimodal class": ("model_type: AutoModelForVision2Seq", ["model_type: expected text of the form …ForCausalLM"]),
    "given twice": ("base_model: other", ["config.yaml:6: base_model: given twice; it is on line 1 too"]),
    "two spellings": (
        "dataset_processes: 2\ndataset_num_proc: 3",
        ["config.yaml:7: dataset_num_proc: 3 contradicts config.yaml:6: dataset_processes: 2; keep one of them"],
    ),
    "a fraction of steps and more": (
        "save_steps: 1.5",
        ["save_steps: expected an integer of at least 1 or a number above 0 and below 1, got 1.5"],
    ),
    "more than all samples": (
        "val_set_size: 1.5",
        ["val_set_size: expected an integer of at least 0 or a number of at least 0 and below 1, got 1.5"],
    ),
    "a number among texts": ("lora_target_modules: [a, 1]", ["lora_target_modules.1: expected text, got 1"]),
    "two spellings of different kinds": (
        "fsdp_config: [full_shard]\nfsdp_final_state_dict_type: FULL_STATE_DICT",
        ["config.yaml: 2 problems\n", "config.yaml:7: fsdp_final_state_dict_type: fsdp_config is a list"],
    ),
    "two spellings, text and list": (
        "eval_strategy: [epoch]\nevaluation_strategy: epoch",
        [
            "config.yaml: 2 problems\n",
            "config.yaml:7: evaluation_strategy: 'epoch' contradicts config.yaml:6: eval_strategy: a list",
        ],
    ),
    "two attentions": (
        "sdp_attention: true\nflash_attention: true",
        ["config.yaml:7: flash_attention: ", "contradicts"],
    ),
    "FSDP1": ("fsdp_version: 1", ["config.yaml:6: fsdp_version: 1: FSDP1 is deprecated", "use `fsdp_version: 2`"]),
    "FSDP1's key": (
        "fsdp_config:\n  fsdp_min_num_params: 1000",
        ["config.yaml:7: fsdp_config.fsdp_min_num_params: an FSDP1 setting"],
    ),
    "LOCAL_STATE_DICT": (
        "fsdp_config:\n  state_dict_type: LOCAL_STATE_DICT",
        ["config.yaml:7: fsdp_config.state_dict_type: LOCAL_STATE_DICT: ", "use SHARDED_STATE_DICT"],
    ),
    "fsdp list": (
        "fsdp: [full_shard, offload]",
        ["config.yaml:6: fsdp: offload: say it with `fsdp_config.offload_params"],
    ),
    "tensor parallel": ("tensor_parallel_size: 2", ["tensor_parallel_size: 2: not supported yet, only 1 is; `fsdp_v"]),
    "three": (
        "context_parallel_size: 3",
        ["context_parallel_size: 3: one sequence over several GPUs is not supported"],
    ),
    "images": (
        "model_type: Llama4ForConditionalGeneration",
        [
            "model_type: Llama4ForConditionalGeneration: a class for images or sound",
            "remove it: the text model is load",
        ],
    ),
    "an expert plugin": (
        "plugins: [axolotl.integrations.expert_parallel.ExpertParallelPlugin]",
        [
            "ExpertParallelPlugin: this plugin (expert parallelism; `fsdp_version: 2` divides experts, too)",
            "is not supported",
        ],
    ),
    "linear experts": ("llama4_linearized_experts: true", ["`quantize_moe_experts: true` packs them"]),
    "later": (
        "use_comet: true",
        ["config.yaml:6: use_comet: not supported yet: the Comet tracker", "--ignore-unsupported"],
    ),
    "later by prefix": (
        "scaling_softmax_factor: 2",
        ["config.yaml:6: scaling_softmax_factor: not supported yet: scaled softmax"],
    ),
    "a plugin by name": (
        "plugins: [axolotl.integrations.spectrum.SpectrumPlugin]",
        ["config.yaml:6: plugins: axolotl.integrations.spectrum.SpectrumPlugin: this plugin (Spectrum"],
    ),
    "a plugin that nobody knows": (
        "plugins: [my.own.Plugin]",
        ["config.yaml:6: plugins.0: expected axolotl.integrations.liger.LigerPlugin", "got 'my.own.Plugin'"],
    ),
    "two libraries for one loss": (
        "cut_cross_entropy: true\nliger_fused_linear_cross_entropy: true",
        ["config.yaml:7: liger_fused_linear_cross_entropy: excludes cut_cross_entropy (config.yaml:6"],
    ),
    "chunks of nothing": (
        "chunked_cross_entropy: false\nchunked_cross_entropy_num_chunks: 4",
        ["config.yaml:7: chunked_cross_entropy_num_chunks: has no effect"],
    ),
    "later value": ("optimizer: adopt_adamw", ["config.yaml:6: optimizer: adopt_adamw: not supported; use adamw"]),
    "first values from data": (
        "adapter: lora\nlora_r: 8\nlora_alpha: 8\npeft_init_lora_weights: eva",
        ["peft_init_lora_weights: eva: such first"],
    ),
    "two types, one by its name": ("bf16: true\nfloat32: true", ["bf16: excludes float32"]),
    "offloaded activations": (
        "gradient_checkpointing: offload_disk",
        ["gradient_checkpointing: offload_disk: ", "only host memory is supported"],
    ),
    "4 bit": (
        "load_in_4bit: true",
        ["config.yaml:6: load_in_4bit: quantized weights cannot be trained", "`adapter: qlora`"],
    ),
    "preferences": ("rl: dpo", ["config.yaml:6: rl: preference training: out of scope"]),
    "pretraining": ("pretraining_dataset: c4", ["pretraining streams: out of scope"]),
    "sharegpt": ("test_datasets:\n  - path: a\n    type: sharegpt", ["config.yaml:8: ", "use `type: chat_template`"]),
    "secret": ("hub_token: hf_abc", ["config.yaml:6: hub_token: a secret", "environment variable HF_TOKEN"]),
    "another secret": ("wandb_api_key: abc123", ["environment variable WANDB_API_KEY"]),
    "global batch and accumulation": (
        "batch_size: 8\ngradient_accumulation_steps: 1",
        ["config.yaml:7: gradient_accumulation_steps: excludes batch_size (config.yaml:6: batch_size)"],
    ),
    "two warm-ups": ("warmup_steps: 1\nwarmup_ratio: 0.1", ["config.yaml:7: warmup_ratio: excludes warmup_steps"]),
    "two save intervals": ("save_steps: 1\nsaves_per_epoch: 1", ["saves_per_epoch: excludes save_steps"]),
    "two eval intervals": (
        "val_set_size: 2\neval_steps: 1\nevals_per_epoch: 1",
        ["evals_per_epoch: excludes eval_steps"],
    ),
    "two types": ("bf16: true\nfp16: true", ["config.yaml:7: fp16: excludes bf16", "computes in one type"]),
    "float16 weights": (
        "float16: true",
        ["config.yaml:6: float16: weights in float16 cannot be trained", "use `fp16`"],
    ),
    "FSDP's type": (
        "bf16: false\nfsdp_config:\n  mixed_precision_policy: bf16",
        ["config.yaml:8: fsdp_config.mixed_precision_policy: bf16 contradicts float32"],
    ),
    "float16 with FSDP": ("fp16: true\nfsdp_version: 2", ["config.yaml:6: fp16: float16 needs loss scaling"]),
    "FSDP's float16": (
        "fsdp_config: {mixed_precision_policy: fp16}",
        ["config.yaml:6: fsdp_config.mixed_precision_policy: fp16: float16 needs"],
    ),
    "a metric for nothing": ("metric_for_best_model: eval_loss", ["needs `save_strategy: best`"]),
    "code of data sets": (
        "test_datasets:\n  - path: a\n    trust_remote_code: true",
        ["config.yaml:8: test_datasets.0.trust_remote_code: true: code of data sets is never run"],
    ),
    "two evaluation sets": ("val_set_size: 0.1\ntest_datasets:\n  - path: a", ["val_set_size: excludes test_datasets"]),
    "LoRA without a rank": ("adapter: lora\nlora_alpha: 8", ["config.yaml: lora_r: required by `adapter: lora`"]),
    "saving by epoch and steps": (
        "save_strategy: epoch\nsave_steps: 5",
        ["save_steps: needs `save_strategy: steps`, not epoch"],
    ),
    "saving by no steps": ("save_strategy: steps", ["save_strategy: `steps` needs `save_steps` or `saves_per_epoch`"]),
    "best of nothing": ("save_strategy: best", ["save_strategy: `best` needs evaluation data"]),
    "best without evaluation": (
        "val_set_size: 0.1\neval_strategy: no\nsave_strategy: best",
        ["config.yaml:8: save_strategy: `best` needs evaluations", "(config.yaml:7: eval_strategy)"],
    ),
    "the first step and the best": (
        "val_set_size: 0.1\nsave_strategy: best\nsave_first_step: true",
        ["config.yaml:8: save_first_step: contradicts `save_strategy: best`"],
    ),
    "the first step and none": (
        "save_strategy: no\nsave_first_step: true",
        ["config.yaml:7: save_first_step: contradicts `save_strategy: no`"],
    ),
    "betas of SGD": ("optimizer: sgd\nadam_beta2: 0.95", ["config.yaml:7: adam_beta2: has no effect: sgd has no"]),
    "epsilon of Adafactor": ("optimizer: adafactor\nadam_epsilon: 1e-6", ["adam_epsilon: has no effect: adafactor"]),
    "epsilon of Lion": (
        "optimizer: lion_pytorch\nadam_beta1: 0.95\nadam_epsilon: 1e-6",
        ["config.yaml:8: adam_epsilon: has no effect: lion_pytorch divides by nothing"],
    ),
    "another learning rate": (
        "optim_args: lr=1e-3",
        ["config.yaml:6: optim_args.lr: has no effect: `learning_rate` sets it"],
    ),
    "betas twice": (
        "adam_beta2: 0.95\noptim_args: {betas: [0.9, 0.99]}",
        ["config.yaml:7: optim_args.betas: excludes adam_beta2 (config.yaml:6: adam_beta2)"],
    ),
    "weight decay that reaches nothing": (
        "optim_args: {weight_decay: 0.1}",
        ["config.yaml:6: optim_args.weight_decay: has no effect: `weight_decay` sets it"],
    ),
    "evaluation without data": ("eval_steps: 5", ["eval_steps: needs evaluation data"]),
    "evaluating by epoch and steps": (
        "val_set_size: 0.1\neval_strategy: epoch\neval_steps: 5",
        ["config.yaml:8: eval_steps: needs `eval_strategy: steps`, not epoch"],
    ),
    "patience without evaluation": ("early_stopping_patience: 3", ["early_stopping_patience: needs evaluation data"]),
    "jinja without a template": ("chat_template: jinja", ["chat_template: `jinja` needs `chat_template_jinja`"]),
    "a template beside another": (
        "chat_template: chatml\nchat_template_jinja: x",
        ["config.yaml:7: chat_template_jinja: needs `chat_template: jinja`, not chatml"],
    ),
    "a data set's template": (
        "test_datasets:\n  - {path: a, type: chat_template, chat_template: jinja}",
        ["config.yaml:7: test_datasets.0.chat_template: `jinja` needs"],
    ),
    "half a shard": (
        "test_datasets:\n  - path: a\n    shards: 2",
        ["config.yaml:8: test_datasets.0.shards: ", "need each other"],
    ),
    "a shard too many": (
        "test_datasets:\n  - path: a\n    shards: 2\n    shards_idx: 2",
        ["config.yaml:9: test_datasets.0.shards_idx: must be below `shards`, 2"],
    ),
    "nothing left": ("min_sample_len: 4096", ["min_sample_len: is above `sequence_len`, 2048"]),
    "cosine's key": (
        "lr_scheduler: linear\ncosine_min_lr_ratio: 0.1",
        ["cosine_min_lr_ratio: belongs to `lr_scheduler: cosine or rex`"],
    ),
    "compile's key": ("torch_compile_mode: default", ["torch_compile_mode: needs `torch_compile: true`"]),
    "two checkpoints": (
        "resume_from_checkpoint: x\nauto_resume_from_checkpoints: true",
        ["auto_resume_from_checkpoints: excludes resume_from_checkpoint"],
    ),
    "several at once": (
        "sequence_len: 0\nlerning_rate: 1\nrl: kto\nbf16: 3",
        [
            "config.yaml: 4 problems\n",
            "config.yaml:6: seq",
            "config.yaml:7: lern",
            "config.yaml:8: rl",
            "config.yaml:9: bf16",
        ],
    ),
}


@pytest.mark.parametrize(("text", "parts"), BAD.values(), ids=BAD)
def test_bad(tmp_path, text, parts):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, MINIMAL + text)
    message = str(caught.value)
    for part in parts:
        assert part in message
    assert ("\n" in message) == parts[0].endswith("problems\n"), message


def test_secrets_are_never_repeated(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, MINIMAL + "comet_api_key: sesame\n", {"hf_token": "sesame"})
    assert "sesame" not in str(caught.value)
    assert "COMET_API_KEY" in str(caught.value)
    assert "HF_TOKEN" in str(caught.value)


def test_required_keys_say_what_they_are(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "seed: 1")
    assert "config.yaml: base_model: required: folder or Hugging Face Hub id" in str(caught.value)
    assert "config.yaml: datasets: required" in str(caught.value)
    assert "config.yaml: learning_rate: required" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "is_told"),
    [
        ("model_name_or_path: m\nstage: sft\ndataset: d\n", True),
        ("model: m\ntrain_type: lora\ndataset: d\n", True),
        ("model_name_or_path: m\nbase_model: m\nstage: sft\n", False),
        ("bass_model: m\nstage: sft\n", False),
    ],
)
def test_of_another_trainers_file_it_is_told_what_reads_it(tmp_path, text, is_told):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as told:
        load_config(path)
    assert (f"`allranks config import {path}`" in str(told.value)) == is_told


def test_many_problems_fit_on_one_screen(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, MINIMAL + "".join(f"nonsense_{number}: 1\n" for number in range(40)))
    lines = str(caught.value).split("\n")
    assert len(lines) == 17
    assert lines[0] == "config.yaml: 40 problems"
    assert lines[-1] == "  … and 25 more"


def test_ignore_unsupported_leaves_later_keys_out_with_a_warning(tmp_path):
    text = MINIMAL + "use_comet: true\ncomet_project_name: mine\n"
    config = load(tmp_path, text, ignore_unsupported=True)
    assert config.sha256() == load(tmp_path, MINIMAL).sha256()
    assert [warning.split(";")[0] for warning in config.warnings] == [
        "config.yaml:6: use_comet: ignored on request",
        "config.yaml:7: comet_project_name: ignored on request",
    ]


@pytest.mark.parametrize("text", ["rl: dpo", "fsdp_version: 1", "hub_token: x", "nonsense: 1"])
def test_ignore_unsupported_ignores_nothing_else(tmp_path, text):
    with pytest.raises(ConfigError):
        load(tmp_path, MINIMAL + text, ignore_unsupported=True)


def test_evaluations_without_data_are_allowed_with_a_warning(tmp_path):
    config = load(tmp_path, MINIMAL + "evals_per_epoch: 4\nval_set_size: 0.0\n")
    assert config.evaluation.eval_strategy == "no"
    assert config.warnings == ("config.yaml:6: evals_per_epoch: has no effect: there is no evaluation data",)


def test_a_config_cannot_be_changed(tmp_path):
    config = load(tmp_path, MINIMAL)
    with pytest.raises(Exception, match="frozen"):
        config.optimizer.learning_rate = 1.0
    with pytest.raises(Exception, match="cannot assign"):
        config.optimizer = None


def test_the_hash_follows_every_value_and_no_spelling(tmp_path):
    config = load(tmp_path, MINIMAL)
    reordered = "\n".join(reversed(MINIMAL.split("\n")[:2])) + "\n# note\n" + "\n".join(MINIMAL.split("\n")[2:])
    assert load(tmp_path, reordered).sha256() == config.sha256()
    assert load(tmp_path, MINIMAL + "seed: 42").sha256() == config.sha256()
    assert load(tmp_path, MINIMAL + "seed: 43").sha256() != config.sha256()


def test_a_resolved_config_is_read_again_without_a_warning(tmp_path):
    assert load(tmp_path, load(tmp_path, MINIMAL).yaml()).warnings == ()
