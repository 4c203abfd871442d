"""The demo's files: a tokenizer, a data set, a small model with random weights, and a config that trains them."""

import json
import random
from dataclasses import dataclass
from pathlib import Path

from allranks.config.schema import EDITOR_LINE, write_schema
from allranks.demo.docstrings import question_answer_pairs
from allranks.errors import UsageError

_END_OF_TEXT = "<|endoftext|>"
_TURN_START = "<|im_start|>"
_TURN_END = "<|im_end|>"

# ChatML, as Qwen writes it. The generation marks name what the assistant says: its text and the end of its turn.
_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}"
    "{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

_CONFIG = (
    f"{EDITOR_LINE}\n"
    + """\
# A complete configuration of allranks: Axolotl's keys, one run.
#   allranks train {config}
# Paths in a config are relative to the folder you start the command in. These are absolute: it runs from anywhere.

# The model: any Hugging Face causal language model, by folder or Hub name. This one has random weights.
base_model: {model}

# The data: one JSON object a line, {{"messages": [{{"role": "user", "content": …}}, {{"role": "assistant", …}}]}}.
# The tokenizer's own chat template turns it into text; the loss covers what the assistant says and nothing else.
datasets:
  - path: {data}
    type: chat_template
chat_template: tokenizer_default
dataset_prepared_path: {prepared}

# Conversations are packed into blocks of this many tokens; they do not see each other.
sequence_len: 256
sample_packing: true

# One optimizer step takes 8 blocks, however many processes there are: the losses are the same on any number of them.
batch_size: 8
micro_batch_size: 4
max_steps: {max_steps}

learning_rate: 0.003
lr_scheduler: cosine
warmup_steps: 10
optimizer: adamw_torch_fused
adam_beta2: 0.95
weight_decay: 0.0
max_grad_norm: 1.0
seed: 42

# float32, because CPUs are slow in anything else. On a GPU say `bf16: auto`.
bf16: false

# Several processes: the model, its gradients and the optimizer's state are sharded over them.
fsdp_version: 2
fsdp_config:
  reshard_after_forward: true
  state_dict_type: SHARDED_STATE_DICT

# Everything that the run writes. Start the same command again and it goes on from the newest complete checkpoint.
output_dir: {output}
save_strategy: steps
save_steps: {save_steps}
save_total_limit: 2
auto_resume_from_checkpoints: true
logging_steps: 1
"""
)


@dataclass(frozen=True)
class DemoFiles:
    """Where `write_files` put things, and how large they are."""

    directory: Path
    model: Path  # folder of the model and its tokenizer
    data: Path  # train.jsonl
    config: Path  # config.yaml
    output: Path  # the run directory that the config names; not made yet
    num_records: int
    num_parameters: int
    max_steps: int


def write_files(
    directory: str | Path,
    *,
    num_records: int | None = None,
    vocab_size: int = 4096,
    hidden_size: int = 256,
    num_layers: int = 4,
    max_steps: int = 200,
    tie_word_embeddings: bool = True,
    seed: int = 42,
) -> DemoFiles:
    """Write `model/`, `train.jsonl` and `config.yaml` into `directory`, which is made if need be.

    `num_records` takes the first that many of the shuffled question/answer pairs (default: all, about ten thousand).
    The model is Qwen3's architecture with random weights drawn from `seed`, in float32; with the default sizes it has
    4 million parameters. The tokenizer is trained on the whole corpus, whatever `num_records` is; `vocab_size` is at
    least 300 (the bytes and the special tokens). The same arguments give the same files on the same Python.
    Raises UsageError if there is a `config.yaml` already: it may have been edited.
    """
    directory = Path(directory).resolve()
    files = {
        "model": directory / "model",
        "data": directory / "train.jsonl",
        "config": directory / "config.yaml",
        "output": directory / "run",
    }
    if files["config"].exists():
        raise UsageError(f"{files['config']} exists already, and it may hold your changes: choose another folder")
    try:
        files["model"].mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write into {directory}: {error.strerror}. Choose another folder") from None

    pairs = question_answer_pairs()
    records = _shuffled(pairs, seed)[:num_records]
    with files["data"].open("w", encoding="utf-8") as file:
        for question, answer in records:
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": turns}, ensure_ascii=False) + "\n")

    _write_tokenizer(files["model"], [text for pair in pairs for text in pair], vocab_size)
    num_parameters = _write_model(files["model"], vocab_size, hidden_size, num_layers, tie_word_embeddings, seed)

    files["config"].write_text(
        _CONFIG.format(
            config=files["config"],
            model=files["model"],
            data=files["data"],
            prepared=directory / "prepared",
            output=files["output"],
            max_steps=max_steps,
            save_steps=max(1, max_steps // 3),
        ),
        encoding="utf-8",
    )
    write_schema(directory)
    return DemoFiles(
        directory=directory,
        **files,
        num_records=len(records),
        num_parameters=num_parameters,
        max_steps=max_steps,
    )


def _shuffled(pairs: list[tuple[str, str]], seed: int) -> list[tuple[str, str]]:
    pairs = list(pairs)
    random.Random(seed).shuffle(pairs)
    return pairs


def _write_tokenizer(directory: Path, texts: list[str], vocab_size: int) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[_END_OF_TEXT, _TURN_START, _TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=_TURN_END,
        pad_token=_END_OF_TEXT,
        additional_special_tokens=[_TURN_START],
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )
    fast.chat_template = _CHAT_TEMPLATE
    fast.save_pretrained(directory)


def _write_model(
    directory: Path, vocab_size: int, hidden_size: int, num_layers: int, tie_word_embeddings: bool, seed: int
) -> int:
    """A Qwen3 model with random weights as safetensors; the number of its parameters."""
    import torch
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM
    from transformers.utils import logging

    tokenizer = AutoTokenizer.from_pretrained(directory)
    head_dim = 32
    num_heads = max(2, hidden_size // head_dim)
    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads // 2,
        head_dim=head_dim,
        max_position_embeddings=2048,
        tie_word_embeddings=tie_word_embeddings,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    logging.disable_progress_bar()  # one small file
    model.save_pretrained(directory)
    logging.enable_progress_bar()
    return sum(parameter.numel() for parameter in model.parameters())
